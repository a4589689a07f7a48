"""Bootstrapped cross entropy on aggregated masks, and the training schedule of what it keeps."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class BootstrappedCrossEntropy:
    """The mean of the largest per-pixel losses; their share shrinks while training goes on.

    Until `start` all pixels count. Then the share falls linearly from 1 to `fraction` at `end`,
    where it stays, so that the logged loss rises in between.

    Args:
        start, end: iterations.
        fraction: between 0 and 1.
    """

    def __init__(self, start: int, end: int, fraction: float):
        self.start = start
        self.end = end
        self.fraction = fraction

    def kept(self, iteration: int) -> float:
        """The share of pixels that count at `iteration`, from 0."""
        if iteration < self.start:
            return 1.0
        if iteration > self.end:
            return self.fraction
        left = (self.end - iteration) / (self.end - self.start)
        return self.fraction + (1 - self.fraction) * left

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, iteration: int) -> torch.Tensor:
        """The loss of one sample (scalar).

        Args:
            logits: float [1 + O, H, W].
            labels: int64 [H, W].
        """
        pixels = F.cross_entropy(logits[None].float(), labels[None], reduction="none").flatten()
        if iteration < self.start:
            return pixels.mean()
        return pixels.topk(int(pixels.numel() * self.kept(iteration)), sorted=False).values.mean()


@torch.no_grad()
def foreground_counts(prob: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Pixels in the intersection and in the union of `prob` above 0.5 and `truth`: int64 [2]."""
    ours = prob > 0.5
    return torch.stack([(ours & truth).sum(), (ours | truth).sum()])
