"""Parameters that callers may name, with the defaults that they may rely on."""

from __future__ import annotations

import importlib
import inspect

import pytest

from vss2.d2 import BACKEND

REQUIRED = inspect.Parameter.empty
LOADER = {"sampler": None, "num_workers": 0, "collate_fn": None}

PARAMETERS = {
    "data.TrainingSampler": {"size": REQUIRED, "shuffle": True, "seed": None},
    "data.InferenceSampler": {"size": REQUIRED},
    "data.DatasetFromList": {"lst": REQUIRED, "copy": True, "serialize": True},
    "data.MapDataset": {"dataset": REQUIRED, "map_func": REQUIRED},
    "data.ToIterableDataset": {
        "dataset": REQUIRED,
        "sampler": REQUIRED,
        "shard_sampler": True,
        "shard_chunk_size": 1,
    },
    "data.build_batch_data_loader": {
        "dataset": REQUIRED,
        "sampler": REQUIRED,
        "total_batch_size": REQUIRED,
        "aspect_ratio_grouping": False,
        "num_workers": 0,
        "collate_fn": None,
        "drop_last": True,
        "single_gpu_batch_size": None,
        "prefetch_factor": 2,
        "persistent_workers": False,
        "pin_memory": False,
        "seed": None,
    },
    "data.build_detection_train_loader": {
        "dataset": REQUIRED,
        "mapper": REQUIRED,
        "total_batch_size": REQUIRED,
        "aspect_ratio_grouping": True,
        **LOADER,
    },
    "data.build_detection_test_loader": {
        "dataset": REQUIRED,
        "mapper": REQUIRED,
        "batch_size": 1,
        **LOADER,
    },
    "data.get_detection_dataset_dicts": {"names": REQUIRED, "filter_empty": True},
    "engine.SimpleTrainer": {
        "model": REQUIRED,
        "data_loader": REQUIRED,
        "optimizer": REQUIRED,
        "gather_metric_period": 1,
        "zero_grad_before_forward": False,
        "async_write_metrics": False,
    },
    "engine.default_argument_parser": {"epilog": None},
    "engine.default_setup": {"cfg": REQUIRED, "args": REQUIRED},
    "engine.default_writers": {"output_dir": REQUIRED, "max_iter": None},
    "engine.create_ddp_model": {"model": REQUIRED, "fp16_compression": False},
    "engine.launch": {
        "main_func": REQUIRED,
        "num_gpus_per_machine": REQUIRED,
        "num_machines": 1,
        "machine_rank": 0,
        "dist_url": None,
        "args": (),
    },
    "engine.hooks.CallbackHook": dict.fromkeys(
        ("before_train", "after_train", "before_step", "after_step")
    ),
    "engine.hooks.IterationTimer": {"warmup_iter": 3},
    "engine.hooks.LRScheduler": {"optimizer": None, "scheduler": None},
    "engine.hooks.PeriodicCheckpointer": {
        "checkpointer": REQUIRED,
        "period": REQUIRED,
        "max_iter": None,
        "max_to_keep": None,
        "file_prefix": "model",
    },
    "engine.hooks.EvalHook": {
        "eval_period": REQUIRED,
        "eval_function": REQUIRED,
        "eval_after_train": True,
    },
    "engine.hooks.BestCheckpointer": {
        "eval_period": REQUIRED,
        "checkpointer": REQUIRED,
        "val_metric": REQUIRED,
        "mode": "max",
        "file_prefix": "model_best",
    },
    "engine.hooks.PeriodicWriter": {"writers": REQUIRED, "period": 20},
    "evaluation.DatasetEvaluators": {"evaluators": REQUIRED},
    "evaluation.inference_on_dataset": {
        "model": REQUIRED,
        "data_loader": REQUIRED,
        "evaluator": REQUIRED,
        "callbacks": None,
    },
    "evaluation.inference_context": {"model": REQUIRED},
    "evaluation.print_csv_format": {"results": REQUIRED},
    "evaluation.flatten_results_dict": {"results": REQUIRED},
}


def resolve(name):
    facade, *rest = name.split(".")
    found = importlib.import_module(f"vss2.d2.{facade}")
    for part in rest:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_defaults(name):
    parameters = inspect.signature(resolve(name)).parameters
    for parameter, default in PARAMETERS[name].items():
        assert parameter in parameters, f"{name} has no parameter {parameter}"
        assert parameters[parameter].default == default, f"{name}({parameter}=)"


@pytest.mark.parametrize("facade", ["data", "engine", "evaluation"])
def test_facade_exports_what_it_says(facade):
    module = importlib.import_module(f"vss2.d2.{facade}")
    imported = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ("BACKEND", "annotations")
    }
    assert imported == set(module.__all__)
    assert module.__all__ == sorted(module.__all__)


@pytest.mark.parametrize("facade", ["data", "engine", "evaluation"])
def test_facade_objects_come_from_the_chosen_backend(facade):
    module = importlib.import_module(f"vss2.d2.{facade}")
    root = "detectron2" if BACKEND == "detectron2" else "vss2.d2._embedded"
    for name in module.__all__:
        value = getattr(module, name)
        home = getattr(value, "__module__", None) or value.__name__
        assert home.startswith(root + "."), f"{name} comes from {home}"
