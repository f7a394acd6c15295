"""The pages in a real browser, against the real server on loopback."""

import html
import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import pytest
from pages_server import PLANTED, begin_trial, interaction, pages

from browser import Watched, violations
from rung.artifact.records import RecordDecoder, RecordField
from rung.feedback.registry import Registry
from rung.rungs.features import TfidfHead
from rung.rungs.yardsticks import Majority, NearestRow
from rung.serving.access import LOOPBACK_NAMES, Access, KeyRing, create_key, revoke_key
from rung.serving.served import Served
from rung.yamlfile import sealed

PAGES = ("/", "/runs", "/runs/intents", "/runs/intents/rows", "/runs/intents/row?split=test&id=row+13",
         "/runs/letters", "/playground", "/failures", "/failures/r1", "/promotions",
         "/trials", "/trials/intents", "/load", "/glossary", "/start", "/nothing-here")  # fmt: skip


@pytest.fixture(scope="module")
def site(served, artifacts, tmp_path_factory):
    """Pages that no test changes."""
    with pages(served, artifacts, tmp_path_factory.mktemp("site")) as server:
        begin_trial(server, artifacts["intents"], artifacts["few-shot"], "++-=" * 5)
        yield server


@pytest.fixture
def changed(served, artifacts, tmp_path):
    """Pages of its own for a test that corrects or promotes."""
    with pages(served, artifacts, tmp_path) as server:
        yield server


def reviewing(watched, server):
    watched.page.goto(f"{server.url}/failures")
    watched.page.get_by_label("Your name").fill("Ann Østergård")
    return watched.page


def test_words_are_explained_where_they_stand(site, watched):
    watched.page.set_viewport_size({"width": 390, "height": 844})
    watched.page.goto(f"{site.url}/runs/intents")
    term = watched.page.get_by_role("button", name="stopped early")
    term.focus()
    watched.page.keyboard.press("Enter")
    said = watched.page.get_by_text("The race ended this rung before all rows")
    said.wait_for()
    box = said.bounding_box()
    assert 0 <= box["x"] <= box["x"] + box["width"] <= 390
    watched.page.keyboard.press("Escape")
    said.wait_for(state="hidden")
    watched.page.get_by_role("link", name="What the words mean").click()
    watched.page.get_by_role("heading", name="What the words mean").wait_for()
    assert watched.problems == []


def upload(page, server, folder):
    """Make a task of a table of sixty rows, which words alone decide, on the page; return its file."""
    rows = [f"my {word} number {i},{word}" for i in range(30) for word in ("card", "loan")]
    (folder / "mine.csv").write_text("\n".join(["text,topic", *rows]))
    page.goto(f"{server.url}/runs")
    page.get_by_role("link", name="Start a climb").click()
    page.get_by_label("Name of the task").fill("mine")
    page.get_by_label("Column of the answer").fill("topic")
    page.locator("#file").set_input_files(folder / "mine.csv")
    page.wait_for_function("document.getElementById('rows').value.includes('my loan number 29')")
    page.get_by_role("button", name="Make a task").click()
    task = page.get_by_label("Task", exact=True)
    task.wait_for()
    assert task.locator("option").all_inner_texts() == ["mine/task.yaml"]
    return server.starter.folder / "mine" / "task.yaml"


def test_rows_are_uploaded_and_a_climb_on_them_is_started_and_seen(changed, watched, tmp_path):
    page = watched.page
    file = upload(page, changed, tmp_path)
    file.write_text(file.read_text().replace("model: embedded", "model: /no/such/model"))
    page.get_by_label("Time at most").fill("1m")
    page.get_by_role("button", name="Climb", exact=True).click()
    page.get_by_text("ended", exact=True).wait_for(timeout=90_000)
    assert "/no/such/model" in page.locator("#now pre").inner_text()  # the command says what is wrong
    assert watched.problems == []


