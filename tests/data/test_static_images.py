from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vss2.data.datasets.static_images import load_static_images
from vss2.data.image_io import write_image, write_label
from vss2.errors import InputError, InputFileError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for stem in ("fss/ant/1", "fss/ant/2", "fss/bee/1", "DUTS-TR/a", "DUTS-TR/b"):
        write_image(tmp_path / f"{stem}.jpg", np.zeros((8, 9, 3), np.uint8))
        write_label(tmp_path / f"{stem}.png", np.full((8, 9), 255, np.uint8))
    return tmp_path


def test_each_image_is_a_video_of_one_frame(root):
    videos = load_static_images(root, "fss")
    assert [v["video_id"] for v in videos] == ["fss/ant/1", "fss/ant/2", "fss/bee/1"]
    assert videos[2]["frames"] == [
        {
            "file_name": str(root / "fss/bee/1.jpg"),
            "label_file": str(root / "fss/bee/1.png"),
            "frame_index": 0,
        }
    ]
    assert [v["video_id"] for v in load_static_images(root, "duts_tr")] == [
        "DUTS-TR/a",
        "DUTS-TR/b",
    ]


def test_what_is_missing_is_named(root):
    (root / "DUTS-TR/a.png").unlink()
    with pytest.raises(InputFileError, match=r"a\.jpg has no mask .*a\.png"):
        load_static_images(root, "duts_tr")
    with pytest.raises(InputFileError, match=r"BIG_small does not exist\. Expected .*<name>\.jpg"):
        load_static_images(root, "big")
    with pytest.raises(InputError, match=r"no set of static images 'hrsodd'.*'hrsod'"):
        load_static_images(root, "hrsodd")
    (root / "ecssd").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        load_static_images(root, "ecssd")
