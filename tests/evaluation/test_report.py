import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console

from browser import violations
from rung.cli.render import climb_result
from rung.climbing.run import Climb
from rung.evaluation.decision import decide
from rung.evaluation.metrics.registry import METRICS
from rung.evaluation.prices import Prices
from rung.evaluation.racing import bounded_below, looks
from rung.evaluation.report import plots
from rung.evaluation.report.explorer import MOST_ROWS, answered_rows
from rung.evaluation.report.html import page, write_html
from rung.evaluation.report.plots import efficient, price, svg
from rung.evaluation.report.words import delta_text, worth_notes
from rung.evaluation.result import ClimbResult, Comparison, Prediction, RungResult, SuspectLabel, TimeSpan
from rung.evaluation.scoring import related
from rung.evaluation.statistics import compare
from rung.yamlfile import sealed

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202e\0'\"" + "x" * 10_000


def rung(name, score, low, high, **more):
    values = {"family": "prompting", "metric": "accuracy", "status": "confirmed", "split": "test", "n": 600}
    return RungResult(
        name=name, score=score, low=low, high=high, seconds=60.0, prompt_tokens=24_000, **{**values, **more}
    )


@pytest.fixture
def result():
    losses = tuple((step, 3.0 / step) for step in range(1, 60))
    rungs = (
        rung("zero-shot", 0.45, 0.41, 0.49, price_per_1000=0.015, expected_row_seconds=0.15),
        rung("features", 0.86, 0.83, 0.886, trainable_parameters=29_645, artifact_bytes=124_000),
        rung("few-shot-knn", 0.7, 0.58, 0.8, split="validation", status="beaten", n=80, reason="beaten by features"),
        rung(
            "lora",
            0.805,
            0.77,
            0.835,
            fit_seconds=350.0,
            overflow_rows=12,
            dropped_demonstrations=31,
            trainable_parameters=4_884_480,
            losses=losses,
        ),
        RungResult("llm-features", "features", "accuracy", "failed", reason="out of memory"),
        RungResult("system-prompt", "prompting", "accuracy", "skipped", reason=EVIL),
    )
    comparisons = (
        Comparison("zero-shot", "features", "accuracy", 600, 0.41, 0.37, 0.45, 1e-9, 250, 4, "mcnemar-exact"),
        Comparison("zero-shot", "lora", "accuracy", 600, 0.355, 0.31, 0.4, 0.02, 230, 17, "mcnemar-exact"),
    )
    data = {"splits": {"train": {"read": 2, "kept": 2, "dropped": {EVIL: 1}}}, "warnings": [EVIL], "labels": {}}
    return ClimbResult(
        task=EVIL[:60], metric="accuracy", model="embedded", engine="auto", seed=0, version="0.1.0", created="now",
        seconds=1200.0, budget_seconds=None, recommended="features", decision="Use features: +41.0 pp", rungs=rungs,
        comparisons=comparisons, data=data, money=0.52, endpoint_money=0.45, endpoint_tokens=(12_000, 300),
        prices=Prices(0.1, False, 90_000, 0.15, 0.6, 0.075).as_dict(), next_steps=("collect 200 rows",),
        kind="category",
    )  # fmt: skip


@pytest.fixture
def predictions():
    def row(i, label, score):
        return Prediction(f"{i}", "test.csv:2", "test", {"text": EVIL}, EVIL, ("a",), label, score, 0.5, 40, 0.1)

    return {
        "zero-shot": [row(i, "b", 0.0) for i in range(300)],
        "features": [row(i, "a" if i % 3 else "c", float(i % 3 > 0)) for i in range(300)],
    }


def test_everything_is_escaped(result, predictions):
    text = page(result, predictions)
    assert text.count("<script>") == 1
    assert "<img" not in text
    assert "<image" not in text  # the policy allows no images, not even inside a plot
    assert "\0" not in text
    assert "&lt;script&gt;" in text
    assert 'style="' not in text  # the policy allows the style element by its hash, and nothing else
    assert len(text) < 3_000_000
    assert "lora: 12 of 600 prompts were longer than the model reads; 31 demonstrations were left out" in text


