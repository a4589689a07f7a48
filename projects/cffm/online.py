"""Prototypes that grow with the stream: causal, in constant memory, without an offline pass.

Ours; the release clusters ten frames of the whole video beforehand. Of all tokens seen so far a
uniform random sample of at most `capacity` is kept. After each frame Lloyd's iteration goes on
over it from the centres of the frame before, so its cost is shared out over the frames; as it alone
would stay with the clusters of the first frames, a few centres that hardly matter move to clusters
that are served badly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .kmeans import assign

CLUSTERS = 100  # as the published prototypes have
CAPACITY = 4096
ROUNDS = 2
MOVES = 5


class OnlinePrototypes:
    """The prototypes of one video in progress.

    Held are at most `capacity` tokens with a random number each, and the centres: 4.3 MB for 4096
    tokens and 100 centres of 256 channels.

    Args:
        clusters: prototypes; fewer as long as there are fewer tokens.
        capacity: tokens kept, at least `clusters`.
        seed: of the sample and of the first centres.
    """

    def __init__(self, clusters: int = CLUSTERS, capacity: int = CAPACITY, seed: int = 0):
        assert 1 <= clusters <= capacity
        self.clusters = clusters
        self.capacity = capacity
        self.seed = seed
        self._frames = 0
        self._tokens: torch.Tensor | None = None
        self._ranks = np.zeros(0)
        self._centers: torch.Tensor | None = None

    def update(self, tokens: torch.Tensor) -> torch.Tensor:
        """Take the tokens of the next frame, float [N, C]; the prototypes so far, [P, C], with
        P = `clusters` or all tokens seen so far, if those are fewer.
        """
        # Keyed by the frame's number: there is no state of a generator to carry along.
        rng = np.random.default_rng((self.seed, self._frames))
        self._frames += 1
        sample = self._sample(tokens, rng)
        if len(sample) <= self.clusters:
            self._centers = sample
            return sample
        centers = self._centers if self._centers is not None else sample[:0]
        if len(centers) < self.clusters:
            # Missing ones start at distinct tokens.
            chosen = rng.choice(len(sample), self.clusters - len(centers), replace=False)
            centers = torch.cat((centers, sample[torch.from_numpy(chosen).to(sample.device)]))
        for last in [False] * (ROUNDS - 1) + [True]:
            centers = refine(sample, centers, 0 if last else MOVES)
        self._centers = centers
        return centers

    def _sample(self, tokens: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Keep the tokens with the smallest random numbers: a uniform sample of the stream."""
        ranks = np.concatenate((self._ranks, rng.random(len(tokens))))
        everything = tokens if self._tokens is None else torch.cat((self._tokens, tokens))
        if len(ranks) > self.capacity:
            kept = np.sort(np.argpartition(ranks, self.capacity)[: self.capacity])
            ranks = ranks[kept]
            everything = everything[torch.from_numpy(kept).to(tokens.device)]
        self._ranks, self._tokens = ranks, everything
        return everything

    def state_dict(self) -> dict[str, Any]:
        """All that going on takes."""
        return {
            "frames": self._frames,
            "tokens": self._tokens,
            "ranks": torch.from_numpy(self._ranks),
            "centers": self._centers,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._frames = state["frames"]
        self._ranks = state["ranks"].cpu().numpy()
        self._tokens, self._centers = (
            None if state[name] is None else state[name].to(device)
            for name in ("tokens", "centers")
        )


def refine(tokens: torch.Tensor, centers: torch.Tensor, moves: int) -> torch.Tensor:
    """One round of Lloyd's iteration, and up to `moves` centres that change their place.

    A centre moves where what its tokens lose by going to the nearest other centre is less than half
    the inertia of the cluster that it shall help, which a good split saves. It goes half way from
    that cluster's mean to its farthest token. Centres without tokens lose nothing by moving.

    Args:
        tokens: float [N, C].
        centers: float [P, C].

    Returns:
        [P, C].
    """
    labels = assign(tokens, centers)
    distances = (tokens - centers[labels]).square().sum(1)
    counts = torch.bincount(labels, minlength=len(centers))
    sums = torch.zeros_like(centers).index_add_(0, labels, tokens)
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centers)
    if not moves or len(centers) < 2:
        return means
    inertia = torch.zeros_like(distances[:1]).repeat(len(centers))
    inertia.index_add_(0, labels, distances)
    apart = torch.cdist(centers, centers).square().fill_diagonal_(float("inf"))
    loss = counts * apart.amin(1)
    movers = loss.argsort(stable=True)[:moves]
    needy = inertia.argsort(descending=True, stable=True)[:moves]
    worthwhile = loss[movers] < 0.5 * inertia[needy]
    for mover, place in zip(movers[worthwhile], needy[worthwhile], strict=True):
        farthest = torch.where(labels == place, distances, -1.0).argmax()
        means[mover] = (means[place] + tokens[farthest]) / 2
    return means
