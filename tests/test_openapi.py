"""Requests made up from our own OpenAPI document, good ones and bad ones: each is answered as the document says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import live

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
def test_whatever_is_asked_is_answered_as_the_document_says(tiny_model, tmp_path):
    host = live.load(live.save(tmp_path / "tiny.pt", tiny_model(block_size=64)))
    with live.serving(host, tmp_path, docs=True, max_new_tokens=32) as url:
        flags = ["--checks", CHECKS, "--max-examples", "60", "--seed", "0", "--header", f"X-API-Key: {live.KEY}"]
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *flags, "--no-color"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
