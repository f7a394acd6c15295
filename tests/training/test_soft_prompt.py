import copy
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from rung.engines.base import Sampling
from rung.engines.changes import attach, family_of
from rung.engines.label_trie import build_trie
from rung.engines.torch_decoding import decode
from rung.engines.tree_scoring import left_padded, run_prefix, score_all, score_best
from rung.errors import ArtifactError, EngineError
from rung.progress import QUIET
from rung.rungs.soft_prompts import PromptTuning
from rung.training.changes import enabled
from rung.training.checkpoints import Checkpoints
from rung.training.config import TrainConfig
from rung.training.examples import TokenizedExample
from rung.training.loop import train
from rung.training.loss import AnswerLoss, packed_layers
from rung.training.peft import PeftAdapter, peft, quiet_peft
from rung.training.soft_prompts import SoftPrompt, embeddings_of, keys_values_of

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
N = 5


def build(name, **settings):
    torch.manual_seed(0)
    config = getattr(transformers, name + "Config")
    model = getattr(transformers, name + "ForCausalLM")(config(**SIZES, **settings))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base(request):
    return build("Llama") if request.param == "llama" else build("Qwen3", head_dim=16)


def prompt_tuning():
    return peft().PromptTuningConfig(num_virtual_tokens=N, task_type="CAUSAL_LM")


def p_tuning(kind="MLP"):
    return peft().PromptEncoderConfig(
        num_virtual_tokens=N, encoder_reparameterization_type=kind, encoder_hidden_size=12, task_type="CAUSAL_LM"
    )


def p_tuning_lstm():
    return p_tuning("LSTM")


def prefix_tuning(**settings):
    return peft().PrefixTuningConfig(num_virtual_tokens=N, task_type="CAUSAL_LM", **settings)


def prefix_projected():
    return prefix_tuning(prefix_projection=True, encoder_hidden_size=12)


METHODS = [prompt_tuning, p_tuning, p_tuning_lstm, prefix_tuning, prefix_projected]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


def soft(base, method):
    """A soft prompt, of size one that PEFT's own initialization has, on a copy of the model."""
    torch.manual_seed(3)
    change = SoftPrompt(copy.deepcopy(base), method())
    with torch.no_grad():
        for parameter in change.parameters().values():
            parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return change


def oracle(base, change, folder):
    """PEFT's own model, read from what was written."""
    change.write(folder, "f")
    with quiet_peft():
        return peft().PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


def own_logits(change, ids):
    """Logits behind the virtual tokens."""
    virtual = torch.tensor(change.prefix).expand(len(ids), -1)
    with torch.no_grad(), enabled(change):
        return change.model(input_ids=torch.cat([virtual, ids], 1)).logits[:, N:]


def peft_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def some_ids(rows, columns, seed=0):
    return torch.randint(0, 97, (rows, columns), generator=torch.Generator().manual_seed(seed))


# ---- the same as PEFT


@methods
def test_logits_equal_those_of_peft(base, method, tmp_path):
    change, ids = soft(base, method), some_ids(3, 7)
    theirs = peft_logits(oracle(base, change, tmp_path), ids)
    close(own_logits(change, ids), theirs)
    assert (theirs - base(ids).logits).abs().max() > 0.1


@methods
def test_cached_and_padded_rows_equal_peft(base, method, tmp_path):
    change = soft(base, method)
    model, other = change.model, oracle(base, change, tmp_path)
    shared, rows, steps = some_ids(1, 4)[0].tolist(), [[5, 6, 7], [8], [9, 10, 11, 12, 13]], some_ids(3, 2, seed=1)
    for lent in ([*change.prefix, *shared], []):  # once for all rows, and in every row behind its padding
        beginning = [] if lent else [*change.prefix, *shared]
        with torch.inference_mode(), enabled(change):
            prefix = run_prefix(model, lent)
            ids, mask, positions = left_padded(prefix, [beginning + row for row in rows])
            cache, visible = prefix.cache(3), mask[:, -1]
            found = [model(input_ids=ids, attention_mask=mask[:, None], position_ids=positions, past_key_values=cache)]
            for step in range(2):
                visible = torch.cat([visible, torch.ones(3, 1, dtype=torch.bool)], 1)
                found.append(
                    model(
                        input_ids=steps[:, step : step + 1], attention_mask=visible[:, None, None],
                        position_ids=positions[:, -1:] + 1 + step, past_key_values=cache,
                    )
                )  # fmt: skip
        logits = torch.stack([one.logits[:, -1] for one in found], 1)
        for i, row in enumerate(rows):
            whole = torch.tensor([[*shared, *row, *steps[i].tolist()]])
            close(logits[i], peft_logits(other, whole)[0, -3:])


