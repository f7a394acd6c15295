"""The torch engine: transformers models on CPU or CUDA. It also trains, so adapters run where they were made."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig

from rung.engines.apart import mend, runs_apart, score_apart, try_together
from rung.engines.base import (
    Cancelled,
    Delta,
    Floats,
    GenerateRequest,
    Generation,
    ModelInput,
    RunningRow,
    Scored,
    ScoreRequest,
    Session,
    TokenScores,
)
from rung.engines.changes import REWARD_HEAD, WeightsChange, attach, family_of
from rung.engines.label_trie import build_trie
from rung.engines.local import LocalModel
from rung.engines.torch_decoding import (
    decode,
    generate_paged,
    generator_of,
    paged_attention,
    preferred_dtype,
    side_by_side,
    steps,
    suits,
)
from rung.engines.tree_scoring import batches, best_attention, score_all, score_best
from rung.errors import ArtifactError, EngineError, ModelError, RungError
from rung.models.checkpoint import OTHER_MODEL, check_loaded, text_class
from rung.models.hub import first_line
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress

ATTACHED = 16  # changes that stay on the model; others come back when they are requested
SEARCH_PAYS = 0.7  # best-first search is worth its rounds while it runs less than this share of the trie
PROBE = 16  # rows that decide whether it does


class TorchEngine(LocalModel):
    """One base model in memory, with any number of changes of its weights (adapters, soft prompts, patches).

    The `quantization` of the base model is empty for the device's precision, or `nf4` for 4-bit NormalFloat.
    `base_fingerprint` identifies the base model that changes are trained on, quantization included. `load` brings the
    model into memory in another way, given its files, configuration, device and precision.

    Raises:
        EngineError: the device is not there, or bitsandbytes is missing.
    """

    def __init__(
        self, files: ModelFiles, *, device: str = "auto", quantization: str = "",
        load: Callable[[ModelFiles, Any, str, torch.dtype], Any] | None = None,
    ) -> None:  # fmt: skip
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            hint = "`nvidia-smi` shows the devices; CUDA_VISIBLE_DEVICES hides them"
            raise EngineError("no-cuda", "no CUDA device is visible to torch", hint=hint)
        precision = preferred_dtype(device)
        super().__init__(files)
        self.model: Any
        self.base_fingerprint = f"{files.fingerprint}/{quantization}" if quantization else files.fingerprint
        config = AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
        if load is not None:
            self.model = load(files, config, device, precision)
        else:
            self.model = _loaded(files, config, device, precision, quantization)
        decoder = self.model.get_decoder()
        if isinstance(decoder, torch.nn.Linear):  # ModernBERT's decoder models name their output layer
            self.model.get_decoder = partial(getattr, self.model, "base_model")
        elif decoder is self.model:  # Llama 4 names itself, with its output layer
            self.model.get_decoder = partial(getattr, self.model, "model")
        mend(self.model)
        self.model.eval()
        self.model.requires_grad_(False)
        if load is None:
            try_together(self.model, self.base_fingerprint)
        self._changes: dict[str, WeightsChange] = {}  # the longest unused first
        self._lent: set[str] = set()  # those of them that nobody can load again
        self._active: str | None = None
        self._search_pays: dict[Any, bool] = {}
        kinds = getattr(config.get_text_config(), "layer_types", None) or ()
        unpaged = runs_apart(self.model) or "attention" in kinds  # Granite 4's name, which a paged cache does not know
        self._paged = None if unpaged else paged_attention(device)
        generation = f"continuous batching, {self._paged}" if self._paged else "padded batches"
        dtype, fingerprint = str(precision).removeprefix("torch."), f"{self.base_fingerprint}/torch/{precision}"
        self.info = self.describe("torch", device, quantization or dtype, fingerprint, generation=generation)

    # ---- changes of the weights

    def use(self, adapter: str | None) -> Any:
        """The model with exactly this change of its weights (a folder, or a name given to `lend`), or with none."""
        if adapter != self._active:
            if self._active is not None:
                self._changes[self._active].disable()
                self._active = None
            if adapter is not None:
                self._change(adapter).enable()
                self._active = adapter
        self.model.eval()
        return self.model

    def _change(self, adapter: str) -> WeightsChange:
        """A change that is on the model, put there if need be.

        Changes that conflict with it are removed, and those that were not used for longest where there are too many.
        """
        if adapter not in self._changes:
            self.make_room(family_of(Path(adapter)))
            while len(self._changes) - len(self._lent) >= ATTACHED:
                self._changes.pop(next(name for name in self._changes if name not in self._lent)).remove()
            self._changes[adapter] = attach(self.model, Path(adapter), fingerprint=self.base_fingerprint)
        self._changes[adapter] = change = self._changes.pop(adapter)
        return change

    def merged(self, adapter: str) -> dict[str, Any]:
        """The base model's parameters that this change modifies, with the change in them."""
        return self._change(adapter).merged()

    @contextmanager
    def lend(self, change: WeightsChange, name: str) -> Iterator[None]:
        """Inside the block, answer requests for adapter `name` with `change`, which is already on the model."""
        self._changes[name] = change
        self._lent.add(name)
        try:
            yield
        finally:
            if self._active == name:
                self.use(None)
            self._lent.remove(name)
            del self._changes[name]

    def make_room(self, family: str | None) -> None:
        """Remove all changes that conflict with a new one of this family; they come back when requested."""
        self.use(None)
        for name, other in list(self._changes.items()):
            if family is not None and other.family not in (None, family):
                self._changes.pop(name).remove()

    @contextmanager
    def running(self, adapter: str | None) -> Iterator[Any]:
        """Lend the model with exactly this change of its weights, in its lean form where it has one."""
        model = self.use(adapter)
        with self._changes[adapter].lean() if adapter is not None else nullcontext():
            yield model

    def prompt_tokens(self, prompt: ModelInput, room: int, adapter: str | None) -> tuple[int, ...]:
        """The prompt's tokens after the virtual tokens of a soft prompt, checked against the context."""
        if adapter is None or not (prefix := self._change(adapter).prefix):
            return self.fitting(prompt, room)
        return (*prefix, *self.fitting(prompt, room + len(prefix)))

    # ---- the three calls

    def generate(
        self, requests: Sequence[GenerateRequest], *, progress: Progress = QUIET, cancelled: Cancelled | None = None
    ) -> list[Generation]:
        """Complete every request, in batches of similar length and equal sampling."""
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[(request.adapter, request.sampling, request.constraint, request.logprobs)].append(i)
        results: dict[int, Generation] = {}
        progress.start("generating", len(requests))
        for (adapter, sampling, constraint, logprobs), members in groups.items():
            prompts = [self.prompt_tokens(requests[i].prompt, sampling.max_tokens, adapter) for i in members]
            # Hooks insert virtual tokens; the CUDA graphs of continuous batching would leave them out.
            virtual = adapter is not None and bool(self._change(adapter).prefix)
            report: dict[str, Any] = {"progress": progress, "cancelled": cancelled}
            longest = max(map(len, prompts)) + sampling.max_tokens
            with self.running(adapter) as model:
                rows = (model, self.tokenizer, prompts, sampling)
                together = not virtual and not runs_apart(model, longest)
                if self._paged and together and suits(model, sampling, constraint, logprobs=logprobs):
                    done = generate_paged(*rows, attention=self._paged, **report)
                else:
                    done = decode(*rows, constraint, logprobs=logprobs, **report)
            results.update(zip(members, done, strict=True))
        progress.finish()
        return [results[i] for i in range(len(requests))]

    def session(self) -> Session:
        """A session: waiting completions begin as a new batch, and batches take turns."""
        return _TorchSession(self)

    def read(self, texts: Sequence[tuple[int, ...]], *, top: int = 1, adapter: str | None = None) -> list[TokenScores]:
        """Score every token of every text, given as token ids, without the virtual tokens of a soft prompt."""
        rows = [self.prompt_tokens(text, 0, adapter) for text in texts]
        with self.running(adapter) as model:
            scored = token_scores(model, rows, top)
        return [scores.after(len(row) - len(text)) for scores, text, row in zip(scored, texts, rows, strict=True)]

    def rate(self, texts: Sequence[tuple[int, ...]], reward: Path, *, progress: Progress = QUIET) -> list[float]:
        """Rate texts, given as token ids that end with the end token, by the reward model in a folder.

        Raises:
            ArtifactError: the folder holds no reward model.
        """
        head = reward_head(reward, end_size(self.model))
        rows = [self.prompt_tokens(text, 0, str(reward)) for text in texts]
        progress.start("rating answers", len(rows))
        with self.running(str(reward)) as model:
            states = end_states(model, rows, done=progress.advance)
        progress.finish()
        return [float(value) for value in states @ head]

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Score continuations; requests with the same label set run together."""
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, r in enumerate(requests):
            groups[(r.adapter, r.continuations, r.best, r.divisor, r.bias)].append(i)
        results: dict[int, Scored] = {}
        progress.start("scoring", len(requests))
        for members in groups.values():
            first, start = requests[members[0]], time.perf_counter()
            longest = max(map(len, first.continuations))
            prompts = [self.prompt_tokens(requests[i].prompt, longest, first.adapter) for i in members]
            with self.running(first.adapter) as model:
                logprobs = self._score_group(model, first, prompts, progress)
            seconds = (time.perf_counter() - start) / len(members)
            for row, (i, prompt) in enumerate(zip(members, prompts, strict=True)):
                results[i] = Scored(logprobs[row], len(prompt), seconds)
        progress.finish()
        return [results[i] for i in range(len(requests))]

    def _score_group(
        self, model: Any, like: ScoreRequest, prompts: Sequence[tuple[int, ...]], progress: Progress
    ) -> Floats:
        longest = max(map(len, prompts)) + max(map(len, like.continuations))
        if runs_apart(model, longest):
            return score_apart(model, prompts, like.continuations, done=progress.advance)
        trie = build_trie(like.continuations)
        if not like.best:
            return score_all(model, prompts, trie, done=progress.advance)
        labels = len(like.continuations)
        divisor = np.array(like.divisor, np.float32) if like.divisor else np.ones(labels, np.float32)
        bias = np.array(like.bias, np.float32) if like.bias else np.zeros(labels, np.float32)
        # Where the model is unsure (zero-shot, many labels) the search opens most of the trie, and one pass over all of
        # it is cheaper. The first rows decide for all that follow with the same labels, weights and size of prompts
        # (demonstrations make prompts longer, and the model surer).
        key = (like.adapter, like.continuations, like.divisor, like.bias, len(prompts[0]).bit_length())
        first = np.zeros((0, labels), np.float32)
        if key not in self._search_pays:
            probe = prompts[:PROBE]
            first, opened = score_best(model, probe, trie, divisor, bias, done=progress.advance)
            self._search_pays[key] = opened <= SEARCH_PAYS * trie.size * len(probe)
            prompts = prompts[len(probe) :]
        if not prompts:
            return first
        if self._search_pays[key]:
            rest, _ = score_best(model, prompts, trie, divisor, bias, done=progress.advance)
        else:
            rest = score_all(model, prompts, trie, done=progress.advance)
        return np.concatenate([first, rest])

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """The mean hidden state of each text, shape [texts, hidden size], unit length.

        States are those at two thirds of the depth: the last layers specialize in predicting the next token.
        """
        prompts = [self.fitting(self.tokenizer.encode_plain(text) or (0,), 0) for text in texts]
        progress.start("embedding", len(texts))
        states = mean_states(self.use(None), prompts, done=progress.advance)
        progress.finish()
        return states


def _loaded(files: ModelFiles, config: Any, device: str, precision: torch.dtype, quantization: str) -> Any:
    """Load a model as a whole.

    Raises:
        ModelError: `model-unsupported`: it is quantized already, and cannot be loaded; `model-damaged`.
    """
    packed = getattr(config, "quantization_config", None) is not None
    placed = _quantized(quantization, device, precision) if quantization else {"device_map": device} if packed else {}
    model: Any
    try:
        model, info = text_class(config.model_type).from_pretrained(
            files.folder, dtype=precision, attn_implementation=best_attention(config), local_files_only=True,
            trust_remote_code=False, output_loading_info=True, **placed,
        )  # fmt: skip
    except Exception as error:  # the libraries of quantizations fail each in its own way
        if not packed or isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        problem = f"{files.name} is quantized, and transformers cannot load it here: {first_line(error)}"
        raise ModelError("model-unsupported", problem, hint=OTHER_MODEL) from error
    check_loaded(files, info)
    if quantization:
        keep_gradients(model)
    elif not packed:
        model.to(device)
    return model


def _quantized(name: str, device: str, precision: Any) -> dict[str, Any]:
    """The options that load a model in 4 bits (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""
    if name != "nf4":
        raise EngineError("engine-mismatch", f"no quantization is named {name!r}", hint="`nf4` is the only one")
    for library in ("bitsandbytes", "accelerate"):
        if find_spec(library) is None:
            hint = f"uv pip install {library}"
            raise EngineError("missing-extra", f"a base model in 4 bits needs {library}", hint=hint)
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=precision
    )
    return {"quantization_config": config, "device_map": device}