def candidate(name, score, **more):
    genes = {
        "instruction": "Say.",
        "template": "{text}",
        "verbalizer": "own",
        "listed": False,
        "shots": None,
        "system": "",
    }
    told = {"name": name, "round": 1, "calibrated": True, "rows": 24, "score": score, "racing_score": 0.25}
    return {**told, **genes, "origin": "instruction", **more}


def test_every_candidate_of_a_search_stands_in_the_report(result, predictions):
    shots = {"selection": "balanced", "k": 4, "seed": 7, "order": 1}
    found = {
        "adopted": True, "reason": "candidate-1 is significantly better", "winner": "candidate-1", "comparison": None,
        "search_rows": 60, "adoption_rows": 40,
        "refused": [{"text": EVIL, "reason": "it repeats the training row a:2"}],
        "spent": {"calls": 1234, "prompt_tokens": 5000, "completion_tokens": 1, "seconds": 9.6, "money": 0.0125},
        "candidates": [
            candidate("incumbent", 0.5, origin="incumbent"),
            candidate("candidate-1", 0.75, instruction=EVIL, shots=shots, listed=True, verbalizer="words"),
            candidate("candidate-2", None, rows=0, racing_score=None, failed="too long", system="Be brief."),
        ],
    }  # fmt: skip
    searched = rung("prompt-search", 0.6, 0.5, 0.7, path=("prompt-search",), settings={"prompt-search": found})
    text = page(replace(result, rungs=(*result.rungs, searched)), predictions)
    section = text.partition("Prompts searched")[2].partition("</section>")[0]
    assert (
        "prompt-search: candidate-1 is significantly better. 1,234 calls, 5,001 tokens, 10 s, 0.0125 in money; "
        in section
    )
    assert re.findall(r"<tr(?: class=best)?><td>([\w-]+)<td>instruction<td>(\d+)<td>([\d.]*)", section) == [
        ("candidate-1", "24", "75.0"), ("candidate-2", "0", ""),
    ]  # fmt: skip
    assert section.count("class=best") == 1
    assert "labels: in words, listed in the prompt\ndemonstrations: 4 balanced, seed 7, order 1" in section
    assert "system: Be brief.\ninstruction: Say.\ntemplate: {text}" in section
    assert "failed: too long" in section
    assert "texts refused: 1" in section
    assert "it repeats the training row a:2" in section
    assert "<script>" not in section
    assert "Prompts searched" not in page(result, predictions)


def test_the_policy_names_the_hashes_of_what_is_there(result, predictions):
    import base64
    import hashlib

    text = page(result, predictions)
    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL).group(1)
        assert base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode() in text.split("<style>")[0]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_table_fits_every_width(result, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    climb_result(result, console)
    lines = console.export_text().splitlines()
    console.file.close()
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith(("not shown", "difference, ")))]
    assert max(map(len, table)) <= width
    assert "12 of 600 prompts were longer than the model reads; 31 demonstrations were" in " ".join(lines)
    assert any(line.startswith("> features") and "86.0 % [83.0, 88.6]" in line for line in lines)
    heads = " ".join(line for line in table if line.startswith("rung "))
    heads += " " + " ".join(line for line in lines if line.startswith("not shown in"))
    for head in ("fixed / broken", " p ", "per 1,000", "s/row", "expected s", "tokens in", "trainable", "bytes"):
        assert head in f"{heads} "  # a narrow terminal names what it leaves out
    assert "the climb took 20 min 0 s and cost 0.52; endpoints billed 0.45: 12,000 tokens in, 300 out" in " ".join(
        " ".join(lines).split()
    )


SUSPECTS = (
    SuspectLabel("test", "4", "test.csv:6", "a", "b", "Where is my <card>?"),
    SuspectLabel("train", "t1", "train.csv:9", "a", "b", "My <card> is lost"),
)


