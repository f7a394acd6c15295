import time

import pytest
from fault_server import FaultServer, Reply, completion, delta, events

from rung.artifact.artifact import Artifact
from rung.artifact.labels import LabelScoring
from rung.artifact.text import Generate
from rung.engines import opening
from rung.engines.api import ApiEngine
from rung.engines.api_options import ApiBudget, ApiOptions, parse_endpoint
from rung.engines.api_transport import usage
from rung.engines.base import Constraint, GenerateRequest, Sampling, ScoreRequest
from rung.engines.response_cache import CachedEngine, ResponseStore
from rung.errors import ConfigError, EngineError
from rung.models.messages import with_thinking
from rung.models.thinking import THOUGHT_TOKENS

CHAT = "/v1/chat/completions"
PROMPT = ({"role": "user", "content": "hello"},)
BROKEN = {
    "rate limit": Reply({"error": {"message": "slow down"}}, 429),
    "server error": Reply({"error": {"message": "boom"}}, 500),
    "overloaded": Reply(b"<html>busy</html>", 503, kind="text/html"),
    "malformed JSON": Reply(b'{"choices": [', kind="application/json"),
    "a list": Reply([1]),
    "no choices": Reply({"choices": []}),
    "half an answer": Reply(completion("x" * 500), cut=100),
    "closed at once": Reply(completion(), cut=0),
}


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in ("RUNG_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    server = FaultServer()
    yield server
    server.close()


def open_at(server, **options):
    return ApiEngine(server.reference, ApiOptions(**{"timeout": 5.0, **options}), pause_scale=0.01)


GREEDY = Sampling()


def asks(count, sampling=GREEDY, **fields):
    return [GenerateRequest(({"role": "user", "content": str(i)},), sampling, **fields) for i in range(count)]


def echo(path, body):
    return Reply(completion(body["messages"][0]["content"]), delay=0.02)


# ---- completions


def test_many_requests_keep_their_order_and_the_bound(server):
    server.answer = echo
    made = open_at(server, concurrency=3).generate(asks(20))
    assert [g.text for g in made] == [str(i) for i in range(20)]
    assert server.most_at_once == 3
    assert {(g.prompt_tokens, g.completion_tokens, g.finish_reason) for g in made} == {(10, 5, "stop")}


def test_the_body_says_what_was_asked(server):
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.9, seed=3, stop=("\n",))
    content = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.0}]
    server.replies[CHAT].append(Reply(completion("ab", logprobs={"content": content}, finish_reason="length")))
    made = open_at(server).generate([GenerateRequest(PROMPT, sampling, logprobs=True)])[0]
    assert server.bodies() == [
        {
            "model": "m", "messages": list(PROMPT), "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3,
            "stop": ["\n"], "logprobs": True,
        }
    ]  # fmt: skip
    assert (made.logprobs, made.finish_reason) == ((-0.5, -1.0), "length")


def test_logprobs_that_do_not_come_are_an_error(server):
    with pytest.raises(EngineError) as caught:
        open_at(server).generate([GenerateRequest(PROMPT, logprobs=True)])
    assert caught.value.code == "scoring-unsupported"


def test_token_ids_go_to_the_plain_completions(server):
    server.answer = lambda path, body: Reply({"choices": [{"text": " out", "finish_reason": "stop"}]})
    made = open_at(server).generate([GenerateRequest((1, 2, 3))])[0]
    assert server.bodies("/v1/completions")[0]["prompt"] == [1, 2, 3]
    assert (made.text, made.prompt_tokens, made.completion_tokens) == (" out", 3, 2)  # estimates: it counted nothing


def test_a_cancelled_call_returns_what_was_made(server):
    server.answer = echo
    made = open_at(server, concurrency=2).generate(asks(40), cancelled=lambda: len(server.asked) > 4)
    states = [g.finish_reason for g in made]
    assert states.count("stop") == len(server.asked) < 40
    assert set(states) == {"stop", "cancelled"}


# ---- faults


