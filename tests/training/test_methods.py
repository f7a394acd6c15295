"""What holds for every method that puts an adapter on a model."""

import copy
import json
import shutil

import pytest
import torch
import toys
from torch.nn.functional import softmax
from toys import IDS, logits, plain_loss, rows

from rung.engines.changes import attach, family_of
from rung.errors import ArtifactError, ConfigError, EngineError, TrainingError
from rung.rungs import IA3, AdaLoRA, BottleneckAdapter, DoRA, LlamaAdapter, LoRA, QLoRA, RsLoRA
from rung.training.changes import Patch
from rung.training.checkpoints import Checkpoints
from rung.training.config import TrainConfig
from rung.training.layers import ia3_targets
from rung.training.loop import train
from rung.training.loss import AnswerLoss, packed_layers
from rung.training.peft import AdaLora, peft, quiet_peft

BASE = "f" * 64

RUNGS = {
    "lora": LoRA(rank=4),
    "rslora": RsLoRA(rank=6),
    "dora": DoRA(rank=4),
    "adalora": AdaLoRA(rank=5, initial_rank=6),
    "ia3": IA3(),
    "llama-adapter": LlamaAdapter(tokens=3, top_layers=1),
    "bottleneck": BottleneckAdapter(size=5),
    "houlsby": BottleneckAdapter(size=5, placement="houlsby"),
}
PEFT_READS = [name for name in RUNGS if name not in ("bottleneck", "houlsby")]
MERGES = ["lora", "rslora", "dora", "adalora", "ia3"]
every_method = pytest.mark.parametrize("name", RUNGS)


def llama(**settings):
    return toys.llama(initializer_range=0.2, **settings)


@pytest.fixture(scope="module")
def tiny():
    return llama()


class Engine:
    """What a rung needs of the torch engine to put its change on a model, and what takes turns there."""

    def __init__(self, model):
        self.model, self.changes, self.active = model, {}, None
        self._lent = set()

    def make_room(self, family):
        from rung.engines.torch_engine import TorchEngine

        return TorchEngine.make_room(self, family)

    def use(self, adapter):
        from rung.engines.torch_engine import TorchEngine

        return TorchEngine.use(self, adapter)

    def _change(self, adapter):
        from rung.engines.torch_engine import TorchEngine

        return TorchEngine._change(self, adapter)

    base_fingerprint = BASE

    @property
    def _changes(self):
        return self.changes

    @property
    def _active(self):
        return self.active

    @_active.setter
    def _active(self, value):
        self.active = value


def fresh(name, model):
    torch.manual_seed(3)
    return RUNGS[name].change(Engine(model), None)


def random(name, model):
    """Put a change on the model that is far from the base."""
    change = fresh(name, model)
    torch.manual_seed(4)
    with torch.no_grad():
        for p in change.parameters().values():
            p.add_(torch.randn_like(p) * 0.1)
    return change


def written(change, folder):
    folder.mkdir(exist_ok=True)
    change.write(folder, BASE)
    return folder


def run(name, tiny, **options):
    model = copy.deepcopy(tiny)
    change = fresh(name, model)
    before = {n: p.detach().clone() for n, p in change.parameters().items()}
    # In float32 on every processor: by which ranks AdaLoRA prunes, it may leave a whole matrix at zero.
    schedule = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, precision="float32")
    course = train(model, change, rows(4, 16), schedule, **options)
    return course, model, change, before


# ---- training


@every_method
def test_what_is_trained_moves_and_nothing_else_does(tiny, name):
    course, model, change, before = run(name, tiny)
    assert len(course.losses) == 8
    assert min(loss for _, loss in course.losses[4:]) < course.losses[0][1]
    moved = change.parameters()
    assert all(not torch.equal(p, before[n]) for n, p in moved.items())
    assert all(not p.requires_grad and p.grad is None for p in moved.values())
    assert not torch.equal(logits(model, change), logits(tiny))
    change.remove()
    own, wanted = dict(model.named_parameters()), dict(tiny.named_parameters())
    assert own.keys() == wanted.keys()
    assert all(torch.equal(p, wanted[n]) for n, p in own.items())
    assert [type(m) for m in model.modules()] == [type(m) for m in tiny.modules()]
    assert torch.equal(logits(model), logits(tiny))