def test_written_and_read_it_is_the_same(result, tmp_path):
    result = replace(result, suspects=SUSPECTS)
    result.write(tmp_path)
    assert ClimbResult.read(tmp_path) == result
    assert result.summary()["recommended"] == "features"


@pytest.mark.parametrize(("metric", "kind"), [("accuracy", "category"), ("rougeL", "text")])
def test_a_report_of_an_earlier_layout_is_read(result, tmp_path, metric, kind):
    result = replace(result, metric=metric, kind=kind)
    values = asdict(result)
    del values["kind"], values["suspects"]
    (tmp_path / "report.json").write_text(sealed(values))
    assert ClimbResult.read(tmp_path) == result


# ---- what depends on the kind of answers, and not on the metric


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy", "macro_f2", "label_costs", "accuracy@2"])
def test_labels_have_confusions_and_filters_whatever_the_metric_is(result, predictions, metric):
    text = page(replace(result, metric=metric), predictions)
    assert "Most confused labels" in text
    assert ">a as c</a>" in text
    assert '<option value="c">c</option>' in text
    assert answered_rows(replace(result, metric=metric), predictions).labels == (["a"], ["a", "b", "c"])


def test_other_answers_have_no_confusions(result, predictions, tmp_path):
    other = replace(result, kind="text")
    assert "Most confused labels" not in page(other, predictions)
    assert answered_rows(other, predictions).labels == ([], [])
    assert Climb(other, tmp_path, predictions).plot.confusions() is None


# ---- rows


def test_labels_that_may_be_wrong_are_found_also_among_training_rows(result, predictions):
    found = answered_rows(replace(result, suspects=SUSPECTS), predictions)
    rows = [found.rows[number] for number in found.chosen(found.place, {"kind": "suspect"})]
    assert [(row["o"], row["p"], row["e"], row["l"]) for row in rows] == [
        ("test.csv:2", "test", ["a"], "b"), ("train.csv:9", "train", ["a"], "b"),
    ]  # fmt: skip
    assert rows[1]["a"] == [None] * 4
    assert "train.csv:9" not in {found.rows[number]["o"] for number in found.chosen(found.place, {"kind": "all"})}
    assert found.chosen(found.place, {"kind": "suspect", "find": "is LOST"}) == [len(found.rows) - 1]
    assert found.chosen(found.place, {"kind": "suspect", "given": "c"}) == []
    assert "suspect" not in answered_rows(result, predictions).kinds


def test_rows_that_no_rung_answers_right(result):
    def row(i, score):
        return Prediction(f"{i}", f"t:{i}", "test", {"text": "x"}, "", ("a",), "b", score, 0.5, 1, 0.1)

    answers = {
        "zero-shot": [row(i, 0.0) for i in range(4)],
        "features": [row(i, float(i == 1)) for i in range(4)],
        "lora": [row(i, 0.0) for i in range(3)],  # two answers are too few to call the last row hard
    }
    found = answered_rows(result, answers)
    assert sorted(found.rows[n]["o"] for n in found.chosen(found.place, {"kind": "hard"})) == ["t:0", "t:2"]


def test_a_page_says_how_many_rows_it_leaves_out(result):
    rows = [Prediction(f"{i}", f"t:{i}", "test", {"text": "x"}, "", ("a",), "a", 1.0, 0.5, 1, 0.1)
            for i in range(MOST_ROWS + 1234)]  # fmt: skip
    last = replace(SUSPECTS[0], id=rows[-1].id)
    text = page(replace(result, suspects=(last, SUSPECTS[1])), {"features": rows})
    assert "1,233 more rows are in predictions.jsonl" in text
    held = json.loads(re.search(r'id="held">(.*?)</script>', text, re.DOTALL)[1])
    assert len(held["rows"]) == MOST_ROWS + 2  # the suspects are there in any case
    assert "more rows are in predictions.jsonl" not in page(result, {"features": rows[:MOST_ROWS]})


