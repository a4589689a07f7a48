"""`detectron2.modeling`: registries of networks, the base of backbones, resizing of scores."""

from __future__ import annotations

from . import BACKEND

if BACKEND == "detectron2":
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
    )
    from detectron2.modeling.postprocessing import sem_seg_postprocess
else:
    from ._embedded.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        sem_seg_postprocess,
    )

__all__ = [
    "BACKBONE_REGISTRY",
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "Backbone",
    "sem_seg_postprocess",
]
