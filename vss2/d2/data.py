"""Data sets, catalogs, samplers and loaders: detectron2's own where it serves, else the subset."""

from __future__ import annotations

from . import BACKEND

if BACKEND == "detectron2":
    from detectron2.data.build import (
        build_batch_data_loader,
        build_detection_test_loader,
        build_detection_train_loader,
        get_detection_dataset_dicts,
    )
    from detectron2.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
    from detectron2.data.common import DatasetFromList, MapDataset, ToIterableDataset
    from detectron2.data.samplers import InferenceSampler, TrainingSampler
else:
    from ._embedded.data import (
        DatasetCatalog,
        DatasetFromList,
        InferenceSampler,
        MapDataset,
        Metadata,
        MetadataCatalog,
        ToIterableDataset,
        TrainingSampler,
        build_batch_data_loader,
        build_detection_test_loader,
        build_detection_train_loader,
        get_detection_dataset_dicts,
    )

__all__ = [
    "DatasetCatalog",
    "DatasetFromList",
    "InferenceSampler",
    "MapDataset",
    "Metadata",
    "MetadataCatalog",
    "ToIterableDataset",
    "TrainingSampler",
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "get_detection_dataset_dicts",
]
