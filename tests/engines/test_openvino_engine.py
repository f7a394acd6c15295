import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from rung.engines.base import Constraint, GenerateRequest, Sampling, ScoreRequest
from rung.engines.opening import open_engine, open_openvino, open_torch
from rung.engines.openvino import unsupported
from rung.errors import ArtifactError, EngineError
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer
from rung.training.changes import keep
from rung.training.peft import PeftAdapter

QUESTIONS = ("Where is my card?", "Name three fruits.", "How old must I be?", "Tell me a story.")


@pytest.fixture(scope="module")
def engine():
    return open_openvino("embedded", "fp32")


@pytest.fixture(scope="module")
def oracle():
    return open_torch("embedded")


def messages(text):
    return ({"role": "system", "content": "Answer in one sentence."}, {"role": "user", "content": text})


def asked(texts, adapter=None, constraint=None, logprobs=False, **sampling):
    return [
        GenerateRequest(messages(text), Sampling(**sampling), constraint, adapter=adapter, logprobs=logprobs)
        for text in texts
    ]


def texts(made):
    return [one.text for one in made]


# ---- the same text as torch


def test_greedy_text_and_logprobs_are_those_of_torch(engine, oracle):
    requests = asked(QUESTIONS, max_tokens=20, logprobs=True)
    for one, other in zip(engine.generate(requests), oracle.generate(requests), strict=True):
        assert (one.text, one.prompt_tokens, one.completion_tokens, one.finish_reason) == (
            other.text, other.prompt_tokens, other.completion_tokens, other.finish_reason,
        )  # fmt: skip
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-3)


@pytest.mark.slow
def test_greedy_text_of_200_prompts_differs_from_torch_only_at_near_ties(engine, oracle):
    """Where the texts part, the two tokens' fp32 logits are nearly equal: summing in another order decides."""
    subjects = ["cards", "trains", "rain", "bread", "music", "planets", "money", "sleep", "paint", "birds"]
    forms = ["Tell me about {}.", "Why do people like {}?", "Write a poem on {}.", "List facts on {}.", "Who needs {}?",
             "Explain {} to a child.", "What is the history of {}?", "Describe {} in detail.", "Are {} dangerous?",
             "Compare {} with stones."]  # fmt: skip
    prompts = [form.format(subject) + more for form in forms for subject in subjects for more in ("", " Be brief.")]
    requests = asked(prompts, max_tokens=24, logprobs=True)
    ours, theirs = engine.generate(requests), oracle.generate(requests)
    different = [i for i in range(len(prompts)) if ours[i].text != theirs[i].text]
    print(f"{1 - len(different) / len(prompts):.3f} of {len(prompts)} greedy texts are equal")
    for i in different:
        gap = smallest_gap(oracle, requests[i].prompt, theirs[i].text)
        assert gap < 5e-3, (prompts[i], gap)
    assert len(different) <= 6


def smallest_gap(oracle, prompt, text):
    """Return the smallest distance of the two best logits along the text that torch wrote."""
    tokens = [*oracle.tokens(prompt), *oracle.encode(text)]
    with torch.inference_mode():
        logits = oracle.use(None)(torch.tensor([tokens])).logits[0, len(oracle.tokens(prompt)) - 1 :]
    best = logits.topk(2).values
    return (best[:, 0] - best[:, 1]).min().item()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_rows_side_by_side_are_rows_alone(precision):
    """On processors with AMX too, where OpenVINO would compute in bfloat16 by itself."""
    engine = open_openvino("embedded", precision)
    many = asked([f"{q} {i}" for i in range(8) for q in QUESTIONS], max_tokens=8)
    together = texts(engine.generate(many))
    assert together[::5] == [engine.generate([request])[0].text for request in many[::5]]
    assert together == texts(engine.generate(many))  # now from the cache of prompts


