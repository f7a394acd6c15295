from pathlib import Path

import pytest

from rung.models.reference import ModelFiles, resolve


@pytest.fixture(scope="session")
def embedded() -> ModelFiles:
    return resolve("embedded")


@pytest.fixture(scope="session")
def encoder() -> ModelFiles:
    return resolve("embedded-encoder")


@pytest.fixture
def small_model(tmp_path) -> Path:
    """A folder with the files of a model, the weights being two numbers."""
    import json

    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "small"
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"w": np.ones((2, 3), np.float32), "i": np.ones(7, np.int64)}, folder / "model.safetensors")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Small\n")
    return folder
