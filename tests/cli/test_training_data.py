"""What tuning learns from, as `check --tuning`, `show` and the HTML report tell it."""

import json
import warnings
from dataclasses import replace

import pytest

from rung.evaluation.report.html import _training_data
from rung.evaluation.result import RungResult
from rung.rungs import LoRA


def run(*arguments):
    # Typer still imports names that click announces to move; other warnings stay errors.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will be removed in Click 9", DeprecationWarning)
        from typer.testing import CliRunner

        from rung.cli.main import app
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def task_file(tmp_path, tiny_folder):
    rows = [{"prompt": f"Say {i}.", "completion": f" number {i}"} for i in range(40)]
    rows.append({"prompt": "word " * 600, "completion": "long"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "corpus.txt").write_text("A text of the domain.")
    task = {
        "name": "t", "instruction": "Count.", "inputs": ["prompt"], "output": {"kind": "text", "column": "completion"},
        "model": str(tiny_folder),
        "data": {"train": "rows.jsonl", "validation": "few.jsonl", "test": "more.jsonl", "text": "corpus.txt"},
    }  # fmt: skip
    for name, start in (("few.jsonl", 100), ("more.jsonl", 200)):
        part = [{"prompt": f"Say {i}.", "completion": f"{i}"} for i in range(start, start + 30)]
        (tmp_path / name).write_text("\n".join(map(json.dumps, part)))
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    return tmp_path / "task.yaml"


def test_check_tells_what_tuning_would_learn_from(task_file):
    result = run("check", task_file, "--tuning")
    assert result.exit_code == 0, result.exception
    told = result.stdout
    assert "tuning on rows:\n  40 of 41 rows kept: 40 examples, " in told
    assert "  1 dropped, longer than the context: rows.jsonl:41\n" in told
    assert (
        "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\nSay 0.<|im_end|>\n<|im_start|>assistant\n"
        ">>>number 0<|im_end|><<<\n"
    ) in told
    assert "tuning on text:\n  1 of 1 rows kept: 1 examples, 8 tokens\n" in told
    assert "<|endoftext|>>>>A text of the domain.<|endoftext|><<<" in told
    assert "warning: 1 training rows are longer than the context: tuning stops at them unless" in told
    assert "tuning on rows" not in run("check", task_file).stdout


def test_check_tells_it_as_json(task_file):
    told = json.loads(run("check", task_file, "--tuning", "--json").stdout)["training"]
    assert told["rows"]["dropped_at"] == {"longer than the context": ["rows.jsonl:41"]}
    assert told["text"] == {
        "rows": 1, "kept": 1, "dropped": {}, "dropped_at": {}, "truncated": 0, "truncated_at": [],
        "truncated_tokens": 0, "turns_apart": 0, "thoughts_left_out": 0, "without_thoughts": 0, "examples": 1,
        "tokens": 8, "reached_share": None,
        "supervised": {"min": 7, "median": 7, "max": 7},
        "example": "<|endoftext|>>>>A text of the domain.<|endoftext|><<<",
    }  # fmt: skip
    assert "training" not in json.loads(run("check", task_file, "--json").stdout)


def test_check_shows_every_token_of_a_row(task_file):
    told = json.loads(run("check", task_file, "--tuning", "--row", "2", "--json").stdout)["training_row"]
    assert (told["row"], told["source"], told["dropped"]) == (2, "rows.jsonl:2", None)
    (example,) = told["examples"]
    ((first, last),) = example["supervised"]
    assert last == len(example["tokens"]) == len(example["pieces"])
    assert "".join(example["pieces"][first:last]).endswith("<|im_end|>")
    assert example["text"].endswith(">>>number 1<|im_end|><<<")
    shown = run("check", task_file, "--tuning", "--row", "2").stdout
    assert f"training row 2 (rows.jsonl:2): {last} tokens, {last - first} of them trained on" in shown
    table = shown[shown.index("as the vocabulary spells it") :]
    rows = [line.split() for line in table.splitlines()]
    marks = {int(cells[0]): "yes" in cells for cells in rows if len(cells) > 2 and cells[0].isdigit()}
    assert {place for place, marked in marks.items() if marked} == set(range(first, last))


def test_check_says_why_a_row_cannot_be_shown(task_file):
    long = run("check", task_file, "--tuning", "--row", "41").stdout
    assert "training row 41 (rows.jsonl:41) is dropped: longer than the context" in long
    for arguments in (("--row", "2"), ("--tuning", "--row", "99")):
        assert run("check", task_file, *arguments).exception.code == "bad-option"


def test_the_artifact_keeps_it_and_show_and_the_report_tell_it(tiny_zero, data, tmp_path):
    tuned = LoRA(rank=2, epochs=1).fit(tiny_zero, replace(data, train=data.train[:8]))
    folder = tuned.save(tmp_path / "a")
    shown = run("show", folder).stdout
    assert "\nlora was trained on:\n  8 of 8 rows kept: 8 examples, " in shown
    answer = tuned.decoder.target_text(data.train[0].outputs[0], tuned.signature.labels)
    assert f">>>{answer}<|im_end|><<<\n" in shown
    told = json.loads(run("show", folder, "--json").stdout)["training_data"]
    assert told == {"lora": tuned.settings["lora"]["training_data"]}
    settings = {name: dict(values) for name, values in tuned.settings.items()}
    one = RungResult("lora", "parameter-efficient", "accuracy", "confirmed", path=tuned.path, settings=settings)
    text = _training_data(type("Result", (), {"rungs": (one,)})())
    assert f"&gt;&gt;&gt;{answer}&lt;|im_end|&gt;&lt;&lt;&lt;</pre>" in text