def keep_gradients(model: Any) -> None:
    """Keep the weights of a model in 4 bits in a layout that gradients can pass.

    On processors with AVX-512 for bfloat16, bitsandbytes (0.50.2) packs a layer's weights for inference at its first
    evaluation, and never unpacks them: training afterwards would use a product without a gradient.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


# ---- sessions: a running batch of padded rows cannot take a new row, so new rows run beside it as another batch


@dataclass(slots=True)
class _Batch:
    """Completions with the same adapter and sampling that began together."""

    request: GenerateRequest
    rows: list[RunningRow]
    steps: Iterator[None]


class _TorchSession:
    """A `Session` on the torch engine; texts are those of `TorchEngine.generate`."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._waiting: dict[int, tuple[GenerateRequest, tuple[int, ...]]] = {}
        self._batches: list[_Batch] = []

    @property
    def active(self) -> int:
        return len(self._waiting) + sum(len(batch.rows) for batch in self._batches)

    def add(self, key: int, request: GenerateRequest) -> None:
        prompt = self._engine.prompt_tokens(request.prompt, request.sampling.max_tokens, request.adapter)
        self._waiting[key] = request, prompt

    def cancel(self, key: int) -> None:
        self._waiting.pop(key, None)
        for batch in self._batches:
            for row in batch.rows:
                if row.index == key:
                    row.reason = "cancelled"  # then the row leaves its batch at the next step
            batch.rows = [row for row in batch.rows if row.index != key]
        self._batches = [batch for batch in self._batches if batch.rows]

    def step(self) -> list[Delta]:
        self._begin()
        deltas = [delta for batch in self._batches for delta in self._advance(batch)]
        self._batches = [batch for batch in self._batches if batch.rows]
        return deltas

    def _begin(self) -> None:
        """Make batches of the waiting completions, as far as there is room."""
        if not self._waiting:
            return
        model, tokenizer = self._engine.model, self._engine.tokenizer
        max_batch_tokens, max_rows = side_by_side(model)
        room = max_rows - sum(len(batch.rows) for batch in self._batches)
        groups: dict[Any, list[int]] = defaultdict(list)
        for key in list(self._waiting)[: max(0, room)]:
            request = self._waiting[key][0]
            alike = (request.adapter, request.sampling, request.constraint)
            # A seed makes a row repeatable only where no other row draws from it; and a constraint that cannot be
            # followed further ends its whole batch.
            alone = request.constraint is not None or (request.sampling.temperature > 0)
            groups[(alike, key) if alone else alike].append(key)
        for keys in groups.values():
            first = self._waiting[keys[0]][0]
            lengths = [len(self._waiting[key][1]) for key in keys]
            for wide in batches(lengths, first.sampling.max_tokens, 1, tokens=max_batch_tokens):
                prompts = [self._waiting.pop(keys[i])[1] for i in wide]
                rows = [RunningRow(keys[i], len(prompt)) for i, prompt in zip(wide, prompts, strict=True)]
                how = (first.sampling, first.constraint, None, True, generator_of(model, first.sampling))
                running = steps(model, tokenizer, prompts, rows, *how)
                self._batches.append(_Batch(first, list(rows), running))

    def _advance(self, batch: _Batch) -> list[Delta]:
        try:
            with self._engine.running(batch.request.adapter):
                ended = next(batch.steps, "ended") == "ended"
        except RungError as error:
            failed = [Delta(row.index, error=error) for row in batch.rows]
            batch.rows = []
            return failed
        for row in batch.rows:
            if row.reason is None and (ended or len(row.tokens) == batch.request.sampling.max_tokens):
                row.reason = "length"
        deltas = [row.delta(batch.request.sampling.stop) for row in batch.rows]
        batch.rows = [row for row in batch.rows if row.reason is None]
        return deltas


