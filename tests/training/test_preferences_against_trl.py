"""Losses on preferences and rewards against TRL: same rows, order, adapter and optimizer give the same course."""

import gc
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from toys import llama

from rung.data.rows import Example
from rung.engines.base import Generation, Sampling
from rung.engines.opening import open_torch
from rung.training.config import TrainConfig
from rung.training.loop import plan_batches, train
from rung.training.peft import PeftAdapter, peft
from rung.training.preferences import (
    AnswerVerdict,
    AnswerVerdictLoss,
    Pair,
    PairLoss,
    dpo,
    orpo,
    sequence_logprobs,
    simpo,
)
from rung.training.reward_model import BradleyTerryLoss, RewardHead
from rung.training.rewards import Question, RewardLoss

STEPS, BATCH, BETA, SMOOTHING = 50, 4, 0.5, 0.1
SCHEDULE = TrainConfig(
    epochs=1, batch_size=BATCH, learning_rate=1e-3, lr_scheduler="constant", warmup_ratio=0.0, weight_decay=0.01,
    precision="float32",
)  # fmt: skip
ours_and_trls = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own


def config():
    return peft().LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def some_pairs(count, *, equal=False):
    """Rows of random tokens; with `equal`, better answers have three tokens each."""
    rng = random.Random(0)

    def some(low, high):
        return tuple(rng.randrange(3, 97) for _ in range(rng.randint(low, high)))

    head = some(6, 6)
    made = []
    for i in range(count):
        better = some(3, 3) if equal else some(1, 6)
        made.append(Pair(head + some(1, 9), (better, some(1, 6)), f"row {i}"))
    return [made[i] for batch in plan_batches(made, SCHEDULE) for i in batch]


def keep_order(monkeypatch):
    monkeypatch.setattr(
        "rung.training.loop.epoch_batches",
        lambda part, size, rng: (list(range(i, i + size)) for i in range(0, len(part), size)),
    )


def ours(model, rows, make, monkeypatch):
    keep_order(monkeypatch)
    torch.manual_seed(0)
    change = PeftAdapter(model, config())
    rows = [replace(row, reference=values) for row, values in zip(rows, sequence_logprobs(model, rows), strict=True)]
    try:
        course = train(model, change, rows, SCHEDULE, loss=make(model))
    finally:
        change.remove()
    return [loss for _, loss in course.losses], course.norms


