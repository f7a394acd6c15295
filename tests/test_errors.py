from rung.errors import ArtifactError, ConfigError, DataError, Location, RungError, ThresholdError, TrainingError


def test_the_caret_stands_under_the_column():
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
