"""Eight simulated CPU devices, strict ranks, warnings as errors."""

import importlib.metadata
import os
import pathlib
from collections.abc import Iterator

if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Its new code generator for CPUs takes two to three times as long to compile, which
    # is most of what tests do; commands that tests start inherit this, `make demo` has
    # the default. Later releases have no such flag, and refuse it.
    flag = "--xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import jax
import pytest
from absl import flags

jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS") or "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Commands keep what they compile in the user's cache folder.
jax.config.update("jax_enable_compilation_cache", False)
# Grain reads absl flags, which pytest never parses.
flags.FLAGS.mark_as_parsed()

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real media for tests; absent on most machines."""
    path = pathlib.Path(os.environ.get("MMSSL_DATA", ROOT / "../shared/data")).resolve()
    if not path.is_dir():
        pytest.skip(f"real test media not found at {path}; set MMSSL_DATA")
    return path


@pytest.fixture(scope="module")
def compile_quickly() -> Iterator[None]:
    """For tests that run everything once: compiling is all the time they take."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
