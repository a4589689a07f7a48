"""What this process runs on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

PACKAGES = ("numpy", "opencv-python-headless", "omegaconf", "fvcore", "timm", "av")


def env_report() -> str:
    """Versions, backend and hardware, one per line."""
    import torch

    from . import __version__
    from .d2 import backend_info

    backend = backend_info()
    rows = [
        ("vss2", __version__),
        ("backend", f"{backend['name']} {backend['version']} ({backend['path']})"),
        ("python", f"{sys.version.split()[0]} on {platform.platform()}"),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda})"),
        *((name, _version(name)) for name in PACKAGES),
        ("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            rows.append((f"gpu {index}", f"{properties.name}, {memory:.0f} GiB"))
    else:
        rows.append(("gpu", "none"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
