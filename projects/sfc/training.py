"""Training of the fine-grained encoder: two crops of one frame, no labels, no negatives.

Hu et al., Semantic-Aware Fine-Grained Correspondence, ECCV 2022, section 3.2.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vss2.d2.modeling import META_ARCH_REGISTRY
from vss2.d2.utils import get_event_storage, has_event_storage
from vss2.errors import InputError
from vss2.modeling.meta_arch.label_propagator import LabelPropagator

from .checkpoint import encoder_weights
from .encoder import FEATURE, RECORD, FrameEncoder
from .loss import correspondence_loss

TRAINED = "stage4"
# Of the crops in training; propagation normalises with the figures of ImageNet.
TRAIN_MEAN = (0.4914 * 255, 0.4822 * 255, 0.4465 * 255)
TRAIN_STD = (0.2023 * 255, 0.1994 * 255, 0.2010 * 255)
ENCODER = "online_encoder."
STEP = "ema_step"


class ProjectionHead(nn.Module):
    """1x1 convolution, batch norm, ReLU, 1x1 convolution: [N, C_in, h, w] to [N, C_out, h, w]."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int):
        super().__init__()
        self.linear1 = nn.Conv2d(in_channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.linear2 = nn.Conv2d(hidden, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(F.relu(self.bn1(self.linear1(x))))


@META_ARCH_REGISTRY.register()
class FineGrainedCorrespondence(LabelPropagator):
    """An encoder that predicts what its slow copy says of the same place in another crop.

    In eval mode it propagates labels with the features of its third stage, normalised.

    Args:
        encoder: with four stages.
        projection_dim: of the projected features.
        hidden_dim: of projectors and predictor.
        momentum: of the moving average at the first step; it tends to 1 over `total_steps`.
        total_steps: of the whole training.
        pos_radius: see `loss.positive_pairs`.
        bn_warmup: published weights take the step that the release lets them take before it
            propagates, see `encoder.warmed_up`.
        session: options of `new_session`.

    Attributes:
        ema_step: int64, saved with the weights: steps of the moving average so far.
    """

    ema_step: torch.Tensor
    train_mean: torch.Tensor
    train_std: torch.Tensor

    def __init__(
        self,
        *,
        encoder: FrameEncoder,
        total_steps: int,
        projection_dim: int = 256,
        hidden_dim: int = 2048,
        momentum: float = 0.99,
        pos_radius: float = 0.5,
        bn_warmup: bool = True,
        session: Mapping[str, Any] | None = None,
    ):
        super().__init__(session=session)
        shapes = encoder.output_shape()
        if TRAINED not in shapes:
            raise InputError("training needs an encoder of four stages: set num_stages=4")
        channels = shapes[TRAINED].channels
        self.online_encoder = encoder
        self.online_projector = ProjectionHead(channels, hidden_dim, projection_dim)
        self.predictor = ProjectionHead(projection_dim, hidden_dim, projection_dim)
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.online_projector).requires_grad_(False)
        self.total_steps = int(total_steps)
        self.momentum = float(momentum)
        self.pos_radius = float(pos_radius)
        self.bn_warmup = bool(bn_warmup)
        self.register_buffer(STEP, torch.tensor(0))
        self.register_buffer("train_mean", torch.tensor(TRAIN_MEAN).view(3, 1, 1), False)
        self.register_buffer("train_std", torch.tensor(TRAIN_STD).view(3, 1, 1), False)

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 RGB [..., 3, H, W] to float32; by other figures in training, as published."""
        if self.training:
            return (frames.float() - self.train_mean) / self.train_std
        return super().normalize(frames)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised features, float [N, C, ceil(H/8), ceil(W/8)]."""
        return F.normalize(self.online_encoder(images)[FEATURE].float(), dim=1)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """The online network's prediction [N, projection_dim, h, w], normalised."""
        projected = self.online_projector(self.online_encoder(images)[TRAINED])
        return F.normalize(self.predictor(projected).float(), dim=1)

    @torch.no_grad()
    def project_target(self, images: torch.Tensor) -> torch.Tensor:
        """The slow network's projection [N, projection_dim, h, w], normalised."""
        projected = self.target_projector(self.target_encoder(images)[TRAINED])
        return F.normalize(projected.float(), dim=1)

    def current_momentum(self) -> float:
        """Of the next step of the moving average."""
        progress = math.cos(math.pi * int(self.ema_step) / self.total_steps)
        return 1 - (1 - self.momentum) * (progress + 1) / 2

    @torch.no_grad()
    def update_target(self) -> None:
        """One step of the moving average; of parameters, not of running statistics."""
        momentum = self.current_momentum()
        for target, online in (
            (self.target_encoder, self.online_encoder),
            (self.target_projector, self.online_projector),
        ):
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.mul_(momentum).add_(fast, alpha=1 - momentum)
        self.ema_step += 1
        if has_event_storage():
            get_event_storage().put_scalar("ema_momentum", momentum, smoothing_hint=False)

    def losses(
        self, images: torch.Tensor, samples: Sequence[Mapping[str, Any]]
    ) -> dict[str, torch.Tensor]:
        """`loss_12` and `loss_21`: each view's prediction against the other's target.

        The order is the published one: predictions, then the moving average, which sees the
        weights before this iteration's optimizer step, then targets in training mode.

        Args:
            images: float [B, 2, T, 3, S, S], two views of T frames each.
            samples: with `boxes`, float [2, T, 4].
        """
        first, second = (images[:, view].flatten(0, 1) for view in (0, 1))
        boxes = torch.stack([sample["boxes"] for sample in samples]).to(images.device)
        first_boxes, second_boxes = (boxes[:, view].flatten(0, 1) for view in (0, 1))
        predicted = self.predict(first), self.predict(second)
        self.update_target()
        target = self.project_target(first), self.project_target(second)
        radius = self.pos_radius
        return {
            "loss_12": correspondence_loss(
                predicted[0], target[1], first_boxes, second_boxes, radius
            ),
            "loss_21": correspondence_loss(
                predicted[1], target[0], second_boxes, first_boxes, radius
            ),
        }

    def convert_checkpoint(
        self, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Weights of `pretrained_fc.pth`, whose names are the model's own.

        A file of the encoder alone gives the online encoder.
        """
        own = {name: value for name, value in state.items() if name.startswith(ENCODER)}
        weights, ignored = encoder_weights(self.online_encoder, own or state, self.bn_warmup)
        named = {ENCODER + name: value for name, value in weights.items()}
        if own:
            named |= {name: value for name, value in state.items() if name not in own}
            fresh = self.state_dict()
            for name in (name for name in fresh if name not in named):
                # Files of the release have no record, and may lack the counters.
                if name.endswith((RECORD, STEP, "num_batches_tracked")):
                    named[name] = torch.zeros_like(fresh[name])
        return named, ignored

    def published_checkpoint(self, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The content of a file in the published layout.

        Raises:
            InputError: weights whose statistics were warmed up already: the release would do it
                once more.
        """
        if bool(state[ENCODER + RECORD]):
            raise InputError(
                "these weights came from a published file and their statistics are warmed up; the "
                "release would warm them up again. Load that file with model.bn_warmup=False first"
            )
        return {"model": {n: v for n, v in state.items() if not n.endswith((RECORD, STEP))}}
