import json
import warnings
from dataclasses import replace

from rung.evaluation.report.html import chart_svg, guide_section
from rung.evaluation.report.words import outcomes
from rung.evaluation.result import ClimbResult, Comparison, RungResult
from rung.yamlfile import sealed


def rung(name, **more):
    values = {"family": "prompting", "metric": "accuracy", "status": "confirmed", "split": "test", "n": 100}
    return RungResult(name, **{**values, "score": 0.5, "low": 0.4, "high": 0.6, "path": ("zero-shot", name), **more})


def against_zero(name, delta, p):
    return Comparison("zero-shot", name, "accuracy", 100, delta, delta - 0.1, delta + 0.1, p, 20, 10, "mcnemar-exact")


RESULT = ClimbResult(
    task="t", metric="accuracy", model="m", engine="auto", seed=0, version="0", created="now", seconds=1.0,
    budget_seconds=None, recommended="features", decision="", data={},
    rungs=(
        rung("zero-shot", path=("zero-shot",)), rung("features"), rung("calibrate"), rung("lora"),
        rung("few-shot-knn", status="beaten", split="validation", n=32),
        rung("full", status="skipped", reason="no memory", score=None, path=()),
        rung("features+lora", path=("zero-shot", "features", "lora")),
    ),
    comparisons=(
        against_zero("features", 0.2, 0.001), against_zero("calibrate", 0.01, 0.8), against_zero("lora", -0.2, 0.01),
    ),
)  # fmt: skip
ADVICE = {
    "task": "t",
    "steps": [
        {"key": "k", "question": "Is <it> so?", "answer": "yes", "observed": "seen", "yes": "do & do", "no": "leave it",
         "ask": None, "source": {"citation": "A <b> 2024", "url": "https://arxiv.org/abs/1"}},
        {"key": "l", "question": "Long " * 30, "answer": "unknown", "observed": "", "yes": "y " * 60, "no": "n",
         "ask": "needs.style", "source": None},
    ],
    "expectations": [
        {"rung": "features", "family": "features", "expect": "help", "reasons": ["few <rows>", "labels"]},
        {"rung": "dora", "family": "parameter-efficient", "expect": "not", "reasons": ["x"]},
    ],
}  # fmt: skip


def test_the_word_for_every_rung():
    found = {name: one.word for name, one in outcomes(RESULT).items()}
    assert found == {
        "zero-shot": "incumbent", "features": "helped", "calibrate": "no difference", "lora": "hurt",
        "few-shot-knn": "beaten", "full": "skipped",
    }  # fmt: skip
    assert outcomes(RESULT)["features"].text.startswith("+20.0 pp [+10.0, +30.0], 20 fixed / 10 broken")
    assert outcomes(RESULT)["full"].text == "no memory"


def test_the_chart_is_well_formed_and_escaped():
    from xml.etree import ElementTree

    svg = chart_svg(ADVICE)
    root = ElementTree.fromstring(svg)
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:4] == ["Is <it> so?", "seen", "yes: do & do", "no: leave it"]
    assert "not known: needs.style" in texts
    assert "style=" not in svg  # the page's policy allows presentation attributes only
    taken = [node for node in root.iter("{http://www.w3.org/2000/svg}path") if node.get("stroke-width") == "3"]
    assert len(taken) == 1  # the unknown question takes no branch


def test_expected_and_measured_side_by_side():
    assert guide_section(RESULT) == ""
    html = guide_section(replace(RESULT, advice=ADVICE))
    rung = '<a href="#rows?pick=features">features</a>'
    assert f"<td>{rung}<td class=why>helps<td class=why>few &lt;rows&gt;; labels<td class=why>helped: +20.0 pp" in html
    assert "dora" not in html
    assert "A &lt;b&gt; 2024" in html


def test_advice_shows_the_latest_climb_beside_the_rules(small_task_file, tmp_path):
    run = tmp_path / "runs" / "intents"
    run.mkdir(parents=True)
    (run / "climb.json").write_text(sealed({"task": "intents", "task_fingerprint": "an older one"}))
    replace(RESULT, task="intents").write(run)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # typer's own use of click
        from typer.testing import CliRunner

        from rung.cli.main import app
    arguments = ["advise", str(small_task_file), "--runs", str(tmp_path / "runs")]
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert told["measured"]["same_task"] is False
    assert {one["rung"]: one["word"] for one in told["measured"]["rungs"]}["features"] == "helped"
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert "the task file has changed since" in shown
