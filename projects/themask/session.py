"""Streaming with the release's last step, a softmax over scores that are no logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vss2.modeling.session import WindowSession, finalize

if TYPE_CHECKING:
    import torch

    from vss2.modeling.session import _Request


class SoftmaxSession(WindowSession):
    """As `WindowSession`, but `sem_seg` sums to one over the classes, and labels come from that."""

    def _finalize(self, scores: torch.Tensor, request: _Request) -> dict[str, Any]:
        resized = finalize(scores, request.input_size, request.output_size, labels_only=False)
        shares = resized["sem_seg"].softmax(dim=0)
        if request.labels_only:
            return {"labels": shares.argmax(dim=0).byte()}
        return {"sem_seg": shares}
