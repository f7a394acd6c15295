"""The publications that the rules of the decision guide rest on."""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """A publication: how it is cited, and where it is."""

    citation: str
    url: str


def _arxiv(citation: str, number: str) -> Source:
    return Source(citation, f"https://arxiv.org/abs/{number}")


CALIBRATION = _arxiv("Zhou et al. 2024, Batch calibration", "2309.17249")
FROZEN_FEATURES = _arxiv("Tunstall et al. 2022, Efficient few-shot learning without prompts", "2209.11055")
PROMPT_WORTH = _arxiv("Le Scao & Rush 2021, How many data points is a prompt worth?", "2103.08493")
THOUSAND = _arxiv("Zhou et al. 2023, LIMA: less is more for alignment", "2305.11206")
NEIGHBOURS = _arxiv("Liu et al. 2022, What makes good in-context examples for GPT-3?", "2101.06804")
PEFT_CHEAPER = _arxiv("Liu et al. 2022, Few-shot parameter-efficient fine-tuning is better and cheaper", "2205.05638")
RETRIEVAL = _arxiv("Lewis et al. 2020, Retrieval-augmented generation", "2005.11401")
INJECTION = _arxiv("Ovadia et al. 2024, Fine-tuning or retrieval?", "2312.05934")
REASONING = _arxiv("Sprague et al. 2024, To CoT or not to CoT?", "2409.12183")
REASONING_SCALE = _arxiv("Wei et al. 2022, Chain-of-thought prompting", "2201.11903")
SOFT_PROMPT_SCALE = _arxiv("Lester et al. 2021, The power of scale for prompt tuning", "2104.08691")
DOMAIN = _arxiv("Gururangan et al. 2020, Don't stop pretraining", "2004.10964")
QLORA = _arxiv("Dettmers et al. 2023, QLoRA", "2305.14314")
OPERATIONS = _arxiv("Kaplan et al. 2020, Scaling laws, section 2.1", "2001.08361")