def test_a_climb_from_the_page_recommends_is_stopped_and_improved(changed, watched, tiny_folder, tmp_path):
    page, starter = watched.page, changed.starter
    file = upload(page, changed, tmp_path)
    file.write_text(file.read_text().replace("model: embedded", f"model: {tiny_folder}"))
    page.get_by_label("Time at most").fill("60s")
    page.get_by_role("button", name="Climb", exact=True).click()
    page.get_by_text("ended", exact=True).wait_for(timeout=180_000)
    page.get_by_role("link", name="The climbs").click()
    page.get_by_role("link", name="mine").click()
    recommended = json.loads((changed.runs / "mine" / "report.json").read_text())["recommended"]
    assert recommended != "zero-shot"  # which a random model answers by chance
    page.get_by_text(f"Use {recommended}").first.wait_for()

    page.goto(f"{changed.url}/start")
    page.get_by_role("button", name="Climb", exact=True).click()  # of ten minutes
    page.get_by_role("button", name="Stop it").click()
    page.get_by_text("ended", exact=True).wait_for()
    assert not starter.running()

    starter.improving = ("--registry", str(changed.registry))
    page.reload()
    page.get_by_role("button", name="Improve with the corrections").click()
    page.get_by_text("ended", exact=True).wait_for(timeout=60_000)
    assert starter.words[0] == "improve"
    assert "has no reviewed failure" in page.locator("#now pre").inner_text()
    assert watched.problems == []


def test_nothing_is_started_that_is_no_task_and_nothing_is_replaced(changed, watched):
    page, starter = watched.page, changed.starter
    page.goto(f"{changed.url}/start")
    token = page.locator("input[name=form_token]").first.get_attribute("value")
    cookies = {each["name"]: each["value"] for each in page.context.cookies()}

    def send(path, **form):
        headers = {"Origin": changed.url, "Accept": "application/json"}
        return httpx.post(changed.url + path, data={"form_token": token, **form}, cookies=cookies, headers=headers)

    (starter.folder / "taken").mkdir()
    for path, form, status in (
        ("/start", {"task": "../intents/task.yaml"}, 404), ("/start/rows", {"name": "../out", "rows": "a,b"}, 400),
        ("/start/rows", {"name": "taken", "rows": "a,b\n1,2"}, 409), ("/start/rows", {"name": "none", "rows": ""}, 400),
    ):  # fmt: skip
        assert send(path, **form).status_code == status, path
    assert not starter.words
    assert httpx.post(f"{changed.url}/start", data={"task": "x"}).status_code == 403  # no token of a session
    assert sorted(each.name for each in starter.folder.iterdir()) == ["taken"]


def test_failures_over_time_are_a_chart_and_a_table(changed, watched):
    store = changed.wiring.store
    store.record([interaction(number, at=datetime(2026, 1, 5, number % 24, tzinfo=UTC)) for number in range(50, 60)])
    store.correct("r50", "card_arrival", "Ann")
    watched.page.goto(f"{changed.url}/failures")
    watched.page.get_by_text("Over time: 2026-01-02 to 2026-01-05").click()
    rows = [row.split("\t") for row in watched.page.locator(".days tbody tr").all_inner_texts()]
    assert rows == [["2026-01-05", "10", "0", "1"], ["2026-01-02", "4", "3", "0"]]
    bars = watched.page.locator(".days rect.bar-1")  # also of the days between, on which nothing was asked
    assert [float(bar.get_attribute("height")) for bar in bars.all()] == [32.0, 0.0, 0.0, 80.0]
    assert watched.problems == []


# ---- every page


@pytest.mark.parametrize("path", PAGES)
def test_pages_load_without_errors_and_break_no_rule_of_accessibility(site, browser, path):
    for scheme, width in (("light", 1280), ("dark", 390)):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 844}, bypass_csp=False)
        watched = Watched(context)
        answer = watched.page.goto(site.url + path)
        assert answer.status == (404 if path == "/nothing-here" else 200)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert watched.page.evaluate("typeof htmx") == "object"
        assert violations(watched.page) == []
        expected = (
            [] if answer.ok else ["Failed to load resource: the server responded with a status of 404 (Not Found)"]
        )
        assert watched.problems == expected
        context.close()


