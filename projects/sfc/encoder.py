"""The frame encoders of SFC: ResNets whose later stages keep stride 8.

Hu et al., Semantic-Aware Fine-Grained Correspondence, ECCV 2022, section 3.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch

from vss2.modeling.backbone import ResNet

FEATURE = "stage3"
STRIDES = (1, 2, 1, 1)  # stages 3 and 4 keep the resolution; nothing is dilated
WARMUP_SIZE = 256
RECORD = "bn_warmed"


class FrameEncoder(ResNet):
    """A ResNet up to its third or fourth stage; the third one, at stride 8, is the feature.

    Args:
        depth: 18 (256 channels) or 50 (1024 channels).
        padding_mode: "reflect" for the encoder of CRW, else "zeros".
        num_stages: 3 for propagation, 4 for training.

    Attributes:
        bn_warmed: bool, saved with the weights: whether the running statistics have taken the
            step of `warmed_up`.
    """

    bn_warmed: torch.Tensor

    def __init__(
        self, depth: int, padding_mode: Literal["zeros", "reflect"] = "zeros", num_stages: int = 3
    ):
        super().__init__(
            depth,
            strides=STRIDES[:num_stages],
            padding_mode=padding_mode,
            zero_init_residual=True,
        )
        self.padding_mode = padding_mode
        self.register_buffer(RECORD, torch.tensor(False))

    @property
    def num_channels(self) -> int:
        """Channels of the feature."""
        return self.output_shape()[FEATURE].channels


@torch.no_grad()
def warmed_up(encoder: FrameEncoder, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights after one pass of a zero image in training mode.

    The release makes this pass after it has loaded the weights, to find the size of its maps: every
    batch norm takes one step of momentum 0.1 towards the statistics of that image. The published
    numbers hold for weights with this step.

    Args:
        encoder: what the weights are for; it is left as it is.
        state: its weights, whole.
    """
    network = copy.deepcopy(encoder).cpu()
    network.load_state_dict(dict(state))
    network.train()
    network(torch.zeros(1, 3, WARMUP_SIZE, WARMUP_SIZE))
    network.bn_warmed.fill_(True)
    return dict(network.state_dict())
