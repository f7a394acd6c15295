import io
import re

import pytest
from rich.console import Console

from rung.advice import advise
from rung.advice.rules import AdviceStep
from rung.cli.render import advice as print_advice
from rung.cli.render import chart, climb_report, one_line
from rung.evaluation.report.words import RungOutcome
from rung.evaluation.result import ClimbResult, RungResult
from rung.machine import Machine


def a_step(answer, **more):
    values = {"key": "k", "question": "Is it so?", "observed": "seen", "yes": "do this", "no": "do that"}
    return AdviceStep(**{**values, "effects": (), "source": None, **more}, answer=answer)


def test_the_path_is_drawn():
    lines = [line.plain for line in chart((a_step("yes"), a_step("no")), 40)]
    assert lines == [
        "┏━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓",
        "┃ Is it so?                       seen ┃",
        "┗┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┛",
        " ┣━━ yes ━▶ do this",
        " ├── no ──▷ do that",
        "┏┻━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓",
        "┃ Is it so?                       seen ┃",
        "┗┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┛",
        " ├── yes ─▷ do this",
        " ┗━━ no ━━▶ do that",
    ]


def test_what_is_not_known_is_asked_for_and_takes_no_branch():
    lines = [line.plain for line in chart((a_step("unknown", observed="", ask="needs.style"),), 60)]
    assert "not known: needs.style" in lines[1]
    assert not any("▶" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_is_wider_than_the_terminal(task, data, width):
    steps = advise(task, data, Machine(2, 2**33, 1e11)).steps
    assert max(len(line.plain) for line in chart(steps, width)) <= width


def test_expected_and_measured_stand_side_by_side(task, data):
    out = io.StringIO()
    found = {"features": RungOutcome("features", "helped", "+41.0 pp")}
    print_advice(advise(task, data, Machine(2, 2**33, 1e11)), found, Console(file=out, width=120))
    line = next(line for line in out.getvalue().splitlines() if line.startswith("features"))
    assert "+ help" in line
    assert "helped: +41.0 pp" in line
    assert "[1] " in out.getvalue()
    assert "https://arxiv.org/abs/" in out.getvalue()


def test_of_a_climb_that_measured_nothing_no_table_and_nothing_to_try_is_printed(tmp_path, capsys) -> None:
    none = RungResult("zero-shot", "prompting", "accuracy", "stopped", artifact="rungs/zero-shot/artifact")
    result = ClimbResult(
        "mail", "accuracy", "m", "torch", 0, "0.1", "", 60.0, 60.0, "zero-shot", "Nothing was measured.", (none,), (),
        {}, unfinished=("zero-shot",),
    )  # fmt: skip
    climb_report(result, tmp_path, "climb task.yaml")
    said = capsys.readouterr().out
    assert said.startswith("the climb took ")
    assert re.findall(r"^([a-z ]+): +rung ", said, re.MULTILINE) == ["go on"]


def test_a_text_without_spaces_is_cut_and_not_dropped() -> None:
    assert one_line("漢" * 400, 300) == "漢" * 299 + "…"
    assert one_line("two\nlines\tand\x1b[31m red", 40) == "two lines and [31m red"
