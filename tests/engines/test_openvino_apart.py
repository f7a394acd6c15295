"""OpenVINO in a process of its own: pieces, errors and endings are those of this one, and nothing waits for it."""

import copy
import json
import os
import signal
import threading

import pytest

from rung.engines.base import Constraint, Delta, GenerateRequest, Sampling
from rung.engines.opening import open_engine, open_openvino
from rung.engines.openvino_process import OpenVinoApart
from rung.errors import DataError, EngineError, Location
from rung.models.reference import resolve
from rung.worker_pipes import error_from_dict, error_to_dict

TEXTS = ("Where is my card?", "Name three fruits.", "What is money?")


def request(text, tokens=12, **kind):
    return GenerateRequest(({"role": "user", "content": text},), Sampling(max_tokens=tokens, **kind))


@pytest.fixture(scope="module")
def apart():
    open_openvino("embedded")  # exports it
    engine = OpenVinoApart(resolve("embedded"))
    yield engine
    engine.close()


def steps(session):
    deltas = []
    while session.active:
        deltas += session.step()
    return deltas


def outcome(deltas):
    """Return per key: text, tokens, prompt length, reason."""
    keys = sorted({delta.key for delta in deltas})
    rows = {key: [delta for delta in deltas if delta.key == key] for key in keys}
    return {
        key: ("".join(d.text for d in row), sum((d.tokens for d in row), ()), row[-1].prompt_tokens, row[-1].reason)
        for key, row in rows.items()
    }


def test_a_session_over_there_gives_what_one_here_gives(apart):
    here = open_openvino("embedded")
    choice = GenerateRequest(request("Yes or no?").prompt, constraint=Constraint("choices", ("yes", "no")))
    wanted = [*(request(text) for text in TEXTS), request("Tell a story.", temperature=0.8, seed=3), choice]
    outcomes = []
    for engine in (here, apart):
        session = engine.session()
        for key, one in enumerate(wanted):
            session.add(key, one)
        session.add(99, request("Dropped.", 500))
        first = session.step()
        session.cancel(99)
        session.cancel(98)  # not there, which is no error
        outcomes.append(outcome([delta for delta in first + steps(session) if delta.key != 99]))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) == len(wanted)
    assert apart.info == here.info


def test_an_error_over_there_is_the_same_error_here_and_ends_nothing_else(apart):
    session = apart.session()
    session.add(1, request(TEXTS[0]))
    with pytest.raises(EngineError, match="do not fit the context") as caught:
        session.add(2, request("word " * 9000))
    assert caught.value.code == "context-overflow"
    assert "shorten the input" in caught.value.hint
    assert session.active == 1
    assert outcome(steps(session))[1][3] == "length"


def test_others_run_while_it_computes(apart):
    """In one process openvino-genai keeps every other thread waiting for the whole of a step."""
    session = apart.session()
    for key in range(16):
        session.add(key, request(f"{key} " * 200))
    session.step()
    moves, ended = [], threading.Event()

    def move():
        while not ended.wait(0.001):
            moves.append(1)

    thread = threading.Thread(target=move)
    thread.start()
    session.step()  # reads prompts of some 400 tokens
    during = len(moves)
    ended.set()
    thread.join()
    steps(session)
    assert during > 10


def test_a_process_that_was_killed_is_an_error_and_then_started_again(apart):
    session = apart.session()
    session.add(1, request(TEXTS[0]))
    os.kill(apart._worker.process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="ended with exit code -9") as caught:
        steps(session)
    assert caught.value.code == "generation-failed"
    with pytest.raises(EngineError, match="the process that runs"):
        session.add(2, request(TEXTS[0]))
    again = apart.session()
    again.add(1, request(TEXTS[0]))
    assert outcome(steps(again))[1][3] == "length"


def test_signals_for_the_whole_server_leave_the_end_to_the_parent(apart):
    session = apart.session()
    session.add(1, request(TEXTS[0]))
    os.kill(apart._worker.process.pid, signal.SIGTERM)
    os.kill(apart._worker.process.pid, signal.SIGINT)
    assert outcome(steps(session))[1][3] == "length"


def test_it_has_sessions_alone(apart):
    for name in ("generate", "score", "embed"):
        with pytest.raises(TypeError, match="sessions only"):
            getattr(apart, name)([])
    with pytest.raises(TypeError, match="sessions only"):
        apart.stream(request("x"))


def test_a_server_s_engine_closes_its_process():
    engine = open_engine("embedded", "openvino", remember=False, apart=True)
    session = engine.session()
    session.add(1, request(TEXTS[0], 2))
    assert isinstance(steps(session)[0], Delta)
    process = engine._generator._worker.process
    engine.close()
    assert process.returncode == 0


def test_errors_survive_the_way_between_processes():
    error = DataError("bad-row", "no text", hint="add it", where=Location("a.csv", 3, 2, "x,y"))
    received = error_from_dict(json.loads(json.dumps(error_to_dict(error))))
    for twin in (received, copy.copy(error)):
        assert (type(twin), str(twin), twin.args, vars(twin)) == (DataError, str(error), error.args, vars(error))
