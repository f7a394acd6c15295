"""Fine-tuning a sentence encoder: the encoder and a linear head as one trainable, its loss, and its folder.

A text becomes the vector that the encoder's own folder describes (its tokenizer, truncation and pooling, unit length),
and a linear layer gives the labels' logits. The trained encoder is written as a sentence-transformers model like the
original, in JSON and safetensors, so that the same engines run it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, linear, normalize

from rung.engines.base import Floats
from rung.engines.encoders import batches, read_recipe
from rung.errors import ModelError
from rung.models.cache import cache_dir, file_sha256, publish
from rung.models.checkpoint import verify
from rung.models.reference import ModelFiles
from rung.models.tokenizer import Tokenizer, without_unknown
from rung.training.changes import Trainable, write_tensors

HEAD_RATE = 10.0  # how many times faster than the encoder the head learns (see `EncoderWithHead`)
SHORTEST = 0.6  # of the longest text of a group: a lower share pads more, a higher one makes more passes
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text as tokens, special ones included, the number of its label, and its weight."""

    tokens: tuple[int, ...]
    label: int
    mass: float = 1.0  # the weight of its loss

    def __len__(self) -> int:
        return len(self.tokens)


class EncoderWithHead(Trainable):
    """A sentence encoder and a linear head on its unit vectors, both trained.

    The head's parameters are kept divided by `HEAD_RATE`: a step of AdamW has the size of the learning rate, so the
    head's own values move that many times further than the encoder's. Without `device`, a GPU is used if there is one.

    Raises:
        ModelError: `tuning-unsupported`: it computes its vectors in a way that cannot be trained here.
    """

    def __init__(self, files: ModelFiles, device: str | None = None) -> None:
        import transformers
        from tokenizers import Tokenizer as Backend

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        if (recipe := read_recipe(files.folder)) is None:
            why = "its folder asks for more than a transformer, pooling and unit length"
            raise ModelError(
                "tuning-unsupported", f"{files.name} cannot be fine-tuned: {why}",
                hint="choose another encoder, such as `embedded-encoder`, "
                "or train a head on frozen vectors: `features`",
            )  # fmt: skip
        verify(files, "encoder")
        self.files, self.recipe = files, recipe
        # Eager: the loop would let SDPA attend to packed rows, and these are padded; texts are short.
        self.model: Any = transformers.AutoModel.from_pretrained(
            files.folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True,
            trust_remote_code=False,
        ).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # fmt: skip
        self._tokenizer = without_unknown(Backend.from_file(str(files.folder / "tokenizer.json")), files.folder)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.recipe.limit)
        self._head: dict[str, torch.nn.Parameter] = {}

    def windows(self, text: str) -> list[str]:
        """The pieces in which the encoder reads a text: itself, if it is not too long."""
        room = self.recipe.limit - int(self._tokenizer.num_special_tokens_to_add(is_pair=False))
        return [text] if len(text) <= room else Tokenizer.load(self.files.folder).pieces(text, room)

    def tokenize(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens of every text, special ones included, cut to the encoder's limit."""
        return [tuple(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    # ---- the head

    def set_head(self, weight: Floats, intercept: Floats) -> None:
        """Set the head to weight [labels, dimension] and intercept [labels]."""
        for name, values in (("weight", weight), ("intercept", intercept)):
            tensor = torch.tensor(values / HEAD_RATE, dtype=torch.float32, device=self.model.device)
            self._head[name] = torch.nn.Parameter(tensor, requires_grad=False)

    def head(self) -> tuple[Floats, Floats]:
        """The current weight and intercept."""
        weight, intercept = (HEAD_RATE * self._head[name].detach().cpu().numpy() for name in ("weight", "intercept"))
        return weight, intercept

    # ---- running

    def vectors(self, rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Compute the unit vectors [rows, dimension] of tokenized texts, in groups of similar length."""
        groups = list(of_similar_length([len(row) for row in rows]))
        device, pad = self.model.device, int(self.model.config.pad_token_id or 0)
        padded = [[rows[i] + (pad,) * (len(rows[group[0]]) - len(rows[i])) for i in group] for group in groups]
        ids = [torch.tensor(part, device=device) for part in padded]
        # All groups at once: the gradient of a look-up is as large as the table.
        embedded = self.model.get_input_embeddings()(torch.cat([part.flatten() for part in ids]))
        parts = embedded.split([part.numel() for part in ids])
        vectors = []
        for group, group_ids, part in zip(groups, ids, parts, strict=True):
            lengths = torch.tensor([len(rows[i]) for i in group], device=device)
            mask = (torch.arange(group_ids.shape[1], device=device) < lengths[:, None]).float()
            even = len(rows[group[0]]) == len(rows[group[-1]])  # attention without a mask is faster
            states = self.model(
                inputs_embeds=part.view(*group_ids.shape, -1), attention_mask=None if even else mask
            ).last_hidden_state
            if self.recipe.pooling == "cls":
                vectors.append(states[:, 0])
            elif self.recipe.pooling == "max":
                vectors.append(states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1))
            else:
                vectors.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        order = torch.tensor([i for group in groups for i in group], device=device).argsort()
        return normalize(torch.cat(vectors)[order], dim=1)

    def embed(self, rows: Sequence[tuple[int, ...]]) -> Floats:
        """Compute the unit vectors [rows, dimension] of tokenized texts, without gradients or dropout."""
        self.model.eval()
        vectors = np.zeros((len(rows), self.model.config.hidden_size), np.float32)
        with torch.no_grad():
            for part in batches([len(row) for row in rows]):
                vectors[part] = self.vectors([rows[i] for i in part]).cpu().numpy()
        return vectors

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        """Compute the logits [rows, labels] of unit vectors."""
        return HEAD_RATE * linear(vectors.to(self.model.device), self._head["weight"], self._head["intercept"])

    # ---- for the loop

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The encoder's parameters that move its vectors, then the head's."""
        used = {f"encoder.{name}": p for name, p in self.model.named_parameters() if not name.startswith("pooler.")}
        return used | {f"head.{name}": p for name, p in self._head.items()}

    def enable(self) -> None:
        """Nothing is switched: the encoder is this object's own copy."""

    def disable(self) -> None:
        """Nothing is switched."""


class LabelLoss:
    """The summed loss of some texts, a scalar with gradients: contrast between labels, and cross-entropy of the head.

    With `contrast` c it is c times the supervised contrastive loss (Khosla et al. 2020,
    https://arxiv.org/abs/2004.11362) and 1 - c times the cross-entropy, each by the rows' weights, as Gunel et al. 2021
    (https://arxiv.org/abs/2011.01403) add them. For the contrast, torch's random generator draws another text of the
    same label from all training `rows` for every text, so that each has a positive in its batch. Cosines are divided by
    `temperature`.
    """

    def __init__(
        self, trained: EncoderWithHead, rows: Sequence[LabelledText], contrast: float, temperature: float
    ) -> None:
        self.trained, self.contrast, self.temperature = trained, contrast, temperature
        self._by_label: dict[int, list[LabelledText]] = {}
        for row in rows:
            self._by_label.setdefault(row.label, []).append(row)

    def __call__(self, part: Sequence[LabelledText]) -> torch.Tensor:
        """Compute the loss of a batch."""
        batch = [*part, *map(self._another, part)] if self.contrast else part
        vectors = self.trained.vectors([row.tokens for row in batch])
        labels = torch.tensor([row.label for row in batch], device=vectors.device)
        weights = torch.tensor([row.mass for row in part], device=vectors.device).repeat(len(batch) // len(part))
        total = torch.zeros((), device=vectors.device)
        if self.contrast < 1:
            losses = cross_entropy(self.trained.logits(vectors), labels, reduction="none")
            total = total + (1 - self.contrast) * (weights * losses).sum()
        if self.contrast:
            total = total + self.contrast * (weights * contrastive_loss(vectors, labels, self.temperature)).sum()
        return total * len(part) / len(batch)

    def _another(self, row: LabelledText) -> LabelledText:
        """Draw another row of the same label, or the row itself where there is none: dropout still differs."""
        same_label = self._by_label[row.label]
        others = [other for other in same_label if other is not row] or same_label
        return others[int(torch.randint(len(others), ()))]


def of_similar_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group positions, longest text first, so that no text is shorter than `SHORTEST` of the longest of its group.

    Padded to the longest of 64 short messages, two tokens of three would be padding.
    """
    group: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if group and lengths[position] < SHORTEST * lengths[group[0]]:
            yield group
            group = []
        group.append(position)
    yield group


def contrastive_loss(vectors: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute the supervised contrastive loss of each row, the sum over positives outside the logarithm (equation 2).

    Every label in `labels` [rows] occurs twice or more; `vectors` [rows, dimension] have unit length.
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=vectors.device)
    similarity = (vectors @ vectors.T / temperature).masked_fill(itself, -torch.inf)
    likelihood = (similarity - similarity.logsumexp(1, keepdim=True)).masked_fill(itself, 0)
    positive = (labels[:, None] == labels) & ~itself
    return -(likelihood * positive).sum(1) / positive.sum(1)


def keep_encoder(trained: EncoderWithHead) -> Path:
    """Write the encoder to Rung's cache under the hash of its weights, and say where."""
    source = trained.files.folder
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / WEIGHTS
        write_tensors(trained.model.state_dict(), weights)
        folder = cache_dir() / "encoders" / file_sha256(weights)[:32]
        for pattern in ("*.json", "[!.]*/config.json"):  # configuration, tokenizer, pooling
            for file in source.glob(pattern):
                if not file.name.endswith(".index.json"):
                    copy = Path(scratch) / file.relative_to(source)
                    copy.parent.mkdir(exist_ok=True)
                    shutil.copyfile(file, copy)
        publish(folder, lambda target: shutil.copytree(scratch, target, dirs_exist_ok=True))
    return folder
