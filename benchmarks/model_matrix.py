"""What Rung computes with each family of models, against the model's plain forward pass: `rung models matrix`.

    python benchmarks/model_matrix.py          # all families and columns
    python benchmarks/model_matrix.py "Llama 3" Qwen3 --columns score,gguf

It keeps the cells in src/rung/models/matrix.json, and writes their table into docs/choosing-a-model.md.

Every family is a tiny random model, in a process of its own. A cell is `exact` (with the share that LoRA reaches),
`refused`, with the reason, `error`, for what neither works nor is refused, or `wrong`. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "src" / "rung" / "models" / "matrix.json"
PAGE = ROOT / "docs" / "choosing-a-model.md"
COLUMNS = ("chat", "thinking", "score", "generate", "packed", "gradient", "lora", "merge", "gguf", "openvino")
LIBRARIES = ("transformers", "peft", "optimum-intel", "openvino-genai", "gguf", "xllamacpp")
SECONDS = 600  # for one family
VOCABULARY = 320

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
HEADS = {"head_dim": 16}
WINDOW = {"sliding_window": 16}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_group": 1, "topk_group": 1}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
GRANITE: dict[str, Any] = MAMBA | {"num_local_experts": 0, "shared_intermediate_size": 96, "logits_scaling": 4.0}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 12, "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
TURNED = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}}
SIGHT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2, "depth": 1,
         "num_heads": 2, "out_hidden_size": 64, "image_size": 28, "patch_size": 14}  # fmt: skip
GPT = {"n_positions": 256, "n_embd": 64, "n_layer": 3, "n_head": 4}
# family: transformers' configuration, its settings, and the makers' chat template among those that TRL stores
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "Llama 3": ("Llama", {}, "llama3"),
    "Llama 4 (text)": (
        "Llama4Text",
        HEADS
        | EXPERTS
        | {
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 24,
            "no_rope_layer_interval": 4,
        },
        "",
    ),
    "Llama 3.2 Vision": (
        "Mllama",
        {
            "text_config": BASE
            | {"cross_attention_layers": [2], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            "vision_config": SIGHT
            | {
                "attention_heads": 2,
                "num_global_layers": 1,
                "vision_output_dim": 128,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1]],
            },
        },
        "",
    ),
    "Mistral": ("Mistral", {"sliding_window": None}, ""),
    "Mistral with a window": ("Mistral", WINDOW, ""),
    "Ministral": ("Ministral", HEADS | WINDOW | {"layer_types": ["sliding_attention", "full_attention"] * 2}, ""),
    "Ministral 3": ("Ministral3", HEADS, ""),
    "Mistral 3 (wrapper)": (
        "Mistral3",
        {
            "text_config": BASE | HEADS | {"model_type": "mistral"},
            "vision_config": SIGHT | {"model_type": "pixtral"},
        },
        "",
    ),
    "Mixtral": ("Mixtral", EXPERTS, ""),
    "Qwen2, Qwen2.5": ("Qwen2", {}, "qwen2_5"),
    "Qwen2-MoE": ("Qwen2Moe", EXPERTS | {"shared_expert_intermediate_size": 48}, ""),
    "Qwen2.5-VL": ("Qwen2_5_VL", {"text_config": BASE | TURNED, "vision_config": SIGHT}, ""),
    "Qwen3": ("Qwen3", HEADS, "qwen3"),
    "Qwen3-MoE": ("Qwen3Moe", HEADS | EXPERTS, "qwen3_instruct_2507"),
    "Qwen3-VL": (
        "Qwen3VL",
        {"text_config": BASE | HEADS | TURNED, "vision_config": SIGHT | {"deepstack_visual_indexes": [0]}},
        "",
    ),
    "Qwen3-Next": ("Qwen3Next", HEADS | EXPERTS | LINEAR | {"shared_expert_intermediate_size": 48}, ""),
    "Qwen3.5": ("Qwen3_5Text", HEADS | LINEAR, "qwen3_5_think"),
    "Qwen3.5-MoE": ("Qwen3_5MoeText", HEADS | EXPERTS | LINEAR | {"shared_expert_intermediate_size": 48}, ""),
    "Gemma": ("Gemma", HEADS, "gemma"),
    "Gemma 2": ("Gemma2", HEADS | WINDOW | {"query_pre_attn_scalar": 16}, "gemma"),
    "Gemma 3 (text)": ("Gemma3Text", HEADS | WINDOW | {"num_hidden_layers": 6, "query_pre_attn_scalar": 16}, "gemma3"),
    "Gemma 3n (text)": (
        "Gemma3nText",
        HEADS
        | WINDOW
        | {
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 0,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "gemma3",
    ),
    "Gemma 4 (text)": (
        "Gemma4Text",
        HEADS
        | WINDOW
        | {
            "global_head_dim": 16,
            "num_hidden_layers": 6,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        },
        "gemma4",
    ),
    "Phi-2": ("Phi", {"num_key_value_heads": 4}, ""),
    "Phi-3, Phi-4": ("Phi3", {"sliding_window": None}, "phi3"),
    "Phi-MoE": ("Phimoe", EXPERTS, ""),
    "SmolLM3": ("SmolLM3", {}, ""),
    "OLMo": ("Olmo", {}, ""),
    "OLMo 2": ("Olmo2", {}, ""),
    "OLMo 3": ("Olmo3", WINDOW, ""),
    "OLMoE": ("Olmoe", EXPERTS, ""),
    "Granite 3": (
        "Granite",
        {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
        "",
    ),
    "Granite 4": (
        "GraniteMoeHybrid",
        GRANITE | {"layer_types": ["attention"] * 4, "position_embedding_type": "rope"},
        "",
    ),
    "Granite 4-H": ("GraniteMoeHybrid", GRANITE | {"layer_types": ["mamba", "attention"] * 2}, ""),
    "LFM2": ("Lfm2", {"full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False}, "lfm2"),
    "Falcon-H1": ("FalconH1", HEADS | MAMBA | {"mamba_d_ssm": 64, "mamba_n_heads": 4}, ""),
    "Bamba": ("Bamba", MAMBA | {"attn_layer_indices": [1, 3]}, ""),
    "Jamba": (
        "Jamba",
        {
            "num_experts": 2,
            "expert_layer_period": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 16,
            "use_mamba_kernels": False,
        },
        "",
    ),
    "Zamba 2": (
        "Zamba2",
        {
            "num_key_value_heads": 4,
            "mamba_d_state": 16,
            "n_mamba_heads": 4,
            "mamba_ngroups": 1,
            "chunk_size": 16,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "hybrid_layer_ids": [1, 3],
        },
        "",
    ),
    "Nemotron": ("Nemotron", {}, ""),
    "Nemotron 3 (hybrid)": (
        "NemotronH",
        HEADS
        | ROUTED
        | {
            "layers_block_type": ["mamba", "attention", "mamba", "moe"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 1,
            "chunk_size": 16,
            "n_shared_experts": 1,
            "moe_shared_expert_intermediate_size": 48,
        },
        "nemotron_3_nano",
    ),
    "gpt-oss": ("GptOss", HEADS | EXPERTS | WINDOW, "gptoss"),
    "DeepSeek V2": ("DeepseekV2", ROUTED | LATENT, ""),
    "DeepSeek V3": ("DeepseekV3", ROUTED | LATENT, "deepseekv3"),
    "GLM-4": ("Glm4", HEADS, ""),
    "GLM-4-MoE": ("Glm4Moe", HEADS | ROUTED | {"n_shared_experts": 1, "first_k_dense_replace": 1}, "glm4moe"),
    "Exaone 4": ("Exaone4", WINDOW | {"sliding_window_pattern": 4}, ""),
    "Cohere": ("Cohere", {"logit_scale": 0.25}, "cohere"),
    "Cohere 2": ("Cohere2", WINDOW | {"logit_scale": 0.25}, "cohere2"),
    "ERNIE 4.5": ("Ernie4_5", HEADS, ""),
    "Hunyuan": ("HunYuanDenseV1", HEADS, ""),
    "Seed-OSS": ("SeedOss", HEADS, ""),
    "Doge": ("Doge", {}, ""),
    "Apertus": ("Apertus", {}, ""),
    "Arcee": ("Arcee", {}, ""),
    "StableLM": ("StableLm", {}, ""),
    "StarCoder 2": ("Starcoder2", {}, ""),
    "Falcon": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, ""),
    "GPT-NeoX": ("GPTNeoX", {}, ""),
    "ModernBERT decoder": ("ModernBertDecoder", {"local_attention": 16}, ""),
    "MiniMax": ("MiniMax", HEADS | EXPERTS | {"block_size": 8}, ""),
    "MiniMax M2": ("MiniMaxM2", HEADS | EXPERTS, ""),
    "GPT-2": ("GPT2", GPT, ""),
    "GPT-J": ("GPTJ", GPT | {"rotary_dim": 8}, ""),
    "OPT": ("OPT", {"ffn_dim": 96}, ""),
    "OPT-350M": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False}, ""),
    "BLOOM": ("Bloom", {"n_layer": 3, "n_head": 4}, ""),
    "MPT": ("Mpt", {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 256, "expansion_ratio": 2}, ""),
    "Mamba": ("Mamba", {"state_size": 16}, ""),
    "Mamba 2": ("Mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 16}, ""),
}


# ---- one family, in a process of its own


def build(name: str, folder: Path) -> None:
    """Write a random model with a byte-level tokenizer and its maker's chat template, or ChatML."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from rung.models.checkpoint import text_class

    kind, settings, template = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(settings if "text_config" in settings else BASE | settings))
    model = text_class(config.model_type).from_config(config).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.dim() > 1 and p.std() < 0.05:
                p.normal_(0, 0.15)
            elif "norm" in key or key.endswith("sinks"):
                p.add_(0.3 * torch.randn_like(p))
    model.save_pretrained(folder)
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet, "th", "the"])}
    backend = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    backend.save(str(folder / "tokenizer.json"))
    chat = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    if template:
        import trl

        chat = (Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja").read_text("utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                "unk_token": "<unk>", "add_bos_token": False, "chat_template": chat}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


