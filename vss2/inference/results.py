"""What a prediction run leaves behind: files for each frame, videos and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from vss2.data.image_io import read_label, write_image, write_label
from vss2.data.video_io import VideoWriter
from vss2.errors import InputError
from vss2.inference.exports import Color, rle_document, write_json, write_scores
from vss2.inference.predictor import Prediction
from vss2.inference.run_folder import LABELS, OVERLAY, PAIRS, PER_FRAME, RLE, SCORES, SHEET
from vss2.visualization import contact_sheet, legend, overlay, side_by_side

_MIN_CELL, _MAX_CELL = 224, 320  # width of a picture on the contact sheet, pixels


class EvenSample:
    """Keeps evenly spaced items of a stream of unknown length, at most `4 * count` at a time.

    Every `stride`-th item is kept; when `4 * count` are there, every other one is dropped and the
    stride doubles.

    Args:
        count: how many items `chosen` gives (fewer if fewer came).
    """

    def __init__(self, count: int):
        self.count = count
        self.stride = 1
        self.seen = 0
        self._kept: list = []

    def wants_next(self) -> bool:
        """Whether the next item would be kept; others need not even be made."""
        return self.seen % self.stride == 0

    def add(self, item) -> None:
        """Take the stream's next item; anything will do where `wants_next()` is False."""
        if self.wants_next():
            self._kept.append(item)
        self.seen += 1
        if len(self._kept) == 4 * self.count:
            self._kept = self._kept[::2]
            self.stride *= 2

    def chosen(self) -> list:
        """`count` of the kept items, evenly spaced, the first one among them."""
        count = min(self.count, len(self._kept))
        places = np.linspace(0, len(self._kept) - 1, count).round().astype(int)
        return [self._kept[i] for i in places]


