from dataclasses import replace

import pytest
import torch
from tests.rendered import messages_of
from tests.rungs.trained import killed_and_resumed

from rung.artifact.artifact import Artifact
from rung.artifact.rendering import prompt_limit
from rung.engines.base import GenerateRequest, Sampling
from rung.engines.opening import open_torch
from rung.errors import TrainingError
from rung.machine import this_machine
from rung.rungs import LoRA, PrefixTuning, PromptTuning, PTuning, build, get
from rung.rungs.costs import sizes
from rung.training.peft import peft, quiet_peft

QUICK = {"virtual_tokens": 6, "epochs": 2, "batch_size": 16}
RUNG = {
    "prompt-tuning": PromptTuning(**QUICK),
    "p-tuning": PTuning(**QUICK, encoder="lstm", encoder_size=8),
    "prefix-tuning": PrefixTuning(**QUICK),
    "prefix-projected": PrefixTuning(**QUICK, projection=8),
}


@pytest.fixture(scope="module", params=RUNG)
def tuned(request, tiny_zero, data):
    return RUNG[request.param].fit(tiny_zero, data)


def vectors(artifact):
    from safetensors.torch import load_file

    (name, tensor), = load_file(artifact.weights.adapter / "adapter_model.safetensors").items()  # fmt: skip
    assert name == "prompt_embeddings"
    return tensor


def in_peft(artifact):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(open_torch(artifact.model).files.folder, dtype=torch.float32)
    with quiet_peft():
        return peft().PeftModel.from_pretrained(base, artifact.weights.adapter).eval()


def test_a_rung_learns_and_the_base_stays(tiny_zero, data, tuned):
    engine = open_torch(tiny_zero.model)
    losses = tuned.settings[tuned.path[-1]]["losses"]
    assert losses[-1][1] < losses[0][1]
    from safetensors.torch import load_file

    base = load_file(engine.files.folder / "model.safetensors")
    engine.make_room("none")  # for the adapters that other tests left on the model
    now = dict(engine.use(None).named_parameters())
    assert set(base) == set(now)
    assert all(torch.equal(now[name], tensor) for name, tensor in base.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in engine.model.modules())


def test_trainable_parameters_are_what_was_trained(tuned):
    layers, heads, size, hidden, n = 2, 2, 8, 32, 6
    width = 2 * layers * heads * size
    lstm = sum(2 * 4 * (8 * (read + 8) + 2 * 8) for read in (hidden, 16))  # two layers, two directions, four gates
    wanted = {
        (PromptTuning.name, None): n * hidden,
        (PTuning.name, None): n * hidden + lstm + (16 * 16 + 16) + (16 * hidden + hidden),
        (PrefixTuning.name, None): n * width,
        (PrefixTuning.name, 8): n * heads * size + (heads * size * 8 + 8) + (8 * width + width),
    }
    settings = tuned.settings[tuned.path[-1]]
    assert tuned.weights.trainable_parameters == wanted[tuned.path[-1], settings.get("projection")]


def test_answers_are_those_of_peft_and_survive_saving(tuned, data, tmp_path):
    engine, model, rows = open_torch(tuned.model), in_peft(tuned), data.test[:4]
    prompts = messages_of(tuned, rows)
    requests = [GenerateRequest(p, Sampling(max_tokens=5), adapter=tuned.weights.reference) for p in prompts]
    made = engine.generate(requests)
    for request, one in zip(requests, made, strict=True):
        ids = list(engine.tokens(request.prompt))
        for _ in range(one.completion_tokens):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert engine.tokenizer.decode(ids[len(engine.tokens(request.prompt)) :]) == one.text
    assert "".join(engine.stream(requests[0])) == made[0].text
    assert made[0].prompt_tokens == len(engine.tokens(requests[0].prompt)) + 6
    loaded = Artifact.load(tuned.save(tmp_path / "a"))
    answers = [[(a.text, a.confidence) for a in one.answer(rows)] for one in (tuned, loaded)]
    assert answers[0] == answers[1]
    assert loaded.weights.virtual_tokens == 6


