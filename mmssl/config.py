"""Configs at the door: loading, overrides, and constructors called by their kwargs."""

import ast
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections

from mmssl.errors import UserError, nearest

T = TypeVar("T")

KEYS = (
    "seed",
    "steps",
    "batch",
    "mesh",
    "data",
    "model",
    "objectives",
    "harmonizer",
    "optim",
    "ema",
    "init_from",
    "checkpoint",
    "evals",
    "log",
    "watchdog",
)
"""The top level of every config."""

OPTIONAL = ("ema", "init_from", "watchdog")
"""Those of `KEYS` that a config may leave out."""

CLOSED = {
    "data": (
        "path",
        "split",
        "tokenizer",
        "seconds",
        "threads",
        "workers",
        "limits",
        "reads",
        "max_fault_fraction",
        "video",
        "audio",
        "text",
    ),
    "evals": (
        "split",
        "train_split",
        "batch",
        "windows",
        "knn_k",
        "prompts",
        "every",
        "protocols",
        "clips",
    ),
    "log": ("every", "tensorboard", "wandb", "mlflow", "profile", "max_nonfinite"),
}
"""Keys of the entries that several parts read. The other entries are the keyword
arguments of one constructor, whose signature is their schema."""

SIMPLE = (bool, int, float, str)
"""Annotations that are checked where a constructor is called."""

MAY_CHANGE = (
    "checkpoint",
    "evals",
    "log",
    "watchdog",
    "mesh",
    "data.threads",
    "data.workers",
    "data.limits",
    "data.reads",
    "data.max_fault_fraction",
    "data.path",
    "data.tokenizer",
)
"""What a resumed run may set anew: none of it changes what is learned. Datasets and
tokenizers may move; that they are the same is checked by content."""


