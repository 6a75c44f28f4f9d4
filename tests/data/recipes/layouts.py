"""Tiny hand-made copies of the original layouts, each with one clip missing."""

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """One data set as downloaded.

    Attributes:
      files: path to content: text, or anything else as JSON.
      media: paths of the media that are there.
      coverage: what must be reported.
      missing: id of the clip that is not there.
      row: a row that must come out (without "media").
      wrong: (path, content, words of the error) of a file that is not the set's.
      split: the option.
    """

    files: dict[str, Any]
    media: list[str]
    coverage: dict[str, dict[str, int | None]]
    missing: str | None
    row: dict[str, Any]
    wrong: tuple[str, Any, list[str]]
    split: str | None = None

    def content(self, path: str) -> str:
        value = self.files[path]
        return value if isinstance(value, str) else json.dumps(value)


def of(listed: int | None, found: int) -> dict[str, int | None]:
    return {"listed": listed, "found": found}


def asr(*rows: tuple[float, float, Any]) -> dict[str, list[Any]]:
    start, end, text = zip(*rows, strict=True)
    return {"start": list(start), "end": list(end), "text": list(text)}


_KINETICS = {
    "files": {
        "annotations/train.csv": "label,youtube_id,time_start,time_end,split\n"
        "abseiling,-3B32lodo2M,59,69,train\n"
        "air drumming,-7kbO0v4hag,107,117,train\n"
        '"cooking, on fire",gone_videoA,0,10,train\n',
        "annotations/val.csv": "label,youtube_id,time_start,time_end,split\n"
        "abseiling,_4YTwq0-73Y,20,30,val\n",
        "annotations/test.csv": "youtube_id,time_start,time_end,split\n"
        "zzzzzzzzzzz,1,11,test\n",
    },
    "media": [
        "train/abseiling/-3B32lodo2M_000059_000069.mp4",
        "train/air_drumming/-7kbO0v4hag.mkv",
        "val/_4YTwq0-73Y_20_30.webm",
        "test/zzzzzzzzzzz_000001_000011.mp4",
        "other/unlisted_000001_000011.mp4",
    ],
    "coverage": {"train": of(3, 2), "validation": of(1, 1), "test": of(1, 1)},
    "missing": "gone_videoA_0_10",
    "row": {
        "id": "-3B32lodo2M_59_69",
        "split": "train",
        "labels": {"class": "abseiling"},
        "meta": {"youtube_id": "-3B32lodo2M", "start": 59.0, "end": 69.0},
    },
    "wrong": (
        "annotations/val.csv",
        "label,youtube_id,time_start,time_end,split\nabseiling,_4YTwq0-73Y,x,30,val\n",
        ["val.csv", "line 2", "seconds", "found x"],
    ),
}

_UCF = "ucfTrainTestlist/"
_HMDB = "testTrainMulti_7030_splits/"

