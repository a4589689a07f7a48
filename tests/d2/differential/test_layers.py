"""Layers, norms, padded batches and resizing: the same tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.d2.differential.differences import REASON
from vss2.d2._embedded import layers, modeling, structures

real_layers = pytest.importorskip("detectron2.layers", reason=REASON)
real_modeling = pytest.importorskip("detectron2.modeling", reason=REASON)
real_structures = pytest.importorskip("detectron2.structures", reason=REASON)
real_post = pytest.importorskip("detectron2.modeling.postprocessing", reason=REASON)


def randomised(module, seed=0):
    """The same values in modules with the same state dict."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN", "LN"])
def test_norms(norm, training):
    ours, theirs = (
        randomised(module.get_norm(norm, 64)).train(training) for module in (layers, real_layers)
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 64, 3, 4, generator=torch.Generator().manual_seed(1))
    for value in (x, x.clone().requires_grad_()):
        assert torch.allclose(ours(value), theirs(value), atol=1e-5)


@pytest.mark.parametrize("norm", [None, "", "GN", "NoSuchNorm"])
def test_norms_that_are_none_or_refused(norm):
    results = []
    for module in (layers, real_layers):
        try:
            results.append(module.get_norm(norm, 33))
        except Exception as error:
            results.append(type(error))
    assert results[0] == results[1]


def test_fresh_frozen_norms_and_conversion():
    ours, theirs = layers.FrozenBatchNorm2d(4), real_layers.FrozenBatchNorm2d(4)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name])
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    sides = []
    for module in (layers, real_layers):
        net = nn.Sequential(nn.Conv2d(4, 4, 1), randomised(nn.BatchNorm2d(4)))
        randomised(net)
        sides.append(module.FrozenBatchNorm2d.convert_frozen_batchnorm(net)(x))
    assert torch.allclose(sides[0], sides[1], atol=1e-5)


def test_convolutions():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    sides = []
    for module in (layers, real_layers):
        conv = module.Conv2d(
            3, 64, 3, stride=2, padding=1, norm=module.get_norm("GN", 64), activation=torch.relu
        )
        randomised(conv)
        sides.append((sorted(conv.state_dict()), conv(x)))
    assert sides[0][0] == sides[1][0]
    assert torch.allclose(sides[0][1], sides[1][1], atol=1e-5)


def test_functions():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([0, 1, 2, 0])
    for kwargs in ({}, {"reduction": "sum"}, {"ignore_index": 0}):
        for size in (4, 0):
            if size == 0 and kwargs.get("reduction") == "sum":
                continue
            ours = layers.cross_entropy(logits[:size], target[:size], **kwargs)
            theirs = real_layers.cross_entropy(logits[:size], target[:size], **kwargs)
            assert torch.equal(ours, theirs)
    assert torch.equal(layers.cat([logits, logits], 1), real_layers.cat([logits, logits], 1))
    assert layers.cat([logits]) is real_layers.cat([logits]) is logits
    fields = {"channels": 1, "height": 2, "width": 3, "stride": 4}
    assert vars(layers.ShapeSpec(**fields)) == {
        name: getattr(real_layers.ShapeSpec(**fields), name) for name in fields
    }


@pytest.mark.parametrize("sizes", [[(4, 7)], [(4, 7), (6, 5)], [(8, 8), (8, 8), (1, 1)]])
@pytest.mark.parametrize("leading", [(3,), (2, 3)])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"size_divisibility": 4},
        {"size_divisibility": 32, "pad_value": 7.0},
        {"padding_constraints": {"size_divisibility": 8}},
        {"padding_constraints": {"square_size": 12}},
        {"padding_constraints": {"square_size": 12, "size_divisibility": 8}},
    ],
)
def test_image_lists(sizes, leading, kwargs):
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand((*leading, *size), generator=generator) for size in sizes]
    ours = structures.ImageList.from_tensors(images, **kwargs)
    theirs = real_structures.ImageList.from_tensors(images, **kwargs)
    assert torch.equal(ours.tensor, theirs.tensor)
    assert [tuple(s) for s in ours.image_sizes] == [tuple(s) for s in theirs.image_sizes]
    assert len(ours) == len(theirs)
    assert all(torch.equal(ours[i], theirs[i]) for i in range(len(images)))


@pytest.mark.parametrize("images", [[], [torch.ones(3, 4, 4), torch.ones(1, 4, 4)]])
def test_image_lists_that_are_refused(images):
    for module in (structures, real_structures):
        with pytest.raises(AssertionError):
            module.ImageList.from_tensors(images)


def test_resized_scores():
    scores = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    for size, target in (((16, 16), (8, 30)), ((11, 13), (40, 9))):
        ours = modeling.sem_seg_postprocess(scores, size, *target)
        theirs = real_post.sem_seg_postprocess(scores, size, *target)
        assert torch.allclose(ours, theirs)


def test_backbones():
    for module, spec in ((modeling, layers.ShapeSpec), (real_modeling, real_layers.ShapeSpec)):

        class Tiny(module.Backbone):
            def __init__(self):
                super().__init__()
                self._out_features = ["a"]
                self._out_feature_channels = {"a": 3}
                self._out_feature_strides = {"a": 4}

            def forward(self, x):
                return {"a": x}

        assert Tiny().output_shape() == {"a": spec(channels=3, stride=4)}
        assert Tiny().size_divisibility == 0
        assert Tiny().padding_constraints == {}
        with pytest.raises(TypeError):
            module.Backbone()
