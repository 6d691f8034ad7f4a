"""Who may come in: keys, users and their tokens, an open server on this machine, and how often each may ask."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from jose import jwt
from starlette.requests import Request

from config import ServeConfig, UserError
from inference.host import Host
from server import addresses, passwords
from server.auth import Gate
from server.limits import RateLimit, duration
from server.passwords import read_users
from server.tokens import ISSUER, InvalidToken, Tokens
from tests.live import serving

SECRET = "0123456789abcdef" * 2
USERS = {"users": "admin:admin123,eva:pa:ss", "jwt_secret": SECRET}
HERE = "/v1/sessions/none"  # 404 for who may ask
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch):
    """600,000 rounds are for attackers to wait for."""
    monkeypatch.setattr(passwords, "HASHES", passwords.HASHES.copy(pbkdf2_sha256__rounds=1000))


@pytest.fixture
def served(tmp_path) -> Iterator[Callable[..., httpx.Client]]:
    """Starts a server that has no model, and gives a client for it."""
    with contextlib.ExitStack() as stack:

        def start(**settings) -> httpx.Client:
            address = stack.enter_context(serving(Host("none"), tmp_path, **{"api_keys": (), **settings}))
            return stack.enter_context(httpx.Client(base_url=address, timeout=10))

        yield start


def status(client: httpx.Client, **headers: str) -> int:
    return client.get(HERE, headers=headers).status_code


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def login(client: httpx.Client, name: str = "admin", password: str = "admin123") -> str:
    answer = client.post("/oauth/token", data={"username": name, "password": password})
    assert answer.status_code == 200, answer.text
    return answer.json()["access_token"]


# ---- keys


def test_keys_come_in_either_header(served):
    client = served(api_keys=("key-1", "key-2"))
    for key in ("key-1", "key-2"):
        assert status(client, **{"X-API-Key": key}) == status(client, **bearer(key)) == 404
    assert status(client, Authorization="bearer key-1") == 404
    for wrong in ("key-3", "key", "key-1x", "KEY-1", "k\u00e9y", "x" * 5000):
        for headers in ({"X-API-Key": wrong.encode()}, {"Authorization": b"Bearer " + wrong.encode()}):
            assert client.get(HERE, headers=headers).status_code == 401
    assert status(client, **{"X-API-Key": "wrong"}, **bearer("key-1")) == 401


def test_refusals_follow_rfc_6750(served):
    client = served(api_keys=("key-1",))
    for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}, {"X-API-Key": ""}):
        answer = client.get(HERE, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["code"] == "invalid_api_key"
    answer = client.get(HERE, headers=bearer("wrong"))
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')


def test_every_endpoint_that_does_work_asks_who_is_there(served):
    client = served(api_keys=("key-1",))
    for path in ("/v1/generate", "/v1/score", "/v1/completions", "/v1/chat/completions", "/v1/admin/reload"):
        answer = client.post(path, json={"prompt": "", "text": "a", "model": "default", "messages": []})
        assert answer.status_code in (401, 403), path
    for path in ("/v1/models", HERE):
        assert client.get(path).status_code == 401
    assert client.delete(HERE).status_code == 401
    assert client.get("/healthz").status_code == 200


def test_the_name_of_a_key_is_short_and_no_secret():
    gate = Gate(ServeConfig(api_keys=("key-1", "key-2")))
    names = [gate.identify(key, None).name for key in ("key-1", "key-2")]
    assert len(set(names)) == 2
    assert all(len(name) == 16 and "key-1" not in name for name in names)


# ---- users


def test_a_password_buys_a_token(served):
    client = served(**USERS)
    answer = client.post("/oauth/token", data={"username": "eva", "password": "pa:ss", "grant_type": "password"})
    told = answer.json()
    assert (told["token_type"], told["expires_in"]) == ("bearer", 3600)
    assert answer.headers["cache-control"] == "no-store"
    assert status(client, **bearer(told["access_token"])) == 404
    assert status(client, **{"X-API-Key": told["access_token"]}) == 401  # a token is no key
    assert status(client) == 401


WRONG = {
    "invalid_grant": ["username=admin&password=wrong", "username=nobody&password=admin123", "username=admin&password=a%00"],
    "invalid_request": ["", "username=admin", "password=admin123", "username=&password=x", "username=a&username=b&password=c",
                        "&".join(f"f{n}=1" for n in range(40))],
    "unsupported_grant_type": ["grant_type=client_credentials&username=admin&password=admin123"],
}  # fmt: skip


@pytest.mark.parametrize(("error", "form"), [(error, form) for error, forms in WRONG.items() for form in forms])
def test_errors_of_the_token_endpoint_follow_rfc_6749(served, error, form):
    answer = served(**USERS).post("/oauth/token", content=form, headers=FORM)
    assert (answer.status_code, answer.json()["error"]) == (400, error)
    assert answer.json()["error_description"]
    assert answer.headers["cache-control"] == "no-store"


def test_other_bodies_and_servers_without_users_are_told_so(served):
    sent = {"username": "admin", "password": "admin123"}
    assert served(**USERS).post("/oauth/token", json=sent).json()["error"] == "invalid_request"
    assert served(api_keys=("key-1",)).post("/oauth/token", data=sent).json()["error"] == "unsupported_grant_type"


def test_logging_in_is_throttled(served):
    client = served(**USERS)
    wrong = {"username": "admin", "password": "guess"}
    answers = [client.post("/oauth/token", data=wrong) for _ in range(25)]
    assert [answer.status_code for answer in answers] == [400] * 20 + [429] * 5
    assert answers[-1].json()["error"] == "slow_down"
    assert int(answers[-1].headers["retry-after"]) > 30


def token(**changes) -> str:
    """A token of ours, but for the changes; None leaves a claim out."""
    now = int(time.time())
    claims = {"sub": "admin", "iat": now, "exp": now + 60, "iss": ISSUER, "aud": ISSUER, **changes}
    key = claims.pop("key", SECRET)
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key)


def unsigned() -> str:
    parts = [{"alg": "none", "typ": "JWT"}, jwt.get_unverified_claims(token())]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def test_our_own_token_is_good():
    assert Tokens(SECRET, 1).user_of(token()) == Tokens(SECRET, 1).user_of(Tokens(SECRET, 1).issue("admin")) == "admin"


FORGED = {
    **{f"no {claim}": token(**{claim: None}) for claim in ("sub", "iat", "exp", "iss", "aud")},
    "over": token(exp=1),
    "for others": token(aud="them"),
    "by others": token(iss="them"),
    "another key": token(key="f" * 32),
    "unsigned": unsigned(),
    "another algorithm": jwt.encode(jwt.get_unverified_claims(token()), SECRET, "HS512"),
    "no dots": "abc",
    "dots": "...",
    "deep": base64.urlsafe_b64encode(b'{"a":' + b"[" * 20_000).decode().rstrip("=") + ".e30.x",
    "no text": "\u00e9.\u00e9.\u00e9",
    "empty": "",
    "exp a word": token(exp="soon"),
    "sub a list": token(sub=["admin"]),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_any_other_token_is_refused(forged):
    with pytest.raises(InvalidToken):
        Tokens(SECRET, 1).user_of(forged)


def test_a_token_of_a_user_who_is_gone_is_refused(served):
    client = served(**USERS)
    assert status(client, **bearer(token())) == 404
    assert status(client, **bearer(token(sub="former"))) == 401
    assert status(client, **bearer(FORGED["deep"])) == 401


def test_keys_and_users_go_together(served):
    client = served(api_keys=("key-1",), **USERS)
    assert status(client, **bearer("key-1")) == status(client, **bearer(login(client))) == 404
    assert status(client) == 401


def test_a_secret_that_looks_like_json_is_a_secret():
    secret = json.dumps(["a" * 20, "b" * 20])
    assert Tokens(secret, 1).user_of(Tokens(secret, 1).issue("admin")) == "admin"
    with pytest.raises(InvalidToken):
        Tokens(secret, 1).user_of(token(key="a" * 20))


# ---- passwords


def test_passwords_are_kept_as_hashes(served):
    listed = f"plain:secret,hashed:{passwords.HASHES.hash('hidden')}"
    client = served(users=listed, jwt_secret=SECRET)
    assert login(client, "plain", "secret") and login(client, "hashed", "hidden")
    kept = passwords.Passwords(read_users(listed, ""))
    kept.thread.shutdown()
    assert all(value.startswith("$pbkdf2-sha256$") for value in kept.hashes.values())


def test_new_hashes_take_600000_rounds():
    assert passwords.ROUNDS == 600_000
    assert "$600000$" in passwords.CryptContext(passwords.SCHEMES, pbkdf2_sha256__rounds=passwords.ROUNDS).hash("x")


def test_an_unknown_user_takes_as_long_as_a_known_one(monkeypatch):
    kept, asked = passwords.Passwords({"a": "x", "b": "y"}), []
    kept.thread.shutdown()
    verify = passwords.HASHES.verify
    monkeypatch.setattr(passwords.HASHES, "verify", lambda *given: asked.append(given) or verify(*given))
    assert not kept.verify("nobody", "x")
    assert not kept.verify("nobody", "y")
    assert asked[0][1] == asked[1][1] != ""
    assert kept.verify("a", "x")


def test_users_also_come_from_a_file(tmp_path):
    path = tmp_path / "users"
    path.write_text("# who works here\neva:a,b\n\nron: space\n")
    assert read_users("admin:x", str(path)) == {"admin": "x", "eva": "a,b", "ron": " space"}


@pytest.mark.parametrize("listed", ["admin", ":x", "admin:", "a:x,a:y", "a:$5$", ",", "a:" + "$2b$12$" + "x" * 53])
def test_users_that_cannot_be_read_are_refused_without_their_passwords(listed):
    with pytest.raises(UserError) as caught:
        read_users(listed, "")
    assert "$" not in str(caught.value).replace("begin with $", "")
    assert ":x" not in str(caught.value)


def test_a_file_that_names_nobody_is_refused(tmp_path):
    (tmp_path / "users").write_text("# nobody\n")
    for path in (tmp_path / "users", tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="LLM_USERS_FILE"):
            read_users("", str(path))


# ---- secrets and addresses


@pytest.mark.parametrize("secret", ["", "short", "replace-with-strong-secret", "please-change-me-" * 3])
def test_a_weak_signing_secret_is_replaced_here_and_refused_elsewhere(secret):
    gate = Gate(ServeConfig(users="a:b", jwt_secret=secret))
    assert "LLM_JWT_SECRET" in gate.notice and "random" in gate.notice
    with pytest.raises(InvalidToken):
        Tokens(SECRET, 1).user_of(gate.tokens.issue("a"))
    with pytest.raises(UserError, match="openssl rand -hex 32"):
        Gate(ServeConfig(users="a:b", jwt_secret=secret, host="0.0.0.0"))


def test_without_users_no_signing_secret_is_needed():
    assert Gate(ServeConfig(api_keys=("k",), host="0.0.0.0")).notice == ""
    assert Gate(ServeConfig(**USERS, host="0.0.0.0")).notice == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_an_open_server_stays_on_this_machine(host):
    with pytest.raises(UserError, match="LLM_ALLOW_OPEN=yes"):
        Gate(ServeConfig(host=host))
    assert Gate(ServeConfig(host=host, allow_open=True)).open


@pytest.mark.parametrize("path", [HERE, "/metrics"])
@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_an_open_server_on_this_machine_answers_nobody_behind_a_proxy(served, header, path):
    client = served()
    answer = client.get(path, headers={header: "203.0.113.7"})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "behind_a_proxy"
    assert client.post("/v1/admin/reload", headers={header: "203.0.113.7"}).status_code == 403
    assert served(api_keys=("a-key",)).get(HERE, headers={header: "203.0.113.7", "X-API-Key": "a-key"}).status_code == 404
    assert served(allow_open=True).get(HERE, headers={header: "203.0.113.7"}).status_code == 404


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_on_this_machine_it_may_be_open(host):
    assert Gate(ServeConfig(host=host)).identify(None, "whatever").name == "open"


def test_an_open_server_answers_to_no_name_of_the_internet(served):
    client = served()
    for host, expected in {
        "localhost": 404, "127.0.0.1:8000": 404, "[::1]:8000": 404, "me.localhost": 404, "gpu-box": 404,
        "evil.example.org": 403, "evil.example.org.:80": 403,
    }.items():  # fmt: skip
        assert status(client, Host=host) == expected, host


SIMPLE = [  # what a page of another site may send unasked (fetch standard, CORS-safelisted request-headers)
    {"Content-Type": "text/plain"},
    {"Content-Type": "text/plain; charset=application/json"},
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "multipart/form-data; boundary=x"},
    {},
]


@pytest.mark.parametrize("headers", SIMPLE, ids=lambda headers: headers.get("Content-Type", "none"))
def test_no_other_site_can_drive_an_open_server(served, headers):
    """What a browser sends for a page without asking us first is refused; what it asks first (JSON, DELETE) is not allowed."""
    client, away = served(), {"Origin": "https://evil.org", "Sec-Fetch-Site": "cross-site"}
    bodies = {
        "/v1/generate": {"prompt": "a", "session_id": "s"}, "/v1/score": {"text": "a"},
        "/v1/completions": {"model": "default", "prompt": "a"}, "/v1/sessions/s/fork": {"session_id": "t"},
        "/v1/chat/completions": {"model": "default", "messages": [{"role": "user", "content": "a"}]},
    }  # fmt: skip
    for path, body in bodies.items():
        content = json.dumps(body).encode()
        assert client.post(path, content=content, headers=JSON).status_code in (404, 503), "the body itself is good"
        older = client.post(path, content=content, headers={**headers, "Origin": "https://evil.org"})  # a browser of 2019
        assert older.status_code in (400, 422), path
        assert client.post(path, content=content, headers={**headers, **away}).status_code == 403, path
    for method in ("POST", "DELETE"):
        asked = {**away, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": "content-type"}
        answer = client.options("/v1/generate", headers=asked)
        assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers


def test_pages_of_other_sites_use_up_no_rate(served):
    for settings, expected in (({}, 403), ({"cors_origins": ("https://a.org",)}, 404), ({"api_keys": ("key-1",)}, 404)):
        client = served(**settings, rate_limit_rpm=2)
        client.headers["X-API-Key"] = "key-1"
        answers = [client.get(HERE, headers={"Sec-Fetch-Site": site}) for site in ("cross-site", "same-origin")]
        assert [answer.status_code for answer in answers] == [expected, 404]
        assert answers[1].headers["x-ratelimit-remaining-requests"] == ("1" if expected == 403 else "0")


# ---- rates


def test_each_caller_has_a_rate_of_their_own(served):
    client = served(api_keys=("key-1", "key-2"), rate_limit_rpm=3)
    answers = [client.get(HERE, headers=bearer("key-1")) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [404, 404, 404, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"
    assert 50 < int(answers[3].headers["retry-after"]) <= 60
    assert 50_000 < int(answers[3].headers["retry-after-ms"]) <= 60_000
    assert answers[3].headers["x-ratelimit-reset-requests"].endswith("s")
    assert status(client, **bearer("key-2")) == 404
    assert status(client, **bearer("key-1")) == 429
    assert client.get("/healthz").status_code == 200


def test_no_limit_sends_no_headers(served):
    assert not [name for name in served().get(HERE).headers if name.startswith("x-ratelimit")]


def test_the_window_moves(monkeypatch):
    now = time.time()
    rate = RateLimit(2)
    for _ in range(2):
        rate.hit("a")
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert rate.hit("a")["x-ratelimit-remaining-requests"] == "1"


def test_callers_that_do_not_come_again_are_forgotten(monkeypatch):
    """Strangers choose their addresses: their names must not stay for ever."""
    now, rate = time.time(), RateLimit(2)
    for n in range(50):
        rate.hit(f"stranger {n}")
    monkeypatch.setattr(time, "time", lambda: now + 30)
    rate.hit("a")
    monkeypatch.setattr(time, "time", lambda: now + 61)
    rate.hit("b")
    assert {name.split("/")[1] for name in rate.storage.events} == {"a", "b"}
    assert rate.hit("a")["x-ratelimit-remaining-requests"] == "0", "what still counts is kept"


@pytest.mark.parametrize("told, counted", [
    ("10.1.2.3", "10.1.2.3"), ("::ffff:10.1.2.3", "10.1.2.3"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("fe80::1%eth0", "fe80::/64"),
    ("testclient", "testclient"),
])  # fmt: skip
def test_whoever_has_an_address_of_ipv6_has_its_neighbours_too(told, counted):
    assert addresses.house(Request({"type": "http", "client": (told, 1)})) == counted


def test_a_proxy_is_known_on_a_socket_of_ipv6_too():
    assert addresses.with_mapped("127.0.0.1") == ["127.0.0.1", "::ffff:127.0.0.1"]
    assert addresses.with_mapped("172.17.0.0/16") == ["172.17.0.0/16", "::ffff:172.17.0.0/112"]
    assert addresses.with_mapped("::1") == ["::1"]


@pytest.mark.parametrize("proxy", ["caddy", "172.17.0.1/16", "10.0.0.300"])
def test_a_proxy_that_would_match_nothing_is_refused(proxy):
    with pytest.raises(UserError, match=f"LLM_TRUSTED_PROXIES has '{proxy}'"):
        ServeConfig(trusted_proxies=("127.0.0.1", proxy))


def test_durations_are_written_as_openai_does():
    assert [duration(seconds) for seconds in (0.0115, 0.5, 1, 59.2)] == ["12ms", "500ms", "1s", "60s"]


# ---- the administrator


def test_reloading_needs_its_own_key(served):
    client = served(api_keys=("key-1",), admin_key="root-key")
    answers = [
        client.post("/v1/admin/reload", headers=headers) for headers in ({}, bearer("key-1"), bearer("root-key"))
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 409]  # there is no checkpoint to load
    assert status(client, **bearer("root-key")) == 401
    client = served(api_keys=("key-1",))
    assert client.post("/v1/admin/reload", headers=bearer("key-1")).status_code == 403


def test_a_reload_beside_another_is_not_waited_for(tmp_path):
    host = Host("none")
    with serving(host, tmp_path, api_keys=()) as address, host.loading:
        answer = httpx.post(f"{address}/v1/admin/reload", timeout=5)
    assert answer.status_code == 409 and "already" in answer.json()["error"]["message"] and answer.headers["Retry-After"] == "1"


def test_an_open_server_reloads_for_this_machine_but_for_no_web_page(served):
    client = served()
    assert client.post("/v1/admin/reload").status_code == 409
    assert client.post("/v1/admin/reload", headers={"Origin": "https://evil.org"}).status_code == 403
