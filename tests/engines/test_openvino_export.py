import copy
import json
import multiprocessing
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from rung.climbing.budget import CLOSING_SECONDS, Budget, Limits
from rung.engines import openvino_export
from rung.engines.base import GenerateRequest, Sampling
from rung.engines.opening import open_torch
from rung.engines.openvino import OpenVinoEngine
from rung.engines.openvino_export import exported, folder_of
from rung.errors import EngineError
from rung.models.cache import recall, remember
from rung.models.checkpoint import text_class
from rung.models.reference import resolve
from rung.progress import Quiet
from rung.training.changes import keep
from rung.training.peft import PeftAdapter


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A random BERT of 2 layers, in a cache of its own."""
    from transformers import BertConfig, BertModel

    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    config = BertConfig(
        vocab_size=50,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(tmp_path / "tiny")
    return resolve(str(tmp_path / "tiny"))


def ask(files, results):
    results.put(str(exported(files, "encoder", "fp32")))


def test_two_processes_at_once_make_one_complete_export(tiny):
    import openvino

    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=ask, args=(tiny, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = {results.get() for _ in workers}
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    folder = folder_of(tiny, "encoder", "fp32")
    assert found == {str(folder)}
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    graph = openvino.Core().read_model(str(folder / openvino_export.GRAPH))
    assert {port.get_any_name() for port in graph.inputs} >= {"input_ids", "attention_mask"}


def test_int4_has_4_bits_in_the_layers_and_8_in_the_embedding(tiny):
    import openvino

    graph = openvino.Core().read_model(exported(tiny, "encoder", "int4") / openvino_export.GRAPH)
    constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
    shapes = {kind: {tuple(c.shape) for c in constants if c.get_element_type().get_type_name() == kind}
              for kind in ("u4", "u8")}  # fmt: skip
    assert shapes["u4"] == {(64, 1, 64), (64, 1, 1)}  # rows of one group, and its zero points
    assert (50, 64) in shapes["u8"]


def test_the_caller_imports_nothing_heavy_and_an_export_is_made_once(tiny):
    folder = folder_of(tiny, "encoder", "int8")
    folder.mkdir(parents=True)
    (folder / "mark").touch()
    code = (
        "import sys\nfrom rung.engines.openvino_export import exported\nfrom rung.models.reference import resolve\n"
        "print(exported(resolve(sys.argv[1]), 'encoder', 'int8'))\n"
        "assert not {'torch', 'transformers', 'optimum', 'openvino'} & set(sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(tiny.folder)], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(folder)


def test_a_failed_export_says_why_and_leaves_nothing(tiny, monkeypatch):
    monkeypatch.setattr(openvino_export, "MODULE", "rung.engines.no_such_module")
    with pytest.raises(EngineError, match="No module named") as failed:
        exported(tiny, "encoder", "fp32")
    assert failed.value.code == "export-failed"
    assert list(folder_of(tiny, "encoder", "fp32").parent.iterdir()) == []


def test_a_missing_package_is_named(tiny, monkeypatch):
    monkeypatch.setattr(openvino_export, "PACKAGES", ("openvino", "no-such-package"))
    with pytest.raises(EngineError, match="no-such-package") as missing:
        exported(tiny, "encoder", "fp32")
    assert missing.value.code == "missing-extra"


def test_what_an_export_takes_is_stated_before_it_starts(tiny, tmp_path, monkeypatch):
    class Told(Quiet):
        def __init__(self):
            self.labels = []

        def start(self, label, total=None):
            self.labels.append(label)

    def export(*_):
        (tmp_path / "out" / openvino_export.GRAPH).touch()
        return 0, ""

    monkeypatch.setattr(openvino_export, "_run", export)
    (tmp_path / "out").mkdir()
    told = Told()
    arguments = (tiny.folder, tmp_path / "out", "tiny", "encoder", "int8")
    openvino_export.export_folder(*arguments, progress=told)
    weights = sum(file.stat().st_size for file in tiny.folder.glob("*.safetensors"))
    assert json.loads(recall("openvino-export-int8"))["weights"] == weights
    larger = {"weights": 1_000_000_000, "seconds": 560.0, "memory": 5.3e9}  # ten times and twice what is typical
    remember("openvino-export-int8", json.dumps(larger))
    openvino_export.export_folder(*arguments, progress=told)
    assert told.labels == [
        "exporting tiny to OpenVINO (int8), once: about 1 min and 1.3 GB of memory",
        "exporting tiny to OpenVINO (int8), once: about 3 min and 2.6 GB of memory",
    ]
    assert json.loads(recall("openvino-export-int8")) == larger  # the largest model is what counts


def test_a_failed_export_says_nothing_of_what_the_next_will_take(tiny, monkeypatch):
    monkeypatch.setattr(openvino_export, "_run", lambda *_: (1, "killed"))
    with pytest.raises(EngineError):
        exported(tiny, "encoder", "int8")
    assert recall("openvino-export-int8") is None


def test_a_budget_that_ends_during_an_export_ends_the_export(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_export, "PULSE_SECONDS", 0.02)
    started = []

    class Started(subprocess.Popen):
        def __init__(self, command, **settings):
            started.append(self)
            super().__init__([sys.executable, "-c", "import time; time.sleep(600)"], **settings)

    monkeypatch.setattr(openvino_export.subprocess, "Popen", Started)
    budget = Budget(Quiet(), Limits(CLOSING_SECONDS + 0.3, None))
    with budget.stage():
        openvino_export.exported(tiny, "encoder", "fp32", progress=budget)
    assert budget.limited
    assert started[0].returncode == -signal.SIGKILL
    assert list((tmp_path / "cache" / "openvino").iterdir()) == []  # nothing that looks like an export


# ---- older libraries

GEMMA = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "layer_types": ["sliding_attention", "full_attention"]}
SCALED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("Gemma3Text", {"num_hidden_layers": 2, **GEMMA}),
        ("Qwen3", {"rope_theta": 3e5, "rope_scaling": SCALED}),
        ("Qwen3", {"rope_theta": 3e5, "rope_scaling": None}),
    ],
)
def test_older_libraries_get_the_keys_that_version_4_wrote(kind, written):
    import transformers

    # Version 5 reads the keys of version 4, and writes its own.
    newer = getattr(transformers, f"{kind}Config")(**copy.deepcopy(written)).to_dict()
    assert "rope_theta" not in newer
    older = openvino_export.older_config(newer)
    assert {key: older[key] for key in written} == written


@pytest.fixture
def gemma(tmp_path, monkeypatch):
    """A folder of a model of which only config.json is read, in a cache of its own; its export is refused."""
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    refusal = f"refused: ValueError: The current version of Transformers {openvino_export.TOO_NEW}. Maximum is 5.0"
    monkeypatch.setattr(openvino_export, "_run", lambda *_: (1, refusal))
    folder = tmp_path / "gemma"
    folder.mkdir()

    def export(model_type):
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(EngineError) as failed:
            openvino_export.export_folder(folder, tmp_path / "out", "tiny", "causal", "int8")
        return failed.value

    return export


def test_an_architecture_that_needs_older_libraries_names_them_offline(gemma, monkeypatch):
    monkeypatch.setenv("RUNG_OFFLINE", "1")
    error = gemma("lfm2")
    assert error.code == "export-failed"  # the network may be there at the next attempt
    assert "transformers 4.57.6 and huggingface-hub 0.36.0 (13 MB)" in error.message
    assert "rung models pull MODEL --openvino" in error.hint


def test_a_failed_download_of_older_libraries_leaves_nothing(gemma, tmp_path, monkeypatch):
    for name in ("RUNG_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    error = gemma("lfm2")
    assert error.code == "export-failed"
    assert "its download failed" in error.message
    assert list((tmp_path / "cache" / "export-libraries").iterdir()) == []


def test_an_architecture_that_no_version_exports_is_told_from_a_failure(gemma):
    assert gemma("llama4_text").code == "export-unsupported"


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (1, "refused: ValueError: custom or unsupported architecture", "export-unsupported"),
        (1, "refused: IndexError: index out of range in self", "export-unsupported"),
        (1, "Traceback (most recent call last):\nNameError: a bug of Rung's", "export-failed"),
        (-9, "", "export-failed"),
        (1, "refused: OSError: [Errno 28] No space left on device", "export-failed"),
        (1, "refused: ModuleNotFoundError: No module named 'nncf'", "export-failed"),
    ],
)
def test_a_failure_for_good_is_told_from_one_of_the_machine(gemma, monkeypatch, code, said, told):
    monkeypatch.setattr(openvino_export, "_run", lambda *_: (code, said))
    assert gemma("phi").code == told


def test_a_graph_that_is_not_the_model_is_refused(tmp_path):
    files = resolve("embedded")
    graph = exported(files, "causal", "int8")
    for name in (openvino_export.GRAPH, "openvino_model.bin"):
        (tmp_path / name).symlink_to(graph / name)
    openvino_export.finish(files.folder, tmp_path, "int8")
    assert (tmp_path / "openvino_tokenizer.xml").exists()
    other = tmp_path / "other"  # as a library that reads another key of config.json would see it
    shutil.copytree(files.folder, other)
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] /= 10
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match="differs from the model"):
        openvino_export.finish(other, tmp_path, "int8")


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"model_type": "mpt"}, True),
        ({"model_type": "mpt", "attn_config": {"alibi": False}}, False),
        ({"model_type": "falcon", "alibi": True}, True),
        ({"model_type": "falcon"}, False),
    ],
)
def test_what_openvino_loses_is_not_exported(tmp_path, monkeypatch, settings, lost):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(openvino_export, "_process", lambda *_: (1, "refused: ran"))
    with pytest.raises(EngineError, match="attends by distance" if lost else "ran") as raised:
        openvino_export.export_folder(tmp_path, tmp_path / "out", "tiny", "causal", "fp32")
    assert raised.value.code == "export-unsupported"


# ---- wrappers of text decoders, and graphs whose positions are no input

SMALL = {
    "vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
HEADS = SMALL | {"head_dim": 16}
TURNED = HEADS | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}}
SIGHT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "depth": 1,
         "num_heads": 2, "out_hidden_size": 32, "image_size": 28, "patch_size": 14}  # fmt: skip
GRANITE = {"num_local_experts": 0, "shared_intermediate_size": 48, "layer_types": ["attention"] * 2,
           "position_embedding_type": "rope", "mamba_n_heads": 8, "mamba_d_head": 8}  # fmt: skip


@pytest.fixture
def made(tiny_tokenizer, tmp_path, monkeypatch):
    """A function that makes a random model of a class of transformers, in a cache of its own."""
    import torch
    import transformers

    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))

    def make(kind, **settings):
        folder = shutil.copytree(tiny_tokenizer.folder, tmp_path / kind)
        config = getattr(transformers, f"{kind}Config")(**settings)
        torch.manual_seed(0)
        text_class(config.model_type).from_config(config).save_pretrained(folder)
        return resolve(str(folder))

    return make


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (
            "Gemma3",
            {"text_config": HEADS | {"sliding_window": 16, "query_pre_attn_scalar": 16}, "vision_config": SIGHT},
        ),
        (
            "Qwen3VL",
            {"text_config": TURNED, "vision_config": SIGHT | {"deepstack_visual_indexes": [0]}},
        ),
    ],
)
def test_the_decoder_of_a_wrapper_writes_what_the_wrapper_writes(made, kind, settings):
    from peft import LoraConfig

    files = made(kind, **settings)
    oracle, engine = open_torch(files.reference), OpenVinoEngine(files, "fp32")
    change = PeftAdapter(
        oracle.use(None), LoraConfig(r=4, lora_alpha=64, target_modules=["down_proj"], init_lora_weights=False)
    )
    adapter = str(keep(change, files.fingerprint))
    change.remove()
    prompts = [tuple(3 + (7 * i * i + k) % 20 for i in range(30)) for k in range(3)]
    requests = [GenerateRequest(prompt, Sampling(max_tokens=12), adapter=one, logprobs=True)
                for one in (None, adapter) for prompt in prompts]  # fmt: skip
    wanted = oracle.generate(requests)
    assert wanted[0].logprobs != wanted[3].logprobs
    for ours, theirs in zip(engine.generate(requests), wanted, strict=True):
        assert ours.text == theirs.text
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=2e-3)


def test_what_openvino_genai_would_write_otherwise_is_refused(made):
    files = made("GraniteMoeHybrid", **SMALL, **GRANITE)
    with pytest.raises(EngineError, match="differs from the model") as refused:
        exported(files, "causal", "fp32")
    assert refused.value.code == "export-unsupported"
