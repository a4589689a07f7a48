"""Scores of video segmentation: pure functions on arrays, mergeable accumulators and evaluators."""

from __future__ import annotations

from vss2.evaluation.scores import VSSAccumulator, score_vss
from vss2.evaluation.vss_evaluation import EVALUATOR_REGISTRY, VSSEvaluator

__all__ = ["EVALUATOR_REGISTRY", "VSSAccumulator", "VSSEvaluator", "score_vss"]
