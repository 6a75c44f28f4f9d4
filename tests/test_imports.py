"""Who may import whom (docs/architecture.md), read from the syntax trees."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "mmssl"
MAX_LINES = 400

LEAF = {"types", "rng", "trees", "errors", "files"}
NUMERIC = {"jax", "numpy", "jaxtyping", "optax"}
DOOR = {
    "ahead",
    "cli",
    "checkpoints",
    "clips",
    "config",
    "costs",
    "evaluate_runs",
    "evaluation",
    "experiment",
    "init_from",
    "outputs",
    "runs",
    "streams",
    "viewer",
    "workdir",
    "bench",
    "check",
    "commands",
    "doctor",
}
"""Rooms that wire the others together and may import all of them."""

ROOMS: dict[str, set[str]] = {
    "parallel": LEAF,
    "data": LEAF,
    "models": LEAF | {"parallel"},
    "objectives": LEAF | {"parallel"},
    "gradients": LEAF | {"parallel"},
    "optim": LEAF,
    "train": LEAF | {"parallel", "gradients", "optim"},
    "evals": LEAF | {"parallel"},
    # An exported encoder reads files and strings as training did.
    "export": LEAF | {"models", "data"},
    "report": LEAF,
}
"""Room -> the other rooms it may import."""

OUTSIDE: dict[str, set[str]] = {
    "flax": {"models"},
    "ml_collections": {"cli", "config", "experiment", "commands"},
    "tensorflow": set(),
    "torch": set(),
}
"""Package -> the only rooms that may import it."""

CORE = {"models", "objectives", "gradients", "optim", "train", "parallel"} | LEAF
"""Must import where these are not installed:"""
ABSENT = {"grain", "tensorflow_datasets", "av", "ml_collections", "clu"}


def room(path: pathlib.Path) -> str:
    """mmssl/data/pool.py -> data; mmssl/rng.py -> rng."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(source: str, *, top_level: bool = False) -> set[str]:
    """Dotted names that a module imports; `from a import b` counts as a.b.

    Args:
      source: Python code.
      top_level: only what runs at import time, so nothing inside functions.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import on line {node.lineno}"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        inner = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith(
            "TYPE_CHECKING"
        ):
            return
        if not (top_level and inner):
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(ast.parse(source))
    return found


def packages(source: str, *, top_level: bool = False) -> set[str]:
    return {name.partition(".")[0] for name in imports(source, top_level=top_level)}


def faults(name: str, source: str) -> list[str]:
    """Every rule that a module `mmssl/<name>` breaks."""
    where = name.partition("/")[0].removesuffix(".py")
    found = []
    if source.count("\n") > MAX_LINES:
        found.append(f"{source.count(chr(10))} lines; the limit is {MAX_LINES}")
    own = {
        dotted.split(".")[1]
        for dotted in imports(source)
        if dotted.startswith("mmssl.")
    } - {where}
    if where in LEAF:
        found += [f"a leaf imports mmssl.{x}" for x in own - LEAF]
        outside = packages(source) - set(sys.stdlib_module_names) - NUMERIC - {"mmssl"}
        found += [f"a leaf imports {x}" for x in outside]
    elif where in ROOMS:
        found += [f"{where} imports mmssl.{x}" for x in own - ROOMS[where]]
    elif where not in DOOR | {"__init__"}:
        found.append(f"unknown room {where!r}: give it a row in this test")
    for package in packages(source) & set(OUTSIDE):
        if where not in OUTSIDE[package]:
            allowed = ", ".join(sorted(OUTSIDE[package])) or "nobody"
            found.append(f"{where} imports {package}; only {allowed} may")
    if where == "data" and name != "data/device.py" and "jax" in packages(source):
        found.append("data imports jax outside data/device.py")
    if where in CORE:
        heavy = packages(source, top_level=True) & ABSENT
        found += [f"the core imports {x} at import time" for x in heavy]
    return found


# What an export carries for users without mmssl is copied, never imported.
MODULES = sorted(p for p in LIBRARY.rglob("*.py") if p.parent.name != "standalone")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_module_keeps_the_rules(path: pathlib.Path) -> None:
    assert faults(path.relative_to(LIBRARY).as_posix(), path.read_text()) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("rng.py", "import optax\nimport scipy"),
        ("trees.py", "from mmssl.data import records"),
        ("data/pool.py", "from mmssl.models import vatt"),
        ("data/pool.py", "def f():\n    import jax.numpy as jnp"),
        ("objectives/contrastive.py", "from mmssl.models import heads"),
        ("objectives/contrastive.py", "from flax import linen as nn"),
        ("gradients/harmonize.py", "import mmssl.objectives"),
        ("train/loop.py", "from mmssl import models"),
        ("train/loop.py", "import ml_collections"),
        ("train/loop.py", "import grain"),
        ("models/vatt.py", "class A:\n    import clu.parameter_overview"),
        ("evals/knn.py", "from mmssl.data.pipeline import HostBatch"),
        ("export/card.py", "import torch.nn as nn"),
        ("report/html.py", "import tensorflow"),
        ("report/html.py", "from mmssl.experiment import Experiment"),
        ("utils/misc.py", ""),
        ("report/long.py", "x = 1\n" * (MAX_LINES + 1)),
    ],
)
def test_each_rule_can_fail(name: str, source: str) -> None:
    assert faults(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("data/device.py", "import jax"),
        ("models/vatt.py", "from flax import linen as nn\nfrom mmssl import types"),
        ("export/encoder.py", "from mmssl.models import vatt"),
        ("train/metrics.py", "def f():\n    import clu.metric_writers"),
        ("commands/train.py", "from mmssl import experiment"),
    ],
)
def test_what_is_allowed_passes(name: str, source: str) -> None:
    assert faults(name, source) == []


def test_relative_imports_are_refused() -> None:
    with pytest.raises(AssertionError, match="relative import"):
        faults("data/pool.py", "from . import records")


def loaded_by(code: str) -> set[str]:
    """Top-level packages in memory after running `code` in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    run = [sys.executable, "-c", script]
    return set(subprocess.check_output(run, text=True, cwd=ROOT).split())