@every_method
@pytest.mark.parametrize("stop", [2, 6])
def test_a_run_that_goes_on_is_the_uninterrupted_one(tiny, tmp_path, name, stop):
    whole, _, change, _ = run(name, tiny)
    checkpoints = Checkpoints(tmp_path / "run")
    run(name, tiny, checkpoints=checkpoints, stop_after=stop)
    rest, _, other, _ = run(name, tiny, checkpoints=checkpoints)
    assert rest.losses == whole.losses
    assert rest.norms == whole.norms
    pairs = zip(change.parameters().values(), other.parameters().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    one, two = written(change, tmp_path / "one"), written(other, tmp_path / "two")
    assert [f.read_bytes() for f in sorted(one.iterdir())] == [f.read_bytes() for f in sorted(two.iterdir())]


@every_method
def test_layers_run_again_for_the_gradient_give_the_same(tiny, name):
    """Gradient checkpointing runs hooks and wrapped layers a second time."""
    course, _, _, _ = run(name, tiny)
    again = copy.deepcopy(tiny)
    again.gradient_checkpointing_enable({"use_reentrant": False})
    other, _, _, _ = run(name, again)
    assert [v for _, v in other.losses] == pytest.approx([v for _, v in course.losses], rel=1e-5)


@every_method
@pytest.mark.parametrize("shared", [0, 5])
def test_packed_rows_have_the_loss_and_gradient_of_single_ones(tiny, name, shared):
    model = copy.deepcopy(tiny)
    change = random(name, model)
    change.enable()
    parameters = change.parameters()
    for p in parameters.values():
        p.requires_grad_(True)
    found = []
    for packed in (True, False):
        if packed:
            with packed_layers(model), change.lean():
                loss = AnswerLoss(model)(rows(shared))
                loss.backward()
        else:
            loss = plain_loss(model, rows(shared))
            loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in parameters.items()}))
        for p in parameters.values():
            p.grad = None
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for n, grad in found[1][1].items():
        assert (found[0][1][n] - grad).norm() < 1e-4 * grad.norm()


# ---- on and off a model, to and from a folder


