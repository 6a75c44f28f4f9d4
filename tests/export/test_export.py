"""Round trip of an export, its defences, and what the encoder takes."""

import json
import pathlib
import struct
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmssl
from mmssl import models
from mmssl.errors import UserError
from mmssl.export import manifest, weights
from mmssl.export.encoder import Encoder, from_folder
from mmssl.export.safetensors_export import export
from mmssl.types import RawBatch

SECONDS, RATE = 0.5, 1600
WORDS = ("red", "ball", "bounces", "blue", "box", "slides")
SIZE = {"layers": 1, "width": 16, "mlp": 32, "heads": 2}
MODEL = {
    "backbone": "specific",
    "size": SIZE,
    "video": {"frames": 4, "size": [16, 24], "patch": [2, 8, 8]},
    "audio": {"samples": 800, "rate": RATE, "patch": 80},
    "text": {"vocab": len(WORDS) + 2, "length": 5, "candidates": 3},
}
HEADS = {"contrast": {"kind": "official", "va": 8, "vt": 6}}
DATA = {
    "seconds": SECONDS,
    "video": {"frames": 4, "size": [16, 24], "flip": 0.0},
    "audio": {"rate": RATE},
    "text": {"length": 5, "candidates": 3},
    "path": "/somewhere/private",
}
# One modality: a third of the compilations, for tests that export anew.
SOUND = {
    "model_kwargs": {"size": SIZE, "audio": MODEL["audio"]},
    "heads_kwargs": {"contrast": {"kind": "joint", "modalities": ["audio"]}},
}
RUN = {
    "name": "test <run>",
    "data": {
        "datasets": [{"path": "/home/me/d", "used": 7, "faults": {"truncated": 1}}]
    },
    "eval": {"retrieval": {"video->text": {"trained": {"R@1": 0.5}}}},
    "step": 3,
    "steps": 3,
    "seed": 5,
}


def parts(seed: int = 0) -> dict:
    return made(MODEL, HEADS["contrast"], seed)


def sound(seed: int) -> dict:
    kwargs = SOUND["heads_kwargs"]["contrast"]
    return SOUND | made(SOUND["model_kwargs"], kwargs, seed)


def made(model_kwargs: dict, heads_kwargs: dict, seed: int) -> dict:
    model = models.build_model(**model_kwargs)
    heads = models.build_heads(**heads_kwargs)
    params = model.init(jax.random.key(seed))
    head, state = heads.init(jax.random.key(seed + 1), model.widths)
    # Statistics that are not the initial ones, so that losing them would show.
    state = jax.tree.map(lambda x: x + 0.3, state)
    return {"params": params, "heads": {"contrast": (head, state)}}


@pytest.fixture(scope="module")
def trained() -> dict:
    return parts()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("vocab") / "words.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def write(out: pathlib.Path, trained: dict, vocabulary: pathlib.Path, **more) -> dict:
    arguments = {
        "model_kwargs": MODEL,
        "heads_kwargs": HEADS,
        "data_kwargs": DATA,
        "tokenizer_path": vocabulary,
        "run_info": RUN,
        "out": out,
        **trained,
        **more,
    }
    return export(**arguments)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, trained: dict, vocabulary: pathlib.Path
) -> pathlib.Path:
    out = tmp_path_factory.mktemp("export") / "encoder"
    write(out, trained, vocabulary)
    return out


@pytest.fixture(scope="module")
def encoder(folder: pathlib.Path) -> Iterator[Encoder]:
    with mmssl.load(folder) as loaded:
        yield loaded


