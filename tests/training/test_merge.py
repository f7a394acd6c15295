"""Merging and exporting, on random models small enough to be written in every test."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from changed_weights import tuned
from rung.artifact.artifact import Artifact
from rung.artifact.parts import Signature
from rung.artifact.text import Generate
from rung.data.rows import Data, Example, example_id
from rung.engines.opening import open_torch
from rung.errors import ArtifactError, TrainingError
from rung.export.card import vllm_refusal
from rung.export.export import export, merge
from rung.models.reference import resolve
from rung.prompts.prompt import Prompt
from rung.rungs import LoRA
from rung.training.adapters import Bottleneck
from rung.training.changes import Patch
from rung.training.peft import PeftAdapter, peft, quiet_peft
from rung.yamlfile import sealed

ROWS = [{"text": text} for text in ("ab", "ba ab", "c a b", "abba", "bab c")]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_model, tiny_tokenizer):
    """A model folder with tied embeddings."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    model = tiny_model(tiny_tokenizer.vocabulary_size)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)
    for file in tiny_tokenizer.folder.iterdir():
        shutil.copy(file, folder / file.name)
    return folder


@pytest.fixture(scope="module")
def zero(base):
    prompt = Prompt(instruction="a", template="{text}")
    signature = Signature("letters", ("text",), "text", "exact_match")
    return Artifact(signature, str(base), prompt, Generate(max_tokens=6), engine="torch", path=("zero-shot",))


def lora(model):
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return PeftAdapter(model, peft().LoraConfig(init_lora_weights=False, **settings))


def output_layer(model):
    return Patch(model, "lm_head.weight".__eq__)


def last_layer(model):
    return Patch(model, lambda name: name.startswith("model.layers.1."))


def bottleneck(model):
    return Bottleneck(model, 4, "houlsby")


def logits(artifact, row):
    engine = open_torch(artifact.model)
    ids = torch.tensor([engine.tokens(artifact.messages(row))])
    with engine.running(artifact.weights.reference) as model, torch.inference_mode():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("make", [lora, output_layer, last_layer])
def test_a_merged_model_answers_as_the_unmerged_one(zero, base, tmp_path, make):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    artifact = tuned(zero, make, "lora" if make is lora else "patch")
    before = [logits(zero, row) for row in ROWS]
    difference = merge(artifact, tmp_path / "out", rows=ROWS)
    assert all(torch.equal(logits(zero, row), old) for row, old in zip(ROWS, before, strict=True))

    loaded = Artifact.load(tmp_path / "out" / "artifact")
    assert (loaded.weights.reference, loaded.name) == (None, artifact.name + "+merge")
    assert [a.text for a in loaded.predict(ROWS)] == [a.text for a in artifact.predict(ROWS)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model", local_files_only=True).eval()
    assert model.config.tie_word_embeddings == (make is not output_layer)
    text = "ab ba"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model", local_files_only=True)
    assert tokenizer(text).input_ids == AutoTokenizer.from_pretrained(base, local_files_only=True)(text).input_ids

    apart = []
    for row in ROWS:
        wanted = logits(artifact, row)
        ids = torch.tensor([open_torch(str(base)).tokens(artifact.messages(row))])
        apart.append((model(ids).logits - wanted).abs().flatten())
        assert not torch.allclose(wanted, logits(zero, row), atol=1e-2)
    apart = torch.cat(apart)
    assert difference.largest == pytest.approx(apart.max().item(), abs=1e-6)
    assert difference.mean == pytest.approx(apart.mean().item(), abs=1e-7)
    assert difference.largest < 1e-4
    assert difference.agreement == 1.0


def test_a_merged_folder_may_be_moved(zero, tmp_path):
    merge(tuned(zero, lora, "lora"), tmp_path / "out", rows=ROWS)
    before = [a.text for a in Artifact.load(tmp_path / "out" / "artifact").predict(ROWS)]
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    moved = Artifact.load(tmp_path / "elsewhere" / "artifact")
    assert moved.model == str(tmp_path / "elsewhere" / "model")
    assert [a.text for a in moved.predict(ROWS)] == before


def test_what_cannot_be_merged_says_what_to_do(zero, base, tmp_path):
    artifact = tuned(zero, bottleneck, "bottleneck")
    with pytest.raises(TrainingError) as caught:
        merge(artifact, tmp_path / "out")
    assert caught.value.code == "export-unsupported"
    assert "unmerged" in caught.value.hint
    assert not (tmp_path / "out" / "model").exists()
    with pytest.raises(ArtifactError) as caught:
        merge(zero, tmp_path / "out")
    assert caught.value.code == "export-unsupported"
    (tmp_path / "out" / "mine.txt").parent.mkdir(exist_ok=True)
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError) as caught:
        merge(artifact, tmp_path / "out")
    assert caught.value.code == "file-exists"