@every_method
def test_off_it_is_the_base_model_and_it_comes_back_from_its_folder(tiny, tmp_path, name):
    model = copy.deepcopy(tiny)
    change = random(name, model)
    assert torch.equal(logits(model), logits(tiny))
    on = logits(model, change)
    assert not torch.allclose(on, logits(tiny), atol=1e-2)
    change.disable()  # a second time
    assert torch.equal(logits(model), logits(tiny))
    folder = written(change, tmp_path / "adapter")
    other = copy.deepcopy(tiny)
    again = attach(other, folder, fingerprint=BASE)
    assert torch.equal(logits(other), logits(tiny))
    if name == "adalora":  # written as the product that it is
        torch.testing.assert_close(logits(other, again), on, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(logits(other, again), on)
    third = copy.deepcopy(tiny)
    went_on = fresh(name, third)
    went_on.read(folder)
    torch.testing.assert_close(logits(third, went_on), on, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PEFT_READS)
def test_peft_reads_the_folder_and_computes_the_same(tiny, tmp_path, name):
    change = random(name, model := copy.deepcopy(tiny))
    folder = written(change, tmp_path / "adapter")
    with quiet_peft():
        read = peft().PeftModel.from_pretrained(copy.deepcopy(tiny), folder)
    torch.testing.assert_close(read(IDS).logits, logits(model, change), atol=1e-5, rtol=1e-5)


@every_method
def test_an_adapter_of_another_shape_or_model_is_refused(tiny, tmp_path, name):
    folder = written(fresh(name, copy.deepcopy(tiny)), tmp_path / "adapter")
    for other in (llama(hidden_size=64), llama(num_hidden_layers=3 if name != "llama-adapter" else 1, hidden_size=16)):
        types = [type(m) for m in other.modules()]
        with pytest.raises(ArtifactError) as caught:
            attach(other, folder, fingerprint=BASE)
        assert caught.value.code == "adapter-mismatch"
        assert [type(m) for m in other.modules()] == types
    with pytest.raises(ArtifactError) as caught:
        attach(copy.deepcopy(tiny), folder, fingerprint="0" * 64)
    assert caught.value.code == "model-mismatch"


def test_all_methods_take_turns_on_one_model(tiny, tmp_path):
    wanted, folders = {}, {}
    for name in RUNGS:
        change = random(name, model := copy.deepcopy(tiny))
        folders[name] = str(written(change, tmp_path / name))
        wanted[name] = logits(model, change)
    engine = Engine(copy.deepcopy(tiny))
    for name in (*RUNGS, *reversed(RUNGS)):
        torch.testing.assert_close(engine.use(folders[name])(IDS).logits, wanted[name], atol=1e-5, rtol=1e-5)
        if name == "dora":
            assert torch.equal(engine.use(None)(IDS).logits, logits(tiny))
    assert {"bottleneck", "llama-adapter"} <= {name for name in RUNGS if folders[name] in engine.changes}
    assert family_of(tmp_path / "adalora") == family_of(tmp_path / "dora") == "LORA"
    assert family_of(tmp_path / "bottleneck") is family_of(tmp_path / "llama-adapter") is None


# ---- merging


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("bias", [False, True])
def test_merged_tensors_compute_the_same(name, bias):
    base = llama(attention_bias=bias, mlp_bias=bias)
    with torch.no_grad():
        for n, p in base.named_parameters():
            p.add_(torch.randn_like(p) * 0.1 if n.endswith("bias") else 0)
    change = random(name, model := copy.deepcopy(base))
    on, merged, plain = logits(model, change), change.merged(), copy.deepcopy(base)
    assert torch.equal(logits(model), logits(base))
    assert torch.equal(logits(model, change), on)
    own = dict(plain.named_parameters())
    assert all("proj" in n and not torch.equal(own[n], tensor) for n, tensor in merged.items())
    with torch.no_grad():
        for n, tensor in merged.items():
            own[n].copy_(tensor)
    torch.testing.assert_close(logits(plain), on, atol=1e-4, rtol=1e-4)


def test_lora_knows_gpt2_s_layers(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97, "n_positions": 64}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    base = GPT2LMHeadModel(GPT2Config(**sizes, **dropouts)).eval().requires_grad_(False)
    plain = copy.deepcopy(base)
    change = fresh("lora", model := copy.deepcopy(base))
    train(model, change, part := rows(4, 12), TrainConfig(epochs=4, batch_size=6, learning_rate=1e-2))
    names = {name.split(".lora_")[0].rpartition("h.")[2] for name in change.parameters()}
    assert names == {f"{i}.{m}" for i in (0, 1) for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    on = logits(model, change)
    assert torch.equal(logits(model), logits(base))
    own = dict(plain.named_parameters())
    with torch.no_grad():
        for n, tensor in change.merged().items():
            own[n].copy_(tensor)
    torch.testing.assert_close(logits(plain), on, atol=1e-4, rtol=1e-4)
    assert float(plain_loss(plain, part)) < float(plain_loss(base, part))
    again = attach(base, written(change, tmp_path / "adapter"), fingerprint=BASE)
    assert torch.equal(logits(base, again), on)


@pytest.mark.parametrize("name", ["llama-adapter", "bottleneck"])
def test_what_adds_computation_cannot_be_merged(tiny, name):
    with pytest.raises(TrainingError) as caught:
        random(name, copy.deepcopy(tiny)).merged()
    assert caught.value.code == "export-unsupported"


def test_a_patch_is_merged_as_it_is(tiny):
    patch = Patch(copy.deepcopy(tiny), lambda name: "layers.1" in name)
    assert all(torch.equal(tensor, dict(tiny.named_parameters())[n]) for n, tensor in patch.merged().items())
    assert patch.merged().keys() == patch.parameters().keys()


# ---- AdaLoRA


def test_adalora_trains_as_peft_does(tiny):
    """The same steps with PEFT's own model: its forward pass adds the penalty, its allocator is called apart."""
    rung = AdaLoRA(rank=2, initial_rank=6, start=0.2, end=0.3, orthogonality=0.3)
    schedule = TrainConfig(
        epochs=4,
        batch_size=16,
        learning_rate=1e-2,
        lr_scheduler="constant",
        warmup_ratio=0.0,
        max_grad_norm=1e9,
        precision="float32",
    )
    part = rows(3, 16)
    model = copy.deepcopy(tiny)
    torch.manual_seed(3)
    change = rung.change(Engine(model), None)
    train(model, change, part, TrainConfig(**{**vars_of(schedule), "epochs": 10}))

    other = copy.deepcopy(tiny)
    torch.manual_seed(3)
    config = peft().AdaLoraConfig(
        target_r=2, init_r=6, lora_alpha=24, orth_reg_weight=0.3, target_modules="all-linear", task_type="CAUSAL_LM",
        total_step=10, tinit=2, tfinal=3,
    )  # fmt: skip
    with quiet_peft():
        wrapper = peft().get_peft_model(other, config)
    parameters = [p for p in other.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0, fused=True)
    other.train()
    supervised = sum(row.supervised for row in part)
    for step in range(1, 11):
        total = plain_loss(other, part) / supervised
        # PEFT adds the penalty to any output that has a loss
        penalty = wrapper.base_model(IDS, labels=IDS).loss - other(IDS, labels=IDS).loss
        (total + penalty).backward()
        optimizer.step()
        wrapper.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    ours = {n.replace(change.name, "default"): p for n, p in change.parameters().items()}
    theirs = {n: p for n, p in other.named_parameters() if n in ours}
    assert ours.keys() == theirs.keys()
    for n, p in ours.items():
        torch.testing.assert_close(p, theirs[n].detach(), atol=2e-3, rtol=1e-2)
    kept = sum(int((p != 0).sum()) for n, p in ours.items() if "lora_E" in n)
    assert kept == 2 * 14
    assert kept == sum(map(sum, wrapper.peft_config["default"].rank_pattern.values()))


def vars_of(schedule):
    from dataclasses import asdict

    return asdict(schedule)


def test_adalora_is_written_with_the_ranks_it_kept(tiny, tmp_path):
    model = copy.deepcopy(tiny)
    change = AdaLoRA(rank=2, initial_rank=6).change(Engine(model), None)
    assert isinstance(change, AdaLora)
    train(model, change, rows(4, 16), TrainConfig(epochs=4, batch_size=4, learning_rate=1e-2))
    folder = written(change, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert sum(config["rank_pattern"].values()) >= 2 * 14
    assert len(set(config["rank_pattern"].values())) > 1
    other = copy.deepcopy(tiny)
    torch.testing.assert_close(
        logits(other, attach(other, folder, fingerprint=BASE)), logits(model, change), atol=1e-5, rtol=1e-5
    )


def test_adalora_refuses_to_start_from_what_it_cannot_hold(tiny, tmp_path):
    for name, message in (("dora", "use_dora"), ("rslora", "rank 6 above 5"), ("ia3", "IA3")):
        folder = written(random(name, copy.deepcopy(tiny)), tmp_path / name)
        change = AdaLoRA(rank=2, initial_rank=5).change(Engine(copy.deepcopy(tiny)), None)
        with pytest.raises(ArtifactError, match=message) as caught:
            change.read(folder)
        assert caught.value.code == "adapter-mismatch"


# ---- LLaMA-Adapter


def test_llama_adapter_scores_and_decodes_as_a_plain_forward_pass_does(tiny):
    """Through a shared prompt beginning, left padding, tree attention and a cache."""
    from rung.engines.base import Sampling
    from rung.engines.label_trie import build_trie
    from rung.engines.torch_decoding import decode
    from rung.engines.tree_scoring import score_all, score_best

    model = copy.deepcopy(tiny)
    random("llama-adapter", model).enable()
    prompts = [(5, 6, 7, 8, *range(20, 20 + n)) for n in (1, 4, 2)]
    continuations = ((3, 4), (3, 9, 2), (11,))
    wanted = torch.tensor([[plain(model, p, c) for c in continuations] for p in prompts])
    trie = build_trie(continuations)
    torch.testing.assert_close(torch.from_numpy(score_all(model, prompts, trie)), wanted, atol=1e-5, rtol=1e-5)
    ones = torch.ones(3).numpy()
    best, _ = score_best(model, prompts, trie, ones, 0 * ones)
    assert best.argmax(1).tolist() == wanted.argmax(1).tolist()

    class Tokens:
        eos_ids = frozenset()

        def ends(self, stop):
            return self.eos_ids

        def decode(self, tokens, **_):
            return " ".join(map(str, tokens))

    from rung.progress import QUIET

    found = decode(
        model, Tokens(), prompts, Sampling(max_tokens=5), None, logprobs=False, progress=QUIET, cancelled=None
    )
    for prompt, generation in zip(prompts, found, strict=True):
        tokens = list(prompt)
        for _ in range(5):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert generation.text == " ".join(map(str, tokens[len(prompt) :]))


def plain(model, prompt, continuation):
    logprobs = model(torch.tensor([[*prompt, *continuation]])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(continuation))


def test_llama_adapter_keeps_the_base_model_behind_a_closed_gate():
    base = llama(attention_bias=True, head_dim=16)
    with torch.no_grad():
        for layer in base.model.layers:
            layer.self_attn.o_proj.bias.fill_(1.0)
    change = fresh("llama-adapter", model := copy.deepcopy(base))
    torch.testing.assert_close(logits(model, change), logits(base))


KINDS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite"]


@pytest.mark.parametrize("kind", KINDS)
def test_llama_adapter_attends_with_the_layers_own_queries(kind, monkeypatch):
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    from rung.training import adapters as adaption_prompt

    assert set(KINDS) == set(adaption_prompt.MODEL_TYPES)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.3)
    seen, made = [], []
    sdpa = AttentionInterface()["sdpa"]

    def recording(module, query, key, value, mask, **options):
        seen.append((query, options["scaling"]))
        return sdpa(module, query, key, value, mask, **options)

    AttentionInterface.register("recording", recording)
    model.set_attn_implementation("recording")
    real = adaption_prompt._queries
    monkeypatch.setattr(adaption_prompt, "_queries", lambda *given: made.append(real(*given)) or made[-1])
    change = adaption_prompt.AdaptionPrompt(model, 3, 2)
    for p in change.parameters().values():
        p.data.add_(0.5)
    change.enable()
    with torch.no_grad():
        model(IDS)
    assert len(made) == len(seen) == 2
    for (query, scaling), own, layer in zip(seen, made, model.model.layers, strict=True):
        assert torch.equal(query, own)
        assert scaling == layer.self_attn.scaling


def test_llama_adapter_is_the_formula(tiny):
    model = copy.deepcopy(tiny)
    change = random("llama-adapter", model)
    attention, inputs = model.model.layers[1].self_attn, {}
    change.enable()
    out, _ = attention_output(model, attention, inputs)
    change.disable()
    base, _ = attention_output(model, attention, inputs)
    prompt, gate = (p.detach() for p in change.parameters().values())
    query = attention.q_proj(inputs["hidden_states"]).view(2, 6, 4, 8).transpose(1, 2)
    cos, sin = (t[:, None] for t in inputs["position_embeddings"])
    turned = torch.cat([-query[..., 4:], query[..., :4]], -1)
    query = query * cos + turned * sin
    keys = attention.k_proj(prompt).view(1, 3, 2, 8).transpose(1, 2).repeat_interleave(2, 1)
    values = attention.v_proj(prompt).view(1, 3, 2, 8).transpose(1, 2).repeat_interleave(2, 1)
    read = gate * softmax(query @ keys.mT / 8**0.5, -1) @ values
    wanted = base + attention.o_proj(read.transpose(1, 2).reshape(2, 6, 32))
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)


def attention_output(model, attention, inputs):
    outputs = []
    before = attention.register_forward_pre_hook(lambda m, args, kwargs: inputs.update(kwargs), with_kwargs=True)
    after = attention.register_forward_hook(lambda m, i, output: outputs.append(output))
    model(IDS)
    before.remove()
    after.remove()
    return outputs[0]


# ---- where methods go in a model


def test_methods_refuse_architectures_they_do_not_know(tiny):
    from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97))
    assert ia3_targets(gpt2) == (["c_attn", "mlp.c_proj"], ["mlp.c_proj"])
    assert ia3_targets(tiny) == (["k_proj", "v_proj", "down_proj"], ["down_proj"])
    change = BottleneckAdapter(size=4, placement="houlsby").change(Engine(gpt2), None)
    assert len(change.parameters()) == 2 * 2 * 4
    with pytest.raises(EngineError, match="gpt2") as caught:
        LlamaAdapter(top_layers=1).change(Engine(gpt2), None)
    assert caught.value.code == "tuning-unsupported"
    mamba = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=97, state_size=4))
    for rung in (IA3(), BottleneckAdapter(), LlamaAdapter()):
        with pytest.raises(EngineError, match="mamba"):
            rung.change(Engine(mamba), None)


