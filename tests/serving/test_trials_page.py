"""The page of trials in a real browser: figures, the next step, promotion and stop."""

import html
import json
import re
from dataclasses import replace

import httpx
import pytest
from pages_server import PLANTED, begin_trial, pages
from typer.testing import CliRunner

from rung.artifact.artifact import Artifact
from rung.cli.main import app
from rung.feedback.registry import Registry


@pytest.fixture
def server(served, artifacts, tmp_path):
    with pages(served, artifacts, tmp_path) as server:
        yield server


def shown(server):
    """What `rung trial show` says, as JSON and as text."""
    places = ["--registry", str(server.registry), "--store", server.wiring.store.name]
    said = [CliRunner().invoke(app, ["trial", "show", "intents", *places, *more]).stdout for more in (["--json"], [])]
    return json.loads(said[0]), said[1]


def figures(page):
    return dict(
        zip(page.locator(".trial dt").all_inner_texts(), page.locator(".trial dd").all_inner_texts(), strict=True)
    )


def token_of(server, path="/trials"):
    text = httpx.get(server.url + path).text
    return text.partition('name="form_token" value="')[2].partition('"')[0]


def test_an_open_trial_is_shown_as_the_command_shows_it(server, artifacts, watched):
    page = watched.page
    page.goto(f"{server.url}/trials")
    assert "Nothing was promoted yet" in page.locator("main").inner_text()
    page.goto(f"{server.url}/runs/intents")
    assert page.get_by_role("link", name="the trial of intents").count() == 0
    trial = begin_trial(server, artifacts["intents"], artifacts["few-shot"], "++-=" * 5)
    page.reload()
    page.get_by_role("link", name="the trial of intents").click()
    assert page.url == f"{server.url}/trials/intents"
    assert page.locator("nav a[aria-current]").inner_text() == "Trials"
    found, text = shown(server)
    delta, interval = re.search(r"pairs: accuracy (\S+ pp) (\[.+?\]), 10 fixed", text).groups()
    assert (found["pairs"], found["fixed"], found["broken"], found["delta"]) == (20, 10, 5, 0.25)
    assert figures(page) == {
        "Difference of accuracy": delta, "95 % interval": interval, "Fixed / broken": "10 / 5", "Pairs of 10,000": "20",
        "Evidence": f"p = {found['p']:.3f}",
    }  # fmt: skip
    assert (delta, page.locator(".decision").inner_text()) == ("+25.0 pp", "Undecided so far.")
    rows = [row.split("\t") for row in page.locator(".trial tbody tr").all_inner_texts()]
    names = [Artifact.load(artifacts[name]).name for name in ("intents", "few-shot")]
    assert rows == [
        ["artifact", *names], ["fingerprint", trial.against[:12], trial.artifact[:12]], ["answered", "20", "20"],
        ["judged", "20", "20"],
    ]  # fmt: skip
    reach = max(-found["low"], found["high"])
    places = [round(100 + 94 * value / reach, 1) for value in (found["low"], found["delta"], found["high"])]
    line, dot = page.locator("line.span"), page.locator("circle")
    assert [float(line.get_attribute("x1")), float(dot.get_attribute("cx")), float(line.get_attribute("x2"))] == places
    assert page.locator(".trial pre").inner_text() == found["next"] == text.rpartition("Next: ")[2].strip()
    page.get_by_role("link", name="where the two disagree").click()
    assert page.url == f"{server.url}/failures?reason=disagreement&task=intents"
    assert watched.problems == []


def test_whether_this_server_answers_with_both_is_said(server, artifacts, served):
    trial = begin_trial(server, artifacts["intents"], artifacts["few-shot"], "")
    warning = "This server does not answer with both."
    assert warning in httpx.get(f"{server.url}/trials").text
    served.challenge("intents", artifacts["few-shot"], trial)
    try:
        assert warning not in httpx.get(f"{server.url}/trials").text
    finally:
        served.withdraw("intents")


