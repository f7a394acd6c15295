"""`rung failures`, `rung promote`, `rung rollback`: what a person does, on a real store."""

import json
import re
import shlex
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from rung.cli.main import app
from rung.errors import RungError
from rung.feedback.records import Feedback, Interaction
from rung.feedback.store import FeedbackStore


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNG_STORE", str(tmp_path / "f.db"))

    def call(*arguments):
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        if isinstance(done.exception, RungError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    return call


@pytest.fixture
def stored(tmp_path):
    from datetime import UTC, datetime

    with FeedbackStore(tmp_path / "f.db") as store:
        store.record(
            [
                Interaction(
                    f"r{i}", datetime(2026, 1, 1, tzinfo=UTC), "intents", "a", "m", "Which intent?", "{text}", "v",
                    {"text": f"\x1b[31mWhere is card {i}?"}, "p", "age_limit", 0.9 - 0.3 * i, 1, 1, 0.1, None, "stop",
                    "train",
                )
                for i in range(3)
            ]
        )  # fmt: skip
        store.add_feedback(Feedback("r0", thumb="down", comment="no"))


def test_listed_corrected_undone_and_counted(run, stored):
    listed = run("failures", "list", "--json")
    assert [(c["id"], c["reasons"]) for c in listed["cases"]] == [("r0", ["bad feedback"]), ("r2", ["low confidence"])]
    text = run("failures", "list")
    assert "2 of 2 cases" in text
    assert "\x1b" not in text
    done = run("failures", "correct", "r0", "card_arrival", "--reviewer", "Ann", "--json")
    assert done == {"correction": 1, "failure": True, "split": "train"}
    assert "the answer was right" in run("failures", "correct", "r2", "age_limit")
    assert run("failures", "list", "--json")["count"] == 0
    assert [c["id"] for c in run("failures", "list", "--wrong", "--json")["cases"]] == ["r0"]
    assert run("failures", "list", "--all", "--json")["count"] == 3
    shown = run("failures", "show", "r0")
    assert re.search(r"feedback .* by user: down, no\n1\. .* Ann: expected 'card_arrival'", shown)
    assert "\x1b" not in shown
    stats = run("failures", "stats", "--json")
    assert stats == {
        "captured": 3, "suspicious": 2, "queue": 0, "reviewed": 2, "wrong": {"train": 1, "test": 0}, "fixed": 0,
        "reasons": {"bad feedback": 1, "invalid output": 0, "unfinished": 0, "retrieval miss": 0,
                    "disagreement": 0, "low confidence": 1},
    }  # fmt: skip
    assert "1 wrong to train on" in run("failures", "stats")
    assert run("failures", "undo", "r0", "--reviewer", "Ann", "--json") == {"correction": 3, "expected": None}
    assert len(run("failures", "show", "r0", "--json")["history"]) == 2


def test_exported_and_imported(run, stored, tmp_path, small_task_file):
    run("failures", "correct", "r0", "card_arrival", "--reviewer", "Ann")
    run("failures", "export", "--to", "csv", "--out", "out.csv")
    head = "prompt template,input,actual response,expected response\n"
    assert (tmp_path / "out.csv").read_text() == (
        f'{head}"Which intent?\n\n{{text}}",\x1b[31mWhere is card 0?,age_limit,card_arrival\n'
    )
    assert json.loads(run("failures", "export", "--to", "preference"))["rejected"][0]["content"] == "age_limit"
    new = ("--store", tmp_path / "new.db")
    done = run("failures", "import", "out.csv", small_task_file, "--reviewer", "Bob", "--json", *new)
    assert done == {"cases": 1, "corrections": 1, "blank": 0, "ignored": [], "format": ""}
    assert run("failures", "list", "--wrong", "--json", *new)["cases"][0]["reviewer"] == "Bob"
    for arguments, code in (
        (("export", "--to", "xml"), "unknown-name"),
        (("export", "--out", "out.csv"), "file-exists"),
        (("list", "--reason", "mood"), "unknown-name"),
        (("list", "--split", "validation"), "unknown-name"),
        (("list", "--store", "none.db"), "no-such-file"),
        (("show", "r9"), "no-such-interaction"),
    ):
        with pytest.raises(RungError) as raised:
            run("failures", *arguments)
        assert raised.value.code == code
    assert not (tmp_path / "none.db").exists()


def test_promoted_and_rolled_back(run, zero, tmp_path):
    from dataclasses import replace

    for word in ("one", "two"):
        replace(zero, prompt=replace(zero.prompt, system=word)).save(tmp_path / word)
    with pytest.raises(RungError) as raised:
        run("promote", "one")
    assert raised.value.code == "missing-field"
    for word in ("one", "two"):
        made = run("promote", word, "--reason", "first release", "--reviewer", "Ann", "--json")
        assert (made["task"], made["kind"], made["evidence"]) == ("intents", "promote", {"reason": "first release"})
    assert "is served from registry/intents/artifacts/" in run("rollback", "intents", "--reason", "worse")
    current = json.loads((tmp_path / "registry" / "intents" / "current").read_text())
    assert (
        json.loads((tmp_path / "registry" / "intents" / current["folder"] / "artifact.json").read_text())["prompt"][
            "system"
        ]
        == "one"
    )
    (tmp_path / "runs").mkdir()
    for arguments, code in ((("rollback", "intents"), "nothing-to-undo"), (("promote", "runs"), "wrong-folder")):
        with pytest.raises(RungError) as raised:
            run(*arguments)
        assert raised.value.code == code


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("start", "intents", "artifact", "--mode", "canary"), "unknown-name"),
        (("start", "intents", "artifact", "--share", "0.5"), "bad-option"),
        (("start", "intents", "artifact", "--mode", "ab", "--share", "1.5"), "bad-option"),
        (("start", "intents", "artifact"), "nothing-served"),
        (("show", "intents"), "no-trial"),
        (("stop", "intents"), "no-trial"),
    ],
)
def test_a_trial_that_cannot_be_is_refused(run, stored, zero, tmp_path, arguments, code):
    zero.save(tmp_path / "artifact")
    with pytest.raises(RungError) as refused:
        run("trial", *arguments)
    assert refused.value.code == code