@every_method
def test_bf16_models_train_adapters_in_fp32(tiny, name):
    model = copy.deepcopy(tiny).to(torch.bfloat16)
    change = fresh(name, model)
    assert {p.dtype for p in change.parameters().values()} == {torch.float32}
    course = train(model, change, rows(4, 16), TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2))
    assert min(loss for _, loss in course.losses[4:]) < course.losses[0][1]
    assert logits(model, change).dtype == torch.bfloat16


def test_a_damaged_bottleneck_folder_is_refused(tiny, tmp_path):
    folder = written(fresh("bottleneck", copy.deepcopy(tiny)), tmp_path / "adapter")
    for values in ({"size": -1, "placement": "pfeiffer"}, {"size": 5, "placement": "everywhere"}):
        (folder / "bottleneck.json").write_text(json.dumps(values))
        with pytest.raises(ArtifactError) as caught:
            attach(tiny, folder, fingerprint=BASE)
        assert caught.value.code == "adapter-mismatch"
    shutil.rmtree(folder)


# ---- QLoRA


def test_qlora_says_what_it_needs(monkeypatch):
    from types import SimpleNamespace

    from rung.rungs import lora as qlora

    monkeypatch.setattr(qlora, "find_spec", lambda name: None if name == "bitsandbytes" else name)
    assert "uv pip install bitsandbytes" in QLoRA().reason_against(SimpleNamespace(engine="auto"))
    monkeypatch.setattr(qlora, "find_spec", lambda name: name)
    assert "openvino" in QLoRA().reason_against(SimpleNamespace(engine="openvino"))
    artifact = SimpleNamespace(engine="auto", model="embedded")
    assert QLoRA().reason_against(artifact) == ""
    assert "target_modules" in QLoRA(target_modules=["q_proj"], continue_from="run").reason_against(artifact)
    assert "dropout" in QLoRA(dropout=0.1, target_parameters=["mlp.experts.down_proj"]).reason_against(artifact)
    with pytest.raises(ConfigError, match="nothing in the model is named 'qproj'"):
        QLoRA(target_modules=["qproj"]).reason_against(artifact)