LAYOUTS = {
    "audiocaps": Layout(
        files={
            "dataset/train.csv": "audiocap_id,youtube_id,start_time,caption\n"
            "91139,r1nicOVtvkQ,130,A woman talks nearby as water pours\n",
            "dataset/test.csv": "audiocap_id,youtube_id,start_time,caption\n"
            '103549,7fmOlUlwoNg,20,"Constant rattling noise, and sharp vibrations"\n'
            "103548,6BJ455B1aAs,0,A rocket flies by\n"
            "103541,7fmOlUlwoNg,20,An engine hums\n",
        },
        media=["train/r1nicOVtvkQ_130.wav", "test/Y7fmOlUlwoNg.wav"],
        coverage={"train": of(1, 1), "test": of(2, 1)},
        missing="6BJ455B1aAs_0_10",
        row={
            "id": "7fmOlUlwoNg_20_30",
            "split": "test",
            "text": ["Constant rattling noise, and sharp vibrations", "An engine hums"],
            "meta": {"youtube_id": "7fmOlUlwoNg", "start": 20.0, "end": 30.0},
        },
        wrong=(
            "dataset/test.csv",
            "youtube_id,caption\na,b\n",
            ["test.csv", "line 1", "audiocap_id", "start_time", "youtube_id,caption"],
        ),
    ),
    "audioset": Layout(
        files={
            "balanced_train_segments.csv": "# Segments csv created Sun Mar  5 2017\n"
            "# num_ytids=22160, num_segs=22160, num_unique_labels=527\n"
            "# YTID, start_seconds, end_seconds, positive_labels\n"
            '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"\n'
            '--BfvyPmVMo, 20.000, 30.000, "/m/03l9g"\n',
            "unbalanced_train_segments.csv": "# a\n"
            '---1_cCGK4M, 0.000, 10.000, "/m/01g50p"\n',
            "eval_segments.csv": '-0RWZT-miFs, 420.000, 430.000, "/m/03v3yw,/m/0k4j"\n',
            "class_labels_indices.csv": "index,mid,display_name\n"
            '0,/m/068hy,"Domestic animals, pets"\n1,/m/0k4j,Car\n',
        },
        media=[
            "audio/bal_train/Y--4gqARaEJE.wav",
            "video/--4gqARaEJE_0_10.mp4",
            "unb/---1_cCGK4M_0.000_10.000.flac",
            "eval/-0RWZT-miFs_420000_430000.m4a",
        ],
        coverage={"train": of(3, 2), "test": of(1, 1)},
        missing="--BfvyPmVMo_20_30",
        row={
            "id": "--4gqARaEJE_0_10",
            "split": "train",
            "meta": {
                "youtube_id": "--4gqARaEJE",
                "start": 0.0,
                "end": 10.0,
                "classes": ["Domestic animals, pets", "/m/07q6cd_"],
            },
        },
        wrong=(
            "eval_segments.csv",
            "# a\n-0RWZT-miFs, 420.000, 430.000, /m/03v3yw,/m/0k4j\n",
            ["eval_segments.csv", "line 2", "4 values", "positive_labels", "5:"],
        ),
    ),
    "coco": Layout(
        files={
            "annotations/captions_train2017.json": {
                "images": [
                    {"id": 9, "file_name": "000000000009.jpg"},
                    {"id": 25, "file_name": "000000000025.jpg"},
                ],
                "annotations": [
                    {"image_id": 9, "id": 1, "caption": "A tray of food."},
                    {"image_id": 9, "id": 2, "caption": "Meal \n with fruit"},
                ],
            },
            "annotations/captions_val2017.json": {
                "images": [{"id": 139, "file_name": "000000000139.jpg"}],
                "annotations": [],
            },
        },
        media=["train2017/000000000009.jpg", "val2017/000000000139.jpg"],
        coverage={"train": of(2, 1), "validation": of(1, 1)},
        missing="000000000025",
        row={
            "id": "000000000009",
            "split": "train",
            "text": ["A tray of food.", "Meal with fruit"],
        },
        wrong=(
            "annotations/captions_val2017.json",
            {"images": [], "annotations": [{"image_id": 1, "bbox": []}]},
            ["captions_val2017.json", "annotations[0]", "'caption' to be text"],
        ),
    ),
    "didemo": Layout(
        files={
            "data/train_data.json": [
                {
                    "annotation_id": 0,
                    "description": "the dog sits",
                    "times": [[1, 2], [0, 0], [1, 2], [0, 5]],
                    "video": "10015567@N08_3655084291_d8b58466fa.mov",
                },
                {
                    "annotation_id": 1,
                    "description": "camera pans",
                    "times": [[3, 3], [0, 0]],
                    "video": "10015567@N08_3655084291_d8b58466fa.mov",
                },
            ],
            "data/val_data.json": [
                {"description": "gone", "times": [[0, 0]], "video": "1@N00_2_3.avi"}
            ],
        },
        media=["videos/10015567@N08_3655084291_d8b58466fa.mov.mp4"],
        coverage={"train": of(1, 1), "validation": of(1, 0)},
        missing="1@N00_2_3",
        row={
            "id": "10015567@N08_3655084291_d8b58466fa",
            "split": "train",
            "segments": [[0.0, 5.0, "camera pans"], [5.0, 15.0, "the dog sits"]],
        },
        wrong=(
            "data/val_data.json",
            [{"description": "x", "times": [[2, 1]], "video": "a.avi"}],
            ["val_data.json", "entry 0", "[first, last] chunk", "[2, 1]"],
        ),
    ),
    "esc50": Layout(
        files={
            "ESC-50-master/meta/esc50.csv": "filename,fold,target,category,esc10,"
            "src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n"
            "2-100038-A-14.wav,2,14,chirping_birds,False,100038,A\n"
            "5-gone-A-0.wav,5,0,dog,True,gone,A\n",
        },
        media=["audio/1-100032-A-0.wav", "audio/2-100038-A-14.wav"],
        coverage={"train": of(2, 1), "test": of(1, 1)},
        missing="5-gone-A-0",
        row={
            "id": "2-100038-A-14",
            "split": "test",
            "group": "100038",
            "labels": {"class": "chirping_birds"},
            "meta": {"fold": 2},
        },
        wrong=(
            "ESC-50-master/meta/esc50.csv",
            "filename,fold,category,src_file\n1-1-A-0.wav,6,dog,1\n",
            ["esc50.csv", "line 2", "a fold from 1 to 5", "found 6"],
        ),
        split="2",
    ),
    "hmdb51": Layout(
        files={
            _HMDB + "brush_hair_test_split1.txt": "same_name_0.avi 1 \n"
            "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 2 \nunused_1.avi 0 \n",
            _HMDB + "cartwheel_test_split1.txt": "same_name_0.avi 2 \ngone_0.avi 2 \n",
            _HMDB + "cartwheel_test_split2.txt": "not read",
        },
        media=[
            "brush_hair/same_name_0.avi",
            "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi",
            "brush_hair/unused_1.avi",
            "cartwheel/same_name_0.avi",
        ],
        coverage={"train": of(1, 1), "test": of(3, 2)},
        missing="cartwheel/gone_0",
        row={
            "id": "cartwheel/same_name_0",
            "split": "test",
            "labels": {"class": "cartwheel"},
        },
        wrong=(
            _HMDB + "cartwheel_test_split1.txt",
            "same_name_0.avi 1\nnext_0.avi 3\n",
            ["cartwheel_test_split1.txt", "line 2", "0, 1 or 2", "next_0.avi 3"],
        ),
        split="1",
    ),
    "howto100m": Layout(
        files={
            "HowTo100M_v1.csv": "video_id,category_1,category_2,rank,task_id\n"
            "nVbIUDjzWY4,Cars & Other Vehicles,Motorcycles,27,52907\n"
            "CTPAZ2euJ2Q,Food,,3,1\n",
            "caption.json": {
                "nVbIUDjzWY4": asr(
                    (0.0, 4.0, "we cut the"),
                    (2.0, 6.0, "we cut the onion"),
                    (4.0, 8.0, "onion in half"),
                    (9.0, 7.0, "no time"),
                    (10.0, 12.0, float("nan")),
                    (20.0, 22.0, "玉ねぎを 切る"),
                ),
                "gone-video1": asr((0, 1, "x")),
            },
        },
        media=["videos/nVbIUDjzWY4.webm", "videos/CTPAZ2euJ2Q.mp4"],
        coverage={"all": of(3, 2)},
        missing="gone-video1",
        row={
            "id": "nVbIUDjzWY4",
            "segments": [
                [0.0, 2.0, "we cut the"],
                [2.0, 4.0, "onion"],
                [4.0, 8.0, "in half"],
                [20.0, 22.0, "玉ねぎを 切る"],
            ],
            "meta": {
                "category_1": "Cars & Other Vehicles",
                "category_2": "Motorcycles",
            },
        },
        wrong=(
            "caption.json",
            '{"nVbIUDjzWY4": {"start": [1], "end": [2], "text": ["a"]}, "b": {"start"',
            ["caption.json", "after 1 entries", "object", "line 1"],
        ),
    ),
    "imagenet": Layout(
        files={
            "LOC_synset_mapping.txt": "n01440764 tench, Tinca tinca\n",
            "ImageSets/CLS-LOC/train_cls.txt": "n01440764/n01440764_10026 1\n"
            "n01440764/n01440764_10027 2\n",
        },
        media=[
            "Data/train/n01440764/n01440764_10026.JPEG",
            "Data/val/n01443537/ILSVRC2012_val_00000236.JPEG",
        ],
        coverage={"train": of(2, 1), "validation": of(None, 1)},
        missing="train/n01440764/n01440764_10027",
        row={
            "id": "train/n01440764/n01440764_10026",
            "split": "train",
            "labels": {"class": "n01440764"},
            "meta": {"name": "tench, Tinca tinca"},
        },
        wrong=(
            "ImageSets/CLS-LOC/train_cls.txt",
            "n01440764_10026 1\n",
            ["train_cls.txt", "line 1", "class/image", "n01440764_10026 1"],
        ),
    ),
    "kinetics400": Layout(**_KINETICS),
    "kinetics600": Layout(**_KINETICS),
    "kinetics700": Layout(**_KINETICS),
    "moments": Layout(
        files={
            "trainingSet.csv": "blocking/getty-karate_4.mp4,blocking,4,1\n"
            "adult+female+singing/a.b_2.mp4,adult+female+singing,3,0\n",
            "validationSet.csv": "blocking/getty-karate_4.mp4,blocking,3,0\n",
        },
        media=[
            "training/blocking/getty-karate_4.mp4",
            "training/adult+female+singing/a.b_2.mp4",
        ],
        coverage={"train": of(2, 2), "validation": of(1, 0)},
        missing="validation/blocking/getty-karate_4",
        row={
            "id": "training/adult+female+singing/a.b_2",
            "split": "train",
            "labels": {"class": "adult+female+singing"},
        },
        wrong=(
            "trainingSet.csv",
            "filename,label\nblocking/a.mp4,blocking\n",
            ["trainingSet.csv", "line 1", "4 values", "filename,label"],
        ),
    ),
    "msrvtt": Layout(
        files={
            "train_val_videodatainfo.json": {
                "videos": [
                    {"video_id": "video0", "category": 9, "split": "train"},
                    {"video_id": "video1", "category": 1, "split": "validate"},
                ],
                "sentences": [
                    {"video_id": "video0", "sen_id": 0, "caption": "a car"},
                    {"video_id": "video0", "sen_id": 1, "caption": "a fast car"},
                    {"video_id": "video1", "sen_id": 2, "caption": "a man sings"},
                ],
            },
            "test_videodatainfo.json": {
                "videos": [{"video_id": "video9", "category": 0, "split": "test"}],
                "sentences": [
                    {"video_id": "video9", "sen_id": 3, "caption": "a boat"},
                    {"video_id": "video9", "sen_id": 4, "caption": "a big boat, red"},
                ],
            },
            "MSRVTT_JSFUSION_test.csv": "key,vid_key,video_id,sentence\n"
            'ret0,msr9,video9,"a big boat, red"\n',
        },
        media=["TrainValVideo/video0.mp4", "TestVideo/video9.mp4"],
        coverage={"train": of(2, 1), "test": of(1, 1)},
        missing="video1",
        row={
            "id": "video9",
            "split": "test",
            "text": ["a big boat, red"],
            "labels": {"category": "0"},
        },
        wrong=(
            "MSRVTT_JSFUSION_test.csv",
            "key,vid_key,video_id,sentence\nret0,msr9,video7777,a boat\n",
            ["JSFUSION_test.csv", "line 2", "a video of the json", "video7777"],
        ),
    ),
    "ucf101": Layout(
        files={
            _UCF + "classInd.txt": "1 ApplyEyeMakeup\n",
            _UCF + "trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n",
            _UCF + "trainlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\n"
            "ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi 1\n",
            _UCF + "testlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi\n",
        },
        media=[
            "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
            "flat/v_ApplyEyeMakeup_g01_c01.mp4",
        ],
        coverage={"train": of(2, 1), "test": of(1, 1)},
        missing="ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01",
        row={
            "id": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01",
            "split": "train",
            "group": "v_ApplyEyeMakeup_g01",
            "labels": {"class": "ApplyEyeMakeup"},
        },
        wrong=(
            _UCF + "testlist02.txt",
            "../../etc/v_passwd_g01_c01.avi\n",
            ["testlist02.txt", "line 1", "v_Class_g01_c01.avi", "../../etc"],
        ),
        split="2",
    ),
    "vggsound": Layout(
        files={
            "vggsound.csv": "---g-f_I2yQ,1,people marching,test\n"
            '--0PQM4-hqg,30,"railroad car, train wagon",train\n'
            "--gone_clip,5,hail,train\n",
        },
        media=["test/---g-f_I2yQ_000001.mp4", "train/--0PQM4-hqg_000030_000040.mp4"],
        coverage={"train": of(2, 1), "test": of(1, 1)},
        missing="--gone_clip_5_15",
        row={
            "id": "--0PQM4-hqg_30_40",
            "split": "train",
            "labels": {"class": "railroad car, train wagon"},
            "meta": {"youtube_id": "--0PQM4-hqg", "start": 30.0, "end": 40.0},
        },
        wrong=(
            "vggsound.csv",
            "YTID,start,label,split\n",
            ["vggsound.csv", "line 1", "train or test", "found split"],
        ),
    ),
    "youcook2": Layout(
        files={
            "annotations/youcookii_annotations_trainval.json": {
                "database": {
                    "fn9anlEL4FI": {
                        "duration": 250.1,
                        "subset": "validation",
                        "recipe_type": "113",
                        "annotations": [
                            {"id": 1, "segment": [79, 91], "sentence": "fry it"},
                            {"id": 0, "segment": [41, 54], "sentence": "mix the egg"},
                        ],
                    },
                    "gone_video1": {
                        "subset": "training",
                        "recipe_type": "101",
                        "annotations": [],
                    },
                }
            }
        },
        media=["raw_videos/validation/113/fn9anlEL4FI.mkv"],
        coverage={"train": of(1, 0), "validation": of(1, 1)},
        missing="gone_video1",
        row={
            "id": "fn9anlEL4FI",
            "split": "validation",
            "segments": [[41.0, 54.0, "mix the egg"], [79.0, 91.0, "fry it"]],
            "labels": {"recipe": "113"},
        },
        wrong=(
            "annotations/youcookii_annotations_trainval.json",
            {"database": {"v": {"subset": "train", "annotations": []}}},
            ["trainval.json", "entry 'v'", "training, validation, testing", "train"],
        ),
    ),
    "youtube": Layout(
        files={
            "a/Tea [abcdefghijk].info.json": {
                "id": "abcdefghijk",
                "title": "お茶の入れ方",
                "description": "Как заварить чай\n\nthé",
                "language": "ja",
                "tags": ["tea"],
                "formats": [{"url": "kept out"}],
            },
            "a/Tea [abcdefghijk].en.vtt": "WEBVTT\n\n00:00.000 --> 00:02.000\ntea\n",
            "a/Tea [abcdefghijk].ja.vtt": "WEBVTT\nKind: captions\n\n"
            "00:00:00.160 --> 00:00:02.389 align:start position:0%\n \n"
            "お湯を<00:00:00.400><c>沸かす</c>\n\n"
            "00:00:02.389 --> 00:00:02.399\nお湯を沸かす\n \n\n"
            "00:00:02.399 --> 00:00:05.030\nお湯を沸かす\nお茶を入れる\n",
            "a/gone.info.json": {"id": "gone", "title": "gone"},
        },
        media=["a/Tea [abcdefghijk].mp4", "b/plain.webm"],
        coverage={"all": of(3, 2)},
        missing="gone",
        row={
            "id": "Tea [abcdefghijk]",
            "text": ["お茶の入れ方", "Как заварить чай thé"],
            "segments": [[0.16, 2.399, "お湯を沸かす"], [2.399, 5.03, "お茶を入れる"]],
            "meta": {
                "id": "abcdefghijk",
                "title": "お茶の入れ方",
                "language": "ja",
                "tags": ["tea"],
                "captions": "ja",
            },
        },
        wrong=(
            "a/gone.info.json",
            {"title": "gone"},
            ["gone.info.json", "'id' to be text"],
        ),
    ),
}
