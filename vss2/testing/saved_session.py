"""Whether a streaming session goes on from its saved state in another process, bit for bit."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch


def _answers(session: Any, frames: torch.Tensor) -> list[torch.Tensor]:
    return [session.step(frame)["sem_seg"] for frame in frames]


def _go_on(make: Callable[[], Any], file: Path) -> None:
    torch.set_num_threads(1)
    saved = torch.load(file, weights_only=True)
    session = make()
    session.load_state_dict(saved["state"])
    torch.save(_answers(session, saved["frames"]), file)


def assert_goes_on_elsewhere(
    make: Callable[[], Any], frames: torch.Tensor, cut: int, folder: Path
) -> None:
    """Save a session after `cut` frames; here and elsewhere the others get the same scores.

    Args:
        make: returns a fresh causal session of the same model in every process; a function of a
            module, or a `functools.partial` of one.
        frames: uint8 [T, 3, H, W], more than `cut`.
        folder: for the file that the other process reads.

    Raises:
        AssertionError: an answer of the other process differs in a bit, or the first one does not
            depend on the state.
    """
    file = folder / "session.pt"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        session = make()
        _answers(session, frames[:cut])
        torch.save({"state": session.state_dict(), "frames": frames[cut:].clone()}, file)
        expected = _answers(session, frames[cut:])
        stateless = _answers(make(), frames[cut : cut + 1])
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(stateless[0], expected[0]), "the state changes nothing"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(_go_on, make, file).result()
    elsewhere = torch.load(file, weights_only=True)
    assert len(elsewhere) == len(expected) > 0
    for index, (answer, other) in enumerate(zip(elsewhere, expected, strict=True), cut):
        assert torch.equal(answer, other), f"frame {index} has other scores in another process"
