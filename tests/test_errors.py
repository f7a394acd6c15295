import pickle

from rung.errors import ArtifactError, ConfigError, DataError, Location, RungError, ThresholdError, TrainingError


def test_the_caret_is_under_the_column():
    error = ConfigError(
        "unknown-key", "unknown key 'instuction'", where=Location("task.yaml", 12, 3, "  instuction: x"), hint="look"
    )
    assert error.render().splitlines() == [
        "error[unknown-key]: unknown key 'instuction'",
        "  --> task.yaml:12:3",
        "   12 |   instuction: x",
        "      |   ^",
        "hint: look",
    ]


def test_exit_codes():
    kinds = (ThresholdError, ConfigError, DataError, ArtifactError, TrainingError, RungError)
    assert [kind.exit_code for kind in kinds] == [1, 2, 2, 3, 3, 3]


def test_an_error_survives_the_way_between_processes():
    error = DataError("bad-json", "not JSON", hint="look", where=Location("rows.jsonl", 2))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.render()) == (DataError, error.render())
