"""Regular expressions over texts by others take time that grows with the text, not with its square."""

import json
import signal
from contextlib import suppress
from pathlib import Path

import pytest

import rung
from rung.artifact.text import Generate, Reasoning
from rung.data.chat import is_chat
from rung.data.columns import as_number, look_at
from rung.data.texts import numbers, words
from rung.engines.api_server import constrained_answer
from rung.engines.base import Constraint
from rung.engines.constraints import schema_problem
from rung.errors import RungError
from rung.evaluation.metrics.execution import fenced, has_order
from rung.evaluation.metrics.text import squad_words
from rung.feedback.capture import Redactor
from rung.feedback.exchange import own_template
from rung.models import bounded
from rung.models.chat import left_open
from rung.models.hub import MODULE_CLASS
from rung.models.reference import NORM
from rung.models.thinking import _WRITTEN
from rung.prompts.overflow import _WORD_END
from rung.prompts.prompt import _TAG
from rung.retrieval.chunking import HEADING, Chunker, sentence_spans
from rung.retrieval.formats import rejoined
from rung.retrieval.index import terms
from rung.retrieval.passage import resolve
from rung.serving.limits import Refused, RequestLimits, check_json
from security.pumped import Found, found_in, slow_on

LENGTH = 100_000
READERS = {
    "comments that do not end": (has_order, "/*"),
    "brackets that do not end": (has_order, "["),
    "quotes that do not end": (has_order, "'a\" "),
    "fences": (fenced, "```a\n"),
    "a heading of blanks": (lambda text: HEADING.match(f"# a{text}b"), " "),
    "a heading of lines": (lambda text: HEADING.match(f"# {text}b"), "a #\n"),
    "one long word": (lambda text: list(_WORD_END.finditer(text)), "a"),
    "a tag and blanks": (lambda text: _TAG.sub("", f"<{text}x"), " "),
    "tags": (lambda text: _TAG.sub("", text), "< "),
    "a thought of blanks": (lambda text: _WRITTEN.sub("", text), "\t"),
    "empty lines": (is_chat, "\n"),
    "blanks and lines": (is_chat, "\n Human"),
}


def check_body(text):
    with suppress(Refused):
        check_json(text.encode(), RequestLimits())


# Readers of rows, documents and answers, each with each of the pieces below.
TEXT_READERS = {
    "words": words,
    "numbers": numbers,
    "one number": as_number,
    "a column": lambda text: look_at("a", [text] * 3),
    "terms of BM25": terms,
    "sentences": lambda text: list(sentence_spans(text)),
    "redaction": Redactor().text,
    "SQuAD": squad_words,
    "a chat": is_chat,
    "lines joined": lambda text: rejoined([text]),
    "a body": check_body,
    "passages": lambda text: Chunker(lambda part: len(part) // 4 + 1, 200, 20).cut(text, "t", markdown=True),
    "citations": lambda text: resolve(text, ()),
}
PIECES = (
    "a", " ", "1", "-", ".", "(", "[", "{", "<", '"', "'", "#", "|", "`", "=", "\\", ":", "_", "@", "\n", "\t", "é",
    "中", "1,", "1.", "1 ", "1/", "1'234", "- a\n", "# a\n", "```\n", "---\n", "a: \n", "[1] ", "eyJaaaaaaaa-",
    "a.b@", "<a ", "| a |\n", "|-|", "a-\n", "123 456 ", "DE12 ", "<tool_call>{", '{"name":', "a\u0301", "Answer: ",
)  # fmt: skip


@pytest.fixture
def processor_seconds():
    """End what takes 20 seconds of the processor: the readers take milliseconds, and by the square minutes."""

    def stop(*_):
        raise AssertionError("it takes too long")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 20)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.usefixtures("processor_seconds")
