"""Soft prompts: learned virtual tokens before every prompt; the base model's weights are untouched.

Three methods, in PEFT's configurations and file format:

    PROMPT_TUNING   one learned input embedding per virtual token (Lester et al. 2021, https://arxiv.org/abs/2104.08691)
    P_TUNING        the same, computed by a small network in training (Liu et al. 2021, https://arxiv.org/abs/2103.10385)
    PREFIX_TUNING   learned keys and values in every layer (Li and Liang 2021, https://arxiv.org/abs/2101.00190)

A virtual token is an id after the end of the vocabulary. So everything that runs token ids (packing, tree scoring,
decoding) runs soft prompts: hooks find these ids and insert what was learned for them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from rung.engines.tree_scoring import run_prefix
from rung.errors import ArtifactError, EngineError
from rung.training.changes import Hooked, mismatch, read_tensors
from rung.training.peft import count_setting, peft, peft_config, quiet_peft, write_peft_folder

# ---- where an attention layer makes its keys and values, and how others are inserted
#
# Keys are rotated by their position after they are made (rotary embeddings, Su et al. 2021,
# https://arxiv.org/abs/2104.09864). Inserted keys are first rotated back by as much, so that in the end, and in the
# cache, they are exactly the learned ones.

# Rows and columns [P] of the virtual tokens, and their keys and values [P, heads, size]; None without virtual tokens.
KeysValues = Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None]
Rotation = tuple[torch.Tensor, torch.Tensor]  # cosine and sine, [1 or batch, tokens, size]


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention layer."""

    module: Any
    key: str  # its module whose output is the keys, before rotation: `k_norm`, or `k_proj` where there is none
    heads_first: bool  # that output has the shape [batch, heads, tokens, size]; else tokens come before heads
    rotates: bool  # keys are rotated (some layers of some models leave that out)
    heads: int  # of keys and values
    size: int  # of one head

    def hooks(self, learned: KeysValues) -> Iterator[RemovableHandle]:
        """Let every forward pass insert `learned()`."""
        current: list[Rotation] = []  # of the pass that is running

        def begin(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rotation = _rotation(args, kwargs) if self.rotates else None
            current[:] = [] if rotation is None else [rotation]

        def keys(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            if (inserted := learned()) is None:
                return output
            rows, columns, states, _ = inserted
            if current:
                cosine, sine = (part[rows if len(part) > 1 else 0, columns].float() for part in current[0])
                states = _rotated_back(self.module, states.float(), cosine, sine)
            own = output.transpose(1, 2) if self.heads_first else output
            put = own.unflatten(-1, (self.heads, self.size)) if own.ndim == 3 else own
            put = put.index_put((rows, columns), states.to(output.dtype)).reshape(own.shape)
            return put.transpose(1, 2) if self.heads_first else put

        def values(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            if (inserted := learned()) is None:
                return output
            rows, columns, _, states = inserted
            return output.index_put((rows, columns), states.flatten(1).to(output.dtype))

        yield self.module.register_forward_pre_hook(begin, with_kwargs=True)
        yield getattr(self.module, self.key).register_forward_hook(keys)
        yield self.module.v_proj.register_forward_hook(values)


def attentions(model: Any) -> list[Attention]:
    """A model's attention layers, found by running a few tokens and looking at the cache.

    An EngineError (`tuning-unsupported`) says that keys or values are made in a way that is not known.
    """
    layers: list[Any] = [getattr(layer, "self_attn", None) for layer in getattr(model.get_decoder(), "layers", ())]
    if not layers or not all(hasattr(layer, "k_proj") and hasattr(layer, "v_proj") for layer in layers):
        raise _unsupported(model, "its layers have no projection of keys and one of values (self_attn.k_proj, v_proj)")
    config, cache = model.config.get_text_config(), DynamicCache()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    tokens = 2 if heads != 2 else 3  # so that the order of dimensions shows
    seen: list[dict[str, Any]] = [{} for _ in layers]  # what each layer makes: keys before rotation, values, rotation
    hooks: list[RemovableHandle] = []
    for layer, parts in zip(layers, seen, strict=True):
        hooks += (
            layer.register_forward_pre_hook(
                lambda _m, args, kwargs, parts=parts: parts.update(rotation=_rotation(args, kwargs)), with_kwargs=True
            ),
            getattr(layer, _key(layer)).register_forward_hook(
                lambda _m, _i, keys, parts=parts: parts.update(keys=keys)
            ),
            layer.v_proj.register_forward_hook(lambda _m, _i, values, parts=parts: parts.update(values=values)),
        )
    try:
        with torch.no_grad():
            model.get_decoder()(input_ids=torch.arange(tokens, device=model.device)[None], past_key_values=cache)
    finally:
        for hook in hooks:
            hook.remove()
    if len(cache.layers) != len(layers):
        raise _unsupported(model, "some of its layers share keys and values")
    described = [_described(model, *layer) for layer in zip(layers, seen, cache.layers, strict=True)]
    if len({(layer.heads, layer.size) for layer in described}) > 1:
        raise _unsupported(model, "its layers have keys of different shapes")
    return described


def _key(layer: Any) -> str:
    return "k_norm" if hasattr(layer, "k_norm") else "k_proj"


def _described(model: Any, module: Any, parts: dict[str, Any], cached: Any) -> Attention:
    """Compare what a layer made with what is in its cache, [1, heads, tokens, size]."""
    heads, tokens, size = cached.keys.shape[1:]
    heads_first = parts["keys"].shape == cached.keys.shape
    keys = parts["keys"] if heads_first else parts["keys"].reshape(1, tokens, heads, size).transpose(1, 2)
    if not torch.equal(parts["values"].view(1, tokens, heads, size).transpose(1, 2), cached.values):
        raise _unsupported(model, f"layer {module.layer_idx} changes its values after v_proj")
    rotates = not torch.equal(keys, cached.keys)
    if rotates:
        rotate = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
        arguments = list(inspect.signature(rotate).parameters)[:4] if rotate is not None else []
        known = parts["rotation"] is not None and arguments == ["q", "k", "cos", "sin"]
        if known:
            cosine, sine = (part[0].float() for part in parts["rotation"])
            back = _rotated_back(module, cached.keys[0].transpose(0, 1).float(), cosine, sine)
            known = torch.allclose(back.to(keys.dtype), keys[0].transpose(0, 1), atol=1e-2, rtol=1e-2)
        if not known:
            raise _unsupported(model, f"layer {module.layer_idx} changes its keys in a way that is not known")
    return Attention(module, _key(module), heads_first, rotates, heads, size)


def _rotation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rotation | None:
    """What an attention layer has to rotate by; models pass it by name, some as the second argument."""
    rotation = kwargs.get("position_embeddings", args[1] if len(args) > 1 else None)
    return rotation if isinstance(rotation, tuple) and len(rotation) == 2 else None


def _rotated_back(module: Any, keys: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """The keys [P, heads, size] that rotation by `cosine` and `sine` [P, rotated size] turns into the given ones.

    Some models also scale by the rotation (YaRN), by the length of (cosine, sine): that is undone too.
    """
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
    width = cosine.shape[-1]
    scale = (cosine[:, :1] ** 2 + sine[:, :1] ** 2)[:, None]
    back = rotate(keys[..., :width], keys[..., :width], cosine, -sine, unsqueeze_dim=1)[1] / scale
    return torch.cat([back, keys[..., width:]], -1)


def _unsupported(model: Any, why: str) -> EngineError:
    return EngineError(
        "tuning-unsupported", f"prefix tuning cannot reach the keys and values of {type(model).__name__}: {why}",
        hint="use prompt-tuning or p-tuning, which work on the input embeddings alone",
    )  # fmt: skip


# ---- the soft prompt

TENSOR = "prompt_embeddings"
_NEXT_ID: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # the first id for the next soft prompt of a model


class SoftPrompt(Hooked):
    """One soft prompt on a model, next to any number of others.

    Prefix tuning with gradient checkpointing: layers that are run again see the virtual tokens of the last forward
    pass, so each backward pass has to come before the next forward pass.

    Sizes that PEFT's configuration leaves out are those of the model. It begins with `start`, in the shape of
    `prompt_embeddings` (see `embeddings_of` and `keys_values_of`), else as PEFT initializes it.

    Raises:
        EngineError: the model's layers do not let keys and values in (`tuning-unsupported`).
    """

    def __init__(self, model: Any, config: Any, *, start: torch.Tensor | None = None) -> None:
        self.model, self.config = model, config
        if getattr(model.config.get_text_config(), "hidden_size_per_layer_input", 0):
            why = "reads token ids again in its layers, where virtual tokens have no embedding"
            raise EngineError(
                "tuning-unsupported", f"{type(model).__name__} {why}",
                hint="use a method that changes weights, such as lora",
            )  # fmt: skip
        self._per_layer = config.peft_type.value == "PREFIX_TUNING"
        self._attentions: list[Attention] = attentions(model) if self._per_layer else []
        self._complete()
        with quiet_peft():
            if self._per_layer:
                encoder = peft().PrefixEncoder(config)
            elif config.peft_type.value == "P_TUNING":
                encoder = peft().PromptEncoder(config)
            else:
                encoder = peft().PromptEmbedding(config, model.get_input_embeddings())
        self._encoder = encoder.to(device=model.device, dtype=torch.float32).requires_grad_(False)
        if start is not None:
            self._set(start)
        first = _NEXT_ID.get(model, model.get_input_embeddings().weight.shape[0])
        _NEXT_ID[model] = first + config.num_virtual_tokens
        self.prefix = tuple(range(first, _NEXT_ID[model]))
        # The virtual tokens of the running forward pass: rows and columns [P], and what was learned for each,
        # [P, hidden size], or [P, 2 * layers, heads, size] of prefix tuning.
        self._virtual: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def from_dict(cls, model: Any, values: dict[str, Any]) -> Self:
        """Put on a soft prompt with the configuration of an adapter_config.json; its prompt encoder is not needed."""
        count_setting(values, "num_virtual_tokens")
        config = peft_config(values)
        config.inference_mode = True
        return cls(model, config)

    def _complete(self) -> None:
        """Fill in the sizes that PEFT takes from the model."""
        config, base = self.config, self.model.config.get_text_config()
        heads, layers = base.num_attention_heads, base.num_hidden_layers
        width = self.model.get_input_embeddings().weight.shape[1]  # OPT-350M projects its embeddings to its hidden size
        if self._per_layer:
            heads, layers = self._attentions[0].heads, len(self._attentions)
            width = heads * self._attentions[0].size
        sizes = {"num_attention_heads": heads, "token_dim": width, "num_layers": layers}
        for name, value in (sizes | {"num_transformer_submodules": 1}).items():
            if getattr(config, name) not in (None, value):
                raise mismatch(f"the soft prompt has {name} {getattr(config, name)}, the model {value}")
            setattr(config, name, value)
        if hasattr(config, "encoder_hidden_size") and config.encoder_hidden_size is None:
            config.encoder_hidden_size = width

    # ---- what is learned

    @property
    def _direct(self) -> bool:
        """Whether the vectors themselves are the parameters, and no network computes them."""
        return [name for name, _ in self._encoder.named_parameters()] == ["embedding.weight"]

    def vectors(self) -> torch.Tensor:
        """What PEFT calls prompt_embeddings, with gradients while it is trained.

        Shape [virtual tokens, hidden size], or [virtual tokens, 2 * layers * heads * size] for prefix tuning.
        """
        if self._direct:
            weight: torch.Tensor = self._encoder.embedding.weight
            return weight
        self._encoder.train(self.model.training)
        vectors: torch.Tensor = self._encoder(torch.arange(len(self.prefix), device=self.model.device)[None])
        return vectors[0]

    def _set(self, vectors: torch.Tensor) -> None:
        if not self._direct or vectors.shape != self._encoder.embedding.weight.shape:
            raise ValueError(f"these vectors of shape {tuple(vectors.shape)} are not what this soft prompt learns")
        with torch.no_grad():
            self._encoder.embedding.weight.copy_(vectors)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The vectors, or the parameters of the network that computes them."""
        return dict(self._encoder.named_parameters())

    # ---- hooks

    def hooks(self) -> Iterator[RemovableHandle]:
        """Hook into the input embeddings and, for prefix tuning, the layers' keys and values."""
        embeddings = self.model.get_input_embeddings()
        yield embeddings.register_forward_pre_hook(self._find)
        if not self._per_layer:
            yield embeddings.register_forward_hook(self._embed)
        for index, layer in enumerate(self._attentions):
            yield from layer.hooks(partial(self._keys_values, index))

    def disable(self) -> None:
        """Remove the hooks."""
        super().disable()
        self._virtual = None

    def _find(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """Note where virtual tokens are; the embeddings see token 0 there."""
        ids = inputs[0]
        token = ids - self.prefix[0]
        virtual = (token >= 0) & (token < len(self.prefix))
        rows, columns = virtual.nonzero(as_tuple=True)
        self._virtual = None
        if not len(rows):  # most steps of decoding
            return None
        learned = self.vectors()
        if self._per_layer:
            learned = learned.view(len(self.prefix), 2 * len(self._attentions), -1, self._attentions[0].size)
        self._virtual = rows, columns, learned.index_select(0, token[rows, columns])
        return (ids.masked_fill(virtual, 0), *inputs[1:])

    def _embed(self, _module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self._virtual is None:
            return output
        rows, columns, learned = self._virtual
        return output.index_put((rows, columns), learned.to(output.dtype))

    def _keys_values(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None:
        if self._virtual is None:
            return None
        rows, columns, learned = self._virtual
        return rows, columns, learned[:, 2 * layer], learned[:, 2 * layer + 1]

    # ---- on disk

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write PEFT's two files; the configuration also names the base model's fingerprint."""
        with torch.no_grad():
            write_peft_folder(folder, self.config, {TENSOR: self.vectors()}, fingerprint)

    def read(self, folder: Path) -> None:
        """Set the vectors to those of a PEFT folder.

        Raises:
            ArtifactError: they do not fit (`adapter-mismatch`), or this soft prompt has a network that computes them,
                which is not in such a folder (`tuning-unsupported`).
        """
        if not self._direct:
            raise ArtifactError(
                "tuning-unsupported", f"{folder} holds the vectors that a prompt encoder computed, and not the encoder",
                hint="go on with `prompt-tuning` (or prefix tuning without a projection), which trains the vectors",
            )  # fmt: skip
        expected = {TENSOR: self._encoder.embedding.weight}
        self._set(read_tensors(folder / "adapter_model.safetensors", expected)[TENSOR])


def embeddings_of(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """The input embeddings of a text, shape [tokens, hidden size]: a start for prompt tuning."""
    with torch.no_grad():
        embeddings: torch.Tensor = model.get_input_embeddings()(torch.tensor(list(tokens), device=model.device))
    return embeddings.float()


def keys_values_of(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """The keys and values of a text at the beginning, shape [tokens, 2 * layers * heads * size].

    A start for prefix tuning: the prefix then acts like the text itself.
    """
    with torch.no_grad():
        layers = run_prefix(model, tokens).layers
    states = torch.stack([states[0] for pair in layers for states in pair])  # [2 * layers, heads, tokens, size]
    return states.permute(2, 0, 1, 3).flatten(1).float()
