"""Backbones, padded batches and resizing of scores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vss2.d2.layers import ShapeSpec
from vss2.d2.modeling import BACKBONE_REGISTRY, Backbone, sem_seg_postprocess
from vss2.d2.structures import ImageList


class TinyBackbone(Backbone):
    def __init__(self):
        super().__init__()
        self._out_features = ["low", "high"]
        self._out_feature_channels = {"low": 3, "high": 6, "unused": 9}
        self._out_feature_strides = {"low": 4, "high": 8, "unused": 16}

    def forward(self, image):
        return {"low": image}


def test_backbone():
    backbone = TinyBackbone()
    assert backbone.output_shape() == {
        "low": ShapeSpec(channels=3, stride=4),
        "high": ShapeSpec(channels=6, stride=8),
    }
    assert backbone.size_divisibility == 0
    assert backbone.padding_constraints == {}
    assert set(backbone(torch.zeros(1))) == {"low"}
    assert isinstance(backbone, torch.nn.Module)
    with pytest.raises(TypeError):
        Backbone()


def test_networks_can_be_registered_and_found():
    name = "ContractBackbone"
    if name not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(type(name, (TinyBackbone,), {}))
    assert issubclass(BACKBONE_REGISTRY.get(name), Backbone)


def test_sem_seg_postprocess():
    scores = torch.randn(3, 8, 8)
    got = sem_seg_postprocess(scores, (6, 5), 12, 9)
    expected = F.interpolate(
        scores[None, :, :6, :5], size=(12, 9), mode="bilinear", align_corners=False
    )[0]
    assert got.shape == (3, 12, 9)
    assert torch.allclose(got, expected)


def test_image_list_pads_at_the_right_and_bottom():
    images = [torch.ones(3, 4, 7), torch.ones(3, 6, 5)]
    batch = ImageList.from_tensors(images, pad_value=9.0)
    assert batch.tensor.shape == (2, 3, 6, 7)
    assert [tuple(size) for size in batch.image_sizes] == [(4, 7), (6, 5)]
    assert len(batch) == 2
    for index, image in enumerate(images):
        assert torch.equal(batch[index], image)
    assert (batch.tensor[0, :, 4:] == 9).all()
    assert (batch.tensor[1, :, :, 5:] == 9).all()
    assert batch[0].data_ptr() == batch.tensor[0].data_ptr(), "a view"


@pytest.mark.parametrize("count", [1, 2])
def test_image_list_rounds_up(count):
    batch = ImageList.from_tensors([torch.ones(3, 4, 7)] * count, size_divisibility=4)
    assert batch.tensor.shape == (count, 3, 4, 8)
    assert (batch.tensor[..., 7:] == 0).all()
    assert batch[0].shape == (3, 4, 7)


def test_image_list_padding_constraints():
    images = [torch.ones(3, 4, 7), torch.ones(3, 6, 5)]
    square = ImageList.from_tensors(images, padding_constraints={"square_size": 10})
    assert square.tensor.shape == (2, 3, 10, 10)
    divided = ImageList.from_tensors(images, padding_constraints={"size_divisibility": 4})
    assert divided.tensor.shape == (2, 3, 8, 8)


def test_image_list_keeps_leading_dimensions():
    clips = [torch.ones(2, 3, 4, 7), torch.ones(2, 3, 6, 5)]
    batch = ImageList.from_tensors(clips)
    assert batch.tensor.shape == (2, 2, 3, 6, 7)
    assert batch[1].shape == (2, 3, 6, 5)


def test_image_list_to_and_device():
    batch = ImageList.from_tensors([torch.ones(1, 2, 3)])
    double = batch.to(torch.float64)
    assert double.tensor.dtype == torch.float64
    assert batch.tensor.dtype == torch.float32
    assert double.image_sizes == batch.image_sizes
    assert batch.device == torch.device("cpu")


@pytest.mark.parametrize("images", [[], [torch.ones(3, 4, 4), torch.ones(1, 4, 4)]])
def test_image_list_refuses(images):
    with pytest.raises(AssertionError):
        ImageList.from_tensors(images)