@pytest.mark.parametrize("fault", BROKEN)
def test_a_passing_fault_is_tried_again(server, fault):
    server.replies[CHAT] += [BROKEN[fault], BROKEN[fault]]
    assert open_at(server).generate(asks(1))[0].text == "hello"
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("rate limit", "endpoint-rate-limited"), ("server error", "endpoint-failed"), ("overloaded", "endpoint-failed"),
        ("malformed JSON", "endpoint-failed"), ("no choices", "endpoint-failed"),
        ("half an answer", "endpoint-unreachable"), ("closed at once", "endpoint-unreachable"),
    ],
)  # fmt: skip
def test_a_lasting_fault_is_one_clear_error(server, fault, code):
    server.answer = lambda path, body: BROKEN[fault]
    with pytest.raises(EngineError) as caught:
        open_at(server, attempts=3).generate(asks(1))
    assert caught.value.code == code
    assert server.base_url in caught.value.message
    assert len(server.asked) == 3


def test_a_slow_answer_is_given_up_and_tried_again(server):
    server.replies[CHAT].append(Reply(completion(), delay=1.0))
    assert open_at(server, timeout=0.3).generate(asks(1))[0].text == "hello"
    server.answer = lambda path, body: Reply(completion(), delay=0.6)
    with pytest.raises(EngineError) as caught:
        open_at(server, timeout=0.2, attempts=2).generate(asks(1))
    assert caught.value.code == "endpoint-unreachable"


def test_a_server_that_is_gone(server):
    engine = open_at(server, attempts=2)
    server.close()
    with pytest.raises(EngineError) as caught:
        engine.generate(asks(1))
    assert caught.value.code == "endpoint-unreachable"
    assert "cannot be reached" in caught.value.message


@pytest.mark.parametrize("header", [{"Retry-After": "1"}, {"retry-after-ms": "1000"}])
def test_the_pause_that_the_server_asks_for_is_kept(server, header):
    server.replies[CHAT].append(Reply({"error": {"message": "slow down"}}, 429, header))
    start = time.monotonic()
    open_at(server).generate(asks(1))
    assert time.monotonic() - start >= 1  # a pause is promised, not a speed


def test_a_pause_of_an_hour_is_not_waited_for(server):
    server.replies[CHAT].append(Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "3600"}))
    with pytest.raises(EngineError) as caught:
        open_at(server).generate(asks(1))
    assert caught.value.code == "endpoint-rate-limited"


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, {"message": "bad temperature"}, "endpoint-refused"),
        (401, {"message": "who are you"}, "api-key-refused"),
        (404, {"message": "no model m"}, "endpoint-refused"),
        (400, {"message": "too long", "code": "context_length_exceeded"}, "context-overflow"),
        (400, {"message": "too long", "type": "exceed_context_size_error", "code": 400}, "context-overflow"),
        (429, {"message": "pay first", "code": "insufficient_quota"}, "endpoint-refused"),
    ],
)
def test_what_another_try_cannot_help_is_raised_at_once(server, status, error, code):
    server.answer = lambda path, body: Reply({"error": error}, status)
    with pytest.raises(EngineError) as caught:
        open_at(server).generate(asks(1))
    assert caught.value.code == code
    assert len(server.asked) == 1


def test_what_was_made_before_a_fault_is_remembered(server, tmp_path):
    refusal = Reply({"error": {"message": "not this"}}, 400)
    server.answer = lambda path, body: refusal if body["messages"][0]["content"] == "9" else echo(path, body)
    engine = CachedEngine(open_at(server, concurrency=2), ResponseStore(tmp_path / "r.sqlite"))
    with pytest.raises(EngineError, match="not this"):
        engine.generate(asks(20))
    before = len(server.bodies())
    server.answer = echo
    assert [g.text for g in engine.generate(asks(20))] == [str(i) for i in range(20)]
    assert len(server.bodies()) == before + 20 - (before - 1)  # all but the refused one were kept


# ---- streams


def test_a_stream_comes_in_pieces(server):
    server.replies[CHAT].append(events(delta("he"), delta("llo"), delta("", "stop")))
    assert list(open_at(server).stream(GenerateRequest(PROMPT))) == ["he", "llo"]
    assert server.bodies()[0]["stream"] is True


def test_a_thought_is_left_out_of_a_stream_as_out_of_a_whole_answer(server):
    server.replies[CHAT].append(
        events(delta("<thi"), delta("nk>a plan</thi"), delta("nk>\n\nhe"), delta("llo", "stop"))
    )
    assert list(open_at(server).stream(GenerateRequest(PROMPT))) == ["he", "llo"]
    server.replies[CHAT].append(events(delta("<thin"), delta("", "stop")))
    assert list(open_at(server).stream(GenerateRequest(PROMPT))) == ["<thin"]