def test_a_prompt_starts_from_the_instruction(tiny_zero, data):
    engine = open_torch(tiny_zero.model)
    head = engine.encode(tiny_zero.prompt.head())
    start = PromptTuning(virtual_tokens=len(head) + 2, epochs=1, learning_rate=0.0).fit(tiny_zero, data)
    ids = torch.tensor([[*head, *head[:2]]])
    assert torch.equal(vectors(start), engine.use(None).get_input_embeddings()(ids)[0])
    before = PrefixTuning(virtual_tokens=3, epochs=1, learning_rate=0.0).fit(tiny_zero, data)
    with torch.no_grad():
        cache = engine.use(None)(input_ids=ids[:, :3], use_cache=True).past_key_values
    wanted = torch.stack([states[0] for layer in cache.layers for states in (layer.keys, layer.values)], 1)
    torch.testing.assert_close(vectors(before).view(3, 4, 2, 8), wanted.permute(2, 1, 0, 3), atol=1e-6, rtol=1e-6)
    nothing = replace(tiny_zero, prompt=replace(tiny_zero.prompt, instruction="", labels=()))
    with pytest.raises(TrainingError) as caught:
        PromptTuning().fit(nothing, data)
    assert caught.value.code == "tuning-unsupported"


def test_a_killed_run_goes_on_with_other_virtual_ids(tiny_zero, data):
    rung = PromptTuning(**QUICK, seed=1)
    whole = rung.fit(tiny_zero, data)
    again = killed_and_resumed(lambda: rung.fit(tiny_zero, data), after=3)
    assert again.settings["prompt-tuning"]["losses"] == whole.settings["prompt-tuning"]["losses"]
    assert torch.equal(vectors(again), vectors(whole))


def test_one_soft_prompt_goes_on_from_another(tiny_zero, data):
    first = PTuning(virtual_tokens=6, epochs=1, learning_rate=1e-3).fit(tiny_zero, data)
    still = {"virtual_tokens": 6, "epochs": 1, "learning_rate": 0.0}
    second = PromptTuning(**still, continue_from=str(first.weights.adapter)).fit(tiny_zero, data)
    assert torch.equal(vectors(second), vectors(first))


def test_virtual_tokens_count_in_context_and_costs(tiny_zero, data, tuned):
    s, machine = sizes(tiny_zero, data), this_machine()
    assert tuned.decoder.row_tokens(tuned, s) == tiny_zero.decoder.row_tokens(tiny_zero, s) + 6
    rung, other = PromptTuning(virtual_tokens=16, epochs=2, batch_size=4), LoRA(epochs=2, batch_size=4)
    ours, theirs = rung.estimate(tiny_zero, data, machine), other.estimate(tiny_zero, data, machine)
    assert ours.row_tokens == theirs.row_tokens + 16
    assert ours.fit_tokens == pytest.approx(theirs.fit_tokens + 16 / 4 * 2 * len(data.train), abs=1)
    engine = open_torch(tiny_zero.model)
    room = tiny_zero.decoder.room
    limit = prompt_limit(replace(tiny_zero, overflow="drop_demonstrations"), engine, room)
    assert prompt_limit(replace(tuned, overflow="drop_demonstrations"), engine, room) == limit - 6
    with pytest.raises(TrainingError) as caught:
        PromptTuning(virtual_tokens=500).fit(tiny_zero, data)
    assert caught.value.code == "context-overflow"


def test_the_registry_builds_them_with_settings_of_the_task(task):
    names = ("prompt-tuning", "p-tuning", "prefix-tuning")
    assert [get(name, task, 3).name for name in names] == list(names)
    settings = {"prefix-tuning": {"virtual_tokens": 9, "projection": 64}, "p-tuning": {"encoder": "lstm"}}
    built = build(names, task.model_copy(update={"rungs": settings}), 3)
    assert [rung.family for rung in built] == ["soft prompts"] * 3
    assert (built[1].encoder, built[2].virtual_tokens, built[2].projection) == ("lstm", 9, 64)


@pytest.mark.slow
def test_prompt_tuning_is_clearly_above_zero_shot(zero, data):
    tuned = PromptTuning().fit(zero, data)
    scores = [
        sum(a.text == e.outputs[0] for a, e in zip(one.answer(data.test, full=False), data.test, strict=True))
        for one in (zero, tuned)
    ]
    assert scores[1] >= scores[0] + 6
