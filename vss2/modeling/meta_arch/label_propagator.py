"""Mask propagators whose labels follow features, without a network that decodes them."""

from __future__ import annotations

import torch

from vss2.layers.local_correlation import local_correlation, pack_rows, read_labels

from ..context_session import Context, ContextEntry, ContextSession
from ..losses import resize_scores
from .mask_propagator import VideoMaskPropagator


class LabelPropagator(VideoMaskPropagator):
    """A model that defines `encode`, normalised features [N, C, h, w], and `losses`.

    Jabri et al., Space-Time Correspondence as a Contrastive Random Walk, NeurIPS 2020, section 3.1.
    """

    session_type = ContextSession

    def memorize(self, features: torch.Tensor, masks: torch.Tensor) -> ContextEntry:
        """The features [1, C, h, w] as rows, and the labels at their size."""
        labels = resize_scores(masks[None], features.shape[-2:])[0]
        return ContextEntry(pack_rows(features[0]), labels)

    def read(self, features: torch.Tensor, memory: Context) -> torch.Tensor:
        """The labels that the best matches in the context carry, float [L, h, w]."""
        found = local_correlation(
            features[0], memory.maps, memory.radii, memory.top_k, memory.repeats
        )
        return read_labels(found, memory.labels, memory.temperature)

    def decode(self, features: torch.Tensor, readout: torch.Tensor) -> torch.Tensor:
        """The readout is the soft labels."""
        return readout