@methods
def test_tree_scores_equal_plain_passes_through_peft(base, method, tmp_path):
    change = soft(base, method)
    other = oracle(base, change, tmp_path)
    head, own = [3, 4, 5, 6], [[7, 8], [9], [10, 11, 12]]
    labels = ((20, 21), (20, 22, 23), (30,), (31, 32))
    prompts, trie = [(*change.prefix, *head, *row) for row in own], build_trie(labels)
    with enabled(change):
        scored = score_all(change.model, prompts, trie)
        alone = score_all(change.model, prompts[:1], trie)
        best, _ = score_best(change.model, prompts, trie, np.ones(4, np.float32), np.zeros(4, np.float32))
    wanted = np.zeros((3, 4), np.float32)
    for r, row in enumerate(own):
        for k, label in enumerate(labels):
            logs = peft_logits(other, torch.tensor([[*head, *row, *label]]))[0].log_softmax(-1)
            at = len(head) + len(row) - 1
            wanted[r, k] = sum(logs[at + i, token].item() for i, token in enumerate(label))
    np.testing.assert_allclose(scored, wanted, atol=1e-4)
    np.testing.assert_allclose(alone, wanted[:1], atol=1e-4)
    assert (best.argmax(1) == wanted.argmax(1)).all()


@methods
def test_greedy_text_equals_that_of_peft(tiny_model, tiny_tokenizer, method, tmp_path):
    base = tiny_model(tiny_tokenizer.vocabulary_size)
    change = soft(base, method)
    other, prompts = oracle(base, change, tmp_path), [(3, 4, 5), (3, 4, 6, 7, 8)]
    with enabled(change):
        made = decode(
            change.model, tiny_tokenizer, [(*change.prefix, *prompt) for prompt in prompts], Sampling(max_tokens=6),
            None, logprobs=True, progress=QUIET, cancelled=None,
        )  # fmt: skip
    for prompt, one in zip(prompts, made, strict=True):
        tokens, logs = list(prompt), []
        while len(logs) < 6 and not (logs and tokens[-1] in tiny_tokenizer.eos_ids):
            step = peft_logits(other, torch.tensor([tokens]))[0, -1].log_softmax(-1)
            tokens.append(int(step.argmax()))
            logs.append(step.max().item())
        assert one.logprobs == pytest.approx(logs, abs=1e-4)
        ended = tokens[:-1] if tokens[-1] in tiny_tokenizer.eos_ids else tokens
        assert one.text == tiny_tokenizer.decode(ended[len(prompt) :])