def test_time_grows_with_the_text(name):
    read, piece = READERS[name]
    read(piece * (LENGTH // len(piece)))


@pytest.mark.parametrize("name", TEXT_READERS)
@pytest.mark.usefixtures("processor_seconds")
def test_no_reader_of_texts_is_slow(name):
    for piece in PIECES:
        for end in ("", "!"):
            TEXT_READERS[name](piece * (LENGTH // 2 // len(piece)) + end)


def test_the_linear_patterns_find_what_they_should():
    queries = ("a order by b", "(x order by b)", "'order by'", "-- order by", "[order by]", "/* order by")
    assert [has_order(sql) for sql in queries] == [True, False, False, False, False, False]
    assert [bool(_TAG.search(text)) for text in ("<document", "< / document", "<doc", "< x document")] == [
        True, True, False, False
    ]  # fmt: skip
    assert [match.end() for match in _WORD_END.finditer("ab  c de")] == [2, 5]
    assert [bool(HEADING.match(text)) for text in ("## A ##", "#A", "####### A", "# a\nb", "# a\n")] == [
        True, False, False, False, True
    ]  # fmt: skip
    assert [fenced(text) for text in ("a\n```sql \n  SELECT 1\n```\nb", "```\n\nx```", "``` a b\nx```")] == [
        "  SELECT 1\n", "\nx", "``` a b\nx```"
    ]  # fmt: skip
    tags = ("<think>\n", "a <my_thoughts> ", "<reasoning", "<b>", f"<{'a' * 41}think>")
    assert [bool(left_open(text)) for text in tags] == [True, True, False, False, False]
    assert own_template("{{ Text }} {{answer }}", ["text"]) == "{text} {answer}"
    tensors = ("norm.weight", "final_layernorm.bias", "ln_f.weight", "a.weight")
    assert [bool(NORM.fullmatch(name)) for name in tensors] == [True, True, True, False]
    module = "sentence_transformers.models.Pooling"
    assert [bool(MODULE_CLASS.fullmatch(name)) for name in (module, f"{module}{'x' * 200}")] == [True, False]
    talks = ("\n\nHuman: a\n\nAssistant: b", "Human: a\nAssistant: b", "a Human: b Assistant: c")
    assert [is_chat(text) for text in talks] == [True, True, False]
    assert [_WRITTEN.sub("", text) for text in (" <think>a</think> b", "a</think>b", "<think>a")] == [
        "b",
        "b",
        "<think>a",
    ]


@pytest.mark.parametrize("kind", ["regex", "json_schema", "reasoning", "answer"])
def test_a_pattern_by_others_is_ended(monkeypatch, kind):
    monkeypatch.setattr(bounded, "SECONDS", 0.5)
    assert bounded.found("a+", "aaa", whole=True)
    pattern, text = "(a+)+$", "a" * 40 + "!"
    schema = json.dumps({"type": "string", "pattern": pattern})
    check = {
        "regex": lambda: constrained_answer(text, Constraint("regex", pattern), "guided", "stop", "x"),
        "json_schema": lambda: schema_problem(text, schema),
        "reasoning": lambda: Reasoning("text", regex=pattern)._answer(f"Answer: {text}"),
        "answer": lambda: Generate(10, regex=pattern).is_valid(text),
    }[kind]
    with pytest.raises(RungError) as caught:
        check()
    assert caught.value.code == "bad-constraint"
    assert not bounded.found("^b", "ab")  # the next one is answered


def test_patterns_of_schemas_hold():
    schema = '{"patternProperties": {"^a": {"type": "integer", "minimum": 3}}, "properties": {"b": {"pattern": "^x"}}}'
    problems = [
        schema_problem(value, schema) for value in ({"a": 3, "b": "x"}, {"a": 1}, {"b": "y"}, {"c": "y", "b": 1})
    ]
    assert [problem is None for problem in problems] == [True, False, False, True]


SOURCE = Path(rung.__file__).parent
OURS = ("errors.py", "html.py", "distributed.py")  # they read our own explanations and figures, and Slurm's variables
PLANTED = {
    "r'(a+)+$'": "match",
    "r'```[a-z]*\\s*\\n(.*?)```', re.DOTALL": "search",
    "r'<(\\w*(?:think|thought)\\w*)>\\s*\\Z'": "search",
    "r'a(\\.\\w+)*\\.models(\\.\\w+)*\\.[A-Z]'": "fullmatch",
    "r'\\s+$'": "search",
    "r'\\d+(?:\\.\\d+)?%'": "finditer",
    "r'\\{\\{\\s*([^{}]*?)\\s*\\}\\}'": "findall",
    "f'x{1}' + r'(?:b|bb|[bc])*d'": "match",
}


def test_every_pattern_of_the_package_is_pumped():
    files = {file: file.read_text("utf-8") for file in sorted(SOURCE.rglob("*.py"))}
    everywhere = "\n".join(files.values())
    patterns = {
        (found.pattern, found.flags, found.call): (file, found)
        for file, source in files.items() if file.name not in OURS for found in found_in(source, everywhere)
    }  # fmt: skip
    assert len(patterns) > 120
    slow = [
        f"{file.relative_to(SOURCE)}:{found.line} {found.pattern[:60]!r} on {text}"
        for file, found in patterns.values() if (text := slow_on(found, 6_000, 0.03))
    ]  # fmt: skip
    assert not slow, "\n".join(slow)


@pytest.mark.parametrize("written", PLANTED)
def test_a_slow_pattern_is_found(written):
    call = PLANTED[written]
    (direct,) = found_in(f"import re\nre.{call}({written.partition(', ')[0]}, text)")
    (compiled,) = found_in(f"_P = re.compile({written})", f"_P = re.compile(x)\n_P.{call}(text)")
    assert (direct.line, direct.pattern) == (2, compiled.pattern)
    assert compiled.call == ("match" if call in ("match", "fullmatch") else "search")
    assert slow_on(compiled, 12_000, 0.03)


def test_a_good_pattern_is_not_found():
    assert not slow_on(Found(1, "search", r"(?<![\w-])eyJ[\w-]{8,}+\.", 0), 6_000, 0.03)
