"""Takes the pictures of the playground: `python docs/take_screenshots.py`, which writes docs/playground.png and docs/playground-phone.png.

It serves a checkpoint (the newest, or `--checkpoint`), writes a text with it in a headless Chromium, makes a branch, and points at
a word: what the pictures show is what the model wrote. `make test-browser` says how to get Chromium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import multimodal.fusion  # noqa: E402, F401  the checkpoint may be of a model that sees and hears
from config import ServeConfig  # noqa: E402
from inference.host import Host  # noqa: E402
from tests.browser import Browser, chromium, need_programs  # noqa: E402
from tests.live import serving  # noqa: E402

MOST_BYTES = 300_000
PROMPT = "There was once"
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
UNSURE = """
    const likely = (e) => e.parentElement.view.writing.tokens[e.parentElement.view.writing.spans[e.index].first];
    const words = [...document.querySelectorAll(".model .t")].filter((e) => / ?[a-z]{3,}/.test(e.textContent));
    const shares = words.map((e) => likely(e).top.map((each) => Math.exp(each.logprob)));
    const spread = (share) => share.filter((each) => each > 0.04).length;
    const aside = (e) => innerWidth < 500 || e.getBoundingClientRect().left > 0.58 * innerWidth; // its card hides little there
    const best = words.map((e, n) => n).filter((n) => n > 4 && aside(words[n])).sort((a, b) => spread(shares[b]) - spread(shares[a]));
    return best.slice(0, 3).map((n) => words[n]);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--checkpoint", default=str(ROOT / ServeConfig().checkpoint), help="what writes the text")
    parser.add_argument("--seed", type=int, default=4, help="of the text")
    given = parser.parse_args()
    need_programs()
    host = Host(given.checkpoint, "cpu", "float32", slots=2)
    host.load()
    with tempfile.TemporaryDirectory() as folder, serving(host, Path(folder), api_keys=()) as address, chromium() as page:
        page.open(address, **WIDE, prefers_color_scheme="light")
        story(page, given.seed)
        page.hover(unsure(page))
        shoot(page, "playground.png", **WIDE)
        page.open(address, **PHONE, fresh=False, prefers_color_scheme="dark")
        story(page, given.seed + 1)
        page.js("scrollTo(0, 150)")
        page.tap(unsure(page))
        shoot(page, "playground-phone.png", **PHONE)
    host.drain(1)


def story(page: Browser, seed: int) -> None:
    """A text of some lines, with a second branch."""
    page.wait("#write:enabled")
    page.wait(lambda: "parameters" in page.text("#model"))
    for name, value in (("max_new_tokens", 200), ("seed", seed)):
        page.js("const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))", f"set-{name}", value)
    page.fill("#prompt", PROMPT)
    page.press("CONTROL+ENTER")
    page.wait(".actions", 60)
    page.click(unsure(page))
    page.click(page.all(".alternative:not([disabled])")[0])
    page.wait(lambda: len(page.all(".branches .chip")) == 2 and page.visible(".actions"), 60)


def unsure(page: Browser):
    """A word where the model could have gone several ways."""
    return page.js(UNSURE)[0]


def shoot(page: Browser, name: str, width: int, height: int) -> None:
    """One picture, in twice the points if that is not too many bytes."""
    page.wait("#inspector")
    device = {"width": width, "height": height, "mobile": width < 500}
    for scale in (2, 1.5, 1):
        page.cdp("Emulation.setDeviceMetricsOverride", **device, deviceScaleFactor=scale)
        page.wait("#inspector")
        (ROOT / "docs" / name).write_bytes(page.driver.get_screenshot_as_png())
        size = (ROOT / "docs" / name).stat().st_size
        if size < MOST_BYTES:
            break
    print(f"wrote docs/{name}: {size / 1000:.0f} KB at {scale} times {width} by {height}")


if __name__ == "__main__":
    main()
