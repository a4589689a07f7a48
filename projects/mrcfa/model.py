"""MRCFA as a `VideoSegmentor`: features of frames, windows of clips, losses, checkpoints.

Sun et al., Mining Relations among Cross-Frame Affinities for Video Semantic Segmentation, ECCV
2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vss2.checkpoint import LoadReport
from vss2.d2.modeling import META_ARCH_REGISTRY, Backbone
from vss2.d2.utils import get_event_storage, has_event_storage
from vss2.errors import InputError
from vss2.modeling.losses import pixel_accuracy, pixel_cross_entropy
from vss2.modeling.meta_arch import VideoSegmentor
from vss2.modeling.segformer import STAGES, published_segformer_names, require_whole_backbone
from vss2.modeling.window import PUBLISHED_OFFSETS, OffsetWindow

from .affinity import REFINEMENTS
from .head import MRCFAHead

STRIDE = 32
_PREFIX = "decode_head.hypercorre_module."


@META_ARCH_REGISTRY.register()
class MRCFA(VideoSegmentor):
    """Target features are read together with what selected tokens of earlier frames say of them.

    A frame whose window reaches before the video, and which the start table does not list, is
    segmented alone, by the head's per-frame classifier.

    Args:
        backbone: gives maps `stage1`..`stage4` at strides 4 to 32.
        num_classes: K.
        window: offsets of the references, ascending, and 0 for the target.
        start_table: clips of the first frames, see `OffsetWindow`; each of 1 or as many frames as
            the window. Default: the published one for the published window, else none.
        keep_ratio: share of a reference's tokens that take part: 0.8 in the published B0, 0.5 in
            the other sizes.
        score_top_k: largest affinities that make a token's score.
        refinement_layers: blocks per module of the refinement net: 2 in the published B1, else 1.
        embed_dim, norm, dropout: see `SegFormerHead`.
        frame_loss_weight: of the loss on frames segmented alone, against 1 for the branches.
        eval_output: "labels" or "sem_seg".

    Raises:
        InputError: an argument out of range; a window without references.
    """

    compile_targets = ("backbone",)

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        window: Sequence[int] = PUBLISHED_OFFSETS,
        start_table: Mapping[int, Sequence[int]] | None = None,
        keep_ratio: float = 0.5,
        score_top_k: int = 5,
        refinement_layers: int = 1,
        embed_dim: int = 256,
        norm: str = "BN",
        dropout: float = 0.1,
        frame_loss_weight: float = 0.5,
        eval_output: str = "labels",
    ):
        super().__init__(
            num_classes=num_classes,
            window=_window(window, start_table),
            eval_output=eval_output,
            min_size=STRIDE,
            size_divisor=STRIDE,
        )
        self.backbone = backbone
        shapes = backbone.output_shape()
        self.decode_head = MRCFAHead(
            in_channels=[shapes[f"stage{stage}"].channels for stage in STAGES],
            num_classes=num_classes,
            num_references=len(window) - 1,
            keep_ratio=float(keep_ratio),
            score_top_k=int(score_top_k),
            refinement_layers=int(refinement_layers),
            embed_dim=embed_dim,
            norm=norm,
            dropout=dropout,
        )
        self.frame_loss_weight = float(frame_loss_weight)

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError for sides that are no multiples of 32, or too few tokens to select."""
        super().check_size(height, width)
        affinity = self.decode_head.hypercorre_module
        tokens = (height // STRIDE) * (width // STRIDE)
        if tokens < affinity.score_top_k or affinity.num_selected(tokens) < 1:
            raise InputError(
                f"frames of {height}x{width} are too small for MRCFA: they have {tokens} tokens "
                f"of {STRIDE}x{STRIDE} pixels, and the token selection takes the "
                f"{affinity.score_top_k} largest affinities of each token and keeps a share of "
                f"{affinity.keep_ratio:g} of the tokens. 96x64 and 160x32 are enough as published"
            )

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Stages 2 to 4 and the embedding at two sizes.

        Returns:
            `stage2`, `stage3`, `stage4`; `fused`, [N, E, h, w] at stride 4; `half`, at stride 8.
        """
        stages = self.backbone(images)
        fused = self.decode_head.embed(stages)
        maps = {f"stage{i}": stages[f"stage{i}"] for i in STAGES[1:]}
        return {**maps, "fused": fused, "half": self.decode_head.halve(fused)}

    def keep(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tokens that later windows ask of a reference, see `MRCFAHead.reference_tokens`.

        At 480x864 they take 2 MB (B1), where the features take 39 MB.
        """
        return self.decode_head.reference_tokens(features)

    def decode(self, clip: Sequence[Any], targets: Sequence[int]) -> torch.Tensor:
        assert list(targets) == [len(clip) - 1], "the target is the last frame of its clip"
        *references, target = clip
        if not references:
            return self.decode_head.predict(target["fused"])
        kept = [frame if "value" in frame else self.keep(frame) for frame in references]
        tokens = {name: torch.stack([k[name] for k in kept], dim=1) for name in kept[0]}
        return self.decode_head.predict_target(target, tokens)

    def losses(
        self, features: dict[str, torch.Tensor], sem_seg: torch.Tensor, labelled: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """`loss_frames`: labelled frames, each alone; `loss_clip`: targets, by every branch.

        Raises:
            InputError: clips of another length than the window, a target without labels, or a
                size that the model does not take.
        """
        batch, length = labelled.shape
        self._check_clips(length, sem_seg, labelled)
        chosen = labelled.flatten()
        frame_scores = self.decode_head.predict(features["fused"][chosen])
        frame_labels = sem_seg.flatten(0, 1)[chosen]
        if has_event_storage():
            accuracy = pixel_accuracy(frame_scores, frame_labels)
            get_event_storage().put_scalar("accuracy", accuracy.item())

        clips = {
            name: value.unflatten(0, (batch, length))
            for name, value in features.items()
            if name != "fused"
        }
        target = {name: value[:, -1] for name, value in clips.items()}
        references = {name: value[:, :-1].flatten(0, 1) for name, value in clips.items()}
        tokens = {
            name: value.unflatten(0, (batch, length - 1))
            for name, value in self.decode_head.reference_tokens(references).items()
        }
        branches = self.decode_head.predict_branches(target, tokens)
        branch_labels = sem_seg[:, -1].repeat(len(branches), 1, 1)
        return {
            "loss_frames": self.frame_loss_weight * pixel_cross_entropy(frame_scores, frame_labels),
            "loss_clip": pixel_cross_entropy(torch.cat(branches), branch_labels),
        }

    def _check_clips(self, length: int, sem_seg: torch.Tensor, labelled: torch.Tensor) -> None:
        wanted = self.decode_head.num_references + 1
        if length != wanted:
            raise InputError(
                f"MRCFA trains on clips of {wanted} frames, those of its window, got {length}: "
                "let the clip sampler's offsets equal model.window"
            )
        if not bool(labelled[:, -1].all()):
            raise InputError(
                "MRCFA trains on clips whose last frame, the target, is labelled; use a clip "
                "sampler that picks labelled targets"
            )
        self.check_size(*sem_seg.shape[-2:])

    def convert_checkpoint(
        self, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Published checkpoints have the model's own names; an ImageNet file gets a prefix.

        Raises:
            InputError: the weights are of a model with another refinement net or window.
        """
        blocks = {name.split(".")[4] for name in state if name.startswith(_PREFIX + "hpn.")}
        layers = 2 if "3" in blocks else 1
        own = len(self.decode_head.hypercorre_module.hpn.encoder_layer2) // 3
        if blocks and layers != own:
            raise InputError(
                f"these weights have a refinement net of {layers} layers per module, the model "
                f"has {own}: set model.refinement_layers={layers} (2 in the published B1, 1 in "
                f"the other sizes; known are {sorted(REFINEMENTS)})"
            )
        branches = {name.split(".")[1] for name in state if name.startswith("decode_head.deco")}
        if blocks and len(branches) != self.decode_head.num_references + 1:
            raise InputError(
                f"these weights are of a window with {len(branches) - 1} references, the model's "
                f"has {self.decode_head.num_references}: set model.window to theirs"
            )
        return published_segformer_names(state)

    def published_checkpoint(self, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The content of a file in the published layout, whose names are the model's own."""
        return {"state_dict": dict(state), "meta": {}}

    def check_loaded(self, report: LoadReport) -> None:
        require_whole_backbone(report)


def _window(
    offsets: Sequence[int], start_table: Mapping[int, Sequence[int]] | None
) -> OffsetWindow:
    offsets = tuple(int(offset) for offset in offsets)
    window = OffsetWindow(offsets, start_table)
    if len(window.offsets) < 2:
        raise InputError(
            f"MRCFA needs at least one reference before the target, got window={offsets}; for "
            "single frames use SegFormer"
        )
    for index, frames in window.start_table.items():
        if len(frames) not in (1, len(offsets)):
            raise InputError(
                f"start_table[{index}] must have 1 or {len(offsets)} frames, as the window, "
                f"got {frames}"
            )
    return window
