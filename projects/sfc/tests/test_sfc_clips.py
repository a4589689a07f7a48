"""A real clip, from its frames and its first mask to masks of all frames.

The folder VSS2_CLIPS holds `images/<clip>/*.jpg` and `masks/<clip>/00000.png`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from vss2.data.image_io import read_image, read_label
from vss2.projects.sfc import SFC, FrameEncoder


@pytest.mark.skipif(not os.environ.get("VSS2_CLIPS"), reason="VSS2_CLIPS names no folder of clips")
def test_judo_propagates_its_first_mask() -> None:
    root = Path(os.environ["VSS2_CLIPS"])
    frames = sorted((root / "images/judo").glob("*.jpg"))
    mask = read_label(root / "masks/judo/00000.png")
    ids = [int(i) for i in np.unique(mask) if i]
    torch.manual_seed(0)
    model = SFC(fine=FrameEncoder(18)).eval()
    session = model.new_session()
    areas = []
    for index, file in enumerate(frames[:4]):
        frame = torch.from_numpy(read_image(file)).permute(2, 0, 1)
        answer = session.step(frame, mask=torch.from_numpy(mask) if index == 0 else None)
        assert answer["object_ids"] == ids
        assert answer["mask"].shape == mask.shape
        areas.append([int((answer["mask"] == i).sum()) for i in ids])
    # Even features of random weights keep the objects for a few frames.
    assert np.all(np.array(areas[-1]) > 0.3 * np.array(areas[0]))
    assert np.all(np.array(areas[-1]) < 3 * np.array(areas[0]))
