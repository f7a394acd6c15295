"""The loss of a batch: packed rows, and the vocabulary projected at supervised places alone, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from rung.engines.tree_scoring import attending, layer_masks
from rung.training.examples import TokenizedExample
from rung.training.packing import ATTENTION, Packed, pack

Loss = Callable[[Sequence[Any]], torch.Tensor]  # of some rows, summed over their supervised places, with gradients
CHUNK = 512  # places whose logits exist at once


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """The summed negative log-likelihood of the supervised tokens, a scalar with gradients.

    Attributes:
        model: the base model, with the change that is trained switched on.
        share: run the beginning that all prompts share once. Loss and gradient are those of the plain computation, so
            long as nothing is random: with dropout or noise it has to be off.
        smoothing: share of the target's probability that goes to all tokens alike (Szegedy et al. 2016,
            https://arxiv.org/abs/1512.00567, section 7).
        noise: NEFTune's alpha: uniform noise on the input embeddings, of size alpha / sqrt(tokens * hidden size)
            (Jain et al. 2024, https://arxiv.org/abs/2310.05914).
    """

    model: Any
    share: bool = True
    smoothing: float = 0.0
    noise: float = 0.0

    def __call__(self, part: Sequence[TokenizedExample]) -> torch.Tensor:
        """Return the loss of a batch."""
        return self.of(pack(part, self.model.device, share=self.share))

    def of(self, packed: Packed) -> torch.Tensor:
        """Return the loss of a packed batch."""
        values, projecting = inputs(self.model, packed), projects(self.model)  # which may try a few tokens: noise later
        with _noise(self.model, packed, self.noise):
            if not projecting:
                logits = self.model(**values, logits_to_keep=packed.supervised).logits[0]
                return _cross_entropy(logits, packed.targets, self.smoothing)
            states = self.model.get_decoder()(**values).last_hidden_state
        return project(self.model, states[0].index_select(0, packed.supervised), packed.targets, self.smoothing)


def inputs(model: Any, packed: Packed) -> dict[str, Any]:
    """Return what the model's forward pass takes to run a packed batch."""
    places = packed.positions
    attend: dict[str, Any] = {"packing": packed}
    if _attention(model) != ATTENTION:
        attend = {"attention_mask": layer_masks(model, packed.dense_mask(), places, places)}
    return {"input_ids": packed.ids, "position_ids": places, "use_cache": False, **attend}


def project(model: Any, states: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the summed cross-entropy of `targets` [S] behind the last hidden states [S, hidden size].

    Logits are made for some places at a time and made again for the gradient, so that their memory is bounded.
    """
    if len(targets) <= CHUNK:
        return _chunk(model, states, targets, smoothing)
    losses = [
        checkpoint(_chunk, model, some, wanted, smoothing, use_reentrant=False)
        for some, wanted in zip(states.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return torch.stack(losses).sum()


def projects(model: Any) -> bool:
    """Say whether `_logits` is how this model makes logits; tried once per model, on a few tokens, nothing random."""
    if not hasattr(model, "rung_projects"):
        ids, training = torch.arange(4, device=model.device)[None], model.training
        model.eval()  # dropout would make both differ, and draw numbers that a run that goes on has drawn already
        with torch.no_grad(), _plain_layers(model):
            ours = _logits(model, model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
            theirs = model(input_ids=ids, use_cache=False).logits
        model.train(training)
        model.rung_projects = ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    return bool(model.rung_projects)


def _chunk(model: Any, states: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return _cross_entropy(_logits(model, states), targets, smoothing)


def _logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.get_output_embeddings()(states)
    config = model.config.get_text_config()
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scale
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = torch.tanh(logits / cap) * cap
    return logits


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=smoothing)


@contextmanager
def _noise(model: Any, packed: Packed, alpha: float) -> Iterator[None]:
    if not alpha:
        yield
        return
    row = packed.scatter // (len(packed.gather) // packed.rows)
    lengths = packed.lengths[row]

    def add(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        size = alpha / (lengths * output.shape[-1]).sqrt()
        return output + (torch.rand_like(output) * 2 - 1) * size[None, :, None]

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def packed_layers(model: Any) -> AbstractContextManager[None]:
    """Attend row by row instead of through a mask over the whole sequence, where the model can."""
    if not model._supports_attention_backend or _attention(model) != "sdpa":
        return nullcontext()
    return attending(model, ATTENTION)


def _plain_layers(model: Any) -> AbstractContextManager[None]:
    return attending(model, "sdpa") if _attention(model) == ATTENTION else nullcontext()


def _attention(model: Any) -> str:
    return str(model.config._attn_implementation)
