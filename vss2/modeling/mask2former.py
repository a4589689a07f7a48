"""Mask2Former for semantic segmentation of frames and of short clips: the masks' baseline.

Cheng et al., Masked-attention Mask Transformer for Universal Image Segmentation, CVPR 2022; for
clips Cheng et al., Mask2Former for Video Instance Segmentation, arXiv 2112.10764. Parameter names
are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vss2.checkpoint import LoadReport
from vss2.d2.modeling import META_ARCH_REGISTRY, Backbone
from vss2.errors import InputError

from .criterion import MaskCriterion
from .losses import IGNORE_LABEL
from .mask2former_checkpoint import (
    published_layout,
    published_mask2former_names,
    require_whole_backbone,
)
from .mask_session import MaskSession
from .mask_targets import mask_targets
from .meta_arch import VideoSegmentor
from .pixel_decoder import MSDeformAttnPixelDecoder
from .transformer_decoder import MaskedAttentionDecoder, MaskPrediction, semantic_scores
from .window import BlockWindow, OffsetWindow, WindowRule

MASK_STRIDE = 4
PAD_DIVISOR = 32
STAGES = ("stage1", "stage2", "stage3", "stage4")


@META_ARCH_REGISTRY.register()
class Mask2Former(VideoSegmentor):
    """Queries that predict a class and a mask each; scores are their sum over queries.

    Images are padded with zeros at the bottom and right to multiples of 32, as published.

    Args:
        backbone: gives maps `stage1`..`stage4` at strides 4 to 32.
        num_classes: K.
        criterion: losses of training.
        clip_length: None for the image model. A number makes the video model, whose queries look
            at all frames of a clip; so many frames of a video make a clip (`BlockWindow`).
        num_queries: Q.
        hidden_dim: channels of pixel decoder and transformer decoder.
        num_heads: of all attention.
        encoder_layers, encoder_feedforward: of the pixel decoder.
        decoder_layers, decoder_feedforward: of the transformer decoder.
        fast_attention_masks: see `MaskedAttentionDecoder`.
        eval_output: "labels" or "sem_seg".
    """

    compile_targets = ("backbone",)

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        criterion: MaskCriterion,
        clip_length: int | None = None,
        num_queries: int = 100,
        hidden_dim: int = 256,
        num_heads: int = 8,
        encoder_layers: int = 6,
        encoder_feedforward: int = 1024,
        decoder_layers: int = 9,
        decoder_feedforward: int = 2048,
        fast_attention_masks: bool = False,
        eval_output: str = "labels",
    ):
        window: WindowRule = OffsetWindow((0,)) if clip_length is None else BlockWindow(clip_length)
        super().__init__(num_classes=num_classes, window=window, eval_output=eval_output)
        if len(criterion.empty_weight) != num_classes + 1:
            raise InputError(
                f"the model has {num_classes} classes, its criterion "
                f"{len(criterion.empty_weight) - 1}: let model.criterion.num_classes follow "
                "model.num_classes"
            )
        self.video = clip_length is not None
        self.backbone = backbone
        shapes = backbone.output_shape()
        self.sem_seg_head = nn.ModuleDict(
            {
                "pixel_decoder": MSDeformAttnPixelDecoder(
                    [shapes[stage].channels for stage in STAGES],
                    conv_dim=hidden_dim,
                    num_heads=num_heads,
                    dim_feedforward=encoder_feedforward,
                    num_layers=encoder_layers,
                ),
                "predictor": MaskedAttentionDecoder(
                    num_classes,
                    video=self.video,
                    num_queries=num_queries,
                    hidden_dim=hidden_dim,
                    num_heads=num_heads,
                    dim_feedforward=decoder_feedforward,
                    num_layers=decoder_layers,
                    fast_attention_masks=fast_attention_masks,
                ),
            }
        )
        self.criterion = criterion

    def new_session(self) -> MaskSession:
        return MaskSession(self)

    @staticmethod
    def padded_size(height: int, width: int) -> tuple[int, int]:
        """The size that the network sees of images of this size."""
        return height + -height % PAD_DIVISOR, width + -width % PAD_DIVISOR

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixel decoder of the padded images.

        Returns:
            `mask_features`, [N, C, H/4, W/4], and `level0` .. `level2`, [N, C, h, w] at strides
            32, 16 and 8.
        """
        mask_features, multi_scale = self.sem_seg_head["pixel_decoder"](
            self.backbone(_padded(images, 0.0))
        )
        levels = {f"level{index}": level for index, level in enumerate(multi_scale)}
        return {"mask_features": mask_features, **levels}

    def _transform(
        self, features: Mapping[str, torch.Tensor], num_frames: int, auxiliary: bool
    ) -> list[MaskPrediction]:
        levels = [features[f"level{index}"] for index in range(3)]
        decoder = self.sem_seg_head["predictor"]
        return decoder(levels, features["mask_features"], num_frames, auxiliary)

    def _predict(self, clip: Sequence[Any], targets: Sequence[int]) -> MaskPrediction:
        """The final prediction for the clip, of B = 1 clip; of B images by the image model."""
        chosen = clip if self.video else [clip[target] for target in targets]
        features = {name: torch.cat([f[name] for f in chosen]) for name in chosen[0]}
        return self._transform(features, len(clip) if self.video else 1, auxiliary=False)[-1]

    def decode(self, clip: Sequence[Any], targets: Sequence[int]) -> torch.Tensor:
        scores = semantic_scores(self._predict(clip, targets)).flatten(0, 1)
        return scores[list(targets)] if self.video else scores

    def predict_masks(self, clip: Sequence[Any], targets: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the scores of the target frames are made of; arguments as of `decode`.

        Returns:
            `classes`, float32 [len(targets), Q, K], probabilities; `masks`, float32
            [len(targets), Q, h, w], logits at stride 4 of the padded frames.
        """
        prediction = self._predict(clip, targets)
        classes = prediction.class_logits.float().softmax(-1)[..., :-1]
        masks = prediction.masks.float().transpose(1, 2).flatten(0, 1)
        if self.video:
            return {
                "classes": classes.expand(len(targets), -1, -1),
                "masks": masks[list(targets)],
            }
        return {"classes": classes, "masks": masks}

    def predict_clip(self, frames: torch.Tensor) -> torch.Tensor:
        """See `VideoSegmentor.predict_clip`; scores [T, K, ceil(H/4), ceil(W/4)].

        They are sums of probabilities made at stride 4. A session makes them at full size, as
        published: masks first, then probabilities, which moves the borders of objects a little.
        """
        scores = super().predict_clip(frames)
        height, width = (-(-side // MASK_STRIDE) for side in frames.shape[-2:])
        return scores[..., :height, :width]

    def losses(
        self, features: dict[str, torch.Tensor], sem_seg: torch.Tensor, labelled: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """See `MaskCriterion`; the image model takes the labelled frames, each alone.

        Raises:
            InputError: no labelled frame, or for the video model one without labels.
        """
        if self.video and not bool(labelled.all()):
            raise InputError(
                "the video model of Mask2Former trains on clips whose frames are all labelled; use "
                "a clip sampler and a data set that give such, or the image model"
            )
        if not bool(labelled.any()):
            raise InputError("this batch has no labelled frame to learn from")
        if self.video:
            clips = sem_seg
        else:
            chosen = labelled.flatten()
            clips = sem_seg.flatten(0, 1)[chosen][:, None]
            features = {name: value[chosen] for name, value in features.items()}
        predictions = self._transform(features, clips.shape[1], auxiliary=True)
        return self.criterion(predictions, mask_targets(_padded(clips, IGNORE_LABEL)))

    def convert_checkpoint(
        self, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Published models, and ImageNet files of a MiT or ResNet, under the model's names."""
        return published_mask2former_names(state, self.state_dict())

    def published_checkpoint(self, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The content of a file in the published layout."""
        return {"model": published_layout(state)}

    def check_loaded(self, report: LoadReport) -> None:
        require_whole_backbone(report)


def _padded(maps: torch.Tensor, value: float) -> torch.Tensor:
    """Pad [..., H, W] at the bottom and right to multiples of 32."""
    bottom, right = (-side % PAD_DIVISOR for side in maps.shape[-2:])
    return F.pad(maps, (0, right, 0, bottom), value=value) if bottom or right else maps
