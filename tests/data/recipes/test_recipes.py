"""Recipes: every data set's layout to a manifest, its coverage, and its errors."""

import json
import pathlib

import pytest

from mmssl.commands import manifest as command
from mmssl.data import manifest
from mmssl.data.recipes.write import RECIPES, write_manifest
from mmssl.errors import UserError
from tests.data.recipes.layouts import LAYOUTS, Layout, of

MEDIA = b"not decoded here"


def lay(root: pathlib.Path, layout: Layout) -> None:
    contents = {path: layout.content(path).encode() for path in layout.files}
    for path, content in (contents | dict.fromkeys(layout.media, MEDIA)).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def test_every_recipe_has_a_layout():
    assert set(LAYOUTS) == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_layout_to_manifest(name, tmp_path):
    layout = LAYOUTS[name]
    lay(tmp_path / "root", layout)
    out = tmp_path / "made" / "m.jsonl"
    done = write_manifest(name, root=tmp_path / "root", out=out, split=layout.split)
    assert done.coverage == layout.coverage
    assert done.missing is not None
    assert done.missing.read_text() == f"{layout.missing}\n"
    # The build's own reader accepts it, and finds every file.
    read = manifest.read_manifest(out)
    assert len(read.rows) == sum(c["found"] or 0 for c in layout.coverage.values())
    assert all(row.path and row.path.read_bytes() == MEDIA for row in read.rows)
    assert {row.split or "all" for row in read.rows} <= set(layout.coverage)
    assert read.dataset["recipe"] == name
    assert read.dataset["coverage"] == layout.coverage
    assert set(read.dataset["annotations"]) <= set(layout.files)
    assert read.extra_keys == {}
    written = [json.loads(line) for line in out.read_text().split("\n")[:-2]]
    row = next(row for row in written if row["id"] == layout.row["id"])
    assert row.pop("media").startswith("../root/")
    assert row == layout.row
    assert not list(out.parent.glob(".*"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_wrong_annotation_is_one_message(name, tmp_path):
    layout = LAYOUTS[name]
    path, content, words = layout.wrong
    text = content if isinstance(content, str) else json.dumps(content)
    lay(tmp_path / "root", layout)
    (tmp_path / "root" / path).write_text(text)
    out = tmp_path / "m.jsonl"
    with pytest.raises(UserError) as error:
        write_manifest(name, root=tmp_path / "root", out=out, split=layout.split)
    assert all(word in str(error.value) for word in words), error.value
    assert "docs/datasets.md" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["root"]  # nothing half-written


@pytest.mark.parametrize("name", RECIPES)
def test_no_annotations(name, tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(UserError) as error:
        write_manifest(name, root=tmp_path, out=tmp_path / "m.jsonl")
    assert str(tmp_path) in str(error.value)
    looked = "readme.txt" if name not in ("imagenet", "youtube") else "--root"
    assert looked in str(error.value)


def make(tmp_path, name, **changes):
    lay(tmp_path / "root", LAYOUTS[name])
    options = {"root": tmp_path / "root", "out": tmp_path / "m.jsonl"} | changes
    return write_manifest(name, **options)


def rows(done):
    return {row.id: row for row in manifest.read_manifest(done.path).rows}


def test_splits_are_chosen(tmp_path):
    done = make(tmp_path, "ucf101", split="2")
    assert rows(done)["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01"].split == "test"
    done = make(tmp_path, "msrvtt", split="full", overwrite=True)
    assert done.coverage == {
        "train": of(1, 1),
        "validation": of(1, 0),
        "test": of(1, 1),
    }
    assert len(rows(done)["video9"].segments) == 2
    done = make(tmp_path, "audioset", split="balanced", overwrite=True)
    assert done.coverage == {"train": of(2, 1), "test": of(1, 1)}
    with pytest.raises(UserError, match=r"ucf101: unknown split '4'.*1, 2, 3"):
        make(tmp_path, "ucf101", split="4")
    with pytest.raises(UserError, match=r"coco: unknown split '1'.*one way"):
        make(tmp_path, "coco", split="1")
    with pytest.raises(UserError, match="did you mean 'ucf101'"):
        write_manifest("ucf10", root=tmp_path, out=tmp_path / "n.jsonl")


def test_1k_a_trains_on_the_9k_list_where_it_is(tmp_path):
    lay(tmp_path / "root", LAYOUTS["msrvtt"])
    (tmp_path / "root/MSRVTT_train.9k.csv").write_text("video_id\nvideo0\n")
    done = make(tmp_path, "msrvtt")
    assert done.coverage == {"train": of(1, 1), "test": of(1, 1)}
    assert done.missing is None
    assert not (tmp_path / "m.jsonl.missing.txt").exists()


def test_pictures_come_before_sound(tmp_path):
    done = make(tmp_path, "audioset")
    assert rows(done)["--4gqARaEJE_0_10"].media.endswith(".mp4")


def test_links_and_paths_that_lead_out_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "gone_0.avi").write_bytes(MEDIA)
    lay(tmp_path / "root", LAYOUTS["hmdb51"])
    cartwheel = tmp_path / "root/cartwheel"
    (cartwheel / "gone_0.avi").symlink_to(outside / "gone_0.avi")
    (tmp_path / "root/all").symlink_to(outside, target_is_directory=True)
    lists = tmp_path / "root/testTrainMulti_7030_splits"
    (lists / "jump_test_split1.txt").write_text(
        f"../../outside/gone_0.avi 1\n{outside}/gone_0.avi 1\n"
    )
    done = write_manifest("hmdb51", root=tmp_path / "root", out=tmp_path / "m.jsonl")
    assert done.coverage == {"train": of(3, 1), "test": of(3, 2)}


def test_one_file_for_two_clips(tmp_path):
    lay(tmp_path / "root", LAYOUTS["vggsound"])
    (tmp_path / "root/vggsound.csv").write_text("a,1,x,train\na,30,y,train\n")
    (tmp_path / "root/a.mp4").write_bytes(MEDIA)
    with pytest.raises(UserError, match=r"a\.mp4: the only file for two.*a_000030"):
        write_manifest("vggsound", root=tmp_path / "root", out=tmp_path / "m.jsonl")


def test_a_clip_listed_twice_is_counted(tmp_path):
    lay(tmp_path / "root", LAYOUTS["vggsound"])
    listing = tmp_path / "root/vggsound.csv"
    listing.write_text(listing.read_text() * 2)
    done = write_manifest("vggsound", root=tmp_path / "root", out=tmp_path / "m.jsonl")
    assert done.repeated == 3
    assert done.coverage == LAYOUTS["vggsound"].coverage


def test_too_many_classes_for_kinetics(tmp_path):
    lines = [f"class {i},v{i:010d},0,10,train" for i in range(401)]
    text = "\n".join(["label,youtube_id,time_start,time_end,split", *lines]) + "\n"
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "v0000000000.mp4").write_bytes(MEDIA)
    with pytest.raises(UserError, match=r"train.csv, line 402: .*at most 400 classes"):
        write_manifest("kinetics400", root=tmp_path, out=tmp_path / "m.jsonl")
    done = write_manifest("kinetics600", root=tmp_path, out=tmp_path / "m.jsonl")
    assert done.coverage == {"train": of(401, 1)}


def test_the_data_set_twice_below_root(tmp_path):
    lay(tmp_path / "root/one", LAYOUTS["vggsound"])
    lay(tmp_path / "root/two", LAYOUTS["vggsound"])
    with pytest.raises(UserError, match=r"expected one vggsound\.csv, found 2: one/"):
        write_manifest("vggsound", root=tmp_path / "root", out=tmp_path / "m.jsonl")


def test_no_media_at_all(tmp_path):
    lay(tmp_path, LAYOUTS["vggsound"])
    for path in LAYOUTS["vggsound"].media:
        (tmp_path / path).unlink()
    with pytest.raises(UserError, match=r"none of the 3 clips.*---g-f_I2yQ_000001"):
        write_manifest("vggsound", root=tmp_path, out=tmp_path / "m.jsonl")


def test_an_existing_manifest_is_kept(tmp_path):
    make(tmp_path, "vggsound")
    with pytest.raises(UserError, match=r"m\.jsonl: already there.*--overwrite"):
        make(tmp_path, "vggsound")


def test_howto100m_with_one_caption_file_a_video(tmp_path):
    root = tmp_path / "root"
    lay(root, LAYOUTS["howto100m"])
    (root / "caption.json").unlink()
    (root / "captions").mkdir()
    (root / "captions/nVbIUDjzWY4.csv").write_text(
        ',start,end,text\n0,1.5,3,"first, pour"\n1,x,4,no time\n'
    )
    (root / "captions/CTPAZ2euJ2Q.json").write_text("not JSON")
    done = write_manifest("howto100m", root=root, out=tmp_path / "m.jsonl")
    found = rows(done)
    assert [s.text for s in found["nVbIUDjzWY4"].segments] == ["first, pour"]
    assert found["CTPAZ2euJ2Q"].segments == ()
    assert done.dropped == {"captions": 1, "segments": 1}
    assert done.coverage == {"all": of(2, 2)}


def test_words_of_a_speech_recognizer(tmp_path):
    words = [{"word": " pour", "start": 1.0, "end": 1.4}, {"word": "1,5"}]
    segment = {"id": 0, "start": 1.0, "end": 2.0, "text": " pour 1,5", "words": words}
    lay(tmp_path / "root", LAYOUTS["youtube"])
    (tmp_path / "root/b/plain.json").write_text(
        json.dumps({"text": "pour 1,5", "segments": [segment], "language": "en"})
    )
    row = rows(make(tmp_path, "youtube"))["plain"]
    assert [(w.start, w.end, w.word) for w in row.words] == [(1.0, 1.4, "pour")]
    assert [s.text for s in row.segments] == ["pour 1,5"]


@pytest.mark.parametrize(
    ("own", "others", "chosen"),
    [
        ("en-US", ("de", "en"), "en"),
        ("en", ("de", "en-GB"), "en-GB"),
        ("en-US", ("en", "en-US"), "en-US"),
        ("en", ("live_chat", "nl"), "nl"),
        ("en", ("en", "de-orig"), "de-orig"),
    ],
)
def test_the_language_of_a_video_is_taken_first(tmp_path, own, others, chosen):
    root = tmp_path / "root"
    root.mkdir()
    (root / "v.mp4").write_bytes(MEDIA)
    (root / "v.info.json").write_text(json.dumps({"id": "v", "language": own}))
    for name in others:
        suffix = "json" if name == "live_chat" else "vtt"
        cue = "WEBVTT\n\n00:00.000 --> 00:02.000\nhello\n"
        (root / f"v.{name}.{suffix}").write_text(cue)
    row = rows(make(tmp_path, "youtube"))["v"]
    assert row.meta["captions"] == chosen
    assert [s.text for s in row.segments] == ["hello"]


def test_a_manifest_in_a_linked_folder(tmp_path):
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far/away")
    done = make(tmp_path, "vggsound", out=tmp_path / "near/m.jsonl")
    assert all(row.path and row.path.is_file() for row in rows(done).values())


def test_imagenet_validation_without_classes(tmp_path):
    root = tmp_path / "root"
    lay(root, LAYOUTS["imagenet"])
    (root / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000001,n01751748 111 108 249 244 \n"
        "ILSVRC2012_val_00000002,n01751748 1 1 2 2\n"
        "ILSVRC2012_val_00000236,n01443537 1 1 2 2\n"
    )
    (root / "Data/val/ILSVRC2012_val_00000001.JPEG").write_bytes(MEDIA)
    done = write_manifest("imagenet", root=root, out=tmp_path / "m.jsonl")
    # One of them lies in the folder of its class.
    assert done.coverage == {"train": of(2, 1), "validation": of(3, 2)}
    row = rows(done)["val/ILSVRC2012_val_00000001"]
    assert row.labels == {"class": "n01751748"}


def test_the_command(tmp_path, capsys):
    from mmssl import cli

    lay(tmp_path / "root", LAYOUTS["howto100m"])
    out = str(tmp_path / "m.jsonl")
    arguments = ["data", "manifest", "howto100m", "--root", str(tmp_path / "root")]
    assert cli.main([*arguments, "--out", out]) == 0
    said = capsys.readouterr().out
    for words in ("2 of 3 (67%)", f"{out}.missing.txt", "2 segments not readable"):
        assert words in said
    assert f"next: mmssl data build --manifest {out}" in said
    with pytest.raises(SystemExit):
        cli.main(["data", "manifest", "--help"])
    assert set(RECIPES) <= set(capsys.readouterr().out.replace(".", "").split())
    assert command.coverage(of(None, 7)) == "7"
