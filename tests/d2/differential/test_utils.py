"""Events, logging, seeding, names, communication: the same numbers and lines."""

from __future__ import annotations

import json
import logging
import pickle
import random
import re

import numpy as np
import pytest
import torch

from tests.d2.differential.differences import REASON
from vss2.d2._embedded.utils import comm, env, events, logger, memory, registry, serialize

real_events = pytest.importorskip("detectron2.utils.events", reason=REASON)
real_comm = pytest.importorskip("detectron2.utils.comm", reason=REASON)
real_env = pytest.importorskip("detectron2.utils.env", reason=REASON)
real_logger = pytest.importorskip("detectron2.utils.logger", reason=REASON)
real_memory = pytest.importorskip("detectron2.utils.memory", reason=REASON)
real_registry = pytest.importorskip("detectron2.utils.registry", reason=REASON)
real_serialize = pytest.importorskip("detectron2.utils.serialize", reason=REASON)

EVENTS = [events, real_events]


def history(seed):
    """(iteration, name, value, hint) of a made-up run with gaps."""
    rng = random.Random(seed)
    for iteration in range(60):
        for name in ("total_loss", "loss_a", "[metric] b", "time", "data_time"):
            if rng.random() < 0.7:
                yield iteration, name, rng.random(), True
        yield iteration, "lr", rng.random() * 1e-3, False


def filled(module, seed):
    storage = module.EventStorage(0)
    for iteration, name, value, hint in history(seed):
        storage.iter = iteration
        storage.put_scalar(name, value, smoothing_hint=hint)
    return storage


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("window", [1, 5, 20, 100])
def test_smoothed_values(seed, window):
    ours, theirs = (filled(module, seed) for module in EVENTS)
    assert ours.latest() == theirs.latest()
    assert ours.latest_with_smoothing_hint(window) == theirs.latest_with_smoothing_hint(window)
    assert ours.smoothing_hints() == theirs.smoothing_hints()
    for name in ours.histories():
        assert ours.history(name).values() == theirs.history(name).values()
        assert ours.count_samples(name, window) == theirs.count_samples(name, window)


def test_json_lines(tmp_path):
    texts = []
    for index, module in enumerate(EVENTS):
        path = tmp_path / f"{index}.json"
        writer = module.JSONWriter(str(path), window_size=7)
        with module.EventStorage(0) as storage:
            last = 0
            for iteration, name, value, hint in history(0):
                if iteration != last and iteration % 5 == 0:
                    writer.write()
                last = iteration
                storage.iter = iteration
                storage.put_scalar(name, value, smoothing_hint=hint)
                storage.put_scalar("late", 1.0, cur_iter=iteration + 30)
            writer.write()
        writer.close()
        texts.append(path.read_text())
    assert texts[0] == texts[1]
    assert all("iteration" in json.loads(line) for line in texts[0].splitlines())


def test_histograms():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    ours, theirs = (module.EventStorage(3) for module in EVENTS)
    for storage in (ours, theirs):
        storage.put_histogram("w", values, bins=7)
    (mine,), (other,) = ours._histograms, theirs._histograms
    assert mine.keys() == other.keys()
    for key, value in mine.items():
        if isinstance(value, str):
            assert value == other[key]
        else:
            assert np.allclose(value, other[key], rtol=1e-5), key


def test_printed_lines(caplog):
    lines = []
    for module in EVENTS:
        caplog.clear()
        printer = module.CommonMetricPrinter(max_iter=200, window_size=20)
        with caplog.at_level(logging.INFO), filled(module, 1) as storage:
            printer.write()
            eta = storage.latest()["eta_seconds"]
        (text,) = [r.getMessage() for r in caplog.records if "iter:" in r.getMessage()]
        lines.append((re.sub(r"\s+", " ", text).strip(), eta))
    assert lines[0] == lines[1]


def test_seeds():
    drawn = []
    for module in (env, real_env):
        module.seed_all_rng(11)
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    seeds = []
    for module in (comm, real_comm):
        np.random.seed(4)
        seeds.append(int(module.shared_random_seed()))
    assert seeds[0] == seeds[1]


def test_small_tables():
    row = {"mIoU": 12.34567, "n": 3, "name": "x", "nan": float("nan")}
    assert logger.create_small_table(row) == real_logger.create_small_table(row)


@pytest.mark.parametrize("rank", [0, 1])
def test_log_files_and_screens(tmp_path, capsys, rank):
    texts = []
    for index, module in enumerate((logger, real_logger)):
        folder = tmp_path / str(index)
        name = f"differential{rank}"
        log = module.setup_logger(str(folder), rank, name=name, abbrev_name="short")
        log.info("hello")
        logging.getLogger(f"{name}.part").warning("watch out")
        log.error("wrong")
        (file,) = folder.iterdir()
        shown = capsys.readouterr().out
        log.handlers = []
        texts.append([re.sub(r"\d\d(?=[/: \]])", "00", text) for text in (file.read_text(), shown)])
        texts[-1].append(file.name)
    # The screen shows colours: what they spell is compared.
    plain = [[re.sub(r"\x1b\[[\d;]*m", "", text) for text in side] for side in texts]
    assert plain[0] == plain[1]


def test_repeated_messages(caplog):
    seen = []
    for module in (logger, real_logger):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            for step in range(7):
                module.log_first_n(logging.INFO, f"first {step}", n=2, name="differential")
                module.log_every_n(logging.INFO, f"every {step}", n=3, name="differential")
                module.log_first_n(logging.INFO, f"text {step % 2}", name="d", key="message")
                module.log_every_n_seconds(logging.INFO, f"slow {step}", n=99, name="d")
        seen.append([(record.name, record.getMessage()) for record in caplog.records])
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "obj", [torch.optim.AdamW, torch.nn.Conv2d, torch.nn.Module.state_dict, dict, json.dumps]
)
def test_names_of_objects(obj):
    name = registry._convert_target_to_string(obj)
    assert name == real_registry._convert_target_to_string(obj)
    assert registry.locate(name) is real_registry.locate(name) is obj


@pytest.mark.parametrize("name", ["torch.optim.NoSuch", "no.such.module", "torch.nn.Module.forwad"])
def test_names_of_nothing(name):
    for module in (registry, real_registry):
        with pytest.raises(ImportError):
            module.locate(name)


def test_wrappers():
    for module in (serialize, real_serialize):
        restored = pickle.loads(pickle.dumps(module.PicklableWrapper(lambda x: x + 1)))
        assert restored(1) == 2


def test_retries():
    counts = []
    for module in (memory, real_memory):
        calls = []

        def work(calls=calls):
            calls.append(1)
            raise RuntimeError("CUDA out of memory. Tried to allocate")

        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            module.retry_if_cuda_oom(work)()
        counts.append(len(calls))
    assert counts[0] == counts[1] == 3
