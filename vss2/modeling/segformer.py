"""SegFormer: the per-frame embedding that the video methods share, its head, and the baseline.

Xie et al., SegFormer, NeurIPS 2021, section 3.2. Parameter names are those of the published
segmentation checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vss2.checkpoint import LoadReport
from vss2.d2.layers import get_norm
from vss2.d2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, Backbone
from vss2.d2.utils import get_event_storage, has_event_storage
from vss2.errors import InputError

from .backbone.mit import map_to_tokens, tokens_to_map
from .backbone.mit_checkpoint import is_backbone_file, published_mit_names
from .losses import pixel_accuracy, pixel_cross_entropy, resize_scores
from .meta_arch import VideoSegmentor
from .window import OffsetWindow

STAGES = (1, 2, 3, 4)


class LinearProjection(nn.Module):
    """Linear map over the channels of a feature map; a module of its own for its name."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.proj = nn.Linear(in_channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C_in, h, w] to [N, C, h, w]."""
        return tokens_to_map(self.proj(map_to_tokens(x)), x.shape[2], x.shape[3])


class FuseConv(nn.Module):
    """1x1 convolution without bias, norm and ReLU. The norm's name depends on its kind.

    Args:
        norm: "BN" or "SyncBN" (published SegFormer, CFFM and MRCFA checkpoints: key `bn`) or
            "GN", GroupNorm with one group (key `gn`).
    """

    def __init__(self, in_channels: int, channels: int, norm: str):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if norm == "GN":
            self.gn = nn.GroupNorm(1, channels)
        elif norm in ("BN", "SyncBN"):
            self.bn = get_norm(norm, channels)
        else:
            raise InputError(f"the fuse norm is 'BN', 'SyncBN' or 'GN', got {norm!r}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.gn if hasattr(self, "gn") else self.bn
        return norm(self.conv(x)).relu()


class SegFormerEmbedding(nn.Module):
    """All-MLP embedding of four stages into one map at stride 4 (section 3.2, steps 1 to 3).

    Projection, upsampling and fusing are linear up to the norm. In eval mode with BatchNorm they
    run in another order: each stage passes one composed linear map at its own resolution, and the
    results are upsampled and added. The map with 4E channels at stride 4 never exists; the
    result differs by rounding alone. Composing costs a few small matrix products, so it is done
    anew in every pass: there is nothing that could go stale when weights change.

    Args:
        in_channels: channels of stages 1 to 4.
        embed_dim: E, channels of the result.
        norm: of the fusing convolution, see `FuseConv`.
    """

    def __init__(self, in_channels: Sequence[int], embed_dim: int = 256, norm: str = "BN"):
        super().__init__()
        for stage, channels in zip(STAGES, in_channels, strict=True):
            self.add_module(f"linear_c{stage}", LinearProjection(channels, embed_dim))
        self.linear_fuse = FuseConv(4 * embed_dim, embed_dim, norm)

    def embed(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`stage1`..`stage4` maps to [N, E, h, w] at the size of `stage1`."""
        if self._can_compose():
            return self._embed_composed(features)
        size = features["stage1"].shape[-2:]
        projected = [
            resize_scores(self.get_submodule(f"linear_c{stage}")(features[f"stage{stage}"]), size)
            for stage in reversed(STAGES)
        ]
        return self.linear_fuse(torch.cat(projected, dim=1))

    def _can_compose(self) -> bool:
        """Whether all parts are plain linear maps: in eval mode, and none replaced or wrapped."""
        norm = getattr(self.linear_fuse, "bn", None)
        if self.training or not isinstance(norm, _BatchNorm) or norm.training:
            return False
        projections = [self.get_submodule(f"linear_c{stage}.proj") for stage in STAGES]
        return (
            norm.track_running_stats
            and norm.affine
            and type(self.linear_fuse.conv) is nn.Conv2d
            and all(type(projection) is nn.Linear for projection in projections)
        )

    def _composed(self) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Weight [E, C_s] of each stage and the bias [E], with the norm folded in."""
        conv, norm = self.linear_fuse.conv, self.linear_fuse.bn
        dtype = torch.promote_types(conv.weight.dtype, torch.float32)
        with torch.autocast(device_type=conv.weight.device.type, enabled=False):
            scale = norm.weight.to(dtype) * (norm.running_var.to(dtype) + norm.eps).rsqrt()
            bias = norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale
            fuse = conv.weight.to(dtype).flatten(1) * scale[:, None]  # [E, 4E]
            weights = {}
            for stage, part in zip(reversed(STAGES), fuse.chunk(len(STAGES), dim=1), strict=True):
                projection: Any = self.get_submodule(f"linear_c{stage}.proj")
                weights[stage] = (part @ projection.weight.to(dtype)).to(conv.weight.dtype)
                # Bilinear weights sum to one, so biases pass through the upsampling.
                bias = bias + part @ projection.bias.to(dtype)
        return weights, bias.to(conv.weight.dtype)

    def _embed_composed(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`embed` by composed weights; the result lies in channels_last memory."""
        weights, bias = self._composed()
        size = features["stage1"].shape[-2:]
        total: torch.Tensor | None = None
        for stage in reversed(STAGES):
            tokens = features[f"stage{stage}"].permute(0, 2, 3, 1)
            part = F.linear(tokens, weights[stage], bias if stage == 1 else None)
            part = resize_scores(part.permute(0, 3, 1, 2), size)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total.relu_()


@SEM_SEG_HEADS_REGISTRY.register()
class SegFormerHead(SegFormerEmbedding):
    """Embedding, channel dropout and a linear classifier (section 3.2, step 4).

    Args:
        in_channels: channels of stages 1 to 4.
        num_classes: K.
        embed_dim: E.
        norm: of the fusing convolution, see `FuseConv`.
        dropout: rate at which whole channels are dropped before the classifier.
        channels: input width of `conv_seg`, a published tensor that no forward pass uses.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_classes: int,
        embed_dim: int = 256,
        norm: str = "BN",
        dropout: float = 0.1,
        channels: int = 128,
    ):
        super().__init__(in_channels, embed_dim, norm)
        self.conv_seg = unused_classifier(channels, num_classes)
        self.dropout = nn.Dropout2d(dropout)
        self.linear_pred = nn.Conv2d(embed_dim, num_classes, 1)

    def predict(self, embedding: torch.Tensor) -> torch.Tensor:
        """[N, E, h, w] to scores [N, K, h, w]."""
        return self.linear_pred(self.dropout(embedding))


def unused_classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """`conv_seg` of published checkpoints: loaded and saved, never trained, never run."""
    conv = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv.requires_grad_(False)


def published_segformer_names(
    state: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights under the names of a full model, and what was left out with the reason.

    An ImageNet file holds a backbone without prefix and a classifier `head.*` that segmentation
    does not use; a published segmentation checkpoint has the model's own names.
    """
    if not is_backbone_file(state):
        return dict(state), {}
    ignored = {name: "classifier of ImageNet" for name in state if name.startswith("head.")}
    backbone = {name: value for name, value in state.items() if name not in ignored}
    renamed = published_mit_names(backbone)
    return {f"backbone.{name}": value for name, value in renamed.items()}, ignored


def require_whole_backbone(report: LoadReport) -> None:
    """Refuse weights that leave the backbone partly random.

    A file in a naming that matches only here and there trains and evaluates without a complaint,
    at a fraction of the published accuracy.

    Raises:
        InputError: tensors of the backbone are missing; names some.
    """
    missing = [name for name in report.missing if name.startswith("backbone.")]
    if missing:
        found = sum(name.startswith("backbone.") for name in report.loaded)
        raise InputError(
            f"these weights fill {found} of the backbone's {found + len(missing)} tensors; "
            f"missing are {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. "
            "Expected are the names of the published MiT files, patch_embed1.proj.weight and so on"
        )


@META_ARCH_REGISTRY.register()
class SegFormer(VideoSegmentor):
    """Single-image SegFormer, run frame by frame: the baseline of the video methods.

    Args:
        backbone: gives maps `stage1`..`stage4` at strides 4 to 32.
        num_classes: K.
        embed_dim: E, 256 in all published VSPW models.
        norm: of the fusing convolution: "BN", "SyncBN" or "GN" (see `FuseConv`).
        dropout: channel dropout before the classifier.
        eval_output: "labels" or "sem_seg".
    """

    compile_targets = ("backbone",)

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        embed_dim: int = 256,
        norm: str = "BN",
        dropout: float = 0.1,
        eval_output: str = "labels",
    ):
        super().__init__(
            num_classes=num_classes, window=OffsetWindow((0,)), eval_output=eval_output
        )
        self.backbone = backbone
        shapes = backbone.output_shape()
        self.decode_head = SegFormerHead(
            in_channels=[shapes[f"stage{stage}"].channels for stage in STAGES],
            num_classes=num_classes,
            embed_dim=embed_dim,
            norm=norm,
            dropout=dropout,
        )

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.decode_head.embed(self.backbone(images))

    def decode(self, clip: Sequence[Any], targets: Sequence[int]) -> torch.Tensor:
        return self.decode_head.predict(torch.cat([clip[target] for target in targets]))

    def losses(
        self, features: torch.Tensor, sem_seg: torch.Tensor, labelled: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        chosen = labelled.flatten()
        scores = self.decode_head.predict(features[chosen])
        labels = sem_seg.flatten(0, 1)[chosen]
        if has_event_storage():
            get_event_storage().put_scalar("accuracy", pixel_accuracy(scores, labels).item())
        return {"loss_sem_seg": pixel_cross_entropy(scores, labels)}

    def convert_checkpoint(
        self, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        own_layout = getattr(self.backbone, "convert_checkpoint", None)
        if own_layout is not None and not any(name.startswith("backbone.") for name in state):
            weights, ignored = own_layout(state)
            return {f"backbone.{name}": value for name, value in weights.items()}, ignored
        return published_segformer_names(state)

    def published_checkpoint(self, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The content of a file in the published layout, whose names are the model's own."""
        return {"state_dict": dict(state), "meta": {}}

    def check_loaded(self, report: LoadReport) -> None:
        require_whole_backbone(report)
