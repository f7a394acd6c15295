"""Models whose rows cannot share a forward pass run one row at a time, through the model's plain forward.

Tree attention, left padding and a shared beginning (`tree_scoring`) rest on attention alone telling tokens apart. That
is not so where a layer carries a state from token to token (Mamba, convolutions, linear attention: Qwen3.5, Granite
4-H, LFM2, Falcon-H1), where attention is cut into chunks (Llama 4), or where a model builds its mask in its own way
(gpt-oss). Such models are known by their layers, and all others are tried once on a few tokens: what differs from the
plain forward runs apart.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import transformers

from rung.engines.base import Floats
from rung.engines.label_trie import build_trie
from rung.engines.tree_scoring import CAPPED, LOGIT_BYTES, TOKENS_PER_BATCH, attending, score_all
from rung.errors import EngineError
from rung.models.cache import recall, remember
from rung.models.checkpoint import OTHER_MODEL
from rung.models.hub import first_line

VERSION = 3  # of the trials: raise it with each change, so that models are tried again
TRIED = ("together", "apart", "plain")  # plain: apart, and with plain attention
SCANS = ("NemotronHMamba2Mixer", "Zamba2MambaMixer")  # layers whose scan without its own kernels is wrong
STATELESS = ("GraniteMoeHybridModel", "GraniteMoeHybridForCausalLM")  # without Mamba layers
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "attention"}
_APART: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # by decoder: also found through a wrapper (PEFT)
_CACHED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # whether a step with the model's cache is exact


def mend(model: Any) -> None:
    """Let a model compute what its maker's code does, where this transformers computes something else.

    - Without Mamba's own kernels, the states of Nemotron-H and Zamba 2 are summed over the wrong chunks: in a row of
      several chunks, a token reads what follows it. The layers of Bamba are the same, and compute what the kernels do.
    - OLMo 3 scales the rotary embeddings of its layers without a window only (transformers' pull request 45945).
    - Granite 4 without Mamba layers has no state, and needs no cache for one.
    """
    for module in model.modules():
        if type(module).__name__ in SCANS:
            from transformers.models.bamba.modeling_bamba import BambaMixer

            module.torch_forward = MethodType(BambaMixer.torch_forward, module)
            module.time_step_limit = module.time_step_limit or (0.0, math.inf)  # as the kernels read None
        elif type(module).__name__ == "Olmo3Model" and hasattr(module, "rotary_emb"):
            _keep_windows_unscaled(module)
        elif type(module).__name__ in STATELESS and "mamba" not in module.config.layer_types:
            module._is_stateful, module._update_mamba_mask = False, _no_mask


def _no_mask(*_: Any) -> None:
    """What a model's Mamba layers get, where it has none."""


def _keep_windows_unscaled(core: Any) -> None:
    config = deepcopy(core.config)
    if config.rope_parameters["rope_type"] == "default":
        return
    config.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]}
    near = type(core.rotary_emb)(config, device=core.embed_tokens.weight.device)

    def turn(_layer: Any, inputs: tuple[Any, ...], values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return inputs, values | {"position_embeddings": near(inputs[0], values["position_ids"])}

    for layer, kind in zip(core.layers, config.layer_types, strict=True):
        if kind == "sliding_attention":
            layer.register_forward_pre_hook(turn, with_kwargs=True)


def runs_apart(model: Any, longest: int = 0) -> bool:
    """Whether each row of this model needs a forward pass of its own, where the longest has so many tokens."""
    decoder = model.get_decoder()
    if decoder not in _APART:
        _APART[decoder] = _is_known(model)
    return _APART[decoder] or longest > _one_rotation(model)


def _one_rotation(model: Any) -> float:
    """The most tokens of a row with which all rows of a pass get the same positions as alone.

    A longer one makes longrope (Phi-3, Phi-4-mini) turn the keys of the whole pass by other angles.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return math.inf
    first = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return float(first or config.max_position_embeddings)


def run_apart(model: Any) -> None:
    """Let each row of this model have a forward pass of its own, which is right for every model."""
    _APART[model.get_decoder()] = True


def try_together(model: Any, fingerprint: str) -> None:
    """Try whether rows of this model may share a pass, with no change of its weights switched on.

    Where torch's fast attention is not what the model computes without it (Doge), the model gets the plain one. The
    `fingerprint` identifies the base model: what is found is remembered for it on this machine.

    Raises:
        EngineError: `model-unsupported`: the model does not run here, or its tokens read what follows them.
    """
    versions = f"{transformers.__version__}-{torch.__version__}-{model.device.type}-{model.dtype}"
    name = f"{fingerprint}-rows-{versions}-{VERSION}"
    if (known := recall(name)) not in TRIED:
        with _refusals(model):
            plain = model.config._attn_implementation == "sdpa" and not _is_known(model) and not _fast_is_right(model)
            if plain:
                model.set_attn_implementation("eager")
            _check_causal(model)
        known = "plain" if plain else "apart" if _is_known(model) or _differs(model) else "together"
        remember(name, known)
    elif known == "plain":
        model.set_attn_implementation("eager")
    _APART[model.get_decoder()] = known != "together"


def _fast_is_right(model: Any) -> bool:
    ids = _some_tokens(model, 24)
    with torch.inference_mode():
        fast = model(input_ids=ids, use_cache=False).logits
        with attending(model, "eager"):
            plain = model(input_ids=ids, use_cache=False).logits
    return _close(model, fast, plain)


@contextmanager
def _refusals(model: Any) -> Iterator[None]:
    try:
        yield
    except (AttributeError, ImportError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        problem = f"transformers cannot run this {model.config.model_type} model here: {first_line(error)}"
        raise EngineError("model-unsupported", problem, hint=OTHER_MODEL) from error


def _check_causal(model: Any) -> None:
    ids, tolerance = _some_tokens(model, 41), 0.01 if model.dtype == torch.float32 else 0.3
    with torch.inference_mode():
        for count in (2, 17):  # the first tokens have most to read ahead; scans in chunks begin to do so later
            whole, part = (model(input_ids=i, use_cache=False).logits[0, :count].float() for i in (ids, ids[:, :count]))
            spread = part - part.mean(-1, keepdim=True)
            if not ((whole - part).norm(dim=-1) <= tolerance * spread.norm(dim=-1)).all():
                problem = f"as transformers runs {model.config.model_type} models here, a token reads what follows it"
                raise EngineError("model-unsupported", problem, hint=OTHER_MODEL)


def _some_tokens(model: Any, count: int) -> torch.Tensor:
    """Token ids, shape [1, count]."""
    return torch.arange(1, count + 1, device=model.device)[None] % (model.config.get_text_config().vocab_size - 1)


def _close(model: Any, a: torch.Tensor, b: torch.Tensor, *, sums: bool = False) -> bool:
    """Whether logits, or `sums` of log-probabilities, lie no further apart than by rounding."""
    full = model.dtype == torch.float32
    tolerance = 0.02 if full else 0.5
    return torch.allclose(a.float(), b.float(), atol=tolerance, rtol=0.0 if sums and full else tolerance)


def _is_known(model: Any) -> bool:
    """Whether the layers say that a row's tokens meet outside attention, or in another attention than ours."""
    config = model.config.get_text_config()
    other_layers = set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS
    other_attention = model.config._attn_implementation not in ("sdpa", CAPPED)
    stateful = any(getattr(module, "_is_stateful", False) for module in model.modules())
    return bool(other_layers) or stateful or other_attention or bool(getattr(config, "attention_chunk_size", None))


def _differs(model: Any) -> bool:
    """Whether scores by tree attention differ from those of the plain forward."""
    size = min(97, model.config.get_text_config().vocab_size - 1)

    def tokens(first: int, count: int) -> tuple[int, ...]:
        return tuple((7 * (first + i)) % size + 1 for i in range(count))

    prompts = [tokens(1, 6) + tokens(30, 3), tokens(1, 6) + tokens(50, 27)]
    continuations = (tokens(70, 2), tokens(70, 1) + tokens(80, 2), tokens(90, 1))
    try:
        together = score_all(model, prompts, build_trie(continuations))
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return True  # its forward does not take our masks or our cache
    apart = score_apart(model, prompts, continuations)
    return not _close(model, torch.from_numpy(together), torch.from_numpy(apart), sums=True)


@torch.inference_mode()
def score_apart(
    model: Any, prompts: Sequence[tuple[int, ...]], continuations: Sequence[tuple[int, ...]], *,
    done: Callable[[int], None] = lambda rows: None,
) -> Floats:  # fmt: skip
    """The log-likelihood of every continuation after every prompt, shape [prompts, continuations].

    A pass holds one prompt with continuations of one length: some models (Zamba 2, Nemotron-H) answer otherwise even
    where a row is padded on the right.
    """
    vocabulary = model.config.get_text_config().vocab_size
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, continuation in enumerate(continuations):
        by_length[len(continuation)].append(number)
    result = np.empty((len(prompts), len(continuations)), np.float32)
    for row, prompt in enumerate(prompts):
        for length, members in by_length.items():
            by_logits, by_tokens = (
                LOGIT_BYTES // (4 * vocabulary * (length + 1)),
                TOKENS_PER_BATCH // (len(prompt) + length),
            )
            at_once = max(1, min(by_logits, by_tokens))
            for first in range(0, len(members), at_once):
                part = members[first : first + at_once]
                ids = torch.tensor([[*prompt, *continuations[i]] for i in part], device=model.device)
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=length + 1).logits
                logits = logits[:, -length - 1 : -1]  # some models (xLSTM) give all, whatever is asked for
                logprobs = torch.log_softmax(logits.float(), -1).gather(2, ids[:, len(prompt) :, None])
                result[row, part] = logprobs[..., 0].sum(1).cpu().numpy()
        done(1)
    return result


