"""A real browser for the tests of the pages: headless Chromium, driven by selenium."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WANTED = "no Chromium with its chromedriver is on this machine: make test-browser says how to get them"
EXPECTED = ("400", "401", "403", "404", "413", "422", "429", "503")  # statuses that a test provokes: the console notes each of them


def programs() -> tuple[str, str]:
    """Where Chromium and chromedriver are; skips the test where one of them is not."""
    pytest.importorskip("selenium", reason="selenium is not installed: make dev")
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    folder = os.environ.get("CHROMEWEBDRIVER", "")
    driver = shutil.which("chromedriver") or (shutil.which("chromedriver", path=folder) if folder else None)
    if not (browser and driver):
        pytest.skip(WANTED)
    return browser, driver


def need_programs() -> None:
    """Ends a program, which is no test, where one of them is not there."""
    try:
        programs()
    except pytest.skip.Exception as error:
        raise SystemExit(str(error)) from None


@contextlib.contextmanager
def chromium(*more: str) -> Iterator[Browser]:
    """A browser that was just started, with more flags than the usual ones."""
    binary, driver = programs()
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb", *more):
        options.add_argument(flag)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # it refuses to run as root with one
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    """What a person does at a page, and what can be seen of it. Elements are named by CSS selectors."""

    def __init__(self, driver: Any):
        self.driver = driver
        self.injected: list[str] = []
        self.own: set[str] = set()  # the hosts of the pages that were opened
        self.asked: set[str] = set()  # the hosts that they asked

    def open(self, address: str, width: int = 1280, height: int = 800, fresh: bool = True, **media: str) -> None:
        """A page in a window of this size, as a newcomer sees it unless it is not to be fresh."""
        self.width = width
        device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.cdp("Emulation.setDeviceMetricsOverride", **device)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.cdp("Emulation.setEmulatedMedia", features=features)
        self.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite"])
        if fresh:  # another server may have had this port; what a tab keeps goes with the address
            self.cdp("Storage.clearDataForOrigin", origin=address, storageTypes="all")
        self.requests(), self.complaints()  # those of the page before
        self.own.add(urlsplit(address).netloc)
        self.driver.get(address)

    def cdp(self, command: str, **values: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, values)

    def before(self, script: str) -> None:
        """Runs a script before those of the pages that are opened from now on, until `forget`."""
        self.injected.append(self.cdp("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"])

    def forget(self) -> None:
        while self.injected:
            self.cdp("Page.removeScriptToEvaluateOnNewDocument", identifier=self.injected.pop())

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    # ---- seeing

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """The text of all such elements as it is in the page, spaces and all."""
        return self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent).join('')", selector)

    def visible(self, selector: str) -> bool:
        return any(element.is_displayed() for element in self.all(selector))

    def wait(self, condition: str | Callable[[], Any], seconds: float = 15) -> None:
        """Waits until an element is to be seen, or something holds."""
        holds = condition if callable(condition) else lambda: self.visible(condition)
        t0 = time.monotonic()
        while not holds():
            assert time.monotonic() - t0 < seconds, f"waited for {condition}: {self.text('#model, #notice, #turns')!r:.600} {self.complaints()}"
            time.sleep(0.02)

    # ---- doing

    def click(self, target: Any) -> None:
        """Clicks; what the bar on top hides is scrolled into sight first, as a person would."""
        from selenium.common.exceptions import ElementClickInterceptedException

        element = self.one(target) if isinstance(target, str) else target
        try:
            element.click()
        except ElementClickInterceptedException:
            self.js("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()

    def tap(self, element: Any) -> None:
        """With a finger."""
        box = self.js("arguments[0].scrollIntoView({block: 'center'}); return arguments[0].getBoundingClientRect()", element)
        point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        self.cdp("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
        self.cdp("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def hover(self, element: Any) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, 20).move_to_element(element).perform()

    def press(self, *keys: str) -> None:
        """Keys, wherever the focus is: `ENTER`, `ARROW_RIGHT`, `CONTROL+ENTER`, or text."""
        from selenium.webdriver import ActionChains, Keys

        for key in keys:
            chain = ActionChains(self.driver, 0)
            *held, last = [getattr(Keys, part, part) for part in key.split("+")] if len(key) > 1 else [key]
            for each in held:
                chain.key_down(each)
            chain.send_keys(last)
            for each in held:
                chain.key_up(each)
            chain.perform()

    def fill(self, selector: str, text: str) -> None:
        """Types a text in place of what is there."""
        from selenium.webdriver import Keys

        self.one(selector).send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE)
        self.one(selector).send_keys(text)

    # ---- what the browser noted

    def complaints(self) -> list[str]:
        """Errors on the console since the last look, but for the statuses that tests provoke."""
        noted = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        return [text for text in noted if not any(f"status of {status}" in text for status in EXPECTED)]

    def requests(self) -> list[dict]:
        """The requests that were sent since the last look: url, method, headers, postData."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"]["request"] for event in events if event["method"] == "Network.requestWillBeSent"]
        sent = [each for each in sent if not each["url"].startswith(("about:", "data:", "blob:", "chrome"))]
        self.asked |= {urlsplit(each["url"]).netloc for each in sent}
        return sent

    def leave(self) -> None:
        """Away from the page, which must have behaved: no error on its console, and nobody asked but its own server."""
        noted = self.complaints()
        self.driver.get("about:blank")  # so that it asks no more, and what it asked until now is none of the next page's
        self.requests()
        strangers = self.asked - self.own
        self.forget()
        self.own, self.asked = set(), set()
        assert not noted and not strangers, f"on the console: {noted}; asked as well: {strangers}"
