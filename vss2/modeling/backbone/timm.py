"""Backbones of timm by name, as maps at strides 4, 8, 16 and 32.

timm is imported where it is needed: that takes seconds, which other models need not wait for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vss2.checkpoint import model_state, read_checkpoint
from vss2.d2.layers import ShapeSpec
from vss2.d2.modeling import BACKBONE_REGISTRY, Backbone
from vss2.errors import InputError, did_you_mean

from .mit import STRIDES

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """A timm model's `features_only` form.

    Input [N, in_channels, H, W], RGB normalised with ImageNet's mean and deviation; where the model
    was made for others, it is normalised anew. Output: a dict `stage1` to `stage4` of maps
    [N, C_s, h_s, w_s] at strides 4, 8, 16 and 32.

    Args:
        name: of the model, such as "resnet50" or "convnext_tiny.fb_in1k".
        pretrained: let timm fetch its weights (from its cache or the network).
        checkpoint: file with the model's weights under timm's names; not with `pretrained`. A
            training config that gives it as `train.init_checkpoint` instead needs it only once.
        in_channels: channels of the image.
        drop_path_rate: stochastic depth; None = the model's default. Not every model takes it.
        options: further arguments of the model's constructor, such as {"img_size": [480, 864]}
            for models of one input size.

    Raises:
        InputError: no such model, one without maps at these strides, an option that the model does
            not take, or weights that do not fit or cannot be fetched.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        in_channels: int = 3,
        drop_path_rate: float | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if pretrained and checkpoint:
            raise InputError(f"{name}: give pretrained=True or a checkpoint, not both")
        self.name = str(name)
        arguments = {key: _plain(value) for key, value in (options or {}).items()}
        if drop_path_rate is not None:
            arguments["drop_path_rate"] = float(drop_path_rate)
        self.net = _create(self.name, bool(pretrained), int(in_channels), arguments)
        self._channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        self._pick_stages()
        self._set_normalization(int(in_channels))
        if checkpoint:
            self._load(checkpoint)

    def _pick_stages(self) -> None:
        """Which of the model's maps are stages 1 to 4: the last one at each stride."""
        info: Any = self.net.feature_info
        strides, channels = list(info.reduction()), list(info.channels())
        positions = {int(stride): position for position, stride in enumerate(strides)}
        missing = [stride for stride in STRIDES if stride not in positions]
        if missing:
            offered = ", ".join(
                f"{s} ({c} channels)" for s, c in zip(strides, channels, strict=True)
            )
            raise InputError(
                f"the timm model {self.name!r} has no maps at stride "
                f"{', '.join(map(str, missing))}; it offers strides {offered}. Needed are "
                f"{', '.join(map(str, STRIDES))}"
            )
        self._positions = [positions[stride] for stride in STRIDES]
        self.channels = tuple(int(channels[position]) for position in self._positions)

    def _set_normalization(self, in_channels: int) -> None:
        """Factors from ImageNet's normalisation to the model's own, if they differ."""
        import timm

        config = timm.get_pretrained_cfg(self.name, allow_unregistered=True)
        mean, std = (getattr(config, key, None) for key in ("mean", "std"))
        self._renormalizes = (
            in_channels == len(IMAGENET_MEAN)
            and mean is not None
            and std is not None
            and (tuple(mean), tuple(std)) != (IMAGENET_MEAN, IMAGENET_STD)
        )
        if self._renormalizes:
            own_mean, own_std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
            ours_mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
            ours_std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
            self.register_buffer("_gain", ours_std / own_std, persistent=False)
            self.register_buffer("_bias", (ours_mean - own_mean) / own_std, persistent=False)
            logger.info("%s takes mean %s and std %s: its input is converted", self.name, mean, std)

    def _load(self, path: str | os.PathLike[str]) -> None:
        state = model_state(read_checkpoint(path), source=str(path))
        try:
            weights, _ = self.convert_checkpoint(state)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        own = self.state_dict()
        for key, value in weights.items():
            if own[key].shape != value.shape:
                raise InputError(
                    f"{path}: {key} has shape {tuple(value.shape)}, {self.name!r} has "
                    f"{tuple(own[key].shape)}"
                )
        self.load_state_dict(weights)
        logger.info("%s: %d tensors from %s", self.name, len(weights), path)

    def convert_checkpoint(
        self, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The weights of a whole timm model under this backbone's names, and what is left out.

        The `features_only` form of some models joins the first two parts of a name ("stages.0" is
        "stages_0"), that of others puts "model." in front.

        Raises:
            InputError: tensors of the backbone are missing; names some.
        """
        own = self.net.state_dict()
        weights, ignored = {}, {}
        for name, value in state.items():
            candidates = (name, name.replace(".", "_", 1), f"model.{name}")
            found = next((key for key in candidates if key in own), None)
            if found is None:
                ignored[name] = f"no part of the maps of {self.name}"
            else:
                weights[f"net.{found}"] = value
        for key, value in own.items():
            if key.endswith("num_batches_tracked"):  # absent from old files, and without effect
                weights.setdefault(f"net.{key}", value)
        missing = sorted(key for key in own if f"net.{key}" not in weights)
        if missing:
            raise InputError(
                f"these weights lack {len(missing)} of the {len(own)} tensors of the timm model "
                f"{self.name!r}: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
            )
        return weights, ignored

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self._renormalizes:
            x = x * self._gain + self._bias
        maps = self.net(x)
        chosen = [maps[position] for position in self._positions]
        if self._channels_last:
            chosen = [feature.permute(0, 3, 1, 2).contiguous() for feature in chosen]
        return {f"stage{index + 1}": feature for index, feature in enumerate(chosen)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            f"stage{index + 1}": ShapeSpec(channels=channels, stride=stride)
            for index, (channels, stride) in enumerate(zip(self.channels, STRIDES, strict=True))
        }


def _plain(value: Any) -> Any:
    """Lists of configs as tuples."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _create(name: str, pretrained: bool, in_channels: int, arguments: dict[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model(name):
        known = timm.list_models()
        hint = did_you_mean(name.split(".")[0], known)
        raise InputError(f"timm has no model {name!r}.{hint} timm.list_models() lists {len(known)}")
    try:
        return timm.create_model(
            name, pretrained=pretrained, features_only=True, in_chans=in_channels, **arguments
        )
    except Exception as error:  # constructors and downloads fail in their own ways
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the timm model {name!r} cannot be made as a backbone with options {arguments}"
            f"{', pretrained' if pretrained else ''}: {reason}"
        ) from error
