"""Train or evaluate the model of a config."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vss2.errors import InputError, did_you_mean

from . import BAD_INPUT, INTERRUPTED, run_tool

if TYPE_CHECKING:
    from vss2.engine.launch import World

LAUNCHERS = ("auto", "slurm")

logger = logging.getLogger(__name__)

EPILOG = """
overrides:
  key=value changes a key of the config, +key=value adds one, ~key removes one.
  A mistyped key is an error that lists close ones.

examples:
  vss2 train --config-file segformer/segformer_toy train.output_dir=output/toy
  vss2 train --config-file segformer/segformer_toy train.output_dir=output/toy --resume
  vss2 train --config-file segformer/segformer_toy train.output_dir=output/toy --resume --eval-only
  vss2 train --config-file segformer/segformer_toy --num-gpus 2 train.max_iter=20 \\
      train.output_dir=output/toy_two_processes

several processes: --num-gpus starts them; or start them with torchrun, which also starts them
again after a failure (the run then resumes by itself), or with srun and --launcher slurm:
  torchrun --nproc-per-node 4 --max-restarts 3 tools/train_net.py --config-file CONFIG
  srun --ntasks-per-node 4 vss2 train --launcher slurm --config-file CONFIG
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    return run_tool(_main, argv)


def build_parser() -> argparse.ArgumentParser:
    """The tool's options; overrides are what is left over."""
    parser = argparse.ArgumentParser(
        prog="vss2 train",
        description=__doc__,
        epilog=EPILOG,
        usage="%(prog)s --config-file CONFIG [options] [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="CONFIG", help="path or short name of a config")
    add("--eval-only", action="store_true", help="evaluate, do not train")
    add(
        "--resume",
        action="store_true",
        help="continue from the newest checkpoint in train.output_dir; "
        "with --eval-only, evaluate it",
    )
    add("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine (1)")
    add("--num-machines", type=int, default=1, metavar="N", help="machines (1)")
    add("--machine-rank", type=int, default=0, metavar="I", help="which of them this is (0)")
    add(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where the machines meet, such as tcp://10.0.0.1:29500 (auto: one machine)",
    )
    add(
        "--launcher",
        default="auto",
        metavar="NAME",
        help="slurm: one of the processes that srun has started (auto: torchrun's variables "
        "where they are set, else --num-gpus)",
    )
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options and `overrides`; options may also stand behind overrides.

    Raises:
        InputError: an unknown option, or numbers of processes that make no sense.
    """
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    for token in rest:
        if token.startswith("-"):
            name = token.partition("=")[0]
            known = [o for action in parser._actions for o in action.option_strings]
            raise InputError(f"unknown option {name!r}.{did_you_mean(name, known)}")
    args.overrides = rest
    if args.num_gpus < 1 or args.num_machines < 1:
        raise InputError("--num-gpus and --num-machines must be at least 1")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise InputError("--num-machines needs --dist-url, where the machines meet")
    if args.launcher not in LAUNCHERS:
        raise InputError(f"--launcher is {args.launcher!r}, expected one of {', '.join(LAUNCHERS)}")
    return args


def load_run_config(args: argparse.Namespace) -> Any:
    """The config of a run: loaded, completed, overridden and checked."""
    from vss2.config import apply_overrides, load_config
    from vss2.engine import check_config, complete_config

    cfg = complete_config(load_config(args.config_file))
    apply_overrides(cfg, args.overrides)
    check_config(cfg, training=not args.eval_only, resume=args.resume)
    return cfg


def _main(argv: Sequence[str] | None) -> int:
    args = parse_args(argv)
    if not logging.getLogger("vss2").handlers:  # until the run's own log is open
        logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
        logging.getLogger("vss2").setLevel(logging.INFO)
    from vss2.engine import find_world

    world = find_world(args.launcher)
    args.spawned = world is None and args.num_gpus * args.num_machines > 1
    if world is None:
        return _start(args, None)
    with _rank_0_speaks_first(world.rank):
        return _start(args, world)


def _start(args: argparse.Namespace, world: World | None) -> int:
    from vss2.engine import prepare_environment, restarted

    if world is not None and args.num_gpus * args.num_machines > 1:
        logger.info("started by %s: --num-gpus and --num-machines are not used", world.source)
    if world is not None and restarted() and not (args.resume or args.eval_only):
        logger.info("started again by torchrun after a failure: resuming")
        args.resume = True
    cfg = load_run_config(args)
    if args.eval_only:
        checkpoint_to_evaluate(cfg, args.resume)
    prepare_environment(cfg.train)
    return _launch(args, world)


def _launch(args: argparse.Namespace, world: World | None) -> int:
    import torch

    from vss2.engine import launch

    # Its note that it ends the other processes after one has failed adds nothing for the user.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        launch(
            run_process,
            (args,),
            world=world,
            num_gpus=args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
        )
    except torch.multiprocessing.ProcessExitedException as e:
        if e.exit_code in (BAD_INPUT, INTERRUPTED):
            return e.exit_code  # the process has said why
        raise
    return 0


def run_process(args: argparse.Namespace) -> None:
    """Body of each process of a run; every one of them loads the config itself."""
    if not args.spawned:
        _run(args)
        return
    code = run_tool(lambda _: _run_rank(args), None)
    if code:
        sys.exit(code)


def _run_rank(args: argparse.Namespace) -> None:
    from vss2.d2.utils import comm

    with _rank_0_speaks_first(comm.get_rank()):
        _run(args)


@contextlib.contextmanager
def _rank_0_speaks_first(rank: int) -> Iterator[None]:
    """Most mistakes meet every rank. The end of rank 0, which has spoken, ends the others.

    What met another rank alone is said after a wait.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt):
        if rank:
            time.sleep(2)
        raise


