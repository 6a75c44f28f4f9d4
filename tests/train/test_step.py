"""What the step says of its objectives."""

from mmssl.train.step import merged


def test_equal_names_of_two_objectives_are_both_kept():
    found = merged({"a": {"va": 1, "own": 2}, "b": {"va": 3}})
    assert found == {"a/va": 1, "own": 2, "b/va": 3}