# ---- embeddings: the mean of a language model's hidden states

DEPTH = 2 / 3
ENCODER_HINT = "use a sentence encoder: the rung features"


def _passes(model: Any, lengths: Sequence[int], logits: int = 1) -> Iterable[list[int]]:
    """The rows of each forward pass: several, padded on the right, where they may share one."""
    if runs_apart(model, max(lengths, default=0)):
        return [[i] for i in range(len(lengths))]
    return batches(lengths, 0, logits)


@torch.inference_mode()
def mean_states(
    model: Any, prompts: Sequence[Sequence[int]], *, done: Callable[[int], None] = lambda rows: None
) -> Floats:
    """Unit vectors, shape [prompts, hidden size]: hidden states averaged over tokens at two thirds of the depth.

    The layers above do not run. Rows are padded on the right; causal attention keeps padding out of real tokens.
    """
    core, layers = model.get_decoder(), hidden_layers(model)
    depth = max(1, round(len(layers) * DEPTH))
    result = np.empty((len(prompts), model.config.get_text_config().hidden_size), np.float32)
    for batch in _passes(model, [len(p) for p in prompts]):
        rows = [prompts[i] for i in batch]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], device=model.device)
        output = run_to_layer(core, layers[depth - 1], {"input_ids": ids, "use_cache": False})
        states = (output[0] if isinstance(output, tuple | list) else output).float()
        if states.shape != (*ids.shape, result.shape[1]):
            problem = f"a layer of {model.config.model_type} models gives no single state of each token"
            raise EngineError("embedding-unsupported", problem, hint=ENCODER_HINT)
        real = torch.tensor([[i < len(row) for i in range(width)] for row in rows], device=model.device)
        mean = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        result[batch] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        done(len(batch))
    return result


