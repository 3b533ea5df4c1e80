"""The paper's Tables 1 to 4 row by row: published figures, existing result files, and our evaluator's figures for them.

    python bench/scoreboard.py [--files DIR]           writes docs/scoreboard.md
    python bench/scoreboard.py --check                 changes nothing; exit code 1 when the page without files differs

The published figures are in bench/scoreboard.toml. DIR has what you downloaded, by these names and with any suffix:

    thumos14, activitynet13            ground truth of the two data sets (any format of `evaluate --ground-truth`)
    thumos14_info, activitynet13_info  lengths and frame rates of videos, if a result file has times in frames
    table1/ to table4/                 results by the system's name on the page, in lower case without spaces:
                                       table2/turn.txt, table4/rtd-net.json, or a folder of CSV files by video;
                                       table2/turn@0.3.txt is used at tIoU 0.3 only

Exit code 1: a file could not be used; the others are in the page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation.run import EvaluateOptions, Evaluation, evaluate
from bcnet_fast.storage.files import read_toml
from bcnet_fast.storage.output import atomic_text

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().with_suffix(".toml")
PAGE = ROOT / "docs" / "scoreboard.md"
NO_FILE = "no file"
ACTIVITYNET_TIOU = "0.5:0.05:0.95"

HEAD = """---
hide: [toc]
---

# Scoreboard

Tables 1 to 4 of the paper, row by row: what it prints, whether a result file is public, and what
[`evaluate`](commands/evaluate.md) gives for that file. Figures are percent; "-" is not printed.

The published figures are those of [the paper]({url}):
{source}.
"Public results" is what we know: files of repositories were looked through, links to drives were not followed. The last
column is computed from files that you have, by one script. `--help` says how to name them:

```console
$ python bench/scoreboard.py --files downloads/
```

{files} Rows with th14 have the metric of the THUMOS'14 toolkit
(`--protocol th14`), which systems before 2019 report.
"""


def key_of(system: str) -> str:
    """Name of a system's file: `rtd-net`, `singhetal`."""
    return re.sub(r"[^a-z0-9+-]", "", system.lower())


def find(folder: Path | None, stem: str) -> Path | None:
    """The file or folder of that name with any suffix. InputError: there are several."""
    if folder is None or not folder.is_dir():
        return None
    found = sorted(path for path in folder.iterdir() if path.name == stem or path.name.startswith(f"{stem}."))
    if len(found) > 1:
        raise InputError(f"{folder} has {', '.join(path.name for path in found)}, expected one of them")
    return found[0] if found else None


def scored(files: Path, table: dict[str, Any], row: dict[str, str], path: Path, tiou: str | None) -> Evaluation:
    truth = find(files, table["data"])
    if truth is None:
        raise InputError(f"{files} has no ground truth {table['data']}, expected {table['data']}.json or .csv")
    info = find(files, f"{table['data']}_info")
    return evaluate(
        EvaluateOptions(
            proposals=str(path),
            ground_truth=str(truth),
            metric=table["data"],
            protocol=row.get("protocol", "default"),
            tiou=tiou,
            video_info=str(info) if info else None,
        )
    )


def measured(evaluation: Evaluation, measure: str) -> str:
    """A measure of a table, in percent with two decimals: AR@100, AUC, mAP@0.5 or mAP, the mean over the thresholds."""
    name, _, at = measure.partition("@")
    if name == "AR":
        return f"{100 * evaluation.recall.at(float(at)):.2f}"
    if name == "AUC":
        return f"{evaluation.recall.auc:.2f}"
    precision = evaluation.precision
    if precision is None:
        raise InputError(f"{evaluation.options.proposals} has no labels, expected detections")
    if not at:
        return f"{100 * precision.average:.2f}"
    place = next(i for i, tiou in enumerate(precision.tiou_thresholds) if abs(tiou - float(at)) < 1e-9)
    return f"{100 * precision.mean[place]:.2f}"


def ours(files: Path | None, table: dict[str, Any], row: dict[str, str]) -> str:
    """Our evaluator's figures for the files of a row. InputError: one of them cannot be used."""
    folder, key = files and files / f"table{table['number']}", key_of(row["system"])
    whole = find(folder, key)
    tiou = ACTIVITYNET_TIOU if table["number"] == 4 else None
    everything = scored(files, table, row, whole, tiou) if files and whole else None
    cells = []
    for measure in table["measures"]:
        at = measure.partition("@")[2]
        single = find(folder, f"{key}@{at}") if measure.startswith("mAP@") else None
        if files and single:
            cells.append(measured(scored(files, table, row, single, at), measure))
        else:
            cells.append(measured(everything, measure) if everything else "-")
    return NO_FILE if set(cells) == {"-"} else " / ".join(cells)


def section(files: Path | None, table: dict[str, Any], results: dict[str, str]) -> tuple[str, list[str]]:
    """A table of the page, and the errors of files."""
    measures = " / ".join(table["measures"])
    lines = [f"## Table {table['number']}: {table['title']}", ""]
    lines += [f"| system | published: {measures} | public results | ours |", "| --- | --- | --- | --- |"]
    wrong = []
    for row in table["rows"]:
        try:
            found = ours(files, table, row)
        except InputError as error:
            wrong.append(f"Table {table['number']}, {row['system']}: {error}")
            found = "the file cannot be used"
        facts = [row[fact] for fact in ("features", "protocol") if fact in row]
        name = row["system"] + (f" ({', '.join(facts)})" if facts else "")
        published = " / ".join(row["published"].split())
        lines.append(f"| {name} | {published} | {results.get(row['system'], 'unknown')} | {found} |")
    return "\n".join(lines) + "\n", wrong


def page(files: Path | None) -> tuple[str, list[str]]:
    """The page, and the errors of files. InputError: `files` is no folder."""
    if files is not None and not files.is_dir():
        raise InputError(f"{files} is no folder, expected the downloaded files, see --help")
    content = read_toml(DATA)
    note = "This page was made without files."
    if files is not None:
        truths = [path.name for data in ("thumos14", "activitynet13") if (path := find(files, data))]
        note = f"This page was made from files, with the ground truth {' and '.join(truths) or '(none)'}."
    parts = [HEAD.format(source=content["source"], url=content["url"], files=note)]
    wrong: list[str] = []
    for table in content["tables"]:
        text, of_table = section(files, table, content["results"])
        parts.append(text)
        wrong += of_table
    return "\n".join(parts), wrong


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--files", metavar="DIR", type=Path, help="what you downloaded (default: none)")
    parser.add_argument("--output", metavar="FILE", type=Path, default=PAGE, help="the page")
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args(argv)
    text, wrong = page(options.files)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if options.check:
        return int(not options.output.is_file() or options.output.read_text(encoding="utf-8") != text)
    with atomic_text(options.output) as file:
        file.write(text)
    print(f"{options.output} written")
    return int(bool(wrong))


if __name__ == "__main__":
    run(main)
