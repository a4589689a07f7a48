"""The state of all random generators: kept around an evaluation, saved with a checkpoint."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from vss2.d2.utils import comm

logger = logging.getLogger(__name__)


def capture() -> dict[str, Any]:
    """State of python's, numpy's and torch's generators in this process, in plain types."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": (version, list(words), gauss),
        "numpy": (str(name), [int(k) for k in keys], int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: Mapping[str, Any]) -> None:
    """Put back what `capture` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Whatever draws inside leaves the generators outside as they were."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


class RandomState:
    """Checkpointable: the seed of a run and the generators of all its ranks.

    `state_dict` gathers over the ranks, so every rank must call it.

    Args:
        seed: of the run, before the rank is added.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def state_dict(self) -> dict[str, Any]:
        """{"seed": int, "ranks": states by rank}; "ranks" is whole on rank 0 only."""
        return {"seed": self.seed, "ranks": comm.gather(capture())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores this rank's generators; with another number of ranks they stay as seeded."""
        self.seed = int(state["seed"])
        ranks = state["ranks"]
        if len(ranks) != comm.get_world_size():
            logger.warning(
                "the checkpoint holds the random state of %d processes, this run has %d: "
                "random numbers start afresh",
                len(ranks),
                comm.get_world_size(),
            )
            return
        restore(ranks[comm.get_rank()])


class QuietLoader:
    """A training loader whose iterators are made without drawing from the global generators.

    A torch DataLoader draws when an iterator is made, so that a resumed run, which makes one more,
    would otherwise differ from one that was never interrupted.
    """

    def __init__(self, loader: Any):
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        with preserved_random_state():
            return iter(self.loader)
