"""Pictures and sounds in the playground, in a real browser: dropped, chosen, recorded, taken out again, sent and asked about.

The model was never trained, so what it says is noise; but the same noise that the API says to the same files.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from multimodal.embedded import DESCRIBE, TRANSCRIBE
from tests import sights
from tests.browser import Browser, chromium
from tests.live import load, save, serving

pytestmark = pytest.mark.browser
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
both = pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
SENTENCES = {"max_new_tokens": 12, "temperature": 0}
DROP = """
    const [name, type, base64, kind] = arguments;
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const moved = new DataTransfer();
    moved.items.add(new File([bytes], name, {type}));
    const event = kind === "paste" ? new ClipboardEvent(kind, {clipboardData: moved, bubbles: true, cancelable: true})
        : new DragEvent(kind, {dataTransfer: moved, bubbles: true, cancelable: true});
    document.querySelector("#prompt").dispatchEvent(event);
    return event.defaultPrevented;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(*MICROPHONE) as browser:
        yield browser


@pytest.fixture(scope="module")
def host(browser, tmp_path_factory):
    host = load(sights.checkpoint(tmp_path_factory.mktemp("run"), block_size=320, audio_seconds=4.0))
    yield host
    host.drain(1)


@pytest.fixture
def address(host, tmp_path) -> Iterator[str]:
    with serving(host, tmp_path, api_keys=()) as address:
        yield address


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "red.png").write_bytes(sights.picture("red"))
    (folder / "blue.png").write_bytes(sights.picture("blue"))
    (folder / "tone.wav").write_bytes(sights.sound())
    (folder / "long.wav").write_bytes(sights.sound(5))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.pdf").write_bytes(b"%PDF-1.4")
    return folder


@pytest.fixture
def page(browser, address) -> Iterator[Callable[..., Browser]]:
    """Opens the playground where it converses, for short answers without chance. In the end nothing must have gone wrong unseen."""

    def start(size: dict = DESK, of: str = address, mode: str = "chat", **more) -> Browser:
        browser.open(of, **size, **more)
        browser.wait(lambda: "parameters" in browser.text("#model") and browser.visible("#write:enabled"))
        browser.click(f"[data-mode={mode}]")
        for name, value in SENTENCES.items():
            browser.js("const e = document.getElementById(arguments[0]); e.value = arguments[1]", f"set-{name}", str(value))
        return browser

    yield start
    browser.leave()


def drop(page: Browser, path: Path, how: str = "drop") -> bool:
    """Lets a file fall on the page; whether the page took it off the browser's hands."""
    kinds = {".png": "image/png", ".wav": "audio/wav", ".pdf": "application/pdf"}
    return page.js(DROP, path.name, kinds[path.suffix], base64.b64encode(path.read_bytes()).decode(), how)


def enter(page: Browser) -> None:
    """Sends what is there, by the keyboard."""
    page.js("document.querySelector('#prompt').focus()")  # which the page does itself where there is a mouse; this browser has none
    page.press("ENTER")


def shown(page: Browser, count: int) -> None:
    page.wait(lambda: len(page.all("#tray li")) == count)


def answered(page: Browser, turns: int = 1) -> None:
    page.wait(lambda: page.all("#stop[hidden]") and len(page.all(".actions")) == turns)


def sent(page: Browser) -> list[dict]:
    return [json.loads(each["postData"]) for each in page.requests() if each["url"].endswith("/v1/generate") and "postData" in each]


def say(address: str, *parts: dict) -> str:
    """What the API answers to these parts."""
    answer = httpx.post(f"{address}/v1/generate", json={"messages": [{"role": "user", "content": list(parts)}], **SENTENCES})
    assert answer.status_code == 200, answer.text
    return answer.json()["text"]


def no_sideways(page: Browser) -> None:
    assert page.js("return document.documentElement.scrollWidth") <= page.width, "it scrolls sideways"
    inside = "const r = arguments[0].getBoundingClientRect(); return r.left >= 0 && r.right <= innerWidth"
    for element in page.all("#composer button, #tray li"):
        assert not element.is_displayed() or page.js(inside, element), element.get_attribute("outerHTML")


@both
def test_a_picture_is_dropped_and_asked_about(page, address, files, size):
    page = page(size)
    assert "takes text, pictures and sounds" in page.text("#model")
    assert not page.visible("#chat-note"), "it was taught to answer"
    assert drop(page, files / "red.png", "dragover") and page.all("body.dropping")
    assert drop(page, files / "red.png") and not page.all("body.dropping")
    shown(page, 1)
    assert page.one("#tray img").get_attribute("alt") == "Picture: red.png"
    page.wait(lambda: page.js("return document.querySelector('#tray img').naturalWidth") == 40)
    assert page.one("#prompt").get_attribute("value") == DESCRIBE, "the usual question stands there"
    no_sideways(page)
    page.fill("#prompt", "what")
    enter(page)
    answered(page)
    assert not page.visible("#tray")
    assert page.text(".yours") == "what"
    page.wait(lambda: page.js("return document.querySelector('.yours img').naturalWidth") == 40)
    red = sights.image_url((files / "red.png").read_bytes())
    assert page.text(".model") == say(address, red, sights.text("what")) != say(address, sights.text("what"))
    first, kept = sent(page)
    assert first["messages"] == [{"role": "user", "content": [red, sights.text("what")]}]
    assert "session_id" not in first
    assert kept["messages"] == [{"role": "user", "content": "[picture] what"}] and kept["max_new_tokens"] == 0
    [turn] = httpx.get(f"{address}/v1/sessions/{kept['session_id']}").json()["turns"]
    assert (turn["prompt"], turn["text"]) == ("[picture] what", page.text(".model"))
    page.fill("#prompt", "and")
    enter(page)
    answered(page, 2)
    second, _ = sent(page)
    assert second["messages"][0]["content"][0] == red, "the model goes on seeing it"
    assert second["messages"][2] == {"role": "user", "content": "and"}
    no_sideways(page)


def test_files_are_chosen_and_taken_out_again(page, address, files):
    page = page()
    assert page.one("#attach").get_attribute("aria-label") == "Add a picture or a sound"
    assert page.one("#files").get_attribute("accept") == "image/*,audio/*"
    page.one("#files").send_keys(f"{files / 'red.png'}\n{files / 'tone.wav'}\n{files / 'blue.png'}")
    shown(page, 3)
    assert page.one("#prompt").get_attribute("value") == "", "the sound is the question"
    page.wait(lambda: page.js("return document.querySelector('#tray audio').duration") == pytest.approx(0.2, abs=0.01))
    names = [each.get_attribute("aria-label") for each in page.all("#tray .remove")]
    assert names == ["Remove red.png", "Remove tone.wav", "Remove blue.png"]
    page.js("document.querySelector('#tray .remove').focus()")
    page.press("ENTER")
    shown(page, 2)
    assert page.text("#announce") == "Removed: red.png"
    page.click("#tray li:last-child .remove")
    shown(page, 1)
    assert page.one("#prompt").get_attribute("value") == TRANSCRIBE
    page.click("#write")
    answered(page)
    assert page.text(".model") == say(address, sights.input_audio((files / "tone.wav").read_bytes()), sights.text(TRANSCRIBE))
    assert page.one(".yours audio").get_attribute("aria-label") == "Sound: tone.wav"
    page.one("#files").send_keys(str(files / "tone.wav"))
    shown(page, 1)
    page.click("#new-text")


def test_a_picture_is_pasted(page, files):
    page = page(mode="write")
    assert drop(page, files / "blue.png", "paste")
    shown(page, 1)
    assert page.one("[data-mode=chat]").get_attribute("aria-pressed") == "true", "only a conversation can hold it"
    page.click("[data-mode=write]")
    assert not page.visible("#tray") and not page.visible("#attach")
    page.click("[data-mode=chat]")
    assert page.visible("#tray")


def test_a_branch_sees_the_same(page, address, files):
    page = page()
    drop(page, files / "red.png")
    shown(page, 1)
    enter(page)
    answered(page)
    page.click(next(button for button in page.all(".actions button") if button.text == "Try again"))
    page.wait(lambda: len(page.all(".branches .chip")) == 2 and page.visible(".actions"))
    bodies = sent(page)
    assert bodies[0]["messages"] == bodies[2]["messages"]
    assert len({body["session_id"] for body in bodies if "session_id" in body}) == 2, "each branch is kept"
    page.click(page.all("#shelf .text")[0])
    page.wait(lambda: "memory" in page.text(".meta"))
    assert page.text(".yours") == f"[picture] {DESCRIBE}"


@both
def test_a_sound_is_recorded(page, address, size):
    page = page(size)
    assert page.one("#record").get_attribute("aria-label") == "Record a sound"
    page.click("#record")
    stop = """
        const button = document.querySelector("#record");
        if (parseFloat(button.textContent) >= 1.5) button.click();  // long enough for one of the browser's own beeps
        return button.getAttribute("aria-pressed") === "false" && document.querySelectorAll("#tray li").length;
    """
    page.wait("#record[aria-pressed=true][aria-label='Stop recording']:enabled")
    no_sideways(page)
    page.wait(lambda: page.js(stop))  # in one go: on a busy machine it may end by itself
    shown(page, 1)
    enter(page) if size is DESK else page.click("#write")
    answered(page)
    [part, asked] = sent(page)[0]["messages"][0]["content"]
    assert asked["text"] == TRANSCRIBE
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
    assert wave.ndim == 1 and 8000 <= rate <= 96000 and 0.02 < len(wave) / rate <= 4
    assert np.abs(wave).max() > 0.01, "the browser's own beeps are heard"
    assert page.text(".model") == say(address, part, asked)


def test_a_recording_ends_where_the_model_hears_no_more(page):
    page = page()
    page.click("#record")
    shown(page, 1)
    page.wait(lambda: page.js("return document.querySelector('#tray audio').duration") == pytest.approx(4.0, abs=0.001))
    enter(page)
    answered(page)


def test_the_message_waits_for_what_is_being_recorded(page):
    page = page()
    page.click("#record")
    page.wait(lambda: page.text("#recorded") not in ("", "0.0 s"))
    page.one("#prompt").send_keys("what")
    enter(page)
    answered(page)
    assert page.all(".yours audio")


@pytest.mark.parametrize("leave", ["ESCAPE", "[data-mode=write]"])
def test_a_microphone_that_comes_too_late_is_given_back(page, leave):
    page = page()
    page.js("""
        const real = MediaDevices.prototype.getUserMedia;
        MediaDevices.prototype.getUserMedia = async function (wanted) {
            const stream = await real.call(this, wanted);
            window.tracks = stream.getTracks();
            await new Promise((go) => (window.go = go));
            return stream;
        };
    """)
    page.click("#record")
    page.wait(lambda: page.js("return 'go' in window"))
    page.press(leave) if leave == "ESCAPE" else page.click(leave)
    page.js("go()")
    page.wait(lambda: page.js("return window.tracks.every((track) => track.readyState === 'ended')"))
    assert not page.all("#record[aria-pressed=true]") and not page.visible("#notice")
    assert page.text("#announce") == "", "nothing was recorded"


def test_a_recording_may_be_stopped_before_it_begins(page):
    page = page()
    page.js("""
        const real = AudioWorklet.prototype.addModule;
        AudioWorklet.prototype.addModule = async function (path) {
            await new Promise((go) => (window.go = go));
            await real.call(this, path).finally(() => (window.gone = true));
        };
    """)
    page.click("#record")
    page.wait(lambda: page.js("return 'go' in window"))
    page.press("ESCAPE")
    page.js("go()")
    page.wait(lambda: page.js("return window.gone"))
    assert page.visible("#record[aria-pressed=false]:enabled") and not page.visible("#notice")


def test_what_cannot_be_shown_is_told(page, files):
    page = page()
    drop(page, files / "notes.pdf")
    page.wait("#notice")
    assert "notes.pdf cannot be shown" in page.text("#notice")
    for name, told in (("broken.png", "Picture 1 is no picture that can be read"), ("long.wav", "Sound 1 lasts 5.0 s; the model hears 4 s")):
        drop(page, files / name)
        shown(page, 1)
        enter(page)
        page.wait(lambda told=told: told in page.text("#notice"))
        assert "The model cannot take that" in page.text("#notice")
        shown(page, 1)
        page.click("#tray .remove")
        shown(page, 0)
    assert page.text(".yours") == ""


@pytest.mark.parametrize("modalities", ["", "audio"], ids=["text", "hears"])
def test_a_model_without_it_is_not_offered_it_and_says_why(page, tmp_path, tiny_model, files, modalities):
    path = sights.checkpoint(tmp_path, modalities) if modalities else save(tmp_path / "best_model.pt", tiny_model())
    host = load(path)
    (tmp_path / "server").mkdir()
    with serving(host, tmp_path / "server", api_keys=()) as other:
        page = page(of=other)
        assert page.visible("#attach") == page.visible("#record") == bool(modalities)
        assert drop(page, files / "red.png"), "the browser does not leave the page for it"
        page.wait("#notice")
        assert "This model takes no pictures" in page.text("#notice")
        assert f"It takes text{' and sounds' if modalities else ''}." in page.text("#notice")
        assert not page.visible("#tray")
        page.driver.get("about:blank")
    host.drain(1)


@pytest.mark.slow
def test_a_large_photograph_is_made_smaller(page, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    assert (tmp_path / "photo.png").stat().st_size > 2**23
    page = page()
    page.one("#files").send_keys(str(tmp_path / "photo.png"))
    shown(page, 1)
    enter(page)
    answered(page)
    url = sent(page)[0]["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        assert (image.format, image.size) == ("JPEG", (1024, 768))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not on this machine")
def test_the_command_for_curl_shows_the_same(page, files):
    page = page()
    for name in ("red.png", "tone.wav"):
        page.one("#files").send_keys(str(files / name))
    noise = (0.1 * np.random.default_rng(0).standard_normal(80_000)).astype(np.float32)
    soundfile.write(files / "noise.wav", noise, 48_000)
    page.one("#files").send_keys(str(files / "noise.wav"))
    shown(page, 3)
    page.fill("#prompt", "it's")
    enter(page)
    answered(page)
    page.click(next(button for button in page.all(".actions button") if button.text == "Copy as curl"))
    page.wait("#toast")
    command = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert len(command) > 2**17, "longer than a shell's word may be"
    done = subprocess.run(["sh"], input=command.replace("curl ", "curl -s ", 1), capture_output=True, text=True)
    assert json.loads(done.stdout)["text"] == page.text(".model")


@pytest.mark.slow
@both
def test_everything_has_a_name_and_a_place(page, files, size):
    page = page(size)
    for name in ("red.png", "blue.png", "tone.wav"):
        page.one("#files").send_keys(str(files / name))
    shown(page, 3)
    names = """
        return [...document.querySelectorAll('button, input, select, textarea, a, audio')]
            .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)
    """
    assert page.js(names) == []
    assert page.js("return [...document.querySelectorAll('img')].every((e) => e.hasAttribute('alt'))")
    no_sideways(page)
    page.click("#write")
    answered(page)
    no_sideways(page)
