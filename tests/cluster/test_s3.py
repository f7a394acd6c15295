"""Jobs in an object store, on a server of this machine that speaks S3."""

from __future__ import annotations

import json
import sys

import pytest

from letters import write_rows
from rung.artifact.files import fingerprint
from rung.artifact.predict_file import Predicted, predict_file
from rung.cluster.executor import Dispatcher
from rung.cluster.job import MANIFEST, Job, Storage, fetch, shared
from rung.cluster.parts import predict_in_parts
from rung.cluster.processes import Inline, Processes
from rung.errors import MachineError, install_command


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    running = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    running.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    """An empty bucket, reached as a user would: by the variables of the environment."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    store.mkdir("rung-jobs")
    yield "s3://rung-jobs"
    store.invalidate_cache()
    store.rm("rung-jobs", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_is_like_a_folder(bucket, tmp_path):
    place = Storage(f"{bucket}/jobs")
    assert not place.local
    place.probe()
    assert place.folders() == []
    assert (place / "a" / MANIFEST).read() is None
    (place / "a" / MANIFEST).write("{}")
    (place / "b.json").write("[]")
    assert place.folders() == ["a", "b.json"]
    (place / "a" / MANIFEST).write('{"new": 1}')
    assert (place / "a" / MANIFEST).read() == '{"new": 1}'
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "deep" / "weights").write_bytes(b"\0" * 1000)
    (tmp_path / "from" / MANIFEST).write_text("{}")
    assert shared(place, tmp_path / "from", "0" * 64) == f"{bucket}/jobs/artifact-{'0' * 16}"
    (place / f"artifact-{'0' * 16}").get(tmp_path / "to")
    assert (tmp_path / "to" / "deep" / "weights").read_bytes() == b"\0" * 1000
    (place / "a").remove()
    assert place.folders() == [f"artifact-{'0' * 16}", "b.json"]
    place.remove()
    place.remove()
    assert place.folders() == []


def test_a_job_is_done_once_and_found_again(bucket, letters_folder, tmp_path):
    place = Storage(f"{bucket}/jobs")
    rows = place / "rows.jsonl"
    rows.write("".join(json.dumps([f"rows:{i}", {"text": "ab" * i}, {}]) + "\n" for i in (1, 2, 3)))
    own = fingerprint(letters_folder)
    job = Job(
        kind="predict", out="", artifact=shared(place, letters_folder, own), data=rows.uri, artifact_fingerprint=own,
        options={"columns": {"kept": [], "top_k": 0}},
    )  # fmt: skip
    dispatcher = Dispatcher(Inline(), place)
    key = dispatcher.send(job)
    dispatcher.wait([key])
    folder = fetch(place / key, dispatcher.result(key), tmp_path)
    lines = (folder / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == ["rows:1", "rows:2", "rows:3"]
    again = Dispatcher(Inline(), place)
    assert again.over(again.send(job))
    lost = Dispatcher(Inline(), place)
    broken = lost.send(job.model_copy(update={"data": f"{bucket}/jobs/nowhere.jsonl"}))
    with pytest.raises(MachineError, match=r"nowhere\.jsonl is missing"):
        lost.wait([broken])


def test_workers_that_share_only_a_bucket_write_the_file_of_one_process(bucket, letters, letters_folder, tmp_path):
    rows, out = write_rows(tmp_path / "rows.csv", 192), tmp_path / "out.jsonl"
    origin = fingerprint(letters_folder)
    predict_file(letters, rows, tmp_path / "alone.jsonl", fingerprint=origin)
    made = predict_in_parts(
        letters, letters_folder, rows, out, Processes(1), fingerprint=origin, jobs=f"{bucket}/jobs"
    )  # fmt: skip
    assert made == Predicted(192, 192)
    apart, alone = (
        [json.loads(line) for line in file.read_text().splitlines()] for file in (out, tmp_path / "alone.jsonl")
    )
    for one, other in zip(apart, alone, strict=True):  # another batch may round the last digit in another way
        assert one == {key: pytest.approx(value) if isinstance(value, float) else value for key, value in other.items()}
    assert Storage(f"{bucket}/jobs").folders() == []


def test_a_bucket_that_is_not_there_is_refused_and_not_made(bucket):
    with pytest.raises(MachineError, match=r"s3://rung-jbos/jobs/probe-.* cannot be written") as caught:
        Dispatcher(Inline(), Storage("s3://rung-jbos/jobs"))
    assert caught.value.code == "storage-refused"
    assert Storage("s3://rung-jbos/jobs").fs.ls("") == ["rung-jobs"]


@pytest.mark.parametrize(
    ("scheme", "library", "hint"),
    [
        ("s3", "s3fs", install_command("cluster")),
        ("gs", "gcsfs", "Please install gcsfs to access Google Storage"),
    ],
)
def test_a_library_that_a_store_needs_is_named_with_its_installation(monkeypatch, scheme, library, hint):
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(_registry, scheme, raising=False)
    with pytest.raises(MachineError) as caught:
        Storage(f"{scheme}://bucket/jobs")
    assert (caught.value.code, caught.value.hint) == ("missing-extra", hint)
    assert caught.value.message == f"{scheme}:// needs a library that is not installed"
