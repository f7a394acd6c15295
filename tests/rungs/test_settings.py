import pytest

from rung.errors import ConfigError
from rung.rungs import RUNGS, build
from rung.rungs.base import settable
from rung.task import Task


def loaded(small_task_file, tmp_path, text):
    file = small_task_file.parent / f"{tmp_path.name}.yaml"
    file.write_text(small_task_file.read_text() + text)
    return Task.load(file)


def test_settings_reach_the_rung(small_task_file, tmp_path):
    task = loaded(small_task_file, tmp_path, "rungs: {lora: {rank: 8, learning_rate: auto, patience: 2}}\n")
    lora, knn = build(("lora", "few-shot-knn"), task, 3)[::-1]
    assert (lora.rank, lora.learning_rate, lora.patience, lora.seed, lora.alpha) == (8, "auto", 2, 3, 32)
    assert knn.k == 5


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("rungs: {lora: {rnak: 8}}", "unknown-key", "did you mean 'rank'?"),
        ("rungs: {lora: {seed: 8}}", "unknown-key", "has no setting 'seed'"),
        ("rungs: {lora: {rank: eight}}", "bad-setting", "lora.rank"),
        ("rungs: {lara: {rank: 8}}", "unknown-name", "did you mean 'lora'?"),
        ("rungs: {llm-features: {encoder: other}}", "unknown-key", "has no setting 'encoder'"),
        ("rungs: {system-prompt: {encoder: other}}", "unknown-key", "has no setting 'encoder'"),
        ("rungs: {lora: 3}", "bad-value", "rungs.lora"),
    ],
)
def test_wrong_settings_are_errors_that_point_into_the_file(small_task_file, tmp_path, text, code, message):
    with pytest.raises(ConfigError) as caught:
        loaded(small_task_file, tmp_path, text + "\n")
    assert caught.value.code == code
    assert message in caught.value.render()
    assert ".yaml:6:" in caught.value.render()


def test_every_rung_can_be_built_and_names_its_settings(task):
    for rung in build(tuple(RUNGS), task, 0):
        assert all(hasattr(rung, name) for name in settable(rung))
