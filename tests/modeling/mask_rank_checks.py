"""What `test_criterion` runs in each of two processes; the findings go to one file per rank."""

from __future__ import annotations

from pathlib import Path

import torch

from vss2.d2.utils import comm
from vss2.modeling.criterion import mean_num_masks
from vss2.modeling.transformer_decoder import MaskPrediction

from .mask_cases import criterion, fixed_points, predictions, targets

ITEMS = ((0, 1, 3), (2,))


def main(folder: str) -> None:
    torch.set_num_threads(1)
    rank = comm.get_rank()
    own = [
        MaskPrediction(p.class_logits[rank : rank + 1], p.masks[rank : rank + 1])
        for p in predictions()
    ]
    losses = criterion()
    losses.points.draw = fixed_points
    found = {name: value.detach() for name, value in losses(own, targets(ITEMS[rank])).items()}
    found["num_masks"] = mean_num_masks(targets(ITEMS[rank]), torch.device("cpu"))
    torch.save(found, Path(folder) / f"rank{rank}.pth")
