"""Scores of video semantic segmentation: an accumulator for streams and shards, and `score_vss`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vss2.data.labels import IGNORE_LABEL, reduce_labels
from vss2.errors import InputError
from vss2.evaluation.confusion import class_scores, frame_scores, id_map_pair
from vss2.evaluation.consistency import VideoConsistency, window_ratios
from vss2.layers.label_maps import NUM_IDS, add_joint_histogram

WINDOW_LENGTHS = (8, 16)


@dataclass
class _OpenVideo:
    """State of a video whose frames still come."""

    consistency: VideoConsistency
    next_index: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros((NUM_IDS, NUM_IDS), np.int64))


class VSSAccumulator:
    """Counts of frames of any number of videos; a few MB whatever their number and length.

    Frames of one video come in order; videos may be interleaved. A finished video leaves its share
    of one confusion matrix and its list of window ratios. Shards of whole videos merge to results
    that equal those of one pass in every bit, whatever the shards and their order: counts are
    integers, and ratios are summed exactly (`math.fsum`).

    Args:
        num_classes: K, 1..255. Predictions are ids 0..K-1.
        reduce: labels are raw VSPW masks (0 and 255 void, class = value - 1) and go through the
            published mapping. Otherwise ids are compared as given: 255 is void for the frame
            metrics and the label-aware consistency, and a value like any other for VC.
        min_frames: VC leaves out shorter videos. The published tables of CFFM and MRCFA use 17 for
            both lengths; the VSPW baseline leaves out only those without a window (use 1).
        drop_last_window: VC leaves out the window that ends at a video's last frame, as published.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        reduce: bool = True,
        min_frames: int = 17,
        drop_last_window: bool = True,
    ) -> None:
        if not 1 <= num_classes <= IGNORE_LABEL:
            raise InputError(f"num_classes must be 1..{IGNORE_LABEL}, got {num_classes}.")
        self.num_classes = int(num_classes)
        self.reduce = bool(reduce)
        self.min_frames = int(min_frames)
        self.drop_last_window = bool(drop_last_window)
        self._counts = np.zeros((NUM_IDS, self.num_classes), np.int64)
        self._videos: dict[str, dict[str, Any]] = {}
        self._open: dict[str, _OpenVideo] = {}

    @property
    def videos(self) -> list[str]:
        """Names of the finished videos, sorted."""
        return sorted(self._videos)

    @property
    def open_videos(self) -> list[str]:
        """Names of the videos that are not finished, sorted."""
        return sorted(self._open)

    def frames_seen(self, video_id: str) -> int:
        """Frames, scored or skipped, of an open video."""
        return self._open[video_id].next_index

    @property
    def num_frames(self) -> int:
        """Scored frames of the finished videos."""
        return sum(record["frames"] for record in self._videos.values())

    def add(
        self, video_id: str, label: Any, prediction: Any, frame_index: int | None = None
    ) -> None:
        """Score one frame.

        Args:
            label: (H, W) integer ids as stored in the mask, numpy or torch.
            prediction: (H, W) integer ids 0..K-1.
            frame_index: position in the video; checked when given.

        Raises:
            InputError: maps of different sizes, a predicted id that is no class, a size that
                changes within the video, a frame that is missing, repeated or out of order.
        """
        video = self._next_frame(video_id, frame_index)
        where = f"video '{video_id}', frame {video.next_index - 1}"
        truth, guess = id_map_pair(label, prediction, where, ("label", "prediction"))
        if video.consistency.num_frames and video.consistency.size != truth.shape:
            raise InputError(
                f"The label of {where} has size {_size(truth)}; the frames before it have "
                f"{video.consistency.size[0]}x{video.consistency.size[1]}."
            )
        # A copy is kept until the next frame: callers may write into their buffers.
        truth = reduce_labels(truth) if self.reduce else truth.copy()
        highest = int(guess.max())
        if highest >= self.num_classes:
            raise InputError(
                f"The prediction of {where} holds id {highest}; "
                f"predictions are class ids 0..{self.num_classes - 1}."
            )
        add_joint_histogram(truth, guess, video.counts)
        video.consistency.update(truth, guess.copy())

    def skip(self, video_id: str, frame_index: int | None = None) -> None:
        """Pass over a frame without a label: it is no part of the scored sequence."""
        self._next_frame(video_id, frame_index)

    def _next_frame(self, video_id: str, frame_index: int | None) -> _OpenVideo:
        """The video's state, advanced by one frame."""
        if video_id in self._videos:
            at = "" if frame_index is None else f" (frame {frame_index})"
            raise InputError(f"Video '{video_id}' was already complete when it came again{at}.")
        video = self._open.get(video_id)
        if video is None:
            video = _OpenVideo(VideoConsistency(self.num_classes, WINDOW_LENGTHS))
        expected = video.next_index
        if frame_index is not None and int(frame_index) != expected:
            problem = (
                f"came twice or out of order (frame {expected} was next)"
                if int(frame_index) < expected
                else f"came before frame {expected}, which is missing"
            )
            raise InputError(f"Video '{video_id}': frame {int(frame_index)} {problem}.")
        self._open[video_id] = video
        video.next_index += 1
        return video

    def finish_video(self, video_id: str, num_frames: int | None = None) -> None:
        """Close a video and keep its scores.

        Args:
            num_frames: how many frames it should have had, scored or skipped; checked when given.

        Raises:
            InputError: the video is not open, or frames are missing at its end.
        """
        if video_id not in self._open:
            raise InputError(f"Video '{video_id}' cannot be finished: no frame of it came.")
        video = self._open[video_id]
        if num_frames is not None and video.next_index != num_frames:
            raise InputError(
                f"Video '{video_id}': frame {video.next_index} is missing; "
                f"{video.next_index} of {num_frames} frames came."
            )
        del self._open[video_id]
        if video.consistency.num_frames == 0:
            return
        counts = video.counts[:, : self.num_classes]
        self._counts += counts
        record: dict[str, Any] = {
            "frames": video.consistency.num_frames,
            "scores": frame_scores(counts, self.num_classes),
        }
        for n in WINDOW_LENGTHS:
            windows = video.consistency.windows(n)
            stop = len(windows.constant) - int(self.drop_last_window)
            if video.consistency.num_frames < self.min_frames:
                stop = 0
            record[f"VC{n}"] = window_ratios(windows.constant[: max(stop, 0)])
            record[f"consistency{n}"] = window_ratios(windows.correct)
        self._videos[video_id] = record

    def finish(self) -> None:
        """Close every open video."""
        for video_id in self.open_videos:
            self.finish_video(video_id)

    def window_ratios(self, video_id: str, metric: str) -> np.ndarray:
        """float64 (windows,): the ratio of each window of a finished video, nan where undefined.

        Args:
            metric: "VC8", "VC16", "consistency8" or "consistency16".
        """
        return self._videos[video_id][metric].copy()

    def _settings(self) -> dict[str, Any]:
        return {
            "num_classes": self.num_classes,
            "reduce": self.reduce,
            "min_frames": self.min_frames,
            "drop_last_window": self.drop_last_window,
        }

    def state_dict(self) -> dict[str, Any]:
        """The finished videos, as plain containers and arrays, for `merge`.

        Raises:
            RuntimeError: a video is still open.
        """
        if self._open:
            raise RuntimeError(f"finish() first: videos still open: {self.open_videos}")
        return {
            "settings": self._settings(),
            "counts": self._counts.copy(),
            "videos": {name: dict(record) for name, record in self._videos.items()},
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the videos of another accumulator's `state_dict()`.

        Raises:
            InputError: the settings differ, or a video is in both.
        """
        if dict(state["settings"]) != self._settings():
            raise InputError(
                f"Scores made with {dict(state['settings'])} cannot be merged into scores made "
                f"with {self._settings()}."
            )
        twice = sorted((self._videos.keys() | self._open.keys()) & state["videos"].keys())
        if twice:
            raise InputError(f"Video '{twice[0]}' was scored twice: in both of two shards.")
        self._counts += state["counts"]
        self._videos.update({name: dict(record) for name, record in state["videos"].items()})

    def scores(self) -> dict[str, Any]:
        """The scores of all finished videos; see `score_vss` for the keys.

        Raises:
            InputError: no frame was scored.
        """
        if not self._videos:
            raise InputError("There is nothing to score: no frame with a label came.")
        names = self.videos
        per_video = {name: _video_scores(self._videos[name]) for name in names}
        result: dict[str, Any] = frame_scores(self._counts, self.num_classes)
        records = [self._videos[name] for name in names]
        result.update(_window_scores(records))
        result["IoU"] = class_scores(self._counts, self.num_classes)["IoU"]
        result["per_video"] = per_video
        return result


def _size(ids: np.ndarray) -> str:
    return f"{ids.shape[0]}x{ids.shape[1]}"


def _window_scores(records: list[dict[str, Any]]) -> dict[str, Any]:
    """VC and consistency over the pooled windows of `records`, with the windows' number."""
    means: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    for kind in ("VC", "consistency"):
        for n in WINDOW_LENGTHS:
            pooled = np.concatenate([record[f"{kind}{n}"] for record in records])
            defined = pooled[~np.isnan(pooled)]
            mean = math.fsum(defined) / defined.size if defined.size else math.nan
            means[f"{kind}{n}"] = mean
            if kind == "VC":
                numbers[f"windows{n}"] = int(pooled.size)
                numbers[f"undefined{n}"] = int(pooled.size - defined.size)
    return {**means, **numbers}


def _video_scores(record: dict[str, Any]) -> dict[str, Any]:
    """The entry of `per_video`."""
    return {"frames": record["frames"], **record["scores"], **_window_scores([record])}


def score_vss(
    videos: Iterable[tuple[str, Any, Any]],
    num_classes: int,
    *,
    reduce: bool = True,
    min_frames: int = 17,
    drop_last_window: bool = True,
) -> dict[str, Any]:
    """Score predictions of video semantic segmentation, one video in memory at a time.

    Args:
        videos: iterable of (name, labels, predictions); labels (T, H, W) as stored in the masks,
            predictions (T, H, W) ids 0..num_classes-1; integer numpy arrays or torch tensors.
            Sizes may differ between videos.
        num_classes: K.
        reduce: apply the published label mapping: 0 and 255 are void, class = value - 1. False
            compares ids as given, with 255 void for all but VC: for labels stored as class ids,
            and, on raw VSPW masks, for the VC numbers of the VSPW baseline (which compares raw
            values; with min_frames=1).
        min_frames, drop_last_window: the published rules of VC, and of VC only: shorter videos and
            the last window of each video are left out. Frame metrics count every frame.

    Returns:
        Fractions; nan where nothing is defined.
        "mIoU", "mAcc", "aAcc", "mDice": table form, pooled over all frames of all videos;
        "mIoU_e", "mAcc_e", "aAcc_e", "fwIoU": confusion-matrix form;
        "VC8", "VC16": mean over all windows of all videos (void counts as a label, a prediction
        may be constantly wrong); "windows8", "windows16": the number of these windows (int), and
        "undefined8", "undefined16": of those, the ones without a constant label pixel;
        "consistency8", "consistency16": label-aware, over all windows of all videos: of the pixels
        whose label is a class and constant, the share predicted right in all frames of the window;
        "IoU": float64 (K,), nan for classes neither present nor predicted;
        "per_video": {name: the same scalars of that video, and "frames"}.

    Raises:
        InputError: no videos, an empty video, a name that comes twice, lengths or sizes that
            differ, a predicted id that is no class.
    """
    scores = VSSAccumulator(
        num_classes, reduce=reduce, min_frames=min_frames, drop_last_window=drop_last_window
    )
    for name, labels, predictions in videos:
        if len(labels) != len(predictions):
            raise InputError(
                f"Video '{name}' has {len(labels)} label maps and {len(predictions)} predictions."
            )
        if len(labels) == 0:
            raise InputError(f"Video '{name}' has no frames.")
        for index, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
            scores.add(name, label, prediction, frame_index=index)
        scores.finish_video(name)
    return scores.scores()