def test_an_exported_adapter_is_peft_s_own(zero, base, tmp_path, recwarn):
    from transformers import AutoModelForCausalLM

    artifact = tuned(zero, lora, "lora")
    export(artifact, "peft", tmp_path / "adapter")
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    plain = AutoModelForCausalLM.from_pretrained(base, local_files_only=True).eval()
    model = peft().PeftModel.from_pretrained(plain, tmp_path / "adapter")
    assert not list(recwarn)  # PEFT warns of settings that it does not know
    ids = torch.tensor([open_torch(str(base)).tokens(artifact.messages(ROWS[0]))])
    torch.testing.assert_close(model(ids).logits, logits(artifact, ROWS[0]), atol=1e-5, rtol=1e-5)
    with pytest.raises(ArtifactError) as caught:
        export(tuned(zero, last_layer, "patch"), "peft", tmp_path / "other")
    assert caught.value.code == "export-unsupported"
    assert not (tmp_path / "other").exists()


@pytest.mark.slow  # what exports it imports for ten seconds
def test_openvino_has_the_logits_of_the_tuned_model(zero, tmp_path):
    import numpy as np
    import openvino

    artifact = tuned(zero, lora, "lora")
    done = export(artifact, "openvino", tmp_path / "ov", precision="fp32", rows=ROWS)
    assert done.difference.agreement == 1.0
    card = (tmp_path / "ov" / "README.md").read_text()
    assert "library_name: openvino\n" in card
    assert "merged: logits differ by at most" in card
    model = openvino.Core().compile_model(str(tmp_path / "ov" / "openvino_model.xml"), "CPU")
    ids = np.array([open_torch(artifact.model).tokens(artifact.messages(ROWS[1]))])
    values = {
        "input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None],
        "beam_idx": np.zeros(1, np.int32),
    }  # fmt: skip
    computed = model({key: values[key] for port in model.inputs if (key := port.get_any_name())})["logits"]
    np.testing.assert_allclose(computed, logits(artifact, ROWS[1]).numpy(), atol=1e-3)
    assert not np.allclose(computed, logits(zero, ROWS[1]).numpy(), atol=1e-2)


def test_the_card_of_an_adapter_says_how_vllm_loads_it_or_why_not(zero, tmp_path):
    export(tuned(zero, lora, "lora"), "peft", tmp_path / "adapter")
    assert (
        "vllm serve PATH_OF_THE_BASE_MODEL --enable-lora --max-lora-rank 8 --lora-modules tuned=THIS_FOLDER "
        "--generation-config vllm\n"
    ) in (tmp_path / "adapter" / "README.md").read_text()
    plain = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    refused = {
        "it does not run DoRA": {"use_dora": True},
        "it does not load biases": {"bias": "lora_only"},
        "it does not load whole modules": {"modules_to_save": ["lm_head"]},
        "it takes one rank and one scale for all layers": {"rank_pattern": {"q_proj": 2}},
        "its ranks end at 512": {"r": 513},
        "it loads only LoRA adapters, and this is IA3": {"peft_type": "IA3"},
        "it loads only LoRA adapters, and this is PROMPT_TUNING": {"peft_type": "PROMPT_TUNING"},
    }
    assert [vllm_refusal({**plain, **change}) for change in refused.values()] == list(refused)
    assert vllm_refusal({**plain, "use_rslora": True, "r": 512}) is None

    def dora(model):
        return PeftAdapter(model, peft().LoraConfig(r=4, use_dora=True, target_modules="all-linear"))

    export(tuned(zero, dora, "dora"), "peft", tmp_path / "dora")
    assert "vLLM does not load it: it does not run DoRA." in (tmp_path / "dora" / "README.md").read_text()


def test_the_card_says_what_is_known_and_no_row(zero, tmp_path):
    from rung.export.card import evidence

    run = tmp_path / "run"
    folder = tuned(zero, lora, "lora").save(run / "rungs" / "lora" / "artifact")
    entry = {
        "name": "lora", "metric": "exact_match", "score": 0.75, "low": 0.7, "high": 0.8, "n": 40, "split": "test",
    }  # fmt: skip
    report = {
        "engine": "torch", "seed": 0, "rungs": [entry, {**entry, "name": "zero-shot", "score": 0.5}],
        "data": {"splits": {"train": {"kept": 12}, "test": {"kept": 40}}},
    }  # fmt: skip
    (run / "report.json").write_text(sealed(report))
    (run / "climb.json").write_text(sealed({"data_fingerprint": "d" * 16}))
    loaded = Artifact.load(folder)
    export(loaded, "huggingface", tmp_path / "model", rows=ROWS, source="mine", known=evidence(folder, "lora"))
    text = (tmp_path / "model" / "README.md").read_text()
    assert "| lora | exact_match | 0.7500 | [0.7000, 0.8000] | 40 test |\n| zero-shot | exact_match | 0.5000" in text
    assert "- train: 12 rows\n- test: 40 rows\n- data fingerprint: `dddddddddddddddd`\n" in text
    assert resolve(zero.model).fingerprint in text
    assert "at 100.00% of" in text
    assert "(5 prompts: mine)" in text
    assert "abba" not in text
    assert evidence(tmp_path / "model", "lora") is None


