import json
import sys
from dataclasses import replace

import pytest

from rung.artifact.artifact import Artifact


@pytest.fixture
def rung(capfd, monkeypatch):
    def run(*arguments):
        from rung.cli.main import main

        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["rung", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model, tiny_tokenizer):
    """A saved artifact with a random LoRA adapter on a random model."""
    import shutil

    from rung.artifact.artifact import Artifact
    from rung.artifact.parts import Signature, Weights
    from rung.artifact.text import Generate
    from rung.engines.opening import open_torch
    from rung.prompts.prompt import Prompt
    from rung.training.changes import keep
    from rung.training.peft import PeftAdapter, peft

    place = tmp_path_factory.mktemp("exports")
    tiny_model(tiny_tokenizer.vocabulary_size).save_pretrained(place / "base")
    for file in tiny_tokenizer.folder.iterdir():
        shutil.copy(file, place / "base" / file.name)
    engine = open_torch(str(place / "base"))
    config = peft().LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    change = PeftAdapter(engine.model, config)
    weights = Weights("lora", keep(change, engine.files.fingerprint), 4)
    change.remove()
    signature = Signature("letters", ("text",), "text", "exact_match")
    prompt = Prompt(instruction="a", template="{text}")
    artifact = Artifact(signature, str(place / "base"), prompt, Generate(4), engine="torch", path=("zero-shot",))
    return artifact.step("lora", {}, weights=weights).save(place / "artifact")


def test_merge_shows_the_difference(rung, folder, tmp_path):
    (tmp_path / "rows.csv").write_text("text\nab ba\nc\n")
    code, out, _ = rung("merge", folder, "--out", tmp_path / "m", "--data", tmp_path / "rows.csv", "--json", "-q")
    values = json.loads(out)
    assert (code, values["rows"], values["agreement"]) == (0, "2 prompts: rows.csv", 1.0)
    assert 0 < values["largest"] < 1e-4
    assert rung("run", tmp_path / "m" / "artifact", "ab ba")[1] == rung("run", folder, "ab ba")[1]
    code, _, err = rung("merge", folder, "--out", tmp_path / "m", "-q")
    assert (code, "error[file-exists]" in err) == (3, True)
    code, _, err = rung("merge", tmp_path / "m" / "artifact", "--out", tmp_path / "n", "-q")
    assert (code, "error[export-unsupported]" in err) == (3, True)


def test_export_writes_what_is_asked_for(rung, folder, tmp_path):
    assert rung("export", folder, "--to", "peft", "--out", tmp_path / "p", "-q")[0] == 0
    assert (tmp_path / "p" / "adapter_model.safetensors").is_file()
    facts = json.loads(rung("show", folder, "--json")[1])
    card = (tmp_path / "p" / "README.md").read_text()
    assert f"- artifact: `{facts['fingerprint']}`" in card
    assert f"- prompt: `{facts['prompt']}`" in card
    other = Artifact.load(folder)
    other = replace(other, path=(*other.path, "again")).save(tmp_path / "other")
    again = json.loads(rung("show", other, "--json")[1])
    assert again["prompt"] == facts["prompt"]
    assert len({facts["fingerprint"], again["fingerprint"], facts["prompt"]}) == 3
    code, out, _ = rung("export", folder, "--to", "huggingface", "--out", tmp_path / "h", "-q")
    assert (code, out.splitlines()[0]) == (0, f"{tmp_path / 'h'}: huggingface")
    assert "fixed texts" in out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--to", "onnx", "--out", "x"], "unknown-name"),
        (["--to", "peft"], "bad-option"),
        (["--to", "peft", "--out", "x", "--precision", "f16"], "bad-option"),
        (["--to", "gguf", "--out", "x", "--row", "1"], "bad-option"),
        (["--out", "x"], "bad-option"),
    ],
)
def test_options_that_do_not_fit_are_refused(rung, folder, options, code):
    found, _, err = rung("export", folder, *options)
    assert (found, f"error[{code}]" in err) == (2, True)
