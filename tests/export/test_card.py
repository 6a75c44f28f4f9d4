"""The front matter of a model card is what model hubs accept."""

import re

import pytest
import yaml

from mmssl.export import card


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        (None, {"license": "other", "license_name": "not-stated"}),
        (
            "Research only: no (re)distribution",
            {"license": "other", "license_name": "research-only-no-re-distribution"},
        ),
        ("©", {"license": "other", "license_name": "other"}),
    ],
)
def test_front_matter(licence: str | None, expected: dict[str, str]) -> None:
    text = card.front_matter('runs: "a"\n---', ["video", "text"], licence)
    first, body, last = re.split(r"^---$", text, flags=re.MULTILINE)
    assert first == last == ""
    found = yaml.safe_load(body)
    assert expected.items() <= found.items()
    assert ("license_link" in found) == (found["license"] == "other")
    assert found["library_name"] == "mmssl"
    assert {"video", "text", "safetensors"} <= set(found["tags"])
    assert found["model_name"] == 'runs: "a"\n---'
