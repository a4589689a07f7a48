"""Evaluator of video object segmentation on DAVIS for detectron2's `inference_on_dataset`."""

from __future__ import annotations

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vss2.d2.evaluation import DatasetEvaluator
from vss2.d2.utils import comm
from vss2.data.image_io import read_label
from vss2.errors import InputError
from vss2.evaluation.answer_ledger import AnswerLedger, check_ranks
from vss2.evaluation.davis_report import davis_table, in_percent, write_davis_report
from vss2.evaluation.davis_scores import METRICS, DAVISAccumulator
from vss2.evaluation.mask_export import MaskExport, answer_mask
from vss2.evaluation.vss_evaluation import EVALUATOR_REGISTRY

logger = logging.getLogger(__name__)


@EVALUATOR_REGISTRY.register()
class DAVISEvaluator(DatasetEvaluator):
    """Scores masks frame by frame as they come (J and F), and writes them as result files.

    Frames without a label file are written, not scored. Of a sequence of which only the first
    frame is annotated (test-dev) nothing can be scored; its masks are for the server.

    Args:
        dataset_name: registered data set; names the files of results.
        output_dir: where masks, `submission.zip` (sequences at its root, as DAVIS servers want
            it) and the scores go; None writes nothing.
        task: "semi-supervised", "unsupervised" or "davis-2016", see `score_davis`.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike[str] | None = None,
        task: str = "semi-supervised",
    ) -> None:
        self.dataset_name = str(dataset_name)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.task = str(task)
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self._scores = DAVISAccumulator(self.task)
        self._ledger = AnswerLedger()
        self._videos: list[str] = []
        self._labelled: Counter[str] = Counter()
        self._export = None
        if self.output_dir is not None:
            self._export = MaskExport(self.output_dir, "", binary=self.task == "davis-2016")

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Score and write the answers that are ready.

        Args:
            inputs: evaluation items with "video_id", "frame_index" and "last_frame".
            outputs: none, one or several dicts with "video_id", "frame_index", "file_name",
                "label_file" (None: the frame is not scored) and "mask" (H, W) of the label's size.

        Raises:
            InputError: an answer is missing or out of order; see `DAVISAccumulator.add`.
            InputFileError: a label cannot be read or a mask not be written.
        """
        for item in inputs:
            self._ledger.expect(item)
        for output in outputs:
            self._ledger.take(output)
            mask, video = answer_mask(output), str(output["video_id"])
            if self._export is not None:
                self._export.write(output, mask)
            if output.get("label_file") is not None:
                self._labelled[video] += 1
                truth = read_label(output["label_file"])
                self._scores.add(video, truth, mask, Path(output["label_file"]).name)
        for video in self._ledger.settled():
            self._videos.append(video)
            if self._labelled.pop(video, 0) > 1:
                self._scores.finish(video)
            else:
                self._scores.discard(video)

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Merge the ranks' scores, log tables and write the files.

        Returns:
            On rank 0 {"vos": {metric: percent}}: "J&F", "J" and "F" (detectron2 prints only names
            without a dash), then those of `score_davis`; {} on other ranks, and where only first
            frames are annotated.

        Raises:
            InputError: on every rank alike: a video was not evaluated exactly once and to its
                end, or there was none.
        """
        videos = check_ranks(self._ledger.problem(), self._videos)
        if not videos:
            raise InputError(f"The data set '{self.dataset_name}' gave no frame to evaluate.")
        states = comm.gather(self._scores.state_dict())
        archive = None if self._export is None else self._export.pack()
        if not comm.is_main_process():
            return OrderedDict()
        if archive is not None:
            logger.info("The masks of %d sequences were written to %s", len(videos), archive)
        merged = DAVISAccumulator(self.task)
        for name, state in sorted((name, s) for rank in states for name, s in rank.items()):
            merged.merge({name: state})
        if not merged.sequences:
            logger.warning(
                "%s has no annotations but those of first frames: nothing can be scored here",
                self.dataset_name,
            )
            return OrderedDict()
        scores = merged.scores()
        title = f"Results on {self.dataset_name} ({self.task})"
        logger.info("%s", davis_table(scores, title))
        if self.output_dir is not None:
            write_davis_report(self.output_dir, self.dataset_name, self.task, scores)
        percent = in_percent(scores, METRICS)
        means = {key: percent[f"{key}-Mean"] for key in ("J&F", "J", "F")}
        return OrderedDict(vos=OrderedDict(means | percent))
