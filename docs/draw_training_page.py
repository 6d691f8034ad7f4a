"""Makes docs/training-page.png: trains three small runs, and takes the picture of their page while the last is in progress.

    python docs/draw_training_page.py

It takes about four minutes, and needs Chromium with its driver, as the tests of the pages do.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import chromium, need_programs  # noqa: E402

FILE = ROOT / "docs" / "training-page.png"
SIZE = {"width": 1280, "height": 1330}
SECONDS = 60  # of a run
SHOWN = 0.8  # of the last run, when the picture is taken
SMALL = "--preset quick --n_layer 2 --n_embd 64 --block_size 64 --no-progress".split()
RUNS = {
    "adamw": ["--optimizer", "adamw"],
    "muon": [],
    "muon-wide": ["--n_embd", "128"],
}


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "train_cli.py"), *words]


def train(folder: Path, name: str) -> subprocess.Popen:
    """Starts a run whose files are in `folder`."""
    places = ["--out_dir", str(folder / "checkpoints"), "--log_dir", str(folder / "logs"), "--run", name]
    return subprocess.Popen(command(*SMALL, "--time", f"{SECONDS}s", *RUNS[name], *places), stdout=subprocess.DEVNULL)


def main() -> None:
    need_programs()
    *before, last = RUNS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in before:
            if train(folder, name).wait():
                raise SystemExit(f"the run {name} failed")
        running = train(folder, last)
        watching = subprocess.Popen(command("watch", "--port", "0", "--log_dir", str(folder / "logs")), stdout=subprocess.PIPE, text=True)
        try:
            address = watching.stdout.readline().split("/training")[0]
            wait_for_share(f"{address}/training/runs/{last}", SHOWN, running)
            take(f"{address}/training#{','.join(RUNS)}")
        finally:
            watching.terminate()
            running.wait()
    print(f"wrote {FILE.relative_to(ROOT)}, {FILE.stat().st_size / 1024:.0f} KiB")


def wait_for_share(url: str, share: float, running: subprocess.Popen) -> None:
    """Waits until a run is that far."""
    while (answer := httpx.get(url)).status_code == 404 or answer.json()["progress"] < share:
        if running.poll() is not None:
            raise SystemExit(f"the last run ended with {running.returncode} before it came to {100 * share:.0f} %")
        time.sleep(0.5)


def take(url: str) -> None:
    with chromium() as browser:
        browser.open(url, **SIZE, fresh=False, prefers_color_scheme="light")
        browser.wait(lambda: len(browser.all("#cards .run")) == len(RUNS))
        time.sleep(1)
        browser.driver.save_screenshot(str(FILE))


if __name__ == "__main__":
    main()
