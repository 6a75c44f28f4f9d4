"""Merges `pip freeze` of one environment per Python version into constraints.txt.

    python3.11 -m venv a && a/bin/pip install '.[dev,beam]'     # likewise 3.12, 3.13
    python .ci/merge_constraints.py a/bin/python b/bin/python c/bin/python

Prints names and versions only; a package whose version differs between Python
versions gets one line per version, with an environment marker.
"""

import itertools
import json
import re
import subprocess
import sys

# Tools of the environment itself, and this project.
SKIPPED = {"pip", "setuptools", "wheel", "mmssl"}

HEADER = """\
# What CI tested: names and versions, for Python 3.11, 3.12 and 3.13.
# Use: pip install -e '.[dev,beam]' -c constraints.txt
# Refresh: .ci/merge_constraints.py (CONTRIBUTING.md, "Versions").
"""


def installed(python: str) -> tuple[str, dict[str, str]]:
    """('3.11', {name: version}) of one environment."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.check_output([python, "-c", code], text=True).strip()
    listing = subprocess.check_output(
        [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        text=True,
    )
    names = {
        re.sub(r"[-_.]+", "-", row["name"]).lower(): row["version"]
        for row in json.loads(listing)
    }
    return version, {k: v for k, v in names.items() if k not in SKIPPED}


def marker(chosen: list[str], pythons: list[str]) -> str:
    """The environment marker of a run of neighbouring Python versions."""
    first, last = pythons.index(chosen[0]), pythons.index(chosen[-1])
    parts = []
    if first > 0:
        parts.append(f'python_version >= "{chosen[0]}"')
    if last < len(pythons) - 1:
        parts.append(f'python_version < "{pythons[last + 1]}"')
    return " and ".join(parts)


def merge(environments: dict[str, dict[str, str]]) -> list[str]:
    """One line per name and run of neighbouring Pythons with the same version."""
    pythons = sorted(environments, key=lambda v: tuple(map(int, v.split("."))))
    lines = []
    for name in sorted(set().union(*environments.values())):
        # Where it is absent it needs no marker: a constraint installs nothing.
        present = [p for p in pythons if name in environments[p]]
        versions = {p: environments[p][name] for p in present}
        for version, group in itertools.groupby(present, versions.__getitem__):
            where = marker(list(group), present)
            lines.append(f"{name}=={version}" + (f" ; {where}" if where else ""))
    return lines


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(HEADER + "\n".join(merge(dict(map(installed, sys.argv[1:])))))