def load(spec: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads `path/to/config.py[:arg]` and applies `--config.a.b=value` overrides.

    Args:
      spec: a Python file with `get_config(arg) -> ConfigDict`; what follows a colon is
        passed as `arg`.
      overrides: strings `--config.a.b=value` or `config.a.b=value`.

    Returns:
      The resolved config as nested plain dicts with the keys `KEYS`.

    Raises:
      UserError: no such file, no `get_config`, an unknown key, a value of another type.
    """
    name, _, arg = spec.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        found = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
        raise UserError(f"config file {name!r} does not exist{nearest(name, found)}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"config file {name!r} is not a Python file (*.py)")
    module = importlib.util.module_from_spec(module_spec)
    # A recipe may import its neighbours, as those in configs/ import common.py.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        module_spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {name!r} defines no get_config(arg)")
    try:
        loaded = module.get_config(arg) if arg else module.get_config()
    except (ValueError, KeyError) as error:
        raise UserError(f"config {spec!r}: {error}") from error
    config = plain(loaded)
    for item in overrides:
        _override(config, item)
    return check_keys(config, source=name)


def plain(value: Any) -> Any:
    """ConfigDicts, tuples and numbers to what JSON holds."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def check_keys(config: dict[str, Any], *, source: str) -> dict[str, Any]:
    """The config itself, once its top level holds exactly `KEYS`."""
    for key in config:
        if key not in KEYS:
            raise UserError(
                f"{source}: unknown top-level key {key!r}{nearest(key, KEYS)}; "
                f"the keys are {', '.join(KEYS)}"
            )
    missing = [key for key in KEYS if key not in (*config, *OPTIONAL)]
    if missing:
        raise UserError(f"{source}: missing top-level keys {missing}")
    for entry, known in CLOSED.items():
        for key in config[entry]:
            if key not in known:
                raise UserError(
                    f"{source}: unknown key {entry}.{key}{nearest(key, known)}; "
                    f"the keys of {entry} are {', '.join(known)}"
                )
    return config


def _override(config: dict[str, Any], item: str) -> None:
    name, equals, text = item.removeprefix("--").partition("=")
    parts = name.split(".")
    if not equals or parts[0] != "config" or len(parts) < 2:
        raise UserError(f"unexpected argument {item!r}; overrides: --config.a.b=value")
    node: Any = config
    for depth, part in enumerate(parts[1:], start=1):
        where = ".".join(parts[1:depth]) or "the top level"
        last = depth == len(parts) - 1
        # A constructor's entry takes any key: building it checks its signature.
        new = depth > 1 and where not in CLOSED
        if isinstance(node, dict) and node.get(part) is None and new:
            node[part] = None if last else {}
        if not isinstance(node, dict) or part not in node:
            options = list(node) if isinstance(node, dict) else []
            raise UserError(
                f"--{name}: no key {part!r} under {where}{nearest(part, options)}; "
                f"the keys there are {', '.join(options) or 'none (it is a value)'}"
            )
        if not last:
            node = node[part]
    node[parts[-1]] = _parse(name, text, old=node[parts[-1]])


def _parse(name: str, text: str, *, old: Any) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    value = plain(value)
    if isinstance(old, str) and not isinstance(value, (list, dict)):
        value = text
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    fits = old is None or value is None or type(value) is type(old)
    # A path may become a weighted mixture of paths, a size's name a table of sizes.
    structured = (str, list, dict)
    if not (fits or (isinstance(old, structured) and isinstance(value, structured))):
        raise UserError(
            f"--{name}: expected {type(old).__name__} like {old!r}, found "
            f"{type(value).__name__} {text!r}"
        )
    return value


def build(constructor: Callable[..., T], where: str, /, **kwargs: Any) -> T:
    """Calls `constructor(**kwargs)` once every key is one of its parameters.

    Args:
      constructor: its signature is the config entry's schema.
      where: the entry's path in the config, for messages.
      **kwargs: the entry.

    Raises:
      UserError: an unknown key, with the nearest one; a missing one; a value that is
        not of the annotated simple type; or a ValueError or TypeError of the
        constructor itself.
    """
    parameters = inspect.signature(constructor).parameters
    name = getattr(constructor, "__name__", type(constructor).__name__)
    for key in kwargs:
        if key not in parameters:
            raise UserError(
                f"config {where}.{key}: {name} takes no {key!r}"
                f"{nearest(key, parameters)}; it takes {', '.join(parameters)}"
            )
        wanted = parameters[key].annotation
        if wanted in SIMPLE and not _is(wanted, kwargs[key]):
            found = kwargs[key]
            raise UserError(
                f"config {where}.{key}: expected {wanted.__name__}, found "
                f"{type(found).__name__} {found!r}"
            )
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.name not in kwargs
    ]
    if missing:
        raise UserError(f"config {where}: {name} needs {', '.join(missing)}")
    try:
        return constructor(**kwargs)
    except (ValueError, TypeError) as error:
        # A message that begins with a parameter's name is about that key.
        key = str(error).partition(":")[0]
        dot = "." if key in parameters else ": "
        raise UserError(f"config {where}{dot}{error}") from error


def _is(wanted: type, value: Any) -> bool:
    if isinstance(value, bool) or wanted is bool:
        return isinstance(value, bool) and wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)


def choose(table: Mapping[str, T], kind: str | None, where: str) -> T:
    """The table's entry, or a UserError that names the nearest."""
    if kind is None:
        raise UserError(f"config {where} needs a kind: one of {', '.join(table)}")
    if kind not in table:
        raise UserError(
            f"config {where}: unknown {kind!r}{nearest(str(kind), table)}; "
            f"known: {', '.join(table)}"
        )
    return table[kind]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; an empty entry is as good as none."""
    items: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[f"{prefix}{key}"] = value
    return items


def may_change(key: str) -> bool:
    """Whether a resumed run may set this dotted key anew."""
    return any(key == k or key.startswith(f"{k}.") for k in MAY_CHANGE)


def check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> None:
    """Raises UserError where `new` would train something else than `old` did.

    Args:
      old: the config stored in the workdir.
      new: the config asked for now.
      where: the workdir, for the message.
    """
    before, after = flat(old), flat(new)
    changed = [
        key
        for key in sorted(before | after)
        if before.get(key) != after.get(key) and not may_change(key)
    ]
    if changed:
        shown = "\n".join(
            f"  {key}: {before.get(key, 'absent')!r} there, "
            f"{after.get(key, 'absent')!r} now"
            for key in changed[:20]
        )
        raise UserError(
            f"workdir {where} belongs to another config:\n{shown}\n"
            f"Give another --workdir, or set these values back. "
            f"Only {', '.join(MAY_CHANGE)} may change in a resumed run."
        )