def test_a_won_trial_is_promoted_with_its_figures(server, artifacts, watched):
    page, registry = watched.page, Registry(server.registry, "intents")
    trial = begin_trial(server, artifacts["intents"], artifacts["few-shot"], "+" * 12)
    found, text = shown(server)
    page.goto(f"{server.url}/trials/intents")
    assert page.locator(".trial pre").inner_text() == text.rpartition("Next: ")[2].strip() == found["next"]
    assert found["next"].startswith(f"rung promote {registry.path(trial)} --reason 'trial ")
    page.get_by_label("Your name").fill("Bob")
    page.get_by_label("Reason").fill(f"it answers better {PLANTED}")
    page.get_by_role("button", name="Promote").click()
    page.locator(".note").wait_for()
    assert page.url == f"{server.url}/promotions?switched=yes"
    now = registry.current()
    assert (now.artifact, now.reviewer, now.evidence["trial"]) == (trial.artifact, "Bob", trial.token)
    assert now.evidence["decision"].endswith(found["next"].partition("--reason '")[2].partition("'")[0])
    assert page.title() == "Promotions · Rung"
    assert PLANTED in page.locator(".history").text_content()
    page.goto(f"{server.url}/trials/intents")
    assert page.locator(".state").inner_text() == "overtaken by a promotion"
    assert page.locator("main button:not(.term)").count() == 0
    assert watched.problems == []


def test_a_trial_is_stopped_and_stays_to_be_looked_at(server, artifacts, watched):
    registry = Registry(server.registry, "intents")
    begin_trial(server, artifacts["intents"], artifacts["few-shot"], "-" * 12)
    page = watched.page
    page.goto(f"{server.url}/trials")
    assert page.locator(".decision").inner_text() == "The served artifact is better; the trial may be stopped."
    assert page.locator(".trial pre").inner_text() == f"rung trial stop intents --registry {server.registry}"
    page.get_by_role("button", name="Stop").click()
    page.locator(".note").wait_for()
    assert registry.trial().ended is not None
    assert page.locator(".state").inner_text() == "stopped"
    assert page.locator("main button:not(.term)").count() == 0
    assert watched.problems == []


def test_a_planted_name_is_shown_as_text(server, artifacts, watched, tmp_path):
    loaded = Artifact.load(artifacts["few-shot"])
    planted = replace(loaded, path=("zero-shot", PLANTED)).save(tmp_path / "planted")
    begin_trial(server, artifacts["intents"], planted, "+" * 12)
    watched.page.goto(f"{server.url}/trials/intents")
    assert watched.page.locator(".trial td").nth(1).inner_text() == PLANTED
    assert watched.page.title() == "Trials · Rung"
    assert watched.page.locator("main script, main img").count() == 0
    assert html.escape(PLANTED, quote=False)[:14] in httpx.get(f"{server.url}/trials").text
    assert watched.problems == []


def test_forms_that_are_late_forged_or_empty_change_nothing(server, artifacts):
    registry = Registry(server.registry, "intents")
    trial = begin_trial(server, artifacts["intents"], artifacts["few-shot"], "++-=" * 5)
    url, good = f"{server.url}/trials/intents", {"form_token": token_of(server), "trial": trial.token}

    def refused(action, values, **headers):
        answer = httpx.post(f"{url}/{action}", data=values, headers={"accept": "text/html", **headers})
        return answer.status_code, html.unescape(answer.text)

    assert refused("stop", {"trial": trial.token})[0] == 403
    assert refused("stop", good, origin="https://evil.example")[0] == 403
    status, text = refused("stop", {**good, "trial": "0" * 32})
    assert (status, "another trial of intents was started" in text) == (400, True)
    status, text = refused("promote", good)
    assert (status, "a promotion needs the name of who decides" in text) == (400, True)
    status, text = refused("promote", {**good, "reviewer": "Bob"})
    assert (status, "does not show that its challenger is better" in text) == (400, True)
    assert httpx.post(f"{server.url}/trials/none/stop", data=good).status_code == 404
    assert httpx.get(f"{server.url}/trials/none").status_code == 404
    assert registry.trial() == trial
    assert registry.current().artifact == trial.against


def test_a_trial_that_cannot_be_read_is_told_and_the_others_are_shown(server, artifacts):
    begin_trial(server, artifacts["intents"], artifacts["few-shot"], "+")
    other = Registry(server.registry, "notes")
    other.promote(artifacts["notes"], server.wiring.store, evidence={}, reviewer="Ann")
    (Registry(server.registry, "intents").folder / "trial").write_text("[]")
    text = html.unescape(httpx.get(f"{server.url}/trials").text)
    assert "intents/trial is" in text  # no JSON object
    assert f"rung trial start notes ARTIFACT --mode shadow --registry {server.registry}" in text