@pytest.mark.parametrize(
    "reply",
    [
        events(delta("he"), done=False), events(delta("he"), '{"choices": [', done=False),
        events(delta("he"), {"error": {"message": "out of memory"}}),
        Reply(events(delta("he"), delta("x" * 300)).data, cut=200, kind="text/event-stream"),
    ],
    ids=["ends", "malformed", "error", "cut"],
)  # fmt: skip
def test_half_a_stream_is_an_error_after_what_came(server, reply):
    server.replies[CHAT].append(reply)
    pieces = []
    with pytest.raises(EngineError) as caught:
        pieces.extend(open_at(server).stream(GenerateRequest(PROMPT)))
    assert caught.value.code == "endpoint-failed"


def test_the_beginning_of_a_stream_is_tried_again(server):
    server.replies[CHAT] += [BROKEN["server error"], events(delta("ok", "stop"))]
    assert list(open_at(server).stream(GenerateRequest(PROMPT))) == ["ok"]


# ---- money


def test_money_is_counted(server):
    engine = open_at(server, price_input=2.0, price_output=8.0)
    engine.generate(asks(3))
    assert (engine.spent.requests, engine.spent.prompt_tokens, engine.spent.completion_tokens) == (3, 30, 15)
    assert engine.spent.money == pytest.approx((30 * 2 + 15 * 8) / 1e6)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_budget_is_never_exceeded_and_what_was_made_is_kept(server, tmp_path, concurrency):
    # Worst case of a request: 100 completion tokens; each uses 60.
    server.answer = lambda path, body: Reply(completion(body["messages"][0]["content"], output=60), delay=0.01)
    engine = open_at(server, concurrency=concurrency, price_output=1e6, budget=1000.0)
    cached = CachedEngine(engine, ResponseStore(tmp_path / "r.sqlite"))
    with pytest.raises(EngineError) as caught:
        cached.generate(asks(40, Sampling(max_tokens=100)))
    assert caught.value.code == "budget-spent"
    assert engine.spent.money == 16 * 60  # 15 * 60 + 100 fits into 1000, 16 * 60 + 100 does not
    richer = CachedEngine(open_at(server, price_output=1e6, budget=1e6), cached.store)
    assert [g.text for g in richer.generate(asks(40, Sampling(max_tokens=100)))] == [str(i) for i in range(40)]
    assert len(server.bodies()) == 40  # the sixteen were not asked for again


def test_an_attempt_of_unknown_outcome_counts_at_its_worst(server):
    server.replies[CHAT] += [BROKEN["malformed JSON"], BROKEN["rate limit"]]
    engine = open_at(server, price_output=1e6)
    engine.generate(asks(1, Sampling(max_tokens=100)))
    assert engine.spent.money == 100 + 5  # the broken answer may have been charged, the refusal was not


def test_cached_tokens_have_their_own_price_and_the_seconds_of_a_batch_are_shared(server):
    def answer(path, body):
        del path
        reply = completion(body["messages"][0]["content"], prompt=1000, output=10)
        reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 800}
        return Reply(reply, delay=0.05)

    server.answer = answer
    engine = open_at(server, concurrency=8, price_input=1.0, price_output=2.0, price_cached=0.25)
    start, before = time.perf_counter(), ApiBudget.process()
    made = engine.generate(asks(16))
    assert {(g.prompt_tokens, g.completion_tokens, g.cached_tokens) for g in made} == {(1000, 10, 800)}
    assert engine.spent.money == pytest.approx(16 * (200 * 1.0 + 800 * 0.25 + 10 * 2.0) / 1e6)
    assert (ApiBudget.process() - before).money == pytest.approx(engine.spent.money)
    # Eight run at once: the seconds add up to the time that all took, not to eight times as much.
    assert sum(g.seconds for g in made) <= time.perf_counter() - start


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2}, (9, 2, 0)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}, (9, 0, 4)),
        ({"prompt_tokens": 9, "prompt_tokens_details": None}, (9, 0, 0)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 6}, (9, 2, 6)),  # DeepSeek
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 40}}, (9, 0, 9)),
        ({"completion_tokens": 2}, None),
    ],
)
def test_usage_is_read_as_servers_write_it(counted, expected):
    assert usage({"usage": counted}) == expected


def test_a_budget_without_prices_is_refused():
    with pytest.raises(ConfigError) as caught:
        ApiOptions(budget=1.0)
    assert caught.value.code == "bad-option"


