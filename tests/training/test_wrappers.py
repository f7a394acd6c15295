"""Folders that the classes of multimodal models save: their text decoders are opened, scored and tuned."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rung.engines.base import GenerateRequest, Sampling, ScoreRequest
from rung.engines.opening import open_torch
from rung.errors import ModelError
from rung.models.checkpoint import text_class, verify
from rung.models.reference import resolve
from rung.rungs import AdaLoRA, LoRA
from rung.training.peft import peft, quiet_peft
from rung.training.targets import linear_layers

TEXT = {
    "vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.15,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIGLIP = TOWER | {"image_size": 28, "patch_size": 14}
QWEN_TOWER = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
    "num_position_embeddings": 16, "patch_size": 4, "deepstack_visual_indexes": [0], "fullatt_block_indexes": [0],
}  # fmt: skip
THREE_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}}
# Family: configuration, that of the text, that of the tower, and whether the checkpoint has heads for later tokens.
WRAPPERS = {
    "gemma3": ("Gemma3", {"sliding_window": 16, "query_pre_attn_scalar": 8}, SIGLIP, False),
    "qwen3.5": ("Qwen3_5", LINEAR | {"layer_types": ["linear_attention", "full_attention"]}, QWEN_TOWER, True),
    "mistral3": ("Mistral3", {"model_type": "mistral", "sliding_window": None}, SIGLIP | {"head_dim": 16}, False),
    "ministral3": ("Mistral3", {"model_type": "ministral3"}, SIGLIP | {"head_dim": 16}, False),
    "qwen2.5-vl": ("Qwen2_5_VL", THREE_AXES, QWEN_TOWER, False),
    "qwen3-vl": ("Qwen3VL", THREE_AXES, QWEN_TOWER, False),
}  # fmt: skip
PROMPTS = [tuple(range(3, 13)) + tuple(range(40, 40 + n)) for n in (5, 19, 9)]
CONTINUATIONS = ((20, 21), (22,), (23, 24, 25))
OTHER = ("vision", "visual", "projector", "mtp")  # in the names of what text does not need


def saved(name, folder):
    kind, text, tower, later = WRAPPERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(text_config=TEXT | text, vision_config=tower)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = name == "gemma3"
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    model.save_pretrained(folder)
    if later:
        tensors = load_file(folder / "model.safetensors") | {"mtp.layers.0.mlp.up_proj.weight": torch.ones(3, 3)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = {f"t{i}": i for i in range(120)}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t2", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return model


@pytest.fixture(scope="module", params=list(WRAPPERS))
def wrapper(request, tmp_path_factory):
    """The folder of a wrapper, and the wrapper itself."""
    folder = tmp_path_factory.mktemp(request.param.replace(".", "-"))
    model = saved(request.param, folder)
    names = load_file(folder / "model.safetensors")
    assert any(part in name for name in names for part in OTHER)
    return folder, model


@torch.no_grad()
def plain_scores(model, prompt):
    values = []
    for continuation in CONTINUATIONS:
        ids = torch.tensor([[*prompt, *continuation]])
        logprobs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), -1)
        values.append(sum(float(logprobs[len(prompt) + i - 1, t]) for i, t in enumerate(continuation)))
    return values


def test_the_decoder_scores_as_the_wrapper_does_without_images(wrapper):
    folder, model = wrapper
    verify(resolve(str(folder)))
    engine = open_torch(str(folder))
    expected = np.array([plain_scores(model, prompt) for prompt in PROMPTS])
    scored = engine.score([ScoreRequest(prompt, CONTINUATIONS) for prompt in PROMPTS])
    np.testing.assert_allclose([row.logprobs for row in scored], expected, atol=1e-3)
    answers = engine.generate([GenerateRequest(prompt, Sampling(max_tokens=5)) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids: list[int] = []
        while len(ids) < 5 and 2 not in ids:
            with torch.no_grad():
                ids.append(
                    int(model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, -1].argmax())
                )
        assert answer.text.split() == [f"t{token}" for token in ids if token != 2]


@pytest.mark.parametrize("rung", [LoRA(rank=2), AdaLoRA(rank=1)], ids=lambda rung: rung.name)
def test_adapters_are_in_the_decoder_alone_and_peft_reads_them(wrapper, rung, tmp_path):
    folder, _ = wrapper
    engine = open_torch(str(folder))
    text = {name for name, _ in engine.model.get_decoder().named_modules()}
    layers = linear_layers(engine.model)[0]
    assert {name.rpartition("layers.")[2] for name in layers} <= {name.rpartition("layers.")[2] for name in text}
    change = rung.change(engine, None)
    adapted = {name.split(".lora_")[0] for name in change.parameters()}
    assert adapted == set(layers)
    assert not any(part in name for name in adapted for part in OTHER)
    for p in change.parameters().values():
        p.data.normal_(std=0.3)
    with torch.no_grad(), engine.lend(change, "own"):
        ours = engine.use("own")(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits
    (tmp_path / "adapter").mkdir()
    change.write(tmp_path / "adapter", engine.base_fingerprint)
    change.remove()
    base = text_class(engine.model.config.model_type).from_pretrained(folder, dtype=torch.float32)
    with quiet_peft(), torch.no_grad():
        plain = base(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits
        theirs = peft().PeftModel.from_pretrained(base, tmp_path / "adapter")
        logits = theirs(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits
    assert (ours - plain).abs().max() > 0.01
    assert torch.allclose(ours, logits, atol=1e-3)
    again = engine.use(str(tmp_path / "adapter"))(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits
    assert torch.allclose(ours, again, atol=1e-4)
    engine.use(None)


@pytest.mark.parametrize(
    "left", ["model.language_model.layers.0.image_gate.weight", "audio_head.weight", "model.revision.weight"]
)
def test_what_only_sounds_like_another_tower_is_refused(wrapper, left, tmp_path):
    folder, _ = wrapper
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors") | {left: torch.ones(3)}
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="have no place in the model") as raised:
        verify(resolve(str(other)))
    assert raised.value.code == "model-damaged"
