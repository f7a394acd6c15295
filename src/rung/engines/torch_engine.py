"""The torch engine: transformers models on CPU or CUDA. It also trains, so tuned parts run where they were made."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rung.engines.base import (
    EngineInfo,
    Floats,
    GenerateRequest,
    Generation,
    Prompt,
    Scored,
    ScoreRequest,
    Session,
    TokenScores,
)
from rung.engines.cuda_batching import generate as generate_paged
from rung.engines.cuda_batching import paged_attention, preferred_dtype, suits
from rung.engines.label_trie import build_trie
from rung.engines.local import LocalModel
from rung.errors import EngineError, needed_by
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    from rung.training.changes import Change

SEARCH_PAYS = 0.7  # best-first search is worth its rounds while it runs less than this share of the trie
PROBE = 16  # rows that tell


class TorchEngine(LocalModel):
    """One base model in memory, with any number of changes of its weights (adapters, soft prompts, patches) beside it.

    Args:
        files: the resolved model.
        device: `cpu`, `cuda` or `auto`.
        quantization: how the base model is held: empty for the device's precision, `nf4` for 4-bit NormalFloat.

    Attributes:
        base_fingerprint: tells the base model that changes are trained on, quantization included.

    Raises:
        EngineError: torch is not installed, the device is not there, or the architecture is not supported.
    """

    def __init__(self, files: ModelFiles, *, device: str = "auto", quantization: str = "") -> None:
        torch, transformers = _libraries()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise EngineError("no-cuda", "no CUDA device is visible to torch", hint="use `--device cpu`")
        from rung.engines.attention import best_attention  # it needs torch, which may be missing

        precision = preferred_dtype(device)
        super().__init__(files)
        self.base_fingerprint = f"{files.fingerprint}/{quantization}" if quantization else files.fingerprint
        config = transformers.AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            files.folder, dtype=precision, attn_implementation=best_attention(config), local_files_only=True,
            trust_remote_code=False,
            **(_quantized(quantization, device, precision) if quantization else {}),
        )  # fmt: skip
        if quantization:
            keep_gradients(self.model)
        else:
            self.model.to(device)
        self.model.eval()
        self.model.requires_grad_(False)
        self._changes: dict[str, Change] = {}
        self._active: str | None = None
        self._search_pays: dict[Any, bool] = {}
        self._paged = paged_attention(device)
        self._info = EngineInfo(
            engine="torch",
            model=files.name,
            device=device,
            dtype=quantization or str(precision).removeprefix("torch."),
            parameters=files.parameters,
            context=files.context,
            fingerprint=f"{self.base_fingerprint}/torch/{precision}",
            details={"generation": f"continuous batching, {self._paged}" if self._paged else "padded batches"},
        )

    @property
    def info(self) -> EngineInfo:
        """Say what runs where."""
        return self._info

    # ---- changes of the weights

    def use(self, adapter: str | None) -> Any:
        """Return the model with exactly this change of its weights (a folder, or a name given to `lend`), or plain."""
        if adapter != self._active:
            if self._active is not None:
                self._changes[self._active].disable()
                self._active = None
            if adapter is not None:
                self._change(adapter).enable()
                self._active = adapter
        self.model.eval()
        return self.model

    def _change(self, adapter: str) -> Change:
        """Return a change that is on the model, putting it there first; those it cannot stand beside make room."""
        if adapter not in self._changes:
            from rung.training.changes import attach, family_of

            self.make_room(family_of(Path(adapter)))
            self._changes[adapter] = attach(self.model, Path(adapter), fingerprint=self.base_fingerprint)
        return self._changes[adapter]

    def merged(self, adapter: str) -> dict[str, Any]:
        """Return the base model's parameters that this change moves, with it in them (see `Change.merged`)."""
        return self._change(adapter).merged()

    @contextmanager
    def lend(self, change: Change, name: str) -> Iterator[None]:
        """Answer requests for adapter `name` with `change`, which is on the model already, while the block runs."""
        self._changes[name] = change
        try:
            yield
        finally:
            if self._active == name:
                self.use(None)
            del self._changes[name]

    def make_room(self, family: str | None) -> None:
        """Take all changes off that a new one of this family cannot stand beside; they come back when asked for."""
        self.use(None)
        for name, other in list(self._changes.items()):
            if family is not None and other.family not in (None, family):
                self._changes.pop(name).remove()

    @contextmanager
    def running(self, adapter: str | None) -> Iterator[Any]:
        """Lend the model with exactly this change of its weights, run the lean way where it has one."""
        model = self.use(adapter)
        with self._changes[adapter].lean() if adapter is not None else nullcontext():
            yield model

    def prompt_tokens(self, prompt: Prompt, room: int, adapter: str | None) -> tuple[int, ...]:
        """Return the prompt's tokens behind the virtual tokens of a soft prompt, checked against the context."""
        if adapter is None or not (prefix := self._change(adapter).prefix):
            return self.fitting(prompt, room)
        return (*prefix, *self.fitting(prompt, room + len(prefix)))

    # ---- the three calls

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        progress: Progress = QUIET,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Generation]:
        """Complete every request, in batches of similar length and equal sampling."""
        from rung.engines.torch_decoding import decode

        groups: dict[Any, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[(request.adapter, request.sampling, request.constraint, request.logprobs)].append(i)
        results: dict[int, Generation] = {}
        progress.start("generating", len(requests))
        for (adapter, sampling, constraint, logprobs), members in groups.items():
            prompts = [self.prompt_tokens(requests[i].prompt, sampling.max_tokens, adapter) for i in members]
            # Virtual tokens are put in by hooks, which the CUDA graphs of continuous batching would leave out.
            virtual = adapter is not None and bool(self._change(adapter).prefix)
            with self.running(adapter) as model:
                if self._paged and not virtual and suits(model, sampling, constraint, logprobs=logprobs):
                    done = generate_paged(
                        model, self.tokenizer, prompts, sampling, attention=self._paged, progress=progress,
                        cancelled=cancelled,
                    )  # fmt: skip
                else:
                    done = decode(
                        model, self.tokenizer, prompts, sampling, constraint, logprobs=logprobs, progress=progress,
                        cancelled=cancelled,
                    )  # fmt: skip
            results.update(zip(members, done, strict=True))
        progress.finish()
        return [results[i] for i in range(len(requests))]

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion in pieces as it is made."""
        from rung.engines.torch_decoding import stream

        prompt = self.prompt_tokens(request.prompt, request.sampling.max_tokens, request.adapter)
        with self.running(request.adapter) as model:
            pieces = stream(model, self.tokenizer, prompt, request.sampling, request.constraint)
            while (piece := next(pieces, None)) is not None:
                yield piece
                self.use(request.adapter)  # whoever reads the stream may have used the model meanwhile

    def session(self) -> Session:
        """Return a session: completions that wait begin as a batch of their own, and batches take turns."""
        from rung.engines.torch_session import TorchSession

        return TorchSession(self)

    def read(self, texts: Sequence[tuple[int, ...]], *, top: int = 1, adapter: str | None = None) -> list[TokenScores]:
        """Score every token of every text, given as token ids; virtual tokens of a soft prompt are left out again."""
        from rung.engines.token_scores import token_scores

        rows = [self.prompt_tokens(text, 0, adapter) for text in texts]
        with self.running(adapter) as model:
            scored = token_scores(model, rows, top)
        return [one.behind(len(row) - len(text)) for one, text, row in zip(scored, texts, rows, strict=True)]

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
        from rung.engines.tree_scoring import score_all, score_best

        trie = build_trie(like.continuations)
        if not like.best:
            return score_all(model, prompts, trie, done=progress.advance)
        labels = len(like.continuations)
        divisor = np.array(like.divisor, np.float32) if like.divisor else np.ones(labels, np.float32)
        bias = np.array(like.bias, np.float32) if like.bias else np.zeros(labels, np.float32)
        # Where the model has no opinion (zero-shot, many labels) the search opens most of the trie, and one pass over
        # all of it is cheaper. The first rows tell, for all that follow with the same labels and weights and prompts
        # of the same size (demonstrations make prompts longer, and opinions firmer).
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
        """Return the mean hidden state of each text, shape [texts, hidden size], unit length.

        States are taken at two thirds of the depth: the last layers turn toward predicting the next token.
        """
        from rung.engines.hidden_states import mean_states

        prompts = [self.fitting(self.tokenizer.encode_plain(text) or (0,), 0) for text in texts]
        progress.start("embedding", len(texts))
        states = mean_states(self.use(None), prompts, done=progress.advance)
        progress.finish()
        return states


def _quantized(name: str, device: str, precision: Any) -> dict[str, Any]:
    """Return the options that load a model in 4 bits (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""
    if name != "nf4":
        raise EngineError("unknown-quantization", f"no quantization is named {name!r}", hint="`nf4` is the only one")
    for library in ("bitsandbytes", "accelerate"):
        if find_spec(library) is None:
            raise EngineError(
                "missing-extra", f"a base model in 4 bits needs {library}", hint=f"uv pip install {library}"
            )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=precision
    )
    return {"quantization_config": config, "device_map": device}


def keep_gradients(model: Any) -> None:
    """Keep the weights of a model in 4 bits in the layout that gradients pass through.

    On processors with AVX-512 for bfloat16, bitsandbytes (0.50.2) packs a layer's weights for inference at its first
    evaluation, and never unpacks them: training after it runs through a product that has no gradient.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _libraries() -> tuple[Any, Any]:
    with needed_by("the torch engine", error=EngineError):
        import torch
        import transformers
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers
