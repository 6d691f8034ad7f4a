"""The files of the pages, and the headers that keep everything else out of them."""

from __future__ import annotations

import re

import httpx
import pytest

from config import ROOT
from inference.host import Host
from tests.live import serving

STATIC = ROOT / "server" / "static"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A server without a model, which wants a key: its pages ask for neither."""
    with serving(Host("none"), tmp_path_factory.mktemp("server")) as address, httpx.Client(base_url=address) as client:
        yield client


def test_the_playground_is_the_first_page(client):
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert [re.search(rf'<a href="{path}"', page.text) is not None for path in ("/", "/training")] == [True, True]


@pytest.mark.parametrize("path", ["/", *sorted(f"/static/{each.name}" for each in STATIC.iterdir())])
def test_every_file_is_sent_with_the_headers_that_guard_it(client, path):
    answer = client.get(path)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'", "scripts, styles, images and requests: from this server alone"
    assert not policy.keys() & {"script-src", "style-src", "connect-src", "font-src", "worker-src"}, "no exceptions from that"
    assert (policy["img-src"], policy["media-src"]) == ("'self' blob:", "blob:"), "but for files that a person has opened in the page"
    assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == answer.headers["content-security-policy"]
    assert client.head(path).headers["etag"] == answer.headers["etag"]


def test_scripts_and_styles_are_called_what_they_are(client):
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    for file in STATIC.iterdir():
        assert client.get(f"/static/{file.name}").headers["content-type"] == f"{kinds[file.suffix]}; charset=utf-8"


def test_pages_hold_no_script_no_style_and_no_address_of_others():
    for file in STATIC.iterdir():
        text = file.read_text("utf-8")
        for url in re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text):
            assert url == "http://www.w3.org", f"{file.name} names {url}"
        if file.suffix == ".html":
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script>|javascript:", text), file.name
        if file.suffix == ".js":
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), file.name


def test_every_module_is_fetched_at_once(client):
    """A module that only another one names would be asked for late."""
    named = set(re.findall(r'(?:src|href)="/static/([\w.-]+)"', client.get("/").text))
    imported = {each for file in STATIC.glob("*.js") for each in re.findall(r'from "\./([\w.-]+)"', file.read_text("utf-8"))}
    for name in imported & set(re.findall(r'from "\./([\w.-]+)"', (STATIC / "playground.js").read_text("utf-8"))):
        assert name in named


@pytest.mark.parametrize("path", ["/static/none.js", "/static/", "/static/..%2fpages.py", "/static/%2e%2e/pages.py", "/static/../pages.py"])
def test_nothing_else_is_to_be_had(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"
