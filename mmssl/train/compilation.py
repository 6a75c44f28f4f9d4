"""Compiling the train step: kept between runs, and done once in each."""

import logging
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax

from mmssl import trees
from mmssl.errors import UserError
from mmssl.parallel import distributed


def keep_compiled() -> str | None:
    """Lets JAX keep compiled programs in a folder, so that a restart compiles nothing.

    The folder is `mmssl/compiled` in the user's cache folder; on a CPU one of this
    host below it, since programs are made for one type of CPU. JAX's own variables
    come first: JAX_COMPILATION_CACHE_DIR names another one, and with
    JAX_ENABLE_COMPILATION_CACHE=false nothing is kept. Programs that took less than a
    second are not. Call it once the processes of a run have found each other.

    Returns:
      The folder, or None where nothing is kept.
    """
    config: Any = jax.config
    if not config.jax_enable_compilation_cache:
        return None
    cpu = jax.default_backend() == "cpu"
    if cpu and distributed.several():
        # A trial of what accelerators do; its messages must not be lost, see below.
        return config.jax_compilation_cache_dir
    if cpu:
        _quieten()
    if not config.jax_compilation_cache_dir:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = pathlib.Path(caches, "mmssl", "compiled", platform.node() * cpu)
        config.update("jax_compilation_cache_dir", str(folder))
    return config.jax_compilation_cache_dir


def _quieten() -> None:
    """XLA takes its own tuning flags for features that the CPU lacks, and prints pages
    about them as errors with every program that it loads."""
    jax.config.update("jax_logging_level", "CRITICAL")
    logging.getLogger("jax").setLevel(logging.WARNING)


class CompiledOnce:
    """A jitted step that is compiled at its first call and never again.

    A jitted function compiles anew, without a word, for every new shape. Here the
    executable itself is called, which takes nothing but what it was compiled for.

    Args:
      step: jitted; (state, batch) -> (state, output).
    """

    def __init__(self, step: Any):
        self._step = step
        self._compiled: Any = None
        self._first: Described = {}

    def __call__(self, state: Any, raw: Any, /) -> tuple[Any, Any]:
        """Raises UserError where an argument is not what the first call's was."""
        if self._compiled is None:
            self._first = _described(state, raw)
            self._compiled = self._step.lower(state, raw).compile()
        try:
            return self._compiled(state, raw)
        except (TypeError, ValueError) as error:
            changed = _changes(self._first, _described(state, raw))
            if not changed:
                raise
            raise UserError(
                "the train step would have to be compiled again: its arguments are not "
                "what they were at the first step:\n  "
                + "\n  ".join(changed[:12])
                + ("\n  ..." if len(changed) > 12 else "")
                + "\nBatches must all have one shape: look at what the data gave here"
            ) from error


Described = Mapping[str, tuple[str, str]]
"""Name of each array to its dtype and shape, and where it lies."""


def _described(state: Any, raw: Any) -> Described:
    leaves = trees.named_leaves({"state": state, "batch": raw})
    return {
        name: (f"{x.dtype}{list(x.shape)}", str(getattr(x, "sharding", "the host")))
        for name, x in leaves.items()
    }


def _changes(before: Described, after: Described) -> list[str]:
    absent = ("absent", "absent")
    lines = []
    for name in dict.fromkeys([*before, *after]):
        then, now = before.get(name, absent), after.get(name, absent)
        if then != now:
            which = 0 if then[0] != now[0] else 1
            lines.append(f"{name}: {then[which]} -> {now[which]}")
    return lines
