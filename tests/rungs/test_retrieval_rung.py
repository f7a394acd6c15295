"""The rung on a real index of real documents."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from grounded import Reader
from rung.artifact.artifact import Artifact
from rung.cli.main import app
from rung.data.rows import NOT_IN_DOCUMENTS
from rung.engines.opening import open_encoder, open_engine
from rung.errors import ArtifactError, ConfigError
from rung.evaluation.rag_metrics import FaithfulnessJudge, sources
from rung.evaluation.scoring import cases, metric_of
from rung.machine import this_machine
from rung.models.reference import resolve
from rung.retrieval import build as build_module
from rung.retrieval.build import build_index
from rung.retrieval.chunking import sentence_spans
from rung.retrieval.fitting import learn_weight
from rung.retrieval.index import SearchSettings
from rung.retrieval.passage import Citation, span_recall
from rung.retrieval.retriever import LOCATION
from rung.rungs import FewShot, LoRA, Retrieval, SentenceSelection, TfidfSentence, build, get
from rung.task import Task
from rung.training.examples import tokenize
from rung.yamlfile import read_sealed, sealed

EXAMPLE = Path(__file__).parents[2] / "examples" / "documents"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A copy of the example with one of its documents, whose index lies beside it."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(EXAMPLE, folder / "example")
    (folder / "example" / "documents" / "state_of_the_union.md").unlink()
    for file in (folder / "example").glob("*.jsonl"):
        lines = file.read_text("utf-8").splitlines(keepends=True)
        file.write_text("".join(line for line in lines if "state_of_the_union" not in line), "utf-8")
    patch = pytest.MonkeyPatch()
    patch.setattr(build_module, "cache_dir", lambda: folder / "cache")
    yield folder / "example"
    patch.undo()


@pytest.fixture(scope="module")
def documents(place, tiny_folder):
    return Task.load(place / "task.yaml", {"model": str(tiny_folder)})


@pytest.fixture(scope="module")
def rows(documents):
    return documents.read()


@pytest.fixture(scope="module")
def plain(documents):
    return Artifact.zero_shot(documents, engine="torch").with_engine(Reader(lambda text: "one [1]", 100_000))


@pytest.fixture(scope="module")
def fitted(documents, rows, plain):
    return Retrieval(documents, order="best_first").fit(plain, rows).with_engine(plain.open())


def test_gold_spans_are_where_the_rows_say():
    rows = Task.load(EXAMPLE / "task.yaml").read()
    for row in (*rows.train, *rows.validation, *rows.test):
        texts = [(EXAMPLE / s.document).read_text("utf-8")[s.start : s.end] for s in row.spans]
        assert " ".join(texts) == row.outputs[0]


def test_most_answers_are_found(fitted, rows):
    found = [one.passages for one in fitted.render(rows.test)]
    recall = [span_recall(passages, row.spans, 5) for passages, row in zip(found, rows.test, strict=True)]
    assert sum(recall) / len(recall) > 0.8


def test_the_settings_tell_what_was_chosen_and_how(fitted):
    told = fitted.settings["retrieval"]
    assert told["order"] == fitted.retriever.order == "best_first"
    assert told["refusal"]["threshold"] == fitted.retriever.threshold
    assert told["refusal"]["refused_answerable"] <= 0.05
    assert 100 < fitted.retriever.passage_tokens < 400


def test_the_weight_of_meaning_is_learnt_from_enough_training_rows_with_spans(fitted, plain, rows, documents):
    assert len(rows.train) < 30
    assert fitted.retriever.weight == SearchSettings().weight
    every = (*rows.train, *rows.validation, *rows.test)
    more = Retrieval(documents, order="best_first", max_refusal_rate=0).fit(plain, replace(rows, train=every))
    queries = [(row.inputs["question"], row.spans) for row in every]
    learnt = learn_weight(fitted.retriever.index, queries, SearchSettings(), k=5).weight
    assert more.retriever.weight == more.settings["retrieval"]["weight"] == learnt
    assert more.retriever.threshold is None
    found = more.with_engine(plain.open()).render(rows.test[:1])[0].passages
    query = rows.test[0].inputs["question"]
    (best,) = fitted.retriever.index.search([query], 1, SearchSettings(weight=learnt))[0]
    assert found[0].id == best.id


def test_a_question_about_something_else_is_refused(fitted):
    assert fitted.retriever.threshold is not None
    (about,) = fitted.predict([{"question": "What is the CarbFix project in Reykjavik about?"}])
    (beside,) = fitted.predict([{"question": "How many moons does the planet Jupiter have?"}])
    assert (about.refused, beside.refused) == (False, True)
    assert about.text == "one"
    assert about.citations[0].passage.document == "documents/chatlogs.md"
    assert beside.text == NOT_IN_DOCUMENTS


def test_saved_and_loaded_it_reads_the_same(fitted, rows, tmp_path):
    loaded = Artifact.load(fitted.save(tmp_path / "a"))
    assert loaded.retriever == fitted.retriever
    sides = (loaded.with_engine(fitted.open()), fitted)
    ours, before = ([replace(one, seconds=0.0) for one in each.answer(rows.test[:8])] for each in sides)
    assert ours == before


class Written(io.StringIO):
    """Standard output that keeps what was written at once."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text):
        length = super().write(text)  # refuses bytes, with which click asks what this is
        self.pieces += [text] if text else []
        return length