def test_threads_share_the_engine(engine):
    request = asked(["Tell me a long story."], max_tokens=24)
    alone, found = texts(engine.generate(request)), {}
    threads = [threading.Thread(target=lambda k=k: found.update({k: engine.generate(request)})) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts(found[k]) for k in range(3)] == [alone] * 3


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint("regex", "(ab|cd){2,4}"), "(ab|cd){2,4}"),
        (Constraint("choices", ("transfer", "card", "<image_soft_token>")), "transfer|card|<image_soft_token>"),
        (Constraint("json_schema", '{"enum": [1, null, "a<image_soft_token>"]}'), r'1|null|"a<image_soft_token>"'),
    ],
)
def test_tokens_without_an_embedding_do_not_disturb_constraints(image_token, constraint, pattern):
    engine, oracle = image_token
    for one in asked(QUESTIONS, constraint=constraint, max_tokens=40):
        ours, theirs = (e.generate([one])[0] for e in (engine, oracle))
        assert re.fullmatch(pattern, ours.text)
        assert re.fullmatch(pattern, theirs.text)


@pytest.fixture(scope="module")
def image_token(tmp_path_factory):
    """A tiny random model with the embedded one's tokenizer and a token for images beyond it, on both engines."""
    import transformers

    folder, source = tmp_path_factory.mktemp("image-token"), resolve("embedded").folder
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49_152, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(source / name, folder / name)
    for file in source.glob("chat_template.jinja"):
        shutil.copyfile(file, folder / file.name)
    values = json.loads((source / "tokenizer.json").read_text())
    values["added_tokens"].append({**values["added_tokens"][0], "id": 49_152, "content": "<image_soft_token>"})
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return open_openvino(str(folder), "fp32"), open_torch(str(folder))


# ---- sampling, stopping, streaming


def test_stream_is_the_text(engine):
    request = asked(["Name three fruits."], max_tokens=24)[0]
    pieces = list(engine.stream(request))
    assert len(pieces) > 3
    assert "".join(pieces) == engine.generate([request])[0].text


def test_a_stream_that_is_left_does_not_run_on(engine):
    next(iter(engine.stream(asked(["Tell me a story."], max_tokens=500)[0])))
    assert engine.generate(asked(["Hello."], max_tokens=2))[0].completion_tokens == 2


def test_stop_text_is_left_out(engine, oracle):
    free = engine.generate(asked(["Count to five."], max_tokens=24))[0].text
    request = asked(["Count to five."], max_tokens=24, stop=(free[4:7],))[0]
    cut = engine.generate([request])[0]
    assert (cut.text, cut.finish_reason) == (free[: free.index(free[4:7])], "stop")
    assert cut.completion_tokens == oracle.generate([request])[0].completion_tokens
    assert "".join(engine.stream(request)) == cut.text


def test_marks_of_calls_stay_in_the_text_only_where_the_request_says_so(engine, monkeypatch):
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids, *, call_marks=False: f"{call_marks}")
    for kept in (True, False):
        assert texts(engine.generate(asked(["one"], max_tokens=2, call_marks=kept))) == [f"{kept}"]


def test_sampling_repeats_with_its_seed_whatever_runs_beside_it(engine):
    drawn = {seed: asked(["Tell me a story."], max_tokens=16, temperature=1.0, top_p=0.9, seed=seed) for seed in (3, 4)}
    alone = texts(engine.generate(drawn[3]))
    beside = engine.generate([*drawn[4], *drawn[3], *asked(QUESTIONS, max_tokens=9, temperature=1.0)])
    assert texts(engine.generate(drawn[3])) == alone == [beside[1].text]
    assert beside[0].text != beside[1].text


def test_sampling_without_a_seed_differs_each_time(engine):
    request = asked(["Tell me a story."], max_tokens=16, temperature=1.5)
    assert len({engine.generate(request)[0].text for _ in range(3)}) == 3


def test_cancelling_returns_what_was_made(engine):
    made = engine.generate(asked(QUESTIONS, max_tokens=50), cancelled=lambda: True)
    assert {one.finish_reason for one in made} == {"cancelled"}
    assert sum(one.completion_tokens for one in made) <= len(QUESTIONS)