def test_next_steps_about_rows_lead_to_them(result, predictions, tmp_path):
    steps = ("labels: test.csv:6 (a, likely <b>)", "collect 200 rows", "no arm answers 2 of 9: t:1; check")
    result = replace(result, next_steps=steps)

    def kinds(of):
        section = page(of, predictions).partition("What to do next")[2].partition("</section>")[0]
        assert "<b>" not in section
        return re.findall(r"#rows\?pick=features&amp;kind=(\w+)", section)

    led = replace(result, suspects=SUSPECTS, step_rows=("suspect", "", "hard"))
    led.write(tmp_path)
    assert kinds(ClimbResult.read(tmp_path)) == ["suspect", "hard"]
    values = {key: value for key, value in asdict(result).items() if key != "step_rows"}
    (tmp_path / "report.json").write_text(sealed(values))  # an earlier one does not say which rows
    assert kinds(ClimbResult.read(tmp_path)) == []


def test_the_plot_names_every_rung_once_inside_its_frame_and_none_covers_another(result):
    markup = svg(price(result))
    assert all(markup.count(f">{name}<") == 1 for name in ("zero-shot", "features", "few-shot-knn", "lora"))
    assert ">llm-features<" not in markup
    assert "price of 1,000 predictions" not in markup  # that of some rungs is not known
    rungs = tuple(replace(r, price_per_1000=0.01 * (1 + i)) for i, r in enumerate(result.rungs))
    assert "price of 1,000 predictions" in svg(price(replace(result, rungs=rungs)))
    assert price(replace(result, rungs=rungs[:1])) is None


def test_the_frontier_leaves_out_what_something_cheaper_equals():
    assert efficient([(3, 0.9), (1, 0.5), (2, 0.5), (2, 0.7), (4, 0.8)]) == [(1, 0.5), (2, 0.7), (3, 0.9)]


def test_on_a_phone_the_ladder_fits_and_rows_are_found(result, predictions, tmp_path, browser):
    spans = (TimeSpan("features", "making", 2.0, 30.0), TimeSpan("lora", "making", 32.0, 40.0))
    steps = {"next_steps": ("labels: test.csv:6", "no arm: 100 of 300"), "step_rows": ("suspect", "hard")}
    result = replace(result, suspects=SUSPECTS, spending=spans, **steps)
    predictions["features"] = [replace(row, note="<i>why</i>", abstained=True) for row in predictions["features"]]
    predictions["lora"] = [replace(row, score=0.25, confidence=None) for row in predictions["zero-shot"][1:]]
    predictions["few-shot-knn"] = predictions["zero-shot"][:31]
    file = write_html(result, predictions, tmp_path)
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    problems = []
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert violations(page) == []
    for part in ("circle", ".score", ".why"):
        box = page.locator(f".ladder .best {part}").bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 390
    rows, many = page.locator("#rows tbody tr"), page.locator("#many")
    assert many.inner_text() == "1 to 25 of 100 rows"  # those that features answers wrong
    assert rows.count() == 25
    found = answered_rows(result, predictions)
    for arm, name in enumerate(found.arms):  # the pages of a server choose rows in Python, as this script does
        page.select_option("#pick", str(arm))
        for kind in found.kinds:
            page.select_option("#kind", kind)
            numbers = found.chosen(arm, {"kind": kind})
            total = len(numbers)
            first = [found.rows[number]["o"] for number in numbers[:25]]
            assert [line.split("\n")[0] for line in rows.locator("td:first-child").all_inner_texts()] == first
            assert many.inner_text().endswith(f" of {total} rows" if total else "no rows"), (name, kind)
    page.select_option("#pick", str(found.place))
    page.select_option("#kind", "fixed")
    assert many.inner_text() == "1 to 25 of 200 rows"
    page.click("#next")
    assert many.inner_text() == "26 to 50 of 200 rows"
    page.select_option("#given", "c")
    assert many.inner_text() == "no rows"
    for section in (
        "Quality against price", "All figures", "Most confused labels", "Training", "Where the time went",
    ):  # rows of each figure  # fmt: skip
        links = page.locator(f"section:has(h2:has-text('{section}')) a[href^='#rows?']")
        assert links.count() >= 1, section
        links.first.click()
        chosen = re.search(r"pick=([\w-]+)", links.first.get_attribute("href"))[1]
        page.wait_for_function("arm => document.querySelector('#pick').selectedOptions[0].text === arm", arg=chosen)
    page.click(".ladder a >> text=zero-shot")  # the link shows what this rung gets wrong
    page.wait_for_function("() => document.querySelector('#many').textContent === '1 to 25 of 300 rows'")
    page.fill("#find", "no such text")
    assert many.inner_text() == "no rows"
    page.fill("#find", "OWNED")
    page.locator("#rows button").first.click()
    answers = page.locator("tr.more p")
    assert [each.inner_text().split("\n") for each in answers.all()] == [
        ["zero-shot: b", "wrong; 50 % sure"], ["features: c", "wrong; 50 % sure; <i>why</i>; abstained"],
        ["few-shot-knn: b", "wrong; 50 % sure"],
    ]  # fmt: skip
    step = page.locator("section:has(h2:has-text('What to do next'))")
    for number, count, first in ((0, 2, "test.csv:2"), (1, 1, "test.csv:2")):
        step.get_by_role("link", name="Show the rows").nth(number).click()
        page.wait_for_function(
            "many => document.querySelector('#many').textContent.endsWith(` of ${many} rows`)", arg=count
        )
        assert rows.first.inner_text().startswith(first), number
    page.select_option("#kind", "suspect")
    assert rows.last.locator("td").all_inner_texts() == [
        "train.csv:9\ntrain", "My <card> is lost", "a\nlikely b", "not asked", "",
    ]  # fmt: skip
    for details in page.locator("details").all():
        details.evaluate("each => each.open = true")
    assert violations(page) == []  # with every part unfolded, and suspects on the screen
    assert page.title().startswith("<script>")  # the task's name, as text: only our script ran
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert problems == []  # also none about the content policy
    page.close()