def test_options_come_from_the_environment():
    values = {"RUNG_API_CONCURRENCY": "3", "RUNG_API_BUDGET": "2.5", "RUNG_API_PRICE_INPUT": "0.1"}
    assert ApiOptions.from_environment(values) == ApiOptions(concurrency=3, budget=2.5, price_input=0.1)
    with pytest.raises(ConfigError, match="'many'"):
        ApiOptions.from_environment({"RUNG_API_CONCURRENCY": "many"})


# ---- constraints

CHOICES = Constraint("choices", ("red", "dark blue"))
REGEX = Constraint("regex", "[0-9]{3}")
SCHEMA = Constraint("json_schema", '{"type": "object"}')


def test_choices_and_regexes_travel_inside_an_object(server):
    server.replies[CHAT] += [Reply(completion('{"answer": "dark blue"}')), Reply(completion('{"answer": "123"}'))]
    engine = open_at(server, concurrency=1)
    made = engine.generate([GenerateRequest(PROMPT, constraint=CHOICES), GenerateRequest(PROMPT, constraint=REGEX)])
    assert [g.text for g in made] == ["dark blue", "123"]
    first, second = (b["response_format"]["json_schema"]["schema"]["properties"]["answer"] for b in server.bodies())
    assert first == {"type": "string", "enum": ["red", "dark blue"]}
    assert second == {"type": "string", "pattern": "^([0-9]{3})$"}


@pytest.mark.parametrize(
    ("style", "constraint", "field", "value"),
    [
        ("grammar", CHOICES, "grammar", 'root ::= "red" | "dark blue"'),
        ("structured_outputs", CHOICES, "structured_outputs", {"choice": ["red", "dark blue"]}),
        ("structured_outputs", REGEX, "structured_outputs", {"regex": "[0-9]{3}"}),
        ("guided", CHOICES, "guided_choice", ["red", "dark blue"]),
    ],
)
def test_other_servers_are_asked_in_their_own_words(server, style, constraint, field, value):
    server.replies[CHAT].append(Reply(completion("123" if constraint is REGEX else "red")))
    open_at(server, constraints=style).generate([GenerateRequest(PROMPT, constraint=constraint)])
    assert server.bodies()[0][field] == value


IGNORED = [(c, t) for c in (CHOICES, REGEX) for t in ("I think it is red", '{"answer": "green"', '{"other": 1}')]


STRICT = Constraint(
    "json_schema",
    '{"type": "object", "properties": {"b": {"type": "integer", "minimum": 0}}, "required": ["b"],'
    ' "additionalProperties": false}',
)
INVALID = [(STRICT, text) for text in ('{"a": 1}', '{"b": -1}', '{"b": 1, "c": 2}', "[1]")]


@pytest.mark.parametrize(
    ("constraint", "text"), [*IGNORED, *INVALID, (SCHEMA, "I think it is red"), (SCHEMA, '{"half": ')]
)
def test_a_server_that_ignores_a_constraint_is_found_out(server, constraint, text):
    server.answer = lambda path, body: Reply(completion(text))
    with pytest.raises(EngineError) as caught:
        open_at(server).generate([GenerateRequest(PROMPT, constraint=constraint)])
    assert caught.value.code == "constraint-unsupported"


def test_an_answer_that_is_valid_under_its_schema_is_given_as_it_came(server):
    server.answer = lambda path, body: Reply(completion('{"b":  3}'))
    assert open_at(server).generate([GenerateRequest(PROMPT, constraint=STRICT)])[0].text == '{"b":  3}'


@pytest.mark.parametrize("schema", ['{"type": "thing"}', '{"$ref": "http://127.0.0.1:1/other.json"}'])
def test_a_schema_that_is_not_valid_is_an_error_of_the_configuration(server, schema):
    server.answer = lambda path, body: Reply(completion("{}"))
    with pytest.raises(ConfigError) as caught:
        open_at(server).generate([GenerateRequest(PROMPT, constraint=Constraint("json_schema", schema))])
    assert caught.value.code == "bad-constraint"


@pytest.mark.parametrize(("style", "constraint"), [("grammar", REGEX), ("none", CHOICES), ("none", SCHEMA)])
def test_what_cannot_be_asked_for_is_an_error_before_anything_is_sent(server, style, constraint):
    with pytest.raises(EngineError) as caught:
        open_at(server, constraints=style).generate([*asks(3), GenerateRequest(PROMPT, constraint=constraint)])
    assert caught.value.code == "constraint-unsupported"
    assert not server.asked


# ---- what a server can do