@pytest.fixture
def said(monkeypatch):
    """Return what a command prints, in the pieces in which it does."""

    def run(*arguments, typed=""):
        written = Written()
        monkeypatch.setattr(sys, "stdout", written)
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        app([str(argument) for argument in arguments], standalone_mode=False)
        return written.pieces

    return run


def test_run_and_chat_stream_answers_with_their_sources(fitted, tmp_path, monkeypatch, said):
    folder, load = fitted.save(tmp_path / "a"), Artifact.load
    monkeypatch.setattr(Artifact, "load", lambda folder, *_: load(folder).with_engine(fitted.open()))
    about, museum = "What is the CarbFix project in Reykjavik about?", "What days is the Viktor Wynd Museum closed?"
    cited = {question: fitted.predict([{"question": question}])[0].citations[0] for question in (about, museum)}
    shown = {question: f"one [1]\n\nSources:\n  {source}\n" for question, source in cited.items()}
    assert "CarbFix" in cited[about].passage.text
    assert "Viktor Wynd Museum" in cited[museum].passage.text
    assert "".join(said("run", folder, about)) == shown[about]
    pieces = said("chat", folder, typed=f"{about}\n{museum}\nHow many moons does the planet Jupiter have?\n\n")
    assert "".join(pieces) == f"{shown[about]}{shown[museum]}{NOT_IN_DOCUMENTS}\n"
    assert [piece for piece in pieces if piece in ("one ", "[1]")] == ["one ", "[1]"] * 2


def test_chat_streams_token_by_token_from_a_model(fitted, tmp_path, said):
    """The random model repeats the prompt's last token, a line break, which `run` strips."""
    folder = fitted.save(tmp_path / "a")
    question = "What is the CarbFix project in Reykjavik about?"
    (answer,) = Artifact.load(folder).predict([{"question": question}])
    sources = ["\nRead, but not cited:\n", *(f"  {Citation(1, passage)}\n" for passage in answer.passages)]
    assert len(sources) == 2
    assert said("chat", folder, typed=f"{question}\n\n") == ["\n"] * fitted.decoder.max_tokens + [
        "\n",
        "".join(sources),
    ]
    assert "".join(said("run", folder, question)) == "\n" + "".join(sources)


@pytest.fixture(scope="module")
def selecting(documents, rows, plain):
    return SentenceSelection(documents).fit(plain, rows)


def test_sentences_of_the_documents_answer_without_a_model(selecting, rows, place, tmp_path):
    text = (place / "documents" / "chatlogs.md").read_text("utf-8")
    answers = Artifact.load(selecting.save(tmp_path / "a")).answer(rows.validation)
    same = selecting.answer(rows.validation)
    assert [(a.text, a.citations, a.passages) for a in answers] == [(a.text, a.citations, a.passages) for a in same]
    for answer in answers:
        quoted = [text[c.passage.start : c.passage.end] for c in answer.citations]
        assert answer.text == (NOT_IN_DOCUMENTS if answer.refused else " ".join(quoted))
        assert all(answer.passages[c.number - 1].start <= c.passage.start for c in answer.citations)
    unseen = (*rows.validation, *rows.test)  # nothing was chosen on them
    scores = metric_of(selecting).scores(cases(unseen, selecting.answer(unseen)))
    assert sum(one.value for one in scores) / len(scores) > 0.35
    tried = selecting.settings["sentence-selection"]["score_by_share"]
    assert tried[str(selecting.decoder.share)] == max(tried.values())


