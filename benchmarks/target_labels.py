"""Training clips with labels on their target alone, as in data sets with few labelled frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from vss2.data.labels import IGNORE_LABEL
from vss2.data.mappers import ClipTrainMapper


class TargetLabelsMapper(ClipTrainMapper):
    """A `ClipTrainMapper` that takes away the labels of a clip's frames before the last."""

    def __call__(self, video: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        sample = super().__call__(video, rng)
        sample["sem_seg"][:-1] = IGNORE_LABEL
        sample["labelled"][:-1] = False
        return sample
