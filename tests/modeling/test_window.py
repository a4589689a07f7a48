from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from vss2.errors import InputError
from vss2.modeling.window import PUBLISHED_START_TABLE, BlockWindow, OffsetWindow
from vss2.testing.fixtures import load_fixture

from .tiny import TinySegmentor

PUBLISHED = OffsetWindow((-9, -6, -3, 0), PUBLISHED_START_TABLE)


def test_published_test_windows() -> None:
    description, _ = load_fixture("vspw_protocol")
    tables = {k: v for k, v in description["test_frames"].items() if k != "note"}
    assert len(tables) >= 8
    for clips in tables.values():
        for index, frames in enumerate(clips):
            assert list(PUBLISHED.clip(index).frames) == frames
            assert PUBLISHED.clip(index).targets == (index,)


def test_offset_window_reaches_no_further_than_it_says() -> None:
    assert (PUBLISHED.lag, PUBLISHED.lookback) == (0, 9)
    for index in range(40):
        assert index - min(PUBLISHED.clip(index).frames) <= PUBLISHED.lookback


def test_frames_without_table_entry_stand_alone() -> None:
    window = OffsetWindow((-4, -2, 0))
    assert [window.clip(i).frames for i in range(5)] == [(0,), (1,), (2,), (3,), (0, 2, 4)]


@pytest.mark.parametrize("offsets", [(), (-3,), (0, -3), (-3, -3, 0), (0, 3)])
def test_offsets_must_ascend_to_zero(offsets: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="must ascend and end with 0"):
        OffsetWindow(offsets)


def test_start_table_must_end_with_its_frame() -> None:
    with pytest.raises(InputError, match=r"start_table\[3\]"):
        OffsetWindow((-9, 0), {3: (0, 4)})


def test_whole_clip_targets() -> None:
    assert OffsetWindow((0,)).targets(5) == (0, 1, 2, 3, 4)
    assert PUBLISHED.targets(4) == (3,)
    assert PUBLISHED.targets(1) == (0,)
    with pytest.raises(InputError, match="1 or 4 frames"):
        PUBLISHED.targets(3)
    assert BlockWindow(2).targets(2) == (0, 1)
    with pytest.raises(InputError, match="1 or 2 frames"):
        BlockWindow(2).targets(3)
    assert BlockWindow(4).targets(3) == (0, 1, 2)
    with pytest.raises(InputError, match="1 to 4 frames"):
        BlockWindow(4).targets(5)


def offline_schedule(length: int, num_frames: int) -> list[tuple[int, ...]]:
    """The clips of a whole video in the order of the published lists, for any clip length."""
    clips, block = [], 3 * length
    done = num_frames // block * block if length > 1 else 0
    for start in range(0, done, block):
        clips += [tuple(range(start + k, start + block, 3)) for k in range(3)]
    for start in range(done, num_frames, length):
        clips.append(tuple(range(start, min(start + length, num_frames))))
    return clips


def all_clips(window: BlockWindow, num_frames: int) -> list[tuple[int, ...]]:
    return sorted({window.clip(i, num_frames).frames for i in range(num_frames)})


def test_block_window_pairs_frames_three_apart_and_groups_the_tail() -> None:
    assert all_clips(BlockWindow(2), 9) == [(0, 3), (1, 4), (2, 5), (6, 7), (8,)]
    assert all_clips(BlockWindow(4), 13) == [(0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11), (12,)]
    assert all_clips(BlockWindow(1), 3) == [(0,), (1,), (2,)]
    assert all_clips(BlockWindow(2), 5) == [(0, 1), (2, 3), (4,)]
    assert all_clips(BlockWindow(4), 3) == [(0, 1, 2)]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_block_window_follows_the_offline_schedule_of_every_video(length: int) -> None:
    window = BlockWindow(length)
    assert window.lag == (3 * length - 1 if length > 1 else 0)
    for num_frames in range(1, 2 * window.block + 6):
        expected = offline_schedule(length, num_frames)
        assert sorted(f for clip in expected for f in clip) == list(range(num_frames))
        assert all_clips(window, num_frames) == sorted(expected)
        for index in range(num_frames):
            clip = window.clip(index, num_frames)
            assert index in clip.targets == clip.frames
            assert index - min(clip.frames) <= window.lookback
            assert max(clip.frames) - index <= window.lag
            if index + window.lag < num_frames:
                assert window.clip(index) == clip


class Recorder(TinySegmentor):
    """Remembers which frames were decoded together, by the grey value that each of them is."""

    def decode(self, clip: Sequence[Any], targets: Sequence[int]) -> torch.Tensor:
        values = [f["map"].mean() * self.pixel_std.mean() + self.pixel_mean.mean() for f in clip]
        self.clips.append(tuple(round(float(value)) for value in values))
        return super().decode(clip, targets)


def grey(index: int) -> torch.Tensor:
    return torch.full((3, 32, 32), index, dtype=torch.uint8)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_session_decodes_the_offline_schedule_of_every_video(length: int) -> None:
    model = Recorder(BlockWindow(length)).eval()
    session = model.new_session()
    block = model.window.block
    for num_frames in range(1, 2 * block + 6):
        model.clips = []
        session.reset()
        given = [session.step(grey(i), labels_only=True) for i in range(num_frames)]
        waiting = min(session.lag, num_frames)
        assert given[:waiting] == [None] * waiting
        answers = given[waiting:] + list(session.finish())
        assert [answer["frame_index"] for answer in answers] == list(range(num_frames))
        assert model.clips == sorted(offline_schedule(length, num_frames), key=min)
        assert session.state_dict()["kept"] == {}


def test_frames_that_nobody_asks_for_still_serve_their_clip() -> None:
    model = Recorder(BlockWindow(2)).eval()
    model.clips = []
    session = model.new_session()
    answers = [session.step(grey(i), need_output=i in (3, 4)) for i in range(6)]
    answers += list(session.finish())
    assert [a["frame_index"] for a in answers if a is not None] == [3, 4]
    assert model.clips == [(0, 3), (1, 4)]
