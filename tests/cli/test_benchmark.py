from __future__ import annotations

import json
from pathlib import Path

import pytest

from vss2.cli import benchmark as tool
from vss2.inference import benchmark

TINY = ("segformer/segformer_toy", "--frames", "3", "--warmup", "1", "--threads", "1")


def _args(*more: str) -> list[str]:
    return ["--config-file", *TINY, "--device", "cpu", *more]


def test_generated_frames_and_json(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "out.json"
    assert tool.main(_args("--size", "48", "64", "--json", str(file))) == 0
    report = json.loads(file.read_text())
    assert set(report) == {"environment", "input", "warmup", "runs", "memory"}
    assert report["input"] == {"source": "generated JPEG frames", "height": 48, "width": 64}
    assert {"cpu", "cores", "gpus", "torch", "vss2", "python"} <= set(report["environment"])
    (run,) = report["runs"]
    assert run["frames"] == 3
    assert run["threads"] == 1
    assert run["weights"] == "as initialised"
    assert run["output"] == "labels"
    assert run["latency_ms"]["p50"] <= run["latency_ms"]["p99"]
    rates = run["frames_per_second"]
    assert rates["session"] > rates["with_reading"] > rates["with_reading_and_writing"] > 0
    assert set(run["stage_share"]) == set(benchmark.STAGES)
    assert sum(run["stage_share"].values()) == pytest.approx(1)
    assert min(run["stage_share"].values()) > 0
    assert report["memory"]["rss_peak_mb"] >= report["memory"]["rss_start_mb"] > 0
    printed = capsys.readouterr().out
    assert "frames/s" in printed
    assert "share" in printed


def test_compare_takes_turns_and_prints_a_ratio(capsys: pytest.CaptureFixture) -> None:
    argv = _args("--size", "48", "64", "--compare", "", "--scores --threads 1 model.embed_dim=16")
    assert tool.main([*argv, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    a, b = report["runs"]
    assert (a["output"], b["output"]) == ("labels", "scores")
    assert (a["overrides"], b["overrides"]) == ([], ["model.embed_dim=16"])
    ratio = report["compare"]["session"]
    assert ratio["rounds"] == 3
    assert 0 < ratio["p10"] <= ratio["median"] <= ratio["p90"]
    assert tool.main(argv) == 0
    assert "B / A, session" in capsys.readouterr().out


def test_compare_needs_no_config_outside_and_compiles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    compiled = []
    monkeypatch.setattr(
        tool, "compile_targets", lambda model, mode: compiled.append(mode) or ["backbone"]
    )
    argv = [*TINY[1:], "--device", "cpu", "--size", "48", "64", "--json", "-"]
    assert tool.main([*argv, "--compare", TINY[0], f"{TINY[0]} --compile-mode default"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert compiled == ["default"]
    assert [run["compiled"] for run in runs] == [[], ["backbone"]]


def test_frames_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    benchmark.generate_frames(tmp_path, 2, 40, 52)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.jpg", "00001.jpg"]
    assert tool.main(_args("--input", str(tmp_path), "--json", "-")) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["input"]["height"], report["input"]["width"]) == (40, 52)
    assert report["runs"][0]["frames"] == 3  # the folder's two frames come again


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (_args(), "--input or --size"),
        (_args("--size", "0", "8"), "must be positive"),
        (_args("--size", "48", "64", "--frames", "0"), "at least 1"),
        (["--size", "48", "64"], "--config-file"),
        (_args("--size", "48", "64", "--compare", "", "--bogus 1"), "--bogus"),
        (_args("--size", "48", "64", "--compare", "", "--threads many"), "--threads"),
        (_args("--size", "48", "64", "--threads", "0"), "--threads"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert tool.main(argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_ratio_is_taken_round_by_round() -> None:
    # A disturbance that doubles both times of a round leaves its quotient alone.
    ratio = benchmark.ratio([1.0, 2.0, 1.0], [2.0, 4.0, 2.0])
    assert ratio == {"median": 0.5, "p10": 0.5, "p90": 0.5, "rounds": 3}


def test_the_clock_adds_up_and_starts_anew() -> None:
    import torch

    clock = benchmark.StageClock(torch.device("cpu"))
    double = clock.wrap("decode", lambda x: 2 * x)
    assert double(2) == 4
    with clock.measure("reading"):
        double(3)
    seconds = clock.collect()
    assert set(seconds) == {"decode", "reading"}
    assert clock.collect() == {}