def examples(count=6, seed=0):
    rng = random.Random(seed)
    head = tuple(rng.randrange(97) for _ in range(4))
    return [
        TokenizedExample.answered(
            head + tuple(rng.randrange(97) for _ in range(rng.randint(1, 6))),
            tuple(rng.randrange(97) for _ in range(rng.randint(1, 4))),
            f"row {i}",
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
@methods
def test_packed_gradient_is_that_of_peft_row_by_row(base, method, checkpointing):
    change = soft(base, method)
    with quiet_peft():
        other = peft().get_peft_model(copy.deepcopy(base), method())
    other.prompt_encoder["default"].load_state_dict(change.parameters())
    part = examples()
    theirs = 0.0
    for row in part:
        ids = torch.tensor([row.tokens])
        labels = torch.full_like(ids, -100)
        labels[0, len(row.prompt) :] = ids[0, len(row.prompt) :]
        logits = other(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]
        theirs = theirs + torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
    theirs.backward()
    for parameter in change.parameters().values():
        parameter.requires_grad_(True)
    if checkpointing:
        change.model.train()
        change.model.gradient_checkpointing_enable({"use_reentrant": False})
    with enabled(change), packed_layers(change.model):
        loss = AnswerLoss(change.model)([row.after(change.prefix) for row in part])
        loss.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    wanted = dict(other.prompt_encoder["default"].named_parameters())
    for name, parameter in change.parameters().items():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Gemma3", {"head_dim": 16}),  # norms keys with heads before tokens, two rotations, scaled embeddings
        ("Phi", {}),  # rotates a part of every head
        ("SmolLM3", {}),  # does not rotate in every layer
        ("Glm4", {"head_dim": 8}),  # rotates a part, interleaved
        ("Cohere2", {}),  # interleaved, attention and MLP side by side
        ("Olmo2", {}),  # norms keys before they are cut into heads
        ("Llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0,
                                       "original_max_position_embeddings": 32}}),  # scales by the rotation
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_prefix_tuning_reaches_other_architectures(name, settings, tmp_path):
    if name == "Gemma3":
        torch.manual_seed(0)
        base = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SIZES, **settings)).eval()
    else:
        base = build(name, **settings)
    change, ids = soft(base, prefix_tuning), some_ids(2, 6)
    theirs = peft_logits(oracle(base, change, tmp_path), ids)
    close(own_logits(change, ids), theirs)
    assert (theirs - base(ids).logits).abs().max() > 0.01


@pytest.mark.parametrize("method", [prompt_tuning, p_tuning])
def test_virtual_tokens_are_as_wide_as_the_embeddings(method):
    base = build("OPT", ffn_dim=64, word_embed_proj_dim=16)
    change, ids = soft(base, method), some_ids(2, 6)
    virtual = change.vectors().detach()
    embedded = torch.cat([virtual.expand(2, -1, -1), base.get_input_embeddings()(ids)], 1)
    close(own_logits(change, ids), base(inputs_embeds=embedded).logits[:, N:])


def test_fused_projections_refuse_prefix_tuning():
    base = build("Phi3")
    with pytest.raises(EngineError) as caught:
        SoftPrompt(base, prefix_tuning())
    assert caught.value.code == "tuning-unsupported"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())


# ---- beginnings


def test_a_prompt_that_starts_from_text_acts_like_the_text(base):
    text, ids = [40, 41, 42, 43, 44], some_ids(2, 6)
    wanted = base(input_ids=torch.cat([torch.tensor([text]).expand(2, -1), ids], 1)).logits[:, N:]
    for method, begin in ((prompt_tuning, embeddings_of), (prefix_tuning, keys_values_of)):
        model = copy.deepcopy(base)
        close(own_logits(SoftPrompt(model, method(), start=begin(model, text)), ids), wanted)


def test_text_is_repeated_or_cut():
    engine = SimpleNamespace(encode=lambda _text: [1, 2, 3])
    artifact = SimpleNamespace(prompt=SimpleNamespace(head=lambda: "instruction"))
    assert PromptTuning(virtual_tokens=7).instruction_tokens(engine, artifact) == [1, 2, 3, 1, 2, 3, 1]
    assert PromptTuning(virtual_tokens=2).instruction_tokens(engine, artifact) == [1, 2]


def test_a_start_of_another_shape_is_an_error(base):
    for method in (prompt_tuning, p_tuning):
        with pytest.raises(ValueError, match="not what this soft prompt learns"):
            SoftPrompt(copy.deepcopy(base), method(), start=torch.zeros(N + 1, 32))


# ---- training


@methods
def test_training_moves_the_soft_prompt_and_nothing_else(base, method):
    change, ids = soft(base, method), some_ids(2, 6)
    before = {name: p.detach().clone() for name, p in change.parameters().items()}
    part = [row.after(change.prefix) for row in examples(12)]
    course = train(change.model, change, part, TrainConfig(epochs=4, batch_size=4, learning_rate=1e-2))
    assert course.losses[-1][1] < course.losses[0][1]
    for name, parameter in change.parameters().items():
        assert not torch.equal(parameter, before[name]), name
    now = dict(change.model.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in base.named_parameters())
    assert now.keys() == dict(base.named_parameters()).keys()
    assert torch.equal(change.model(ids).logits, base(ids).logits)  # it is off again
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in change.model.modules())


