from __future__ import annotations

import logging
import random
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.d2.engine_helpers import captured_logs, messages, pretend_world, untouched_loggers
from vss2.d2.config import LazyCall, LazyConfig, instantiate
from vss2.d2.engine import (
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from vss2.d2.utils import CommonMetricPrinter, JSONWriter, TensorboardXWriter, comm


def config(tmp_path, **train):
    path = tmp_path / "cfg.py"
    path.write_text("train = {}\n")
    cfg = LazyConfig.load(str(path))
    cfg.train.update({"output_dir": str(tmp_path / "out"), "seed": 3, **train})
    cfg.model = LazyCall(nn.Linear)(in_features=2, out_features=1)
    return cfg, Namespace(config_file=str(path), eval_only=False, num_gpus=1)


@pytest.fixture(autouse=True)
def _process_state():
    """Set-up changes loggers, generators and switches of the process: put them back."""
    benchmark = torch.backends.cudnn.benchmark
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    with untouched_loggers():
        yield
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


# default_argument_parser


def test_parser_defaults():
    args = default_argument_parser().parse_args([])
    assert args.dist_url.startswith("tcp://127.0.0.1:")
    assert 2**15 <= int(args.dist_url.rpartition(":")[2]) < 2**16
    del args.dist_url
    assert vars(args) == {
        "config_file": "",
        "resume": False,
        "eval_only": False,
        "num_gpus": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "opts": [],
    }


def test_parser_reads_flags_and_overrides():
    line = "--config-file c.py --resume --num-gpus 4 --num-machines 2 --machine-rank 1"
    line += " --dist-url tcp://host:1 --eval-only a.b=1 c=[1,2]"
    args = default_argument_parser().parse_args(line.split())
    assert (args.config_file, args.resume, args.eval_only) == ("c.py", True, True)
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (4, 2, 1)
    assert (args.dist_url, args.opts) == ("tcp://host:1", ["a.b=1", "c=[1,2]"])


def test_parser_takes_flags_after_an_override_for_overrides():
    args = default_argument_parser().parse_args(["a=1", "--resume"])
    assert (args.resume, args.opts) == (False, ["a=1", "--resume"])


def test_parser_may_be_extended_and_shows_its_epilog():
    parser = default_argument_parser(epilog="the last words")
    parser.add_argument("--launcher", default="spawn")
    assert parser.parse_args(["--launcher", "slurm"]).launcher == "slurm"
    assert "the last words" in parser.format_help()


# default_setup


def test_setup_makes_folder_log_and_config(tmp_path):
    cfg, args = config(tmp_path)
    with captured_logs() as records:
        default_setup(cfg, args)
    text = "\n".join(messages(records))
    assert re.search(r"(?i)rank\D*0\D+1\b", text)
    assert "cfg.py" in text
    assert torch.__version__ in text
    written = (tmp_path / "out" / "log.txt").read_text()
    assert all(text in written for text in messages(records))
    saved = LazyConfig.load(str(tmp_path / "out" / "config.yaml"))
    assert saved.train == cfg.train
    assert instantiate(saved.model).in_features == 2


def test_setup_without_output_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg, args = config(tmp_path, output_dir="")
    with captured_logs():
        default_setup(cfg, args)
    assert [p.name for p in tmp_path.iterdir()] == ["cfg.py"]


def test_setup_of_another_rank_logs_to_its_own_file(tmp_path, monkeypatch):
    cfg, args = config(tmp_path)
    (tmp_path / "out").mkdir()
    pretend_world(monkeypatch, comm, 1, 2)
    default_setup(cfg, args)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"log.txt.rank1"}
    written = (tmp_path / "out" / "log.txt.rank1").read_text()
    assert re.search(r"(?i)rank\D*1\D+2\b", written)


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("rank", [0, 2])
def test_setup_seeds_by_rank(tmp_path, monkeypatch, rank):
    cfg, args = config(tmp_path, seed=40)
    (tmp_path / "out").mkdir()
    pretend_world(monkeypatch, comm, rank, 3)
    default_setup(cfg, args)
    got = draws()
    random.seed(40 + rank)
    np.random.seed(40 + rank)
    torch.manual_seed(40 + rank)
    assert got == draws()


def test_setup_with_a_negative_or_absent_seed_is_random(tmp_path):
    results = set()
    for seed in (-1, -1, None):
        cfg, args = config(tmp_path, seed=-1)
        if seed is None:
            del cfg.train.seed
        with captured_logs():
            default_setup(cfg, args)
        results.add(draws())
    assert len(results) == 3


@pytest.mark.parametrize(("eval_only", "expected"), [(False, True), (True, False)])
def test_setup_cudnn_benchmark_is_for_training(tmp_path, eval_only, expected):
    torch.backends.cudnn.benchmark = False
    cfg, args = config(tmp_path, cudnn_benchmark=True)
    args.eval_only = eval_only
    default_setup(cfg, args)
    assert torch.backends.cudnn.benchmark is expected


def test_setup_float32_precision(tmp_path):
    torch.set_float32_matmul_precision("highest")
    cfg, args = config(tmp_path, float32_precision="")
    default_setup(cfg, args)
    assert torch.get_float32_matmul_precision() == "highest"
    cfg, args = config(tmp_path, float32_precision="high")
    default_setup(cfg, args)
    assert torch.get_float32_matmul_precision() == "high"


# default_writers


def test_writers(tmp_path):
    folder = tmp_path / "a" / "b"
    writers = default_writers(str(folder), 100)
    assert [type(w) for w in writers] == [CommonMetricPrinter, JSONWriter, TensorboardXWriter]
    assert (folder / "metrics.json").exists()
    for writer in writers:
        writer.close()


# create_ddp_model


def test_ddp_model_of_one_process_is_the_model():
    model = nn.Linear(1, 1)
    assert create_ddp_model(model, fp16_compression=True, find_unused_parameters=True) is model


def test_logging_uses_children_of_the_backends_root(tmp_path):
    cfg, args = config(tmp_path)
    with captured_logs() as records:
        default_setup(cfg, args)
    assert {r.name.split(".")[0] for r in records} <= {"vss2", "detectron2", "fvcore"}
    assert all(r.levelno >= logging.INFO for r in records)
