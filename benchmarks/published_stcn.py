"""STCN's inference the published way, on the weights of a vss2 model: the yardstick of its speed.

NCHW memory, batch norms apart from their convolutions, every object's own copy of the frame's
features in fuser and decoder, a bank that is concatenated anew at each addition, and a dense
affinity: similarity of all memory positions, top-k, exponentials scattered into zeros, product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from vss2.modeling.memory_session import placement
from vss2.projects.stcn import STCN

STRIDE = 16


def res_block(part: Any, x: torch.Tensor) -> torch.Tensor:
    hidden = part.conv2(F.relu(part.conv1(F.relu(x))))
    return hidden + (x if part.downsample is None else part.downsample(x))


def aggregate(prob: torch.Tensor) -> torch.Tensor:
    """[O, H, W] to [1 + O, H, W]."""
    both = torch.cat([(1 - prob).prod(0, keepdim=True), prob]).clamp(1e-7, 1 - 1e-7)
    return torch.log(both / (1 - both)).softmax(0)


class PublishedCore:
    """Propagates the objects of a first mask through a clip that is in memory whole.

    Args:
        model: in eval mode.
        mem_every, top_k: of the published core.
    """

    def __init__(self, model: STCN, mem_every: int = 5, top_k: int = 20):
        self.model = model
        self.mem_every = mem_every
        self.top_k = top_k
        self.keys: torch.Tensor | None = None  # [C_k, M]
        self.values: torch.Tensor | None = None  # [O, C_v, M]

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model = self.model
        stages = model.key_encoder(image)
        f16 = stages["stage3"]
        return model.key_proj(f16), model.key_comp(f16), f16, stages["stage2"], stages["stage1"]

    def value(self, image: torch.Tensor, f16: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Values [O, C_v, h, w] of masks [O, H, W]."""
        encoder = self.model.value_encoder
        count = len(masks)
        others = torch.stack(
            [masks[[j for j in range(count) if j != i]].sum(0) for i in range(count)]
        )
        x = torch.cat([image.repeat(count, 1, 1, 1), masks[:, None], others[:, None]], dim=1)
        x = F.max_pool2d(encoder.bn1(encoder.conv1(x)).relu(), 3, stride=2, padding=1)
        for name in encoder.stage_names:
            x = encoder.get_submodule(name)(x)
        fuser = encoder.fuser
        x = res_block(fuser.block1, torch.cat([x, f16.repeat(count, 1, 1, 1)], dim=1))
        return res_block(fuser.block2, x + fuser.attention(x))

    def remember(self, key: torch.Tensor, value: torch.Tensor) -> None:
        key, value = key[0].flatten(1), value.flatten(2)
        self.keys = key if self.keys is None else torch.cat([self.keys, key], dim=1)
        self.values = value if self.values is None else torch.cat([self.values, value], dim=2)

    def read(self, query: torch.Tensor) -> torch.Tensor:
        """[1, C_k, h, w] to [O, C_v, h, w]."""
        similarity = self.similarity(query)
        top, index = similarity.topk(self.top_k, dim=0)
        # The released code does not subtract the maximum, and overflows on keys that are large.
        weights = (top - top[:1]).exp()
        weights /= weights.sum(0, keepdim=True)
        affinity = torch.zeros_like(similarity).scatter_(0, index, weights)
        return torch.matmul(self.values, affinity).unflatten(2, query.shape[-2:])

    def similarity(self, query: torch.Tensor) -> torch.Tensor:
        """[1, C_k, h, w] to [memory positions, h w]."""
        product = self.keys.t() @ query[0].flatten(1)
        norms = self.keys.square().sum(0)[:, None]
        return (2 * product - norms) / math.sqrt(len(self.keys))

    def margin(self, query: torch.Tensor) -> torch.Tensor:
        """[h, w]: by how much the last position that answers is better than the next one."""
        top = self.similarity(query).topk(self.top_k + 1, dim=0).values
        return (top[-2] - top[-1]).view(query.shape[-2:])

    def decode(
        self, readout: torch.Tensor, thin: torch.Tensor, f8: torch.Tensor, f4: torch.Tensor
    ) -> torch.Tensor:
        """Probabilities [O, H, W]."""
        decoder = self.model.decoder
        x = torch.cat([readout, thin.repeat(len(readout), 1, 1, 1)], dim=1)
        x = res_block(decoder.compress, x)
        for part, skip in ((decoder.up_16_8, f8), (decoder.up_8_4, f4)):
            up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = res_block(part.out_conv, part.skip_conv(skip) + up)
        logits = decoder.pred(F.relu(x))
        logits = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
        return logits.sigmoid()[:, 0]

    @torch.no_grad()
    def propagate(self, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Frames uint8 [T, 3, H, W] and the ids 1..O of the first to [1 + O, T, H, W]."""
        height, width = frames.shape[-2:]
        left, right, top, bottom = placement(height, width, None, STRIDE).padding
        images = F.pad(self.model.normalize(frames), (left, right, top, bottom))
        count = int(mask.max())
        first = torch.stack([mask == i + 1 for i in range(count)]).float()
        out = images.new_zeros(1 + count, len(frames), *images.shape[-2:])
        out[:, 0] = aggregate(F.pad(first, (left, right, top, bottom)))
        for t in range(len(frames)):
            image = images[t : t + 1]
            key, thin, f16, f8, f4 = self.encode(image)
            if t:
                out[:, t] = aggregate(self.decode(self.read(key), thin, f8, f4))
            if t % self.mem_every == 0 and (t == 0 or t < len(frames) - 1):
                self.remember(key, self.value(image, f16, out[1:, t]))
        return out[..., top : top + height, left : left + width]
