"""Evaluators and the inference loop of the embedded backend."""

from __future__ import annotations

from .evaluator import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)
from .testing import flatten_results_dict, print_csv_format

__all__ = [
    "DatasetEvaluator",
    "DatasetEvaluators",
    "flatten_results_dict",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
]
