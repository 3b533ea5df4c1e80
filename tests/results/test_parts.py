"""Parts and their merging: written parts are read back to the bit, damage is noticed, and one result a video counts."""

from __future__ import annotations

import importlib.util
import json
import os
import zlib

import numpy as np
import pytest

from bcnet_fast.errors import InputError
from bcnet_fast.results.merge import merge, read_ids
from bcnet_fast.results.part_writer import PartWriter
from bcnet_fast.results.parts import Header, Part, fingerprint_of, parts_in
from bcnet_fast.results.reader import read_results
from bcnet_fast.results.writer import ResultWriter

SETTINGS = {"version": "1", "fps": 25}
FORMATS = [
    "jsonl",
    pytest.param(
        "parquet",
        marks=pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed"),
    ),
]
# Some have no proposals, and ids need escapes.
VIDEOS = {f"v{number}": 30 * (number % 3) for number in range(20)} | {'a "score": 1': 3, "ü,\n": 1, "none": 0}


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Groups of rows of Parquet that end within videos."""
    monkeypatch.setattr("bcnet_fast.results.parts._GROUP_ROWS", 50)


def about(videos: int = len(VIDEOS), **settings) -> Header:
    settings = SETTINGS | settings
    return Header(videos, "VERSION 1.3", "how", settings, fingerprint_of(settings))


def proposals(video: str, count: int, labels: bool = False) -> tuple:
    rng = np.random.default_rng([len(video), *video.encode()])
    segments, scores = np.sort(rng.uniform(0, 100, (count, 2)), axis=1), np.sort(rng.random(count))[::-1]
    return 2, segments, scores, np.array(["run", "ü"], object)[rng.integers(2, size=count)] if labels else None


def writer(folder, shard=0, shards=1, header=None, source=lambda video: [[1, 2]], **options) -> PartWriter:
    return PartWriter(folder, shard, shards, header or about(), source, **options)


def write(folder, videos, shard=0, shards=1, labels=False, **options) -> None:
    parts = writer(folder, shard, shards, **options)
    for video in videos:
        parts.add(video, *proposals(video, VIDEOS[video], labels))
    parts.commit()
    parts.close()


def single(path, labels=False) -> bytes:
    """The submission of one run over all videos."""
    results = ResultWriter(path, SETTINGS)
    for video, number in VIDEOS.items():
        results.add(video, *proposals(video, number, labels)[1:])
    results.finish("VERSION 1.3", "how")
    return path.read_bytes()


@pytest.mark.parametrize("part_format", FORMATS)
@pytest.mark.parametrize("labels", [False, True], ids=["proposals", "detections"])
def test_merged_parts_have_the_bytes_of_one_run(tmp_path, part_format, labels):
    names = list(VIDEOS)
    write(tmp_path / "parts", names[1::2], 1, 2, labels, part_format=part_format, part_videos=3)
    write(tmp_path / "parts", names[::2], 0, 2, labels, part_format=part_format)
    report = merge(tmp_path / "parts", tmp_path / "merged.json", videos=sorted(VIDEOS))
    assert (tmp_path / "merged.json").read_bytes() == single(tmp_path / "single.json", labels)
    assert report.complete and (report.parts, report.shards) == (5, 2)
    assert (report.videos, report.proposals) == (len(VIDEOS), sum(VIDEOS.values()))


def test_the_bytes_of_a_part(tmp_path):
    parts = writer(tmp_path)
    parts.fail("b", "no rows")
    parts.add("a", 1, np.array([[1.0, 2.5]]), np.array([0.9]), ["run"])
    parts.commit()
    header, *lines = (tmp_path / "part-000-of-001-0000.jsonl").read_text().splitlines()
    assert json.loads(header)["bcnet_fast_part"]["settings"] == SETTINGS
    same = f'"attempt": 1, "source": [[1, 2]], "fingerprint": "{about().fingerprint}"'
    assert lines == [
        f'{{"video": "a", "status": "done", "error": null, "windows": 1, "proposals": 1, {same}}}',
        f'{{"video": "b", "status": "failed", "error": "no rows", "windows": 0, "proposals": 0, {same}}}',
        '{"video": "a", "rank": 1, "score": 0.9, "segment": [1.0, 2.5], "label": "run"}',
    ]
    parts.close()
    assert [path.name for path in tmp_path.iterdir()] == ["part-000-of-001-0000.jsonl"]


def test_a_part_is_written_when_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("bcnet_fast.results.part_writer._MAX_ROWS", 1000)
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    parts = writer(tmp_path, part_videos=2)
    counts = []
    for number, seconds in ((1, 0), (1, 0), (1200, 0), (1, 0), (1, 61), (1, 61)):
        clock[0] += seconds
        parts.add(f"v{len(counts)}", *proposals("v", number))
        counts.append(len(parts_in(tmp_path)))
    assert counts == [0, 1, 2, 2, 3, 3]
    assert [Part(path).header.videos for path in parts_in(tmp_path)] == [2, 1, 2]


@pytest.mark.parametrize("part_format", FORMATS)
def test_damage_is_never_merged(tmp_path, part_format):
    write(tmp_path / "parts", VIDEOS, part_format=part_format)
    (path,) = parts_in(tmp_path / "parts")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    places = [*rng.integers(len(whole), size=20), *range(len(whole) - 3, len(whole))]
    for place in places:
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            path.write_bytes(damaged)
            try:
                merge(tmp_path / "parts", tmp_path / "merged.json")
            except InputError as error:
                assert path.name in str(error)
                assert not (tmp_path / "merged.json").exists()
            else:
                # The header of JSON lines, and padding and statistics of Parquet, have no checksum.
                found = json.loads((tmp_path / "merged.json").read_text())["results"]
                assert found == json.loads(single(tmp_path / "single.json"))["results"]
                (tmp_path / "merged.json").unlink()


def test_the_last_attempt_counts_and_in_it_success(tmp_path):
    sources = {"a": [[1, 1]], "b": [[1, 1]], "c": [[1, 1]]}
    first = writer(tmp_path / "parts", header=about(3), source=sources.get)
    first.add("a", *proposals("old", 2))
    first.fail("b", "gone")
    first.fail("c", "gone")
    first.commit()
    first.close()
    # At the same time, a run with another number of shards, which does not know of the first one.
    (tmp_path / "parts").rename(tmp_path / "hidden")
    other = writer(tmp_path / "parts", shards=2, header=about(3), source=sources.get)
    other.add("c", *proposals("c", 4))
    other.commit()
    other.close()
    for path in parts_in(tmp_path / "hidden"):
        path.rename(tmp_path / "parts" / path.name)

    sources["a"] = [[1, 2]]
    second = writer(tmp_path / "parts", header=about(3), source=sources.get, resume=True, retry_failed=True)
    assert second.changed == 1 and not second.failed and second.done == {"c": 4}
    second.add("a", *proposals("new", 3))
    second.add("b", *proposals("b", 1))
    second.commit()
    second.close()
    report = merge(tmp_path / "parts", tmp_path / "merged.json", videos=["a", "b", "c"])
    found = json.loads((tmp_path / "merged.json").read_text())["results"]
    assert {video: len(of_video) for video, of_video in found.items()} == {"a": 3, "b": 1, "c": 4}
    assert found["a"][0]["score"] == proposals("new", 3)[2][0]
    assert report.complete and report.duplicates == 1  # both results of a


def test_what_is_not_finished_is_listed(tmp_path):
    parts = writer(tmp_path / "parts", header=about(5))
    parts.add("b", *proposals("b", 2))
    parts.fail("d", "no rows")
    parts.commit()
    parts.close()
    report = merge(tmp_path / "parts", tmp_path / "merged.json")
    assert not report.complete and (report.videos, report.failed, report.missing) == (1, 1, 3)
    report = merge(tmp_path / "parts", tmp_path / "merged.json", videos=list("acde"), unfinished=tmp_path / "list")
    assert (report.videos, report.failed, report.missing, report.strangers) == (0, 1, 3, 1)
    assert report.unfinished == ["missing: a", "missing: c", "failed: d: no rows", "missing: e"]
    lines = [json.loads(line) for line in (tmp_path / "list").read_text().splitlines()]
    assert [line["video"] for line in lines] == list("acde") and lines[2]["error"] == "no rows"
    with pytest.raises(InputError, match="the id 'a' follows 'b', expected sorted ids"):
        merge(tmp_path / "parts", tmp_path / "other.json", videos=["b", "a"])
    assert not (tmp_path / "other.json").exists()


def test_lists_of_ids_are_files_with_sorted_lines(tmp_path):
    (tmp_path / "ids").write_text("b\na\n")
    with pytest.raises(InputError, match=r"ids: the id 'a' follows 'b', expected sorted ids"):
        list(read_ids(tmp_path / "ids"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a device, expected sorted ids"):
        list(read_ids(tmp_path / "pipe"))


def test_a_record_that_is_none_is_refused(tmp_path):
    """Its checksum is right, as a program that writes parts of its own could make it."""
    write(tmp_path / "parts", ["v1"])
    (path,) = parts_in(tmp_path / "parts")
    header, record, *rows = path.read_bytes().splitlines(keepends=True)
    stated = json.loads(header)
    record = json.dumps(json.loads(record) | {"video": {"v1": 1}}).encode() + b"\n"
    about = stated["bcnet_fast_part"]
    about["sizes"][0], about["checksums"][0] = len(record), zlib.crc32(record)
    path.write_bytes(b"".join([json.dumps(stated).encode() + b"\n", record, *rows]))
    with pytest.raises(InputError, match=f"{path.name} cannot be read .a record is .*, expected a whole part"):
        merge(tmp_path / "parts", tmp_path / "merged.json")


def test_parts_of_several_runs_are_not_joined(tmp_path):
    write(tmp_path, ["v0"], 0, 2)
    with pytest.raises(InputError, match="other values of fps; use the same settings, or another folder"):
        writer(tmp_path, 0, 2, about(fps=30), resume=True)
    write(tmp_path, ["v1"], 1, 2, header=about(fps=30))
    with pytest.raises(InputError, match=r"part-001-of-002-0000.jsonl is from a run with other values of fps"):
        merge(tmp_path, tmp_path / "merged.json")


def test_parts_are_neither_mixed_nor_lost_unasked(tmp_path):
    write(tmp_path, ["v0"], 0, 2)
    with pytest.raises(InputError, match="continue with --resume, or replace them with --overwrite"):
        writer(tmp_path, 0, 2)
    writer(tmp_path, 1, 2).close()  # the other shard has none yet
    with pytest.raises(
        InputError, match=r"of another number of shards, such as part-000-of-002-0000.jsonl; delete them"
    ):
        writer(tmp_path, 0, 3, overwrite=True)
    assert writer(tmp_path, 0, 3, resume=True).done == {"v0": 0}
    replaced = writer(tmp_path, 0, 2, overwrite=True)
    assert not replaced.done and not parts_in(tmp_path)


def test_a_shard_is_held_by_one_run(tmp_path):
    held = writer(tmp_path, 0, 2)
    with pytest.raises(InputError, match="shard 0/2 is in use by another run"):
        writer(tmp_path, 0, 2)
    writer(tmp_path, 1, 2).close()
    held.close()
    writer(tmp_path, 0, 2).close()


@pytest.mark.parametrize("part_format", FORMATS[1:])
def test_merged_parquet_has_one_row_a_proposal(tmp_path, part_format):
    import pyarrow.parquet

    write(tmp_path / "parts", VIDEOS, labels=True, part_format="jsonl")
    merge(tmp_path / "parts", tmp_path / "merged.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "merged.parquet")
    assert table.column_names == ["video", "rank", "start", "end", "score", "label"]
    rows = table.to_pylist()
    for video, number in VIDEOS.items():
        _, segments, scores, labels = proposals(video, number, labels=True)
        mine = [row for row in rows if row["video"] == video]
        assert [row["rank"] for row in mine] == list(range(1, number + 1))
        assert [[row["start"], row["end"]] for row in mine] == segments.tolist()
        assert [row["score"] for row in mine] == scores.tolist() and [row["label"] for row in mine] == list(labels)
    footer = pyarrow.parquet.read_metadata(tmp_path / "merged.parquet").metadata
    assert json.loads(footer[b"bcnet_fast"])["settings"] == SETTINGS


@pytest.mark.parametrize("part_format", FORMATS[1:])
@pytest.mark.parametrize("labels", [False, True], ids=["proposals", "detections"])
def test_a_merged_parquet_file_is_read_as_the_json(tmp_path, part_format, labels):
    write(tmp_path / "parts", VIDEOS, labels=labels, part_format=part_format)
    merge(tmp_path / "parts", tmp_path / "merged.json")
    merge(tmp_path / "parts", tmp_path / "merged.parquet")
    expected = read_results(tmp_path / "merged.json").to_dict()
    assert read_results(tmp_path / "merged.parquet").to_dict() == {name: of for name, of in expected.items() if of}


@pytest.mark.parametrize("part_format", FORMATS[1:])
def test_an_id_that_parquet_cannot_store_is_a_failed_video(tmp_path, part_format):
    parts = writer(tmp_path / "parts", header=about(2), part_format=part_format)
    for video in ("\udcff", "b"):
        parts.add(video, *proposals("b", 2))
    parts.commit()
    parts.close()
    report = merge(tmp_path / "parts", tmp_path / "merged.json")
    assert (report.videos, report.failed, report.missing) == (1, 1, 0)
    assert "not UTF-8, which Parquet requires" in report.unfinished[0]


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'bcnet_fast\[parquet\]'"):
        writer(tmp_path / "parts", part_format="parquet")
    assert not (tmp_path / "parts").exists()


def sealed(folder, change) -> None:
    """Parts with another header, record and rows, whose sizes and checksums fit, as another program may write them."""
    write(folder, ["v1"])
    (path,) = parts_in(folder)
    header, record, *rows = (json.loads(line) for line in path.read_bytes().splitlines())
    stated = header["bcnet_fast_part"]
    change(stated, record, rows)
    lines = [json.dumps(line).encode() + b"\n" for line in (record, *rows)]
    if "sizes" in stated and isinstance(stated["sizes"], list):
        for place, content in enumerate((lines[0], b"".join(lines[1:]))):
            stated["sizes"][place], stated["checksums"][place] = len(content), zlib.crc32(content)
    path.write_bytes(json.dumps(header).encode() + b"\n" + b"".join(lines))


def resealed(path, change) -> None:
    """Change the bytes of a part's rows; sizes and checksums fit."""
    header, record, *rows = path.read_bytes().splitlines(keepends=True)
    stated, content = json.loads(header), change(b"".join(rows))
    stated["bcnet_fast_part"]["sizes"][1] = len(content)
    stated["bcnet_fast_part"]["checksums"][1] = zlib.crc32(content)
    path.write_bytes(json.dumps(stated).encode() + b"\n" + record + content)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"rank": 1, ', b'"rank": 1, "rank": 1, '),
        (b'"video": "v1", "rank": 1,', b'"video": "v2", "rank": 1,'),
        (b'"score": 0.5', b'"score": 007'),
        (b'"score": 0.5', b'"score": 1.2.3e+-'),
        (b'"score": 0.5', b'"score": 1e999'),
        (b'"score": 0.5', b'"score": 1e31'),
        (b'"score": 0.5', b'"score": ' + b"1" * 5000),
        (b'"ran"', rb'"\q"'),
        (b'"ran"', rb'"\u12"'),
        (b'"ran"', b'"\t"'),
        (b'"ran"', b'"\xff"'),
        (b'"ran"', b'"ran", "label": "x"'),
        (b'"ran"}\n', b'"ran"}\n{"video": "v1", "rank": 2, "score": 0.5, "segment": [1.0, 2.0], "label": "x"}\n'),
    ],
)
def test_rows_of_other_programs_that_are_no_results_are_one_line(tmp_path, old, new):
    parts = writer(tmp_path / "parts")
    parts.add("v1", 1, np.array([[1.0, 2.0]]), np.array([0.5]), ["ran"])
    parts.commit()
    parts.close()
    (path,) = parts_in(tmp_path / "parts")
    assert old in path.read_bytes()
    resealed(path, lambda rows: rows.replace(old, new))
    with pytest.raises(InputError, match=f"{path.name} .*expected a whole part") as error:
        merge(tmp_path / "parts", tmp_path / "merged.json")
    assert "\n" not in str(error.value) and not (tmp_path / "merged.json").exists()