def test_long_labels_fit_on_a_phone(result, predictions, tmp_path, browser):
    long = {name: [replace(row, expected=("label_" * 20,)) for row in rows] for name, rows in predictions.items()}
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(write_html(result, long, tmp_path).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()


# ---- how rungs compare


def answers_of(scores, split="test"):
    inputs = {"text": "a"}
    return [
        Prediction(f"{i}", "a:1", split, inputs, "", ("a",), "a", score, 0.5, 40, 0.1) for i, score in enumerate(scores)
    ]


def test_every_rung_is_held_against_the_best_yardstick_on_the_rows_that_both_answered():
    random = np.random.default_rng(1)
    scores = {
        name: (random.random(200) < share).astype(float)
        for name, share in {"zero-shot": 0.5, "majority": 0.2, "nearest-row": 0.7, "lora": 0.9}.items()
    }
    scores["lora"] = scores["lora"][:60]
    families = {"majority": "yardstick", "nearest-row": "yardstick"}
    rungs = [rung(name, s.mean(), 0.1, 0.9, family=families.get(name, "prompting")) for name, s in scores.items()]
    rungs[3] = replace(rungs[3], status="beaten", n=60)
    found = {
        r.name: r
        for r in related(
            rungs, {n: answers_of(s) for n, s in scores.items()}, "nearest-row", METRICS["accuracy"], seed=0
        )
    }
    assert found["nearest-row"].yardstick is None
    expected = compare(scores["nearest-row"], scores["zero-shot"], seed=0)
    assert found["zero-shot"].yardstick == Comparison.of("nearest-row", "zero-shot", "accuracy", expected)
    stopped = found["lora"].stopped
    difference = scores["lora"] - scores["nearest-row"][:60]
    assert (stopped.a, stopped.n, stopped.delta) == ("nearest-row", 60, pytest.approx(difference.mean()))
    assert stopped.low == pytest.approx(bounded_below(difference, 0.025, exact=True))
    assert (stopped.low > 0) == (stopped.p <= 0.05)
    assert (found["lora"].low, found["lora"].high) == (None, None)  # an interval at a stop that the scores chose
    assert found["zero-shot"].low == 0.1


def test_the_interval_of_a_stopped_rung_holds_its_difference_where_that_of_its_score_does_not():
    held = 0
    for seed in range(80):
        random = np.random.default_rng(seed)
        row = random.random(300)
        good, weak = ((0.5 * row + 0.5 * random.random(300) < share).astype(float) for share in (0.6, 0.5))
        until = next((n for n in looks(300) if eliminated(good[:n], weak[:n])), 300)
        rungs = [rung("good", 0.8, 0.7, 0.9), replace(rung("weak", 0.6, 0.5, 0.7), status="beaten")]
        answers = {"good": answers_of(good), "weak": answers_of(weak[:until])}
        stopped = related(rungs, answers, "good", METRICS["accuracy"], seed=0)[1].stopped
        many = np.random.default_rng(0).random((2, 1_000_000))
        true = np.subtract(*((0.5 * many[0] + 0.5 * many[1] < share).mean() for share in (0.5, 0.6)))
        held += stopped.low <= true <= stopped.high
    assert held >= 0.95 * 80 - 3 * (80 * 0.05 * 0.95) ** 0.5


def eliminated(good, weak):
    return bounded_below(good - weak, 0.05, exact=True) > 0


def test_a_thin_gain_is_shown_with_what_is_left_of_it():
    verdict = decide(
        {"a": [0.0] * 60 + [1.0] * 40, "b": [1.0] * 6 + [0.0] * 54 + [1.0] * 40}, {"a": 1, "b": 2}, "a", seed=0
    )
    thin = Comparison.judged("a", "b", "accuracy", verdict.verdicts["b"])
    assert thin.outcome == "better"
    assert 0.02 < thin.shrunken < thin.delta == pytest.approx(0.06)
    assert "likely about" in delta_text(thin)
    sure = decide({"a": [0.0] * 100, "b": [1.0] * 60 + [0.0] * 40}, {"a": 1, "b": 2}, "a", seed=0)
    assert Comparison.judged("a", "b", "accuracy", sure.verdicts["b"]).shrunken is None


def test_a_language_model_that_beats_no_yardstick_is_said_not_to_be_worth_its_price(result):
    def held(delta, low, name):
        return Comparison("nearest-row", name, "accuracy", 100, delta, low, delta + 0.05, 0.5, 3, 5, "mcnemar-exact")

    yardstick = rung("nearest-row", 0.7, 0.6, 0.8, family="yardstick", uses_llm=False, price_per_1000=0.001)
    poor = rung("zero-shot", 0.5, 0.4, 0.6, price_per_1000=0.02, yardstick=held(-0.2, -0.3, "zero-shot"))
    good = rung("lora", 0.9, 0.8, 0.95, price_per_1000=0.02, yardstick=held(0.2, 0.1, "lora"))
    assert worth_notes(replace(result, rungs=(good, yardstick))) == []
    (text,) = worth_notes(replace(result, rungs=(poor, yardstick, good)))
    assert "nearest-row, and so not worth their price: zero-shot -20.0 pp; they cost 20 times" in text


def test_a_notebook_marks_the_recommended_rung_and_escapes_everything(result, predictions, tmp_path):
    shown = Climb(result, tmp_path, predictions)._repr_html_()
    assert shown.count("<tr") == 6  # the report, the heads, four measured rungs
    assert "<tr class=best><td>features" in shown
    assert "<script" not in Climb(replace(result, decision=EVIL), tmp_path, predictions)._repr_html_()


def test_frames_hold_the_measured_rungs_and_every_row(result, predictions, tmp_path):
    climb = Climb(result, tmp_path, predictions)
    assert climb.to_frame()[["rung", "score", "n"]].values.tolist() == [
        ["zero-shot", 0.45, 600], ["features", 0.86, 600], ["few-shot-knn", 0.7, 80], ["lora", 0.805, 600],
    ]  # fmt: skip
    rows = climb.rows_frame()
    assert rows.groupby("rung").score.mean().to_dict() == {"features": 2 / 3, "zero-shot": 0.0}


def test_notebooks_show_figures_without_pyplot(result):
    assert plots.ladder(result)._repr_png_().startswith(b"\x89PNG")


def test_figures_are_those_of_matplotlib(result, predictions, tmp_path):
    plot = Climb(result, tmp_path, predictions).plot
    axes = plot.ladder().axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[:2] == ["zero-shot (600 rows, 0.015 per 1,000)", "features (600 rows)"]  # one price is not known
    assert axes.lines[0].get_xdata()[0] == 45  # the incumbent's score
    assert plot.confusions().axes[0].get_xlabel() == "predicted"
    assert plot.loss().axes[0].get_legend().texts[0].get_text() == "lora"
    assert plot.reliability() is None
    assert plot.coverage() is None


def test_what_was_rewarded_leads_to_the_rows_that_it_gained_most(result, predictions):
    assert "A reward can be won" not in page(result, predictions)
    features = next(rung for rung in result.rungs if rung.name == "features")
    rewarded = replace(features, settings={**features.settings, "rl": {"rewarded_by": ["accuracy"]}})
    rungs = tuple(rewarded if rung is features else rung for rung in result.rungs)
    text = page(replace(result, rungs=rungs), predictions)
    assert "A reward can be won in a way that nobody wants" in text
    assert 'href="#rows?pick=features&amp;kind=fixed"' in text
    wider = {
        name: [replace(row, score=[0.0, 0.25, 1.0][number % 3]) if name == "features" else replace(row, score=0.1)
               for number, row in enumerate(rows)] for name, rows in predictions.items()
    }  # fmt: skip
    found = answered_rows(result, wider)
    arm = found.arms.index("features")
    gains = [found.rows[n]["a"][arm]["s"] - 0.1 for n in found.chosen(arm, {"kind": "fixed"})]
    assert gains == sorted(gains, reverse=True)
    assert {round(gain, 2) for gain in gains} == {0.15, 0.9}


def test_a_comparison_reads_as_one_line(result):
    line = "features against zero-shot: +41.0 pp [+37.0, +45.0], 250 fixed / 4 broken of 600 rows, p < 0.001"
    assert str(result.comparisons[0]) == line
    assert line.replace("<", "&lt;") in result.comparisons[0]._repr_html_()


def test_the_learning_curve_and_the_time_are_drawn_where_they_were_measured(result, predictions, tmp_path):
    bare = Climb(result, tmp_path, predictions).plot
    assert bare.learning_curve() is None
    assert bare.budget() is None
    assert "Where the time went" not in page(result, predictions)
    spans = (
        TimeSpan("zero-shot", "answering", 2.0, 300.0), TimeSpan("lora", "making", 302.0, 700.0, 0.25),
        TimeSpan("lora", "answering", 1010.0, 100.0),
    )  # fmt: skip
    curve = ((40, 0.6, 0.5, 0.7), (80, 0.7, 0.6, 0.8), (160, 0.75, 0.65, 0.85))
    head = "a head on an encoder"
    known = replace(
        result, curve=curve, curve_of=head, doubled=(320, 0.775), spending=spans, budget_seconds=1200.0
    )  # fmt: skip
    known.write(tmp_path)
    assert ClimbResult.read(tmp_path) == known
    plot = Climb(known, tmp_path, predictions).plot
    axes = plot.budget().axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["zero-shot", "lora"]
    assert [text.get_text() for text in axes.texts] == ["5 min 0 s", "13 min 20 s, 0.25 billed"]
    assert axes.get_xlabel() == "minutes since the climb began"
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([5, 700 / 60, 100 / 60])
    axes = plot.learning_curve().axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["40", "80", "160", "320"]
    assert axes.texts[0].get_text() == "+2.5"
    assert axes.get_xlabel() == f"training rows of {head}"
    text = page(known, predictions)
    assert "Where the time went" in text
    assert 'style="' not in text
