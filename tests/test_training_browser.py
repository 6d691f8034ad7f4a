"""The page of training in a real browser: curves, choosing, reading values, a run that grows; on a desk and on a phone."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
import uvicorn

from config import ServeConfig
from server import watch
from tests.browser import Browser, chromium
from tests.live import KEY, wait_until
from tests.logbook import Logbook, loss_at
from training.compare import cells
from training.history import Run

pytestmark = pytest.mark.browser
EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script> & <b>bold</b>'
NAMES = ("first", "second", "third")


def serve(log_dir: Path, **settings):
    """The page of a folder of logs at a free port; gives its address, and a function that ends it."""
    app = watch.create(ServeConfig(log_dir=str(log_dir), **settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)

    def end() -> None:
        server.should_exit = True
        thread.join(10)

    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", end


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """Three runs; the newest is in progress, and a long one has more steps than a curve has points."""
    folder = tmp_path_factory.mktemp("logs")
    first = Logbook(folder, "first", ago=9000, max_iters=3000).start().steps(0, 3000)
    first.evaluation(1500, 0.9).evaluation(3000, 0.8).end(bpb=0.81)
    second = Logbook(folder, "second", ago=5000, learning_rate=5e-4).start().steps(0, 60).evaluation(50, 1.1)
    second.end("SIGINT")
    third = Logbook(folder, "third", ago=250).start().steps(0, 20)
    third.now += 200  # an evaluation so long that ten minutes of silence are no wonder
    third.evaluation(20, 1.3).steps(20, 50).evaluation(40, 1.2)
    third.sample(20, "the older sample").sample(40, EVIL).checkpoint(40, "best_model.pt")
    return folder


@pytest.fixture(scope="module")
def window():
    with chromium() as window:
        yield window


@pytest.fixture
def browser(window) -> Browser:
    """At the end the pages must have behaved."""
    yield window
    window.leave()


@pytest.fixture(params=[1280, 360], ids=["desk", "phone"])
def page(request, browser, logs) -> Browser:
    """The page, fresh, with the newest run's curves."""
    url, end = serve(logs)
    try:
        browser.open(f"{url}/training", width=request.param, height=900)
        browser.wait("#cards .run")
        yield browser
        fits(browser)
    finally:
        browser.leave()
        end()


def fits(page: Browser) -> None:
    assert page.js("return document.documentElement.scrollWidth") <= page.width  # a phone's innerWidth would give way


def texts(page: Browser, selector: str) -> list[str]:
    """The texts of such elements as they are to be seen, all of one instant: a live page may have others the next moment."""
    script = "return [...document.querySelectorAll(arguments[0])].filter((each) => each.checkVisibility()).map((each) => each.innerText)"
    return page.js(script, selector)


def text(page: Browser, selector: str) -> str:
    return "\n".join(texts(page, selector))


def chosen(page: Browser) -> list[str]:
    """Whose curves the first chart shows."""
    return texts(page, ".chart:first-child .legend .name")


def click_run(page: Browser, name: str) -> None:
    page.click(f'tr[data-name="{name}"] label')


def choose_all(page: Browser) -> None:
    for name in set(NAMES) - set(chosen(page)):
        click_run(page, name)
    page.wait(lambda: set(chosen(page)) == set(NAMES))


def colours_of(page: Browser, chart: int) -> int:
    """How many pixels of a chart are in the colours of runs: in greys red, green and blue are much the same."""
    return page.js(
        """
        const canvas = document.querySelectorAll(".chart canvas")[arguments[0]];
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let found = 0;
        for (let k = 0; k < pixels.length; k += 4) {
          const [r, g, b, a] = pixels.slice(k, k + 4);
          if (a > 200 && Math.max(r, g, b) - Math.min(r, g, b) > 60) found += 1;
        }
        return found;
        """,
        chart,
    )


def look_away(page: Browser, away: bool = True) -> None:
    """The tab is hidden, so the page asks and draws no more by itself; or it is there again."""
    hide = "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true});"
    page.js(hide + "document.dispatchEvent(new Event('visibilitychange'))", away)
    time.sleep(0.3)  # what was under way arrives


def first_paint(page: Browser) -> float:
    """Seconds from the beginning of the navigation to the first content on the screen."""
    name = "return performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"
    page.wait(lambda: page.js(name))
    return page.js(name)[0] / 1000


def picture(page: Browser, chart: int = 0) -> str:
    return page.js('return document.querySelectorAll(".chart canvas")[arguments[0]].toDataURL()', chart)


