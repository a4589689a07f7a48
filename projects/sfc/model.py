"""SFC as a `VideoMaskPropagator`: features of frames, and labels that follow them.

Hu et al., Semantic-Aware Fine-Grained Correspondence, ECCV 2022; the propagation is that of Jabri
et al., Space-Time Correspondence as a Contrastive Random Walk, NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from vss2.d2.modeling import META_ARCH_REGISTRY
from vss2.errors import InputError
from vss2.modeling.meta_arch.label_propagator import LabelPropagator

from .checkpoint import encoder_weights
from .encoder import FEATURE, FrameEncoder

PARTS = ("fine", "semantic")


@META_ARCH_REGISTRY.register()
class SFC(LabelPropagator):
    """Labels follow the features of one frozen encoder, or of two side by side.

    Features are normalised, so that their products are cosines. Of two encoders each is
    normalised on its own, the fine-grained one weighted by `fine_weight`, and the whole again.

    Args:
        fine: the fine-grained encoder, ResNet-18; None for semantic features alone.
        semantic: the semantic encoder, ResNet-50; None for fine-grained features alone.
        fine_weight: lambda of the paper; of no effect with one encoder.
        bn_warmup: published weights take the step that the release lets them take, see
            `encoder.warmed_up`; False uses the statistics that are in the file.
        session: options of `new_session`.

    Raises:
        InputError: no encoder.
    """

    def __init__(
        self,
        *,
        fine: FrameEncoder | None = None,
        semantic: FrameEncoder | None = None,
        fine_weight: float = 1.75,
        bn_warmup: bool = True,
        session: Mapping[str, Any] | None = None,
    ):
        super().__init__(session=session)
        if fine is None and semantic is None:
            raise InputError("SFC needs an encoder: fine, semantic or both")
        self.fine = fine
        self.semantic = semantic
        self.fine_weight = float(fine_weight)
        self.bn_warmup = bool(bn_warmup)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised features, float [N, C, ceil(H/8), ceil(W/8)]."""
        maps = [
            weight * F.normalize(encoder(images)[FEATURE].float(), dim=1)
            for encoder, weight in ((self.fine, self.fine_weight), (self.semantic, 1.0))
            if encoder is not None
        ]
        return F.normalize(torch.cat(maps, dim=1), dim=1)

    def losses(
        self, images: torch.Tensor, samples: Sequence[Mapping[str, Any]]
    ) -> dict[str, torch.Tensor]:
        """
        Raises:
            InputError: always; nothing of this model is trained.
        """
        raise InputError(
            "SFC propagates with frozen encoders; FineGrainedCorrespondence trains the "
            "fine-grained one"
        )

    def convert_checkpoint(
        self, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Weights of each encoder from the layout of its publisher.

        Args:
            state: a vss2 checkpoint; or the files of the parts, each name with "fine." or
                "semantic." in front; or one file, which goes to the only encoder, or of two to
                the one that its layout is for.
        """
        encoders = {part: getattr(self, part) for part in PARTS if getattr(self, part) is not None}
        if not any(name.startswith(tuple(f"{part}." for part in PARTS)) for name in state):
            fine = any(name.startswith(("online_encoder.", "encoder.model.")) for name in state)
            part = next(iter(encoders)) if len(encoders) == 1 else PARTS[0 if fine else 1]
            state = {f"{part}.{name}": value for name, value in state.items()}
        named: dict[str, torch.Tensor] = {}
        ignored: dict[str, str] = {}
        for part, encoder in encoders.items():
            own = {
                name.removeprefix(f"{part}."): value
                for name, value in state.items()
                if name.startswith(f"{part}.")
            }
            if not own:
                continue
            weights, left = encoder_weights(encoder, own, self.bn_warmup)
            named |= {f"{part}.{name}": value for name, value in weights.items()}
            ignored |= {f"{part}.{name}": why for name, why in left.items()}
        known = tuple(f"{part}." for part in encoders)
        named |= {name: value for name, value in state.items() if not name.startswith(known)}
        return named, ignored