def test_what_answers_without_a_model_is_served_with_pages(tiny_zero, data, tmp_path, browser):
    """The overview asked each decoder for its encoder, which a constant and a record of fields do not have."""
    made = {"constant": Majority(), "copied": NearestRow(encoder=None), "encoded": NearestRow(), "head": TfidfHead()}
    served = Served()
    for name, rung in made.items():
        served.load(rung.fit(tiny_zero, data).save(tmp_path / name), name)
    blank = RecordDecoder((RecordField(("who",), "constant", many=False, empty="absent", values=('"Ann"',)),), {})
    fields = replace(tiny_zero, signature=replace(tiny_zero.signature, kind="json", labels=()), decoder=blank)
    served.load(fields.save(tmp_path / "fields"), "fields")
    with pages(served, {"few-shot": tmp_path / "head"}, tmp_path / "site") as server, browser.new_context() as context:
        page = context.new_page()
        assert page.goto(f"{server.url}/").status == 200
        cards = {card.locator("h3").inner_text(): card.inner_text() for card in page.locator("li.card").all()}
        assert cards.keys() == {*made, "fields"}
        for name, text in cards.items():
            assert f"Model\n{'embedded-encoder' if name == 'encoded' else 'none'}" in text
        for path in ("/playground", "/promotions", "/v1/models"):
            assert page.goto(f"{server.url}{path}").status == 200
    served.close()


def test_errors_are_pages_for_browsers_and_json_for_programs(site):
    page = httpx.get(f"{site.url}/runs/none", headers={"accept": "text/html"})
    assert (page.status_code, "there is no climb &#39;none&#39;" in page.text) == (404, True)
    assert httpx.get(f"{site.url}/failures/none").json()["error"]["code"] == "no-such-interaction"
    assert httpx.get(f"{site.url}/failures/none", headers={"accept": "text/html"}).status_code == 404
    assert httpx.get(f"{site.url}/static/app.pyc").status_code == 404
    assert httpx.get(f"{site.url}/runs/none").json()["error"]["code"] == "no-run"
    assert httpx.get(f"{site.url}/v1/none", headers={"accept": "text/html"}).json()["error"]["code"] == "not-found"


def test_pages_are_no_part_of_the_api(site):
    paths = httpx.get(f"{site.url}/openapi.json").json()["paths"]
    assert [path for path in paths if not path.startswith(("/v1/", "/health", "/ready", "/metrics"))] == []


def test_a_ladder_shows_the_decision_and_its_intervals(site, watched):
    watched.page.goto(f"{site.url}/runs/intents")
    assert watched.page.locator(".decision").inner_text().startswith("Use few-shot-knn: +33.5 pp [+27.0, +40.0]")
    best = watched.page.locator("tr.best")
    assert best.locator("td").first.inner_text() == "85.2 % [80.1, 89.2]"
    low, high = 0.454, 0.892  # of all rungs: the ends of the axis, 6 to 194
    places = [round(6 + 188 * (value - low) / (high - low), 1) for value in (0.801, 0.852, 0.892)]
    line, dot = best.locator("line.span"), best.locator("circle")
    assert [float(line.get_attribute("x1")), float(dot.get_attribute("cx")), float(line.get_attribute("x2"))] == places
    assert "it is expected to take 900 s" in watched.page.locator("main").inner_text()
    report = httpx.get(f"{site.url}/runs/intents/report")
    policy = report.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_the_report_runs_in_its_sandbox_and_its_links_find_rows(site, browser, scheme, width):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 844})
    watched = Watched(context)
    page, many = watched.page, watched.page.locator("#many")
    page.goto(f"{site.url}/runs/intents/report")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert many.inner_text() == "1 to 4 of 4 rows"  # those that few-shot answers wrong
    assert violations(page) == []
    page.locator("#rows button").first.click()  # what all rungs answered
    page.locator("button.term").first.click()
    for details in page.locator("details").all():
        details.evaluate("each => each.open = true")
    assert violations(page) == []
    page.keyboard.press("Escape")
    for section, link, found in (
        ("The ladder", "zero-shot", "1 to 25 of 36 rows"), ("What to do next", "Show the rows", "1 to 2 of 2 rows"),
        ("Most confused labels", "age_limit as card_arrival", "1 to 4 of 4 rows"),
    ):  # fmt: skip
        part = page.locator("section", has=page.get_by_role("heading", name=section))
        part.get_by_role("link", name=link).click()
        page.wait_for_function("found => document.querySelector('#many').textContent === found", arg=found)
    assert page.title() == "intents: report of a climb"  # what is planted in the rows did not run
    assert watched.problems == []
    context.close()