@pytest.fixture
def copy(folder: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    out = tmp_path / "copy"
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def media(rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(0, 256, (rows, 4, 16, 24, 3), np.uint8),
        "audio": rng.uniform(-0.5, 0.5, (rows, 800)).astype(np.float32),
    }


def reference(trained: dict, raw: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """Pooled features and normalised spaces, straight through the model and heads."""
    model = models.build_model(**MODEL)
    heads = models.build_heads(**HEADS["contrast"])
    rows = len(next(iter(raw.values())))
    present = {m: jnp.ones(rows, bool) for m in raw}
    example_id = jnp.zeros(rows, jnp.uint32)
    given = RawBatch(jax.tree.map(jnp.asarray, raw), present, example_id)
    pooled = jax.jit(lambda p: model.encode(p, model.prepare(given)).pooled)(
        trained["params"]
    )
    head, state = trained["heads"]["contrast"]
    spaces, _ = heads.apply(head, state, pooled, present, train=False)
    unit = {
        s: {
            m: np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)
            for m, x in members.items()
        }
        for s, members in spaces.items()
    }
    return {m: np.asarray(x) for m, x in pooled.items()}, unit


def test_round_trip_equals_the_model_and_its_heads(
    encoder: Encoder, trained: dict
) -> None:
    raw = media()
    pooled, spaces = reference(trained, raw)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for space in ("va", "vt"):
        np.testing.assert_allclose(
            encoder.encode_video(raw["video"], space=space),
            spaces[space]["video"],
            **close,
        )
        np.testing.assert_allclose(
            encoder.encode_audio(raw["audio"], space=space),
            spaces[space]["audio"],
            **close,
        )
    np.testing.assert_allclose(
        encoder.encode_video(raw["video"], pooled=True), pooled["video"], **close
    )


def test_text_is_one_candidate_of_the_model(encoder: Encoder, trained: dict) -> None:
    ids = np.zeros((1, 3, 5), np.int32)
    ids[0, 0, :3] = [2, 3, 4]
    _, spaces = reference(trained, {**media(1), "text": ids})
    found = encoder.encode_text("Red ball bounces.")
    assert found.shape == (1, 6)
    np.testing.assert_allclose(found, spaces["vt"]["text"][:, 0], rtol=1e-4, atol=1e-5)


def test_outputs_are_unit_rows_and_batching_changes_nothing(encoder: Encoder) -> None:
    frames = media(11)["video"]
    found = encoder.encode_video(frames)
    assert found.shape == (11, 6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    one = np.concatenate([encoder.encode_video(x) for x in frames])
    np.testing.assert_allclose(found, one, atol=1e-6)


def test_defaults_can_be_compared(encoder: Encoder) -> None:
    assert encoder.spaces == {
        "va": ("video", "audio"),
        "vt": ("video", "audio", "text"),
    }
    assert encoder.default_spaces == {"video": "vt", "audio": "vt", "text": "vt"}
    with pytest.raises(ValueError, match="text is not in space 'va'; it is in vt"):
        encoder.encode_text("red", space="va")
    with pytest.raises(ValueError, match="leave space out"):
        encoder.encode_text("red", space="vt", pooled=True)


def test_arrays_of_other_sizes_are_made_to_fit(encoder: Encoder) -> None:
    flat = np.full((9, 40, 30, 3), 77, np.uint8)
    small = np.full((4, 16, 24, 3), 77, np.uint8)
    np.testing.assert_allclose(
        encoder.encode_video(flat), encoder.encode_video(small), atol=1e-6
    )
    tone = np.sin(np.arange(4000) / 8000 * 2 * np.pi * 100)
    slow = np.sin(np.arange(800) / RATE * 2 * np.pi * 100)
    near = encoder.encode_audio(tone, rate=8000) @ encoder.encode_audio(slow).T
    assert near.item() > 0.99
    quiet = (slow * 32767).astype(np.int16)
    np.testing.assert_allclose(
        encoder.encode_audio(quiet), encoder.encode_audio(slow), atol=1e-3
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.encode_video(np.zeros((4, 16, 24, 3))), "uint8 RGB"),
        (lambda e: e.encode_video(np.zeros((16, 24, 3), np.uint8)), "found shape"),
        (lambda e: e.encode_audio(np.full(800, np.nan)), "not finite"),
        (lambda e: e.encode_audio([]), "nothing to encode"),
        (lambda e: e.encode_text(["red", "!"]), "no tokens in '!'"),
    ],
)
def test_arrays_that_cannot_be_meant_are_named(
    encoder: Encoder, call, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(encoder)


def test_files_are_decoded_or_named(
    encoder: Encoder, shared_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    clips = sorted((shared_data / "grid/clips").glob("*.mp4"))[:3]
    video, audio = encoder.encode_video(clips), encoder.encode_audio(str(clips[0]))
    assert video.shape == (3, 6)
    assert audio.shape == (1, 6)
    np.testing.assert_allclose(
        encoder.encode_video(clips[1].read_bytes()), video[1:2], atol=1e-6
    )
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no media at all" * 100)
    for bad in (broken, tmp_path / "nothing.mp4"):
        with pytest.raises(UserError, match=bad.name):
            encoder.encode_video([clips[0], bad])


def test_config_holds_preprocessing_and_no_paths(folder: pathlib.Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["preprocessing"] == {k: v for k, v in DATA.items() if k != "path"}
    assert config["spaces"] == {
        "va": ["video", "audio"],
        "vt": ["video", "audio", "text"],
    }
    assert {p.suffix for p in folder.iterdir()} == {
        ".json",
        ".txt",
        ".safetensors",
        ".md",
        ".py",
    }


def test_card_says_what_is_known_and_what_is_not(folder: pathlib.Path) -> None:
    card = (folder / "README.md").read_text()
    for part in (
        "3 of 3",
        "0.faults.truncated | 1",
        "0.5",
        "not recorded",
        "Not stated",
    ):
        assert part in card
    assert "test \\<run\\>" in card
    assert "/home/me" not in card


def test_a_flipped_byte_is_named_with_its_tensor(copy: pathlib.Path) -> None:
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    name = "model/video_encoder/layer_00/mlp_in/kernel"
    offset = 8 + struct.unpack("<Q", data[:8])[0] + header[name]["data_offsets"][0]
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"model.safetensors is damaged.*in {name};"):
        mmssl.load(copy)


@pytest.mark.parametrize("name", ["config.json", "README.md", "tokenizer.txt"])
def test_every_other_file_is_checked_too(copy: pathlib.Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    with pytest.raises(UserError, match=f"{name} is damaged"):
        mmssl.load(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        mmssl.load(copy)


def test_the_manifest_checks_itself(copy: pathlib.Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"tolerance": 0.02', '"tolerance": 9.02'))
    with pytest.raises(UserError, match="its own sha256 differs"):
        mmssl.load(copy)
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        mmssl.load(copy)
    path.unlink()
    with pytest.raises(UserError, match="so it is not an export"):
        mmssl.load(copy)


def reseal(folder: pathlib.Path) -> None:
    """Makes the hashes right again, as a forger or a careless tool would."""
    old = json.loads((folder / "manifest.json").read_text())
    keep = ("mmssl_version", "versions", "tensors", "forward")
    manifest.seal(folder, {key: old[key] for key in keep})


@pytest.mark.parametrize("name", ["/tmp/x", "../x", "sub/x", "link"])
def test_names_that_lead_out_of_the_folder_are_refused(
    copy: pathlib.Path, name: str
) -> None:
    (copy.parent / "x").write_text("a secret")
    (copy / "link").symlink_to(copy.parent / "x")
    config = json.loads((copy / "config.json").read_text()) | {"tokenizer": name}
    (copy / "config.json").write_text(json.dumps(config))
    found = f"expected the name of a file in the folder, found {name!r}"
    with pytest.raises(UserError, match=rf"config\.json tokenizer: {found}"):
        from_folder(copy)
    path = copy / "manifest.json"
    entries = json.loads(path.read_text())
    entries["files"] = {name: {"sha256": "", "bytes": 0}}
    entries["manifest_sha256"] = manifest._own_hash(entries)
    path.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=rf"manifest\.json files: {found}"):
        mmssl.load(copy)


def test_other_weights_are_listed_or_found_by_the_forward_pass(
    copy: pathlib.Path,
) -> None:
    path = copy / "model.safetensors"
    sound = weights.read(path)
    arrays = dict(sound)
    gone, wide, *_ = sorted(arrays)
    arrays["model/extra"] = arrays.pop(gone)
    arrays[wide] = arrays[wide].reshape(-1, 1)
    weights.save(arrays, path)
    reseal(copy)
    with pytest.raises(UserError, match="do not fit") as error:
        mmssl.load(copy)
    for part in (f"missing (1): {gone}", "unexpected (1): model/extra", f"{wide}: exp"):
        assert part in str(error.value)

    name = next(n for n in sorted(sound) if n.endswith("kernel"))
    weights.save({**sound, name: -sound[name]}, path)
    reseal(copy)
    with pytest.raises(UserError, match="on a fixed input"):
        mmssl.load(copy)

    bad = sound[name].copy()
    bad.flat[0] = np.nan
    weights.save({**sound, name: bad}, path)
    reseal(copy)
    with pytest.raises(UserError, match=f"{name} holds values that are not finite"):
        mmssl.load(copy)


def test_bfloat16_is_half_as_large_and_close(
    tmp_path: pathlib.Path, trained: dict, vocabulary: pathlib.Path
) -> None:
    arrays = weights.flatten({"a": trained["heads"]["contrast"]}, dtype="bfloat16")
    kinds = {name: array.dtype.name for name, array in arrays.items()}
    assert set(kinds.values()) == {"bfloat16"}
    state = {"contrast": {"state": trained["heads"]["contrast"][1]}}
    arrays = weights.flatten(state, dtype="bfloat16")
    assert {array.dtype.name for array in arrays.values()} == {"float32"}

    waves = media()["audio"]
    found = []
    for dtype in ("float32", "bfloat16"):
        write(tmp_path / dtype, sound(0), vocabulary, dtype=dtype)
        with mmssl.load(tmp_path / dtype) as loaded:
            found.append(loaded.encode_audio(waves))
    full, half = (
        (tmp_path / d / "model.safetensors").stat().st_size
        for d in ("float32", "bfloat16")
    )
    assert 0.4 < half / full < 0.65
    assert 0.99 < (found[0] * found[1]).sum(-1).min() < 1 - 1e-7


def test_nothing_is_overwritten_by_chance(
    tmp_path: pathlib.Path, trained: dict, vocabulary: pathlib.Path
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="mmssl did not write it"):
        write(taken, trained, vocabulary, overwrite=True)
    assert (taken / "thesis.txt").exists()
    out = tmp_path / "out"
    first = write(out, sound(1), vocabulary)
    with pytest.raises(UserError, match="already there and not empty"):
        write(out, trained, vocabulary)
    second = write(out, sound(2), vocabulary, overwrite=True)
    assert first["tensors"] != second["tensors"]
    assert json.loads((out / "manifest.json").read_text()) == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "taken"]


def test_a_failed_export_leaves_nothing(
    tmp_path: pathlib.Path,
    trained: dict,
    vocabulary: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    bad = jax.tree.map(lambda x: x, trained)
    bad["params"]["video"] = jax.tree.map(lambda x: x * jnp.nan, bad["params"]["video"])
    with pytest.raises(UserError, match=r"model/video/.* not finite"):
        write(tmp_path / "a", bad, vocabulary)
    with pytest.raises(UserError, match="tokenizer"):
        write(tmp_path / "b", trained, tmp_path / "none.model")
    with pytest.raises(ValueError, match=r"audio\.rate"):
        write(
            tmp_path / "c",
            trained,
            vocabulary,
            data_kwargs={**DATA, "audio": {"rate": 9}},
        )
    monkeypatch.setattr(weights, "save", full)
    with pytest.raises(UserError, match="the disk is full"):
        write(tmp_path / "d", trained, vocabulary)
    assert list(tmp_path.iterdir()) == []
