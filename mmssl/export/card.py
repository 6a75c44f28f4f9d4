"""The model card: README.md of an export, from what the run recorded."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

ABSENT = "not recorded"

LICENCES = [
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
]
"""What model hubs know by its identifier; others are named and linked."""

ARMS = ("trained", "random", "chance")


class RunInfo(TypedDict, total=False):
    """What is known of the run; absent keys are said to be absent on the card.

    Attributes:
      name: of the model.
      command: that trained it.
      config: the resolved config.
      data: what data.json holds: counts, coverage, faults.
      eval: what eval.json holds; numbers below a key trained, random or chance.
      step: of the checkpoint; steps: of the whole run.
      ema: whether the weights are the running average up to that step.
      batch: examples per step.
      seed: of the run.
      seconds: of training.
      hardware: what it ran on.
      license: of these weights and what it follows from.
      limits: further known limits, one sentence each.
    """

    name: str
    command: str
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    eval: Mapping[str, Any]
    step: int
    steps: int
    ema: bool
    batch: int
    seed: int
    seconds: float
    hardware: str
    license: str
    limits: Sequence[str]


def _text(value: Any) -> str:
    """A JSON value in a table cell."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = f"{value:.4g}" if isinstance(value, float) else shown
    # No cell may open markup, another cell or another line.
    for mark in ("\\", "|", "<", ">", "`", "[", "]"):
        shown = shown.replace(mark, "\\" + mark)
    return " ".join(shown.split())


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(map(_text, row)) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        value = {str(i): child for i, child in enumerate(value)}
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _leaves(child, (*path, str(key)))
    else:
        yield path, value


def results_table(evaluation: Mapping[str, Any]) -> str:
    """What was judged, and every number beside random initialisation and chance."""
    rows: dict[str, dict[str, Any]] = {}
    for path, value in _leaves(evaluation):
        arm = next((part for part in path if part in ARMS), None)
        if arm is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        name = " / ".join(part for part in path if part != arm)
        rows.setdefault(name, {})[arm] = value
    if not rows:
        return "These weights were not evaluated before this export."
    cells = [[name, *(got.get(arm, "–") for arm in ARMS)] for name, got in rows.items()]
    table = _table(("", "trained", "random initialisation", "chance"), cells)
    data = str(evaluation.get("data", ABSENT)).rstrip("/").rsplit("/", 1)[-1]
    split = evaluation.get("split", ABSENT)
    judged = f"step {evaluation.get('step', ABSENT)}, data {data}, split {split}"
    return f"Judged: {_text(judged)}.\n\n{table}"


def _flat(value: Mapping[str, Any]) -> str:
    rows = []
    for path, leaf in _leaves(value):
        if path and path[-1] == "path":  # where it lay is nobody's business
            leaf = str(leaf).rstrip("/").rsplit("/", 1)[-1]
        rows.append((".".join(path), leaf))
    return _table(("", ""), rows) if rows else ABSENT + "."


def front_matter(name: str, modalities: Sequence[str], licence: str | None) -> str:
    """YAML that Hugging Face reads: library, task, tags, licence.

    A licence without an identifier there is "other", with a name in lower case and the
    file that has its text (https://huggingface.co/docs/hub/repositories-licenses).

    Args:
      name: of the model.
      modalities: it encodes.
      licence: an identifier, or words.
    """
    rows: dict[str, Any] = {
        "library_name": "mmssl",
        "pipeline_tag": "feature-extraction",
        "tags": [*modalities, "self-supervised", "jax", "pytorch", "safetensors"],
        "model_name": name,
    }
    if licence and licence.lower() in LICENCES:
        rows["license"] = licence.lower()
    else:
        slug = re.sub(r"[^a-z0-9.]+", "-", (licence or "not stated").lower())
        rows |= {
            "license": "other",
            "license_name": slug.strip("-")[:60] or "other",
            "license_link": "README.md",
        }
    # A JSON value on one line is a YAML value.
    lines = [f"{key}: {json.dumps(value)}" for key, value in rows.items()]
    return "\n".join(["---", *lines, "---"])


def write_card(
    run: RunInfo,
    *,
    config: Mapping[str, Any],
    spaces: Mapping[str, Sequence[str]],
    default_spaces: Mapping[str, str],
    parameters: int,
    versions: Mapping[str, str],
) -> str:
    """The card as Markdown, with the front matter that model hubs read.

    Args:
      run: what the run recorded.
      config: the export's config.json.
      spaces: of the encoder, as are `default_spaces`.
      default_spaces: modality -> space.
      parameters: numbers in the weights file.
      versions: of what wrote the export.
    """
    name = run.get("name") or "mmssl encoder"
    modalities = [m for m in ("video", "audio", "text") if config["model"].get(m)]
    licence = run.get("license")
    step, steps = run.get("step"), run.get("steps")
    seconds = run.get("seconds")
    compute = [
        ("steps", ABSENT if step is None else f"{step} of {steps or 'unknown'}"),
        ("weights", "running average" if run.get("ema") else "of the last step"),
        ("batch", run.get("batch", ABSENT)),
        ("seed", run.get("seed", ABSENT)),
        ("training time", ABSENT if seconds is None else f"{seconds:.0f} s"),
        ("hardware", run.get("hardware") or ABSENT),
        ("command", run.get("command") or ABSENT),
        ("written with", ", ".join(f"{k} {v}" for k, v in versions.items())),
    ]
    calls = {
        "video": 'video = encoder.encode_video(["clip.mp4"])',
        "audio": 'audio = encoder.encode_audio(["clip.mp4"])',
        "text": 'text = encoder.encode_text(["a red ball bounces"])',
    }
    limits = [
        "Trained without labels on the data above and nothing else: it knows what "
        "that data shows, with its biases.",
        "Similarities are relative: compare them within one space, not across spaces "
        "or models.",
        f"A file is represented by the centred {config['preprocessing']['seconds']} s; "
        "what happens outside that window is not seen.",
        *run.get("limits", ()),
    ]
    space_rows = [(space, ", ".join(who)) for space, who in spaces.items()]
    defaults = ", ".join(f"{m}: `{s}`" for m, s in default_spaces.items())
    compared = (
        "Each call uses the space below unless `space=` names another; only embeddings "
        f"of one space can be compared. Defaults: {defaults or 'none'}."
    )
    parts = [
        front_matter(name, modalities, licence),
        f"# {_text(name)}",
        f"A self-supervised encoder of {', '.join(modalities)} with {parameters:,} "
        "numbers in its weights file, pretrained and exported by mmssl.",
        "## Use",
        "\n".join(
            [
                "```python",
                "import mmssl",
                "",
                'encoder = mmssl.load("PATH/OF/THIS/FOLDER")',
                *(calls[m] for m in modalities),
                "```",
            ]
        ),
        compared,
        "`torch_encoder.py` here does the same in PyTorch, from frames, waves and "
        "token ids; `python torch_encoder.py` compares it with the exporter.",
        _table(("space", "modalities"), space_rows),
        "## Results",
        results_table(run.get("eval") or {}),
        "## Data",
        _flat(run.get("data") or {}),
        "## Training",
        _table(("", ""), compute),
        "## Preprocessing",
        _flat(config["preprocessing"]),
        "## Model",
        _flat({"model": config["model"], "heads": config["heads"]}),
        "## Limits",
        "\n".join(f"- {_text(limit)}" for limit in limits),
        "## Licence",
        _text(licence)
        if licence
        else "Not stated by the run. The licence of the training data may bind these "
        "weights: find it out before you pass them on.",
    ]
    return "\n\n".join(parts) + "\n"