@torch.inference_mode()
def end_states(model: Any, rows: Sequence[Sequence[int]], *, done: Callable[[int], None] = lambda rows: None) -> Floats:
    """The last layer's states of every row's last token, shape [rows, hidden size].

    Rows are padded on the right; causal attention keeps padding out of real tokens.
    """
    core, lengths = model.get_decoder(), [len(row) for row in rows]
    result = np.empty((len(rows), end_size(model)), np.float32)
    for batch in _passes(model, lengths):
        width = max(lengths[i] for i in batch)
        ids = torch.tensor([[*rows[i], *([0] * (width - lengths[i]))] for i in batch], device=model.device)
        states = core(input_ids=ids, use_cache=False).last_hidden_state
        last = torch.tensor([lengths[i] - 1 for i in batch], device=model.device)
        result[batch] = states[torch.arange(len(batch), device=model.device), last].float().cpu().numpy()
        done(len(batch))
    return result


def end_size(model: Any) -> int:
    """The size of the last states of a token, to which OPT-350M projects those of its layers."""
    config = model.config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def reward_head(folder: Path, size: int) -> Floats:
    """The vector of the reward model in a folder.

    Raises:
        ArtifactError: there is none, or it belongs to a model of another size.
    """
    from safetensors.numpy import load_file

    file = folder / REWARD_HEAD
    head: Floats | None = load_file(file).get("head") if file.is_file() else None
    if head is None or head.shape != (size,):
        problem = f"{folder} holds no reward model of a model with {size} hidden values"
        raise ArtifactError("wrong-folder", problem, hint="train one with the rung reward-model")
    return head


