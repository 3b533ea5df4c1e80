"""Results of other systems: every format by its content, and one line for damaged files."""

from __future__ import annotations

import gzip
import importlib
import json
import pickle

import numpy as np
import pytest

from bcnet_fast import evaluate
from bcnet_fast.data.annotations import VideoAnnotation
from bcnet_fast.errors import InputError
from bcnet_fast.results.reader import Results, read_results

VIDEOS = {
    "a": VideoAnnotation(id="a", duration=100.0, frames=1000, fps=10.0),
    "b": VideoAnnotation(id="b", duration=50.0, frames=1250, fps=25.0),
}


@pytest.fixture
def file(tmp_path):
    """Write a file whose name says nothing about its content; returns its path."""

    def write(content: str | bytes, name: str = "found"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows(results: Results) -> list[tuple]:
    """(video, start, end, score) or with the label, in file order; numbers rounded."""
    columns = [
        [results.video_names[number] for number in results.video],
        *results.segments.T.round(6).tolist(),
        results.scores.round(6).tolist(),
    ]
    if results.label is not None:
        columns.append([results.label_names[number] for number in results.label])
    return list(zip(*columns, strict=True))


TEST, OTHER = "video_test_0000004", "video_test_0000006"


def test_submission_text_with_numbers_of_ucf101(file):
    text = f"{TEST} 1.5 3.25 7 0.9\n\n{OTHER}.mp4\t10 8 97 -1e-3\n{TEST} 0 1 5 0.2\n"
    results = read_results(file(text))
    assert rows(results) == [
        (TEST, 1.5, 3.25, 0.9, "BaseballPitch"),
        (OTHER, 8.0, 10.0, -0.001, "VolleyballSpiking"),
        (TEST, 0.0, 1.0, 0.2, "UCF-101 class 5"),
    ]
    assert results.notes == ("classes are numbers: taken as numbers of UCF-101",)


def test_submission_text_with_positions_names_and_commas(file):
    assert [row[4] for row in rows(read_results(file(f"{TEST} 0 1 1 0.9\n{TEST} 0 1 20 0.8\n")))] == [
        "BaseballPitch",
        "VolleyballSpiking",
    ]
    # 9 is both a number of UCF-101 and a position: where all are, they are taken as the former.
    assert rows(read_results(file(f"{TEST} 0 1 9 0.9")))[0][4] == "BasketballDunk"
    assert rows(read_results(file(f"{TEST},0,1,LongJump,0.9")))[0][4] == "LongJump"
    assert rows(read_results(file("my_video 0 1 7 0.9")))[0][4] == "7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{TEST} 0 1 7 0.9\n\n{TEST} 0 1 7\n", r"found, line 3 is '.* 0 1 7', expected video start end class score"),
        (f"{TEST} 0 1 7 0.9\n{TEST} 0 x 7 0.5\n", "found, line 2: end is 'x', expected a finite number"),
        (f"{TEST} 0 1e308 7 0.9\n", r"found, line 1: end is '1e308', expected a finite number up to 1e\+30"),
        ('{"results": {"v": [{"segment": [0, 1e308], "score": 1}]}}', r"of finite numbers up to 1e\+30 with start"),
        *(
            (
                f'{{"results": {{"v": [{{"segment": {segment}, "score": {score}}}]}}}}',
                "found: video 'v' has the entry .*expected a",
            )
            for segment, score in (('"12"', "1"), ("[[1], [2]]", "1"), ("[1, 2]", "[1]"), ('{"1": 1, "2": 2}', "1"))
        ),
        (
            '{"results": {"v": [{"segment": [1, 2], "score": 1, "label": null}]}}',
            "found: video 'v' has the label None, expected text or a number",
        ),
        ('[{"video": null, "start": 0, "end": 1, "score": 1}]', "found: row 1: video is null, expected text"),
        (f"{TEST} 0 1 7 0.9\n{TEST} 0 1 7 nan\n", "found, line 2: score is 'nan', expected a finite number"),
        (
            f"{TEST} 0 1 7 0.9\n{TEST} 0 1 0 0.5\n",
            "found, line 2: class is 0, expected a number of UCF-101, or 1 to 20",
        ),
        ("video,start,end,score\na,1,2,0.5\na,1,2\n", "found, line 3: 3 cells, expected 4"),
        (
            "video,start,end,score\na,1,2,0.5\n\na,3,2,0.5\n",
            r"found, line 4: segment is \[3, 2\], expected start <= end",
        ),
        ('video,start,end,score\n"a\nb",1,2,0.5\na,1,2,\n', "found, line 4: score is '', expected a finite number"),
        ('video,start,end,score\na,1,2,"0.5\n', "found: malformed CSV at line 2"),
        ("video,start,end\na,1,2\n", "found has the columns 'video, start, end', expected proposals"),
        ("video,type,type_idx,start,end\na,x,1,1,2\n", "it looks like an annotation file, which --ground-truth takes"),
        ("action,start,end,xmin,xmax\n0.1,0.2,0.3,0,0.01\n", "probabilities of snippets, as BSN's first stage"),
        ("hello\n", "found begins with 'hello', expected proposals"),
        ("", "found is empty, expected proposals"),
        ("# 0\nx/a\n100\n1\n0\n2\n1 0.5 0.5 0 10\n", r"found, line 7 ends a video, expected another line"),
        ('{"video-id": ["a"], "t-start": [1], "t-end": [2, 3], "score": [1]}', "columns of 1 or 2 rows, expected one"),
        ('[{"video": "a", "start": 0}, {"video": "a"}]', "row 2 has the keys 'video', not those of row 1"),
        ('{"a": {"segments": [[0, 1]], "scores": []}, "b": []}', "expected segments, scores and perhaps labels of one"),
    ],
)
def test_damaged_files_are_one_line_with_the_place(file, text, message):
    with pytest.raises(InputError, match=message) as error:
        read_results(file(text))
    assert "\n" not in str(error.value)