def vllm(server, vocabulary):
    """Make the server speak like vLLM: tokens are characters, and `echo` gives made-up log-probabilities."""
    server.replies["/v1/models"].append(Reply({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 999}]}))

    def answer(path, body):
        if path == "/tokenize":
            text = body.get("prompt") or "".join(f"<{m['content']}>" for m in body["messages"])
            return Reply({"tokens": [ord(c) for c in text]})
        if path == "/v1/completions" and body.get("echo"):
            rows = [[None, *(vocabulary(t) for t in row[1:]), -9.0] for row in body["prompt"]]
            choices = [{"index": i, "text": "", "logprobs": {"token_logprobs": row}} for i, row in enumerate(rows)]
            return Reply({"choices": choices[::-1], "usage": {"prompt_tokens": 9, "completion_tokens": 1}})
        return Reply(completion())

    server._default = answer


def test_echo_scores_every_label(server):
    vllm(server, lambda token: -float(token) / 100)
    engine = open_at(server)
    assert engine.info.details == {
        "endpoint": server.base_url, "server": "vllm", "scoring": "echo", "tokens": "exact"
    }  # fmt: skip
    assert engine.info.context == 999
    labels = tuple(engine.encode(text) for text in ("ab", "c"))
    scored = engine.score([ScoreRequest(PROMPT, labels)])[0]
    assert scored.logprobs.tolist() == pytest.approx([-(97 + 98) / 100, -99 / 100])
    assert (scored.prompt_tokens, engine.count(PROMPT)) == (7 + 2 + 7 + 1, 7)  # the prompt is read with each label
    assert [len(b["prompt"]) for b in server.bodies("/v1/completions")] == [
        1,
        2,
    ]  # probed once, then all labels at once


def test_a_server_without_log_probabilities_says_so(server):
    engine = open_at(server)
    assert engine.info.details["scoring"] == "none"
    for call in (lambda: engine.encode("a"), lambda: engine.score([ScoreRequest(PROMPT, ((1,),))])):
        with pytest.raises(EngineError) as caught:
            call()
        assert caught.value.code == "scoring-unsupported"
        assert "choices" in caught.value.hint
    assert engine.info.details["tokens"] == "estimated"
    assert engine.count(PROMPT) == 4 + 2
    assert engine.text(PROMPT) == "[user]\nhello"


def test_embeddings(server):
    answer = {"data": [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0]}]}
    server.replies["/v1/embeddings"].append(Reply(answer))
    engine = open_at(server)
    assert engine.embed(["a", "b"]).round(6).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 1.0]]
    with pytest.raises(EngineError) as caught:
        engine.embed(["a"])
    assert caught.value.code == "embedding-unsupported"


