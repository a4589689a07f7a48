"""Scores of video segmentation: pure functions on arrays, mergeable accumulators and evaluators."""

from __future__ import annotations

from vss2.evaluation.davis_evaluation import DAVISEvaluator
from vss2.evaluation.davis_scores import DAVISAccumulator, score_davis
from vss2.evaluation.scores import VSSAccumulator, score_vss
from vss2.evaluation.vss_evaluation import EVALUATOR_REGISTRY, VSSEvaluator
from vss2.evaluation.youtube_vos_export import YouTubeVOSExporter

__all__ = [
    "EVALUATOR_REGISTRY",
    "DAVISAccumulator",
    "DAVISEvaluator",
    "VSSAccumulator",
    "VSSEvaluator",
    "YouTubeVOSExporter",
    "score_davis",
    "score_vss",
]
