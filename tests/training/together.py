"""What each process does in `test_distributed.py`: python together.py FOLDER. One process computes the references."""

import json
import os
import re
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from toys import llama, rows

from rung.errors import RungError
from rung.progress import Quiet
from rung.training.changes import Patch, keep, plain_parameters
from rung.training.checkpoints import Checkpoints
from rung.training.config import TrainConfig
from rung.training.distributed import World, current, gathered, joined, launched
from rung.training.loop import train
from rung.training.peft import PeftAdapter, peft
from rung.training.targets import all_linear

# 13 rows in batches of 4: the last batch has one row, and the other processes none.
# In float32, as processors with AMX round a product by how many rows it has.
CONFIG = TrainConfig(learning_rate=1e-2, epochs=3, batch_size=4, precision="float32")
GENTLE = replace(CONFIG, learning_rate=1e-3)  # Adam makes much of gradients near zero, which rounding decides


def lora(model):
    torch.manual_seed(3)
    return PeftAdapter(model, peft().LoraConfig(r=4, **all_linear(model), task_type="CAUSAL_LM"))


class Signals(Quiet):
    """Sends this process a signal after five steps."""

    steps = 0

    def advance(self, units=1, note=""):
        self.steps += 1
        if self.steps == 5:
            os.kill(os.getpid(), signal.SIGUSR1)


def in_parts(folder):
    """The random model, saved and loaded in parts."""
    from transformers import AutoConfig

    from rung.models.reference import resolve
    from rung.training.sharded import load_in_parts

    model = load_in_parts(resolve(str(folder)), AutoConfig.from_pretrained(folder), "cpu", torch.float32)
    whole = sum(p.numel() for p in model.parameters())
    held = sum(p.to_local().numel() for p in model.parameters())
    assert held <= whole / current().size + 97 * 32 / 2  # the vocabulary's 97 rows are not even
    return model


def full(model):
    if current().alone:
        return Patch(model, plain_parameters(model).__contains__, trained=True)
    from rung.training.sharded import ShardedWeights

    return ShardedWeights(model)


def trained(folder, *, given=None, spoil=False, make=lora, base=llama, **options):
    """Train a random model and keep the result; give the course and the tensors, or the code of an error."""
    torch.set_num_threads(1)
    model = base()
    change = make(model)
    try:
        result = train(model, change, given or rows(count=13), GENTLE if make is full else CONFIG, **options)
        if spoil:  # as where a process has other weights
            next(iter(change.parameters().values())).data[0] += 1e-6
        keep(change, "base")
    except RungError as error:
        return {"code": error.code, "message": str(error), "exit": error.exit_code}, {}
    course = {"losses": result.losses, "norms": result.norms, "best": result.best, "steps": result.steps}
    found = {re.sub(r"\.a\d+\.", ".", name): gathered(p.detach()).clone() for name, p in change.parameters().items()}
    return course, found


def evaluations(world):
    """Measure the epochs; only the first process may."""
    values = iter([0.5, 0.9, 0.7])
    return lambda: next(values) if world.first else 1 / 0


def scenarios(world, folder):
    last = world.rank == world.size - 1
    kept = Checkpoints(folder / "stopped")
    yield "plain", trained(folder)
    yield "evaluated", trained(folder, evaluate=evaluations(world))
    yield "stopped", trained(folder, checkpoints=kept, stop_after=5)
    yield "resumed", trained(folder, checkpoints=Checkpoints(folder / "from one"))
    for name in ("tied", "untied"):
        yield f"base in parts, {name}", trained(folder, base=partial(in_parts, folder / name))
    others = rows(count=13, seed=1 if last else 0)
    yield "other rows", trained(folder, given=others)
    name = "x" if last else "y"
    yield "other run", trained(folder, checkpoints=Checkpoints(folder / name))
    yield "spoiled", trained(folder, spoil=last)
    # Each process has a part of all weights.
    yield "full", trained(folder, make=full)
    yield "full stopped", trained(folder, make=full, checkpoints=Checkpoints(folder / "full stopped"), stop_after=5)
    yield "full resumed", trained(folder, make=full, checkpoints=Checkpoints(folder / "full from one"))
    kept, signals = Checkpoints(folder / "signalled"), Signals() if last else Quiet()
    yield "signalled", trained(folder, checkpoints=kept, progress=signals)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    with joined(launched()) as here:
        found = dict(scenarios(here, place))
        torch.save({name: tensors for name, (_, tensors) in found.items()}, place / f"{here.rank}.pt")
        text = json.dumps({name: course for name, (course, _) in found.items()})
        (place / f"{here.rank}.json").write_text(text)
    assert World() == World(0, 1, 0)
