#!/usr/bin/env bash
# Builds a dataset on a cluster, through Apache Beam; the same call goes on with a build
# that ended too early.
#
#   launch/data_beam.sh [--dry-run] --manifest gs://B/m.jsonl --out gs://B/data ...
#
# The arguments go to `mmssl data build`. Waits for the job; needs the extra `beam`, for
# Dataflow also `apache-beam[gcp]` and gcsfs.
#
# RUNNER        DataflowRunner (default), FlinkRunner or SparkRunner
# IMAGE         of the workers, see launch/Dockerfile.beam
# PROJECT       Dataflow: the project, and
# REGION        its region,
# TEMP          a URL for its own files,
# MACHINE       the type of the workers; default n2-standard-4,
# MAX_WORKERS   and how many at most; default 100
# MASTER        Flink: HOST:PORT; Spark: spark://HOST:PORT
# BEAM_OPTIONS  more of them, KEY=VALUE, with spaces between them
# MMSSL         the command; default `mmssl`
set -euo pipefail

dry=false
if [[ ${1:-} == --dry-run ]]; then
  dry=true
  shift
fi
need() {
  local variable
  for variable in "$@"; do
    [[ -n ${!variable:-} ]] || { echo "data_beam.sh: $variable is not set" >&2 && exit 2; }
  done
}
runner=${RUNNER:-DataflowRunner}
need IMAGE
docker=(environment_type=DOCKER "environment_config=$IMAGE")
case $runner in
  DataflowRunner)
    need PROJECT REGION TEMP
    options=("project=$PROJECT" "region=$REGION" "temp_location=$TEMP"
      "sdk_container_image=$IMAGE" "machine_type=${MACHINE:-n2-standard-4}"
      "max_num_workers=${MAX_WORKERS:-100}")
    ;;
  FlinkRunner) need MASTER && options=("flink_master=$MASTER" "${docker[@]}") ;;
  SparkRunner) need MASTER && options=("spark_master_url=$MASTER" "${docker[@]}") ;;
  *) echo "data_beam.sh: no settings for RUNNER=$runner" >&2 && exit 2 ;;
esac
# A core decodes one shard at a time.
options+=(number_of_worker_harness_threads=1)
read -ra more <<<"${BEAM_OPTIONS:-}"
read -ra mmssl <<<"${MMSSL:-mmssl}"
command=("${mmssl[@]}" data build "$@"
  --runner "$runner" --beam-options "${options[@]}" "${more[@]}")
if $dry; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
exec "${command[@]}"
