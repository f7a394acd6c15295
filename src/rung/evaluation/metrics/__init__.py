"""Metrics: how good is one answer? By family, with scores of whole sets, and the registry that names them.

A metric is a plain function `(prediction, references) -> score in [0, 1]`; with several references the best match
counts. Task files name one (`metric: rougeL`), give settings where it takes any (`metric: {name: judge, model: ...}`),
or point at the user's own (`metric: mymodule:score`).
"""

from rung.evaluation.metrics.base import Case, Metric, MetricFunction, RowScore
from rung.evaluation.metrics.labels import (
    OTHER,
    Confusion,
    LabelF1,
    accuracy,
    cohens_kappa,
    confusion,
    label_f1,
    labels_exact,
    labels_f1,
    macro_f1,
)
from rung.evaluation.metrics.records import json_exact, json_field_f1, json_field_precision, json_field_recall
from rung.evaluation.metrics.registry import METRICS, WITH_SETTINGS, get_metric
from rung.evaluation.metrics.text import (
    bleu,
    chrf,
    corpus_bleu,
    corpus_chrf,
    edit_similarity,
    exact_match,
    final_number,
    refusing,
    rouge1,
    rouge2,
    rouge_l,
    sari,
    token_f1,
)

__all__ = [
    "METRICS", "OTHER", "WITH_SETTINGS", "Case", "Confusion", "LabelF1", "Metric", "MetricFunction", "RowScore",
    "accuracy", "bleu", "chrf", "cohens_kappa", "confusion", "corpus_bleu", "corpus_chrf", "edit_similarity",
    "exact_match", "final_number", "get_metric", "json_exact", "json_field_f1", "json_field_precision",
    "json_field_recall", "label_f1", "labels_exact", "labels_f1", "macro_f1", "refusing", "rouge1", "rouge2",
    "rouge_l", "sari", "token_f1",
]  # fmt: skip
