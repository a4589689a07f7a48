"""Evaluator of video semantic segmentation for detectron2's `inference_on_dataset`."""

from __future__ import annotations

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vss2.d2.data import MetadataCatalog
from vss2.d2.evaluation import DatasetEvaluator
from vss2.d2.utils import Registry, comm
from vss2.data.image_io import read_label
from vss2.data.labels import DEFAULT_MAPPING, class_ids, stored_labels
from vss2.errors import InputError, did_you_mean
from vss2.evaluation.report import in_percent, scores_table, write_report
from vss2.evaluation.scores import VSSAccumulator

logger = logging.getLogger(__name__)

EVALUATOR_REGISTRY = Registry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = (
    "Evaluators, by name: classes with detectron2's `DatasetEvaluator` API."
)


@EVALUATOR_REGISTRY.register()
class VSSEvaluator(DatasetEvaluator):
    """Scores label maps frame by frame as they come, and keeps counts only.

    Outputs are paired with labels by their own `video_id` and `frame_index`, not by position, so
    a model may answer late and several frames at once. Each rank scores whole videos; merging
    their counts gives the digits of a single process.

    Args:
        dataset_name: registered data set; its metadata names the classes (`stuff_classes`).
        output_dir: where results.json, per_video.csv and per_class_iou.png go; None writes none.
        min_frames, drop_last_window: see `vss2.evaluation.score_vss`.
        reduce: map stored mask values to class ids by the data set's `label_mapping` (metadata;
            VSPW's where it has none). False compares ids as stored.

    Raises:
        InputError: the data set is not registered, names no classes, or has an unknown
            `label_mapping`.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike[str] | None = None,
        min_frames: int = 17,
        drop_last_window: bool = True,
        reduce: bool = True,
    ) -> None:
        self.dataset_name = str(dataset_name)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.class_names = _class_names(self.dataset_name)
        self._settings: dict[str, Any] = {
            "min_frames": int(min_frames),
            "drop_last_window": bool(drop_last_window),
            "reduce": bool(reduce),
        }
        self.label_mapping = str(
            MetadataCatalog.get(self.dataset_name).get("label_mapping", DEFAULT_MAPPING)
        )
        stored_labels(self.label_mapping)
        if self.label_mapping != DEFAULT_MAPPING:
            self._settings["reduce"] = False  # `_truth` gives class ids
        self._maps_labels = bool(reduce) and self.label_mapping != DEFAULT_MAPPING
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self._scores = self._accumulator()
        self._lengths: dict[str, int] = {}

    def _accumulator(self) -> VSSAccumulator:
        return VSSAccumulator(len(self.class_names), **self._settings)

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Score the outputs that are ready.

        Args:
            inputs: evaluation items; "video_id", "frame_index" and "last_frame" tell how long a
                video is.
            outputs: none, one or several dicts with "video_id", "frame_index", "label_file" (None:
                the frame is not scored) and "labels" (H, W) ids or "sem_seg" (K, H, W) scores, of
                the label's size.

        Raises:
            InputError: a frame is missing, repeated or out of order; sizes differ; a predicted id
                is no class; a label cannot be read.
        """
        for output in outputs:
            video_id, index = str(output["video_id"]), int(output["frame_index"])
            if output.get("label_file") is None:
                self._scores.skip(video_id, index)
            else:
                prediction = self._prediction(output)
                self._scores.add(video_id, self._truth(output["label_file"]), prediction, index)
        for item in inputs:
            if item.get("last_frame"):
                self._lengths[str(item["video_id"])] = int(item["frame_index"]) + 1
        for video_id in self._scores.open_videos:
            if self._scores.frames_seen(video_id) == self._lengths.get(video_id):
                self._scores.finish_video(video_id)
                del self._lengths[video_id]

    def _truth(self, file: str) -> np.ndarray:
        """(H, W) labels of one mask, in the form that the accumulator takes."""
        raw = read_label(file)
        return class_ids(raw, self.label_mapping, file) if self._maps_labels else raw

    def _prediction(self, output: Mapping[str, Any]) -> Any:
        """(H, W) ids of one output."""
        if "labels" in output:
            return output["labels"]
        scores = torch.as_tensor(output["sem_seg"])
        if scores.ndim != 3 or scores.shape[0] != len(self.class_names):
            raise InputError(
                f"The scores of video '{output['video_id']}', frame {output['frame_index']} have "
                f"shape {tuple(scores.shape)}; (K, H, W) with the {len(self.class_names)} classes "
                f"of {self.dataset_name} was expected."
            )
        return scores.argmax(dim=0).to(torch.uint8)

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Merge the ranks' counts, log tables and write the files.

        Returns:
            On rank 0 {"sem_seg": {metric: percent, ..., "IoU-<class>": percent}}, nan where
            undefined; {} on other ranks.

        Raises:
            InputError: on every rank alike: a video was not scored exactly once or not to its end,
                or no frame had a label.
        """
        problem = self._finish_videos()
        reports = comm.all_gather((problem, self._scores.videos))
        self._check(reports)
        states = comm.gather(self._scores.state_dict())
        if not comm.is_main_process():
            return OrderedDict()
        merged = self._accumulator()
        for state in states:
            merged.merge(state)
        scores = merged.scores()
        title = f"Results on {self.dataset_name}"
        logger.info("%s", scores_table(scores, self.class_names, title))
        if self.output_dir is not None:
            write_report(
                self.output_dir, self.dataset_name, scores, self.class_names, self._settings
            )
            logger.info(
                "Scores per video and per class were written to %s", self.output_dir.resolve()
            )
        return OrderedDict(sem_seg=in_percent(scores, self.class_names))

    def _finish_videos(self) -> str | None:
        """Close what is open; the message of the first problem, if any."""
        try:
            for video_id in sorted({*self._scores.open_videos, *self._lengths}):
                self._scores.finish_video(video_id, self._lengths.get(video_id))
        except InputError as error:
            return str(error)
        return None

    def _check(self, reports: list[tuple[str | None, list[str]]]) -> None:
        """The same error on every rank: one rank alone would leave the others waiting."""
        for problem, _ in reports:
            if problem is not None:
                raise InputError(problem)
        times = Counter(video_id for _, videos in reports for video_id in videos)
        if not times:
            raise InputError(
                f"The data set '{self.dataset_name}' cannot be scored: none of its frames has a "
                f"label file."
            )
        twice = sorted(video_id for video_id, number in times.items() if number > 1)
        if twice:
            raise InputError(
                f"Video '{twice[0]}' was scored by {times[twice[0]]} processes; every video must "
                f"be on exactly one."
            )


def _class_names(dataset_name: str) -> tuple[str, ...]:
    """The classes of a registered data set."""
    known = MetadataCatalog.list()
    if dataset_name not in known:
        raise InputError(
            f"There is no data set '{dataset_name}'.{did_you_mean(dataset_name, known)} The "
            f"built-in ones are registered by `import vss2.data.datasets`."
        )
    names = MetadataCatalog.get(dataset_name).get("stuff_classes", None)
    if not names:
        raise InputError(f"The metadata of data set '{dataset_name}' has no `stuff_classes`.")
    return tuple(str(name) for name in names)
