"""Pages of result files in a headless browser: their size, and how long a person waits.

    python bench/view.py [--json FILE] [--repeats N]      needs Playwright and Chromium (or the browser CHROMIUM names)

| figure | meaning |
| --- | --- |
| page_mb | size of the page, without videos |
| write_s | reading the result file and writing the page |
| interactive_s | from opening the file, in a fresh profile, until the first picture is drawn and a click is answered |
| slider_ms | a move of the confidence slider: counts of all videos, table, timeline drawn again |
| tiou_ms | another tIoU: all true actions of all videos matched anew, and the same |
| video_ms | another video: list, table, timeline |

Times are medians of the repeats, on the clock of the page. The rate is that of a large float32 product, before and
after.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from support import browser as browsers
from support.environment import begin
from support.floors import cpu_tflops
from support.seeded_results import write_results
from support.tables import print_table

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import BackendError, InputError
from bcnet_fast.results.view import ViewOptions, view
from bcnet_fast.storage.output import write_json

# Videos, and proposals in each.
SIZES = ((300, 200), (500, 200), (1, 100_000))
LABELS = ("run", "jump", "dive")
# The next task that starts after a frame was drawn.
_DRAWN = "await new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
_TIMED = f"async () => {{ const began = performance.now(); ACTION; {_DRAWN}; return performance.now() - began; }}"
_ACTIONS = {
    "slider_ms": "const s = document.getElementById('threshold'); s.value = (Number(s.min) + Number(s.max)) * SHARE; "
    "s.dispatchEvent(new Event('input'))",
    "tiou_ms": "const s = document.getElementById('tiou'); s.value = 0.2 + 0.6 * SHARE; "
    "s.dispatchEvent(new Event('input'))",
    "video_ms": "app.open(app.data.videos[Math.floor(SHARE * app.data.videos.length)])",
}


def measure(browser: Any, page_file: Path, repeats: int) -> dict[str, float]:
    found: dict[str, list[float]] = {"interactive_s": [], **{name: [] for name in _ACTIONS}}
    for repeat in range(repeats):
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.goto(page_file.as_uri())
        found["interactive_s"].append(page.evaluate(f"async () => {{ {_DRAWN}; return performance.now() / 1e3; }}"))
        page.select_option("#best", "all")
        for name, action in _ACTIONS.items():
            share = f"{(repeat + 1) / (repeats + 1)}"
            found[name].append(page.evaluate(_TIMED.replace("ACTION", action).replace("SHARE", share)))
        context.close()
    return {name: statistics.median(values) for name, values in found.items()}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="fresh profiles (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise InputError(f"--repeats {args.repeats}: expected a number above 0")
    reason = browsers.reason_against()
    if reason:
        raise BackendError(reason)
    facts = begin(1, [args.json])
    rates = [1e3 * cpu_tflops("fp32")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, browsers.launched() as browser:
        facts["browser"] = f"Chromium {browser.version}"
        for videos, proposals in SIZES:
            results = write_results(Path(folder) / f"{videos}.json", videos, proposals, labels=LABELS)
            page_file = results.with_suffix(".html")
            began = time.perf_counter()
            report = view(ViewOptions(str(results), str(page_file), ground_truth=f"{folder}/truth.json"))
            row = {"videos": videos, "proposals": report.proposals, "page_mb": report.size / 1e6}
            row["write_s"] = time.perf_counter() - began
            rows.append(row | measure(browser, page_file, args.repeats))
            print(f"{videos} videos: {rows[-1]}", flush=True)
    rates.append(1e3 * cpu_tflops("fp32"))
    print(f"{facts['browser']}; float32 products: {rates[0]:.0f} GFLOP/s before, {rates[1]:.0f} after")
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    if args.json:
        write_json(args.json, {"environment": facts, "rate_gflops": rates, "rows": rows}, indent=1)
        print(f"written: {args.json}")
    return 0


if __name__ == "__main__":
    run(main)
