from __future__ import annotations

import pytest

from vss2.errors import InputError
from vss2.modeling.window import PUBLISHED_START_TABLE, BlockWindow, OffsetWindow
from vss2.testing.fixtures import load_fixture

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


def all_clips(window: BlockWindow, num_frames: int) -> list[tuple[int, ...]]:
    return sorted({window.clip(i, num_frames).frames for i in range(num_frames)})


def test_block_window_pairs_frames_three_apart_and_groups_the_tail() -> None:
    assert all_clips(BlockWindow(2), 9) == [(0, 3), (1, 4), (2, 5), (6, 7), (8,)]
    assert all_clips(BlockWindow(4), 13) == [(0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11), (12,)]
    assert all_clips(BlockWindow(1), 3) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("num_frames", [1, 5, 6, 7, 12, 25])
def test_block_window_answers_every_frame_once_within_its_reach(
    length: int, num_frames: int
) -> None:
    window = BlockWindow(length)
    answered = [f for clip in all_clips(window, num_frames) for f in clip]
    assert sorted(answered) == list(range(num_frames))
    for index in range(num_frames):
        clip = window.clip(index, num_frames)
        assert index in clip.targets
        assert index - min(clip.frames) <= window.lookback
        if index + window.lag < num_frames:
            assert window.clip(index) == clip
            assert max(clip.frames) <= index + window.lag