def test_rows_of_a_climb_are_found_by_the_filters_of_the_report(site, watched):
    page = watched.page
    page.goto(f"{site.url}/")
    card = page.locator("li.card", has=page.get_by_role("heading", name="few-shot"))
    assert "accuracy\n85.2 % [80.1, 89.2] on 240 test rows of intents" in card.inner_text()
    assert "accuracy" not in page.locator("li.card", has=page.get_by_role("heading", name="notes")).inner_text()
    page.get_by_role("link", name="see what it got wrong").first.click()
    table = page.locator("table.found tbody tr")
    page.get_by_text("1 to 4 of 4 rows", exact=True).wait_for()
    assert "test.csv:3" in table.first.inner_text()
    page.get_by_label("Rows", exact=True).select_option("sure")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("1 to 2 of 2 rows", exact=True).wait_for()
    page.get_by_label("Rows", exact=True).select_option("suspect")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("1 to 2 of 2 rows", exact=True).wait_for()
    assert [" ".join(line.split()) for line in table.all_inner_texts()] == [
        f"test.csv:13 test {PLANTED} age_limit likely card_arrival card_arrival 40 % sure",
        f"train.csv:7 train Lost my card {PLANTED} age_limit likely card_arrival not asked",
    ]
    assert table.last.get_by_role("link").count() == 0  # no rung answered it
    page.get_by_label("Rung").select_option("zero-shot")
    page.get_by_label("Rows", exact=True).select_option("wrong")
    page.get_by_label("Expected").select_option("card_arrival")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("1 to 25 of 36 rows", exact=True).wait_for()
    page.keyboard.press("j")
    page.get_by_text("26 to 36 of 36 rows", exact=True).wait_for()
    page.get_by_label("Text").fill("CARD 7?")
    page.keyboard.press("Enter")
    page.get_by_text("1 to 1 of 1 rows", exact=True).wait_for()
    table.first.get_by_role("link").click()
    page.get_by_role("heading", name="Answers").wait_for()
    assert page.locator("table.found tbody tr").all_inner_texts() == [
        "zero-shot\tage_limit\n40 % sure", "few-shot-knn\tcard_arrival\n40 % sure",
    ]  # fmt: skip
    assert page.locator("pre").inner_text() == "Which intent? Where is card 7?"
    page.get_by_role("link", name="few-shot-knn").click()
    page.get_by_role("heading", name="What few-shot-knn read").wait_for()
    assert watched.problems == []
    for wrong in ("/runs/letters/rows", "/runs/intents/row?split=test&id=none",
                  "/runs/intents/row?split=train&id=row+77"):  # fmt: skip
        assert httpx.get(site.url + wrong).status_code == 404


def test_a_climb_is_shown_while_it_goes_on_and_nothing_of_it_is_touched(site, watched):
    journal = site.registry.parent / "runs" / "letters" / "journal.jsonl"
    before = journal.read_bytes()
    watched.page.goto(f"{site.url}/runs/letters")
    rows = watched.page.locator("tbody tr").all_inner_texts()
    assert [row.split("\t")[:4] for row in rows] == [
        ["zero-shot", "to come", "", ""], ["few-shot-knn", "measured", "4", "75.0 %"], ["lora", "to come", "", ""],
    ]  # fmt: skip
    assert journal.read_bytes() == before
    answers = site.registry.parent / "runs" / "letters" / "rungs" / "few-shot-knn" / "predictions.jsonl"
    text = answers.read_text()
    answers.write_text(text + text)
    watched.page.locator("tbody tr", has_text="few-shot-knn").get_by_text("8", exact=True).wait_for(timeout=8000)
    answers.write_text(text)
    assert watched.problems == []


def test_the_playground_shows_what_predict_says_and_the_exact_prompt(site, served, watched):
    watched.page.goto(f"{site.url}/playground?a=intents")
    watched.page.get_by_label("Beside it").select_option("few-shot")
    watched.page.get_by_label("text", exact=True).fill("Where is my <b>card</b>?")
    watched.page.keyboard.press("Control+Enter")
    watched.page.locator("article.answer").nth(1).wait_for()
    row = {"text": "Where is my <b>card</b>?"}
    for place, name in enumerate(("intents", "few-shot")):
        one = served.find(name)
        artifact = one.artifact.with_engine(one.base.engine)
        answer = artifact.predict([row])[0]
        shown = watched.page.locator("article.answer").nth(place)
        assert shown.locator(".said").inner_text() == answer.text
        assert shown.locator("pre").text_content() == artifact.decoder.text(artifact, answer.messages)
    watched.page.get_by_label("Artifact", exact=True).select_option("notes")
    watched.page.locator("#b option", has_text="records").wait_for(state="attached")
    assert watched.page.get_by_label("text", exact=True).input_value() == row["text"]  # what was written stays
    assert watched.problems == []


