"""Soft aggregation: probabilities of single objects to those of background and objects.

Oh et al., Video Object Segmentation using Space-Time Memory Networks, ICCV 2019, section 3.4.
"""

from __future__ import annotations

import torch

CLAMP = 1e-7


def aggregate_log_odds(prob: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Log-odds of background and objects; their softmax is the distribution.

    Args:
        prob: float, the objects along `dim`, each between 0 and 1.

    Returns:
        float32 with one more entry along `dim`, the background first.
    """
    with torch.autocast(device_type=prob.device.type, enabled=False):
        prob = prob.float()
        background = (1 - prob).prod(dim=dim, keepdim=True)
        both = torch.cat([background, prob], dim=dim).clamp(CLAMP, 1 - CLAMP)
        return torch.log(both / (1 - both))


def soft_aggregate(prob: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """`prob` of objects to probabilities of background and objects that sum to one along `dim`."""
    return aggregate_log_odds(prob, dim).softmax(dim)
