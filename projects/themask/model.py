"""Both stages of THE-Mask as `VideoSegmentor`s: features of frames, clips, losses, checkpoints.

An et al., Temporal-aware Hierarchical Mask Classification for Video Semantic Segmentation, BMVC
2023, arXiv 2309.08020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vss2.checkpoint import LoadReport
from vss2.d2.modeling import META_ARCH_REGISTRY, Backbone
from vss2.d2.utils import get_event_storage, has_event_storage
from vss2.errors import InputError
from vss2.modeling.mask_targets import mask_targets
from vss2.modeling.meta_arch import VideoSegmentor
from vss2.modeling.pixel_decoder import MSDeformAttnPixelDecoder
from vss2.modeling.segformer import (
    STAGES,
    published_segformer_names,
    require_whole_backbone,
    unused_classifier,
)
from vss2.modeling.session import WindowSession
from vss2.modeling.transformer_decoder import MaskedAttentionDecoder, semantic_scores
from vss2.modeling.window import BlockWindow, OffsetWindow, WindowRule

from .checkpoint import STAGE1_STARTS, stage1_to_stage2
from .criterion import TwoRoundCriterion
from .decoder import TemporalDecoder
from .session import SoftmaxSession


class MaskHead(nn.Module):
    """The parts of a head under their published names; `conv_seg` is never used."""

    def __init__(
        self,
        num_classes: int,
        hidden_dim: int,
        pixel_decoder: nn.Module,
        predictor: nn.Module,
        criterion: nn.Module,
    ):
        super().__init__()
        self.conv_seg = unused_classifier(hidden_dim, num_classes)
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.criterion = criterion


class MaskClassifier(VideoSegmentor):
    """What both stages share: backbone, pixel decoder, windows of clips."""

    compile_targets = ("backbone",)

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        criterion: TwoRoundCriterion,
        predictor: nn.Module,
        hidden_dim: int,
        num_heads: int,
        encoder_layers: int,
        encoder_feedforward: int,
        window: WindowRule,
        softmax_scores: bool,
        eval_output: str,
    ):
        super().__init__(num_classes=num_classes, window=window, eval_output=eval_output)
        self.softmax_scores = softmax_scores
        if len(criterion.empty_weight) != num_classes + 1:
            raise InputError(
                f"the criterion is made for {len(criterion.empty_weight) - 1} classes, the model "
                f"for {num_classes}: let model.criterion.num_classes follow model.num_classes"
            )
        self.backbone = backbone
        shapes = backbone.output_shape()
        pixel_decoder = MSDeformAttnPixelDecoder(
            [shapes[f"stage{stage}"].channels for stage in STAGES],
            conv_dim=hidden_dim,
            num_heads=num_heads,
            dim_feedforward=encoder_feedforward,
            num_layers=encoder_layers,
        )
        self.decode_head = MaskHead(num_classes, hidden_dim, pixel_decoder, predictor, criterion)

    def new_session(self) -> WindowSession:
        return SoftmaxSession(self) if self.softmax_scores else WindowSession(self)

    def encode(self, images: torch.Tensor) -> dict[str, Any]:
        """`mask_features` [N, C, h, w] at stride 4; `multi_scale`, maps at strides 32, 16, 8."""
        return self.decode_head.pixel_decoder(self.backbone(images))._asdict()

    def convert_checkpoint(
        self, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Published checkpoints have the model's own names; an ImageNet file gets a prefix."""
        return published_segformer_names(state)

    def published_checkpoint(self, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The content of a file in the published layout, whose names are the model's own."""
        return {"state_dict": dict(state), "meta": {}}

    def check_loaded(self, report: LoadReport) -> None:
        require_whole_backbone(report)


@META_ARCH_REGISTRY.register()
class SingleFrameTHEMask(MaskClassifier):
    """Stage 1: the clip decoder of Mask2Former, trained on single frames.

    Args:
        backbone: gives maps `stage1`..`stage4` at strides 4 to 32.
        num_classes: K.
        criterion: its second round is taken from `warmup_iters` on.
        warmup_iters: iterations of the run with the plain losses of Mask2Former before those of
            two rounds; None = plain losses for ever. Outside a training loop it is iteration 0.
            The release compares its configured 30000 with a counter that nothing ever raises.
        num_queries: Q.
        hidden_dim: C of pixel decoder and decoder.
        num_heads: of all attention behind the backbone.
        encoder_layers, encoder_feedforward: of the pixel decoder.
        decoder_layers, decoder_feedforward: of the transformer decoder.
        fast_attention_masks: see `MaskedAttentionDecoder`.
        clip_length, causal: see `clip_window`.
        softmax_scores: whether answers of a session have passed a softmax over the classes, as in
            the release. In float32 it can make equal what nearly ties, and changes no other label.
        eval_output: "labels" or "sem_seg".
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        criterion: TwoRoundCriterion,
        warmup_iters: int | None = 30000,
        num_queries: int = 100,
        hidden_dim: int = 256,
        num_heads: int = 8,
        encoder_layers: int = 6,
        encoder_feedforward: int = 1024,
        decoder_layers: int = 9,
        decoder_feedforward: int = 2048,
        fast_attention_masks: bool = False,
        clip_length: int = 1,
        causal: bool = False,
        softmax_scores: bool = False,
        eval_output: str = "labels",
    ):
        predictor = MaskedAttentionDecoder(
            num_classes,
            video=True,
            num_queries=num_queries,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            dim_feedforward=decoder_feedforward,
            num_layers=decoder_layers,
            fast_attention_masks=fast_attention_masks,
        )
        super().__init__(
            backbone=backbone,
            num_classes=num_classes,
            criterion=criterion,
            predictor=predictor,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            encoder_layers=encoder_layers,
            encoder_feedforward=encoder_feedforward,
            window=clip_window(clip_length, causal),
            softmax_scores=softmax_scores,
            eval_output=eval_output,
        )
        self.warmup_iters = warmup_iters

    def decode(self, clip: Sequence[Any], targets: Sequence[int]) -> torch.Tensor:
        multi_scale, mask_features = joined(clip)
        predictor = self.decode_head.predictor
        prediction = predictor(multi_scale, mask_features, num_frames=len(clip))[-1]
        kept = prediction._replace(masks=prediction.masks[:, :, list(targets)])
        return semantic_scores(kept)[0]

    def losses(
        self, features: dict[str, Any], sem_seg: torch.Tensor, labelled: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """`loss_ce`, `loss_mask` and `loss_dice`, or the names of `criterion.KINDS`; with `_0` to
        `_8` for the auxiliary predictions.
        """
        require_labels(labelled)
        predictions = self.decode_head.predictor(
            features["multi_scale"],
            features["mask_features"],
            num_frames=labelled.shape[1],
            auxiliary=True,
        )
        criterion = self.decode_head.criterion
        losses = criterion.two_rounds if self._is_warm() else criterion
        return losses(predictions, mask_targets(sem_seg))

    def _is_warm(self) -> bool:
        if self.warmup_iters is None:
            return False
        iteration = get_event_storage().iter if has_event_storage() else 0
        return iteration >= self.warmup_iters


@META_ARCH_REGISTRY.register()
class THEMask(MaskClassifier):
    """Stage 2: queries of frames and of the clip, trained on top of a stage-1 checkpoint.

    Args:
        backbone: gives maps `stage1`..`stage4` at strides 4 to 32.
        num_classes: K.
        criterion: of both branches and rounds.
        freeze_encoder: train `predictor` alone, as published. The rest stays in training mode, so
            that the backbone's stochastic depth acts on frozen features.
        stage1_start: what a stage-1 checkpoint gives to the norms and to the frame branch, which it
            lacks: "random", nothing, as published, or "copied", its own norm and heads.
        dropout: in the temporal aggregation.
        num_queries, hidden_dim, num_heads, encoder_layers, encoder_feedforward, decoder_layers,
            decoder_feedforward, fast_attention_masks, softmax_scores, eval_output: see
            `SingleFrameTHEMask`.
        clip_length, causal: see `clip_window`.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        criterion: TwoRoundCriterion,
        freeze_encoder: bool = True,
        stage1_start: str = "random",
        dropout: float = 0.1,
        num_queries: int = 100,
        hidden_dim: int = 256,
        num_heads: int = 8,
        encoder_layers: int = 6,
        encoder_feedforward: int = 1024,
        decoder_layers: int = 9,
        decoder_feedforward: int = 2048,
        fast_attention_masks: bool = False,
        clip_length: int = 2,
        causal: bool = False,
        softmax_scores: bool = False,
        eval_output: str = "labels",
    ):
        if stage1_start not in STAGE1_STARTS:
            raise InputError(f"stage1_start is one of {STAGE1_STARTS}, got {stage1_start!r}")
        predictor = TemporalDecoder(
            num_classes,
            num_queries=num_queries,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            dim_feedforward=decoder_feedforward,
            num_layers=decoder_layers,
            dropout=dropout,
            fast_attention_masks=fast_attention_masks,
        )
        super().__init__(
            backbone=backbone,
            num_classes=num_classes,
            criterion=criterion,
            predictor=predictor,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            encoder_layers=encoder_layers,
            encoder_feedforward=encoder_feedforward,
            window=clip_window(clip_length, causal),
            softmax_scores=softmax_scores,
            eval_output=eval_output,
        )
        self.stage1_start = stage1_start
        self.freeze_encoder = freeze_encoder
        if freeze_encoder:
            self.backbone.requires_grad_(False)
            self.decode_head.pixel_decoder.requires_grad_(False)

    def encode(self, images: torch.Tensor) -> dict[str, Any]:
        """As stage 1; in eval mode also `queries` [N, Q, C], what each frame's own start with."""
        features = super().encode(images)
        if not self.training:
            features["queries"] = self.decode_head.predictor.look(features["multi_scale"])
        return features

    def decode(self, clip: Sequence[Any], targets: Sequence[int]) -> torch.Tensor:
        multi_scale, mask_features = joined(clip)
        predictions = self.decode_head.predictor(
            multi_scale,
            mask_features,
            torch.cat([frame["queries"] for frame in clip]),
            num_frames=len(clip),
            targets=targets,
        )
        video, frame = predictions.video[-1], predictions.frame[-1]
        return (semantic_scores(video)[0] + semantic_scores(frame)[:, 0]) / 2

    def losses(
        self, features: dict[str, Any], sem_seg: torch.Tensor, labelled: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The names of `criterion.KINDS`, with `_0` to `_8` for the auxiliary predictions, and
        `_aux` behind for the frame branch.
        """
        require_labels(labelled)
        predictor, multi_scale = self.decode_head.predictor, features["multi_scale"]
        frames = labelled.shape[1]
        predictions = predictor(
            multi_scale,
            features["mask_features"],
            predictor.look(multi_scale, frames),
            num_frames=frames,
            auxiliary=True,
        )
        return self.decode_head.criterion.two_branches(predictions, mask_targets(sem_seg))

    def convert_checkpoint(
        self, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """As stage 1; a stage-1 checkpoint is turned into a start for stage 2."""
        named, ignored = super().convert_checkpoint(state)
        named, dropped = stage1_to_stage2(named, self.stage1_start)
        return named, ignored | dropped

    def check_loaded(self, report: LoadReport) -> None:
        """Refuse weights that leave a part random that is never trained."""
        super().check_loaded(report)
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        unused = ("conv_seg.", "reference_points.")
        missing = [
            name for name in report.missing if name in frozen and not any(u in name for u in unused)
        ]
        if missing:
            raise InputError(
                "stage 2 of THE-Mask is trained on top of a stage-1 checkpoint, whose backbone and "
                f"pixel decoder it freezes, and {len(missing)} tensors of those are missing here: "
                f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. To train all of "
                "it, set model.freeze_encoder=False"
            )


def clip_window(clip_length: int, causal: bool) -> WindowRule:
    """Which frames make a clip at test.

    Args:
        clip_length: n frames.
        causal: False, as published: clips of frames three apart that lie in blocks of 3n frames
            and are answered whole, see `BlockWindow`. True: every frame is answered at once by the
            clip that ends with it, (t-3, t) for n = 2; the first frames have shorter clips.
    """
    blocks = BlockWindow(clip_length)
    if not causal:
        return blocks
    offsets = tuple(range(-blocks.lookback, 1, BlockWindow.dilation))
    table = {
        index: [index + offset for offset in offsets if index + offset >= 0]
        for index in range(blocks.lookback)
    }
    return OffsetWindow(offsets, table)


def joined(clip: Sequence[Any]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Features of single frames as `multi_scale` and `mask_features` with T in dimension 0."""
    levels = zip(*(frame["multi_scale"] for frame in clip), strict=True)
    return [torch.cat(level) for level in levels], torch.cat([f["mask_features"] for f in clip])


def require_labels(labelled: torch.Tensor) -> None:
    """Raise InputError where a frame of the clips [B, T] has no label map."""
    if not bool(labelled.all()):
        raise InputError(
            "THE-Mask trains on clips all of whose frames are labelled, got "
            f"{int((~labelled).sum())} of {labelled.numel()} frames without labels: a frame "
            "without any would teach that its clip's classes are not in it"
        )
