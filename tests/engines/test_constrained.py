"""Constraints on torch: with the embedded model on real receipts, and by brute force on a tiny random model."""

import json
import re

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from rung.engines.base import Constraint, GenerateRequest, RunningRow, Sampling
from rung.engines.constraints import TokenMask, compiled, constrained_text
from rung.engines.opening import open_torch
from rung.engines.torch_decoding import decode, steps
from rung.errors import ConfigError, EngineError
from rung.models.tokenizer import Tokenizer
from rung.progress import QUIET

# Two receipts of SROIE (ICDAR 2019, repository MIT), shortened.
RECEIPTS = (
    "BOOK TA .K (TAMAN DAYA) SDN BHD\n789417-W\nNO.53 55,57 & 59, JALAN SAGU 18,\nTAMAN DAYA,\n81100 JOHOR BAHRU,\n"
    "JOHOR.\nDOCUMENT NO : TD01167104\nDATE: 25/12/2018 8:13:39 PM\nTOTAL: 9.00\nCASH 10.00",
    "INDAH GIFT & HOME DECO\n27,JALAN DEDAP 13,\nTAMAN JOHOR JAYA,\n81100 JOHOR BAHRU,JOHOR.\nTEL:07-3507405\n"
    "RECEIPT\n19/10/2018 20:49:59 #01\nTOTAL RM60.30\nCASH RM80.30",
)
SCHEMA = {
    "type": "object",
    "properties": {
        "company": {"type": "string", "maxLength": 12},
        "date": {"type": "string", "pattern": "^[0-9]{2}/[0-9]{2}/[0-9]{4}$"},
        "total": {"type": "number", "minimum": 0, "maximum": 1000},
        "currency": {"enum": ["RM", "USD", None]},
    },
    "required": ["company", "date", "total", "currency"],
    "additionalProperties": False,
}
JSON = Constraint("json_schema", json.dumps(SCHEMA))


@pytest.fixture(scope="module")
def engine():
    return open_torch("embedded")


def request(text, constraint, **sampling):
    ask = "Extract the fields of this receipt as JSON."
    messages = ({"role": "system", "content": ask}, {"role": "user", "content": text})
    return GenerateRequest(messages, Sampling(**{"max_tokens": 160, **sampling}), constraint)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 1}], ids=["greedy", "hot"])
def test_json_parses_and_is_valid(engine, sampling):
    for made in engine.generate([request(text, JSON, **sampling) for text in RECEIPTS]):
        assert made.finish_reason == "stop"
        value = json.loads(made.text)
        Draft202012Validator(SCHEMA).validate(value)
        assert json.dumps(list(value)) == json.dumps(list(SCHEMA["properties"]))  # in the order of the schema


def test_a_stream_is_what_a_batch_gives(engine):
    asked = request("Answer.", Constraint("regex", "(é|ü|😀){2,4}"))
    assert "".join(engine.stream(asked)) == engine.generate([asked])[0].text


@pytest.mark.parametrize("pattern", [r"\d{2}/\d{2}/20(18|19)", r"^RM [0-9]+\.[0-9]{2}$", r"(é|ü|😀|\w{3}\n){2}"])
def test_a_regex_matches_all_of_the_text(engine, pattern):
    made = engine.generate([request("Answer.", Constraint("regex", pattern), max_tokens=24, temperature=1.0, seed=3)])
    assert made[0].finish_reason == "stop"
    assert re.fullmatch(pattern, made[0].text)


CHOICES = ("transfer", "transfer fee", "card", 'a "quoted" \\ one', "two\nlines", "Straße 😀", "<|im_end|>")


def test_choices_are_exactly_one_of_the_choices(engine):
    constraint = Constraint("choices", CHOICES)
    found = set()
    for made in engine.generate([request("Answer.", constraint, temperature=20.0, seed=0)] * 16):
        assert made.finish_reason == "stop"
        found.add(made.text)
    assert found <= set(CHOICES)
    assert len(found) > 2


def test_what_is_over_ends_without_an_end_token(engine):
    made = engine.generate([request("Answer.", Constraint("regex", "ab"), max_tokens=8)])[0]
    assert (made.text, made.finish_reason, made.completion_tokens) == ("ab", "stop", 1)


def test_an_answer_without_room_says_so(engine):
    made = engine.generate([request("Answer.", JSON, max_tokens=5)])[0]
    assert (made.finish_reason, made.completion_tokens) == ("length", 5)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("regex", "["),
        ("regex", r"a(?=b)"),
        ("json_schema", "{"),
        ("json_schema", '{"not": {"type": "string"}}'),
        ("json_schema", '{"type": "array", "uniqueItems": true}'),
        ("choices", ()),
    ],
)
def test_what_cannot_be_guaranteed_is_refused(engine, kind, value):
    with pytest.raises(ConfigError) as caught:
        engine.generate([request("x", Constraint(kind, value))])
    assert caught.value.code == "bad-constraint"