def _run(args: argparse.Namespace) -> None:
    from vss2.checkpoint import load_weights, read_checkpoint
    from vss2.config import resolve_config
    from vss2.d2.utils import comm
    from vss2.engine import build_model, copy_config_sources, do_eval, do_train, setup

    cfg = load_run_config(args)
    setup(cfg, save=not args.eval_only)
    if not args.eval_only:
        if comm.is_main_process():
            folder = Path(str(cfg.train.output_dir)).expanduser() / "configs"
            copy_config_sources(resolve_config(args.config_file), folder)
        do_train(cfg, args.resume)
        return
    path = checkpoint_to_evaluate(cfg, args.resume)
    model = build_model(cfg).eval()  # as which it takes the weights
    trust = bool(cfg.train.trust_checkpoint)
    key = None
    if cfg.train.ema.enabled and cfg.train.ema.eval and isinstance(path, str):
        # As the evaluations of the training run.
        key = "ema" if "ema" in read_checkpoint(path, trust) else None
        logger.info("evaluating the %s", "averaged weights" if key else "weights: no average there")
    report = load_weights(model, path, key=key, trust=trust, collective=True)
    if report.missing:
        raise InputError(f"checkpoint {path} does not fill the model: {report.summary()}")
    do_eval(cfg, model)


def checkpoint_to_evaluate(cfg: Any, resume: bool) -> str | dict[str, str]:
    """The file that --eval-only evaluates, or the files by part of the model.

    Raises:
        InputError: neither --resume nor train.init_checkpoint names one.
    """
    from vss2.engine import newest_checkpoint, weight_files

    if resume:
        return newest_checkpoint(cfg)
    if not cfg.train.init_checkpoint:
        raise InputError(
            "--eval-only needs weights: train.init_checkpoint=FILE, or --resume for the newest "
            f"checkpoint in train.output_dir ({cfg.train.output_dir})"
        )
    return weight_files(cfg.train)


if __name__ == "__main__":
    sys.exit(main())
