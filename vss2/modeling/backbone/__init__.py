"""Image backbones: each maps images to a dict of feature maps by name."""

from .mit import MixTransformer
from .resnet import ResNet
from .timm import TimmBackbone

__all__ = ["MixTransformer", "ResNet", "TimmBackbone"]
