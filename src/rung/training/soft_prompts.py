"""Soft prompts: learned virtual tokens before every prompt, the base model's weights untouched.

Three methods, in PEFT's configurations and file format:

    PROMPT_TUNING   one learned input embedding per virtual token (Lester et al. 2021, https://arxiv.org/abs/2104.08691)
    P_TUNING        the same, made by a small network while training (Liu et al. 2021, https://arxiv.org/abs/2103.10385)
    PREFIX_TUNING   learned keys and values in every layer (Li and Liang 2021, https://arxiv.org/abs/2101.00190)

A virtual token is an id behind the vocabulary, so whatever runs token ids (packing, tree scoring, decoding) runs soft
prompts: hooks find the places by their ids and put in there what was learned.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from transformers import DynamicCache

from rung.engines.tree_scoring import run_prefix
from rung.errors import ArtifactError, EngineError
from rung.training.changes import Change, read_tensors
from rung.training.peft import peft, quiet_peft, write_folder

# --------------------
# Where an attention layer makes its keys and values, and how others are put in their place.
#
# Keys are rotated by their position after they are made (rotary embeddings, Su et al. 2021,
# https://arxiv.org/abs/2104.09864). What is put in is turned back by as much first, so that keys are, in the end and in
# the cache, exactly those that were wanted.


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
        EngineError: keys or values are not made in a way that is known (`tuning-unsupported`).
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
        "tuning-unsupported",
        f"prefix tuning cannot reach the keys and values of {type(model).__name__}: {why}",
        hint="use prompt-tuning or p-tuning, which work on the input embeddings alone",
    )


TENSOR = "prompt_embeddings"


@dataclass(slots=True)
class _Found:
    """The virtual tokens of one forward pass: P places, and what stands there.

    Attributes:
        rows, columns: the places, shape [P].
        learned: what was learned for each: [P, hidden size], or [P, 2 * layers, heads, size] of prefix tuning.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    learned: torch.Tensor