def theirs(
    trainer_type, config_type, model, columns, folder, *, lora=None, options=None, after=lambda model: None, **settings
):
    """Train with TRL; the columns hold tokens already. `after` gets the model with its adapter."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer

    class InOrder(trainer_type):
        def _get_train_sampler(self, dataset=None):
            if hasattr(self, "reward_funcs"):  # it has an order of its own, with every prompt several times
                return super()._get_train_sampler(dataset)
            return SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

        def tokenize_row(self, feature, model=None):
            return feature

    steps, rate = settings.pop("max_steps", STEPS), settings.pop("learning_rate", SCHEDULE.learning_rate)
    arguments = config_type(
        output_dir=str(folder), max_steps=steps, logging_steps=1,
        learning_rate=rate, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.01,
        max_grad_norm=1.0, optim="adamw_torch_fused", report_to="none", save_strategy="no", bf16=False, fp16=False,
        gradient_checkpointing=False, disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        remove_unused_columns=False, **{"per_device_train_batch_size": BATCH} | settings,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(open_torch("embedded").files.folder, local_files_only=True)
    torch.manual_seed(0)
    wrapped = peft().get_peft_model(model, lora or config())  # here, as the trainer sets a seed of its own
    after(wrapped)
    trainer = InOrder(
        model=wrapped, args=arguments, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer,
        **options or {},
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    del trainer
    gc.collect()  # what it leaves open is collected here, where warnings are ignored
    return [entry["loss"] for entry in logs], [float(entry["grad_norm"]) for entry in logs]


def compare(one, other, steps=STEPS):
    (losses, norms), (wanted, wanted_norms) = one, other
    assert len(losses) == len(wanted) == steps
    assert losses == pytest.approx(wanted, abs=1e-4)
    assert norms == pytest.approx(wanted_norms, abs=1e-3, rel=1e-3)


def model():
    return llama(initializer_range=0.1).train()


KINDS = {  # the loss and its weight of likelihood, as TRL sets them; TRL's `sigmoid` ignores the smoothing of cdpo
    "sigmoid": ("sigmoid", 0.0, {"loss_type": ["sigmoid"]}),
    "ipo": ("ipo", 0.0, {"loss_type": ["ipo"]}),
    "hinge": ("hinge", 0.0, {"loss_type": ["hinge"]}),
    "robust": ("robust", 0.0, {"loss_type": ["robust"], "label_smoothing": SMOOTHING}),
    "sigmoid_norm": ("sigmoid_norm", 0.0, {"loss_type": ["sigmoid_norm"]}),
    "likelihood": ("sigmoid", 1.0, {"loss_type": ["sigmoid", "sft"]}),
}


@ours_and_trls
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] if k != "likelihood" else []) for k in KINDS]
)
def test_fifty_steps_of_dpo(kind, tmp_path, monkeypatch):
    from trl import DPOConfig, DPOTrainer

    name, nll, settings = KINDS[kind]
    rows = some_pairs(STEPS * BATCH, equal=kind == "likelihood")  # TRL takes the mean over the batch's tokens
    columns = {
        "prompt_ids": [list(row.prompt) for row in rows],
        "chosen_ids": [list(row.completions[0]) for row in rows],
        "rejected_ids": [list(row.completions[1]) for row in rows],
    }
    first = ours(model(), rows, lambda m: PairLoss(m, objective=dpo(name, BETA, SMOOTHING), nll=nll), monkeypatch)
    compare(first, theirs(DPOTrainer, DPOConfig, model(), columns, tmp_path, beta=BETA, max_length=None, **settings))


@ours_and_trls
@pytest.mark.slow
def test_fifty_steps_of_kto(tmp_path, monkeypatch):
    from trl import KTOConfig, KTOTrainer

    answers = some_pairs(STEPS * BATCH)
    # TRL takes the answer of the row before, within the batch.
    before = [answers[i - 1 if i % BATCH else i + BATCH - 1].completions[0] for i in range(len(answers))]
    good = [i % 3 > 0 for i in range(len(answers))]
    rows = [
        AnswerVerdict(row.prompt, (row.completions[0], other), row.source, verdict)
        for row, other, verdict in zip(answers, before, good, strict=True)
    ]
    columns = {
        "prompt_ids": [list(row.prompt) for row in rows],
        "completion_ids": [list(row.completions[0]) for row in rows],
        "KL_completion_ids": [list(row.completions[1]) for row in rows],
        "label": good,
    }
    first = ours(model(), rows, lambda m: AnswerVerdictLoss(m, beta=BETA, good_weight=1.0, bad_weight=1.5), monkeypatch)
    settings = {"beta": BETA, "desirable_weight": 1.0, "undesirable_weight": 1.5, "max_length": None}
    compare(first, theirs(
        KTOTrainer, KTOConfig, model(), columns, tmp_path, train_sampling_strategy="sequential", **settings
    ))  # fmt: skip


def whole(row, answer):
    tokens = [*row.prompt, *answer]
    return tokens, [1] * len(tokens), [*([-100] * len(row.prompt)), *answer]


@ours_and_trls
@pytest.mark.slow
@pytest.mark.parametrize("name", ["orpo", "simpo", "cdpo"])
def test_fifty_steps_without_a_reference(name, tmp_path, monkeypatch):
    """The smoothing of cdpo is compared with CPO's, whose loss is that of DPO without the reference."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class AnswerORPO(ORPOTrainer):
        """TRL adds the likelihood of prompt and answer; the paper that of the answer."""

        def concatenated_forward(self, model, batch):
            chosen, rejected, *logits, _ = super().concatenated_forward(model, batch)
            return chosen, rejected, *logits, -chosen.mean()

    rows = some_pairs(STEPS * BATCH)
    texts = {"prompt": ["p"] * len(rows), "chosen": ["c"] * len(rows), "rejected": ["r"] * len(rows)}
    columns = dict(texts)
    for side, number in (("chosen", 0), ("rejected", 1)):
        made = [whole(row, row.completions[number]) for row in rows]
        for key, values in zip(("input_ids", "attention_mask", "labels"), zip(*made, strict=True), strict=True):
            columns[f"{side}_{key}"] = list(values)
    make, trainer, arguments, settings = {
        "orpo": (lambda m: PairLoss(m, objective=orpo(BETA), nll=1.0), AnswerORPO, ORPOConfig, {}),
        "simpo": (
            lambda m: PairLoss(m, objective=simpo(BETA, 0.6)), CPOTrainer, CPOConfig,
            {"loss_type": "simpo", "simpo_gamma": 0.3, "cpo_alpha": 0.0},
        ),
        "cdpo": (
            lambda m: PairLoss(m, objective=without_reference(dpo("cdpo", BETA, SMOOTHING))), CPOTrainer, CPOConfig,
            {"loss_type": "sigmoid", "label_smoothing": SMOOTHING, "cpo_alpha": 0.0},
        ),
    }[name]  # fmt: skip
    first = ours(model(), rows, make, monkeypatch)
    compare(first, theirs(trainer, arguments, model(), columns, tmp_path, beta=BETA, max_length=512, **settings))