def test_load_counts_requests(site, watched):
    body = {"rows": [{"text": "Where is my card?"}]}
    before = site.metric("rung_requests_total", endpoint="/v1/tasks/{name}/predict", status="200") or 0
    site.post("/v1/tasks/head/predict", body)
    watched.page.goto(f"{site.url}/load")
    row = watched.page.locator("tr", has_text="/v1/tasks/{name}/predict")
    assert row.locator("td").all_inner_texts() == ["/v1/tasks/{name}/predict", "200", f"{before + 1:.0f}"]
    assert watched.page.locator("polyline").count() == 3


# ---- failures


def test_a_planted_script_is_shown_as_text_and_does_not_run(site, watched):
    watched.page.goto(f"{site.url}/failures/r4")
    assert watched.page.locator(".said").inner_text() == PLANTED
    assert watched.page.locator("#expected").input_value() == PLANTED
    assert f"“{PLANTED}”" in watched.page.locator(".history").inner_text()
    assert watched.page.title() == "Failures · Rung"
    assert watched.page.locator("main script, main img").count() == 0
    watched.page.goto(f"{site.url}/failures?text={'%3Cscript%3E'}")
    assert watched.page.title() == "Failures · Rung"
    assert watched.problems == []
    assert html.escape(PLANTED, quote=False)[:14] in httpx.get(f"{site.url}/failures/r4").text


def test_a_policy_stops_what_is_not_escaped(site, watched):
    watched.page.goto(f"{site.url}/")
    watched.page.evaluate("document.body.append(Object.assign(document.createElement('div'), {innerHTML: `"
                          "<img src=x onerror=\"document.title = 'planted'\">`}))")  # fmt: skip
    watched.page.wait_for_timeout(300)
    assert watched.page.title() == "Overview · Rung"
    assert any("Content Security Policy" in problem for problem in watched.problems)


def test_a_correction_by_keyboard_its_difference_and_its_undoing(changed, watched):
    page, store = reviewing(watched, changed), changed.wiring.store
    assert page.locator(".cases li").count() == 3
    assert page.locator("#expected").input_value() == "card_arrival"  # what the user suggested
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    page.keyboard.type("exchange_rate")
    page.get_by_text("exchange_rate", exact=True).and_(page.locator("ins")).wait_for()
    assert page.locator("#difference del").inner_text() == "age_limit"
    first = page.locator(".cases a[aria-current]").get_attribute("href").split("/")[-1]
    page.keyboard.press("Control+Enter")
    page.locator(".note").wait_for()
    assert page.locator(".cases li").count() == 2
    assert (store.case(first).expected, store.case(first).reviewer) == ("exchange_rate", "Ann Østergård")
    page.keyboard.press("u")
    page.locator(".history", has_text="undid entry 1").wait_for()
    assert store.case(first).expected is None
    assert [entry.undoes for entry in store.history(first)] == [None, 1]
    assert page.get_by_label("Your name").input_value() == "Ann Østergård"  # remembered
    page.keyboard.press("a")  # accepts the suggestion
    page.locator(".note").wait_for()
    assert store.case(first).expected == "card_arrival"
    assert watched.problems == []


def test_the_likeliest_labels_are_on_number_keys(changed, watched):
    page, store = reviewing(watched, changed), changed.wiring.store
    page.goto(f"{changed.url}/failures/r3")  # in no doubt, and without a suggestion
    answer = httpx.post(f"{changed.url}/v1/tasks/intents/predict", json={"rows": [store.case("r3").interaction.inputs],
                                                                         "top": 5}).json()  # fmt: skip
    likely = [one["label"] for one in answer["predictions"][0]["top"]]
    buttons = page.get_by_role("group", name="Likeliest labels, as intents answers now").get_by_role("button")
    buttons.first.wait_for()
    assert [button.inner_text().split()[0] for button in buttons.all()] == likely
    assert violations(page) == []
    page.get_by_label("Your name").fill("Ann")
    page.get_by_label("Your name").press("2")  # in a field a digit is a digit
    assert page.get_by_label("Your name").input_value() == "Ann2"
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.locator(".note").wait_for()
    assert (store.case("r3").expected, store.case("r3").reviewer) == (likely[1], "Ann2")
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{changed.url}/failures/r2")
    buttons.nth(4).click()
    page.locator(".note").wait_for()
    assert store.case("r2").expected is not None
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.goto(f"{changed.url}/failures/r4")  # free text has no labels
    page.wait_for_timeout(300)
    assert page.locator("#likeliest").count() == 0
    assert watched.problems == []


