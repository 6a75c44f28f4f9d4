"""Exports of some modalities only, and fine-tuning that starts from them."""

import json
import pathlib

import jax
import numpy as np
import pytest

from mmssl import init_from, models, trees
from mmssl.errors import UserError
from mmssl.export import encoder as encoders
from mmssl.export import select, weights
from tests.export import exports

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.mark.parametrize(
    ("name", "modality", "spaces"),
    [
        ("shared", "video", {"a/joint", "b/joint"}),
        # Audio reaches vt through a map whose statistics are video's.
        ("specific", "audio", {"va", "vt"}),
    ],
)
def test_one_modality_encodes_as_before(
    tmp_path: pathlib.Path, name: str, modality: str, spaces: set[str]
) -> None:
    variant = exports.VARIANTS[name]
    exports.write(tmp_path / "all", variant)
    exports.write(tmp_path / "one", variant, modalities=[modality])
    with (
        encoders.from_folder(tmp_path / "all", batch=3) as whole,
        encoders.from_folder(tmp_path / "one", batch=3) as part,
    ):
        assert part.modalities == (modality,)
        assert part.spaces == dict.fromkeys(spaces, (modality,))
        rows = exports.media(part)[modality]
        expected = whole._outputs(modality, rows)
        found = part._outputs(modality, rows)
        assert found.keys() == expected.keys()
        for space, want in expected.items():
            np.testing.assert_allclose(found[space], want, atol=1e-6)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["tokenizer"] is None
    assert not (tmp_path / "one" / "tokenizer.txt").exists()
    others = {"video", "audio", "text"} - {modality}
    for tensor in weights.read(tmp_path / "one" / "model.safetensors"):
        root = tensor.removeprefix("model/").split("/")[0]
        assert root.removesuffix("_encoder") not in others


def test_fine_tuning_starts_from_it(tmp_path: pathlib.Path) -> None:
    variant = exports.VARIANTS["shared"]
    exports.write(tmp_path / "video", variant, modalities=["video"])
    kwargs = variant.model | {"audio": None, "text": None}
    fresh = {"params": models.build_model(**kwargs).init(jax.random.key(7))}
    plan = init_from.plan(fresh, path=str(tmp_path / "video"))
    assert plan.missing == plan.excluded == []
    assert {name.partition("/")[0] for name in plan.unexpected} == {"heads", "extras"}
    started = trees.named_leaves(plan.apply(fresh)["params"])
    trained = trees.named_leaves(exports.parts(variant)["params"])
    for name, array in started.items():
        np.testing.assert_array_equal(array, trained[name], err_msg=name)

    # Stacked layers and layers one by one have no name in common.
    unrolled = models.build_model(**kwargs | {"scan": False})
    with pytest.raises(UserError, match=r"stacked.*set model\.scan=True, as there"):
        init_from.plan(
            {"params": unrolled.init(jax.random.key(7))}, path=str(tmp_path / "video")
        )

    # And the other way round: one tower of a run with all modalities.
    exports.write(tmp_path / "all", variant)
    plan = init_from.plan(
        fresh, path=str(tmp_path / "all"), include=["params/(shared|video)/.*"]
    )
    assert sorted(plan.taken) == sorted(trees.named_leaves(fresh))


def test_modalities_that_are_not_there_are_named() -> None:
    given = exports.parts(exports.VARIANTS["paper"])
    with pytest.raises(UserError, match=r"the model has no 'audio'.*video, text"):
        select.only(["audio"], **given)
    with pytest.raises(UserError, match="did you mean 'video'"):
        select.only(["vidoe"], **given)
    with pytest.raises(UserError, match="name a modality"):
        select.only([], **given)