def without_reference(objective):
    return lambda scores: objective(replace(scores, reference=torch.zeros_like(scores.reference)))


# ---- reward models


@ours_and_trls
@pytest.mark.slow
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_fifty_steps_of_a_reward_model(margin, tmp_path, monkeypatch):
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    center, head = 0.01, torch.randn(32, generator=torch.Generator().manual_seed(1)) / 6
    rows = some_pairs(STEPS * BATCH)
    keep_order(monkeypatch)
    base = model()
    torch.manual_seed(0)
    change = RewardHead(base, PeftAdapter(base, config()))
    with torch.no_grad():
        change.head.copy_(head)
    loss = BradleyTerryLoss(base, head=change.head, margin=margin, center=center)
    course = train(base, change, rows, SCHEDULE, loss=loss)

    other = model()
    settings = other.config.to_dict() | {"num_labels": 1, "pad_token_id": 0}
    judge = LlamaForSequenceClassification(type(other.config)(**settings))
    judge.model.load_state_dict(other.model.state_dict())

    def with_head(wrapped):
        for name, parameter in wrapped.named_parameters():
            if "score" in name:
                parameter.data.copy_(head)

    columns = {
        "chosen_ids": [[*row.prompt, *row.completions[0]] for row in rows],
        "rejected_ids": [[*row.prompt, *row.completions[1]] for row in rows],
        "margin": [margin] * len(rows),
    }
    names = sorted({name.split(".")[-1] for name, m in judge.model.named_modules() if isinstance(m, torch.nn.Linear)})
    lora = peft().LoraConfig(
        r=8, lora_alpha=16, target_modules=names, task_type="SEQ_CLS", modules_to_save=["score"]
    )  # fmt: skip
    wanted = theirs(
        RewardTrainer, RewardConfig, judge, columns, tmp_path, lora=lora, after=with_head, max_length=None,
        center_rewards_coefficient=center,
    )  # fmt: skip
    compare(([value for _, value in course.losses], course.norms), wanted)


# ---- rewards: the same sampled answers, with the same rewards

