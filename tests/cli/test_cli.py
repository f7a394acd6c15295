import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rung.evaluation.report.words import money_text
from rung.progress import QUIET

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def rung(capfd, monkeypatch):
    """Run the command in this process: the models are loaded once for all tests."""

    def run(*arguments, cwd=None):
        from rung.cli.main import main

        capfd.readouterr()
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr(sys, "argv", ["rung", *map(str, arguments)])
        with monkeypatch.context() as patch:
            if cwd is not None:
                patch.chdir(cwd)
            try:
                main()
            except SystemExit as left:
                code = left.code
            else:
                code = 0
        out, err = capfd.readouterr()
        return Done(code or 0, out, err)

    return run


def test_importing_rung_and_its_help_import_nothing_heavy():
    code = (
        "import sys, rung, rung.cli.main; heavy = {'torch', 'transformers', 'sklearn', 'matplotlib', 'openai', 'rich'}"
        " & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_alone_it_names_the_next_step(rung, tmp_path):
    assert "rung init data.csv" in rung(cwd=tmp_path).stdout
    (tmp_path / "our handbook").mkdir()
    (tmp_path / "our handbook" / "leave.md").write_text("Leave is 30 days.")
    assert "rung init 'our handbook'" in rung(cwd=tmp_path).stdout
    (tmp_path / "mine.csv").write_text("text,label\na b,x\n")
    assert "rung init mine.csv" in rung(cwd=tmp_path).stdout
    (tmp_path / "task.yaml").write_text("")
    assert "rung climb task.yaml --plan" in rung(cwd=tmp_path).stdout


def test_from_a_table_to_a_checked_task(rung, tmp_path):
    lines = [f"a message number {i},{'yes' if i % 2 else 'no'}\n" for i in range(100)]
    (tmp_path / "data.csv").write_text("message,answer\n" + "".join(lines))
    assert rung("init", "data.csv", cwd=tmp_path).returncode == 0
    text = (tmp_path / "task.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=task.schema.json\n")
    assert json.loads((tmp_path / "task.schema.json").read_text())["title"] == "Task"
    again = rung("init", "data.csv", cwd=tmp_path)
    assert (again.returncode, "file-exists" in again.stderr) == (2, True)
    checked = rung("check", "task.yaml", "--json", cwd=tmp_path)
    report = json.loads(checked.stdout)
    assert sum(split["kept"] for split in report["splits"].values()) == 100
    assert report["labels"]["train"].keys() == {"yes", "no"}


def test_errors_go_to_stderr_with_their_exit_code(rung, tmp_path):
    (tmp_path / "task.yaml").write_text("nam: x\n")
    wrong = rung("check", "task.yaml", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "error[unknown-key]: unknown key 'nam'\n  --> task.yaml:1:1\n" in wrong.stderr
    assert "hint: did you mean 'name'?" in wrong.stderr
    assert rung("run", tmp_path, "hello").returncode == 3
    assert rung("no-such-command").returncode == 2


def test_explain(rung):
    assert "What to do:" in rung("explain", "duplicate-across-splits").stdout
    wrong = rung("explain", "duplicate-across-split")
    assert wrong.returncode == 2
    assert "did you mean 'duplicate-across-splits'?" in wrong.stderr


@pytest.fixture(scope="module")
def artifact(zero, data, tmp_path_factory):
    from rung.rungs import Features

    return Features().fit(zero, data).save(tmp_path_factory.mktemp("artifact") / "features")


def test_run_predict_eval_show_export(rung, artifact, small_task_file, tmp_path):
    said = json.loads(rung("run", artifact, "I lost my card", "--json").stdout)
    assert said["output"] == "lost_or_stolen_card"
    assert 0 < said["confidence"] <= 1
    refused = rung("run", artifact, "I lost my card", "--engine", "torch")
    assert (refused.returncode, "error[bad-option]" in refused.stderr) == (2, True)

    rows = small_task_file.parent / "test.csv"
    out = tmp_path / "answers.jsonl"
    assert rung("predict", artifact, rows, "--out", out, "--quiet").returncode == 0
    whole = out.read_text()
    assert len(whole.splitlines()) == 36
    again = rung("predict", artifact, rows, "--out", tmp_path / "again.jsonl")
    assert f"Next: rung serve {artifact}\n" in again.stderr
    piped = rung("predict", artifact, rows)
    assert "Next" not in piped.stdout + piped.stderr
    out.write_text("".join(line + "\n" for line in whole.splitlines()[:10]) + '{"row": "te')  # as a kill leaves it
    assert rung("predict", artifact, rows, "--out", out, "--resume", "--quiet").returncode == 0
    assert out.read_text() == whole

    scores = json.loads(rung("eval", artifact, small_task_file, "--json", "--quiet").stdout)
    assert scores["metrics"]["accuracy"]["score"] > 0.8
    assert rung("eval", artifact, small_task_file, "--at-least", "accuracy=0.5", "--quiet").returncode == 0
    assert rung("eval", artifact, small_task_file, "--at-least", "recall:none=0.5", "--quiet").returncode == 1

    assert "features" in rung("show", artifact).stdout
    first = rows.read_text().splitlines()[1].rsplit(",", 1)[0].strip('"')
    assert rung("show", artifact, "--prompt", "--row", "1", "--data", rows).stdout.strip() == first
    line = json.loads(rung("export", artifact, "--prompt", "openai", "--row", "1", "--data", rows).stdout)
    assert line["messages"][-1] == {"role": "user", "content": first}


@pytest.mark.parametrize("command", ["run", "predict"])
def test_answering_with_features_imports_nothing_heavy(artifact, small_task_file, command):
    argument = "I lost my card" if command == "run" else str(small_task_file.parent / "test.csv")
    code = (
        "import sys\nfrom rung.cli.main import app\napp(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'sklearn', 'scipy', 'pandas', 'matplotlib',"
        " 'openai', 'datasets', 'pyarrow'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, command, str(artifact), argument], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "lost_or_stolen_card" in done.stdout


def test_a_command_tells_of_the_download_of_the_base_model(rung, zero, tmp_path, monkeypatch):
    """The first to ask for a model downloads it: whoever asks without progress would wait in silence."""
    from rung.models import embedded

    artifact, ensure, here = zero.save(tmp_path / "zero"), embedded.ensure, set()

    def planted(model, *, progress=QUIET):
        if model.name not in here:
            progress.start(f"downloading {model.name} ({model.megabytes} MB)")
            progress.finish()
        here.add(model.name)
        return ensure(model)

    monkeypatch.setattr(embedded, "ensure", planted)
    done = rung("run", artifact, "My card has not arrived yet")
    assert here, done.stderr
    assert all(f"downloading {name}" in done.stderr for name in here), done.stderr
    here.clear()
    assert "downloading" not in rung("run", artifact, "My card has not arrived yet", "--json").stderr


def test_the_plan_says_what_applies_and_why_not(rung):
    task = EXAMPLES / "scitldr" / "task.yaml"
    plan = json.loads(rung("climb", task, "--plan", "--json").stdout)["plan"]
    by_name = {row["name"]: row for row in plan}
    assert by_name["lora"]["applies"]
    assert by_name["lora"]["seconds"] > 0
    assert by_name["features"]["reason"] == "a head answers categories only"


def test_the_plan_of_an_endpoint_has_a_bill_and_no_made_up_time(rung, tmp_path, monkeypatch):
    rows = [{"text": f"Question {n} about cards", "answer": f"Answer {n}"} for n in range(24)]
    for name, part in (("train", rows[:12]), ("validation", rows[12:20]), ("test", rows[20:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "task.yaml").write_text(
        "name: ask\ninstruction: Answer.\ninputs: [text]\nmodel: http://127.0.0.1:1/v1#m\nmetric: exact_match\n"
        "output: {kind: text, column: answer}\nconstraints: {rungs: [few-shot-fixed]}\n"
        "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}\n"
    )
    monkeypatch.setenv("RUNG_API_PRICE_INPUT", "1000000")  # a token, 1
    monkeypatch.setenv("RUNG_API_PRICE_OUTPUT", "1000000")
    done = rung("climb", tmp_path / "task.yaml", "--plan", "--json")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    zero, shown = (row for row in planned["plan"] if row["applies"])
    assert zero["seconds"] is zero["row_seconds"] is None
    assert zero["bill"] > 8
    for row in (zero, shown):
        assert row["bill"] == pytest.approx(8 * row["price_per_1000"] / 1000)
        assert row["test_bill"] == pytest.approx(4 * row["price_per_1000"] / 1000)
    searched, tested = (sum(row[each] for row in (zero, shown)) for each in ("bill", "test_bill"))
    notes = "\n".join(planned["notes"])
    assert "is unknown: it asks an endpoint" in notes
    assert (
        f"the endpoint is expected to bill up to {money_text(searched + tested)}: {money_text(searched)} to make the "
        f"rungs and answer the 8 rows to search by, {money_text(tested)} for zero-shot and the dearest rung on the 4 "
        "test rows; more rungs on the test rows, and rungs on top of the best ones, are not counted"
    ) in notes
    assert "problem: 4 test rows can never show a difference" in notes
    assert "unknown" in rung("climb", tmp_path / "task.yaml", "--plan").stdout


def test_the_plan_marks_what_falls_out_of_a_short_budget(rung):
    task = EXAMPLES / "scitldr" / "task.yaml"
    fits = [
        [row["fits_budget"] for row in json.loads(rung("climb", task, "--plan", "--json", *more).stdout)["plan"]
         if row["applies"]] for more in ((), ("--budget", "2s"))
    ]  # fmt: skip
    assert all(fits[0])
    assert not all(fits[1])


def test_chat_answers_line_by_line(rung, artifact, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("I lost my card\nhow old must I be?\n\n"))
    said = rung("chat", artifact).stdout.splitlines()
    assert [line.split("\t")[0] for line in said] == ["lost_or_stolen_card", "age_limit"]


def test_chat_streams_text_that_is_generated(rung, tmp_path, monkeypatch):
    import io

    from rung.artifact.artifact import Artifact
    from rung.task import Task

    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]})
            + "\n"
            for i in range(9)
        )
    )
    (tmp_path / "task.yaml").write_text(
        "name: talk\ninstruction: You are a helpful assistant. Answer questions.\n"
        "inputs: [messages]\noutput: {kind: chat, max_tokens: 8}\n"
        "data: {train: rows.jsonl}\n"
    )
    folder = Artifact.zero_shot(Task.load(tmp_path / "task.yaml"), engine="torch").save(tmp_path / "a")
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is the capital of France?\n"))
    said = rung("chat", folder).stdout
    row = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    assert said.strip() == Artifact.load(folder).predict([row])[0].text
    assert "Paris" in said


def test_the_command_itself_ends_with_the_exit_code(tmp_path):
    (tmp_path / "task.yaml").write_text("nam: x\n")
    done = subprocess.run(
        [sys.executable, "-m", "rung", "check", "task.yaml"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[")


@pytest.mark.parametrize(("option", "code"), [("--version", 0), ("--nothing", 2)])
def test_a_process_ends_after_its_last_words_without_freeing_its_memory(option, code):
    script = (
        "import atexit, sys\n"
        "class Kept:\n"
        "    def __del__(self): print('freed')\n"
        "kept = Kept()\n"
        "sys.argv[1:] = [sys.argv[1]]\n"
        "from rung.__main__ import main\n"
        "try: main()\n"
        "finally: atexit.register(print, 'last words', end='')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, option], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout.endswith("last words")
