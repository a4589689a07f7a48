"""`detectron2.utils`: events, communication, logging, registries and small helpers."""

from __future__ import annotations

from . import BACKEND

if BACKEND == "detectron2":
    from detectron2.utils import (
        comm,
        env,
        events,
        file_io,
        logger,
        memory,
        registry,
        serialize,
    )
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import (
        CommonMetricPrinter,
        EventStorage,
        EventWriter,
        JSONWriter,
        TensorboardXWriter,
        get_event_storage,
        has_event_storage,
    )
    from detectron2.utils.file_io import PathManager
    from detectron2.utils.logger import (
        create_small_table,
        log_every_n,
        log_every_n_seconds,
        log_first_n,
        setup_logger,
    )
    from detectron2.utils.memory import retry_if_cuda_oom
    from detectron2.utils.registry import Registry, locate
    from detectron2.utils.serialize import PicklableWrapper
else:
    from ._embedded.utils import (
        comm,
        env,
        events,
        file_io,
        logger,
        memory,
        registry,
        serialize,
    )
    from ._embedded.utils.env import seed_all_rng
    from ._embedded.utils.events import (
        CommonMetricPrinter,
        EventStorage,
        EventWriter,
        JSONWriter,
        TensorboardXWriter,
        get_event_storage,
        has_event_storage,
    )
    from ._embedded.utils.file_io import PathManager
    from ._embedded.utils.logger import (
        create_small_table,
        log_every_n,
        log_every_n_seconds,
        log_first_n,
        setup_logger,
    )
    from ._embedded.utils.memory import retry_if_cuda_oom
    from ._embedded.utils.registry import Registry, locate
    from ._embedded.utils.serialize import PicklableWrapper

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "PathManager",
    "PicklableWrapper",
    "Registry",
    "TensorboardXWriter",
    "comm",
    "create_small_table",
    "env",
    "events",
    "file_io",
    "get_event_storage",
    "has_event_storage",
    "locate",
    "log_every_n",
    "log_every_n_seconds",
    "log_first_n",
    "logger",
    "memory",
    "registry",
    "retry_if_cuda_oom",
    "seed_all_rng",
    "serialize",
    "setup_logger",
]