RL_STEPS, PROMPTS, GROUP, LONGEST = 20, 3, 4, 8
RL_RATE = 3e-4  # at a larger one AdamW blows rounding errors up to 2e-3 of a norm
ADVANTAGES = {  # TRL's names; its penalty of RLOO is part of the reward, so only GRPO's is compared
    "rloo": ("rloo", 0.0, {"normalize_advantages": False}),
    "grpo": ("grpo", 0.0, {"loss_type": "grpo", "scale_rewards": "group"}),
    "grpo with a penalty": ("grpo", 0.3, {"loss_type": "grpo", "scale_rewards": "group"}),
    "dr_grpo": ("dr_grpo", 0.0, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dapo": ("dapo", 0.0, {"loss_type": "dapo", "scale_rewards": "group"}),
}


class Rollouts:
    """Sampled answers to some prompts, in the order in which both sides ask for them."""

    def __init__(self):
        rng = random.Random(0)

        def some(low, high):
            return tuple(rng.randrange(3, 97) for _ in range(rng.randint(low, high)))

        self.prompts = [some(2, 9) for _ in range(RL_STEPS * PROMPTS)]
        self.answers = [some(1, LONGEST) for _ in range(RL_STEPS * PROMPTS * GROUP)]
        self.rewards = [rng.choice([0.0, 0.25, 1.0]) for _ in self.answers]
        self.rewards[:GROUP] = [1.0] * GROUP  # a group that says nothing

    def generate(self, requests):
        """The answers to a step's requests, as our engine gives them; a text is the answer's number."""
        first, self.given = self.given, self.given + len(requests)
        return [
            Generation(str(i), 1, len(self.answers[i]), "stop", 0.0, (0.0,), tokens=self.answers[i])
            for i in range(first, self.given)
        ]

    given = 0


@ours_and_trls
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "grpo with a penalty" else [pytest.mark.slow]) for n in ADVANTAGES]
)
def test_twenty_steps_on_the_same_answers(name, tmp_path, monkeypatch):
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    advantage, beta, settings = ADVANTAGES[name]
    given, base = Rollouts(), model()
    keep_order(monkeypatch)
    torch.manual_seed(0)
    change = PeftAdapter(base, config())
    engine = SimpleNamespace(model=base, generate=given.generate)
    example = Example("", {}, ("",), "")
    loss = RewardLoss(
        engine, change, "live", {"metric": lambda asked, texts: [given.rewards[int(text)] for text in texts]},
        {"metric": 1.0}, {}, advantage, GROUP, Sampling(LONGEST, 1.0), beta, 0,
    )  # fmt: skip
    rows = [Question(prompt, ((1,),), f"row {i}", example=example, room=1) for i, prompt in enumerate(given.prompts)]
    course = train(base, change, rows, replace(SCHEDULE, batch_size=PROMPTS, learning_rate=RL_RATE), loss=loss)

    trainer, arguments = (RLOOTrainer, RLOOConfig) if advantage == "rloo" else (GRPOTrainer, GRPOConfig)

    class Fixed(trainer):
        def _generate(self, prompts):
            numbers = [int(prompt) * GROUP + i % GROUP for i, prompt in enumerate(prompts)]
            ids = [list(given.prompts[int(prompt)]) for prompt in prompts], [list(given.answers[i]) for i in numbers]
            texts = [str(i) for i in numbers]
            return (*ids, texts) if trainer is RLOOTrainer else (*ids, None, texts, None, {}, None, [])

    def reward(completions, **_):
        return [given.rewards[int(text)] for text in completions]

    wanted = theirs(
        Fixed, arguments, model(), {"prompt": [str(i) for i in range(len(given.prompts))]}, tmp_path,
        options={"reward_funcs": reward}, max_steps=RL_STEPS, learning_rate=RL_RATE,
        per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
        max_completion_length=LONGEST, shuffle_dataset=False, beta=beta, **settings,
    )  # fmt: skip
    compare(([value for _, value in course.losses], course.norms), wanted, RL_STEPS)
    assert max(wanted[1]) > 0.01