def point_at(page: Browser, share: float, chart: int = 0) -> None:
    """Moves the pointer to a place on a chart's axis, as a share of it."""
    page.js(
        """
        const canvas = document.querySelectorAll(".chart canvas")[arguments[0]];
        const box = canvas.getBoundingClientRect();
        const clientX = box.left + 52 + arguments[1] * (box.width - 64);
        canvas.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY: box.top + 50, bubbles: true }));
        """,
        chart,
        share,
    )


def test_the_newest_run_is_there_at_once_with_all_its_curves(page, logs):
    assert first_paint(page) < 1
    assert chosen(page) == ["third"]
    assert len(page.all(".chart canvas")) == 5
    for chart in range(5):
        page.wait(lambda chart=chart: colours_of(page, chart) > 40)


def test_the_list_is_what_compare_says(page, logs):
    for name in NAMES:
        run = Run(logs / name)
        run.refresh()
        shown = texts(page, f'tr[data-name="{name}"] td')
        wanted = cells(run) if len(shown) > 3 else [cells(run)[k] for k in (0, 1, -1)]  # a phone has room for three
        assert shown == wanted
    assert text(page, "#how-many") == "3 in all, 1 in progress"


def test_runs_are_chosen_side_by_side_and_stay_so(page):
    alone = picture(page)
    choose_all(page)
    page.wait(lambda: picture(page) != alone and len(page.all("#cards .run")) == 3)
    swatches = "return [...document.querySelectorAll('.chart:first-child .swatch')].map((each) => getComputedStyle(each).backgroundColor)"
    assert len(set(page.js(swatches))) == 3
    differing = [text.split()[0] for text in texts(page, "#plans tr.differs")]
    assert "budget" in differing and "learning" in differing and "seed" not in differing
    page.driver.refresh()
    page.wait(lambda: set(chosen(page)) == set(NAMES))
    click_run(page, "first")
    page.wait(lambda: "first" not in chosen(page) and len(page.all("#cards .run")) == 2)


def test_pointing_reads_the_values_of_all_runs_in_all_charts(page):
    click_run(page, "second")
    page.wait(lambda: len(chosen(page)) == 2)
    point_at(page, 20 / 59)
    page.wait(lambda: text(page, ".chart:first-child .place") == "step 20")
    assert texts(page, ".place") == ["step 20"] * 5
    values = {text.split()[0]: text for text in texts(page, ".chart:first-child li")}
    assert f"{loss_at(20):.4f}" in values["second"] and f"{loss_at(20):.4f}" in values["third"]
    assert "validation 2.6000" in values["third"]  # and the second was not evaluated yet
    assert "validation –" in values["second"]
    point_at(page, 55 / 59, chart=3)
    page.wait(lambda: text(page, ".chart:first-child .place") == "step 55")
    assert [text.split()[1:] for text in texts(page, ".chart:nth-child(4) li")] == [["–"], ["1,024"]]  # the third is not there yet


def test_the_keys_read_values_too_and_say_them(page):
    canvas = page.one(".chart canvas")
    page.js("arguments[0].focus()", canvas)
    page.press("HOME")
    page.wait(lambda: text(page, ".chart:first-child .place") == "step 0")
    told = page.js('return document.querySelector("#announce").textContent')
    assert "at step 0" in told and f"third training {loss_at(0):.4f}" in told
    assert "Loss: at step 0" in canvas.get_attribute("aria-label")
    page.press("END")
    page.wait(lambda: text(page, ".chart:first-child .place") == "step 49")


def test_the_switches_redraw_the_charts(page):
    before = picture(page)
    page.click('[data-axis="tokens"]')
    page.wait(lambda: picture(page) != before)
    point_at(page, 20 / 49)
    page.wait(lambda: text(page, ".chart:first-child .place") == "20.5 k tokens")
    page.click('[data-axis="time"]')
    point_at(page, 1)
    page.wait(lambda: text(page, ".chart:first-child .place") == "4 min 10 s")
    before = picture(page)
    page.click("#log")
    page.wait(lambda: picture(page) != before)
    before = picture(page)
    page.js("arguments[0].focus()", page.one("#smoothing"))
    page.press("END")
    page.wait(lambda: picture(page) != before and text(page, "#smoothed") == "100 %")


def test_light_and_dark(page):
    ground = "return getComputedStyle(document.body).backgroundColor"
    look_away(page)
    light, before = page.js(ground), picture(page)
    page.click("#theme-button")
    page.wait(lambda: page.js(ground) != light and picture(page) != before)
    page.driver.refresh()
    page.wait("#cards .run")
    assert page.js(ground) != light
    page.click("#theme-button")
    page.wait(lambda: page.js(ground) == light)