def pasted(run, text):
    """Run the command that an output ends with, and return its JSON."""
    words = shlex.split(text.rpartition("Next: ")[2])
    assert words[0] == "rung"
    return run(*words[1:], "--json")


def test_a_trial_is_started_shown_and_stopped(run, stored, zero, tmp_path):
    for word in ("one", "two"):
        replace(zero, prompt=replace(zero.prompt, system=word)).save(tmp_path / word)
    run("promote", "one", "--reason", "first release", "--reviewer", "Ann")
    said = run("trial", "start", "intents", "two", "--mode", "ab", "--share", "0.25", "--stop-after", "200")
    assert "is tried on 25% of the inputs" in said
    shown = run("trial", "show", "intents", "--json")
    assert {name: shown[name] for name in ("mode", "share", "stop_after", "running", "answered", "judged", "pairs",
                                           "delta", "fixed", "broken", "p", "state", "stop")} == {
        "mode": "ab", "share": 0.25, "stop_after": 200, "running": True, "answered": {"a": 0, "b": 0},
        "judged": {"a": 0, "b": 0}, "pairs": 0, "delta": 0.0, "fixed": 0, "broken": 0, "p": 1.0, "state": "open",
        "stop": False,
    }  # fmt: skip
    assert (shown["low"], shown["high"]) == (-1.0, 1.0)
    text = run("trial", "show", "intents")
    assert "0 of at most 200 pairs: accuracy +0.0 pp [-100.0, +100.0], 0 fixed / 0 broken, p = 1.000\n" in text
    assert pasted(run, text)["count"] == 3  # all that the store holds
    assert "is stopped" in run("trial", "stop", "intents")
    assert "is over" in run("trial", "show", "intents")
    assert "Next:" not in run("trial", "show", "intents")


def test_the_command_that_ends_a_won_trial_works_when_it_is_pasted(run, stored, zero, tmp_path):
    for word in ("one", "two"):
        replace(zero, prompt=replace(zero.prompt, system=word)).save(tmp_path / word)
    with pytest.raises(RungError) as refused:
        run("trial", "start", "intents", "one", "--registry", "other place")
    hint = refused.value.hint.partition(": ")[2]
    assert hint == "rung promote one --reason 'first release' --registry 'other place'"
    assert run(*shlex.split(hint)[1:], "--json")["folder"].startswith("other place/intents/artifacts/")
    place = ("--registry", "other place")
    said = run("trial", "start", "intents", "two", *place)
    assert pasted(run, said)["pairs"] == 0
    trial = run("trial", "show", "intents", *place, "--json")
    assert trial["next"].startswith("rung failures list --task intents --reason disagreement")
    with FeedbackStore(tmp_path / "f.db") as store:
        sample = store.case("r0").interaction
        for number in range(12):
            sent = replace(
                sample, id=f"t{number}", artifact=trial["against"], trial=trial["id"], actual="age_limit",
                inputs={"text": f"card {number}"}, input_id="",
            )  # fmt: skip
            behind = replace(sent, id=f"s{number}", artifact=trial["artifact"], actual="card_arrival", shadows=sent.id)
            store.record([sent, behind])
            store.correct(sent.id, "card_arrival", "Ann")
    text = run("trial", "show", "intents", *place)
    assert "the challenger is better" in text
    assert pasted(run, text)["artifact"] == trial["artifact"]
    assert "Next:" not in run("trial", "show", "intents", *place)  # there is nothing left to do
