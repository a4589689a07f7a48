"""Which frames are segmented together: pure rules, free of tensors and state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vss2.errors import InputError

# Of CFFM and MRCFA: a frame's window, and the clips of the first frames of a video, whose windows
# would reach before it; frames 0 to 2 stand alone.
PUBLISHED_OFFSETS = (-9, -6, -3, 0)
PUBLISHED_START_TABLE = {
    3: (0, 1, 2, 3),
    4: (0, 2, 3, 4),
    5: (0, 2, 4, 5),
    6: (0, 2, 4, 6),
    7: (0, 3, 5, 7),
    8: (0, 3, 6, 8),
}


class WindowClip(NamedTuple):
    """Frames that are decoded together.

    Attributes:
        frames: frame indices in the order in which the network takes them.
        targets: the frames among them that this clip answers.
    """

    frames: tuple[int, ...]
    targets: tuple[int, ...]


class WindowRule(ABC):
    """Says for every frame of a video which frames make its clip.

    Attributes:
        lag: how many frames after a frame must have come before its clip is known.
        lookback: how many frames before a frame its clip may reach.
        disjoint: whether every frame lies in one clip only, so that a decoded clip's frames are
            of no further use.
    """

    lag: int
    lookback: int
    disjoint: bool = False

    @abstractmethod
    def clip(self, index: int, num_frames: int | None = None) -> WindowClip:
        """The clip that answers frame `index` (from 0).

        Args:
            index: the frame to answer.
            num_frames: length of the video; None while it is unknown, which says that at least
                `lag` more frames follow `index`.
        """

    @abstractmethod
    def targets(self, clip_length: int) -> tuple[int, ...]:
        """Positions answered in a clip of `clip_length` frames that is given as a whole.

        Raises:
            InputError: the method takes no clip of this length.
        """


class OffsetWindow(WindowRule):
    """One target, the last frame, with references at fixed offsets: causal, lag 0.

    Args:
        offsets: ascending, non-positive, the last one 0: (-9, -6, -3, 0) for CFFM and MRCFA,
            (0,) for a method that takes single frames.
        start_table: clips of early frames whose references would lie before the video. A frame
            that is neither covered by the offsets nor listed stands alone. None: the published
            table at the published offsets, and none at others.
    """

    def __init__(
        self,
        offsets: Sequence[int] = (0,),
        start_table: Mapping[int, Sequence[int]] | None = None,
    ):
        self.offsets = tuple(int(o) for o in offsets)
        if (
            not self.offsets
            or self.offsets[-1] != 0
            or sorted(set(self.offsets)) != list(self.offsets)
        ):
            raise InputError(
                f"window offsets must ascend and end with 0, such as (-9, -6, -3, 0), "
                f"got {self.offsets}"
            )
        if start_table is None:
            start_table = PUBLISHED_START_TABLE if self.offsets == PUBLISHED_OFFSETS else {}
        self.start_table = {int(k): tuple(int(f) for f in v) for k, v in start_table.items()}
        for index, frames in self.start_table.items():
            if frames[-1] != index or min(frames) < 0 or max(frames) > index:
                raise InputError(
                    f"start_table[{index}] must hold frames from 0 to {index} and end with "
                    f"{index}, got {frames}"
                )
        self.lag = 0
        reach = [index - min(frames) for index, frames in self.start_table.items()]
        self.lookback = max([-self.offsets[0], *reach])

    def clip(self, index: int, num_frames: int | None = None) -> WindowClip:
        if index + self.offsets[0] >= 0:
            frames = tuple(index + offset for offset in self.offsets)
        else:
            frames = self.start_table.get(index, (index,))
        return WindowClip(frames, (index,))

    def targets(self, clip_length: int) -> tuple[int, ...]:
        if len(self.offsets) == 1 and clip_length >= 1:
            return tuple(range(clip_length))
        known = sorted({1, len(self.offsets), *(len(f) for f in self.start_table.values())})
        if clip_length not in known:
            raise InputError(
                f"a clip has {' or '.join(map(str, known))} frames (offsets {self.offsets}), "
                f"got {clip_length}"
            )
        return (clip_length - 1,)


class BlockWindow(WindowRule):
    """Every frame of a clip is a target; clips are dilated by 3 inside blocks (THE-Mask).

    A block of 3n frames holds the clips (k, k+3, ..., k+3(n-1)) for k = 0, 1, 2: for n = 2 the
    clips (0, 3), (1, 4), (2, 5) and for n = 4 (0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11), as
    published. What is left after the last full block is cut into groups of n consecutive frames,
    the last may be shorter; a video shorter than a block consists of such groups alone. Whether a
    block is full is known only 3n-1 frames after its first.

    Args:
        clip_length: n >= 1; 1 answers every frame alone and at once.
    """

    dilation = 3
    disjoint = True

    def __init__(self, clip_length: int = 1):
        if clip_length < 1:
            raise InputError(f"clip_length must be at least 1, got {clip_length}")
        self.clip_length = int(clip_length)
        self.block = self.dilation * self.clip_length if self.clip_length > 1 else 1
        self.lag = self.block - 1
        self.lookback = self.dilation * (self.clip_length - 1)

    def clip(self, index: int, num_frames: int | None = None) -> WindowClip:
        start = index - index % self.block
        if num_frames is None or start + self.block <= num_frames:
            first = start + (index - start) % self.dilation if self.block > 1 else index
            frames = tuple(first + self.dilation * j for j in range(self.clip_length))
        else:
            first = index - (index - start) % self.clip_length
            frames = tuple(range(first, min(first + self.clip_length, num_frames)))
        return WindowClip(frames, frames)

    def targets(self, clip_length: int) -> tuple[int, ...]:
        """All positions; the last groups of videos have any length from 1 to n."""
        if not 1 <= clip_length <= self.clip_length:
            lengths = {1: "1 frame", 2: "1 or 2 frames"}
            known = lengths.get(self.clip_length, f"1 to {self.clip_length} frames")
            raise InputError(f"a clip has {known}, got {clip_length}")
        return tuple(range(clip_length))