def test_the_package_imports_without_jax() -> None:
    assert {"jax", "numpy"}.isdisjoint(loaded_by("import mmssl"))


def test_the_command_line_imports_without_jax() -> None:
    code = "from mmssl import cli; cli.parser().format_help()"
    heavy = {"jax", "numpy", "av", "matplotlib", "ml_collections"}
    assert heavy.isdisjoint(loaded_by(code))


def test_decode_workers_start_without_jax() -> None:
    modules = ("worker", "media", "pool")
    code = "".join(f"import mmssl.data.{name}\n" for name in modules)
    assert "jax" not in loaded_by(code)


def test_no_module_needs_tensorflow_or_torch() -> None:
    """Every module imports, and neither package comes in through another."""
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in MODULES]
    wanted = [n.removesuffix(".__init__") for n in names if not n.endswith("worker")]
    code = (
        "from absl import flags; flags.FLAGS.mark_as_parsed()\nimport importlib\n"
        f"for name in {wanted}: importlib.import_module(name)"
    )
    assert {"tensorflow", "torch"}.isdisjoint(loaded_by(code))


def test_the_core_imports_without_the_data_packages() -> None:
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in MODULES]
    core = [n.removesuffix(".__init__") for n in names if n.split(".")[1] in CORE]
    code = (
        f"sys.modules.update(dict.fromkeys({sorted(ABSENT)}))\nimport importlib\n"
        f"for name in {core}: importlib.import_module(name)"
    )
    assert "jax" in loaded_by(code)


def test_jax_0_10_2_is_refused() -> None:
    code = (
        "from importlib import metadata\nmetadata.version = lambda _: '0.10.2'\n"
        "try:\n    import mmssl\n"
        "except ImportError as error:\n    assert '0.10.1' in str(error)\n"
        "else:\n    raise SystemExit('not refused')"
    )
    loaded_by(code)
