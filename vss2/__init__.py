"""vss2: video segmentation methods side by side, on detectron2's ways.

The public API is `load`, `env_report` and `__version__`, with `vss2.evaluation.score_vss` and the
methods of a loaded model (`predict_clip`, `new_session`) and of its session. Everything is
imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

__version__ = "0.1.0"
__all__ = ["__version__", "env_report", "load"]


def load(
    config: str,
    weights: str | Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
    device: str | torch.device | None = None,
) -> nn.Module:
    """A model from a config, in eval mode.

    Args:
        config: a path, or a short name such as "segformer/segformer_mit_b0_vspw".
        weights: a published checkpoint, a vss2 checkpoint, or a .safetensors file; or such files by
            part, {"fine": ..., "semantic": ...} for fused SFC. They must fill the model whole.
            None leaves the model as initialised.
        overrides: `key=value` strings on the config, as on the command line.
        device: where the model goes; default the config's `train.device`, else cuda if present,
            else cpu.

    Returns:
        The model; its config is at `model.cfg`.

    Raises:
        vss2.errors.InputError: unknown config or key; missing, damaged or foreign weights.
    """
    from .loading import load_model

    return load_model(config, weights, overrides, device)


def env_report() -> str:
    """Versions, backend and hardware, one per line, for logs and bug reports."""
    from .env import env_report as report

    return report()


def __getattr__(name: str) -> Any:
    # `vss2.evaluation.score_vss` works after a bare `import vss2`.
    if name == "evaluation":
        import importlib

        return importlib.import_module("vss2.evaluation")
    raise AttributeError(f"module 'vss2' has no attribute {name!r}")