@pytest.mark.parametrize("number", ["0", "-0.0", "5e-324", "1e-05", "1.5e+16", "123456789012345.6"])
def test_numbers_of_json_are_kept(tmp_path, number):
    write(tmp_path / "parts", ["v1"])
    (path,) = parts_in(tmp_path / "parts")
    score = json.loads(path.read_bytes().splitlines()[2])["score"]
    resealed(path, lambda rows: rows.replace(repr(score).encode(), number.encode()))
    merge(tmp_path / "parts", tmp_path / "merged.json")
    assert json.loads((tmp_path / "merged.json").read_text())["results"]["v1"][0]["score"] == float(number)


def test_a_sparse_part_or_list_of_ids_is_one_line(tmp_path):
    (tmp_path / "parts").mkdir()
    for path in (tmp_path / "parts" / "part-000-of-001-0000.jsonl", tmp_path / "ids"):
        with open(path, "wb") as file:
            file.truncate(3 << 30)
    with pytest.raises(InputError, match=r"part-000-of-001-0000\.jsonl cannot be read"):
        merge(tmp_path / "parts", tmp_path / "merged.json")
    with pytest.raises(InputError, match="ids has a line of 65536 characters or more, expected sorted ids"):
        list(read_ids(tmp_path / "ids"))


@pytest.mark.parametrize(
    "change",
    [
        lambda header, record, rows: header.update(settings=[]),
        lambda header, record, rows: header.update(videos_in_archive=["x"]),
        lambda header, record, rows: header.update(first=3),
        lambda header, record, rows: header.update(sizes={}),
        lambda header, record, rows: header.update(first="a"),
        lambda header, record, rows: header.update(last="x"),
        lambda header, record, rows: record.update(proposals=-1),
        lambda header, record, rows: record.update(proposals=1),
        lambda header, record, rows: record.update(proposals=31),
        lambda header, record, rows: rows[0].pop("score"),
        lambda header, record, rows: rows[0].update(segment=[1, 2, 3, 4]),
        lambda header, record, rows: rows[0].update(segment=["1", 2]),
        lambda header, record, rows: rows[0].update(score=float("nan")),
    ],
    ids=[
        *("settings", "videos", "first", "sizes", "begin", "last", "proposals", "fewer", "more"),
        *("score", "segment", "text", "nan"),
    ],
)
def test_parts_of_other_programs_with_odd_values_are_one_line(tmp_path, change):
    pytest.importorskip("pyarrow")
    sealed(tmp_path / "parts", change)
    for name in ("merged.json", "merged.parquet"):
        with pytest.raises(InputError, match=r"part-000-of-001-0000.jsonl .*expected a whole part"):
            merge(tmp_path / "parts", tmp_path / name)
        assert not (tmp_path / name).exists()


