"""The first lines that a server prints: where it is, what answers, and a command that calls it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from config import ServeConfig
from server.auth import Gate
from server.passwords import is_hash, read_users

if TYPE_CHECKING:
    from inference.engine import Engine

BODY = """-H "Content-Type: application/json" -d '{"prompt":"Hello","max_new_tokens":64}'"""
# The shell fills in the secret, so that it stands in no log.
KEY = '-H "X-API-Key: ${LLM_API_KEYS%%,*}"'
TOKEN = (
    """TOKEN=$(curl -s {url}/oauth/token --data-urlencode {name} --data-urlencode "password={password}" | cut -d'"' -f4)"""
)


def first_lines(config: ServeConfig, gate: Gate, port: int) -> str:
    """What is known before the model is loaded."""
    url = address(config, port)
    answers, call = f"{url} answers, in a browser too; the model is being loaded.", how_to_call(config, gate, url)
    if gate.random_key:  # told nowhere else, so it comes first
        return "\n".join([f"The key of this run is {gate.random_key} (LLM_API_KEYS sets keys that stay).", call, answers])
    return "\n".join([answers, *filter(None, [gate.notice]), call])


def address(config: ServeConfig, port: int) -> str:
    """The URL of a server; a machine that listens everywhere is called from itself."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def how_to_call(config: ServeConfig, gate: Gate, url: str) -> str:
    """A command that works as it stands, in a shell with the server's environment."""
    if gate.random_key:
        return f'curl {url}/v1/generate -H "X-API-Key: {gate.random_key}" {BODY}'
    if gate.keys:
        return f"curl {url}/v1/generate {KEY} {BODY}"
    if not gate.passwords:
        return f"curl {url}/v1/generate {BODY}"
    name = next(iter(gate.passwords.hashes))
    plain = config.users and not is_hash(read_users(config.users, "")[name])
    password = '$(printf %s "$LLM_USERS" | cut -d, -f1 | cut -d: -f2-)' if plain else "PASSWORD"
    login = TOKEN.format(url=url, name=shlex.quote(f"username={name}"), password=password)
    return f'{login}\ncurl {url}/v1/generate -H "Authorization: Bearer $TOKEN" {BODY}'


def model_line(engine: Engine) -> str:
    """What answers: run, step, loss, and how it is run."""
    told, loss = engine.provenance, engine.provenance.get("val_loss")
    name = f"{told.get('run')}, step {told.get('step')}" + (f", validation loss {loss:.4f}" if loss else "")
    how = "int8" if engine.quantized else engine.dtype
    return f"{name}: {engine.parameters / 1e6:.1f} M parameters, {how}, context {engine.block_size}"
