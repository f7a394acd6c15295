import json
import warnings

import pytest

from rung.artifact.artifact import Artifact
from rung.errors import ConfigError


@pytest.fixture
def rung():
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # typer's own use of click
        from typer.testing import CliRunner

        from rung.cli.main import app

    return lambda *arguments: CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "100"})


@pytest.fixture(scope="module")
def saved(tiny_zero, tmp_path_factory):
    return str(tiny_zero.save(tmp_path_factory.mktemp("artifact") / "zero"))


def test_confidence_is_fitted_measured_and_saved(rung, saved, small_task_file, tmp_path):
    options = ["--abstain-below", "0.5", "--out", str(tmp_path / "sure"), "--json", "--quiet"]
    told = json.loads(rung("confidence", saved, str(small_task_file), *options).stdout)
    assert (told["artifact"], told["method"], told["fitted_on"], told["rows"]) == ("zero-shot", "temperature", 22, 36)
    loaded = Artifact.load(tmp_path / "sure")
    assert loaded.decoder.confidence.temperature == told["temperature"]
    assert loaded.decoder.confidence.abstain_below == 0.5
    scores = json.loads(rung("eval", str(tmp_path / "sure"), str(small_task_file), "--json", "--quiet").stdout)
    assert scores["metrics"]["coverage"]["score"] == pytest.approx(told["abstaining"]["coverage"])
    line = json.loads(rung("run", str(tmp_path / "sure"), "I lost my card", "--json").stdout)
    assert line["abstained"] == (line["confidence"] < 0.5)


def test_it_is_told_in_words(rung, saved, small_task_file):
    shown = rung("confidence", saved, str(small_task_file), "--quiet").stdout
    assert "expected calibration error on 36 test rows" in shown
    assert "99 % right on new rows, with 95 % confidence: no threshold is proven on 36 rows" in shown


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("--method", "platt", "unknown-name"),
        ("--abstain-below", "2", "bad-option"),
        ("--method", "isotonic", "too-few-rows"),
    ],
)
def test_wrong_options(rung, saved, small_task_file, option, value, code):
    with pytest.raises(ConfigError) as caught:
        rung("confidence", saved, str(small_task_file), option, value, "--quiet")
    assert caught.value.code == code


def test_the_task_asks_for_what_belongs_to_categories(small_task_file):
    from rung.task import Task

    for settings, where in (
        ({"confidence.out_of_scope": "age_limit"}, "no effect without"),
        ({"confidence.abstain_below": "1.5"}, "less than 1"),
        (
            {"output": "{column: category, kind: text}", "confidence": "{}"},
            "belongs to the kinds category and multilabel",
        ),
    ):
        with pytest.raises(ConfigError, match=where):
            Task.load(small_task_file, settings)