def test_a_quantized_base_is_opened_by_torch_alone():
    from rung.engines.opening import open_engine
    from rung.engines.torch_engine import _quantized

    with pytest.raises(ConfigError) as caught:
        open_engine("embedded", "openvino", quantization="nf4")
    assert caught.value.code == "engine-mismatch"
    with pytest.raises(EngineError) as caught:
        _quantized("int3", "cpu", torch.float32)
    assert caught.value.code == "engine-mismatch"


def test_an_artifact_keeps_the_quantization_of_its_base(zero, tiny, tmp_path):
    from dataclasses import replace

    from rung.artifact.artifact import Artifact
    from rung.artifact.parts import Weights

    folder = written(fresh("lora", copy.deepcopy(tiny)), tmp_path / "adapter")
    for base in ("", "nf4"):
        saved = replace(zero, weights=Weights("qlora", folder, 7, base)).save(tmp_path / f"artifact{base}")
        loaded = Artifact.load(saved)
        assert loaded.weights == Weights("qlora", saved / "adapter", 7, base)
        assert loaded.engine == ("torch" if base else zero.engine)


def quantized(folder):
    """The torch engine's model in 4 bits."""
    from transformers import AutoModelForCausalLM

    from rung.engines.torch_engine import _quantized, keep_gradients

    options = _quantized("nf4", "cpu", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    keep_gradients(model)
    return model


def test_gradients_pass_through_a_base_in_4_bits_after_it_answered(tmp_path):
    """As through the same weights in 32 bits."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    model, plain = quantized(tmp_path), llama(hidden_size=64, intermediate_size=128)
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            values = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = values.float()
    found = []
    for one in (model, plain):
        with torch.no_grad():
            logits(one)  # answers
        change = fresh("lora", one)
        change.enable()
        trained = list(change.parameters().values())
        with torch.no_grad():
            for i, parameter in enumerate(trained):
                torch.manual_seed(i)
                parameter.copy_(0.1 * torch.randn_like(parameter)).requires_grad_(True)
        one.train()
        AnswerLoss(one)(rows(3, 5)).backward()
        found.append([p.grad for p in trained])
    for one, other in zip(*found, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_qlora_trains_and_comes_back_on_the_quantized_base(tiny, tmp_path):
    pytest.importorskip("bitsandbytes")
    llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "model")
    model, other = (quantized(tmp_path / "model") for _ in range(2))
    plain_logits = logits(model)
    torch.manual_seed(3)
    change = QLoRA(rank=4).change(Engine(model), None)
    train(model, change, rows(4, 16), TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2))
    assert torch.equal(logits(model), plain_logits)
    on = logits(model, change)
    assert not torch.allclose(on, plain_logits, atol=1e-3)
    again = attach(other, written(change, tmp_path / "adapter"), fingerprint=BASE)
    assert torch.equal(logits(other, again), on)
    with pytest.raises(TrainingError) as caught:
        change.merged()
    assert caught.value.code == "export-unsupported"
    change.remove()
    assert torch.equal(logits(model), plain_logits)
