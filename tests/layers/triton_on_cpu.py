"""Runs the Triton kernels by Triton's interpreter, or compiles them for a GPU that is not there.

TRITON_INTERPRET=1 python triton_on_cpu.py interpret   # largest relative errors, as JSON
python triton_on_cpu.py compile                        # PTX code, as JSON
"""

from __future__ import annotations

import contextlib
import json
import sys
from types import SimpleNamespace

import torch
from msda_backends import Backend, make_inputs

from vss2.layers.ms_deform_attn import triton_backend


def interpret() -> dict[str, float]:
    module = SimpleNamespace(device=lambda device: contextlib.nullcontext())
    torch.get_device_module = lambda device: module
    triton_backend.TILE = 16  # several programs, the last one not full
    inputs = make_inputs("triton", [[5, 3], [1, 1]], channels=6, queries=5, points=2)
    inputs.locations[0, 0, 0, 0, 0, 0] = float("nan")
    inputs.locations[0, 0, 0, 0, 1, 1] = 1e30
    expected = Backend("torch")(inputs)
    errors = {}
    for dtype in (torch.float64, torch.float32):
        for key, result in Backend("triton")(inputs.to(dtype)).items():
            error = (result.double() - expected[key]).abs().max() / expected[key].abs().max()
            errors[f"{key} {dtype}"] = float(error)
    return errors


def compile_kernels() -> dict[str, str]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vss2.layers.ms_deform_attn import triton_kernels

    pointers = {"value": "*bf16", "out": "*bf16", "grad_out": "*bf16", "levels": "*i32"}
    floats = ("locations", "weights", "grad_value", "grad_locations", "grad_weights")
    pointers |= dict.fromkeys(floats, "*fp32")
    constants = {"LEVELS": 3, "POINTS": 2, "BLOCK_Q": 16, "BLOCK_D": 32}
    code = {}
    for kernel in (triton_kernels.forward_kernel, triton_kernels.backward_kernel):
        signature = {
            name: "constexpr" if name in constants else pointers.get(name, "i32")
            for name in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        code[kernel.__name__] = compiled.asm["ptx"]
    return code


if __name__ == "__main__":
    print(json.dumps(interpret() if sys.argv[1] == "interpret" else compile_kernels()))