def test_j_and_k_walk_through_the_queue(site, watched):
    watched.page.goto(f"{site.url}/failures")
    ids = [link.get_attribute("href").split("/")[-1] for link in watched.page.locator(".cases a").all()]
    assert sorted(ids) == ["r1", "r2", "r4"]
    for key, place in (("j", 1), ("j", 2), ("k", 1)):
        watched.page.keyboard.press(key)
        watched.page.wait_for_url(f"**/failures/{ids[place]}")


def test_an_answer_is_found_right_exactly_as_it_is(changed, watched):
    page = reviewing(watched, changed)
    page.goto(f"{changed.url}/failures/r4")
    page.get_by_label("Your name").fill("Ann")
    page.get_by_role("button", name="Answer is right").click()
    page.locator(".note").wait_for()
    case = changed.wiring.store.case("r4")
    assert (case.expected, case.failure) == (PLANTED, False)
    page.goto(f"{changed.url}/failures?view=right")
    assert page.locator(".cases li").count() == 1


def test_a_correction_that_is_no_label_is_refused_and_kept_in_the_field(changed, watched):
    page = reviewing(watched, changed)
    page.goto(f"{changed.url}/failures/r1")
    page.get_by_label("Your name").fill("Ann")
    page.locator("#expected").fill("card_arival")
    page.get_by_role("button", name="Save").click()
    alert = page.get_by_role("alert").inner_text()
    assert "intents: 'card_arival' is none of the 6 labels of the task: did you mean 'card_arrival'?" in alert
    assert page.get_by_label("Your name").input_value() == "Ann"
    assert page.locator("#expected").input_value() == "card_arival"
    assert page.locator("#difference ins").all_inner_texts() == ["card_arival"]  # the draft, not the suggestion
    assert changed.wiring.store.history("r1") == []


# ---- promotion


def test_a_promotion_with_its_evidence_and_the_way_back(changed, artifacts, watched):
    page, registry = watched.page, Registry(changed.registry, "intents")
    registry.promote(artifacts["intents"], changed.wiring.store, evidence={"reason": "the first"}, reviewer="Ann")
    first = registry.current()
    page.goto(f"{changed.url}/promotions")
    page.get_by_label("Your name").last.fill("Bob")
    page.get_by_label("Reason").last.fill("measured on the test rows")
    page.get_by_role("button", name="Promote").click()
    page.locator(".note").wait_for()
    now = registry.current()
    assert (now.artifact, now.reviewer) == (changed.fingerprint, "Bob")
    assert now.evidence["decision"].startswith("Use few-shot-knn: +33.5 pp")
    assert now.evidence["reason"] == "measured on the test rows"
    assert page.get_by_role("button", name="Promote").count() == 0
    page.get_by_text("Go back to what was served before").click()
    page.get_by_label("Your name").fill("Bob")
    page.get_by_role("button", name="Roll back").click()
    page.locator(".note").wait_for()
    assert registry.current().artifact == first.artifact
    assert [made.kind for made in changed.wiring.store.promotions("intents")] == ["promote", "promote", "rollback"]
    assert watched.problems == []


