"""Data sets, catalogs, samplers and loaders of the embedded backend."""

from __future__ import annotations

from .build import (
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from .catalog import DatasetCatalog, Metadata, MetadataCatalog
from .common import DatasetFromList, MapDataset, ToIterableDataset
from .samplers import InferenceSampler, TrainingSampler

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
