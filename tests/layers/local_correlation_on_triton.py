"""Runs the Triton kernel by Triton's interpreter, or compiles it for a GPU that is not there.

TRITON_INTERPRET=1 python local_correlation_on_triton.py interpret   # differences, as JSON
python local_correlation_on_triton.py compile                        # PTX code
"""

from __future__ import annotations

import json
import math
import sys

import torch

from vss2.layers.local_correlation import torch_backend, triton_backend


def interpret() -> dict[str, float]:
    torch.manual_seed(0)
    triton_backend.BLOCK_CHANNELS = 4  # two blocks, the last one not full
    query, *keys = torch.randn(3, 6, 3, 5)
    arguments = (query, keys, [math.inf, 2.0], 3, [1, 2])
    expected = torch_backend.forward(*arguments)
    values, places = triton_backend.forward(*arguments)
    return {
        "values": float((values - expected[0]).abs().max()),
        "places": float((places != expected[1]).sum()),
    }


def compile_kernel() -> str:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vss2.layers.local_correlation.triton_kernel import best_kernel

    kinds = {"query": "*fp32", "key": "*fp32", "best": "*i64", "radius_squared": "fp32"}
    constants = {"SIDE": 4, "KEEP": 16, "BLOCK_C": 64}
    signature = {
        name: "constexpr" if name in constants else kinds.get(name, "i32")
        for name in best_kernel.arg_names
    }
    source = ASTSource(fn=best_kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


if __name__ == "__main__":
    print(json.dumps(interpret()) if sys.argv[1] == "interpret" else compile_kernel())
