"""Trees by path, and named streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl import rng, trees

TREE = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "b": jnp.ones(4)}


def test_names_round_trip():
    named = trees.named_leaves(TREE)
    assert list(named) == ["a/bias", "a/kernel", "b"]
    back = trees.from_named(named)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)


def test_first_pattern_wins():
    got = trees.match(TREE, [(r".*/bias", 1), (r"a/.*", 2), (r"b", 3)], what="t")
    assert got == {"a": {"kernel": 2, "bias": 1}, "b": 3}


def test_a_leaf_without_pattern_raises():
    with pytest.raises(ValueError, match="no pattern matches 'b'"):
        trees.match(TREE, [(r"a/.*", 0)], what="t")


def test_an_unused_pattern_raises():
    with pytest.raises(ValueError, match="match nothing"):
        trees.match(TREE, [(r".*", 0), (r"b", 1)], what="t")


def test_sizes_and_norm():
    assert trees.size(TREE) == 13
    assert trees.nbytes(TREE) == 52
    np.testing.assert_allclose(trees.global_norm(TREE), np.sqrt(10.0), rtol=1e-6)


def test_streams_differ_by_name_step_and_key_and_repeat():
    key = jax.random.key(0)
    drawn = [
        rng.stream(key, "mask", 1),
        rng.stream(key, "mask", 2),
        rng.stream(key, "drop", 1),
        rng.stream(jax.random.key(1), "mask", 1),
    ]
    data = {tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in drawn}
    assert len(data) == 4
    again = jax.random.key_data(rng.stream(key, "mask", 1))
    np.testing.assert_array_equal(again, jax.random.key_data(drawn[0]))


def test_a_rows_key_does_not_depend_on_the_number_of_rows():
    key = jax.random.key(3)
    few, many = (jax.random.key_data(rng.per_row(key, n)) for n in (2, 5))
    np.testing.assert_array_equal(few, many[:2])
