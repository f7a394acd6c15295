"""Pages of other sites, in a real browser: they read answers and errors if their site is allowed, and else nothing."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from paced_engine import FakeEngine
from running_server import HELLO, running

from rung.errors import ConfigError
from rung.serving.access import KeyRing, access_rules, create_key
from rung.serving.served import Served

SITE = "https://chat.example.org"
ASK = """async ([url, key]) => {
  const headers = {'Content-Type': 'application/json', 'x-stainless-lang': 'js'};
  if (key) headers.Authorization = `Bearer ${key}`;
  const messages = [{role: 'user', content: 'Where is my card?'}];
  const body = JSON.stringify({model: 'fake', messages, max_tokens: 2});
  try {
    const answer = await fetch(url + '/v1/chat/completions', {method: 'POST', headers, body});
    return [answer.status, answer.headers.get('retry-after'), 'choices' in await answer.json()];
  } catch (error) { return String(error); }
}"""


@pytest.fixture(scope="module")
def served():
    served = Served()
    served.add_engine("fake", FakeEngine())
    yield served
    served.close()


@contextmanager
def other_site():
    """Yield the address of an empty page on another port, which is another site to a browser."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *values):
            pass

    site = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{site.server_port}"
    site.shutdown()
    site.server_close()
    thread.join()


def test_a_page_of_an_allowed_site_reads_answers_and_errors(served, tmp_path, watched):
    secret, _ = create_key(tmp_path / "keys.jsonl", "anna", per_minute=1)
    with other_site() as site:
        rules = access_rules("127.0.0.1", KeyRing(tmp_path / "keys.jsonl"), origins=frozenset({f"{site}/"}))
        with running(served, access=rules) as server:
            watched.page.goto(f"{site}/favicon.ico")
            assert watched.page.evaluate(ASK, [server.url, secret]) == [200, None, True]
            assert watched.page.evaluate(ASK, [server.url, secret]) == [429, "60", False]
            assert watched.page.evaluate(ASK, [server.url, "rung-wrong"]) == [401, None, False]
        with running(served, access=access_rules("127.0.0.1", None)) as server:
            assert "Failed to fetch" in watched.page.evaluate(ASK, [server.url, None])


def test_headers_for_other_sites_are_on_the_api_alone(served):
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-y"}
    with running(served, access=access_rules("127.0.0.1", None, origins=frozenset({SITE}))) as server:
        url = f"{server.url}/v1/chat/completions"
        before = httpx.options(url, headers={"Origin": SITE, **asks})
        assert (before.status_code, before.headers["access-control-allow-headers"]) == (204, "authorization,x-y")
        assert "POST" in before.headers["access-control-allow-methods"]
        answer = server.post("/v1/chat/completions", {"model": "none", "messages": HELLO}, headers={"Origin": SITE})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (404, SITE)
        assert "access-control-allow-credentials" not in answer.headers  # cookies stay at home
        for origin in ("https://evil.example", f"{SITE}.evil.example", "null"):
            refused = httpx.options(url, headers={"Origin": origin, **asks})
            assert (refused.status_code, "access-control-allow-origin" in refused.headers) == (403, False)
        page = httpx.get(f"{server.url}/sign-in", headers={"Origin": SITE})
        assert (page.status_code, "access-control-allow-origin" in page.headers) == (403, False)
        assert "access-control-allow-origin" not in httpx.get(f"{server.url}/v1/models").headers


@pytest.mark.parametrize("origin", ["chat.example.org", "https://chat.example.org/app", "*"])
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(ConfigError):
        access_rules("127.0.0.1", None, origins=frozenset({origin}))


def test_any_site_may_ask_where_a_key_is_needed(tmp_path):
    create_key(tmp_path / "keys.jsonl", "anna")
    rules = access_rules("127.0.0.1", KeyRing(tmp_path / "keys.jsonl"), origins=frozenset({"*"}))
    headers = rules.cors("/v1/models", {"origin": SITE}, preflight=False)
    assert headers["Access-Control-Allow-Origin"] == SITE


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models"])
def test_probes_may_ask_for_the_head_alone(served, path):
    with running(served) as server:
        answer = httpx.head(server.url + path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) == len(httpx.get(server.url + path).content)