@methods
def test_a_run_that_goes_on_is_bit_for_bit_the_uninterrupted_one(base, method, tmp_path):
    def run(checkpoints=None, stop_after=None):
        change = soft(base, method)
        schedule = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2)
        part = [row.after(change.prefix) for row in examples(12)]
        train(change.model, change, part, schedule, checkpoints=checkpoints, stop_after=stop_after)
        return change.parameters()

    whole, checkpoints = run(), Checkpoints(tmp_path / "run")
    run(checkpoints, stop_after=2)
    rest = run(checkpoints)
    assert all(torch.equal(rest[name], p) for name, p in whole.items())


# ---- on and off, beside others


def test_ids_of_the_vocabulary_are_untouched(base):
    change, ids = soft(base, prefix_tuning), some_ids(2, 6)
    with enabled(change):
        assert torch.equal(change.model(ids).logits, base(ids).logits)
    with pytest.raises(IndexError):
        change.model(torch.tensor([change.prefix]))


def test_soft_prompts_and_adapters_stand_beside_each_other(base, tmp_path):
    one, ids = soft(base, prompt_tuning), some_ids(2, 6)
    wanted = own_logits(one, ids)
    two = SoftPrompt(one.model, prefix_tuning(), start=keys_values_of(one.model, [40, 41, 42, 43, 44]))
    alone = own_logits(two, ids)
    assert not set(one.prefix) & set(two.prefix)
    assert min(one.prefix + two.prefix) >= 97
    lora = PeftAdapter(one.model, peft().LoraConfig(target_modules="all-linear", init_lora_weights=False))
    assert torch.equal(own_logits(one, ids), wanted)
    assert torch.equal(own_logits(two, ids), alone)  # though the layers are now those of PEFT
    late = SoftPrompt(one.model, prefix_tuning(), start=two.vectors())
    assert torch.equal(own_logits(late, ids), alone)
    lora.remove()
    assert torch.equal(own_logits(two, ids), alone)
    assert torch.equal(own_logits(late, ids), alone)


# ---- on disk


@methods
def test_what_is_written_is_read_back(base, method, tmp_path):
    change, ids = soft(base, method), some_ids(2, 6)
    change.write(tmp_path, "f")
    assert family_of(tmp_path) is None
    model = copy.deepcopy(base)
    other = attach(model, tmp_path, fingerprint="f")
    with torch.no_grad():  # with gradients, an LSTM rounds differently
        assert torch.equal(other.vectors(), change.vectors())
    assert torch.equal(own_logits(other, ids), own_logits(change, ids))
    assert torch.equal(model(ids).logits, base(ids).logits)
    again = tmp_path / "again"
    again.mkdir()
    other.write(again, "f")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_what_peft_wrote_is_read(base, tmp_path):
    ids = some_ids(2, 6)
    for method in METHODS:
        folder = tmp_path / method.__name__
        with quiet_peft():
            theirs = peft().get_peft_model(copy.deepcopy(base), method())
            theirs.save_pretrained(folder)
        change = attach(copy.deepcopy(base), folder, fingerprint="f")
        close(own_logits(change, ids), peft_logits(theirs, ids))


def test_another_model_or_shape_is_refused(base, tmp_path):
    change = soft(base, prefix_tuning)
    change.write(tmp_path, "f")
    model = copy.deepcopy(base)
    with pytest.raises(ArtifactError) as caught:
        attach(model, tmp_path, fingerprint="other")
    assert caught.value.code == "model-mismatch"
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for wrong in ({"num_virtual_tokens": N + 1}, {"num_layers": 3}, {"token_dim": 8}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(ArtifactError) as caught:
            attach(model, tmp_path, fingerprint="f")
        assert caught.value.code == "adapter-mismatch"


def test_a_prompt_encoder_cannot_go_on_from_its_vectors(base, tmp_path):
    for method, plain in ((p_tuning, prompt_tuning), (prefix_projected, prefix_tuning)):
        change = soft(base, method)
        change.write(tmp_path, "f")
        with pytest.raises(ArtifactError) as caught:
            soft(base, method).read(tmp_path)
        assert caught.value.code == "tuning-unsupported"
        goes_on = soft(base, plain)
        goes_on.read(tmp_path)
        assert torch.equal(goes_on.vectors(), change.vectors())
