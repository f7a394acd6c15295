import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.damage import check_flips

from rung.data.rows import Span
from rung.data.spec import Corpus
from rung.errors import ArtifactError, ConfigError, DataError
from rung.progress import Quiet
from rung.retrieval.build import BATCH, build, build_index, changes_since, index_location
from rung.retrieval.fitting import learn_weight
from rung.retrieval.index import FORMAT, MANIFEST, Index, SearchSettings
from rung.retrieval.store import HINT, PassageTable
from rung.task import Task
from rung.yamlfile import read_sealed, sealed

TOPICS = ("card payment", "wire transfer", "exchange rate", "lost passport", "交通 事故", "größe der schachtel")


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for number, topic in enumerate(TOPICS):
        (folder / f"{number}.md").write_text(f"# About {topic}\n\nThis page tells of {topic} number {number}.\n")
    return tmp_path


@pytest.fixture
def built(base, encoder):
    return build(base / "index", Corpus(files="docs"), base)


def found(index, query, k=1, **settings):
    return [passage.document for passage in index.search([query], k, SearchSettings(**settings))[0]]


def test_passages_are_found_and_are_exactly_where_they_say(built, base):
    queries = [f"tell me of {topic}" for topic in TOPICS]
    for mode in ("hybrid", "bm25", "dense"):
        best = built.search(queries, 2, SearchSettings(mode=mode))
        assert [passages[0].document for passages in best] == [f"docs/{number}.md" for number in range(6)]
    passage = best[1][0]
    assert passage.text == (base / "docs/1.md").read_text()[passage.start : passage.end]
    assert (passage.id, passage.title, passage.page) == ("docs/1.md:0-65", "About wire transfer", None)
    assert built.search(queries, 2) == [built.search([query], 2)[0] for query in queries]
    assert built.search([], 2) == []
    assert built.search(["", "zzz unseen"], 0) == [[], []]


@pytest.mark.slow  # exports the encoder
def test_an_index_of_an_encoder_in_int8_finds_the_same_and_is_another_index(base):
    built = build(base / "index", Corpus(files="docs"), base)
    other = build(base / "small", Corpus(files="docs", precision="int8"), base)
    assert other.fingerprint != built.fingerprint
    queries = [f"tell me of {topic}" for topic in TOPICS]
    best, same = (index.search(queries, 3, SearchSettings(mode="dense")) for index in (other, built))
    assert [passages[0].id for passages in best] == [passages[0].id for passages in same]
    assert [p.score for row in best for p in row] == pytest.approx([p.score for row in same for p in row], abs=0.02)
    again = Index.open(base / "small")
    vectors = [index.encoder.embed(queries) for index in (again, built)]
    cosines = (vectors[0] * vectors[1]).sum(1)
    assert cosines.min() > 0.995
    assert cosines.max() < 1 - 1e-7  # it is not the other encoder


def test_an_index_is_opened_as_it_was_built(built, base):
    again = Index.open(base / "index")
    assert (again.fingerprint, len(again)) == (built.fingerprint, 6)
    assert found(again, "exchange rate") == ["docs/2.md"]


def test_only_what_changed_is_embedded(built, base, encoder):
    encoder.embedded.clear()
    same = build(base / "index", Corpus(files="docs"), base)
    assert (encoder.embedded, same.fingerprint) == ([], built.fingerprint)
    (base / "docs/0.md").write_text("# About gold\n\nNow this page tells of gold bars.\n")
    (base / "docs/1.md").unlink()
    (base / "docs/new.txt").write_text("A new page on silver coins.")
    assert vars_of(changes_since(built, base)) == (("docs/new.txt",), ("docs/0.md",), ("docs/1.md",))
    changed = build(base / "index", Corpus(files="docs"), base)
    assert len(encoder.embedded) == 2
    assert found(changed, "gold") == ["docs/0.md"]
    assert "docs/1.md" not in found(changed, "wire transfer", k=9)
    assert changed.fingerprint != built.fingerprint
    assert not changes_since(changed, base)
    assert len(changed) == 6


def vars_of(changes):
    return changes.added, changes.changed, changes.removed


def test_who_reads_is_not_disturbed_by_who_updates(built, base):
    (base / "docs/0.md").write_text("# About gold\n\nNow this page tells of gold bars.\n")
    first = build(base / "index", Corpus(files="docs"), base)
    assert found(first, "gold bars") == ["docs/0.md"]
    assert built.search(["card payment"], 1)[0][0].text.endswith("tells of card payment number 0.")


def test_the_same_documents_give_the_same_index_wherever_it_lies(built, base, encoder):
    other = build(base / "elsewhere", Corpus(files="docs"), base)
    assert other.fingerprint == built.fingerprint
    assert other.search(["wire"], 3) == built.search(["wire"], 3)
    tiny = build(base / "elsewhere", Corpus(files="docs", chunk_tokens=8), base)
    assert tiny.fingerprint != built.fingerprint
    assert all(len(text.split()) <= 8 for text in encoder.embedded[-len(tiny) :])


