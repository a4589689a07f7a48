"""The head of MRCFA: per-frame decoder, reference tokens, and the branches over the references.

Sun et al., Mining Relations among Cross-Frame Affinities for Video Semantic Segmentation, ECCV
2022, section 3. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from vss2.d2.modeling import SEM_SEG_HEADS_REGISTRY
from vss2.modeling.losses import resize_scores
from vss2.modeling.segformer import SegFormerHead

from .affinity import SCALES, CrossFrameAffinity, full_precision, propagate, propagate_mean


class Branch(nn.Module):
    """Channel dropout and a linear classifier; a module of its own for its name."""

    def __init__(self, channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.smalldecoder = nn.Sequential(
            nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, E, h, w] to scores [N, K, 2h, 2w]: computed at stride 8, given at stride 4."""
        scores = self.smalldecoder(x)
        return resize_scores(scores, (2 * scores.shape[-2], 2 * scores.shape[-1]))


@SEM_SEG_HEADS_REGISTRY.register()
class MRCFAHead(SegFormerHead):
    """SegFormer's head for single frames, and the affinity branches for clips.

    Args:
        in_channels: channels of stages 1 to 4.
        num_classes: K.
        num_references: R; the head has R + 1 branches, `deco1` to `deco{R + 1}`.
        keep_ratio, score_top_k, refinement_layers: see `CrossFrameAffinity`.
        embed_dim, norm, dropout, channels: see `SegFormerHead`.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_classes: int,
        num_references: int = 3,
        keep_ratio: float = 0.5,
        score_top_k: int = 5,
        refinement_layers: int = 1,
        embed_dim: int = 256,
        norm: str = "BN",
        dropout: float = 0.1,
        channels: int = 128,
    ):
        super().__init__(
            in_channels=in_channels,
            num_classes=num_classes,
            embed_dim=embed_dim,
            norm=norm,
            dropout=dropout,
            channels=channels,
        )
        self.num_references = num_references
        for index in range(1, num_references + 2):
            self.add_module(f"deco{index}", Branch(embed_dim, num_classes, dropout))
        c2, c3, c4 = in_channels[1:]
        self.hypercorre_module = CrossFrameAffinity(
            (c2, c3, c4), keep_ratio, score_top_k, refinement_layers
        )
        self.sr2 = nn.Conv2d(c2, c2, 4, 4)
        self.sr3 = nn.Conv2d(c3, c3, 2, 2)
        self.sr1_feat = nn.Conv2d(embed_dim, embed_dim, 4, 4)

    def reference_tokens(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All that a frame is asked for as a reference.

        Args:
            features: maps `stage2`, `stage3`, `stage4` and `half` [N, E, h, w] at stride 8.

        Returns:
            `key2`, `key3`, `key4` and `value`: float [N, tokens, C_2 | C_3 | C_4 | E], a token
            per cell of the 1/32 grid.
        """
        reduced = {
            2: self.sr2(features["stage2"]),
            3: self.sr3(features["stage3"]),
            4: features["stage4"],
        }
        value = self.sr1_feat(features["half"]).flatten(2).transpose(1, 2)
        keys = {f"key{i}": self.hypercorre_module.key(i, reduced[i]) for i in SCALES}
        tokens = keys | {"value": value}
        return {name: full_precision(part) for name, part in tokens.items()}

    def halve(self, embedding: torch.Tensor) -> torch.Tensor:
        """Embedding [N, E, h, w] at stride 4 to stride 8.

        The release resizes bilinearly, which at a factor of exactly 2 is the mean of 2x2 cells.
        """
        return F.avg_pool2d(embedding, 2)

    def predict_target(
        self, target: Mapping[str, torch.Tensor], tokens: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Scores [B, K, h, w] of the targets at stride 4, as used at test.

        Args:
            target: maps `stage2`, `stage3`, `stage4` and `half` of the targets.
            tokens: `reference_tokens` of their references, each [B, R, tokens, C].
        """
        attention = self.hypercorre_module(*_by_scale(target, tokens))
        mean = propagate_mean(attention, tokens["value"])
        return self._last_branch(_tokens_as_map(mean, target["half"]), target["half"])

    def predict_branches(
        self, target: Mapping[str, torch.Tensor], tokens: Mapping[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        """Scores [B, K, h, w] of the targets by each of the R references, then by all together."""
        attention = self.hypercorre_module(*_by_scale(target, tokens))
        propagated = [
            _tokens_as_map(said, target["half"])
            for said in propagate(attention, tokens["value"]).unbind(1)
        ]
        scores = [
            self.get_submodule(f"deco{index}")(said)
            for index, said in enumerate(propagated, start=1)
        ]
        mean = torch.stack(propagated).mean(0)
        return [*scores, self._last_branch(mean, target["half"])]

    def _last_branch(self, said: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(f"deco{self.num_references + 1}")(said + half)


def _by_scale(
    target: Mapping[str, torch.Tensor], tokens: Mapping[str, torch.Tensor]
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    return {i: target[f"stage{i}"] for i in SCALES}, {i: tokens[f"key{i}"] for i in SCALES}


def _tokens_as_map(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B, P, E] row-major to a map [B, E, h, w] of the size of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[-2:])