def test_a_grammar_is_compiled_once(engine):
    one = compiled(engine.tokenizer, Constraint("regex", "[ab]{3}"))
    assert compiled(engine.tokenizer, Constraint("regex", "[ab]{3}")) is one


# ---- by brute force on a tiny random model


def by_brute_force(tokenizer, words):
    """Return a function of the tokens so far: those that keep a word reachable, and the end behind a whole one.

    Where only one text is left, its canonical tokens are the ones allowed.
    """

    def allowed(prefix):
        text = tokenizer.decode(prefix)
        reachable = [word for word in words if word.startswith(text)]
        if len(reachable) == 1 and reachable[0] != text:
            return {tokenizer.encode(reachable[0][len(text) :])[0]}
        ids = [i for i in range(tokenizer.vocabulary_size) if i > 2]  # 0 to 2 are special
        going = {i for i in ids if any(word.startswith(text + tokenizer.decode([i])) for word in reachable)}
        return going | (set(tokenizer.eos_ids) if text in words else set())

    return allowed


WORDS = ("ab", "abba", "b", "ba", "bab c", "c c")


@pytest.mark.parametrize("padding", [0, 13], ids=["exact", "padded logits"])
def test_greedy_is_the_argmax_over_what_is_allowed(tiny_tokenizer, tiny_model, padding):
    model = tiny_model(tiny_tokenizer.vocabulary_size + padding)
    constraint = Constraint("regex", "|".join(WORDS))
    allowed = by_brute_force(tiny_tokenizer, WORDS)
    prompts = [tuple(torch.randint(3, tiny_tokenizer.vocabulary_size, (n,)).tolist()) for n in (5, 9, 2, 7)]
    made = decode(
        model,
        tiny_tokenizer,
        prompts,
        Sampling(max_tokens=12),
        constraint,
        logprobs=True,
        progress=QUIET,
        cancelled=None,
    )
    for prompt, result in zip(prompts, made, strict=True):
        tokens, expected = [], []
        while True:
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            may = sorted(allowed(tokens))
            if may == sorted(tiny_tokenizer.eos_ids):  # nothing but the end may follow: no step is spent on it
                break
            best = may[int(logits[may].argmax())]
            expected.append(logits.log_softmax(-1)[best].item())
            if best in tiny_tokenizer.eos_ids:
                break
            tokens.append(best)
        assert result.text == tiny_tokenizer.decode(tokens)
        assert result.text in WORDS
        np.testing.assert_allclose(result.logprobs, expected, atol=1e-5)
        row = RunningRow(0, len(prompt))
        running = steps(
            model, tiny_tokenizer, [prompt], [row], Sampling(max_tokens=12), constraint, None, live=True, generator=None
        )
        pieces = [row.delta(()).text for _ in running]
        row.reason = row.reason or "length"
        assert "".join([*pieces, row.delta(()).text]) == result.text


def test_masks_are_those_of_brute_force_at_every_step(tiny_tokenizer):
    allowed = by_brute_force(tiny_tokenizer, WORDS)
    width = tiny_tokenizer.vocabulary_size + 5
    rng = np.random.default_rng(0)
    mask = TokenMask(tiny_tokenizer, Constraint("choices", WORDS), 8, width)
    texts = [[] for _ in range(8)]
    for _ in range(12):
        bits = mask.allowed()
        for text, row in zip(texts, bits, strict=True):
            assert set(np.flatnonzero(row)) == allowed(text)
        chosen = [int(rng.choice(np.flatnonzero(row))) for row in bits]
        finished = mask.advance(chosen)
        for text, token in zip(texts, chosen, strict=True):
            text.append(token)
        going = [row for row, done in enumerate(finished) if not done]
        for text, done in zip(texts, finished, strict=True):
            assert not done or tiny_tokenizer.decode(text) in WORDS
        if not going:
            return
        mask.keep(going)
        texts = [texts[row] for row in going]
    raise AssertionError("a row never ended")


# ---- other vocabularies


def saved(backend, folder):
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    return Tokenizer.load(folder)


def test_sentencepiece_vocabularies_keep_bytes_and_the_first_space(tmp_path):
    """As Llama 2 has it: a mark for the space, bytes for other characters, a decoder that drops the first space."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁abc", "ab", "▁a", "▁ab"]
    merges = [("a", "b"), ("▁", "a"), ("▁", "ab")]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer, rng = saved(backend, tmp_path), np.random.default_rng(0)
    for words in (("ab", "ab c"), (" ab",), ("é😀",)):
        mask, tokens = TokenMask(tokenizer, Constraint("choices", words), 1, len(pieces)), []
        while not tokens or not mask.advance(tokens[-1:])[0]:
            tokens.append(int(rng.choice(np.flatnonzero(mask.allowed()[0]))))
        assert constrained_text(tokenizer, tokens) in words


def test_a_vocabulary_without_bytes_is_refused(tmp_path):
    backend = Backend(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    with pytest.raises(EngineError) as caught:
        TokenMask(saved(backend, tmp_path), Constraint("regex", "a"), 1, 3)
    assert caught.value.code == "constraint-unsupported"
