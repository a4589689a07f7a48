from __future__ import annotations

import pytest
import torch

from vss2.errors import InputError
from vss2.modeling.backbone import MixTransformer
from vss2.modeling.compile import compile_targets
from vss2.modeling.segformer import SegFormer

from .test_session import WINDOWS
from .tiny import TinySegmentor, random_frames


def test_targets_are_compiled_in_place_and_keep_their_names() -> None:
    torch.manual_seed(0)
    model = SegFormer(backbone=MixTransformer("b0"), num_classes=5).eval()
    frames, names = random_frames(1, 64, 64), list(model.state_dict())
    expected = model.predict_clip(frames)
    assert compile_targets(model, backend="eager", dynamic=False) == ["backbone"]
    torch.testing.assert_close(model.predict_clip(frames), expected, rtol=0, atol=1e-5)
    assert list(model.state_dict()) == names
    assert model.backbone._compiled_call_impl is not None


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="TinySegmentor names no compile_targets"):
        compile_targets(TinySegmentor(WINDOWS["single"]))
    model = SegFormer(backbone=MixTransformer("b0"), num_classes=5)
    with pytest.raises(InputError, match="'fast'"):
        compile_targets(model, mode="fast")