def test_telling_words_find_a_sentence_too(documents, rows, plain, tmp_path):
    fitted = TfidfSentence(documents).fit(plain, rows)
    unseen = (*rows.validation, *rows.test)
    answers = fitted.answer(unseen)
    scores = metric_of(fitted).scores(cases(unseen, answers))
    assert sum(one.value for one in scores) / len(scores) > 0.3
    again = Artifact.load(fitted.save(tmp_path / "a")).answer(rows.validation)
    assert [a.text for a in again] == [a.text for a in answers[: len(rows.validation)]]
    assert all(a.citations or a.refused for a in answers)
    assert not TfidfSentence().applies(plain, rows).applies


def test_sentences_are_refused_like_passages(selecting):
    (about,) = selecting.predict([{"question": "What is the CarbFix project in Reykjavik about?"}])
    (beside,) = selecting.predict([{"question": "How many moons does the planet Jupiter have?"}])
    assert (about.refused, beside.refused) == (False, True)
    assert "CarbFix" in about.text
    places = {(p.document, p.start + a): p.text[a:b] for p in about.passages for a, b in sentence_spans(p.text)}
    encoder = open_encoder("embedded-encoder")
    question = "What is the CarbFix project in Reykjavik about?"
    assert about.prompt_tokens == sum(len(encoder.encode(text)) for text in (question, *places.values()))
    assert (beside.text, beside.citations) == (NOT_IN_DOCUMENTS, ())


def test_sentences_are_no_answer_of_another_kind(selecting, fitted, plain, rows, documents):
    rung = SentenceSelection(documents)
    assert rung.applies(plain, rows).applies
    assert rung.applies(fitted, rows).reason == "documents are looked up already"
    assert rung.applies(selecting, rows).reason == "its answers do not depend on the prompt"
    held = replace(plain, decoder=replace(plain.decoder, regex="[0-9]+"))
    assert rung.applies(held, rows).reason == "answers are held to a form"
    labels = replace(plain, signature=replace(plain.signature, kind="category"))
    assert rung.applies(labels, rows).final
    assert SentenceSelection().applies(plain, rows).reason == "the task file has no `corpus`"
    with pytest.raises(ConfigError, match="made without a task"):
        SentenceSelection().fit(plain, rows)


def test_eval_has_a_model_judge_faithfulness(selecting, plain, place, rows, tiny_folder, tmp_path, said):
    folder, model = selecting.save(tmp_path / "a"), f"model={tiny_folder}"
    asked = ("eval", folder, place / "task.yaml", "--set", model, "--set", "data.test_rows=4", "--judge", tiny_folder)
    told = json.loads("".join(said(*asked, "--json")))["retrieval"]
    judge = FaithfulnessJudge(open_engine(str(tiny_folder)))
    answers = [answer for answer in selecting.answer(rows.test[: told["rows"]]) if not answer.refused]
    expected = judge.judge([answer.text for answer in answers], [sources(answer) for answer in answers])
    assert told["faithfulness"] == pytest.approx(sum(expected) / len(expected))
    with pytest.raises(ConfigError, match="retrieves no documents"):
        said("eval", plain.save(tmp_path / "b"), *asked[2:])


def test_an_index_that_is_gone_or_made_another_way_is_refused(fitted, tmp_path, monkeypatch):
    folder = fitted.save(tmp_path / "a")
    monkeypatch.setenv(LOCATION, str(tmp_path / "nowhere"))
    with pytest.raises(ArtifactError) as caught:
        Artifact.load(folder)
    assert caught.value.code == "index-missing"
    other = shutil.copytree(fitted.retriever.folder, tmp_path / "other")
    monkeypatch.setenv(LOCATION, str(other))
    assert Artifact.load(folder).retriever == replace(fitted.retriever, folder=other)
    manifest = read_sealed(other / "index.json")
    (other / "index.json").write_text(sealed({**manifest, "tokens": 64}))
    with pytest.raises(ArtifactError) as caught:
        Artifact.load(folder)
    assert caught.value.code == "index-mismatch"


