import pytest

from rung.errors import EngineError, MachineError, needed_by


def test_what_cannot_be_imported_is_told_with_its_extra():
    with pytest.raises(MachineError) as caught, needed_by("serving", extra="serve"):
        import no_such_library.deep  # noqa: F401
    assert (caught.value.code, caught.value.message) == ("missing-extra", "serving needs no_such_library")
    assert caught.value.hint == "uv pip install 'rung[serve]'"
    assert type(caught.value) is MachineError
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_the_class_of_the_error_is_the_callers():
    with (
        pytest.raises(EngineError, match=r"^an encoder needs nothing_there$"),
        needed_by("an encoder", error=EngineError),
    ):
        import nothing_there  # noqa: F401


def test_other_errors_pass():
    with pytest.raises(ValueError, match=r"^other$"), needed_by("it"):
        raise ValueError("other")
