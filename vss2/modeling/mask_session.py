"""Streaming of models that classify masks: scores are made at the frames' full size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .losses import resize_scores
from .resize import CLASS_CHUNK, best_labels
from .session import WindowSession

if TYPE_CHECKING:
    from .mask2former import Mask2Former
    from .session import _Request


class MaskSession(WindowSession):
    """The session of Mask2Former.

    As published, mask logits are upsampled to the network's (padded) input size before they become
    probabilities and scores; padding is cut off, and scores are resized to the output size. Between
    frames only the masks at stride 4 are held.
    """

    _model: Mask2Former

    def _decode_clip(self, clip: Sequence[Any], targets: Sequence[int]) -> Any:
        return self._model.predict_masks(clip, targets)

    def _finalize(self, scores: Any, request: _Request) -> dict[str, Any]:
        chunks = score_chunks(
            scores["classes"][0],
            scores["masks"],
            self._model.padded_size(*request.input_size),
            request.input_size,
            request.output_size,
        )
        with torch.no_grad():
            if request.labels_only:
                return {"labels": best_labels(chunks)}
            return {"sem_seg": torch.cat(list(chunks), dim=1)[0]}


def score_chunks(
    classes: torch.Tensor,
    masks: torch.Tensor,
    padded_size: Sequence[int],
    input_size: Sequence[int],
    output_size: Sequence[int],
) -> Iterator[torch.Tensor]:
    """Semantic scores of one frame, some classes at a time.

    Args:
        classes: float32 [Q, K], probabilities.
        masks: float32 [1, Q, h, w], logits.
        padded_size: (H, W) of what the network saw.
        input_size: (H, W) of the frame in it, at the top left.
        output_size: (H', W') of the scores.

    Yields:
        float32 [1, k, H', W'] of k classes after the others; the k add up to K.
    """
    # Interpolation works on all channels of a pixel at once where they lie side by side, and so
    # does the product with the classes.
    masks = masks.contiguous(memory_format=torch.channels_last)
    probability = resize_scores(masks, padded_size).sigmoid_()
    pixels = probability[..., : input_size[0], : input_size[1]].permute(0, 2, 3, 1)  # [1, H, W, Q]
    for part in classes.split(CLASS_CHUNK, dim=1):
        yield resize_scores((pixels @ part).permute(0, 3, 1, 2), output_size)
