"""STCN as a `VideoMaskPropagator`: keys of frames, values of objects, masks, training.

Cheng et al., Rethinking Space-Time Networks with Improved Memory Coverage for Efficient Video
Object Segmentation, NeurIPS 2021.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vss2.checkpoint import LoadReport
from vss2.d2.modeling import META_ARCH_REGISTRY, Backbone
from vss2.d2.utils import get_event_storage, has_event_storage
from vss2.errors import InputError
from vss2.layers.fold_norms import fold_norms
from vss2.layers.soft_aggregation import aggregate_log_odds
from vss2.layers.winograd import use_winograd
from vss2.modeling.memory_bank import MemoryBank, MemoryEntry
from vss2.modeling.memory_session import MemorySession
from vss2.modeling.meta_arch import VideoMaskPropagator
from vss2.modeling.session import VideoSession

from .checkpoint import published_stcn_names, require_whole_encoders
from .decoder import Decoder
from .losses import BootstrappedCrossEntropy, foreground_counts
from .multi_scale import MultiScaleSession
from .value_encoder import ValueEncoder

STRIDE = 16


class KeyProjection(nn.Module):
    """Holds the key's convolution under its published name."""

    def __init__(self, in_channels: int, key_dim: int):
        super().__init__()
        self.key_proj = nn.Conv2d(in_channels, key_dim, 3, padding=1)
        nn.init.orthogonal_(self.key_proj.weight)
        nn.init.zeros_(self.key_proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.key_proj(x)


@META_ARCH_REGISTRY.register()
class STCN(VideoMaskPropagator):
    """Keys come from frames alone, so that one affinity serves all objects; values from masks too.

    Args:
        key_encoder: gives `stage1`, `stage2`, `stage3` at strides 4, 8 and 16.
        value_encoder_depth, value_encoder_stem: of the value encoder's ResNet, the latter its
            `stem_channels`.
        key_dim, value_dim: channels of keys and values; the decoder's widths follow the latter.
        single_object: the network of stage 0: one object in training, and values do not see the
            masks of other objects.
        freeze_norm: batch norm uses its running statistics in training too and never changes
            them, as published; its scales and shifts train either way.
        bootstrap_start, bootstrap_end, bootstrap_fraction: see `BootstrappedCrossEntropy`.
        session: options of `new_session`, see `MemorySession`; and `scales`, a list of options,
            one for each run of multi-scale testing.

    Raises:
        InputError: an encoder with other strides.
    """

    compile_targets = ("key_encoder", "decoder")
    session_type = MemorySession
    stride = STRIDE

    def __init__(
        self,
        *,
        key_encoder: Backbone,
        value_encoder_depth: int = 18,
        value_encoder_stem: int = 64,
        key_dim: int = 64,
        value_dim: int = 512,
        single_object: bool = False,
        freeze_norm: bool = True,
        bootstrap_start: int = 20000,
        bootstrap_end: int = 70000,
        bootstrap_fraction: float = 0.15,
        session: Mapping[str, Any] | None = None,
    ):
        super().__init__(session=session)
        shapes = key_encoder.output_shape()
        strides = [shapes[name].stride for name in ("stage1", "stage2", "stage3")]
        if strides != [4, 8, STRIDE]:
            raise InputError(f"STCN needs a key encoder of strides 4, 8 and 16, got {strides}")
        f4, f8, f16 = (shapes[f"stage{i}"].channels for i in (1, 2, 3))
        self.freeze_norm = freeze_norm
        self.key_encoder = key_encoder
        self.value_encoder = ValueEncoder(
            f16_channels=f16,
            value_dim=value_dim,
            single_object=single_object,
            depth=value_encoder_depth,
            stem_channels=value_encoder_stem,
        )
        self.key_proj = KeyProjection(f16, key_dim)
        self.key_comp = nn.Conv2d(f16, value_dim, 3, padding=1)
        self.decoder = Decoder(value_dim, f8, f4)
        self._prepared: tuple[list[Any], STCN] | None = None
        self.cross_entropy = BootstrappedCrossEntropy(
            bootstrap_start, bootstrap_end, bootstrap_fraction
        )

    @property
    def num_objects(self) -> int:
        """Objects of a training sample."""
        return 1 if self.value_encoder.single_object else 2

    def train(self, mode: bool = True) -> STCN:
        super().train(mode)
        if mode:
            self._prepared = None
        if self.freeze_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features of images [N, 3, H, W] whose sides are multiples of 16.

        Returns:
            `image` itself; `f4`, `f8`, `f16` at strides 4, 8, 16; at stride 16 `key` and
            `f16_thin`, what the decoder sees of the frame itself.
        """
        images = images.contiguous(memory_format=torch.channels_last)
        stages = self.key_encoder(images)
        f16 = stages["stage3"]
        return {
            "image": images,
            "f4": stages["stage1"],
            "f8": stages["stage2"],
            "f16": f16,
            "key": self.key_proj(f16),
            "f16_thin": self.key_comp(f16),
        }

    def memorize(self, features: dict[str, torch.Tensor], masks: torch.Tensor) -> MemoryEntry:
        """The key of a frame and the value of each of its objects, masks float [O, H, W]."""
        values = self.value_encoder(features["image"], features["f16"], masks[None])
        return MemoryEntry(
            features["key"][0].permute(1, 2, 0).flatten(0, 1),
            values.permute(0, 2, 3, 1).flatten(1, 2),
        )

    def read(self, features: dict[str, torch.Tensor], memory: MemoryBank) -> torch.Tensor:
        """What the memory says of each object: [O, value_dim, h, w]."""
        return memory.read(features["key"])

    def decode(self, features: dict[str, torch.Tensor], readout: torch.Tensor) -> torch.Tensor:
        """Each object's probability, before aggregation: [O, H, W]."""
        return self._logits(features, readout).sigmoid()[:, 0]

    def _logits(self, features: dict[str, torch.Tensor], readout: torch.Tensor) -> torch.Tensor:
        return self.decoder(readout, features["f16_thin"], features["f8"], features["f4"])

    def new_session(self, **options: Any) -> VideoSession:
        """A `MemorySession`; with `scales`, one of each and a `MultiScaleSession` of them.

        Args:
            **options: of `MemorySession`; `scales`, a list of options that differ for each run.
        """
        options = {**self.session_options, **options}
        scales = options.pop("scales", None)
        if not scales:
            return self._single_session(options)
        return MultiScaleSession([self._single_session({**options, **run}) for run in scales])

    def for_inference(self, amp: bool = False) -> STCN:
        """This model with folded batch norms and, on a processor, cheaper wide convolutions.

        Its weights are copies, made anew when this model's have changed.

        Args:
            amp: it will run in mixed precision, for which a processor's own convolutions are best.
        """
        tensors = [*self.parameters(), *self.buffers()]
        state = [amp, *((t.data_ptr(), None if t.is_inference() else t._version) for t in tensors)]
        if self._prepared is None or self._prepared[0] != state:
            network = copy.copy(self)
            network._modules = {
                name: fold_norms(copy.deepcopy(part).to(memory_format=torch.channels_last))
                for name, part in self._modules.items()
            }
            network._prepared = None
            if self.device.type == "cpu" and not amp:
                # Not where keys come from: what answers a query must not hang on rounding.
                for name in ("key_comp", "value_encoder", "decoder"):
                    network._modules[name] = use_winograd(network._modules[name])
            self._prepared = state, network
        return self._prepared[1]

    # Training

    def losses(
        self, images: torch.Tensor, samples: Sequence[Mapping[str, Any]]
    ) -> dict[str, torch.Tensor]:
        """`loss_frame<t>` of every frame after the first, whose masks are given.

        The memory of a frame after the first holds what was predicted there, through which
        gradients flow. An object above a sample's `num_objects` is absent.

        Raises:
            InputError: sides that are no multiples of 16, a single frame, or more objects than
                the network trains with.
        """
        _, length, _, height, width = images.shape
        if height % STRIDE or width % STRIDE or length < 2:
            raise InputError(
                f"STCN trains on clips of 2 frames at least, with sides that are multiples of "
                f"{STRIDE}, got {length} frames of {height}x{width}"
            )
        truth = torch.stack([sample["masks"] for sample in samples]).to(self.device).long()
        present = self._present(samples)
        features = self.encode(images.flatten(0, 1))
        clip = [
            {name: f.unflatten(0, (-1, length))[:, t] for name, f in features.items()}
            for t in range(length)
        ]
        masks = self._first_masks(samples, truth)
        memory, out = [], {}
        iteration = get_event_storage().iter if has_event_storage() else 0
        counts = truth.new_zeros(self.num_objects, 2)
        for t in range(1, length):
            memory.append(self._training_entry(clip[t - 1], masks))
            log_odds = self._segment(clip[t], memory, present)
            masks = log_odds.softmax(1)[:, 1:]
            out[f"loss_frame{t}"] = self._frame_loss(log_odds, truth[:, t], present, iteration)
            for i, count in enumerate(counts):
                count += foreground_counts(masks[:, i], truth[:, t] == i + 1)
        self._log(counts, iteration)
        return out

    def _present(self, samples: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Which objects each sample has, bool [B, O] on the CPU; the target counts as there."""
        most = max(sample["num_objects"] for sample in samples)
        if most > self.num_objects:
            raise InputError(
                f"this STCN trains with {self.num_objects} objects at most, a sample has {most}: "
                "set the object sampler's max_objects to that, or model.single_object=False"
            )
        here = [[i == 0 or i < s["num_objects"] for i in range(self.num_objects)] for s in samples]
        return torch.tensor(here)

    def _first_masks(
        self, samples: Sequence[Mapping[str, Any]], truth: torch.Tensor
    ) -> torch.Tensor:
        """What the memory gets of the first frame, float [B, O, H, W].

        Static images give it as grey as their augmentation left it, see `StaticClipMapper`.
        """
        if self.num_objects == 1 and "soft_masks" in samples[0]:
            grey = torch.stack([sample["soft_masks"][0] for sample in samples])
            return grey[:, None].to(self.device).float() / 255
        return torch.stack([truth[:, 0] == i + 1 for i in range(self.num_objects)], 1).float()

    def _training_entry(
        self, features: dict[str, torch.Tensor], masks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Key [B, C_k, P] and values [B, O*C_v, P] of a frame."""
        values = self.value_encoder(features["image"], features["f16"], masks).flatten(2)
        return features["key"].flatten(2), values.unflatten(0, masks.shape[:2]).flatten(1, 2)

    def _segment(
        self,
        features: dict[str, torch.Tensor],
        memory: Sequence[tuple[torch.Tensor, torch.Tensor]],
        present: torch.Tensor,
    ) -> torch.Tensor:
        """Log-odds of background and objects, float32 [B, 1 + O, H, W]."""
        keys, values = (torch.cat(part, dim=2) for part in zip(*memory, strict=True))
        affinity = training_affinity(keys, features["key"].flatten(2))
        readout = (values @ affinity.to(values.dtype)).unflatten(1, (self.num_objects, -1))
        readout = readout.flatten(0, 1).unflatten(2, features["key"].shape[-2:])
        prob = self._logits(features, readout).sigmoid().unflatten(0, present.shape)[:, :, 0]
        return aggregate_log_odds(prob * present[:, :, None, None].to(prob.device), dim=1)

    def _frame_loss(
        self, log_odds: torch.Tensor, labels: torch.Tensor, present: torch.Tensor, iteration: int
    ) -> torch.Tensor:
        losses = [
            self.cross_entropy(scores[: 1 + int(here.sum())], label, iteration)
            for scores, label, here in zip(log_odds, labels, present, strict=True)
        ]
        return torch.stack(losses).mean()

    def _log(self, counts: torch.Tensor, iteration: int) -> None:
        if not has_event_storage():
            return
        storage = get_event_storage()
        storage.put_scalar("kept_pixels", self.cross_entropy.kept(iteration))
        for name, (inter, union) in zip(("iou", "iou_second"), counts.tolist(), strict=False):
            storage.put_scalar(name, (inter + 1) / (union + 1))

    # Checkpoints

    def convert_checkpoint(
        self, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """See `published_stcn_names`; a model in training mode is one that goes on training."""
        return published_stcn_names(state, self)

    def check_loaded(self, report: LoadReport) -> None:
        require_whole_encoders(report)

    def published_checkpoint(self, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The content of a file in the published layout: the weights under their own names."""
        return dict(state)


def training_affinity(keys: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Softmax over all memory positions of the L2 similarity.

    Args:
        keys: [B, C, M].
        queries: [B, C, P].

    Returns:
        float32 [B, M, P].
    """
    with torch.autocast(device_type=keys.device.type, enabled=False):
        keys, queries = keys.float(), queries.float()
        similarity = 2 * keys.transpose(1, 2) @ queries - keys.square().sum(1)[:, :, None]
        return F.softmax(similarity / math.sqrt(keys.shape[1]), dim=1)