def test_an_improvement_is_promoted_only_against_what_is_served_and_with_open_eyes(changed, artifacts, watched):
    page, registry = watched.page, Registry(changed.registry, "intents")
    run = changed.registry.parent / "runs" / "intents"
    failures = {"fixed": ["r2"], "of_train": [3, 4], "of_test": [1, 2], "regressions": ["r1"], "watched": 5}
    told = {
        "task": "intents", "served": "f" * 64, "recommended": changed.fingerprint, "name": "few-shot-knn",
        "artifact": str(run / "rungs" / "few-shot-knn" / "artifact"), "better": True, "decision": "Use few-shot-knn.",
        "failures": failures,
    }  # fmt: skip
    (run / "improvement.json").write_text(sealed(told))
    page.goto(f"{changed.url}/promotions")
    assert page.get_by_role("button", name="Promote").count() == 0  # measured against something else
    (run / "improvement.json").write_text(sealed({**told, "served": None}))
    page.reload()
    assert "3 of 4 trained on, 1 of 2 held out" in page.locator("article").inner_text()
    page.get_by_label("Your name").fill("Bob")
    page.get_by_role("button", name="Promote").click()
    assert "1 of 5 failures that were fixed once are wrong again" in page.get_by_role("alert").inner_text()
    assert registry.current() is None
    page.get_by_label("Your name").fill("Bob")
    page.get_by_label("although 1 fixed once are wrong again").check()
    page.get_by_role("button", name="Promote").click()
    page.locator(".note").wait_for()
    assert (registry.current().artifact, registry.current().evidence["failures"]) == (changed.fingerprint, failures)


# ---- who may


def test_forms_of_other_sites_and_of_other_sessions_are_refused(site):
    url, values = f"{site.url}/failures/r1/correction", {"expected": "card_arrival", "reviewer": "Eve"}
    kept = site.wiring.store.history("r1")
    assert (
        httpx.post(url, data=values, headers={"origin": "https://evil.example"}).json()["error"]["code"] == "bad-origin"
    )
    assert httpx.post(url, data=values).json()["error"]["code"] == "form-expired"
    assert httpx.post(url, data={**values, "form_token": "0" * 64}).json()["error"]["code"] == "form-expired"
    assert httpx.post(url, json=values).json()["error"]["code"] == "no-form"
    assert site.wiring.store.history("r1") == kept


def test_keys_sign_in_with_a_cookie_that_opens_pages_alone(served, artifacts, tmp_path, browser):
    file = tmp_path / "keys.jsonl"
    plain, _ = create_key(file, "Ann")
    admin, key = create_key(file, "Bob", admin=True)
    with pages(served, artifacts, tmp_path / "site", access=Access(KeyRing(file), LOOPBACK_NAMES)) as server:
        context = browser.new_context()
        page = context.new_page()
        for secret, status in ((plain, 403), (admin, 200)):
            page.goto(f"{server.url}/failures")
            assert page.url == f"{server.url}/sign-in?to=/failures"
            page.get_by_label("Key").fill("rung-wrong")
            page.get_by_role("button", name="Sign in").click()
            assert page.get_by_role("alert").inner_text() == "This key is not known."
            page.get_by_label("Key").fill(secret)
            with page.expect_navigation(url="**/failures") as gone:
                page.get_by_role("button", name="Sign in").click()
            assert gone.value.status == status
            if status == 403:
                page.get_by_role("button", name="Sign out").click()
        cookie = next(one for one in context.cookies() if one["name"] == "rung_session")
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        jar = {"rung_session": cookie["value"]}
        assert httpx.get(f"{server.url}/v1/models", cookies=jar).status_code == 401
        assert httpx.get(f"{server.url}/failures", cookies=jar).status_code == 200
        revoke_key(file, key.id)
        assert httpx.get(f"{server.url}/failures", cookies=jar).headers["location"] == "/sign-in?to=/failures"
        context.close()


