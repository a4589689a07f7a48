"""Mix Transformer (MiT) B0 to B5.

Xie et al., SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers,
NeurIPS 2021, sections 3.1 and 4.1. Parameter names are those of the published ImageNet files.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vss2.d2.layers import ShapeSpec
from vss2.d2.modeling import BACKBONE_REGISTRY, Backbone
from vss2.errors import InputError, did_you_mean
from vss2.layers import DropPath

STRIDES = (4, 8, 16, 32)


class MiTSize(NamedTuple):
    """Channels and number of blocks of the four stages (SegFormer, table 6)."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


SIZES = {
    "b0": MiTSize((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": MiTSize((64, 128, 320, 512), (2, 2, 2, 2)),
    "b2": MiTSize((64, 128, 320, 512), (3, 4, 6, 3)),
    "b3": MiTSize((64, 128, 320, 512), (3, 4, 18, 3)),
    "b4": MiTSize((64, 128, 320, 512), (3, 8, 27, 3)),
    "b5": MiTSize((64, 128, 320, 512), (3, 6, 40, 3)),
}
HEADS = (1, 2, 5, 8)
SR_RATIOS = (8, 4, 2, 1)
MLP_RATIO = 4
# Two eps values are mixed in the published networks: PyTorch's default where the norm belongs to
# an embedding or a reduction, 1e-6 where it belongs to a block or closes a stage.
EMBED_EPS = 1e-5
BLOCK_EPS = 1e-6


def tokens_to_map(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[N, h*w, C] row-major tokens to a feature map [N, C, h, w] in channels_last memory.

    Nothing moves. The strides are those of a channels_last tensor for N = 1 too, where a plain
    transpose leaves PyTorch in doubt and makes every convolution copy its input.
    """
    return tokens.reshape(-1, height, width, tokens.shape[2]).permute(0, 3, 1, 2)


def map_to_tokens(feature: torch.Tensor) -> torch.Tensor:
    """A feature map [N, C, h, w] to row-major tokens [N, h*w, C]."""
    return feature.flatten(2).transpose(1, 2)


class OverlapPatchEmbed(nn.Module):
    """Strided convolution with overlapping patches, then a LayerNorm over channels."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels, eps=EMBED_EPS)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """[N, C_in, H, W] to tokens [N, h*w, C] with h and w."""
        x = self.proj(x)
        return self.norm(map_to_tokens(x)), x.shape[2], x.shape[3]


class EfficientSelfAttention(nn.Module):
    """Self-attention whose keys and values are reduced `sr_ratio` times per side (section 3.1)."""

    def __init__(self, channels: int, num_heads: int, sr_ratio: int):
        super().__init__()
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(channels, channels, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(channels, eps=EMBED_EPS)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """x: tokens [N, h*w, C]; returns the same shape."""
        source = x
        if self.sr_ratio > 1:
            source = self.norm(map_to_tokens(self.sr(tokens_to_map(x, height, width))))
        query = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        # [N, M, 2C] -> two tensors [N, heads, M, d]
        key, value = self.kv(source).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).flatten(2))


class DepthwiseConv(nn.Module):
    """3x3 depthwise convolution on tokens; a module of its own because its name is doubled."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return map_to_tokens(self.dwconv(tokens_to_map(x, height, width)))


class MixFFN(nn.Module):
    """Feed-forward with a depthwise 3x3 convolution that carries position (section 3.1)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), height, width)))


class Block(nn.Module):
    """Pre-norm transformer block: efficient attention, then Mix-FFN."""

    def __init__(self, channels: int, num_heads: int, sr_ratio: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.attn = EfficientSelfAttention(channels, num_heads, sr_ratio)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.mlp = MixFFN(channels, MLP_RATIO * channels)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        return x + self.drop_path(self.mlp(self.norm2(x), height, width))


@BACKBONE_REGISTRY.register()
class MixTransformer(Backbone):
    """The hierarchical transformer encoder of SegFormer.

    Args:
        size: "b0" to "b5".
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        in_channels: channels of the image.

    Input [N, in_channels, H, W], normalised RGB, each side at least 32. Output: a dict
    `stage1` to `stage4` of maps [N, C_s, h_s, w_s] at strides 4, 8, 16 and 32.
    """

    def __init__(self, size: str = "b0", drop_path_rate: float = 0.1, in_channels: int = 3):
        super().__init__()
        if size not in SIZES:
            raise InputError(
                f"MixTransformer has sizes {', '.join(SIZES)}, not {size!r}."
                + did_you_mean(size, SIZES)
            )
        self.channels, depths = SIZES[size]
        last = sum(depths) - 1
        rates = [drop_path_rate * j / last for j in range(last + 1)]
        previous = in_channels
        for index in range(4):
            stage, channels = index + 1, self.channels[index]
            kernel, stride = (7, 4) if index == 0 else (3, 2)
            blocks = [
                Block(channels, HEADS[index], SR_RATIOS[index], rates.pop(0))
                for _ in range(depths[index])
            ]
            embed = OverlapPatchEmbed(previous, channels, kernel, stride)
            self.add_module(f"patch_embed{stage}", embed)
            self.add_module(f"block{stage}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage}", nn.LayerNorm(channels, eps=BLOCK_EPS))
            previous = channels
        self.apply(init_transformer_weights)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {}
        for stage in range(1, 5):
            tokens, height, width = self.get_submodule(f"patch_embed{stage}")(x)
            for block in self.get_submodule(f"block{stage}").children():
                tokens = block(tokens, height, width)
            # The next stage reads the normed map too.
            x = tokens_to_map(self.get_submodule(f"norm{stage}")(tokens), height, width)
            outputs[f"stage{stage}"] = x
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            f"stage{i + 1}": ShapeSpec(channels=self.channels[i], stride=STRIDES[i])
            for i in range(4)
        }


def init_transformer_weights(module: nn.Module) -> None:
    """Linear: truncated normal 0.02; convolution: He normal over fan-out; norms 1/0; biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-2.0, b=2.0)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
