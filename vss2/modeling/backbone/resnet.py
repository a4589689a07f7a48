"""ResNet-18, 34, 50, 101 and 152, the one that all methods share.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1; the stride of a
bottleneck is on its 3x3 convolution, as in torchvision. Parameter names are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from vss2.d2.layers import ShapeSpec, get_norm
from vss2.d2.modeling import BACKBONE_REGISTRY, Backbone
from vss2.errors import InputError

NORMS = ("BN", "SyncBN", "FrozenBN")
Padding = Literal["zeros", "reflect"]
STEM_CHANNELS = 64
STEM_STRIDE = 4
LAYERS = ("layer1", "layer2", "layer3", "layer4")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and 34)."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        norm: str,
        bias: bool,
        padding_mode: Padding,
    ):
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride, bias, padding_mode)
        self.bn1 = get_norm(norm, width)
        self.conv2 = _conv(width, width, 3, 1, bias, padding_mode)
        self.bn2 = get_norm(norm, width)
        self.downsample = _shortcut(in_channels, width, stride, norm, bias)

    @property
    def last_norm(self) -> Any:
        return self.bn2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C_in, h, w] to [N, width, ceil(h/stride), ceil(w/stride)]."""
        out = self.bn1(self.conv1(x)).relu_()
        out = self.bn2(self.conv2(out))
        return out.add_(x if self.downsample is None else self.downsample(x)).relu_()


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        norm: str,
        bias: bool,
        padding_mode: Padding,
    ):
        super().__init__()
        channels = self.expansion * width
        self.conv1 = _conv(in_channels, width, 1, 1, bias, padding_mode)
        self.bn1 = get_norm(norm, width)
        self.conv2 = _conv(width, width, 3, stride, bias, padding_mode)
        self.bn2 = get_norm(norm, width)
        self.conv3 = _conv(width, channels, 1, 1, bias, padding_mode)
        self.bn3 = get_norm(norm, channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm, bias)

    @property
    def last_norm(self) -> Any:
        return self.bn3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C_in, h, w] to [N, 4*width, ceil(h/stride), ceil(w/stride)]."""
        out = self.bn1(self.conv1(x)).relu_()
        out = self.bn2(self.conv2(out)).relu_()
        out = self.bn3(self.conv3(out))
        return out.add_(x if self.downsample is None else self.downsample(x)).relu_()


# Kind of block and number of blocks in each of the four stages.
DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


@BACKBONE_REGISTRY.register()
class ResNet(Backbone):
    """A ResNet without pooling and classifier.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: of the image: 3, or more where masks are stacked on it.
        strides: of stages 1 to 4; as many stages are built as there are strides. The stem's
            stride is 4, so (1, 2, 2, 2) gives maps at strides 4, 8, 16, 32, and (1, 2, 1) three
            maps at 4, 8, 8.
        norm: "BN", "SyncBN" or "FrozenBN" (fixed statistics and affine parameters, buffers all).
        conv_bias: every convolution has a bias (STCN's value encoder), where torchvision's has
            none.
        padding_mode: of the convolutions that pad, "zeros" or "reflect" (CRW); the pooling of the
            stem always pads with nothing.
        stem_channels: of the stem and of the first stage's 3x3 convolutions; each further stage
            has twice as many.
        zero_init_residual: start every block as its shortcut: the scale of its last norm is 0.
        stage_names: of the submodules; torchvision's by default.

    Input [N, in_channels, H, W], normalised. Output: a dict `stage1`, ... of maps
    [N, C_s, ceil(H/stride), ceil(W/stride)], after the last ReLU of each stage.

    Raises:
        InputError: a depth, norm or padding that is not known; too many strides.
    """

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int = 3,
        strides: Sequence[int] = (1, 2, 2, 2),
        norm: str = "BN",
        conv_bias: bool = False,
        padding_mode: Padding = "zeros",
        stem_channels: int = STEM_CHANNELS,
        zero_init_residual: bool = False,
        stage_names: Sequence[str] = LAYERS,
    ):
        super().__init__()
        _check_arguments(depth, strides, norm, padding_mode, stage_names)
        block, counts = DEPTHS[depth]
        self.stage_names = tuple(stage_names[: len(strides)])
        self.conv1 = _conv(in_channels, stem_channels, 7, 2, conv_bias, padding_mode)
        self.bn1 = get_norm(norm, stem_channels)
        self.channels: list[int] = []
        self.strides: list[int] = []
        previous, total = stem_channels, STEM_STRIDE
        for index, (name, stride) in enumerate(zip(self.stage_names, strides, strict=True)):
            width = stem_channels * 2**index
            blocks: list[nn.Module] = []
            for position in range(counts[index]):
                step = stride if position == 0 else 1
                blocks.append(block(previous, width, step, norm, conv_bias, padding_mode))
                previous = block.expansion * width
            total *= stride
            self.add_module(name, nn.Sequential(*blocks))
            self.channels.append(previous)
            self.strides.append(total)
        self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        """He normal over fan-out, biases 0; norms are 1 and 0 as made."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.bn1(self.conv1(x)).relu_()
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        outputs = {}
        for index, name in enumerate(self.stage_names):
            x = self.get_submodule(name)(x)
            outputs[f"stage{index + 1}"] = x
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            f"stage{index + 1}": ShapeSpec(channels=channels, stride=stride)
            for index, (channels, stride) in enumerate(
                zip(self.channels, self.strides, strict=True)
            )
        }


def _check_arguments(
    depth: int, strides: Sequence[int], norm: str, padding_mode: Padding, stage_names: Sequence[str]
) -> None:
    if depth not in DEPTHS:
        raise InputError(f"ResNet has depths {', '.join(map(str, DEPTHS))}, not {depth}")
    if norm not in NORMS:
        raise InputError(f"the norm of a ResNet is one of {', '.join(NORMS)}, not {norm!r}")
    if padding_mode not in get_args(Padding):
        raise InputError(
            f"ResNet pads with one of {', '.join(get_args(Padding))}, not {padding_mode!r}"
        )
    if not 1 <= len(strides) <= len(LAYERS) or len(stage_names) < len(strides):
        raise InputError(
            f"ResNet has 1 to {len(LAYERS)} stages and a name for each, got strides "
            f"{list(strides)} and names {list(stage_names)}"
        )


def _conv(
    in_channels: int, channels: int, kernel: int, stride: int, bias: bool, padding_mode: Padding
) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels,
        channels,
        kernel,
        stride,
        padding=kernel // 2,
        bias=bias,
        padding_mode=padding_mode if kernel > 1 else "zeros",
    )


def _shortcut(
    in_channels: int, channels: int, stride: int, norm: str, bias: bool
) -> nn.Sequential | None:
    """Convolution and norm where the block changes the shape; None is the identity."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(
        _conv(in_channels, channels, 1, stride, bias, "zeros"), get_norm(norm, channels)
    )
