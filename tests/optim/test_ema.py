"""The running average of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.errors import UserError
from mmssl.optim.ema import Average


def test_it_is_the_recursion_and_forgets_its_start():
    r = np.random.default_rng(0)
    steps = r.normal(size=(40, 3))
    ema = Average(decay=0.9)
    found = ema.init({"w": jnp.full(3, 1e4)})
    wanted = np.full(3, 1e4)
    update = jax.jit(ema.update)
    for i, w in enumerate(steps):
        found = update(found, {"w": jnp.asarray(w, jnp.float32)}, jnp.asarray(i))
        rate = min(0.9, (1 + i) / (10 + i))
        wanted = rate * wanted + (1 - rate) * w
    np.testing.assert_allclose(found["w"], wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(wanted).max() < 1e4 * 1e-3


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(UserError, match=r"ema\.decay"):
        Average(decay=decay)