def test_a_build_that_was_stopped_goes_on(base, encoder, monkeypatch):
    lines = [json.dumps({"text": f"row {number} tells of thing{number}"}) for number in range(BATCH * 2 + 10)]
    (base / "rows.jsonl").write_text("\n".join(lines))
    corpus = Corpus(files="rows.jsonl", text_column="text")
    add, calls = PassageTable.add, []

    def stop_at_the_second(self, rows, vectors):
        calls.append(len(vectors))
        if len(calls) == 2:
            raise KeyboardInterrupt
        add(self, rows, vectors)

    monkeypatch.setattr(PassageTable, "add", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        build(base / "index", corpus, base)
    with pytest.raises(ArtifactError, match="holds no complete index"):
        Index.open(base / "index")
    encoder.embedded.clear()
    index = build(base / "index", corpus, base)
    assert len(encoder.embedded) == BATCH + 10
    assert len(index) == BATCH * 2 + 10
    assert found(index, f"thing{BATCH + 5}") == [f"rows.jsonl:{BATCH + 6}"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.retrieval.conftest import WordEncoder
from rung.retrieval import build as building, index as indexes, store
from rung.data.spec import Corpus
one = WordEncoder()
building.open_encoder = indexes.open_encoder = lambda *a, **k: one
indexes.resolve = lambda reference: one
finish = store.PassageTable.finish
def killed(self, **settings):
    os.kill(os.getpid(), signal.SIGKILL)
store.PassageTable.finish = killed
building.build(Path(sys.argv[1]) / "index", Corpus(files="docs"), Path(sys.argv[1]))
"""


def test_kill_leaves_a_build_that_goes_on(base, encoder):
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, str(base), str(root)], env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    encoder.embedded.clear()
    index = build(base / "index", Corpus(files="docs"), base)
    assert (encoder.embedded, len(index)) == ([], 6)
    assert found(index, "exchange rate") == ["docs/2.md"]


def test_two_builds_at_once_wait_for_each_other(base, encoder):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(build(base / "index", Corpus(files="docs"), base)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(index) for index in results] == [6, 6]
    assert len([text for text in encoder.embedded if "number" in text]) == 6


def test_another_encoder_is_an_error(built, base, encoder):
    encoder.fingerprint = "words-2"
    with pytest.raises(ArtifactError, match="another version of embedded-encoder: words-1, this is words-2"):
        Index.open(base / "index")
    again = build(base / "index", Corpus(files="docs"), base)
    assert again.manifest.encoder_fingerprint == "words-2"
    assert found(again, "exchange rate") == ["docs/2.md"]


def test_a_flipped_bit_of_an_index_is_found(built, base, tmp_path):
    def read(folder):
        index = Index.open(folder)
        return index.manifest, index.search(["exchange rate"], 3)

    check_flips(base / "index", tmp_path / "flips", read, HINT, ".lock")
    (data, *_) = (base / "index").rglob("data/*")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="was changed"):  # and is not what the next build starts from
        build(base / "index", Corpus(files="docs"), base)
    again = build(base / "index", Corpus(files="docs"), base, again=True)
    assert found(again, "exchange rate") == ["docs/2.md"]


def test_a_damaged_index_is_an_error(built, base):
    file = base / "index" / MANIFEST
    whole, values = file.read_text(), read_sealed(file)
    file.write_text(whole.replace('"passages": 6', '"passages": 7'))
    with pytest.raises(ArtifactError, match="its sha256 is another one"):
        Index.open(base / "index")
    file.write_text(sealed({**values, "passages": 7}))
    with pytest.raises(ArtifactError, match="has 6 passages instead of 7"):
        Index.open(base / "index")
    file.write_text(whole[:100])
    with pytest.raises(ArtifactError, match="is not JSON"):
        Index.open(base / "index")
    file.write_text(sealed({**values, "version": 99}))
    with pytest.raises(ArtifactError, match="is damaged"):
        Index.open(base / "index")
    file.unlink()
    with pytest.raises(ArtifactError, match="holds no complete index"):
        Index.open(base / "index")


@pytest.mark.parametrize("change", [{}, {"format": FORMAT - 1, "sha256": "of another format"}])
def test_an_index_of_another_version_is_built_again(built, base, change):
    file = base / "index" / MANIFEST
    file.write_text(json.dumps(read_sealed(file) | change))  # earlier versions wrote no hash
    with pytest.raises(ArtifactError, match="holds no complete index"):
        Index.open(base / "index")
    said = []
    progress = Quiet()
    progress.say = said.append
    again = build(base / "index", Corpus(files="docs"), base, progress=progress)
    assert said == [f"another version of Rung made the index {base / 'index'}: it is built again"]
    assert (again.manifest.sources, found(again, "exchange rate")) == (built.manifest.sources, ["docs/2.md"])
    build(base / "index", Corpus(files="docs"), base, progress=progress)
    assert len(said) == 1


def test_rows_are_filtered_by_their_columns(base, encoder):
    (base / "faq.csv").write_text("id,text,product\n1,how to open it,box\n2,how to open it now,bag's\n3,closing,box\n")
    corpus = Corpus(files=["docs", "faq.csv"], text_column="text", id_column="id", metadata=["product"])
    index = build(base / "index", corpus, base)
    of_a_file = index.search(["exchange rate"], 1, SearchSettings())[0][0]
    assert of_a_file.metadata == {"product": ""}
    assert found(index, "open", k=3, filters={"product": "bag's"}) == ["faq.csv:2"]
    assert set(found(index, "open", k=3, filters={"product": ["box"]})) == {"faq.csv:1", "faq.csv:3"}
    assert found(index, "open", k=3, filters={"document": "faq.csv:3"}) == ["faq.csv:3"]
    assert index.search(["open"], 1, SearchSettings(filters={"product": "bag's"}))[0][0].metadata == {
        "product": "bag's"
    }
    with pytest.raises(ConfigError, match="no 'colour'"):
        found(index, "open", filters={"colour": "red"})


def test_copies_are_found_once(base, encoder):
    for name in ("copy1.md", "copy2.md"):
        (base / "docs" / name).write_text((base / "docs/3.md").read_text())
    index = build(base / "index", Corpus(files="docs"), base)
    assert len([one for one in found(index, "lost passport", k=9) if one.startswith("docs/copy")]) == 0
    assert len(found(index, "lost passport", k=9, duplicate=2.0)) == 8


def test_a_reranker_has_the_last_word(built):
    def shortest_last(queries, found):
        return [[len(passage.text) for passage in passages] for passages in found]

    best = built.search(["card payment"], 2, rerank=shortest_last)[0]
    lengths = sorted((len(one.text) for one in built.search(["card payment"], 6)[0]), reverse=True)
    assert [passage.score for passage in best] == lengths[:2]


def test_chunks_longer_than_the_encoder_reads_are_refused(base, encoder):
    with pytest.raises(ConfigError, match=r"`corpus.chunk_tokens` is 65, and embedded-encoder reads 64 tokens"):
        build(base / "index", Corpus(files="docs", chunk_tokens=65), base)


def test_a_weight_is_learned_from_thirty_queries(built):
    queries = [(f"{topic} {turn}", (Span(f"docs/{number}.md", 0, 20),)) for turn in range(5)
               for number, topic in enumerate(TOPICS)]  # fmt: skip
    learned = learn_weight(built, queries, SearchSettings(), k=1)
    assert learned == SearchSettings()  # the default finds all of them, and no weight finds more
    with pytest.raises(DataError, match="29 labelled queries are too few"):
        learn_weight(built, queries[:29], SearchSettings())


def test_another_weight_of_the_same_search_searches_nothing_again(built, monkeypatch):
    fresh = {weight: built.search(["card payment"], 3, SearchSettings(weight=weight)) for weight in (0.1, None)}
    other = built.search(["lost luggage"], 3)
    built.search(["card payment"], 3)
    monkeypatch.setattr(type(built), "_candidates", lambda *arguments: pytest.fail("it searched again"))
    assert {weight: built.search(["card payment"], 3, SearchSettings(weight=weight)) for weight in fresh} == fresh
    monkeypatch.undo()
    assert built.search(["lost luggage"], 3) == other


def test_the_index_of_a_task_lies_in_the_cache(base, encoder):
    (base / "rows.csv").write_text("q,a\nx,y\n")
    file = base / "task.yaml"
    file.write_text(
        "name: docs\ninstruction: Answer.\ninputs: [q]\noutput: {column: a, kind: text}\ndata: {train: rows.csv}\n"
        "corpus: {files: docs}\n"
    )
    task = Task.load(file)
    index = build_index(task)
    assert index.folder == index_location(task)
    assert index.folder.is_relative_to(os.environ["RUNG_CACHE"])
    other = Task.load(file, {"corpus.chunk_tokens": "30"})
    assert index_location(other) != index.folder
    with pytest.raises(ConfigError, match="unknown key 'chunk_token'") as error:
        Task.load(file, {"corpus.chunk_token": "30"})
    assert error.value.hint == "did you mean 'chunk_tokens'?"
    with pytest.raises(ConfigError, match="the task docs has no `corpus`"):
        build_index(task.model_copy(update={"corpus": None}))