def hidden_layers(model: Any) -> Any:
    """The model's list of layers, whatever its architecture calls it.

    Raises:
        EngineError: `embedding-unsupported`: no list has the length that the configuration names.
    """
    depth = model.config.get_text_config().num_hidden_layers
    lists = (m for m in model.get_decoder().modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth)
    if (found := next(lists, None)) is None:
        problem = f"{model.config.model_type} models have no list of {depth} layers whose states could be read"
        raise EngineError("embedding-unsupported", problem, hint=ENCODER_HINT)
    return found


def run_to_layer(core: Any, layer: Any, values: dict[str, Any]) -> Any:
    """Run a decoder on `values` up to this layer and return the layer's output; the layers above do not run."""
    outputs = []

    def stop(_module: Any, _inputs: Any, output: Any) -> None:
        outputs.append(output)
        raise _EnoughError

    handle = layer.register_forward_hook(stop)
    try:
        core(**values)
    except _EnoughError:
        return outputs[0]
    finally:
        handle.remove()
    raise AssertionError("the layer did not run")


class _EnoughError(Exception):
    """Leaves the forward pass once the wanted layer has run."""


# ---- how likely a text is, token by token: evaluation harnesses ask completion servers for these log-likelihoods

LOGIT_ROWS = 64  # rows of logits that are normalized at once


