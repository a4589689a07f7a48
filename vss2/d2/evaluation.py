"""Evaluators and the inference loop: detectron2's own where it serves, else the subset."""

from __future__ import annotations

from . import BACKEND

if BACKEND == "detectron2":
    from detectron2.evaluation.evaluator import (
        DatasetEvaluator,
        DatasetEvaluators,
        inference_context,
        inference_on_dataset,
    )
    from detectron2.evaluation.testing import flatten_results_dict, print_csv_format
else:
    from ._embedded.evaluation import (
        DatasetEvaluator,
        DatasetEvaluators,
        flatten_results_dict,
        inference_context,
        inference_on_dataset,
        print_csv_format,
    )

__all__ = [
    "DatasetEvaluator",
    "DatasetEvaluators",
    "flatten_results_dict",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
]