def test_the_card_names_the_licence_of_the_base(zero, base, tmp_path):
    export(tuned(zero, lora, "lora"), "peft", tmp_path / "plain")
    assert "- licence: unknown: see the base model\n" in (tmp_path / "plain" / "README.md").read_text()
    shutil.copytree(base, tmp_path / "licensed")
    (tmp_path / "licensed" / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    export(tuned(replace(zero, model=str(tmp_path / "licensed")), lora, "lora"), "peft", tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\nlibrary_name: peft\n")
    assert "- licence: apache-2.0\n" in text


# ---- going on from earlier weights


def data(base):
    rows = [Example(example_id(row), row, (answer,), "r") for row, answer in zip(ROWS, "abcab", strict=True)]
    return Data(tuple(rows), (), (), (), None, "")


def first_and_last(artifact):
    losses = artifact.settings["lora"]["losses"]
    return losses[0][1], losses[-1][1]


def test_training_goes_on_from_an_artifact_and_from_peft_s_own_folder(zero, base, tmp_path):
    rung = LoRA(rank=4, epochs=30, batch_size=8, learning_rate=1e-2, lr_scheduler="constant")
    first = rung.fit(zero, data(base))
    saved = first.save(tmp_path / "first")
    export(first, "peft", tmp_path / "plain")  # without Rung's fingerprint
    start, end = first_and_last(first)
    assert end < 0.5 * start
    again = [
        replace(rung, epochs=1, learning_rate=0.0, continue_from=str(folder)).fit(zero, data(base))
        for folder in (saved, first.weights.adapter, tmp_path / "plain")
    ]
    losses = {first_and_last(one)[0] for one in again}
    assert len(losses) == 1
    assert losses.pop() < end  # one step later than what was last recorded
    assert again[0].weights.trainable_parameters == first.weights.trainable_parameters
    same = [Artifact.answer(one, data(base).train)[0].text for one in (first, *again)]
    assert len(set(same)) == 1


def test_weights_that_do_not_fit_are_refused(zero, base, tmp_path):
    settings = {"epochs": 1, "batch_size": 8}
    others = [
        one.fit(zero, data(base)).save(tmp_path / one.name / str(one.alpha))
        for one in (LoRA(rank=2, alpha=16, **settings), LoRA(rank=4, alpha=8, **settings))
    ]
    for folder in (*others, tuned(zero, last_layer, "patch").weights.adapter):
        with pytest.raises(ArtifactError) as caught:
            LoRA(rank=4, continue_from=str(folder), **settings).fit(zero, data(base))
        assert caught.value.code == "adapter-mismatch"


@pytest.fixture
def foreign(base, tmp_path):
    """What PEFT itself writes: an adapter on the queries and values of the last layer alone."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    config = peft().LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], layers_to_transform=[1], layers_pattern="layers",
        init_lora_weights=False, lora_dropout=0.1, task_type="CAUSAL_LM",
    )  # fmt: skip
    with quiet_peft():
        peft().get_peft_model(plain, config).save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign"


def test_training_goes_on_where_a_foreign_adapter_sits(zero, base, foreign):
    from safetensors.torch import load_file

    still = LoRA(rank=4, alpha=8, epochs=1, learning_rate=0.0, continue_from=str(foreign)).fit(zero, data(base))
    there, here = (load_file(folder / "adapter_model.safetensors") for folder in (foreign, still.weights.adapter))
    assert there.keys() == here.keys()
    assert {name.split(".lora_")[0].partition("layers.")[2] for name in here} == {
        "1.self_attn.q_proj", "1.self_attn.v_proj",
    }  # fmt: skip
    assert all(torch.equal(here[name], tensor) for name, tensor in there.items())
    moved = LoRA(rank=4, alpha=8, epochs=2, learning_rate=1e-2, continue_from=str(foreign)).fit(zero, data(base))
    here = load_file(moved.weights.adapter / "adapter_model.safetensors")
    assert not any(torch.equal(here[name], tensor) for name, tensor in there.items())


def test_layers_that_the_model_does_not_have_are_refused(zero, base, foreign):
    values = json.loads((foreign / "adapter_config.json").read_text())
    settings = {"layers_to_transform": None, "layers_pattern": None, "target_modules": ["c_attn"]}
    (foreign / "adapter_config.json").write_text(json.dumps({**values, **settings}))
    with pytest.raises(ArtifactError, match="the model has no layer c_attn") as caught:
        LoRA(rank=4, alpha=8, continue_from=str(foreign)).fit(zero, data(base))
    assert caught.value.code == "adapter-mismatch"
    LoRA(rank=4, epochs=1).fit(zero, data(base))  # nothing is left behind
