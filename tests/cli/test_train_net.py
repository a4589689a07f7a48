"""The command line: what it accepts, and how it says no."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vss2
from vss2.cli import main as vss2_main
from vss2.cli import run_tool
from vss2.cli.train_net import main, parse_args
from vss2.errors import InputError, InputFileError

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "engine" / "plugin" / "tinyplug" / "configs" / "tiny.py")


def fails(capsys, *arguments: str) -> str:
    """Runs the tool, which must fail as a user's mistake; returns its one line."""
    assert main(["--config-file", TINY, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_options_may_follow_overrides() -> None:
    args = parse_args(["--config-file", "c", "a.b=1", "--resume", "+c=2", "--num-gpus", "3", "~d"])
    assert args.resume
    assert args.num_gpus == 3
    assert args.overrides == ["a.b=1", "+c=2", "~d"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=1", "--resum"], "unknown option '--resum'. Did you mean '--resume'"),
        (["--eval_only"], "unknown option '--eval_only'. Did you mean '--eval-only'"),
        (["--lr=3"], "unknown option '--lr'"),
        (["-x"], "unknown option '-x'"),
        (["--num-gpus", "0"], "must be at least 1"),
        (["--num-machines", "2"], "--num-machines needs --dist-url"),
    ],
)
def test_bad_options(capsys, arguments: list[str], message: str) -> None:
    assert message in fails(capsys, *arguments)


def test_bad_configs_and_overrides(capsys, tmp_path: Path) -> None:
    assert main(["--config-file", "segfromer/segformer_mit_b0_vspw"]) == 2
    assert "Did you mean 'segformer/segformer_mit_b0_vspw'" in capsys.readouterr().err
    out = f"train.output_dir={tmp_path}"
    assert "Did you mean 'train.max_iter'" in fails(capsys, out, "train.max_itr=1")
    assert "Did you mean 'tiny_val'" in fails(capsys, out, "dataloader.test.dataset=tiny_vall")
    assert "the config has no 'model'" in fails(capsys, out, "~model")


def test_a_settings_default_can_be_overridden_where_the_config_leaves_it_out(
    tmp_path: Path, capsys
) -> None:
    (tmp_path / "bare.py").write_text("model = {}\ndataloader = {'train': {}}\noptimizer = {}\n")
    arguments = ["--config-file", str(tmp_path / "bare.py"), "train.log_period=0"]
    assert main(arguments) == 2
    assert "no 'lr_multiplier'" in capsys.readouterr().err
    assert main([*arguments, "+lr_multiplier={}"]) == 2
    assert "train.log_period must be an integer of at least 1" in capsys.readouterr().err


def test_half_of_torchruns_variables_are_refused(capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "WORLD_SIZE=2 is set, but LOCAL_RANK, LOCAL_WORLD_SIZE" in fails(capsys)


def test_slurm_is_asked_for_by_name_and_needs_srun(capsys, monkeypatch) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    assert "--launcher slurm, but SLURM_PROCID" in fails(capsys, "--launcher", "slurm")
    assert "--launcher is 'slrum', expected one of auto, slurm" in fails(
        capsys, "--launcher", "slrum"
    )


def test_the_sources_of_the_config_are_beside_the_results(tmp_path: Path) -> None:
    arguments = ["--config-file", TINY, f"train.output_dir={tmp_path}", "train.max_iter=1"]
    assert main(arguments) == 0
    assert (tmp_path / "configs" / "tiny.py").read_bytes() == Path(TINY).read_bytes()
    assert (tmp_path / "configs" / "vss2" / "common" / "train.py").is_file()


def test_train_then_evaluate(capsys, tmp_path: Path) -> None:
    arguments = ["--config-file", TINY, f"train.output_dir={tmp_path}", "train.max_iter=2"]
    assert "needs weights" in fails(capsys, f"train.output_dir={tmp_path}", "--eval-only")
    assert "holds no checkpoint" in fails(
        capsys, f"train.output_dir={tmp_path}", "--eval-only", "--resume"
    )
    assert main(arguments) == 0
    saved = (tmp_path / "config.yaml").read_bytes()
    log = (tmp_path / "log.txt").read_text()
    for text in ("backend", "model TinySegmentor: 267 parameters", "5 videos, 4 clips", "20 frames",
                 "loss_ce: ", "lr: ", "model_final.pth"):  # fmt: skip
        assert text in log
    assert main([*arguments, "--eval-only", "--resume"]) == 0
    weights = f"train.init_checkpoint={tmp_path / 'model_final.pth'}"
    assert main([*arguments, "--eval-only", weights]) == 0
    values = [
        line.rsplit(" ", 1)[1]
        for line in (tmp_path / "log.txt").read_text().splitlines()
        if "copypaste: " in line and line[-1].isdigit()
    ]
    assert len(values) == 3
    assert len(set(values)) == 1
    assert (tmp_path / "config.yaml").read_bytes() == saved


def test_evaluating_half_a_model_is_an_error(capsys, tmp_path: Path) -> None:
    half = tmp_path / "half.pth"
    torch.save({"head.bias": torch.zeros(3)}, half)
    error = fails(
        capsys, f"train.output_dir={tmp_path}", "--eval-only", f"train.init_checkpoint={half}"
    )
    assert "does not fill the model: loaded 1 of 9 tensors; missing 8" in error
    other = tmp_path / "other.pth"
    torch.save({"head.bias": torch.zeros(4)}, other)
    error = fails(capsys, f"train.output_dir={tmp_path}", f"train.init_checkpoint={other}")
    assert "head.bias (4,) in the file, (3,) in the model" in error


def test_help_has_an_example(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "vss2 train --config-file segformer/segformer_toy" in text
    assert "--eval-only" in text


def test_tool_runs_from_any_folder(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", "nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: no config 'nowhere'")
    assert len(run.stderr.splitlines()) == 1


# the dispatcher


def test_commands_are_listed(capsys) -> None:
    assert vss2_main.main(["--help"]) == 0
    text = capsys.readouterr().out
    for command, (_, what) in vss2_main.COMMANDS.items():
        assert f"  {command}" in text
        assert what in text
    assert vss2_main.main([]) == 2


def test_unknown_command_names_a_close_one(capsys) -> None:
    assert vss2_main.main(["trian"]) == 2
    assert "unknown command 'trian'. Did you mean 'train'?" in capsys.readouterr().err


def test_commands_get_their_arguments(capsys) -> None:
    assert vss2_main.main(["--version"]) == 0
    assert vss2.__version__ in capsys.readouterr().out
    assert vss2_main.main(["train", "--config-file", TINY, "--nope"]) == 2
    assert "unknown option '--nope'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("a is wrong"), 2, "error: a is wrong"),
        (InputFileError("f is missing"), 2, "error: f is missing"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_ends_of_a_tool(capsys, error: BaseException, code: int, text: str) -> None:
    def body(argv):
        raise error

    assert run_tool(body, []) == code
    assert capsys.readouterr().err.strip() == text
    assert run_tool(lambda argv: None, []) == 0


def test_a_defect_keeps_its_traceback() -> None:
    def body(argv):
        raise ValueError("not the user's fault")

    with pytest.raises(ValueError, match="fault"):
        run_tool(body, [])
