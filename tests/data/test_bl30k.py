from __future__ import annotations

import pickle

import pytest
from vos_files import stems, write_frames

from vss2.data.datasets.bl30k import load_bl30k
from vss2.errors import InputFileError


def test_videos_are_listed_and_stay_small(tmp_path):
    for name in ("b_2", "a_1"):
        folders = (tmp_path / part / name for part in ("JPEGImages", "Annotations"))
        write_frames(*folders, stems(3), size=(4, 4))
    videos = load_bl30k(tmp_path)
    assert [v["video_id"] for v in videos] == ["a_1", "b_2"]
    frame = videos[0]["frames"][2]
    assert frame["label_file"] == str(tmp_path / "Annotations/a_1/00002.png")
    # A dict for each frame would take some 200 bytes.
    assert len(pickle.dumps(videos[0])) < 500 + 10 * 3
    (tmp_path / "Annotations/b_2/00001.png").unlink()
    with pytest.raises(InputFileError, match=r"'b_2' lacks 1 masks: .*00001\.png"):
        load_bl30k(tmp_path)


def test_a_missing_set_says_what_is_expected(tmp_path):
    with pytest.raises(InputFileError, match="parts a to f"):
        load_bl30k(tmp_path / "BL30K")
