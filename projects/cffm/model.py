"""CFFM and CFFM++ as video segmentors.

Sun et al., Coarse-to-Fine Feature Mining for Video Semantic Segmentation, CVPR 2022, and its
extension Learning Local and Global Temporal Contexts for Video Semantic Segmentation, TPAMI 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vss2.checkpoint import LoadReport
from vss2.d2.modeling import META_ARCH_REGISTRY, Backbone
from vss2.d2.utils import get_event_storage, has_event_storage
from vss2.errors import InputError
from vss2.modeling.losses import pixel_accuracy, pixel_cross_entropy, resize_scores
from vss2.modeling.meta_arch import VideoSegmentor
from vss2.modeling.segformer import STAGES, require_whole_backbone
from vss2.modeling.window import PUBLISHED_OFFSETS, OffsetWindow

from .checkpoint import published_cffm_names, with_index_constants
from .focal import REFERENCE_GRIDS
from .head import PROTOTYPE_WEIGHT, CFFMHead, CFFMPlusPlusHead, PrototypeKeys, half_size
from .prototypes import PrototypeStore
from .session import OnlinePrototypeSession, PrototypeSession, StretchingSession

ONLINE = "online"


@META_ARCH_REGISTRY.register()
class CFFM(VideoSegmentor):
    """Segments a frame with three earlier ones, seen coarser the older they are.

    Args:
        backbone: gives maps `stage1`..`stage4` at strides 4 to 32.
        num_classes: K.
        window: offsets of the three references and of the target, 0. At the published ones early
            frames follow the published table; a frame without a window is segmented alone.
        focal_depth: blocks of focal attention: 1 in B0, 2 in B1 and B2, 4 in B5.
        embed_dim: E, 256 in all published models.
        num_heads: of the focal attention.
        norm: of the fusing convolution: "BN" or "SyncBN" (see `FuseConv`).
        dropout: channel dropout before the classifiers.
        frame_loss_weight: of the loss on the frames' own maps, against 1 for the target's.
        eval_output: "labels" or "sem_seg".
    """

    head_class: type[CFFMHead] = CFFMHead
    compile_targets = ("backbone",)

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        window: Sequence[int] = PUBLISHED_OFFSETS,
        focal_depth: int = 1,
        embed_dim: int = 256,
        num_heads: int = 8,
        norm: str = "BN",
        dropout: float = 0.1,
        frame_loss_weight: float = 0.5,
        eval_output: str = "labels",
    ):
        offsets = tuple(int(offset) for offset in window)
        if len(offsets) != len(REFERENCE_GRIDS) + 1:
            raise InputError(
                f"window names {len(REFERENCE_GRIDS)} references and the target, such as "
                f"{PUBLISHED_OFFSETS}, got {offsets}"
            )
        super().__init__(
            num_classes=num_classes,
            window=OffsetWindow(offsets),
            eval_output=eval_output,
            # The published pipeline stretches frames to multiples of the coarsest stride.
            size_divisor=32,
        )
        self.clip_length = len(offsets)
        self.frame_loss_weight = float(frame_loss_weight)
        self.backbone = backbone
        shapes = backbone.output_shape()
        self.decode_head = self.head_class(
            in_channels=[shapes[f"stage{stage}"].channels for stage in STAGES],
            num_classes=num_classes,
            focal_depth=focal_depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            norm=norm,
            dropout=dropout,
        )

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The embedding of each image at `stride4` and `stride8`, [N, E, h, w] each."""
        embedding = self.decode_head.embed(self.backbone(images))
        return {"stride4": embedding, "stride8": half_size(embedding)}

    def keep(self, features: dict[str, Any]) -> dict[str, Any]:
        """What later windows need of a frame's features once it is answered.

        `pooled`: for every focal block the three pooled grids, one per place that a reference
        can take in a window; 14 cells for each 7x7 window of the map at stride 8.
        """
        return {"pooled": self.decode_head.decoder_focal.pool_references(features["stride8"])}

    def decode(self, clip: Sequence[Any], targets: Sequence[int]) -> torch.Tensor:
        """Scores [1, K, h, w] at stride 4 of the last frame of a clip.

        Args:
            clip: features of the target behind what `keep` left of its references, if any.
            targets: nothing or the last position.
        """
        if not targets:
            return self.decode_head.linear_pred.weight.new_empty(0, self.num_classes, 1, 1)
        *references, target = clip
        if not references:
            return self.decode_head.predict(target["stride4"])
        pooled = [reference["pooled"] for reference in references]
        blocks = range(len(self.decode_head.decoder_focal.blocks))
        places = range(len(pooled))
        mined = self.decode_head.mine(
            target["stride8"], [tuple(pooled[k][block][k] for k in places) for block in blocks]
        )
        return resize_scores(mined, target["stride4"].shape[-2:])

    def losses(
        self, features: dict[str, torch.Tensor], sem_seg: torch.Tensor, labelled: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """`loss_frames`: the weighted cross entropy of the frames' own maps, over the labelled
        frames; `loss_target`: that of the last frame's map from the whole clip.
        """
        self._check_labelled(labelled)
        # [B*T, E, h, w] -> [B, T, E, h, w]
        maps = features["stride8"].unflatten(0, labelled.shape)
        references = self.decode_head.decoder_focal.pool_references(
            maps[:, :-1].flatten(0, 1), self._places(len(labelled))
        )
        mined = self.decode_head.mine(maps[:, -1], references)
        mined = resize_scores(mined, features["stride4"].shape[-2:])
        return {
            "loss_frames": self._frame_loss(features["stride4"], sem_seg, labelled),
            "loss_target": pixel_cross_entropy(mined, sem_seg[:, -1]),
        }

    def _places(self, batch: int) -> list[list[int]]:
        """For each place in the window the reference frames of all clips, batch-major."""
        references = self.clip_length - 1
        return [[b * references + k for b in range(batch)] for k in range(references)]

    def _check_labelled(self, labelled: torch.Tensor) -> None:
        if labelled.shape[1] != self.clip_length:
            raise InputError(
                f"{type(self).__name__} trains on clips of {self.clip_length} frames, "
                f"got {labelled.shape[1]}"
            )
        if not labelled[:, -1].all():
            raise InputError(
                f"{type(self).__name__} trains on clips whose last frame is labelled; "
                "one without is in the batch"
            )

    def _frame_loss(
        self, embedding: torch.Tensor, sem_seg: torch.Tensor, labelled: torch.Tensor
    ) -> torch.Tensor:
        chosen = labelled.flatten()
        scores = self.decode_head.predict(embedding[chosen])
        labels = sem_seg.flatten(0, 1)[chosen]
        if has_event_storage():
            get_event_storage().put_scalar("accuracy", pixel_accuracy(scores, labels).item())
        return self.frame_loss_weight * pixel_cross_entropy(scores, labels)

    def new_session(self) -> StretchingSession:
        return StretchingSession(self)

    def convert_checkpoint(
        self, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        return published_cffm_names(state)

    def published_checkpoint(self, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The content of a file in the published layout."""
        return {"state_dict": with_index_constants(state), "meta": {}}

    def check_loaded(self, report: LoadReport) -> None:
        require_whole_backbone(report)


@META_ARCH_REGISTRY.register()
class CFFMPlusPlus(CFFM):
    """A frozen CFFM whose target also attends to prototypes of its whole video.

    Trained are `linear_pred3` and `decoder_swin` alone. Prototypes that were clustered over the
    whole video make the method look ahead: it is not causal. Online ones do not.

    Args:
        prototypes: where those of each video lie, a folder, a zip or a `PrototypeStore`; "online":
            sessions make them from the frames so far (see `OnlinePrototypes`), and training
            samples bring them; None: samples and sessions bring them.
        drop_path: whether the frozen backbone keeps its stochastic depth while the rest trains,
            as published; False freezes its features too.
        backbone, num_classes, window, focal_depth, embed_dim, num_heads, norm, dropout,
            eval_output: see `CFFM`.

    Training samples may carry `prototypes`, float [P, C], the same P in a batch.
    """

    head_class = CFFMPlusPlusHead
    decode_head: CFFMPlusPlusHead

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        window: Sequence[int] = PUBLISHED_OFFSETS,
        focal_depth: int = 1,
        embed_dim: int = 256,
        num_heads: int = 8,
        norm: str = "BN",
        dropout: float = 0.1,
        prototypes: str | PrototypeStore | None = None,
        drop_path: bool = True,
        eval_output: str = "labels",
    ):
        super().__init__(
            backbone=backbone,
            num_classes=num_classes,
            window=window,
            focal_depth=focal_depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            norm=norm,
            dropout=dropout,
            eval_output=eval_output,
        )
        self.embed_dim = embed_dim
        self.online = isinstance(prototypes, str) and prototypes == ONLINE
        self.store: PrototypeStore | None = None
        if isinstance(prototypes, PrototypeStore):
            self.store = prototypes
        elif prototypes is not None and not self.online:
            self.store = PrototypeStore(prototypes)
        self.drop_path = drop_path
        self.backbone.requires_grad_(False)
        self._keys: PrototypeKeys | None = None

    def train(self, mode: bool = True) -> CFFMPlusPlus:
        super().train(mode)
        # Its statistics belong to the frozen part.
        self.decode_head.linear_fuse.eval()
        if not self.drop_path:
            self.backbone.eval()
        return self

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return super().encode(images)

    def prototype_keys(self, prototypes: torch.Tensor) -> PrototypeKeys:
        """[B, P, C] prototypes, projected for the attention."""
        return self.decode_head.decoder_swin.keys(prototypes)

    def decode(self, clip: Sequence[Any], targets: Sequence[int]) -> torch.Tensor:
        """As `CFFM.decode`; a session puts its video's `prototypes` into the features."""
        scores = super().decode(clip, targets)
        if len(clip) == 1 or not targets:
            return scores
        keys = clip[-1].get("prototypes", self._keys)
        compared = self.decode_head.compare(clip[-1]["stride8"], keys)
        return scores + PROTOTYPE_WEIGHT * resize_scores(compared, scores.shape[-2:])

    def losses(
        self, features: dict[str, torch.Tensor], sem_seg: torch.Tensor, labelled: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """`loss_frames` as CFFM's, a number to watch that trains nothing; `loss_target`: cross
        entropy of the last frame's map from the prototypes alone, as published.
        """
        self._check_labelled(labelled)
        with torch.no_grad():
            frame_loss = self._frame_loss(features["stride4"], sem_seg, labelled)
        target = features["stride8"].unflatten(0, labelled.shape)[:, -1]
        compared = self.decode_head.compare(target, self._keys)
        compared = resize_scores(compared, features["stride4"].shape[-2:])
        return {
            "loss_frames": frame_loss,
            "loss_target": pixel_cross_entropy(compared, sem_seg[:, -1]),
        }

    @contextmanager
    def _prototypes(self, prototypes: torch.Tensor) -> Iterator[None]:
        """The prototypes [B, P, C] of the clips of one call."""
        self._keys = self.prototype_keys(prototypes)
        try:
            yield
        finally:
            self._keys = None

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As `VideoSegmentor.forward`; samples and first frames without prototypes get those of
        their `video_id` from the store.
        """
        return super().forward([self._supplied(item) for item in batched_inputs])

    def _supplied(self, item: dict[str, Any]) -> dict[str, Any]:
        if self.training and self.online and "prototypes" not in item:
            raise InputError(
                "model.prototypes=online is for streaming: training takes the prototypes of whole "
                "videos, which 'vss2 cffm prototypes' makes"
            )
        if self.store is None:
            return item
        if self.training:
            if "prototypes" in item:
                return item
            return item | {"prototypes": self.store[item["video_id"]]}
        options = item.get("session", {})
        if not item["first_frame"] or "prototypes" in options:
            return item
        return item | {"session": options | {"prototypes": self.store[item["video_id"]]}}

    def _training_losses(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        prototypes = [self.check_prototypes(sample.get("prototypes")) for sample in samples]
        counts = sorted({len(p) for p in prototypes})
        if len(counts) > 1:
            raise InputError(f"clips of one batch need equally many prototypes, got {counts}")
        with self._prototypes(torch.stack(prototypes)):
            return super()._training_losses(samples)

    @torch.no_grad()
    def predict_clip(
        self, frames: torch.Tensor, prototypes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `VideoSegmentor.predict_clip`, with the video's prototypes, float [P, C].

        A clip of one frame does without them, as published.
        """
        if frames.ndim == 4 and frames.shape[0] == 1 and prototypes is None:
            return super().predict_clip(frames)
        with self._prototypes(self.check_prototypes(prototypes)[None]):
            return super().predict_clip(frames)

    def check_prototypes(self, prototypes: Any) -> torch.Tensor:
        """Prototypes [P, C] of the model's device and dtype; [1, P, C] is taken too.

        Raises:
            InputError: none, wrong shape or width, or values that are not finite.
        """
        if not isinstance(prototypes, torch.Tensor):
            raise InputError(
                f"{type(self).__name__} needs the prototypes of the video, a float tensor "
                f"(P, {self.embed_dim}), got {type(prototypes).__name__}; a session takes "
                f"{ONLINE!r} too"
            )
        if prototypes.ndim == 3 and prototypes.shape[0] == 1:
            prototypes = prototypes[0]
        if prototypes.ndim != 2 or not len(prototypes) or prototypes.shape[1] != self.embed_dim:
            raise InputError(
                f"prototypes have the shape (P, {self.embed_dim}) with P >= 1, "
                f"got {tuple(prototypes.shape)}"
            )
        prototypes = prototypes.to(self.device, self.pixel_mean.dtype)
        if not prototypes.isfinite().all():
            raise InputError("prototypes hold values that are NaN or infinite")
        return prototypes

    def check_loaded(self, report: LoadReport) -> None:
        """Refuse weights that leave a part random that is never trained."""
        super().check_loaded(report)
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        unused = ("conv_seg.", "decoder_swin.")
        missing = [
            name for name in report.missing if name in frozen and not any(u in name for u in unused)
        ]
        if missing:
            raise InputError(
                f"CFFM++ is trained on top of a CFFM checkpoint, and {len(missing)} tensors of "
                f"that are missing here: {', '.join(missing[:3])}"
                f"{', ...' if len(missing) > 3 else ''}"
            )

    def new_session(
        self, prototypes: torch.Tensor | str | None = None
    ) -> PrototypeSession | OnlinePrototypeSession:
        """A session of one video.

        Args:
            prototypes: of the video, float [P, C]; or "online", to make them from the frames so
                far. Default: those of the model's store if it holds a single video, or online
                ones if the model says so.
        """
        if prototypes is None and self.store is not None:
            prototypes = self.store.only()
        if (prototypes is None and self.online) or (
            isinstance(prototypes, str) and prototypes == ONLINE
        ):
            return OnlinePrototypeSession(self)
        return PrototypeSession(self, self.check_prototypes(prototypes))