def test_an_adapter_is_loaded_once(server, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    server.replies["/v1/load_lora_adapter"].append(Reply(b"Success", kind="text/plain"))
    engine = open_at(server)
    engine.generate(asks(3, adapter=str(tmp_path)))
    (loaded,) = server.bodies("/v1/load_lora_adapter")
    assert loaded["lora_path"] == str(tmp_path)
    assert {body["model"] for body in server.bodies()} == {loaded["lora_name"]}


def test_a_server_that_loads_no_adapters(server, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(EngineError) as caught:
        open_at(server).generate(asks(1, adapter=str(tmp_path)))
    assert caught.value.code == "adapter-unsupported"


# ---- keys and addresses


def test_a_key_is_sent_and_never_shown(server, monkeypatch):
    monkeypatch.setenv("RUNG_API_KEY", "sk-very-secret")
    monkeypatch.setenv("RUNG_API_HOSTS", server.base_url)
    server.answer = lambda path, body: Reply({"error": {"message": "sk-very-secret may not do this"}}, 400)
    engine = open_at(server)
    with pytest.raises(EngineError) as caught:
        engine.generate(asks(1))
    assert server.asked[0][2]["authorization"] == "Bearer sk-very-secret"
    shown = caught.value.render() + repr(engine._transport) + repr(engine.endpoint) + repr(engine.info)
    assert "sk-very-secret" not in shown


@pytest.mark.parametrize(
    ("reference", "environment", "key"),
    [
        ("http://localhost:1/v1#m", {}, ""),
        ("http://[::1]:1/v1#m", {"OPENAI_API_KEY": "o"}, ""),
        ("http://127.0.0.1:1/v1#m", {"RUNG_API_KEY": "r"}, "r"),
        ("https://api.test/v1#org/m", {"OPENAI_API_KEY": "o"}, "o"),
        ("https://api.test/v1#m", {"OPENAI_API_KEY": "o", "RUNG_API_KEY": "r"}, "r"),
    ],
)
def test_which_key_goes_where(reference, environment, key, monkeypatch):
    monkeypatch.setenv("RUNG_API_HOSTS", "http://[::1]:1, 127.0.0.1:1, api.test")
    assert parse_endpoint(reference, environment).key == key


@pytest.mark.parametrize("environment", [{}, {"OPENAI_API_KEY": "o"}])
def test_a_vendors_key_does_not_travel_in_clear_text(environment):
    with pytest.raises(EngineError) as caught:
        parse_endpoint("http://example.test/v1#m", environment)
    assert caught.value.code == "api-key-missing"


@pytest.mark.parametrize(
    "reference",
    [
        "http://localhost/v1", "http://localhost/v1#", "http:///v1#m", "http://u:p@localhost/v1#m",
        "http://localhost/v1?k=p#m", "http://localhost:x/v1#m",
    ],
)  # fmt: skip
def test_what_is_no_endpoint(reference):
    with pytest.raises(ConfigError) as caught:
        parse_endpoint(reference, {})
    assert caught.value.code == "unknown-model"
    assert "p@" not in caught.value.message
    assert "k=p" not in caught.value.message


# ---- artifacts


def test_engines_run_their_own_kind_of_model(server):
    assert isinstance(opening.open_engine(server.reference).engine, ApiEngine)
    for model, engine in ((server.reference, "torch"), ("embedded", "api")):
        with pytest.raises(ConfigError) as caught:
            opening.open_engine(model, engine)
        assert caught.value.code == "engine-mismatch"


def test_categories_are_written_where_they_cannot_be_scored(server, task, tmp_path):
    remote = task.model_copy(update={"model": server.reference})
    artifact = Artifact.zero_shot(remote, ("red_car", "blue_car"))
    assert artifact.decoder == Generate(len("blue car") + 8, choices=("red car", "blue car"))
    artifact = Artifact.load(artifact.save(tmp_path / "artifact"))
    server.answer = lambda path, body: Reply(completion('{"answer": "blue car"}'))
    column = task.inputs[0]
    assert artifact.predict([{column: "what?"}])[0].text == "blue_car"
    assert artifact.decoder.target_text("red_car", artifact.signature.labels) == "red car"
    server.answer = lambda path, body: Reply(completion('{"answer": "bl', finish_reason="length"))
    assert artifact.predict([{column: "and now?"}])[0].text == '{"answer": "bl'  # no label in disguise


def test_categories_are_scored_where_scores_are_exact(server, task):
    vllm(server, lambda token: -1.0)
    remote = task.model_copy(update={"model": server.reference})
    assert Artifact.zero_shot(remote, ("red", "blue")).decoder == LabelScoring(("red", "blue"), ("red", "blue"))


@pytest.mark.parametrize(
    ("owner", "thinking", "fields"),
    [
        ("vllm", "off", {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        (
            "vllm",
            "low",
            {"chat_template_kwargs": {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}},
        ),
        ("someone", "on", {"reasoning_effort": "medium"}),
        ("someone", "off", {}),
    ],
)
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", ""])
def test_thoughts_are_asked_for_and_read_apart_from_the_answer(server, owner, thinking, fields, key):
    server.replies["/v1/models"] = [Reply({"data": [{"id": "m", "owned_by": owner}]})]
    written = {"content": "5", key: "2 and 3"} if key else {"content": "<think>\n2 and 3\n</think>\n\n5"}
    server.replies["/v1/chat/completions"] = [Reply(completion(message={"role": "assistant", **written}))]
    engine = open_at(server)
    assert engine.info.model == "m"  # it is asked what kind of server it is, as for every fingerprint
    prompt = with_thinking(({"role": "user", "content": "2+3?"},), thinking)
    (one,) = engine.generate([GenerateRequest(prompt, Sampling(8))])
    assert (one.text, one.reasoning) == ("5", "2 and 3")
    body = next(body for path, body, _ in server.asked if path == "/v1/chat/completions")
    assert body["messages"] == [{"role": "user", "content": "2+3?"}]
    assert {name: body[name] for name in ("chat_template_kwargs", "reasoning_effort") if name in body} == fields
    assert body["max_tokens"] == 8 + THOUGHT_TOKENS.get(thinking, 0)