class Family:
    """A tiny model in Rung's engine and in transformers' own, with plain attention.

    In a row of one chunk there is nothing that transformers' scan of Nemotron-H and Zamba 2 could sum wrongly. Their
    kernels have no smallest step of time.
    """

    def __init__(self, name: str, folder: Path) -> None:
        import numpy as np
        import torch

        from rung.engines.opening import open_torch
        from rung.models.checkpoint import text_class
        from rung.training.examples import TokenizedExample

        self.name, self.folder = name, folder
        self.engine = open_torch(str(folder))
        one_chunk = {"chunk_size": 256, "time_step_min": 1e-30} if "chunk_size" in FAMILIES[name][1] else {}
        self.plain = (
            text_class(self.engine.model.config.model_type)
            .from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **one_chunk)
            .eval()
        )
        draw = np.random.default_rng(0)

        def some(low: int, high: int) -> tuple[int, ...]:
            return tuple(int(t) for t in draw.integers(5, 255, draw.integers(low, high)))

        head = some(12, 13)
        self.rows = [TokenizedExample.answered(head + some(5, 40), some(2, 5), f"row {i}") for i in range(5)]
        self.continuations = (*(some(1, 5) for _ in range(4)),)

    def logprobs(self, ids: Any, model: Any = None) -> Any:
        """The plain forward pass: the log-probabilities of every next token."""
        import torch

        with torch.no_grad():
            logits = (model or self.plain)(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
        return torch.log_softmax(logits.float(), -1)

    def summed(self, prompt: Any, answer: Any) -> float:
        """The log-probability of an answer by the plain forward pass."""
        table = self.logprobs((*prompt, *answer))
        return float(sum(table[len(prompt) + i - 1, token] for i, token in enumerate(answer)))

    def chat(self) -> str:
        """Prompt and answer together are what the maker's template writes."""
        from transformers import AutoTokenizer

        from rung.models.messages import encode_messages

        if not FAMILIES[self.name][2]:
            return "n.a."
        asked = {"role": "user", "content": "question"}
        turns = (asked, {"role": "assistant", "content": "ANSWER"})
        theirs = AutoTokenizer.from_pretrained(self.folder)
        switches: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"thinking": False})
        texts = [theirs.apply_chat_template(list(turns), tokenize=False, **switch) for switch in switches]
        prompt = self.engine.tokenizer.decode(encode_messages(self.engine.tokenizer, (asked,)), skip_special=False)
        return "exact" if any(text.startswith(f"{prompt}ANSWER") for text in texts) else "wrong"

    def thinking(self) -> str:
        """With thinking on, the prompt is the template's own, up to the beginning of a thought."""
        from transformers import AutoTokenizer

        from rung.errors import ModelError
        from rung.models.messages import encode_messages, with_thinking, with_thought

        if not FAMILIES[self.name][2]:
            return "n.a."
        asked = ({"role": "user", "content": "question"},)
        tokenizer = self.engine.tokenizer
        try:
            on = encode_messages(tokenizer, with_thought(with_thinking(asked, "on"), None))  # type: ignore[arg-type]
        except ModelError as unknown:
            if unknown.code == "no-thinking":
                return "n.a."
            raise
        text, theirs = tokenizer.decode(on, skip_special=False), AutoTokenizer.from_pretrained(self.folder)
        if text == tokenizer.decode(encode_messages(tokenizer, asked), skip_special=False):
            return "n.a."  # the template has no switch
        switches: tuple[dict[str, Any], ...] = ({"enable_thinking": True}, {"thinking": True}, {})
        for switch in switches:
            prompt = theirs.apply_chat_template(list(asked), tokenize=False, add_generation_prompt=True, **switch)
            if text.startswith(prompt):
                return "exact"
        return "wrong"

    def score(self) -> str:
        """Log-probabilities of answers."""
        from rung.engines.base import ScoreRequest

        scored = self.engine.score([ScoreRequest(row.prompt, self.continuations) for row in self.rows])
        wanted = [[self.summed(row.prompt, answer) for answer in self.continuations] for row in self.rows]
        return _verdict(
            abs(a - b) for s, w in zip(scored, wanted, strict=True) for a, b in zip(s.logprobs, w, strict=True)
        )

    def generate(self) -> str:
        """Greedy texts."""
        from rung.engines.base import GenerateRequest, Sampling

        answers = self.engine.generate([GenerateRequest(row.prompt, Sampling(max_tokens=8)) for row in self.rows])
        return self._same_texts([answer.text for answer in answers])

    def _same_texts(self, texts: list[str]) -> str:
        tokenizer = self.engine.tokenizer
        for row, text in zip(self.rows, texts, strict=True):
            ids: list[int] = []
            while (
                len(ids) < 8 and (best := int(self.logprobs((*row.prompt, *ids))[-1].argmax())) not in tokenizer.eos_ids
            ):
                ids.append(best)
            # A character whose last bytes are not there yet has no text.
            if tokenizer.decode(ids).rstrip("\ufffd").strip() != text.rstrip("\ufffd").strip():
                return "wrong"
        return "exact"

    def packed(self) -> str:
        """The loss of packed rows."""
        import torch

        from rung.training.loss import AnswerLoss, packed_layers

        wanted = -sum(self.summed(row.prompt, row.tokens[len(row.prompt) :]) for row in self.rows)
        with packed_layers(self.engine.model), torch.no_grad():
            loss = float(AnswerLoss(self.engine.model)(self.rows))
        return _verdict([abs(loss - wanted) / wanted])

    def gradient(self) -> str:
        """The gradient of packed rows, in all weights, relative to that of rows one by one."""
        import torch

        from rung.training.loss import AnswerLoss, packed_layers

        both = (self.plain, self.engine.use(None))
        for model in both:
            model.requires_grad_(True)
        for row in self.rows:
            first, last = row.spans[0]
            logits = self.plain(input_ids=torch.tensor([row.tokens]), use_cache=False).logits[0, first - 1 : last - 1]
            torch.nn.functional.cross_entropy(logits, torch.tensor(row.tokens[first:last]), reduction="sum").backward()
        with packed_layers(both[1]):
            AnswerLoss(both[1])(self.rows).backward()
        wanted, found = ({n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in both)
        for model in both:
            model.requires_grad_(False)
            model.zero_grad()
        if wanted.keys() != found.keys():
            return f"wrong, in {sorted(wanted.keys() ^ found.keys())[0]}"
        apart = sum(float((wanted[name] - found[name]).square().sum()) for name in wanted)
        return _verdict([(apart / sum(float(g.square().sum()) for g in wanted.values())) ** 0.5])

    def lora(self) -> str:
        """Two steps of training, and the share of the weights that LoRA reaches."""
        from rung.rungs import LoRA
        from rung.training.config import TrainConfig
        from rung.training.loop import train

        rung = LoRA(rank=2)
        change = rung.change(self.engine, None)  # type: ignore[arg-type]
        schedule = TrainConfig(learning_rate=0.01, epochs=2, batch_size=5, precision="float32")
        try:
            course = train(self.engine.model, change, self.rows, schedule)
        finally:
            change.remove()
        lower = course.losses[-1][1] < course.losses[0][1]
        return f"exact, {rung.reached_share(self.engine):.0%}" if lower else "wrong"

    def merge(self) -> str:
        """The logits of the base model with the merged tensors are those of the model with the adapter."""
        import torch

        from rung.rungs import LoRA

        change = LoRA(rank=2).change(self.engine, None)  # type: ignore[arg-type]
        torch.manual_seed(1)
        for p in change.parameters().values():
            p.data.add_(0.1 * torch.randn_like(p))
        change.enable()
        ids = self.rows[0].tokens
        ours = self.logprobs(ids, self.engine.model)
        change.disable()
        merged = change.merged()
        change.remove()
        before = {key: self.plain.get_parameter(key).data for key in merged}
        for key, tensor in merged.items():
            self.plain.get_parameter(key).data = tensor.clone()
        theirs = self.logprobs(ids)
        for key, tensor in before.items():
            self.plain.get_parameter(key).data = tensor
        return _verdict([float((ours - theirs).abs().max())])

    def gguf(self) -> str:
        """The probabilities of the next token in llama.cpp."""
        from rung.export.gguf import write_gguf

        file = self.folder / "m.gguf"
        write_gguf(self.folder, file, precision="f32")
        sys.path.insert(0, str(ROOT / "tests" / "training"))
        import llama_cpp

        ids = list(self.rows[0].prompt)
        theirs = llama_cpp.logprobs(file, ids, VOCABULARY, spoken=5 + 64)
        ours = self.logprobs(ids)[-1].tolist()
        # llama.cpp looks GELU up in half precision; what is wrong lies further apart by far.
        return _verdict((abs(a - b) for a, b in zip(ours, theirs, strict=True)), 0.02)

    def openvino(self) -> str:
        """Greedy texts of the fp32 export."""
        from rung.engines.base import GenerateRequest, Sampling
        from rung.engines.openvino import OpenVinoEngine
        from rung.models.reference import resolve

        engine = OpenVinoEngine(resolve(str(self.folder)), precision="fp32")
        answers = engine.generate([GenerateRequest(row.prompt, Sampling(max_tokens=8)) for row in self.rows])
        return self._same_texts([answer.text for answer in answers])


def _verdict(differences: Any, tolerance: float = 1e-3) -> str:
    largest = max(differences)
    return "exact" if largest < tolerance else f"wrong, by {largest:.2g}"


def run_family(name: str, columns: list[str]) -> dict[str, str]:
    """Fill the cells of one family, here."""
    import torch

    from rung.errors import RungError

    torch.set_num_threads(1)
    cells: dict[str, str] = {}

    def made() -> Family:
        build(name, folder)
        return Family(name, folder)

    def attempt(compute: Any) -> Any:
        try:
            return compute()
        except RungError as refused:
            return f"{'error' if refused.code == 'export-failed' else 'refused'}: {refused.message}"
        except Exception as error:  # what neither works nor is refused is what this script looks for
            return f"error: {type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error) else ''}"

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        family = attempt(made)
        for column in columns:
            cells[column] = family if isinstance(family, str) else attempt(getattr(family, column))
            cells[column] = cells[column].replace(scratch, "")
    return cells


# ---- all families


def in_process(name: str, columns: list[str]) -> dict[str, str]:
    """The cells of one family, from a process of its own: a fork of this one, which has imported the libraries."""
    from rung.models.cache import cache_dir

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        os.environ["RUNG_CACHE"] = cache
        sender.send(json.dumps(run_family(name, columns)))

    libraries = cache_dir() / "export-libraries"  # of all families, downloaded once
    libraries.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        (Path(cache) / "export-libraries").symlink_to(libraries)
        process = context.Process(target=work)
        process.start()
        sender.close()
        try:
            if not receiver.poll(SECONDS):
                process.kill()
                return dict.fromkeys(columns, f"error: took over {SECONDS} s")
            cells: dict[str, str] = json.loads(receiver.recv())
            return cells
        except EOFError:
            return dict.fromkeys(columns, f"error: exit code {process.exitcode}")
        finally:
            process.join()


def write_page(values: dict[str, dict[str, str]]) -> None:
    """Replace the table of families in the page."""
    from rung.cli.render_models import cell

    lines = [f"| family | {' | '.join(COLUMNS)} |", f"|{'---|' * (1 + len(COLUMNS))}"]
    lines += [f"| {name} | {' | '.join(cell(own[c]) for c in COLUMNS)} |" for name, own in values.items()]
    before, _, rest = PAGE.read_text("utf-8").partition("| family |")
    after = rest.partition("\n\n")[2]
    PAGE.write_text(before + "\n".join(lines) + "\n\n" + after, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="by default all")
    parser.add_argument("--columns", default=",".join(COLUMNS))
    parser.add_argument("--table", type=Path, default=TABLE, help="where the cells are kept")
    options = parser.parse_args()
    import peft  # noqa: F401  # here, so that the forks have it
    import trl  # noqa: F401

    import rung.engines.torch_engine  # noqa: F401

    columns = options.columns.split(",")
    if "openvino" in columns:
        import openvino_genai  # noqa: F401
        import optimum.intel  # noqa: F401
    table = json.loads(options.table.read_text("utf-8")) if options.table.is_file() else {}
    cells: dict[str, dict[str, str]] = table.get("families", {})
    for name in options.families or FAMILIES:
        known = cells.get(name, {}) | (own := in_process(name, columns))
        cells[name] = {column: known[column] for column in COLUMNS if column in known}
        print(name, json.dumps(own), flush=True)
        ordered = {key: cells[key] for key in FAMILIES if key in cells}
        text = json.dumps({"versions": {key: version(key) for key in LIBRARIES}, "families": ordered}, indent=1)
        options.table.write_text(text + "\n", "utf-8")
    if options.table == TABLE:
        write_page(ordered)
    bad = sum(cell.startswith(("wrong", "error")) for own in cells.values() for cell in own.values())
    print(json.dumps({"families": len(cells), "cells": sum(map(len, cells.values())), "wrong_or_error": bad}))


if __name__ == "__main__":
    main()