class RowsApart:
    """Completions that run one row at a time, each with the cache that the model itself makes.

    Where a step with that cache is not exact, the whole row is read again at every step.
    """

    def __init__(self, model: Any, prompts: Sequence[tuple[int, ...]]) -> None:
        self._model = model
        self._rows = [list(prompt) for prompt in prompts]
        self._caches: list[Any] = [None] * len(prompts)
        self._cached = _cache_is_exact(model)
        self._turns = _one_rotation(model) + 1

    def logits(self) -> torch.Tensor:
        """The logits of the next token of every row, shape [rows, vocabulary]."""
        return torch.cat([self._next(row) for row in range(len(self._rows))])

    def advance(self, kept: Sequence[int], chosen: torch.Tensor) -> None:
        """Go on with these rows only, and append each row's chosen token."""
        self._rows = [[*self._rows[i], int(chosen[i])] for i in kept]
        self._caches = [self._caches[i] for i in kept]

    def _next(self, row: int) -> torch.Tensor:
        tokens, cache = self._rows[row], self._caches[row]
        if len(tokens) == self._turns:
            cache = None  # its keys are turned by the angles of shorter rows
        ids = torch.tensor([tokens if cache is None else tokens[-1:]], device=self._model.device)
        keep = {"past_key_values": cache} if cache is not None else {}
        output = self._model(input_ids=ids, use_cache=self._cached, logits_to_keep=1, **keep)
        self._caches[row] = output.past_key_values if self._cached else None
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits


def _cache_is_exact(model: Any) -> bool:
    """Whether two steps with the model's own cache give the logits of the whole row, tried once on a few tokens."""
    decoder = model.get_decoder()
    if decoder not in _CACHED:
        ids = _some_tokens(model, 8)
        try:
            with torch.inference_mode():
                cache = model(input_ids=ids[:, :6], use_cache=True, logits_to_keep=1).past_key_values
                for i in (6, 7):
                    step = model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True, logits_to_keep=1)
                    cache = step.past_key_values
                whole = model(input_ids=ids, use_cache=False, logits_to_keep=1)
            _CACHED[decoder] = _close(model, step.logits[:, -1], whole.logits[:, -1])
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            _CACHED[decoder] = False
    return _CACHED[decoder]
