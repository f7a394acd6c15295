"""Metrics against their reference implementations, and the user's own metric from real files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    fbeta_score,
    precision_score,
    recall_score,
)

from rung.data.kinds import DEFAULT_METRICS
from rung.data.rows import Example
from rung.errors import ConfigError, DataError
from rung.evaluation.metrics.labels import (
    OTHER,
    Confusion,
    accuracy,
    confusion,
    label_statistic,
    macro_f1,
    macro_f1_interval,
)
from rung.evaluation.metrics.records import json_exact, json_field_f1
from rung.evaluation.metrics.registry import METRICS, get_metric
from rung.evaluation.metrics.text import quasi_exact_match, rouge1, rouge2, rouge_l, token_f1
from rung.task import Task


def test_accuracy() -> None:
    assert accuracy(" card_arrival\n", ["card_arrival"]) == 1.0
    assert accuracy("card arrival", ["card_arrival"]) == 0.0
    assert accuracy("Card_arrival", ["card_arrival"]) == 0.0
    assert accuracy("b", ["a", "b"]) == 1.0


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        ("a tower in the town", ["tower"], 0.0, 0.5),
        ("tower tower", ["tower"], 0.0, 2 / 3),
        ("paris", ["london", "in Paris"], 0.0, 2 / 3),
        ("", [""], 1.0, 1.0),
        ("", ["the"], 0.0, 0.0),  # unlike SQuAD's script, for which no word is left of either
        ("A", ["the"], 0.0, 0.0),
        ("3.5", ["35"], 0.0, 0.0),  # these too are equal for the script
        ("-5", ["5"], 0.0, 0.0),
        ("C++", ["C"], 0.0, 0.0),
        ("$1,000.", ["1000"], 1.0, 1.0),
        ("", ["tower"], 0.0, 0.0),
        ("another", ["an other"], 0.0, 0.0),
        ("the-cat", ["thecat"], 1.0, 1.0),  # punctuation goes before articles, as in SQuAD's script
    ],
)
def test_squad(prediction: str, references: list[str], exact: float, f1: float) -> None:
    assert quasi_exact_match(prediction, references) == exact
    assert token_f1(prediction, references) == pytest.approx(f1, rel=1e-15)


TEXTS = [
    (
        "we propose a fast method for training networks",
        ["A fast training method is proposed.", "networks train quickly"],
    ),
    ("", ["something"]),
    ("Something else entirely, 42 times", ["else something entirely: 42 times", "42"]),
    ("running runners run", ["the runner runs", "run"]),
]


@pytest.mark.parametrize(("prediction", "references"), TEXTS)
def test_rouge_equals_rouge_score(prediction: str, references: list[str]) -> None:
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score_multi(references, prediction)
    assert rouge1(prediction, references) == expected["rouge1"].fmeasure
    assert rouge2(prediction, references) == expected["rouge2"].fmeasure
    assert rouge_l(prediction, references) == expected["rougeL"].fmeasure


@pytest.mark.parametrize(
    ("prediction", "reference", "exact", "f1"),
    [
        ('{"a": 1, "b": "x  y"}', '{"b": " x y", "a": 1.0}', 1.0, 1.0),
        ('{"a": 1}', '{"a": "1"}', 0.0, 0.0),
        ('{"a": true}', '{"a": 1}', 0.0, 0.0),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.0, 0.5),
        ('{"a": 1}', '{"a": 1, "b": 3}', 0.0, 2 / 3),
        ('{"l": [{"n": "x", "p": 1}, {"n": "y", "p": 2}]}', '{"l": [{"n": "y", "p": 2}]}', 0.0, 2 / 3),
        (
            '{"l": [{"n": "x", "p": 2}, {"n": "y", "p": 1}]}',
            '{"l": [{"n": "x", "p": 1}, {"n": "y", "p": 2}]}',
            0.0,
            0.5,
        ),
        ('{"l": [[1, 2], [3]]}', '{"l": [[3, 4], [1, 2]]}', 0.0, 6 / 7),
        ('{"a": 1, "b": null}', '{"a": 1}', 0.0, 1.0),  # null says that there is nothing
        ('{"a": 1}', '{"a": 1, "b": null}', 0.0, 1.0),
        ('{"a": 1, "b": null}', '{"a": 1, "b": 2}', 0.0, 2 / 3),
        ('{"l": [2, 1]}', '{"l": [1, 2]}', 0.0, 1.0),
        ('{"l": [1, 1]}', '{"l": [1]}', 0.0, 2 / 3),
        ('{"l": []}', '{"l": []}', 1.0, 1.0),
        ('{"l": []}', '{"l": {}}', 0.0, 0.0),
        ('{"a": {"b": 1}}', '{"a.b": 1}', 0.0, 0.0),
        ('{"a": null}', '{"a": null}', 1.0, 1.0),
        ("null", "null", 1.0, 1.0),
        ("{}", "{}", 1.0, 1.0),
        ("3", "3.0", 1.0, 1.0),
        ('{"a": NaN}', '{"a": 1}', 0.0, 0.0),
        ('Sure! {"a": 1}', '{"a": 1}', 0.0, 0.0),
        ("", '{"a": 1}', 0.0, 0.0),
        ("[" * 100_000, '{"a": 1}', 0.0, 0.0),
        ("[" * 500 + "]" * 500, '{"a": 1}', 0.0, 0.0),
        ("1" * 5000, "1", 0.0, 0.0),
    ],
)
def test_json(prediction: str, reference: str, exact: float, f1: float) -> None:
    assert json_exact(prediction, [reference]) == exact
    assert json_field_f1(prediction, [reference]) == pytest.approx(f1, rel=1e-15)
    assert json_field_f1(prediction, ['{"zz": 0}', reference]) == pytest.approx(f1, rel=1e-15)


def test_a_broken_reference_is_the_data_s_fault() -> None:
    for metric in (json_exact, json_field_f1):
        with pytest.raises(DataError) as caught:
            metric("{}", ["{'a': 1}"])
        assert caught.value.code == "bad-reference"
        assert "{'a': 1}" in str(caught.value)


@pytest.mark.parametrize("name", sorted(name for name, m in METRICS.items() if m.kinds != ("ranking",)))
def test_every_metric_gives_1_to_the_reference_and_refuses_no_references(name: str) -> None:
    metric = get_metric(name)
    text = '["total", "4.50"]'  # JSON, labels, words and a number in one
    assert metric(text, [text]) == 1.0
    assert 0.0 <= metric("words of something else", [text]) < 1.0
    for none in ([], "a bare string"):
        with pytest.raises(ValueError, match="references"):
            metric(text, none)


@pytest.mark.parametrize("kind", ["category", "multilabel", "text", "json", "chat"])
def test_default_metric_suits_its_kind(kind: str) -> None:
    assert kind in METRICS[DEFAULT_METRICS[kind]].kinds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "right"), [("rougel", "rougeL"), ("acuracy", "accuracy"), ("json_f1", "json_field_f1")]
)
def test_unknown_metric_suggests(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_metric(wrong)
    assert caught.value.code == "unknown-name"
    assert f"did you mean '{right}'?" in caught.value.hint


def test_unknown_metric_without_a_near_name_lists_all() -> None:
    with pytest.raises(ConfigError) as caught:
        get_metric("zzz")
    assert "did you mean" not in caught.value.hint
    assert "token_f1" in caught.value.hint


def write(folder: Path, code: str, name: str = "mymetric.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(code)
    return folder


def test_user_metric_beside_the_task(tmp_path: Path) -> None:
    write(tmp_path, "SCALE = 10\n", "neighbour.py")
    write(
        tmp_path,
        "from neighbour import SCALE\n"
        "def score(prediction, references):\n    return min(len(prediction), SCALE) / SCALE\n",
    )
    metric = get_metric("mymetric:score", tmp_path)
    assert metric("12345", ["x"]) == 0.5
    assert metric.name == "mymetric:score"
    assert str(tmp_path) not in sys.path


def test_user_metric_is_imported_once(tmp_path: Path) -> None:
    write(
        tmp_path,
        "from pathlib import Path\nwith Path(__file__).with_suffix('.log').open('a') as log:\n    log.write('x')\n",
    )
    write(tmp_path, (tmp_path / "mymetric.py").read_text() + "def score(p, r): return 1\n")
    for _ in range(3):
        get_metric("mymetric:score", tmp_path)
    assert (tmp_path / "mymetric.log").read_text() == "x"


def test_two_tasks_may_have_modules_of_the_same_name(tmp_path: Path) -> None:
    one = write(tmp_path / "one", "def score(p, r): return 0.25\n")
    two = write(tmp_path / "two", "def score(p, r): return True\n")
    assert get_metric("mymetric:score", one)("", ["x"]) == 0.25
    assert get_metric("mymetric:score", two)("", ["x"]) == 1.0


def test_user_metric_in_the_current_folder_a_package_and_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "pack", "def score(p, r): return 0.5\n")
    monkeypatch.chdir(tmp_path)
    assert get_metric("pack.mymetric:score", tmp_path / "elsewhere")("", ["x"]) == 0.5
    assert get_metric("rung.evaluation.metrics.text:token_f1")("a b", ["b"]) == 1.0


@pytest.mark.parametrize(
    ("spec", "code", "error"),
    [
        ("mymetric:other", "def score(p, r): return 1\n", "function-not-found"),
        ("nomodule_xyz:score", "", "function-not-found"),
        ("nomodule_xyz.deep:score", "", "function-not-found"),
        ("../mymetric:score", "", "function-not-found"),
        ("mymetric:", "", "function-not-found"),
        ("mymetric:score", "def score(p): return 1\n", "function-not-found"),
        ("mymetric:score", "def score(p, r, *, k): return 1\n", "function-not-found"),
        ("mymetric:score", "score = 3\n", "function-not-found"),
        ("mymetric:score", "x = 1\nimport nothing_like_this\n", "function-not-found"),
        ("mymetric:score", "x = 1\ndef score(p, r) return 1\n", "function-not-found"),
    ],
)
def test_user_metric_that_cannot_be_used(tmp_path: Path, spec: str, code: str, error: str) -> None:
    write(tmp_path, code)
    with pytest.raises(ConfigError) as caught:
        get_metric(spec, tmp_path)
    assert caught.value.code == error
    assert caught.value.hint
    if code.startswith("x = 1\n"):  # the import fails in line 2
        assert caught.value.where is not None
        assert str(caught.value.where).startswith(f"{tmp_path / 'mymetric.py'}:2")


@pytest.mark.parametrize("value", ["'0.5'", "None", "1.5", "-0.1", "float('nan')", "[1]"])
def test_user_metric_that_returns_no_score(tmp_path: Path, value: str) -> None:
    metric = get_metric("mymetric:score", write(tmp_path, f"def score(p, r): return {value}\n"))
    with pytest.raises(ConfigError) as caught:
        metric("x", ["y"])
    assert caught.value.code == "metric-failed"


def test_user_metric_that_raises(tmp_path: Path) -> None:
    metric = get_metric("mymetric:score", write(tmp_path, "def score(p, r): return float(p)\n"))
    assert metric("0.5", ["y"]) == 0.5
    with pytest.raises(ConfigError, match="ValueError") as caught:
        metric("half", ["y"])
    assert caught.value.code == "metric-failed"


EXPECTED = ["a", "a", "a", "b", "b", "c", "c", "c"]
PREDICTED = ["a", "b", "b", "b", " a", "c\n", "gibberish", "b"]


def test_macro_f1_equals_sklearn() -> None:
    stripped = [p.strip() for p in PREDICTED]
    expected = f1_score(EXPECTED, stripped, labels=["a", "b", "c"], average="macro", zero_division=0)
    assert macro_f1(PREDICTED, EXPECTED) == pytest.approx(expected, rel=1e-12)
    assert macro_f1(EXPECTED, EXPECTED) == 1.0


def test_confusion_names_the_rows() -> None:
    assert confusion(PREDICTED, EXPECTED, ["a", "b", "c"]) == [
        Confusion("a", "b", 2, (1, 2)),
        Confusion("b", "a", 1, (4,)),
        Confusion("c", "b", 1, (7,)),
        Confusion("c", OTHER, 1, (6,)),
    ]
    assert confusion(EXPECTED, EXPECTED, ["a", "b", "c"]) == []


def test_confusion_counts_equal_sklearn() -> None:
    labels = ["a", "b", "c"]
    matrix = confusion_matrix(EXPECTED, [p.strip() for p in PREDICTED], labels=labels)
    for found in confusion(PREDICTED, EXPECTED, labels):
        if found.predicted != OTHER:
            assert found.count == matrix[labels.index(found.expected), labels.index(found.predicted)]


def test_whole_set_views_refuse() -> None:
    with pytest.raises(ValueError, match="as many"):
        macro_f1(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="row 1"):
        confusion(["a", "a"], ["a", "x"], ["a"])


def test_importing_metrics_and_statistics_imports_nothing_heavy() -> None:
    code = (
        "import sys, rung.evaluation.metrics, rung.evaluation.statistics, rung.evaluation.racing\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'rouge_score', 'nltk', 'matplotlib', 'openai'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_statistics_of_labels_equal_scikit_learn() -> None:
    truth, found = list("aaabbbccda"), list("aabbbaccaa")
    both = {"labels": list("abcd"), "zero_division": 0}
    for name, value in {
        "macro_f1": f1_score(truth, found, average="macro", **both),
        "macro_f2": fbeta_score(truth, found, beta=2, average="macro", **both),
        "balanced_accuracy": balanced_accuracy_score(truth, found),
        "recall:a": recall_score(truth, found, average=None, **both)[0],
        "precision:a": precision_score(truth, found, average=None, **both)[0],
        "precision:d": 0.0,
        "f0.5:b": fbeta_score(truth, found, beta=0.5, average=None, **both)[1],
    }.items():
        assert label_statistic(name, found, truth) == pytest.approx(value, rel=1e-12), name
    assert label_statistic("accuracy", found, truth) is None
    low, high = macro_f1_interval(found, truth)
    assert 0 <= low < macro_f1(found, truth) < high <= 1
    assert macro_f1_interval(truth, truth) == (1.0, 1.0)


def test_costs_of_labels() -> None:
    settings = {"costs": {"fraud": {"ok": 10.0}, "ok": {"fraud": 2.0}}}
    metric = get_metric("label_costs", settings=settings)
    pairs = [("ok", "ok"), ("ok", "fraud"), ("fraud", "ok"), ("?", "ok")]
    assert [metric(found, [truth]) for found, truth in pairs] == [1.0, 0.0, 0.8, 0.9]
    assert metric.check is not None
    metric.check([Example("1", {}, ("ok",), "a:1"), Example("2", {}, ("fraud",), "a:2")])
    with pytest.raises(ConfigError, match="no label of the rows"):
        metric.check([Example("1", {}, ("ok",), "a:1")])
    for costs in ({"a": {"a": 1.0}}, {"a": {"b": -1.0}}):
        with pytest.raises(ConfigError, match="negative"):
            get_metric("label_costs", settings={"costs": costs})


def test_balanced_accuracy_measures_as_many_rows_of_each_label(tmp_path: Path) -> None:
    rows = [{"text": f"note {i}", "label": "fraud" if i % 10 == 0 else "ok"} for i in range(600)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(
        "name: t\ninstruction: i\ninputs: [text]\noutput: {column: label, kind: category}\n"
        "metric: balanced_accuracy\ndata: {train: d.jsonl, split: {method: holdout}}\n"
    )
    data = Task.load(tmp_path / "task.yaml").read()
    for part in (data.validation, data.test):
        truth = [row.outputs[0] for row in part]
        assert truth.count("fraud") == truth.count("ok") > 5
        assert label_statistic("balanced_accuracy", ["ok"] * len(truth), truth) == 0.5
    assert len(data.train) > 300
    left = data.report.splits["test"].dropped["left out so that labels count alike"]
    assert len(left) + len(data.test) == data.report.splits["test"].read
    folds = Task.load(tmp_path / "task.yaml", {"data.split.method": "folds"}).read()
    truth = [row.outputs[0] for fold in folds.folds for row in fold]
    assert truth.count("fraud") == truth.count("ok") == 60
    assert len(folds.fold(0).train) + len(folds.folds[0]) == 600
    with pytest.raises(ConfigError, match="whole set") as caught:
        get_metric("f1")
    assert "macro_f1" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "settings", "statistic"),
    [
        ("macro_f1", {}, "macro_f1"), ("macro_f0.5", {}, "macro_f0.5"), ("f_beta", {"beta": 2.0}, "macro_f2"),
        ("f_beta", {"label": "fraud"}, "f1:fraud"), ("label_recall", {"label": "fraud"}, "recall:fraud"),
    ],
)  # fmt: skip
def test_the_rows_numbers_of_a_statistic_have_it_as_mean_and_are_those_of_the_jackknife(name, settings, statistic):
    random = np.random.default_rng(3)
    truth = random.choice(["ok", "fraud", "spam"], 90, p=[0.8, 0.12, 0.08]).tolist()
    found = [each if random.random() < 0.7 else str(random.choice(["ok", "fraud", "spam"])) for each in truth]
    whole = get_metric(name, settings=settings).whole
    assert whole is not None
    values = np.array(whole(found, truth))
    assert values.mean() == pytest.approx(label_statistic(statistic, found, truth), abs=1e-12)
    left = np.array([label_statistic(statistic, found[:i] + found[i + 1 :], truth[:i] + truth[i + 1 :])
                     for i in range(90)], dtype=float)  # fmt: skip
    assert values - values.mean() == pytest.approx(89 * (left.mean() - left), abs=1e-9)


def test_a_statistic_of_a_label_needs_the_label_and_top_k_fewer_than_the_labels():
    rows = [Example("1", {}, ("ok",), "a:1"), Example("2", {}, ("fraud",), "a:2")]
    for name, settings in (("f_beta", {"label": "fruad"}), ("label_recall", {"label": "fruad"}), ("accuracy@2", {})):
        check = get_metric(name, settings=settings).check
        assert check is not None
        with pytest.raises(ConfigError, match=r"no label of the rows|always 1"):
            check(rows)
