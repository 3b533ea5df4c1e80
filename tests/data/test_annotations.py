"""Every public layout of ground truth and video information, and the messages for files of other layouts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bcnet_fast.data.annotations import Instance, VideoAnnotation, read_annotations, strip_activitynet_prefix
from bcnet_fast.errors import InputError

ACTIVITYNET = {
    "version": "VERSION 1.3",
    "taxonomy": [],
    "database": {
        "a": {
            "subset": "Validation",
            "duration": 12.5,
            "fps": 25.0,
            "frame": 312,
            "annotations": [
                {"segment": [1, 2.5], "label": "Diving", "label_id": 7},
                {"segment": ["3", "3"], "label": "x"},
            ],
        },
        "b": {"subset": "training", "duration": 3, "annotations": []},
    },
}


def _read(path: Path, content: str | dict, **options: object) -> dict[str, VideoAnnotation]:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_annotations(path, **options)


def test_activitynet_json_with_its_extra_keys_and_text_segments(tmp_path: Path) -> None:
    videos = _read(tmp_path / "truth", ACTIVITYNET)
    assert list(videos) == ["a", "b"]
    assert videos["a"] == VideoAnnotation(
        id="a",
        duration=12.5,
        fps=25.0,
        frames=312,
        subset="Validation",
        instances=(Instance(1.0, 2.5, "Diving"), Instance(3.0, 3.0, "x")),
    )
    assert videos["b"].instances == ()


def test_flat_json(tmp_path: Path) -> None:
    entry = {"duration_second": 8.0, "duration_frame": 240, "feature_frame": 224.0, "annotations": []}
    expected = VideoAnnotation(id="v_x", duration=8.0, frames=240, feature_frames=224)
    assert _read(tmp_path / "flat", {"v_x": entry}) == {"v_x": expected}


def test_thumos14_tables_keep_what_is_ambiguous_apart(tmp_path: Path) -> None:
    annotation = (
        "video,type,type_idx,start,end,startFrame,endFrame\n"
        "t1,Diving,26,0.2,1.1,6,33\nt2,Ambiguous,0,1,2,30,60\nt1,Ambiguous,0,5,6,1,2\nt1,CliffDiving,22,0.2,1.1,6,33\n"
    )
    instances = (Instance(0.2, 1.1, "Diving"), Instance(0.2, 1.1, "CliffDiving"))
    videos = _read(tmp_path / "annotation.csv", annotation)
    assert {name: video.instances for name, video in videos.items()} == {"t1": instances, "t2": ()}
    assert {name: video.ambiguous for name, video in videos.items()} == {"t1": ((5.0, 6.0),), "t2": ((1.0, 2.0),)}

    truth = (
        "video-name,t-init,t-end,f-init,f-end,video-duration,frame-rate,video-frames,label-idx\n"
        "t1,0.2,1.1,6,33,20.5,30.0,615,7\nt1,5,6,1,2,20.5,30.0,615,-1\nt1,0.2,1.1,6,33,20.5,30.0,615,4\n"
    )
    videos = _read(tmp_path / "truth.csv", truth)
    facts = {"duration": 20.5, "fps": 30.0, "frames": 615, "ambiguous": ((5.0, 6.0),)}
    assert videos == {"t1": VideoAnnotation(id="t1", instances=instances, **facts)}


def test_video_tables_may_be_partial(tmp_path: Path) -> None:
    public = "video,numFrame,seconds,fps,rfps,subset,featureFrame\nv_x,418,14.07,30.0,29.7,training,400\n"
    expected = VideoAnnotation(id="v_x", duration=14.07, fps=30.0, frames=418, feature_frames=400, subset="training")
    assert _read(tmp_path / "info.csv", public) == {"v_x": expected}
    own = "\ufeffvideo, fps, stride, offset, duration\nmine.mp4, 25, 8, -2, \nother, , , , 9.5\n"
    assert _read(tmp_path / "own.csv", own) == {
        "mine.mp4": VideoAnnotation(id="mine.mp4", fps=25.0, feature_stride=8.0, feature_offset=-2.0),
        "other": VideoAnnotation(id="other", duration=9.5),
    }


def test_subset_ignores_case_and_gzip_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "truth.gz").write_bytes(gzip.compress(json.dumps(ACTIVITYNET).encode()))
    assert list(read_annotations(tmp_path / "truth.gz", "vaLIDation")) == ["a"]


def test_only_a_real_prefix_is_taken_off() -> None:
    # 11 characters are a YouTube id, which may begin with v_ itself.
    names = ["v_6kgJx6ahgq0", "v_123456789", "v_v_123456789", "video_1", "v_walk"]
    assert list(strip_activitynet_prefix(dict.fromkeys(names[:2] + names[3:]), "f")) == [
        "6kgJx6ahgq0",
        "v_123456789",
        "video_1",
        "walk",
    ]
    with pytest.raises(InputError, match="'v_123456789' occurs with and without"):
        strip_activitynet_prefix(dict.fromkeys(names), "f")


def test_prefix_stays_unless_asked(tmp_path: Path) -> None:
    flat = {"v_6kgJx6ahgq0": {"duration": 1.0}}
    assert list(_read(tmp_path / "flat", flat)) == ["v_6kgJx6ahgq0"]
    stripped = read_annotations(tmp_path / "flat", strip_prefix=True)
    assert stripped == {"6kgJx6ahgq0": VideoAnnotation(id="6kgJx6ahgq0", duration=1.0)}


def _one(**entry: object) -> dict:
    return {"database": {"clip": entry}}


def _task(labels: object, ranges: object) -> list:
    value = {"timelinelabels": labels, "ranges": ranges}
    return [{"data": {"video": "a.mp4", "fps": 25}, "annotations": [{"result": [{"value": value}]}]}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_task("Dive", [{"start": 1, "end": 2}]), "task 1: timelinelabels is 'Dive', expected a list of text"),
        (
            _task([["Dive"]], [{"start": 1, "end": 2}]),
            r"task 1: timelinelabels is \[\['Dive'\]\], expected a list of text",
        ),
        (_task(["Dive"], "12"), "task 1: ranges is '12', expected a list of ranges of frames"),
        pytest.param(
            _task(["x"] * 1025, [{"start": 1, "end": 2}] * 1025), "more than 1048576 segments by task 1", id="product"
        ),
        (_one(annotations=[{"segment": [0, 1], "label": None}]), "'clip': label is None, expected text or a number"),
        ("", "has the columns ''"),
        ("{", "invalid JSON at line 1"),
        ("[]", "has another JSON layout"),
        ({}, "no video"),
        ({"results": {}}, "has entries with unknown keys"),
        ({"clip": {"score": 1}}, r"has entries with unknown keys \(score\)"),
        ('{"database": {"clip": {"fps": 1}, "clip": {"fps": 2}}}', "'clip' occurs twice"),
        (_one(annotations=[{"segment": [0, 1]}]), "'clip': annotation is .*, expected the keys segment and label"),
        (_one(annotations=[{"segment": [0], "label": "x"}]), r"'clip': segment is \[0\], expected two numbers"),
        (_one(annotations=[{"segment": [0, "soon"], "label": "x"}]), r"segment is \[0, 'soon'\], expected two numbers"),
        (
            _one(annotations=[{"segment": [0, float("nan")], "label": "x"}]),
            "'clip': segment is .*, expected two numbers",
        ),
        (_one(annotations=[{"segment": [2, 1], "label": "x"}]), r"'clip': segment is \[2, 1\], expected start <= end"),
        (_one(fps=0), "'clip': fps is 0, expected a positive number"),
        (_one(duration="long"), "'clip': duration is 'long', expected a positive number"),
        (_one(fps=10**400), "'clip': fps is 10+, expected a positive number"),
        (_one(annotations=[{"segment": [0, 10**400], "label": "x"}]), "'clip': segment is .*, expected two numbers"),
        pytest.param('{"clip": {"fps": ' + "1" * 5000 + "}}", "a number has too many digits", id="digits"),
        pytest.param('{"clip": ' + "[" * 200_000, "JSON is nested too deeply", id="nested"),
        ('video,fps\nclip,"30\n', "malformed CSV at line 2"),
        pytest.param("video,fps\nclip," + "3" * 140_000, "malformed CSV at line 2", id="long field"),
        ("video,name\nclip,x\n", "has the columns 'video, name'"),
        ("video,fps\n", "no row after the header"),
        ("video,fps\nclip,30\nclip,25\n", "line 3: video 'clip' is repeated"),
        ("video,fps,duration\nclip,30\n", "line 2: more or fewer cells than the 3 columns"),
        ("video,type,type_idx,start,end\nclip,Diving,26,1,x\n", "line 2: segment is .*, expected two numbers"),
        ("video-name,t-init,t-end,label-idx\nclip,1,2,20\n", "line 2: label-idx is '20', expected -1 to 19"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, content: str | dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        _read(tmp_path / "annotations.txt", content)
    assert "annotations.txt" in str(error.value) and "\n" not in str(error.value)


def test_broken_gzip_missing_file_and_missing_subset_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(json.dumps(ACTIVITYNET).encode())[:40])
    with pytest.raises(InputError, match=r"cut\.gz: damaged gzip"):
        read_annotations(tmp_path / "cut.gz")
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        read_annotations(tmp_path / "none.json")
    with pytest.raises(InputError, match="the subsets Validation, training, expected 'test'"):
        _read(tmp_path / "truth", ACTIVITYNET, subset="test")


# Videos, videos with instances, and instances, as the notes on the public files count them.
PUBLIC_FILES = {
    ("thumos_anno_eval.json", "test"): (212, 212, 3332),
    ("bcnet_thumos14.json", "validation"): (200, 200, 3003),
    ("gtad_thumos_gt.json", "test"): (210, 210, 3311),
    ("actionformer_style_thumos14.json", "test"): (212, 212, 3358),
    ("thumos_test_Annotation.csv", None): (213, 212, 3358),
    ("thumos_val_Annotation.csv", None): (200, 200, 3007),
    ("thumos14_test_groundtruth.csv", None): (213, 212, 3358),
    ("THUMOS_video_info_new.csv", "test"): (212, 0, 0),
    ("anet13_val_gt.json", "validation"): (4728, 4728, 7293),
    ("anet_anno_action.json", None): (19228, 14377, 22152),
    ("anet_video_info_new.csv", "testing"): (4851, 0, 0),
}


def test_public_files_are_read_whole(shared: Path) -> None:
    found = {}
    for file, subset in PUBLIC_FILES:
        videos = read_annotations(shared / "data/annotations" / file, subset).values()
        lengths = [len(video.instances) for video in videos]
        found[file, subset] = (len(lengths), sum(map(bool, lengths)), sum(lengths))
    assert found == PUBLIC_FILES


def test_both_thumos14_tables_agree(shared: Path) -> None:
    annotation = read_annotations(shared / "data/annotations/thumos_test_Annotation.csv")
    truth = read_annotations(shared / "data/annotations/thumos14_test_groundtruth.csv")
    assert annotation.keys() == truth.keys()
    assert all(sorted(map(str, v.instances)) == sorted(map(str, truth[n].instances)) for n, v in annotation.items())


@pytest.mark.parametrize("facts", ["1e-320,5", "25,1e-320"])
def test_facts_too_small_to_divide_by_are_one_line(tmp_path, facts):
    (tmp_path / "times.csv").write_text(f"video,fps,duration\na,{facts}\n")
    with pytest.raises(InputError, match=r"times.csv: line 2: (fps|duration) is '1e-320', expected a positive number"):
        read_annotations(tmp_path / "times.csv")
