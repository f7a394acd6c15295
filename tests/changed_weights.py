"""Artifacts whose weights were changed at random, for what saves, merges, exports and serves them."""

import torch

from rung.artifact.parts import Weights
from rung.engines.opening import open_torch
from rung.training.changes import keep


def tuned(artifact, make, method):
    """Return the artifact with a random change of its weights, which `make` puts on the model with rank 4."""
    engine = open_torch(artifact.model)
    engine.make_room(method.upper())
    torch.manual_seed(1)
    change = make(engine.model)
    for parameter in change.parameters().values():
        parameter.data += 0.2 * torch.randn_like(parameter)
    folder = keep(change, engine.files.fingerprint)
    change.remove()
    return artifact.step(method, {"rank": 4}, weights=Weights(method, folder, 10))
