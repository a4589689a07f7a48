"""Multi-scale deformable attention: the op, its backends and the module around it."""

from .choice import backend_name
from .module import MSDeformAttn
from .op import ms_deform_attn

__all__ = ["MSDeformAttn", "backend_name", "ms_deform_attn"]