def test_parquet_parts_of_other_programs_with_odd_values_are_one_line(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    changes = {
        "nan": ("score", [float("nan")] * 30),
        "text": ("score", ["x"] * 30),
        "lists": ("score", [[1.0]] * 30),
        "huge": ("score", [1e31] * 30),
        "order": ("end", [-1.0] * 30),
        "other": ("video", ["v2"] * 30),
        "null": ("video", [None, *["v1"] * 29]),
        "unlabelled": ("label", [None, *["x"] * 29]),
        "long": ("label", ["x" * 1_000_000] * 30),
        "number": ("label", [1] * 30),
    }
    for name, (column, values) in changes.items():
        write(tmp_path / name, ["v1"], part_format="parquet")
        (path,) = parts_in(tmp_path / name)
        table = pq.read_table(path)
        changed = table.set_column(table.column_names.index(column), column, pa.array(values))
        with pq.ParquetWriter(path, changed.schema, store_schema=False) as file:
            file.write_table(changed)
            file.add_key_value_metadata({k.decode(): v.decode() for k, v in table.schema.metadata.items()})
        with pytest.raises(InputError, match=f"{path.name} .*expected a whole part"):
            merge(tmp_path / name, tmp_path / "merged.json")


def test_names_that_parquet_does_not_have_are_one_line(tmp_path):
    pytest.importorskip("pyarrow")
    parts = writer(tmp_path / "parts")
    parts.add("caf\udce9", *proposals("x", 2))
    parts.commit()
    parts.close()
    with pytest.raises(InputError, match=r"is not UTF-8, which Parquet requires; merge to a .json file"):
        merge(tmp_path / "parts", tmp_path / "merged.parquet")
    assert merge(tmp_path / "parts", tmp_path / "merged.json").videos == 1
