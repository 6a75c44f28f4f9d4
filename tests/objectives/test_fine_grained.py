"""Token-level losses against float64 loops, their identities, tiles and devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmssl import types
from mmssl.errors import UserError
from mmssl.objectives import fine_grained, losses, phrases, tokenwise
from mmssl.parallel import mesh as mesh_lib

pytestmark = pytest.mark.usefixtures("compile_quickly")

B, E = 8, 6
LENGTHS = {"video": 5, "audio": 4, "text": 3}
WIDTHS = {"video": 7, "audio": 6, "text": 5}
CANDIDATES = 2


def sample(seed=0, b=B, lengths=LENGTHS, candidates=CANDIDATES, full=False):
    """Tokens and a batch in which tokens, candidates and modalities are missing."""
    rng = np.random.default_rng(seed)
    tokens, parts = {}, {}
    for m, width in WIDTHS.items():
        lead = (b, candidates) if m == "text" else (b,)
        shape = (*lead, lengths[m])
        valid = rng.random(shape) < 0.7
        present = np.arange(b) % 5 != len(parts) + 1
        if full:
            valid[:], present[:] = True, True
        positions = np.broadcast_to(np.arange(lengths[m]), shape)[..., None]
        tokens[m] = jnp.asarray(rng.normal(size=(*shape, width)), jnp.float32)
        parts[m] = types.ModalityBatch(
            tokens=jnp.zeros(shape, jnp.int32),
            positions=jnp.asarray(positions, jnp.int32),
            valid=jnp.asarray(valid),
            present=jnp.asarray(present),
        )
    return types.Encoded(tokens, {}), types.Batch(parts, jnp.arange(b, dtype="uint32"))


@functools.partial(jax.jit, static_argnums=0)
def run(objective, head, encoded, batch):
    """(total, output), and gradients by parameters and tokens."""

    def total(head, encoded):
        out = objective(head, {}, encoded, batch, key=None, step=0)
        return sum(out.losses.values()), out

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(head, encoded)


def make(seed=3, **kwargs):
    objective = fine_grained.FineGrained(**{"features": E, **kwargs})
    return objective, objective.init(jax.random.key(seed), WIDTHS)[0]


ONE = {"vt": {"modalities": ("video", "text")}}
WINDOW = {
    "pairs": {"va": {"modalities": ("video", "audio"), "window": 0.6}},
    "rates": {"video": 2.0, "audio": 2.0},
}


# -- the reference ---------------------------------------------------------------------


def softmax(x, tau):
    e = np.exp((np.asarray(x) - np.max(x)) / tau)
    return e / e.sum()


def one_way(s, allowed, attention, vote, null):
    """Weights [n, p] of every p attending to n, by loops; and mean null share."""
    weights, lost = np.zeros_like(s), []
    found, columns = [], [p for p in range(s.shape[1]) if allowed[:, p].any()]
    for p in columns:
        rows = np.flatnonzero(allowed[:, p])
        e = np.exp(s[rows, p] / attention)
        weights[rows, p] = e / e.sum()
        found.append((weights[:, p] * s[:, p]).sum())
        lost.append(0 if null is None else np.exp(null) / (np.exp(null) + e.sum()))
    if not columns:
        return weights, 0.0
    for p, w, share in zip(columns, softmax(found, vote), lost, strict=True):
        weights[:, p] *= w * (1 - share)
    return weights, np.mean(lost)


def reference(objective, head, encoded, batch, pair):
    """Loss per sample of one pair, in float64."""
    (own,) = (p for p in objective.terms() if p.name == pair)
    sides = []
    for m in (own.x, own.y):
        part = batch.modalities[m]
        x = np.asarray(encoded.tokens[m], np.float64)
        valid = np.asarray(part.valid)
        valid = valid & np.asarray(part.present).reshape(-1, *[1] * (valid.ndim - 1))
        seconds = (np.asarray(part.positions)[..., 0] + 0.5) / objective.rates.get(m, 1)
        if m != "text":
            x, valid, seconds = x[:, None], valid[:, None], seconds[:, None]
        else:  # trigrams
            x = np.where(valid[..., None], x, 0)
            edge = np.zeros_like(x[:, :, :1])
            before = np.concatenate([edge, x[:, :, :-1]], 2)
            after = np.concatenate([x[:, :, 1:], edge], 2)
            x = np.concatenate([before, x, after], -1)
        x = x @ np.asarray(head[pair][m]["kernel"], np.float64)
        x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        sides.append((x, valid, seconds))
    (xs, x_valid, x_time), (ys, y_valid, y_time) = sides
    b, n = len(xs), ys.shape[1]
    null = None if objective.null is None else float(head[pair]["null"])
    tau = objective.temperature
    sim = np.full((b, b, n), -np.inf)
    matched = {}
    for i in range(b):
        for j in range(b):
            for k in range(n):
                if not (x_valid[i, 0].any() and y_valid[j, k].any()):
                    continue
                s = xs[i, 0] @ ys[j, k].T
                allowed = x_valid[i, 0][:, None] & y_valid[j, k][None]
                if own.window is not None:
                    apart = abs(x_time[i, 0][:, None] - y_time[j, k][None])
                    allowed &= apart <= own.window
                args = (objective.attention, objective.vote, null)
                to_x, _ = one_way(s, allowed, *args)
                to_y, _ = one_way(s.T, allowed.T, *args)
                weights = (to_x + to_y.T) / 2
                sim[i, j, k] = (weights * s).sum()
                matched[i, j, k] = weights, s
    each = np.zeros(b)
    for i in range(b):
        mine = [k for k in range(n) if np.isfinite(sim[i, i, k])]
        if not mine:
            continue
        across = np.exp(np.delete(sim[i], i, 0) / tau).sum()
        back = np.exp(np.delete(sim[:, i], i, 0) / tau).sum()
        if objective.form == "textbook":
            own_term = np.exp(sim[i, i, mine] / tau).sum()
            for others in (across, back):
                each[i] += 0.5 * np.log((own_term + others) / own_term)
            continue
        for k, share in zip(mine, softmax(sim[i, i, mine], tau), strict=True):
            weights, s = matched[i, i, k]
            p = np.exp(s / tau)
            for others in (across, back):
                each[i] += 0.5 * share * (weights * np.log((p + others) / p)).sum()
    return each


CASES = {
    "tokens": {"pairs": ONE},
    "textbook": {"pairs": ONE, "form": "textbook", "attention": 0.3, "vote": 0.5},
    "null": {"pairs": ONE, "null": 1.0},
    "window": WINDOW,
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_that_of_plain_loops(case):
    objective, head = make(**CASES[case])
    encoded, batch = sample()
    (_, out), _ = run(objective, head, encoded, batch)
    for pair, found in out.per_sample.items():
        wanted = reference(objective, head, encoded, batch, pair)
        assert (wanted > 0).sum() > 3
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)


# -- identities ------------------------------------------------------------------------


def test_of_one_token_each_it_is_plain_nce():
    one = dict.fromkeys(LENGTHS, 1)
    encoded, batch = sample(lengths=one, full=True, candidates=1)
    values = {}
    for form in ("tokens", "textbook"):
        kind = {"phrases": {"kind": "token"}, "pairs": ONE, "form": form}
        objective, head = make(**kind)
        values[form] = run(objective, head, encoded, batch)[0][1].per_sample["vt"]
    x, y = (
        fine_grained.normalise(encoded.tokens[m] @ head["vt"][m]["kernel"])
        for m in ("video", "text")
    )
    there = jnp.ones(B, bool)
    terms = losses.pair_terms(
        x[:, 0],
        y[:, :, 0],
        x_mask=there,
        y_mask=there[:, None],
        example_id=batch.example_id,
        temperature=objective.temperature,
    )
    for found in values.values():
        np.testing.assert_allclose(found, losses.symmetric_nce(terms), rtol=1e-5)


def test_hot_attention_is_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(n, E)), jnp.float32) for n in (5, 3))
    tokens = [
        tokenwise.Tokens(fine_grained.normalise(v), jnp.ones(len(v)), jnp.zeros(len(v)))
        for v in (x, y)
    ]
    query = tokenwise.Query(tokens[0], jnp.ones(()), jnp.zeros(()), jnp.float32(-1e30))
    found = tokenwise.Tokenwise(1e6, 1e6).match(query, tokens[1])
    mean = (tokens[0].vectors @ tokens[1].vectors.T).mean()
    np.testing.assert_allclose(found.similarity, mean, rtol=1e-4)
    np.testing.assert_allclose(found.weights, 1 / 15, rtol=1e-4)


def test_order_of_tokens_does_not_matter_and_equal_tokens_are_finite():
    objective, head = make(phrases={"kind": "token"}, null=0.0)
    encoded, batch = sample()
    (value, _), _ = run(objective, head, encoded, batch)
    turn = {"video": [3, 0, 4, 1, 2], "audio": [1, 3, 0, 2], "text": [2, 0, 1]}
    moved = types.Encoded(
        {m: x[..., jnp.asarray(turn[m]), :] for m, x in encoded.tokens.items()}, {}
    )
    parts = {
        m: dataclasses.replace(p, valid=p.valid[..., jnp.asarray(turn[m])])
        for m, p in batch.modalities.items()
    }
    other = dataclasses.replace(batch, modalities=parts)
    (again, _), _ = run(objective, head, moved, other)
    np.testing.assert_allclose(value, again, rtol=1e-5)
    same = types.Encoded(jax.tree.map(jnp.ones_like, encoded.tokens), {})
    found = run(objective, head, same, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("form", ["tokens", "official"])
def test_what_is_not_valid_has_no_gradient(form):
    objective, head = make(form=form, phrases={"kind": "chunk", "width": 2}, null=0.5)
    encoded, batch = sample()
    _, (_, by_tokens) = run(objective, head, encoded, batch)
    for m, part in batch.modalities.items():
        there = part.valid & part.present.reshape(-1, *[1] * (part.valid.ndim - 1))
        grad = np.asarray(by_tokens.tokens[m])
        assert (grad[~np.asarray(there)] == 0).all()
        assert (grad[np.asarray(there)] != 0).any()


def test_the_weights_themselves_have_no_gradient():
    """Only the cosines of positive pairs pull, not where attention lies."""
    encoded, batch = sample(b=2, full=True, candidates=1)
    objective, head = make(pairs=ONE, phrases={"kind": "token"})
    x, y = objective._sides(objective.terms()[0], head["vt"], encoded, batch)
    similarity = objective._similarity(objective.terms()[0])
    terms = losses.terms(
        similarity.own(x.vectors, y.vectors), x, y, similarity=similarity
    )

    def total(move):
        found = similarity.matched(x.vectors, y.vectors)
        weights = found.weights * (1 + move)
        found = dataclasses.replace(found, weights=weights)
        scale = x.vectors.scale
        return fine_grained._token_pairs(terms, found, scale, y.mask).sum()

    assert total(0.5) != pytest.approx(float(total(0.0)))
    assert jax.grad(total)(0.0) == 0


# -- tiles and devices -----------------------------------------------------------------


@pytest.mark.parametrize("case", ["tokens", "null", "window"])
def test_tiles_on_eight_devices_are_the_whole_on_one(case):
    encoded, batch = sample(b=16)
    whole, head = make(**CASES[case], chunk=None)
    tiled, _ = make(**CASES[case], chunk=3)
    wanted = jax.device_get(run(whole, head, encoded, batch))
    alone = jax.device_get(run(tiled, head, encoded, batch))
    mesh = mesh_lib.make_mesh({"replica": 2, "data": 4})
    rows = mesh_lib.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        spread = jax.tree.map(lambda a: jax.device_put(a, rows), (encoded, batch))
        found = jax.device_get(run(tiled, head, *spread))
    for other in (alone, found):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
            other,
            wanted,
        )


# -- what it is for --------------------------------------------------------------------


def test_phrases_that_do_not_belong_lose_their_weight():
    """Half of each text is noise; after training the rest has most of the weight."""
    rng = np.random.default_rng(0)
    words = rng.normal(size=(8, WIDTHS["video"]))
    said = rng.normal(size=(8, WIDTHS["text"]))
    b, steps = 16, 60
    objective, head = make(
        pairs=ONE, phrases={"kind": "token"}, vote=0.05, attention=0.05, features=16
    )
    tx = optax.adam(3e-2)

    @jax.jit
    def step(head, opt, encoded, batch):
        def loss(head):
            out = objective(head, {}, encoded, batch, key=None, step=0)
            return out.losses["vt"]

        updates, opt = tx.update(jax.grad(loss)(head), opt)
        return optax.apply_updates(head, updates), opt

    def draw():
        shown = np.stack([rng.permutation(8)[:2] for _ in range(b)])
        video = words[np.concatenate([shown, shown[:, :1]], 1)]
        noise = rng.normal(size=(b, 2, WIDTHS["text"])) * 1.5
        text = np.concatenate([said[shown], noise], 1)
        encoded, batch = sample(
            lengths={"video": 3, "audio": 1, "text": 4}, b=b, candidates=1, full=True
        )
        tokens = {"video": jnp.asarray(video), "text": jnp.asarray(text)[:, None]}
        return types.Encoded(
            encoded.tokens | jax.tree.map(jnp.float32, tokens), {}
        ), batch

    opt = tx.init(head)
    encoded, batch = draw()
    before = objective.correspondence(head, encoded, batch, "vt").weights
    for _ in range(steps):
        head, opt = step(head, opt, *draw())
    encoded, batch = draw()
    after = objective.correspondence(head, encoded, batch, "vt").weights
    true = [float(w[:, 0, :, :2].sum((1, 2)).mean()) for w in (before, after)]
    assert true[0] < 0.65
    assert true[1] > 0.85


# -- phrases and errors ----------------------------------------------------------------


def test_phrases():
    x = jnp.arange(10.0).reshape(1, 5, 2)
    valid = jnp.asarray([[True, True, True, False, False]])
    x = jnp.where(valid[..., None], x, 0)
    found, there = phrases.Phrases("ngram", 3)(x, valid)
    assert found[0, 0].tolist() == [0, 0, 0, 1, 2, 3]
    assert found[0, 2].tolist() == [2, 3, 4, 5, 0, 0]
    assert there.tolist() == valid.tolist()
    found, there = phrases.Phrases("chunk", 2)(x, valid)
    assert found.tolist() == [[[1, 2], [4, 5], [0, 0]]]
    assert there.tolist() == [[True, True, False]]
    found, there = phrases.Phrases("token")(x, valid)
    assert found is x


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"form": "token"}, "form 'token' is unknown.*did you mean 'tokens'"),
        ({"attention": 0.0}, "attention must be positive"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"pairs": {}}, "no pairs"),
        ({"pairs": {"vv": {"modalities": ("video", "video")}}}, "pair 'vv' must be"),
        ({"pairs": {"vt": {"modality": 1}}}, "pair 'vt' must be"),
        (
            WINDOW | {"rates": {"video": 1.0}},
            "tokens per second of 'video' and 'audio'",
        ),
        (
            {"pairs": {"vt": ONE["vt"] | {"window": 1.0}}, "rates": {"video": 1.0}},
            "tokens of a text have no times",
        ),
        ({"phrases": {"kind": "verbs"}}, "phrases.kind 'verbs'"),
        ({"phrases": {"size": 2}}, "phrases must be"),
        ({"phrases": {"width": 0}}, "phrases.width must be at least 1"),
    ],
)
def test_what_cannot_be_is_named(kwargs, said):
    with pytest.raises(UserError, match=said):
        make(**kwargs)


def test_a_model_without_the_modality_is_named():
    objective = fine_grained.FineGrained()
    with pytest.raises(UserError, match=r"need \['audio', 'text'\]"):
        objective.init(jax.random.key(0), {"video": 4})
    _, head = make()
    encoded, batch = sample()
    with pytest.raises(UserError, match="no pair 'av'"):
        objective.correspondence(head, encoded, batch, "av")
