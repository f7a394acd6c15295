"""The loop against TRL's SFTTrainer: same rows, order, adapter and optimizer give the same course."""

import copy
import gc
import random

import pytest
import torch

from rung.engines.opening import open_torch
from rung.training.config import TrainConfig
from rung.training.examples import TokenizedExample, tokenize
from rung.training.loop import plan_batches, train
from rung.training.peft import PeftAdapter, peft

STEPS, BATCH = 50, 4
SCHEDULE = TrainConfig(
    epochs=1,
    batch_size=BATCH,
    learning_rate=2e-4,
    lr_scheduler="constant",
    warmup_ratio=0.0,
    weight_decay=0.01,
    precision="float32",
)


def config():
    return peft().LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def ours(model, rows, schedule):
    torch.manual_seed(0)
    change = PeftAdapter(model, config())
    try:
        course = train(model, change, rows, schedule)
    finally:
        change.remove()
    return [loss for _, loss in course.losses], course.norms


def theirs(model, rows, schedule, folder, tokenizer):
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    order = [rows[i] for batch in plan_batches(rows, schedule) for i in batch]
    masks = [[int(any(a <= i < b for a, b in row.spans)) for i in range(len(row))] for row in order]
    data = Dataset.from_dict({"input_ids": [list(row.tokens) for row in order], "completion_mask": masks})
    settings = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=schedule.batch_size, max_steps=STEPS, logging_steps=1,
        learning_rate=schedule.learning_rate, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.01,
        max_grad_norm=1.0, optim="adamw_torch_fused", report_to="none", save_strategy="no", bf16=False, fp16=False,
        gradient_checkpointing=False, completion_only_loss=True, max_length=None, disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    torch.manual_seed(0)
    wrapped = peft().get_peft_model(model, config())
    trainer = InOrder(model=wrapped, args=settings, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    del trainer
    gc.collect()  # what it leaves open is collected here, where warnings are ignored
    return [entry["loss"] for entry in logs], [float(entry["grad_norm"]) for entry in logs]


def compare(one, other):
    (losses, norms), (wanted, wanted_norms) = one, other
    assert len(losses) == len(wanted) == STEPS
    assert losses == pytest.approx(wanted, abs=1e-3)
    assert norms == pytest.approx(wanted_norms, abs=1e-3, rel=1e-3)
    assert losses[-1] < losses[0]


def some_rows(vocabulary, count):
    rng = random.Random(0)

    def some(low, high):
        return tuple(rng.randrange(3, vocabulary) for _ in range(rng.randint(low, high)))

    head = some(12, 12)
    return [TokenizedExample.answered(head + some(2, 12), some(1, 8), f"row {i}") for i in range(count)]


@pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own
def test_fifty_steps_of_a_tiny_model(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model, rows = LlamaForCausalLM(shape), some_rows(97, STEPS * BATCH)
    tokenizer = _tokenizer()
    compare(ours(copy.deepcopy(model), rows, SCHEDULE), theirs(model, rows, SCHEDULE, tmp_path, tokenizer))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_fifty_steps_of_the_embedded_model(zero, data, tmp_path):
    engine = open_torch("embedded")
    rows = tokenize(zero, engine, data.train)
    rows = (rows * (1 + STEPS * BATCH // len(rows)))[: STEPS * BATCH]
    first = ours(engine.use(None), rows, SCHEDULE)
    compare(first, theirs(copy.deepcopy(engine.use(None)), rows, SCHEDULE, tmp_path, _tokenizer()))


def _tokenizer():
    """TRL asks for a tokenizer; the rows are tokens already, and it pads with the embedded model's."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(open_torch("embedded").files.folder, local_files_only=True)