class SoftPrompt(Change):
    """One soft prompt on a model, beside any number of others.

    Prefix tuning with gradient checkpointing: layers that are run again find the places of the last forward pass, so
    each backward pass has to come before the next forward pass.

    Args:
        model: the base model.
        config: a PEFT PromptTuningConfig, PromptEncoderConfig or PrefixTuningConfig; sizes that it leaves out are those
            of the model. Without `start` it begins as PEFT initializes it.
        start: what to begin with, in the shape of `prompt_embeddings`; see `embeddings_of` and `keys_values_of`.

    Raises:
        EngineError: the model's layers do not let keys and values in (`tuning-unsupported`).
    """

    def __init__(self, model: Any, config: Any, *, start: torch.Tensor | None = None) -> None:
        self.model, self.config = model, config
        if getattr(model.config.get_text_config(), "hidden_size_per_layer_input", 0):
            raise EngineError(
                "tuning-unsupported",
                f"{type(model).__name__} reads token ids again in its layers, where virtual tokens have no embedding",
                hint="use a method that changes weights, such as lora",
            )
        self._per_layer = config.peft_type.value == "PREFIX_TUNING"
        self._attentions: list[Attention] = attentions(model) if self._per_layer else []
        self._complete()
        self._encoder = self._build().to(device=model.device, dtype=torch.float32)
        self._encoder.requires_grad_(False)
        if start is not None:
            self._set(start)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        first = getattr(model, "rung_next_id", vocabulary)
        self.prefix = tuple(range(first, first + config.num_virtual_tokens))
        model.rung_next_id = first + config.num_virtual_tokens
        self._found: _Found | None = None
        self._hooks: list[Any] = []

    @classmethod
    def from_dict(cls, model: Any, values: dict[str, Any]) -> Self:
        """Put on a soft prompt with the configuration of an adapter_config.json; what made it is not needed."""
        config = peft().PeftConfig.from_peft_type(**values)
        config.inference_mode = True
        return cls(model, config)

    def _complete(self) -> None:
        """Fill in the sizes that PEFT takes from the model."""
        config, base = self.config, self.model.config.get_text_config()
        if self._per_layer:
            heads, size, layers = self._attentions[0].heads, self._attentions[0].size, len(self._attentions)
            width = heads * size
        else:
            heads, width, layers = base.num_attention_heads, base.hidden_size, base.num_hidden_layers
        for name, value in (
            ("num_attention_heads", heads), ("token_dim", width), ("num_layers", layers),
            ("num_transformer_submodules", 1),
        ):  # fmt: skip
            if getattr(config, name) not in (None, value):
                raise ArtifactError(
                    "adapter-mismatch",
                    f"the soft prompt has {name} {getattr(config, name)}, the model {value}",
                    hint="open it on the model that it was trained on",
                )
            setattr(config, name, value)
        if hasattr(config, "encoder_hidden_size") and config.encoder_hidden_size is None:
            config.encoder_hidden_size = width

    def _build(self) -> Any:
        library, config = peft(), self.config
        with quiet_peft():
            if self._per_layer:
                return library.PrefixEncoder(config)
            if config.peft_type.value == "P_TUNING":
                return library.PromptEncoder(config)
            return library.PromptEmbedding(config, self.model.get_input_embeddings())

    # ---- what is learned

    @property
    def _direct(self) -> bool:
        """Whether the vectors themselves are the parameters, and no network makes them."""
        return [name for name, _ in self._encoder.named_parameters()] == ["embedding.weight"]

    def vectors(self) -> torch.Tensor:
        """Return what PEFT calls prompt_embeddings, with gradients where they are asked for.

        Shape [virtual tokens, hidden size], or [virtual tokens, 2 * layers * heads * size] for prefix tuning.
        """
        if self._direct:
            weight: torch.Tensor = self._encoder.embedding.weight
            return weight
        self._encoder.train(self.model.training)
        made: torch.Tensor = self._encoder(torch.arange(len(self.prefix), device=self.model.device)[None])
        return made[0]

    def _set(self, vectors: torch.Tensor) -> None:
        if not self._direct or vectors.shape != self._encoder.embedding.weight.shape:
            raise ValueError(f"these vectors of shape {tuple(vectors.shape)} are not what this soft prompt learns")
        with torch.no_grad():
            self._encoder.embedding.weight.copy_(vectors)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the vectors, or the parameters of the network that makes them."""
        return dict(self._encoder.named_parameters())

    # ---- on and off

    def enable(self) -> None:
        """Hook into the input embeddings and, for prefix tuning, the layers' keys and values."""
        if self._hooks:
            return
        embeddings = self.model.get_input_embeddings()
        self._hooks.append(embeddings.register_forward_pre_hook(self._find))
        if not self._per_layer:
            self._hooks.append(embeddings.register_forward_hook(self._embed))
        for index, attention in enumerate(self._attentions):
            self._hooks += attention.hook(partial(self._keys_values, index))

    def disable(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._found = None

    def remove(self) -> None:
        """Switch it off; nothing else was changed."""
        self.disable()

    def _find(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """Note where virtual tokens are; the embeddings see token 0 there."""
        ids = inputs[0]
        token = ids - self.prefix[0]
        virtual = (token >= 0) & (token < len(self.prefix))
        rows, columns = virtual.nonzero(as_tuple=True)
        self._found = None
        if not len(rows):  # most steps of decoding
            return None
        learned = self.vectors()
        if self._per_layer:
            learned = learned.view(len(self.prefix), 2 * len(self._attentions), -1, self._attentions[0].size)
        self._found = _Found(rows, columns, learned.index_select(0, token[rows, columns]))
        return (ids.masked_fill(virtual, 0), *inputs[1:])

    def _embed(self, _module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        found = self._found
        if found is None:
            return output
        return output.index_put((found.rows, found.columns), found.learned.to(output.dtype))

    def _keys_values(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return places [P] and [P], keys and values [P, heads, size] of a layer, if there are any."""
        found = self._found
        if found is None:
            return None
        return found.rows, found.columns, found.learned[:, 2 * layer], found.learned[:, 2 * layer + 1]

    # ---- on disk

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write PEFT's two files; the configuration also names the base model's fingerprint."""
        with torch.no_grad():
            write_folder(folder, self.config, {TENSOR: self.vectors()}, fingerprint)

    def read(self, folder: Path) -> None:
        """Set the vectors to those of a PEFT folder.

        Raises:
            ArtifactError: they do not fit (`adapter-mismatch`), or the network that makes them is asked for, which is
                not in such a folder (`tuning-unsupported`).
        """
        if not self._direct:
            raise ArtifactError(
                "tuning-unsupported",
                f"{folder} holds the vectors that a prompt encoder made, and not the encoder",
                hint="go on with `prompt-tuning` (or prefix tuning without a projection), which trains the vectors",
            )
        wanted = {TENSOR: self._encoder.embedding.weight}
        self._set(read_tensors(folder / "adapter_model.safetensors", wanted)[TENSOR])


def tiled(tokens: Sequence[int], count: int) -> list[int]:
    """Return `count` tokens: the first ones, repeated where there are fewer."""
    return [tokens[i % len(tokens)] for i in range(count)]


def embeddings_of(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Return the input embeddings of a text, shape [tokens, hidden size]: a start for prompt tuning."""
    with torch.no_grad():
        found: torch.Tensor = model.get_input_embeddings()(torch.tensor(list(tokens), device=model.device))
    return found.float()


def keys_values_of(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Return the keys and values of a text at the beginning, shape [tokens, 2 * layers * heads * size].

    A start for prefix tuning: the prefix then acts like the text itself.
    """
    with torch.no_grad():
        layers = run_prefix(model, tokens).layers
    states = torch.stack([states[0] for pair in layers for states in pair])  # [2 * layers, heads, tokens, size]
    return states.permute(2, 0, 1, 3).flatten(1).float()