def test_an_updated_document_is_in_the_next_prompt(documents, fitted, place):
    row = {"question": "What days is the Viktor Wynd Museum closed?"}
    file = place / "documents" / "chatlogs.md"
    before = file.read_text("utf-8")
    assert "except for Mondays and Tuesdays" in fitted.messages(row)[-1]["content"]
    try:
        file.write_text(before.replace("except for Mondays and Tuesdays", "except for Sundays"), "utf-8")
        build_index(documents)
        text = fitted.messages(row)[-1]["content"]
        assert "except for Sundays" in text
        assert "except for Mondays and Tuesdays" not in text
    finally:
        file.write_text(before, "utf-8")
        build_index(documents)


def test_demonstrations_and_tuning_read_passages_too(fitted, rows, documents, tiny_folder):
    few = FewShot("fixed", k=2).fit(fitted, rows).with_engine(fitted.open())
    shown = [m["content"] for m in few.messages({"question": "What is CarbFix?"}) if m["role"] == "user"]
    assert [text.count("<document ") for text in shown] == [
        1,
        1,
        len(fitted.rendered({"question": "What is CarbFix?"}).passages),
    ]
    assert LoRA().applies(fitted, rows).applies
    local = fitted.with_engine(Artifact.zero_shot(documents, engine="torch").open())
    wide = replace(local, overflow="error").with_engine(local.open())
    from rung.engines.local import LocalModel
    from rung.models.reference import resolve

    reader = LocalModel(replace(resolve(str(tiny_folder)), context=8192))
    (learnt, *_) = tokenize(wide, reader, rows.train[:1])
    prompt, answer = (
        reader.tokenizer.decode(learnt.prompt),
        reader.tokenizer.decode(learnt.tokens[len(learnt.prompt) :]),
    )
    assert "<document 1>" in prompt
    assert answer.startswith(rows.train[0].outputs[0])
    cited = answer.removeprefix(rows.train[0].outputs[0])
    assert span_recall([fitted.render(rows.train[:1])[0].passages[int(cited[2]) - 1]], rows.train[0].spans, 1) > 0


def test_it_applies_where_there_are_documents_only(fitted, plain, rows, documents, task):
    assert "corpus" in Retrieval(task).applies(plain, rows).reason
    assert "already" in Retrieval(documents).applies(fitted, rows).reason
    assert build(("retrieval",), documents, 0)[0] == Retrieval(documents, k=4)
    with pytest.raises(ConfigError) as caught:
        Retrieval().fit(plain, rows)
    assert caught.value.code == "no-documents"


@pytest.mark.parametrize(
    ("change", "said"),
    [({"overflow": "shorten_passages"}, "no effect without"), ({"data.spans": "spans"}, "there is no `corpus`")],
)
def test_settings_of_documents_need_documents(small_task_file, change, said):
    with pytest.raises(ConfigError, match=said):
        Task.load(small_task_file, change)


def test_spans_that_say_nothing_are_refused(place, tmp_path):
    shutil.copytree(place, tmp_path / "x")
    file = tmp_path / "x" / "validation.jsonl"
    lines = file.read_text("utf-8").splitlines()
    for wrong in ('[{"document": "a"}]', '"no"', '[{"document": "a", "start": 5, "end": 5}]'):
        first = json.dumps({"question": "q?", "answer": "a", "spans": json.loads(wrong)})
        file.write_text("\n".join([first, *lines[1:]]), "utf-8")
        with pytest.raises(ConfigError) as caught:
            Task.load(tmp_path / "x" / "task.yaml").read()
        assert caught.value.code == "bad-row"
    empty = {"question": "q?", "answer": "", "spans": []}
    file.write_text("\n".join([json.dumps(empty), *lines[1:]]), "utf-8")
    (row,) = [r for r in Task.load(tmp_path / "x" / "task.yaml").read().validation if r.inputs["question"] == "q?"]
    assert (row.outputs, row.spans) == ((NOT_IN_DOCUMENTS,), ())


def test_sentences_compared_by_words_are_estimated_without_reading_them(documents, plain, rows):
    words, vectors = (
        get(name, documents).estimate(plain, rows, this_machine()) for name in ("tfidf-sentence", "sentence-selection")
    )
    assert words.row_tokens < 100 < vectors.row_tokens
    assert words.row_flops < vectors.row_flops / 10
    whole = 2 * resolve("embedded-encoder").parameters * vectors.row_tokens
    assert vectors.row_flops < 0.6 * whole  # half of a small encoder is a table, which is only looked up
