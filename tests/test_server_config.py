"""The server's settings: from the environment, with every mistake named, and listed in .env.example."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import subprocess
import sys

import pytest

from config import ROOT, ServeConfig, UserError, variable
from server import logs

FIELDS = [item for item in dataclasses.fields(ServeConfig) if item.name not in ("host", "port")]


def test_nothing_set_is_the_defaults():
    assert ServeConfig.from_env({}) == ServeConfig()
    assert ServeConfig.from_env({variable(item.name): " " for item in FIELDS}) == ServeConfig()


def test_variables_become_settings_and_flags_win():
    environ = {
        "LLM_API_KEYS": "prod-key-1, prod-key-2,", "LLM_USERS": "admin:admin123", "LLM_RATE_LIMIT_RPM": "0",
        "LLM_LOG_LEVEL": "debug", "LLM_BODY_TIMEOUT": "2.5", "LLM_ALLOW_OPEN": "yes", "LLM_DOCS": "On", "LLM_DATA_DIR": "/x",
        "LLM_CORS_ORIGINS": "https://a.org,http://localhost:3000", "LLM_CHECKPOINT": "a.pt", "LLM_QUANTIZE": "int8",
    }  # fmt: skip
    config = ServeConfig.from_env(environ, checkpoint="b.pt", port=1)
    assert config.api_keys == ("prod-key-1", "prod-key-2")
    assert (config.users, config.rate_limit_rpm, config.log_level) == ("admin:admin123", 0, "DEBUG")
    assert (config.body_timeout, config.allow_open, config.docs, config.quantize) == (2.5, True, True, "int8")
    assert config.cors_origins == ("https://a.org", "http://localhost:3000")
    assert (config.checkpoint, config.port) == ("b.pt", 1)


WRONG = {
    "LLM_SLOTS": ["many", "-1", "1.5", "9999999"],
    "LLM_BODY_TIMEOUT": ["nan", "inf", "0", "soon"],
    "LLM_DOCS": ["perhaps", "2"],
    "LLM_LOG_LEVEL": ["LOUD"],
    "LLM_QUANTIZE": ["int4"],
    "LLM_DTYPE": ["float16"],
    "LLM_CORS_ORIGINS": ["example.org", "https://a.org/path"],
    "LLM_METRICS_PORT": ["70000"],
    "LLM_JWT_EXPIRE_MINUTES": ["0"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_a_bad_value_is_refused_with_its_name_and_value(name, text):
    with pytest.raises(UserError) as caught:
        ServeConfig.from_env({name: text})
    assert name in str(caught.value)
    assert text in str(caught.value)
    assert re.search("must be|write", str(caught.value))


@pytest.mark.parametrize(
    ("name", "text"), [("LLM_API_KEYS", "top secret"), ("LLM_API_KEYS", ", ,"), ("LLM_ADMIN_KEY", "geheimé")]
)
def test_a_bad_key_is_refused_without_being_shown(name, text):
    with pytest.raises(UserError) as caught:
        ServeConfig.from_env({name: text})
    assert name in str(caught.value)
    assert text not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "right"), [("LLM_API_KEY", "LLM_API_KEYS"), ("LLM_RATE_LIMT_RPM", "LLM_RATE_LIMIT_RPM")]
)
def test_a_misspelt_variable_is_refused(wrong, right):
    with pytest.raises(UserError, match=f"{wrong} is no variable of the server; did you mean {right}"):
        ServeConfig.from_env({wrong: "1"})


def test_the_example_lists_every_variable_with_its_help_and_default():
    lines = (ROOT / ".env.example").read_text().splitlines()
    found = {line.partition("=")[0]: number for number, line in enumerate(lines) if re.match(r"LLM_\w+=", line)}
    assert list(found) == [variable(item.name) for item in FIELDS]
    for item in FIELDS:
        assert lines[found[variable(item.name)] - 1] == f"# {item.metadata['help']}"
    values = dict(line.split("=", 1) for line in lines if line.startswith("LLM_"))
    assert ServeConfig.from_env(values) == ServeConfig()
    for name, text in values.items():  # numbers, words and switches show their default, they are not just left out
        assert text or getattr(ServeConfig, name.removeprefix("LLM_").lower()) in ("", ())


@pytest.mark.skipif(not shutil.which("make"), reason="make is not on this machine")
def test_make_serves(monkeypatch):
    def told(*arguments: str) -> str:
        return subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "serve.py --host 127.0.0.1 --port 8000" in told("serve")
    assert "serve.py --host 0.0.0.0 --port 81 --checkpoint x" in told(
        "serve", "HOST=0.0.0.0", "PORT=81", "ARGS=--checkpoint x"
    )
    assert "serve.py --dev" in told("serve-dev")


def test_readable_lines_stay_lines():
    record = logging.LogRecord("server", logging.INFO, "", 0, "request", None, None)
    record.told = {"path": "/a\nb\x1b[2J", "status": 404, "caller": ""}
    line = logs.Readable().format(record)
    assert line.endswith(r"info    request path=/a\nb\x1b[2J status=404")
    assert json.loads(logs.JsonLines().format(record))["path"] == "/a\nb\x1b[2J"


def test_torch_says_nothing_of_its_caches():
    """Until its import is done its loggers are like any others, and at its end it tells them things."""
    code = "import logging; from server import logs; logs.configure('INFO', readable=False); tell = logging.getLogger"
    code += "; tell('torch._subclasses.fake_tensor').info('cache stats'); tell('server').info('ours')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["ours"]