@pytest.mark.parametrize("ending", ["return True", "raise TimeoutError"])
def test_what_is_cancelled_or_interrupted_leaves_nothing_in_the_cache(ending):
    """Only a step frees it, and the last caller took none: OpenVINO then ended with lines of errors."""
    code = f"""
from contextlib import suppress
from rung.engines.base import GenerateRequest, Sampling
from rung.engines.opening import open_openvino
asked, steps = [({{"role": "user", "content": text}},) for text in {QUESTIONS!r}], []
def cancelled():
    steps.append(1)
    if len(steps) == 6:
        {ending}
with suppress(TimeoutError):
    requests = [GenerateRequest(one, Sampling(50)) for one in asked]
    open_openvino("embedded", "fp32").generate(requests, cancelled=cancelled)
assert len(steps) == 6
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "leaked" in done.stderr) == (0, False), done.stderr


def test_overflow_is_an_error_not_a_cut(engine):
    with pytest.raises(EngineError) as caught:
        engine.generate(asked(["word " * 9000], max_tokens=4))
    assert caught.value.code == "context-overflow"


# ---- constraints

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", 'b"l\\ue']}, "minItems": 1, "maxItems": 2},
        "next": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "tags", "next"],
    "$defs": {"place": {"type": ["object", "null"], "properties": {"at": {"anyOf": [{"const": 1}, {"type": "null"}]}}}},
}


def constrained(engine, kind, value, question, tokens=80):
    return engine.generate(asked([question], constraint=Constraint(kind, value), max_tokens=tokens))[0]


def test_choices_hold_exactly(engine):
    choices = ('say "yes"', "no\\never", "zwölf", "line\nbreak")
    for question in QUESTIONS:
        made = constrained(engine, "choices", choices, question)
        assert made.text in choices
        assert made.finish_reason == "stop"
    assert constrained(engine, "choices", ("a line\nbreak",), "?").text == "a line\nbreak"


def test_regex_holds(engine):
    made = constrained(engine, "regex", "[0-9]{3}-(cat|dog)s?", "How old must I be?")
    assert re.fullmatch("[0-9]{3}-(cat|dog)s?", made.text)


def test_json_follows_its_schema_in_rungs_style(engine):
    made = constrained(engine, "json_schema", json.dumps(SCHEMA), "Describe a person as JSON.")
    value = json.loads(made.text)
    assert made.text == json.dumps(value, ensure_ascii=False)
    assert set(SCHEMA["required"]) <= set(value) <= set(SCHEMA["properties"])
    assert list(value) == [key for key in SCHEMA["properties"] if key in value]
    assert 1 <= len(value["tags"]) <= 2
    assert set(value["tags"]) <= {"red", 'b"l\\ue'}


@pytest.mark.parametrize("schema", [{"type": "string", "pattern": "a+"}, {"type": "integer", "minimum": 3}, False,
                                    {"allOf": []}, {"type": "object", "required": ["a"]}])  # fmt: skip
def test_what_a_grammar_leaves_out_is_refused(engine, schema):
    with pytest.raises(EngineError) as caught:
        constrained(engine, "json_schema", json.dumps(schema), "?")
    assert caught.value.code == "constraint-unsupported"


def test_a_failure_inside_openvino_is_an_error_and_the_engine_goes_on(engine):
    with pytest.raises(EngineError) as caught:
        constrained(engine, "regex", "[0-9", "?")
    assert caught.value.code == "generation-failed"
    assert engine.generate(asked(["Hello."], max_tokens=2))[0].completion_tokens == 2


# ---- adapters


@pytest.fixture(scope="module")
def adapters(oracle):
    """Three LoRA adapters far from zero: plain, scaled by the root of its rank, scales and ranks by pattern."""
    from peft import LoraConfig

    settings = (
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 3}, "rank_pattern": {"v_proj": 2}},
    )
    folders = []
    for seed, extra in enumerate(settings):
        torch.manual_seed(seed)
        layers = ["q_proj", "v_proj", "down_proj"]
        config = LoraConfig(r=4, lora_alpha=6, target_modules=layers, init_lora_weights=False, **extra)
        change = PeftAdapter(oracle.use(None), config)
        folders.append(str(keep(change, oracle.files.fingerprint)))
        change.remove()
    return folders


def test_adapters_give_the_text_of_torch_several_at_once(engine, oracle, adapters):
    requests = [request for adapter in (None, *adapters) for request in asked(QUESTIONS[:2], adapter, max_tokens=12)]
    requests = requests[::2] + requests[1::2]  # neighbours of different adapters
    made = engine.generate(requests)
    assert texts(made) == texts(oracle.generate(requests))
    assert len(set(texts(made[:4]))) > 2
    assert texts(engine.generate(requests[:4])) == texts(made[:4])  # the cache of prompts is each adapter's own


def test_adapters_that_openvino_would_get_wrong_are_refused(engine, adapters, tmp_path):
    copy = tmp_path / "adapter"
    copy.mkdir()
    source = Path(adapters[0])
    (copy / "adapter_model.safetensors").write_bytes((source / "adapter_model.safetensors").read_bytes())
    config = json.loads((source / "adapter_config.json").read_text())
    for change, error, code in (
        ({"use_dora": True}, EngineError, "adapter-unsupported"),
        ({"peft_type": "IA3"}, EngineError, "adapter-unsupported"),
        ({"rung_base_fingerprint": "f" * 64}, ArtifactError, "model-mismatch"),
    ):
        (copy / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(error) as caught:
            engine.generate(asked(["?"], str(copy), max_tokens=2))
        assert caught.value.code == code
    (copy / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    assert unsupported(copy) == "it uses use_dora"


# ---- beside torch


def test_scoring_and_embedding_are_refused_alone_and_torchs_in_the_composite(engine, oracle):
    labels = (oracle.encode("yes"), oracle.encode("no"))
    request = ScoreRequest(messages(QUESTIONS[0]), labels)
    for call, code in ((lambda: engine.score([request]), "scoring-unsupported"),
                       (lambda: engine.embed(["a"]), "embedding-unsupported")):  # fmt: skip
        with pytest.raises(EngineError) as caught:
            call()
        assert caught.value.code == code
    both = open_engine("embedded", "openvino-fp32")
    np.testing.assert_array_equal(both.score([request])[0].logprobs, oracle.score([request])[0].logprobs)
    np.testing.assert_array_equal(both.embed(QUESTIONS), oracle.embed(QUESTIONS))
    assert texts(both.generate(asked(QUESTIONS, max_tokens=5))) == texts(
        engine.generate(asked(QUESTIONS, max_tokens=5))
    )
    assert both.info.context == oracle.info.context
    assert both.text(messages("a")) == oracle.text(messages("a"))
    assert both.count(messages("a")) == oracle.count(messages("a"))


def test_generating_imports_neither_torch_nor_transformers(engine):
    code = (
        "import sys; from rung.engines.base import *; from rung.engines.opening import open_engine\n"
        "e = open_engine('embedded', 'openvino-fp32')\n"
        "print(''.join(e.stream(GenerateRequest(({'role': 'user', 'content': 'Hi'},), Sampling(max_tokens=3)))))\n"
        "sys.exit(','.join({'torch', 'transformers', 'optimum'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("tokens", range(1, 9))
def test_a_cut_answer_ends_with_a_whole_character(engine, tokens):
    text = "यह शहर है 😀"
    request = GenerateRequest(messages("?"), Sampling(max_tokens=tokens), Constraint("choices", (text,)))
    answer = engine.generate([request])[0]
    assert answer.finish_reason == "length"
    assert text.startswith(answer.text)
    assert "".join(engine.stream(request)) == answer.text