def test_the_numbers_are_there_as_tables(page):
    choose_all(page)
    page.click("#as-table")
    page.wait(lambda: len(texts(page, ".numbers table")) == 5 and not page.visible(".chart canvas"))
    first, bits = texts(page, ".numbers")[:2]
    assert f"{loss_at(0):.4f}" in first and re.search(r"third,\s+validation", first)
    rows = dict(re.findall(r"^step ([\d,]+)\t(.*)$", bits, re.M))
    assert {step: cells.split() for step, cells in rows.items()} == {
        "20": ["1.3000"], "40": ["1.2000"], "50": ["1.1000"], "1,500": ["0.9000"], "3,000": ["0.8000"]
    }  # fmt: skip
    page.click("#as-table")
    page.wait(".chart canvas")


def test_samples_are_the_newest_first_and_only_text(page):
    assert texts(page, ".samples .text") == [EVIL, "the older sample"]
    assert "step 40" in texts(page, ".samples .when")[0]
    assert page.driver.title.endswith("Your own GPT")
    assert not page.all(".samples img") and not page.all(".samples b")
    assert re.search(r"best_model.pt\s+step 40", text(page, ".run dl"))


def test_a_run_in_progress_grows_by_itself(page, logs):
    book = Logbook(logs, "growing", ago=1500, max_iters=2000).start().steps(0, 1503).sample(5, "a first try")
    page.wait(lambda: page.all('tr[data-name="growing"]'))
    click_run(page, "third")
    click_run(page, "growing")
    page.wait(lambda: chosen(page) == ["growing"] and "75 %" in text(page, ".run"))
    before = picture(page)
    book.steps(1503, 1600).evaluation(1600, 0.9).sample(1600, "a second try")
    page.wait(lambda: picture(page) != before and "79 %" in text(page, ".run"))
    assert f"{(loss_at(1598) + loss_at(1599)) / 2:.4f}" in text(page, ".chart:first-child .legend")  # two steps a point
    assert texts(page, ".samples .text") == ["a second try", "a first try"]
    assert "about 7 min left" in text(page, ".run")
    before = picture(page)
    page.driver.refresh()  # what came piece by piece is what comes at once
    page.wait(lambda: chosen(page) == ["growing"] and picture(page) == before)
    book.steps(1600, 1601).end("out of patience", bpb=0.5)
    page.wait(lambda: page.all('tr[data-name="growing"][data-state="ended"]'))
    assert "out of patience" in text(page, ".run") and "0.5000" in text(page, 'tr[data-name="growing"]')
    book.path.unlink()
    page.wait(lambda: not page.all('tr[data-name="growing"]') and not page.all(".run"))


def test_nothing_is_asked_while_nobody_looks(page):
    look_away(page)
    page.requests()
    time.sleep(2)
    assert page.requests() == []
    look_away(page, False)
    page.wait(page.requests)


@pytest.mark.parametrize("width", [1280, 360])
def test_a_server_with_keys_is_given_one(browser, logs, width):
    url, end = serve(logs, api_keys=(KEY,))
    try:
        browser.open(f"{url}/training", width=width, height=900)
        browser.wait("#key")
        assert not browser.all(".run")
        browser.click("#account-close")
        browser.wait(lambda: "asks who you are" in text(browser, "#trouble"))
        browser.click("#account-button")
        for key, then in (("wrong", lambda: "not known" in text(browser, "#account-error")), (KEY, ".run")):
            browser.fill("#key", key)
            browser.press("ENTER")
            browser.wait(then)
        assert not browser.visible("#account") and not browser.visible("#trouble")
        browser.driver.refresh()
        browser.wait(".run")
        fits(browser)
    finally:
        browser.leave()
        end()


@pytest.mark.parametrize("width", [1280, 360])
def test_no_runs_and_no_server_are_said(browser, tmp_path, width):
    url, end = serve(tmp_path)
    try:
        browser.open(f"{url}/training", width=width, height=900)
        browser.wait(lambda: "--preset quick" in text(browser, "#no-runs"))
        assert not browser.visible("#to-playground")
        fits(browser)
    finally:
        end()
    assert browser.complaints() == []
    browser.wait(lambda: "does not answer" in text(browser, "#trouble"))
    assert all("ERR_CONNECTION" in noted or "Failed to fetch" in noted for noted in browser.complaints())
