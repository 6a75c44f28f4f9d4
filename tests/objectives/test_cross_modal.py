"""CrossModalContrast: how pairs are read, and what each loss is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmssl.errors import UserError
from mmssl.objectives import contrastive, losses
from tests.objectives.test_contract import WIDTHS, LinearHeads, run, sample

pytestmark = pytest.mark.usefixtures("compile_quickly")

VA = {"modalities": ("video", "audio"), "space": "va"}


def test_losses_are_the_functions_on_normalised_heads():
    objective = contrastive.CrossModalContrast(LinearHeads(), temperature=0.1)
    head, state = objective.init(jax.random.key(0), WIDTHS)
    encoded, batch = sample()
    out = run(objective, head, state, encoded, batch)
    masks = {m: contrastive.present_mask(batch, m) for m in WIDTHS}
    assert masks["text"].shape == (8, 3)
    spaces, _ = objective.heads.apply(head, state, encoded.pooled, masks, train=True)

    def unit(z):
        return z / np.linalg.norm(z, axis=-1, keepdims=True)

    for pair, other in (("va", "audio"), ("vt", "text")):
        y, y_mask = unit(spaces[pair][other]), masks[other]
        if other == "audio":
            y, y_mask = y[:, None], y_mask[:, None]
        terms = losses.pair_terms(
            unit(spaces[pair]["video"]),
            y,
            x_mask=masks["video"],
            y_mask=y_mask,
            example_id=batch.example_id,
            temperature=0.1,
        )
        values = losses.asymmetric_nce(terms)
        np.testing.assert_allclose(out.per_sample[pair], values, rtol=1e-4, atol=1e-5)
        mean = np.asarray(values)[np.asarray(terms.valid)].mean()
        np.testing.assert_allclose(out.losses[pair], mean, rtol=1e-4)
    assert set(out.metrics) == {
        "top1/va/video_to_audio",
        "top1/va/audio_to_video",
        "top1/vt/video_to_text",
        "top1/vt/text_to_video",
    }


@pytest.mark.parametrize("form", ["official", "textbook", "sigmoid"])
def test_tiles_change_nothing(form):
    """Losses, metrics and every gradient, those of a learned temperature included."""
    encoded, batch = sample()

    def found(chunk):
        objective = contrastive.CrossModalContrast(
            LinearHeads(), form=form, chunk=chunk, bias=-1.0
        )
        head, state = objective.init(jax.random.key(0), WIDTHS)

        def total(head, encoded):
            out = run(objective, head, state, encoded, batch)
            return sum(out.losses.values()), out

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(head, encoded)

    whole, tiled = found(None), found(3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
        whole,
        tiled,
    )
    learned = whole[1][0].get("logits", {})
    assert len(learned) == (2 if form == "sigmoid" else 0)
    assert all(float(g) != 0 for g in jax.tree.leaves(learned))


def test_the_sigmoid_form_starts_from_its_options():
    objective = contrastive.CrossModalContrast(
        LinearHeads(), form="sigmoid", temperature=0.1
    )
    head, _ = objective.init(jax.random.key(0), WIDTHS)
    assert set(head["logits"]) == {"va", "vt"}
    assert float(jnp.exp(-head["logits"]["va"]["scale"])) == pytest.approx(0.1)
    assert float(head["logits"]["va"]["bias"]) == -10
    assert set(objective.projections(head)) == {"va", "vt"}


def test_order_of_a_pair_does_not_matter():
    outs = []
    for modalities in (("video", "text"), ("text", "video")):
        objective = contrastive.CrossModalContrast(
            LinearHeads(), pairs={"vt": {"modalities": modalities, "space": "vt"}}
        )
        head, state = objective.init(jax.random.key(0), WIDTHS)
        outs.append(run(objective, head, state, *sample()))
        assert objective.requires == {"video", "text"}
    jax.tree.map(np.testing.assert_array_equal, outs[0], outs[1])


def test_first_valid_candidate_represents_the_text():
    vectors = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.asarray([[False, True, True], [True, False, True]])
    np.testing.assert_array_equal(
        contrastive.first_valid(vectors, mask), [[2.0, 3.0], [6.0, 7.0]]
    )


def test_perfect_alignment_is_all_hits():
    heads = LinearHeads((("va", ("video", "audio")),))
    objective = contrastive.CrossModalContrast(heads)
    encoded, batch = sample()
    same = jnp.eye(8)
    out = run(
        objective,
        {"va": {"video": same, "audio": same}},
        {"va": {"video": jnp.zeros(8), "audio": jnp.zeros(8)}},
        type(encoded)({}, {"video": same, "audio": same}),
        batch,
    )
    assert out.metrics["top1/va/video_to_audio"] == 1
    assert out.metrics["top1/va/audio_to_video"] == 1


@pytest.mark.parametrize(
    ("spaces", "expected"),
    [
        # The space with fewest members wins: audio is in vt for evaluation only.
        (
            (("vt", ("video", "audio", "text")), ("va", ("video", "audio"))),
            {"va": "va", "vt": "vt"},
        ),
        ((("joint", ("video", "audio", "text")),), {"va": "joint", "vt": "joint"}),
        ((("joint", ("audio", "text")),), {"at": "joint"}),
    ],
)
def test_default_pairs(spaces, expected):
    pairs = contrastive.CrossModalContrast(LinearHeads(spaces)).terms()
    assert {pair.name: pair.space for pair in pairs} == expected


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"form": "oficial"}, "did you mean 'official'"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"pairs": {}}, "no pairs"),
        ({"pairs": {"va": {**VA, "space": "vaa"}}}, "did you mean 'va'"),
        ({"pairs": {"va": {**VA, "modalities": ("video", "text")}}}, "'text'"),
        ({"pairs": {"va": {**VA, "modalities": ("video",)}}}, "two different"),
        ({"pairs": {"va": {**VA, "weight": 1.0}}}, "exactly the keys"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        contrastive.CrossModalContrast(LinearHeads(), **kwargs)


def test_missing_modality_of_the_model_is_named():
    objective = contrastive.CrossModalContrast(LinearHeads())
    with pytest.raises(UserError, match=r"need \['text'\]"):
        objective.init(jax.random.key(0), {"video": 3, "audio": 3})