def test_csv_of_any_delimiter_and_column_names(file):
    expected = [("a", 1.0, 2.0, 0.5), ("b", 3.0, 4.0, 0.25)]
    assert rows(read_results(file("video,start,end,score\na,1,2,.5\nb,3,4,.25\n"))) == expected
    assert rows(read_results(file("\ufeffvideo-id\tt-start\tt-end\tscore\na\t1\t2\t.5\nb\t3\t4\t.25"))) == expected
    assert (
        rows(read_results(file(",Score;t_init;t_end;video_name\n0;.5;1;2;a\n1;.25;3;4;b".replace(",", "n;"))))
        == expected
    )
    labelled = read_results(file(gzip.compress(b"video,label,t-init,t-end,confidence\na,Long jump,1,2,.5\n")))
    assert rows(labelled) == [("a", 1.0, 2.0, 0.5, "Long jump")]


def test_frames_become_seconds_by_the_rate_of_the_video(file):
    path = file("f-end f-init score video-frames video-name\n50 10 .5 1000 a\n50 25 .4 1250 b\n20 10 .3 9 unknown\n")
    results = read_results(path, VIDEOS)
    assert rows(results) == [("a", 1.0, 5.0, 0.5), ("b", 1.0, 2.0, 0.4)]
    assert "1 video (unknown) left out: times are frames" in results.notes[0]
    with pytest.raises(InputError, match=r"times are frames, and nothing states .* of a, b, unknown; .*--video-info"):
        read_results(path)