def test_reviews_carry_the_name_of_who_is_signed_in_and_two_opinions_are_both_shown(
    served, artifacts, tmp_path, browser
):
    file = tmp_path / "keys.jsonl"
    secrets = {name: create_key(file, name, reviewer=True)[0] for name in ("Ann", "Bob Østergård")}
    with pages(served, artifacts, tmp_path / "site", access=Access(KeyRing(file), LOOPBACK_NAMES)) as server:
        context, store = browser.new_context(), server.wiring.store
        watched = Watched(context)
        page = watched.page
        for (name, secret), label in zip(secrets.items(), ("card_arrival", "exchange_rate"), strict=True):
            page.goto(f"{server.url}/failures/r1")
            page.get_by_label("Key").fill(secret)
            page.keyboard.press("Enter")
            page.get_by_text(f"Signed with your name, {name}").wait_for()
            assert page.get_by_label("Your name").count() == 0
            page.evaluate(  # a name that is smuggled into the form counts for nothing
                "document.querySelector('#correction').insertAdjacentHTML('beforeend', "
                "'<input type=hidden name=reviewer value=Eve>')"
            )
            page.locator("#expected").fill(label)
            page.keyboard.press("Control+Enter")
            page.locator(".note").wait_for()
            page.goto(f"{server.url}/failures/r1")
            assert page.locator("#undo").count() == 1  # the own correction
            page.get_by_text(f"Signed in as {name}").wait_for()
            page.get_by_role("button", name="Sign out").click()
            page.wait_for_url("**/sign-in")
            assert page.get_by_role("link", name="Failures").count() == 0
        assert [(entry.reviewer, entry.expected) for entry in store.history("r1")] == [
            ("Ann", "card_arrival"), ("Bob Østergård", "exchange_rate"),
        ]  # fmt: skip
        page.goto(f"{server.url}/failures/r1?view=contested")
        page.get_by_label("Key").fill(secrets["Ann"])
        page.keyboard.press("Enter")
        both = page.locator("dl[aria-labelledby=opinions]")
        assert both.inner_text().split("\n") == ["Ann", "card_arrival", "Bob Østergård", "exchange_rate"]
        page.get_by_role("button", name="Undo").click()  # takes back Ann's own, not the last
        page.locator(".history", has_text="undid entry 1").wait_for()
        assert (both.count(), page.locator("#undo").count()) == (0, 0)
        assert (store.case("r1").expected, store.case("r1").reviewer) == ("exchange_rate", "Bob Østergård")
        assert watched.problems == []
        assert page.get_by_role("link", name="Promotions").count() == 0
        for decides in ("/promotions", "/trials", "/start"):
            assert page.goto(f"{server.url}{decides}").status == 403
        context.close()


def test_signing_in_leads_nowhere_else(site):
    for to in ("https://evil.example", "//evil.example", "/\\evil.example"):
        text = httpx.get(f"{site.url}/sign-in", params={"to": to}).text
        assert re.search(r'name="to" value="([^"]*)"', text)[1] == "/"


# ---- the keyboard


TABBED = """() => {
  const at = document.activeElement;
  if (at === document.body) return null;
  const style = getComputedStyle(at), box = at.getBoundingClientRect();
  const all = [...document.querySelectorAll('*')];
  return {place: all.indexOf(at), seen: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0,
          inside: box.width > 0 && box.left >= -1 && box.left < innerWidth, html: at.outerHTML.slice(0, 90)};
}"""
CONTROLS = """() => [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
  .filter(one => one.type !== 'hidden' && !one.disabled && one.checkVisibility({visibilityProperty: true}))
  .map(one => [...document.querySelectorAll('*')].indexOf(one))"""


@pytest.mark.parametrize("path", ["/", "/runs/intents", "/runs/intents/rows", "/playground", "/failures/r1",
                                  "/promotions", "/trials/intents", "/load", "/start", "/glossary"])  # fmt: skip
def test_tab_reaches_every_control_shows_it_and_leaves_it(site, watched, path):
    page = watched.page
    page.goto(site.url + path)
    if path == "/failures/r1":
        page.get_by_role("group", name="Likeliest labels").wait_for()
    controls = set(page.evaluate(CONTROLS))
    reached, left = [], False
    for _ in range(len(controls) + 5):
        page.keyboard.press("Tab")
        stop = page.evaluate(TABBED)
        if stop is None or stop["place"] in reached:
            left = True  # past the last control, or at the first again
            break
        assert stop["seen"], f"no focus is shown: {stop['html']}"
        assert stop["inside"], f"the focus is outside of the page: {stop['html']}"
        reached.append(stop["place"])
    assert left
    assert controls <= set(reached)
    assert reached == sorted(reached)  # in the order of the page
    assert watched.problems == []


def test_what_is_drawn_again_keeps_its_focus(site, watched):
    page = watched.page
    page.goto(f"{site.url}/load")
    page.get_by_role("button", name="Pending").focus()
    page.evaluate("document.querySelector('#load').dataset.old = 'yes'")
    page.locator("#load:not([data-old])").wait_for(timeout=10_000)
    assert page.evaluate("document.activeElement.textContent") == "Pending"
    page.keyboard.press("Enter")
    page.get_by_text("Answers that wait or are being written now.").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.textContent") == "Pending"
    assert watched.problems == []