class ResultWriter:
    """Writes a run's results as they come, in constant memory; use it as a context manager.

    Files of a frame appear whole, one by one; videos and contact sheet when the block ends well.
    A block that is left by an exception leaves the frames' files. `add` must see every frame, so
    a resumed run gives it the finished ones again (see `stored_labels`), and its videos are those
    of a run that was never stopped.

    `add_files` and `add_pictures` may each have a thread of its own.

    Args:
        folder: where `labels/<name>.png` (8-bit palette PNG, 0-based ids), `overlay.mp4` and
            `contact_sheet.png` shall be.
        class_names, colors: of ids 0, 1, …
        fps: of the videos.
        alpha: opacity of the labels in them.
        rle: also write `rle/<name>.json`, COCO's run-length masks.
        scores: also write `scores/<name>.npz`; the predictions must carry scores.
        side_by_side: also write `side_by_side.mp4`, the frame beside its overlay.
        rows: frames on the contact sheet.
        background: an id that stands for nothing: it is neither drawn nor listed. The others are
            objects then and have contours.

    Raises:
        InputError: the folder cannot be written, or, at the end, no frame was given.
    """

    def __init__(
        self,
        folder: str | Path,
        class_names: Sequence[str],
        colors: Sequence[Color],
        *,
        fps: float = 15.0,
        alpha: float = 0.5,
        rle: bool = False,
        scores: bool = False,
        side_by_side: bool = False,
        rows: int = 6,
        background: int | None = None,
    ):
        self.folder = Path(folder)
        self.class_names, self.colors = list(class_names), list(colors)
        self.alpha, self.fps = alpha, fps
        self._rle, self._scores = rle, scores
        self._background = background
        self._sample = EvenSample(rows)
        self._counts = np.zeros(256, np.int64)
        self._overlay = VideoWriter(self.folder / OVERLAY, fps)
        self._pairs = VideoWriter(self.folder / PAIRS, fps) if side_by_side else None
        self._videos = [video for video in (self._overlay, self._pairs) if video is not None]
        self._stack = ExitStack()

    @property
    def outputs(self) -> list[str]:
        """Names in the folder that this writer writes."""
        optional = ((RLE, self._rle), (SCORES, self._scores), (PAIRS, self._pairs is not None))
        return [LABELS, OVERLAY, SHEET, *(name for name, wanted in optional if wanted)]

    def paths(self) -> list[Path]:
        """The results' paths."""
        return [self.folder / name for name in self.outputs]

    def has(self, name: str) -> bool:
        """Whether all files of the frame `name` are there."""
        for folder, suffix in PER_FRAME.items():
            path = self.folder / folder / f"{name}{suffix}"
            if folder in self.outputs and not (path.is_file() and path.stat().st_size):
                return False
        return True

    def stored_labels(self, name: str, frame: np.ndarray) -> np.ndarray:
        """The labels of a frame that `has` its files.

        Raises:
            InputError: they are damaged, or of another size than the frame.
        """
        path = self.folder / LABELS / f"{name}.png"
        labels = read_label(path)
        if labels.shape != frame.shape[:2]:
            raise InputError(f"{path} is {labels.shape}, the frame is {frame.shape[:2]}.")
        return labels

    def __enter__(self) -> ResultWriter:
        with ExitStack() as stack:
            try:
                for folder in (name for name in self.outputs if name in PER_FRAME):
                    (self.folder / folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"Cannot write to {self.folder}: {error.strerror}.") from error
            for video in self._videos:
                stack.enter_context(video)
            self._stack = stack.pop_all()
        return self

    def add(self, prediction: Prediction) -> None:
        """Write one frame's results."""
        self.add_files(prediction)
        self.add_pictures(prediction)

    def add_files(self, prediction: Prediction) -> None:
        """Write the frame's own files; the label map, which is read on resume, last."""
        name, labels = prediction.name, prediction.labels
        if self._rle:
            document = rle_document(
                labels, name, prediction.frame_index, self.class_names, self._background
            )
            write_json(self.folder / RLE / f"{name}.json", document)
        if self._scores:
            if prediction.scores is None:
                raise InputError(f"Frame {name} has no scores to write.")
            write_scores(self.folder / SCORES / f"{name}.npz", prediction.scores)
        write_label(self.folder / LABELS / f"{name}.png", labels, self.colors)

    def add_pictures(self, prediction: Prediction) -> None:
        """Draw the frame for videos and contact sheet."""
        frame, labels = prediction.frame, prediction.labels
        self._counts += np.bincount(labels.ravel(), minlength=256)
        shown = self._overlaid(frame, labels)
        self._overlay.write(shown)
        if self._pairs is not None:
            self._pairs.write(side_by_side(frame, shown))
        keep = self._sample.wants_next()
        self._sample.add((prediction.name, _thumbnail(frame), _thumbnail(shown)) if keep else None)

    def _overlaid(self, frame: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if self._background is None:
            return overlay(frame, labels, self.colors, alpha=self.alpha)
        return overlay(frame, labels, self.colors, self.alpha, self._background, contour=True)

    def __exit__(self, kind, error, trace) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            write_image(self.folder / SHEET, self._contact_sheet())

    def _contact_sheet(self) -> np.ndarray:
        """Two frames a row, each beside its prediction; below, the classes that occur."""
        chosen = self._sample.chosen()
        rows, titles = [], []
        for i in range(0, len(chosen), 2):
            rows.append([image for _, *pair in chosen[i : i + 2] for image in pair])
            titles.append("\n".join(name for name, *_ in chosen[i : i + 2]))
        columns = len(rows[0])
        cell = min(max(rows[0][0].shape[1], _MIN_CELL), _MAX_CELL)
        present = [k for k in np.flatnonzero(self._counts) if k != self._background]
        return contact_sheet(
            rows,
            titles,
            column_titles=["frame", "prediction"] * (columns // 2),
            footer=legend(self.class_names, self.colors, present, width=columns * (cell + 8)),
            cell_width=cell,
        )


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """The image, made smaller if it is wider than a cell of the contact sheet."""
    height, width = image.shape[:2]
    if width <= _MAX_CELL:
        return image
    size = (_MAX_CELL, max(1, round(height * _MAX_CELL / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
