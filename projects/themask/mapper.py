"""Training clips of THE-Mask: those without any labelled pixel are drawn anew."""

from __future__ import annotations

from typing import Any

import numpy as np

from vss2.data.labels import IGNORE_LABEL
from vss2.data.mappers import DATASET_MAPPER_REGISTRY, ClipTrainMapper


@DATASET_MAPPER_REGISTRY.register()
class LabelledClipTrainMapper(ClipTrainMapper):
    """As `ClipTrainMapper`, but refuses a clip all of whose pixels are void after augmentation.

    The loader then draws another video, as the published pipeline does.
    """

    def __call__(self, video: dict[str, Any], rng: np.random.Generator) -> dict[str, Any] | None:
        """A training sample, or None where no pixel of the clip has a label."""
        sample = super().__call__(video, rng)
        return None if bool((sample["sem_seg"] == IGNORE_LABEL).all()) else sample
