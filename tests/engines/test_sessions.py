import numpy as np
import pytest
import torch

from rung.engines.base import Constraint, Continuous, GenerateRequest, Reads, Sampling, StreamBuffer
from rung.engines.opening import open_torch
from rung.errors import EngineError
from rung.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def engine(tiny_folder):
    return open_torch(str(tiny_folder))


def asked(text, **sampling):
    return GenerateRequest(({"role": "user", "content": text},), Sampling(**sampling))


class Followed:
    """Steps a session to its end, and keeps what came by key."""

    def __init__(self, session):
        self.session = session
        self.text, self.tokens, self.logprobs, self.reason, self.errors = {}, {}, {}, {}, {}

    def step(self):
        for delta in self.session.step():
            if delta.error is not None:
                self.errors[delta.key] = delta.error
                continue
            assert delta.key not in self.reason, "something came after the end"
            self.text[delta.key] = self.text.get(delta.key, "") + delta.text
            self.tokens[delta.key] = self.tokens.get(delta.key, ()) + delta.tokens
            self.logprobs[delta.key] = self.logprobs.get(delta.key, ()) + delta.logprobs
            if delta.reason is not None:
                self.reason[delta.key] = delta.reason

    def finish(self):
        while self.session.active:
            self.step()
        return self


def test_rows_that_join_late_and_leave_early_have_the_text_of_generate(engine):
    assert isinstance(engine, Continuous)
    requests = {
        key: asked(text, max_tokens=12) for key, text in enumerate(("one", "two or three", "a longer question"))
    }
    requests[7] = asked("sampled", max_tokens=9, temperature=0.9, seed=3)
    requests[8] = asked("sampled", max_tokens=9, temperature=0.9, seed=4)
    wanted = {key: engine.generate([request])[0] for key, request in requests.items()}
    followed = Followed(engine.session())
    followed.session.add(0, requests[0])
    followed.step()
    followed.step()
    for key in (1, 2, 7, 8):
        followed.session.add(key, requests[key])
    followed.session.add(9, asked("never finished", max_tokens=400))
    followed.step()
    followed.session.cancel(9)
    followed.finish()
    followed.text.pop(9, None)
    assert followed.text == {key: one.text for key, one in wanted.items()}
    assert followed.reason == {key: one.finish_reason for key, one in wanted.items()}
    assert {key: len(tokens) for key, tokens in followed.tokens.items() if key != 9} == {
        key: one.completion_tokens for key, one in wanted.items()
    }
    assert followed.session.active == 0


def test_a_stop_text_ends_a_row_and_is_never_shown(engine):
    whole = engine.generate([asked("one", max_tokens=12)])[0].text
    stop = whole[5:8]
    followed = Followed(engine.session())
    followed.session.add(0, asked("one", max_tokens=12, stop=(stop,)))
    followed.finish()
    assert followed.text[0] == whole[: whole.find(stop)]
    assert followed.reason[0] == "stop"


def test_marks_of_calls_stay_in_the_text_only_where_the_request_says_so(engine, monkeypatch):
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids, *, call_marks=False: f"{call_marks}")
    for kept in (True, False):
        request, followed = asked("one", max_tokens=2, call_marks=kept), Followed(engine.session())
        followed.session.add(0, request)
        assert followed.finish().text[0] == engine.generate([request])[0].text == f"{kept}"


def test_a_constraint_that_is_not_valid_fails_alone(engine):
    followed = Followed(engine.session())
    broken = GenerateRequest(({"role": "user", "content": "x"},), Sampling(max_tokens=5), Constraint("regex", "("))
    followed.session.add(0, asked("one", max_tokens=5))
    followed.session.add(1, broken)
    followed.finish()
    assert followed.errors[1].code == "bad-constraint"
    assert followed.text == {0: engine.generate([asked("one", max_tokens=5)])[0].text}


def test_a_prompt_that_does_not_fit_is_refused_when_it_is_added(engine):
    with pytest.raises(EngineError) as refused:
        engine.session().add(0, asked("word " * 600, max_tokens=5))
    assert refused.value.code == "context-overflow"


def test_token_scores_are_those_of_the_plain_model(engine):
    assert isinstance(engine, Reads)
    texts = [engine.encode("The card has not arrived yet."), engine.encode("No"), engine.encode("Where is it?")]
    for text, scored in zip(texts, engine.read(texts, top=3), strict=True):
        with torch.inference_mode():
            logits = torch.log_softmax(engine.model(torch.tensor([text])).logits[0].float(), -1)
        assert np.isnan(scored.logprobs[0])
        assert np.isnan(scored.top_logprobs[0]).all()
        expected = [float(logits[i, token]) for i, token in enumerate(text[1:])]
        np.testing.assert_allclose(scored.logprobs[1:], expected, atol=1e-4)
        assert scored.top_tokens[1:].tolist() == logits[:-1].topk(3).indices.tolist()


def test_what_may_still_change_is_held_back():
    shown = StreamBuffer()
    assert shown.more("Hel", ("lo!",), ended=False) == "H"
    assert shown.more("Hello \ufffd", ("lo!",), ended=False) == ""
    assert shown.more("Hello é", ("lo!",), ended=False) == "ello"
    assert shown.more("Hello é", ("lo!",), ended=True) == " é"