def test_folders_of_bsn_and_bmn(file, tmp_path):
    file("xmin,xmax,xmin_score,xmax_score,clr_score,reg_socre,score\n0.1,0.5,1,1,1,1,0.25\n", "bmn/v_a.csv")
    file("xmin,xmax,xmin_score,xmax_score,clr_score,reg_socre,score\n-0.1,1.1,1,1,1,1,0.5\n", "bmn/v_b.csv")
    file("not looked at", "bmn/notes.txt")
    # 992 of 1000 and 1248 of 1250 frames are in whole groups of 16.
    assert rows(read_results(tmp_path / "bmn", VIDEOS)) == [
        ("v_a", 9.92, 49.6, 0.25),
        ("v_b", 0.0, 49.92, 0.5),
    ]
    file("xmin,xmax,xmin_score,xmax_score,iou_score\n0.1,0.5,0.5,0.5,0.1\n0,1,1,1,0.9\n", "bsn/v_a.csv")
    assert [row[3] for row in rows(read_results(tmp_path / "bsn", VIDEOS))] == [0.025, 0.9]
    file("start,end,score\n", "bsn/v_none.csv")
    with pytest.raises(InputError, match=r"v_none.csv has times in another unit than v_a.csv"):
        read_results(tmp_path / "bsn", VIDEOS)
    file("xmin,xmax,score\n0,1,1\n0,one,1\n", "bmn/v_c.csv")
    with pytest.raises(InputError, match=r"v_c.csv, line 3: end is 'one', expected a finite number"):
        read_results(tmp_path / "bmn", VIDEOS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty is a folder without a .csv file"):
        read_results(tmp_path / "empty")


def test_a_folder_of_generic_files_keeps_empty_videos(file, tmp_path):
    file("start,end,score,label\n1,2,0.5,x\n", "own/one.csv")
    file("start,end,score\n", "own/two.csv")
    file("start,end,score,label\n3,4,0.5,y\n1,2,0.25,x\n", "own/three.csv")
    results = read_results(tmp_path / "own")
    assert results.video_names == ("one", "three", "two")
    assert rows(results) == [("one", 1.0, 2.0, 0.5, "x"), ("three", 3.0, 4.0, 0.5, "y"), ("three", 1.0, 2.0, 0.25, "x")]
    file("start,end,score\n1,2,0.5\n", "own/two.csv")
    with pytest.raises(InputError, match=r"own: video 'two' has no labels and others have, expected labels in all"):
        read_results(tmp_path / "own")


def test_proposal_lists_rank_by_place(file):
    text = "# 0\nsome/path/a\n{}\n{}\n1\n3 0 10\n2\n3 0.9 0.9 {} {}\n0 0 0 {} {}\n# 1\nx/b\n{}\n{}\n0\n1\n0 0 0 {} {}\n"
    expected = [("a", 10.0, 20.0, 1.0), ("a", 0.0, 90.0, 0.5), ("b", 10.0, 50.0, 1.0)]
    seconds = file(text.format(100, 10, 100, 200, 0, 900, 50, 20, 200, 1000))
    assert rows(read_results(seconds)) == expected
    frames = file(text.format(1000, 1, 100, 200, 0, 900, 500, 1, 100, 500))
    assert rows(read_results(frames, VIDEOS)) == expected
    shares = file(text.format(1, 1, 0.1, 0.2, 0, 0.9, 1, 1, 0.2, 1.0))
    results = read_results(shares, VIDEOS)
    assert rows(results) == expected and "has no scores: proposals rank by their place" in results.notes[0]
    with pytest.raises(InputError, match="nothing states the length or frame rate of a, b"):
        read_results(frames)


ENTRY = {"segment": [1.0, 2.0], "score": 0.5, "label": "x"}


@pytest.mark.parametrize(
    "content",
    [
        {"version": "THUMOS14", "results": {"a": [ENTRY]}, "external_data": {}},  # AFSD
        {"results": {"a": [ENTRY]}},  # OpenTAD
        {"a": [ENTRY]},
        {"a": [{**ENTRY, "segment": ["1.0", "2.0"]}]},
        {"a": {"segments": [[1.0, 2.0]], "scores": [0.5], "labels": ["x"]}},
        {"video-id": ["a"], "t-start": [1], "t-end": [2], "label": ["x"], "score": [0.5]},  # ActionFormer
        {"video-id": {"0": "a"}, "t-start": {"0": 1}, "t-end": {"0": 2}, "label": {"0": "x"}, "score": {"0": 0.5}},
        [{"video_id": "a", "start": 1, "end": 2, "class": "x", "score": 0.5}],
        {"results": [{"video_id": "a", "start": 1, "end": 2, "class": "x", "score": 0.5}]},
    ],
)
def test_json_layouts(file, content):
    assert rows(read_results(file(json.dumps(content)))) == [("a", 1.0, 2.0, 0.5, "x")]


def test_json_of_bare_rows(file):
    content = {"a": [[1, 2, 0.5], [3, 4, 0.25]], "b": []}
    results = read_results(file(json.dumps(content)))
    assert rows(results) == [("a", 1.0, 2.0, 0.5), ("a", 3.0, 4.0, 0.25)] and results.video_names == ("a", "b")


def test_label_numbers_of_networks_count_from_zero(file):
    table = {"video-id": [TEST, OTHER], "t-start": [0, 0], "t-end": [1, 1], "score": [1, 1]}
    named = read_results(file(json.dumps({**table, "label": [0, 19.0]})))
    assert named.label_names == ("BaseballPitch", "VolleyballSpiking")
    assert named.notes == ("classes are numbers: taken as positions from 0 among the 20 detection classes",)
    assert read_results(file(json.dumps({**table, "label": [7, 97]}))).label_names[1] == "VolleyballSpiking"
    other = {**table, "video-id": ["a", "b"], "label": [0, 1]}
    assert read_results(file(json.dumps(other))).label_names == ("0", "1")


@pytest.mark.parametrize("protocol", range(5))
def test_pickles_are_refused_and_the_line_converts_them(file, tmp_path, monkeypatch, protocol):
    stored = {"video-id": ["a"], "t-start": np.array([1.0]), "t-end": np.array([2.0]), "score": np.array([0.5])}
    path = file(pickle.dumps(stored, protocol))
    with pytest.raises(InputError, match="is a pickle, which can run any code and is never loaded") as error:
        read_results(path)
    monkeypatch.chdir(tmp_path)
    path.rename("IN.pkl")
    command = str(error.value).split('python -c "')[1].removesuffix('"')
    exec(command, {})
    assert rows(read_results(tmp_path / "OUT.json")) == [("a", 1.0, 2.0, 0.5)]
    with pytest.raises(InputError, match="is a pickle"):
        read_results(file(gzip.compress(pickle.dumps([1], protocol))))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    columns = {"video": ["a", "b"], "start": [1, 3], "end": [2.0, 4.0], "score": [0.5, 0.25], "label": ["x", "y"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "found")
    assert rows(read_results(tmp_path / "found")) == [("a", 1.0, 2.0, 0.5, "x"), ("b", 3.0, 4.0, 0.25, "y")]
    parquet.write_table(pyarrow.table({**columns, "score": [0.5, None]}), tmp_path / "found")
    with pytest.raises(InputError, match="found: row 2: score is None, expected a finite number"):
        read_results(tmp_path / "found")
    (tmp_path / "found").write_bytes((tmp_path / "found").read_bytes()[:60])
    with pytest.raises(InputError, match=r"found cannot be read \("):
        read_results(tmp_path / "found")


def test_parquet_without_its_library(file, monkeypatch):
    found = importlib.import_module
    monkeypatch.setattr(
        importlib,
        "import_module",
        lambda name: (_ for _ in ()).throw(ImportError(name)) if "arrow" in name else found(name),
    )
    with pytest.raises(
        InputError, match=r"is a Parquet file, which needs pyarrow: pip install 'bcnet_fast\[parquet\]'"
    ):
        read_results(file(b"PAR1rest"))


def test_evaluate_takes_them(file, tmp_path, capsys):
    database = {
        f"{name}": {
            "duration": video.duration,
            "frames": video.frames,
            "annotations": [{"segment": [0, 9], "label": "x"}],
        }
        for name, video in VIDEOS.items()
    }
    truth = file(json.dumps({"database": database}), "truth.json")
    file("xmin,xmax,score\n0,0.091,0.25\n", "bmn/v_a.csv")
    file("xmin,xmax,score\n0,0.18,0.5\n", "bmn/v_b.csv")
    listed = file("# 0\nx/a\n1\n1\n0\n1\n0 0 0 0 0.09\n", "list.txt")
    flags = ["--ground-truth", str(truth), "--metric", "activitynet13"]
    assert evaluate.main(["--proposals", str(tmp_path / "bmn"), *flags]) == 0
    assert "AR@100" in capsys.readouterr().out
    assert evaluate.main(["--proposals", str(listed), *flags]) == 0
    assert "warning: a proposal list has no scores" in capsys.readouterr().err
    info = file("video,seconds\na,200\n", "info.csv")
    output = tmp_path / "numbers.json"
    for more, recall in ([], 0.5), (["--video-info", str(info)], 0.0):
        assert evaluate.main(["--proposals", str(listed), *flags, *more, "--json", str(output)]) == 0
        # At tIoU 0.95: one of two instances, or none where the proposal lasts twice as long.
        assert json.loads(output.read_text())["average_recall"]["recall_at"]["100"][-1] == recall


def test_times_that_overflow_in_seconds_are_one_line(file):
    with pytest.raises(InputError, match=r"video 'a' has times beyond 1e\+30 seconds"):
        read_results(file("# 0\na\n4\n1e-320\n0\n1\n0 0 0 0 50\n"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("video", ["a", None], "row 2: video is null, expected text or a number"),
        ("label", ["x", None], "row 2: label is null, expected text or a number"),
        ("score", [[1.0], [2.0]], "column score has type list"),
        ("video", [b"a", b"b"], "column video has type binary"),
        ("video", ["a" * 5000] * 2, "an id or a label has 5000 bytes, at most 4096 are read"),
        ("label", ["x" * 1_000_000] * 2, "an id or a label has 1000000 bytes"),
    ],
)
def test_odd_columns_of_parquet_are_one_line(tmp_path, column, values, message):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"video": ["a", "b"], "start": [1.0, 3.0], "end": [2.0, 4.0], "score": [0.5, 0.25], "label": ["x", "y"]}
    pq.write_table(pa.table({**columns, column: values}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=rf"x\.parquet.*{message}"):
        read_results(tmp_path / "x.parquet")


def test_columns_of_parquet_that_are_not_needed_are_not_read(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"start": [1.0, 3.0], "end": [2.0, 4.0], "score": [0.5, 0.25], "label": [None, None]}
    videos = pa.array(["a", "a"]).dictionary_encode()
    table = pa.table({"video": videos, **columns, "other": [[1, 2], [3]]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=1)
    place = pq.read_metadata(tmp_path / "x.parquet").row_group(0).column(5).data_page_offset
    content = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
    assert rows(read_results(tmp_path / "x.parquet")) == [("a", 1.0, 2.0, 0.5), ("a", 3.0, 4.0, 0.25)]


def test_a_parquet_table_is_read_up_to_a_limit(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    numbers = np.arange(100_000.0)
    columns = {"video": ["a"] * len(numbers), "start": numbers, "end": numbers, "score": numbers}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    monkeypatch.setattr("bcnet_fast.results.parquet.LARGEST_TABLE", 2**20)
    with pytest.raises(InputError, match=r"x\.parquet cannot be read \(0\.00\d+ GiB of columns, at most"):
        read_results(tmp_path / "x.parquet")


def test_a_parquet_table_of_other_kinds_is_one_line(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"video": ["a"], "start": [0.0], "end": [1.0], "score": [1.0], "label": [["x"]]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet cannot be read"):
        read_results(tmp_path / "x.parquet")
    many = pa.table({name: pa.array([values[0]] * 2_000_000) for name, values in columns.items() if name != "label"})
    pq.write_table(many, tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(InputError, match=r"has 2000000 rows in \d+ bytes, expected proposals"):
        read_results(tmp_path / "x.parquet")
