import json
import stat

import httpx
import openai
import pytest
from paced_engine import FakeEngine
from running_server import HELLO, running

from rung.errors import ConfigError
from rung.machine import is_loopback
from rung.serving.access import (
    Access,
    KeyRing,
    access_rules,
    create_key,
    read_keys,
    revoke_key,
)
from rung.serving.limits import Refused
from rung.serving.served import Served


@pytest.fixture(scope="module")
def served():
    served = Served()
    served.add_engine("fake", FakeEngine())
    yield served
    served.close()


def test_keys_are_kept_as_hashes_that_only_their_owner_reads(tmp_path):
    file = tmp_path / "keys.jsonl"
    secret, key = create_key(file, "anna", per_minute=5)
    other, _ = create_key(file, "bert", admin=True)
    assert secret.startswith("rung-")
    assert secret != other
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [(one.name, one.per_minute, one.admin) for one in read_keys(file)] == [
        ("anna", 5, False), ("bert", None, True),
    ]  # fmt: skip
    ring = KeyRing(file)
    assert ring.find(secret) == key
    assert ring.find(secret[:-1]) is None
    assert ring.find("") is None
    revoke_key(file, key.id)
    assert ring.find(secret) is None  # a changed file is read again
    assert ring.find(other).name == "bert"
    with pytest.raises(ConfigError) as unknown:
        revoke_key(file, key.id)
    assert unknown.value.code == "unknown-name"


def test_a_key_file_that_is_none_is_named_with_its_line(tmp_path):
    file = tmp_path / "keys.jsonl"
    with pytest.raises(ConfigError) as missing:
        KeyRing(file)
    assert missing.value.code == "unreadable-file"
    create_key(file, "anna")
    with file.open("a") as out:
        out.write(json.dumps({"id": 1}) + "\n")
    with pytest.raises(ConfigError) as damaged:
        read_keys(file)
    assert damaged.value.code == "unreadable-file"
    assert f"{file}:2" in damaged.value.message


def test_a_key_file_that_others_may_write_and_one_without_keys_are_refused(tmp_path):
    file = tmp_path / "keys.jsonl"
    _, key = create_key(file, "anna")
    for mode in (0o620, 0o602, 0o666):
        file.chmod(mode)
        with pytest.raises(ConfigError) as open_to_others:
            KeyRing(file)
        assert open_to_others.value.code == "key-file-unsafe"
    file.chmod(0o440)
    KeyRing(file)
    revoke_key(file, key.id)
    with pytest.raises(ConfigError) as empty:
        KeyRing(file)
    assert empty.value.code == "key-needed"


def test_a_key_asks_as_often_as_it_may(tmp_path):
    file, now = tmp_path / "keys.jsonl", [100.0]
    _, key = create_key(file, "anna", per_minute=6)
    ring = KeyRing(file, clock=lambda: now[0])
    for _ in range(6):
        ring.take(key)
    with pytest.raises(Refused) as often:
        ring.take(key)
    assert often.value.headers["Retry-After"] == "10"
    now[0] += 10  # one sixth of a minute fills one place
    ring.take(key)
    with pytest.raises(Refused):
        ring.take(key)
    now[0] += 3600  # never more than a minute's worth
    for _ in range(6):
        ring.take(key)
    with pytest.raises(Refused):
        ring.take(key)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.7", False), ("example.org", False)],
)  # fmt: skip
def test_only_loopback_needs_no_key(host, loopback):
    assert is_loopback(host) == loopback
    if loopback:
        assert access_rules(host, None).keys is None
    else:
        with pytest.raises(ConfigError) as refused:
            access_rules(host, None)
        assert refused.value.code == "key-needed"


def allowed(access, host="localhost:8000", **headers):
    try:
        access.check("/v1/models", {"host": host, **headers}, "http")
    except Refused as refused:
        return refused.code
    return True


def test_host_and_origin_keep_pages_of_other_sites_out():
    access = access_rules("127.0.0.1", None, hosts=frozenset({"box"}), origins=frozenset({"https://app.example"}))
    assert allowed(access)
    assert allowed(access, "127.0.0.1:8000") is True
    assert allowed(access, "[::1]:8000") is True
    assert allowed(access, "LOCALHOST") is True
    assert allowed(access, "box:8000") is True
    assert allowed(access, "evil.example:8000") == "bad-host"  # its name was rebound to 127.0.0.1
    for forged in ("localhost.evil.example", "[::1].evil.example", "localhost:1@evil.example", "localhost:x", "[::1"):
        assert allowed(access, forged) == "bad-host"
    assert allowed(access_rules("::1", None), "") == "bad-host"
    assert allowed(access, "") == "bad-host"
    assert allowed(access, origin="http://localhost:8000") is True
    assert allowed(access, origin="https://app.example") is True
    assert allowed(access, origin="https://evil.example") == "bad-origin"
    assert allowed(access, origin="http://localhost:9000") == "bad-origin"
    assert allowed(access, origin="null") == "bad-origin"


def test_a_server_with_keys_asks_for_one(served, tmp_path):
    file = tmp_path / "keys.jsonl"
    secret, key = create_key(file, "anna", per_minute=3)
    with running(served, access=Access(KeyRing(file))) as server:
        for probe in ("/health", "/ready"):
            assert httpx.get(server.url + probe).status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert httpx.get(server.url + path).status_code == 401
        wrong = httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer rung-wrong"})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid-api-key")
        assert wrong.headers["WWW-Authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError):
            server.client("rung-wrong").models.list()
        client = server.client(secret)
        for _ in range(3):
            client.chat.completions.create(model="fake", messages=HELLO, max_tokens=2)
        assert {one.key for one in server.kept.interactions} == {key.id}
        with pytest.raises(openai.RateLimitError) as often:
            client.chat.completions.create(model="fake", messages=HELLO, max_tokens=2)
        assert int(often.value.response.headers["Retry-After"]) == 20


def test_host_and_origin_are_checked_before_anything_else(served):
    with running(served) as server:
        body = {"model": "fake", "messages": HELLO, "max_tokens": 1}
        assert server.post("/v1/chat/completions", body, headers={"Host": "evil.example"}).status_code == 403
        assert server.post("/v1/chat/completions", body, headers={"Origin": "https://evil.example"}).status_code == 403
        assert server.post("/v1/chat/completions", body).status_code == 200


def test_metrics_tell_of_requests_tokens_and_failures(served):
    with running(served) as server:
        for _ in range(2):
            server.post("/v1/chat/completions", {"model": "fake", "messages": HELLO, "max_tokens": 4})
        server.post("/v1/chat/completions", {"model": "nothing", "messages": HELLO})
        assert server.idle()
        text = httpx.get(f"{server.url}/metrics").text
        assert 'rung_tokens_total{kind="completion",model="fake"} 8.0' in text
        assert 'rung_tokens_total{kind="prompt",model="fake"} 6.0' in text
        assert 'rung_requests_total{endpoint="/v1/chat/completions",status="200"} 2.0' in text
        assert 'rung_requests_total{endpoint="/v1/chat/completions",status="404"} 1.0' in text
        assert 'rung_failures_total{code="model_not_found"} 1.0' in text
        assert "rung_queue 0.0" in text
        assert "nothing" not in text  # names that clients make up are no labels
