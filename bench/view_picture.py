"""The picture of a page in README and docs: the page of the demo, in a headless browser, light.

    python bench/view_picture.py PAGE.html OUTPUT.png [--video ID] [--time SECONDS] [--width N] [--height N] [--dark]

PAGE.html is that of the demo, `bcnet_demo/page.html`, with its videos beside it. Needs Playwright and Chromium (or the
browser CHROMIUM names).
"""

from __future__ import annotations

from pathlib import Path

from support import browser as browsers

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import BackendError, InputError
from bcnet_fast.storage.files import require_file
from bcnet_fast.storage.output import require_writable

_READY = "(() => { const v = document.querySelector('video'); return !v || (v.readyState >= 2 && !v.seeking); })()"
_LONGEST_MS = 5000


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("page", metavar="PAGE.html")
    parser.add_argument("output", metavar="OUTPUT.png")
    parser.add_argument("--video", default="demo_0003", metavar="ID", help="the video (default: %(default)s)")
    parser.add_argument("--time", type=float, default=38.6, metavar="S", help="seconds (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1440, metavar="N", help="pixels (default: %(default)s)")
    parser.add_argument("--height", type=int, default=900, metavar="N", help="pixels (default: %(default)s)")
    parser.add_argument("--dark", action="store_true", help="the dark theme")
    args = parser.parse_args(argv)
    page_file = require_file(args.page, "a page of view or infer --page")
    require_writable(args.output)
    reason = browsers.reason_against()
    if reason:
        raise BackendError(reason)
    size = {"width": args.width, "height": args.height}
    with browsers.launched() as browser:
        page = browser.new_page(viewport=size, color_scheme="dark" if args.dark else "light")
        page.goto(Path(page_file).resolve().as_uri())
        page.wait_for_selector("#rows-list .row, #bars-box")
        known = page.evaluate("app.data.videos.map(video => video.id)")
        if args.video not in known:
            raise InputError(f"--video is {args.video!r}, expected one of {', '.join(known[:8])}")
        page.evaluate(f"app.open(app.data.videos[{known.index(args.video)}]); app.player.seek({args.time})")
        waited = 0
        while not page.evaluate(_READY) and waited < _LONGEST_MS:
            page.wait_for_timeout(100)
            waited += 100
        # The picture of the video is drawn after the player says that it has it.
        page.wait_for_timeout(500)
        page.screenshot(path=args.output)
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    run(main)
