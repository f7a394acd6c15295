"""Where an attention layer makes its keys and values, and how others are put in their place.

Keys are rotated by their position after they are made (rotary embeddings, Su et al. 2021,
https://arxiv.org/abs/2104.09864). What is put in is turned back by as much first, so that keys are, in the end and in
the cache, exactly those that were wanted.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from rung.errors import EngineError

# Rows and columns [P] of the places, and keys and values [P, heads, size] that belong there; None for no places.
Wanted = Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None]
Rotation = tuple[torch.Tensor, torch.Tensor]  # cosine and sine, [1 or batch, tokens, size]


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention layer.

    Attributes:
        module: the layer.
        key: its module whose output is the keys, before rotation: `k_norm`, or `k_proj` where there is none.
        heads_first: that output has the shape [batch, heads, tokens, size]; else tokens come before heads.
        rotates: keys are rotated (some layers of some models leave that out).
        heads: number of key and value heads.
        size: of one head.
    """

    module: Any
    key: str
    heads_first: bool
    rotates: bool
    heads: int
    size: int

    def hook(self, wanted: Wanted) -> list[Any]:
        """Have every forward pass put `wanted()` in; return the hooks' handles."""
        rotation: list[Rotation] = []  # of the pass that is running

        def begin(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            told = _rotation(args, kwargs) if self.rotates else None
            rotation[:] = [] if told is None else [told]

        def keys(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            if (found := wanted()) is None:
                return output
            rows, columns, states, _ = found
            if rotation:
                cosine, sine = (part[rows if len(part) > 1 else 0, columns].float() for part in rotation[0])
                states = _turned_back(self.module, states.float(), cosine, sine)
            own = output.transpose(1, 2) if self.heads_first else output
            put = own.unflatten(-1, (self.heads, self.size)) if own.ndim == 3 else own
            put = put.index_put((rows, columns), states.to(output.dtype)).reshape(own.shape)
            return put.transpose(1, 2) if self.heads_first else put

        def values(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            if (found := wanted()) is None:
                return output
            rows, columns, _, states = found
            return output.index_put((rows, columns), states.flatten(1).to(output.dtype))

        return [
            self.module.register_forward_pre_hook(begin, with_kwargs=True),
            getattr(self.module, self.key).register_forward_hook(keys),
            self.module.v_proj.register_forward_hook(values),
        ]


@dataclass(slots=True)
class _Probe:
    """What one attention layer makes of a few tokens: keys before rotation, values, and the rotation."""

    module: Any
    key: str
    keys: Any = None
    values: Any = None
    rotation: Rotation | None = None

    def hook(self) -> list[Any]:
        """Listen; return the hooks' handles."""
        return [
            self.module.register_forward_pre_hook(self._begin, with_kwargs=True),
            getattr(self.module, self.key).register_forward_hook(self._keys),
            self.module.v_proj.register_forward_hook(self._values),
        ]

    def _begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.rotation = _rotation(args, kwargs)

    def _keys(self, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        self.keys = output

    def _values(self, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        self.values = output


def attentions(model: Any) -> list[Attention]:
    """Return a model's attention layers, found out by running a few tokens and looking at the cache.

    Raises:
        EngineError: keys or values are not made in a way that is known (`soft-prompt-unsupported`).
    """
    layers: list[Any] = [getattr(layer, "self_attn", None) for layer in getattr(model.get_decoder(), "layers", ())]
    if not layers or not all(hasattr(one, "k_proj") and hasattr(one, "v_proj") for one in layers):
        raise _unsupported(model, "its layers have no projection of keys and one of values (self_attn.k_proj, v_proj)")
    probes = [_Probe(one, "k_norm" if hasattr(one, "k_norm") else "k_proj") for one in layers]
    config, cache = model.config.get_text_config(), DynamicCache()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    tokens = 2 if heads != 2 else 3  # so that the order of dimensions shows
    hooks = [hook for probe in probes for hook in probe.hook()]
    try:
        with torch.no_grad():
            model.get_decoder()(input_ids=torch.arange(tokens, device=model.device)[None], past_key_values=cache)
    finally:
        for hook in hooks:
            hook.remove()
    if len(cache.layers) != len(layers):
        raise _unsupported(model, "some of its layers share keys and values")
    found = [
        _attention(model, probe, cached.keys, cached.values) for probe, cached in zip(probes, cache.layers, strict=True)
    ]
    if len({(one.heads, one.size) for one in found}) > 1:
        raise _unsupported(model, "its layers have keys of different shapes")
    return found


def _attention(model: Any, probe: _Probe, keys: torch.Tensor, values: torch.Tensor) -> Attention:
    """Compare what a layer made with what is in its cache, [1, heads, tokens, size]."""
    heads, tokens, size = keys.shape[1:]
    module, heads_first = probe.module, probe.keys.shape == keys.shape
    made = probe.keys if heads_first else probe.keys.reshape(1, tokens, heads, size).transpose(1, 2)
    if not torch.equal(probe.values.view(1, tokens, heads, size).transpose(1, 2), values):
        raise _unsupported(model, f"layer {module.layer_idx} changes its values after v_proj")
    if torch.equal(made, keys):
        return Attention(module, probe.key, heads_first, rotates=False, heads=heads, size=size)
    if probe.rotation is None or not _rotates(module):
        raise _unsupported(model, f"layer {module.layer_idx} changes its keys in a way that is not known")
    cosine, sine = (part[0].float() for part in probe.rotation)
    turned = _turned_back(module, keys[0].transpose(0, 1).float(), cosine, sine)
    if not torch.allclose(turned.to(made.dtype), made[0].transpose(0, 1), atol=1e-2, rtol=1e-2):
        raise _unsupported(model, f"layer {module.layer_idx} changes its keys in a way that is not known")
    return Attention(module, probe.key, heads_first, rotates=True, heads=heads, size=size)


def _rotation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rotation | None:
    """Return what an attention layer is told to rotate by; models hand it over by name, some in second place."""
    found = kwargs.get("position_embeddings", args[1] if len(args) > 1 else None)
    return found if isinstance(found, tuple) and len(found) == 2 else None


def _rotates(module: Any) -> bool:
    """Whether the layer's own module rotates queries and keys by a function of the common signature."""
    function = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    return function is not None and list(inspect.signature(function).parameters)[:4] == ["q", "k", "cos", "sin"]


def _turned_back(module: Any, keys: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Return keys [P, heads, size] that rotation by `cosine` and `sine` [P, rotated size] turns into those given.

    Some models also scale by the rotation (YaRN): by the length of (cosine, sine), forth and back.
    """
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
    width = cosine.shape[-1]
    scale = (cosine[:, :1] ** 2 + sine[:, :1] ** 2)[:, None]
    turned = rotate(keys[..., :width], keys[..., :width], cosine, -sine, unsqueeze_dim=1)[1] / scale
    return torch.cat([turned, keys[..., width:]], -1)


def _unsupported(model: Any, why: str) -> EngineError:
    return EngineError(
        "soft-prompt-unsupported",
        f"prefix tuning cannot reach the keys and values of {type(model).__name__}: {why}",
        hint="use prompt-tuning or p-tuning, which work on the input embeddings alone",
    )
