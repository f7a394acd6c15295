import errno
import os
import threading
from contextlib import suppress

import pytest

from rung.errors import MachineError
from rung.models.files import locked, replacing, system_error, write_atomically, writing


def test_a_failed_write_names_the_place_and_leaves_the_old_text(tmp_path, monkeypatch):
    file = tmp_path / "task.yaml"
    write_atomically(file, "old")

    def full(_number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError) as failed:
        write_atomically(file, "new")
    assert failed.value.code == "write-failed"
    assert str(tmp_path) in failed.value.message
    assert "No space left" in failed.value.message
    assert "free some space" in failed.value.hint
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_fails_in_the_middle_is_not_half_written(tmp_path):
    with suppress(ZeroDivisionError), replacing(tmp_path / "table.csv") as scratch:
        scratch.write_text("half")
        scratch.write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_a_private_file_is_read_by_its_owner_only(tmp_path):
    mask = os.umask(0)
    try:
        write_atomically(tmp_path / "mine", "x", private=True)
        write_atomically(tmp_path / "ours", "x")
    finally:
        os.umask(mask)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("mine", "ours")] == [0o600, 0o666]


def test_an_error_of_a_library_in_rust_counts_as_the_system_s(tmp_path):
    full = f"weights could not be written to {tmp_path}: No space left"
    with pytest.raises(MachineError, match=full), writing("weights", tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="shape"), writing("weights", tmp_path):
        raise RuntimeError("the shape is wrong")


@pytest.mark.parametrize(
    ("number", "code", "exit_code", "hint"),
    [
        (errno.ENOSPC, "write-failed", 3, "space"),
        (errno.EACCES, "system-error", 3, "permissions"),
        (errno.ENOENT, "no-such-file", 2, "path"),
        (errno.ENAMETOOLONG, "system-error", 3, "shorter"),
        (errno.EMFILE, "system-error", 3, "ulimit"),
    ],
)
def test_errors_of_the_system_have_a_place_and_a_way_on(number, code, exit_code, hint):
    error = system_error(OSError(number, os.strerror(number), "/some/where"))
    assert (error.code, error.exit_code) == (code, exit_code)
    assert "/some/where" in error.message
    assert hint in error.hint


def test_a_lock_lets_one_in_at_a_time_and_leaves_no_file(tmp_path):
    file, inside, most = tmp_path / "new" / ".lock", [], []

    def work():
        for _ in range(30):
            with locked(file):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 120
    assert set(most) == {1}
    assert not file.exists()
    file.touch()  # left by a killed process
    with locked(file):
        pass
    assert not file.exists()