@torch.inference_mode()
def token_scores(model: Any, texts: Sequence[tuple[int, ...]], top: int) -> list[TokenScores]:
    """Score every token of every text, with the `top` likeliest at each position.

    Rows are padded on the right; causal attention keeps padding out of real tokens.
    """
    vocabulary = model.config.get_text_config().vocab_size
    results: dict[int, TokenScores] = {}
    # `batches` plans for one row of logits per tree node; here every token of a text needs one.
    longest = max(map(len, texts))
    for batch in _passes(model, [len(text) for text in texts], vocabulary * longest):
        rows = [texts[i] for i in batch]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        for index, row, row_logits in zip(batch, rows, logits, strict=True):
            results[index] = _scores(row_logits[: len(row)], row, top)
    return [results[i] for i in range(len(texts))]


def _scores(logits: torch.Tensor, tokens: tuple[int, ...], top: int) -> TokenScores:
    """The scores of one text from its logits, shape [tokens, vocabulary]."""
    logprobs = np.full(len(tokens), np.nan, np.float32)
    best = np.full((len(tokens), top), -1, np.int64)
    values = np.full((len(tokens), top), np.nan, np.float32)
    following = torch.tensor(tokens[1:], device=logits.device)
    for first in range(0, len(tokens) - 1, LOGIT_ROWS):
        part = torch.log_softmax(logits[first : min(first + LOGIT_ROWS, len(tokens) - 1)].float(), -1)
        positions = slice(first + 1, first + 1 + len(part))
        logprobs[positions] = part.gather(1, following[first : first + len(part), None])[:, 0].cpu().numpy()
        if top:
            likeliest = part.topk(top, -1)
            best[positions], values[positions] = likeliest.indices.cpu().numpy(), likeliest.values.cpu().numpy()
    return TokenScores(logprobs, best, values)
