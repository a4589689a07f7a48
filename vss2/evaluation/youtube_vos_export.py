"""Exporter of masks for the YouTube-VOS servers, for detectron2's `inference_on_dataset`."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from vss2.d2.data import MetadataCatalog
from vss2.d2.evaluation import DatasetEvaluator
from vss2.d2.utils import comm
from vss2.data.datasets.roots import datasets_root
from vss2.data.datasets.youtube_vos import read_meta
from vss2.data.image_io import read_label, write_bytes
from vss2.errors import InputError
from vss2.evaluation.answer_ledger import AnswerLedger, check_ranks
from vss2.evaluation.mask_export import MaskExport, answer_mask
from vss2.evaluation.vss_evaluation import EVALUATOR_REGISTRY
from vss2.evaluation.youtube_vos_scores import ALL, SPLIT, YouTubeVOSAccumulator

logger = logging.getLogger(__name__)


@EVALUATOR_REGISTRY.register()
class YouTubeVOSExporter(DatasetEvaluator):
    """Writes the masks of required frames as the servers want them, and a zip of them.

    Where frames have annotations of their own (label files: held-out training videos, the toy
    world), J and F are computed too, for objects of seen and unseen categories where the data
    set's metadata names `meta_file` and `train_meta_file` and both are there. They are defined as
    the benchmark's are said to be; equality with the server's program cannot be claimed.

    Args:
        dataset_name: registered data set.
        output_dir: gets `Annotations/<video>/<frame>.png` (palette PNGs of the given ids at the
            frames' own size), `submission.zip` with that folder at its root, and `results.json`
            where there are annotations. None writes nothing.
    """

    def __init__(self, dataset_name: str, output_dir: str | os.PathLike[str] | None = None) -> None:
        self.dataset_name = str(dataset_name)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self._scores = YouTubeVOSAccumulator()
        self._ledger = AnswerLedger()
        self._videos: list[str] = []
        self._given: dict[tuple[str, int], list[int]] = {}
        self._export = None
        if self.output_dir is not None:
            self._export = MaskExport(self.output_dir, "Annotations")

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Write and score the answers that are ready.

        Args:
            inputs: evaluation items with "video_id", "frame_index", "last_frame", "required"
                (False: no answer is wanted) and, where a mask is given, "objects", its ids.
            outputs: none, one or several dicts with "video_id", "frame_index", "file_name",
                "label_file" (None: the frame is not scored) and "mask" (H, W).

        Raises:
            InputError: an answer is missing or out of order, or of another size than its label.
            InputFileError: a label cannot be read or a mask not be written.
        """
        for item in inputs:
            self._ledger.expect(item)
            if item.get("objects"):
                self._given[str(item["video_id"]), int(item["frame_index"])] = item["objects"]
        for output in outputs:
            self._ledger.take(output)
            mask, video = answer_mask(output), str(output["video_id"])
            if self._export is not None:
                self._export.write(output, mask)
            index = int(output["frame_index"])
            self._appear(video, index - 1)
            if output.get("label_file") is not None:
                truth = read_label(output["label_file"])
                self._scores.add(video, truth, mask, Path(output["label_file"]).name)
        for video in self._ledger.settled():
            self._appear(video, None)
            self._videos.append(video)
            self._scores.finish(video)

    def _appear(self, video: str, last: int | None) -> None:
        """Let objects count whose masks were given up to frame `last`."""
        for key in sorted(k for k in self._given if k[0] == video):
            if last is None or key[1] <= last:
                self._scores.appear(video, self._given.pop(key))

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Write the zip, and merge the ranks' scores where there are annotations.

        Returns:
            On rank 0 {"vos": {metric: percent}}; {} on other ranks and without annotations.

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
            logger.info("The masks of %d videos were written to %s", len(videos), archive)
        merged = YouTubeVOSAccumulator()
        for state in states:
            merged.merge(state)
        if merged.num_objects == 0:
            logger.info("%s has no annotations to score with", self.dataset_name)
            return OrderedDict()
        scores = merged.scores(*self._categories())
        keys = [key for key in (*SPLIT, *ALL) if key in scores]
        percent = OrderedDict((key, 100.0 * scores[key]) for key in keys)
        row = ["-" if math.isnan(value) else f"{value:.2f}" for value in percent.values()]
        table = tabulate([row], headers=keys, tablefmt="pipe", disable_numparse=True)
        logger.info(
            "Results on %s: %d objects, all values in %% (not the server's program)\n%s",
            self.dataset_name,
            merged.num_objects,
            table,
        )
        if self.output_dir is not None:
            self._write_results(percent, scores["per_object"])
        return OrderedDict(vos=percent)

    def _categories(self) -> tuple[dict[str, dict[int, str]] | None, set[str]]:
        """{video: {object id: category}} of the data set, and the categories of training."""
        metadata = MetadataCatalog.get(self.dataset_name)
        names = [metadata.get(key, None) for key in ("meta_file", "train_meta_file")]
        files = [datasets_root() / name for name in names if name is not None]
        if len(files) < 2 or not all(file.is_file() for file in files):
            logger.info("Seen and unseen categories are not told apart: there is no meta.json")
            return None, set()
        own, training = (
            {
                video: {int(i): str(info["category"]) for i, info in objects.items()}
                for video, objects in read_meta(file).items()
            }
            for file in files
        )
        return own, {category for objects in training.values() for category in objects.values()}

    def _write_results(self, percent: Mapping[str, float], per_object: Mapping[str, Any]) -> None:
        assert self.output_dir is not None
        result = {
            "dataset": self.dataset_name,
            "unit": "%",
            "scores": {k: None if math.isnan(v) else v for k, v in percent.items()},
            "per_object": {
                name: {"J": 100 * row["J"], "F": 100 * row["F"], "frames": row["frames"]}
                for name, row in per_object.items()
            },
        }
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        write_bytes(self.output_dir / "results.json", text.encode())
