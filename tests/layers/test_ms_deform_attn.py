"""Multi-scale deformable attention: the op, its choice of a backend and its module."""

from __future__ import annotations

import logging

import pytest
import torch
from msda_backends import Backend, Inputs, close, make_inputs

from vss2.errors import InputError
from vss2.layers.ms_deform_attn import MSDeformAttn, backend_name, choice, cpu_backend
from vss2.layers.ms_deform_attn import ms_deform_attn as op

SHAPES = [[4, 3], [1, 1]]


@pytest.fixture
def forced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    Backend(request.param).skip_if_missing()
    monkeypatch.setenv("VSS2_MSDEFORM", request.param)
    return request.param


on_each = pytest.mark.parametrize("forced", ["torch", "cpu"], indirect=True)


def call(inputs: Inputs) -> torch.Tensor:
    return op(*inputs[:5])


def module_inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 7, 16, generator=generator, dtype=dtype)
    reference = torch.rand(2, 7, 2, 2, generator=generator, dtype=dtype)
    tokens = torch.randn(2, 13, 16, generator=generator, dtype=dtype)
    return query, reference, tokens, torch.tensor(SHAPES), torch.tensor([0, 12])


@on_each
@pytest.mark.parametrize("channels", [30, 32, 64, 71])
def test_gradients_are_those_of_finite_differences(forced: str, channels: int) -> None:
    inputs = make_inputs(
        "differences", SHAPES, batch=1, heads=1, channels=channels, queries=2, points=2
    )
    given = [x.requires_grad_() for x in (inputs.value, inputs.locations, inputs.weights)]

    def function(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor):
        return op(value, inputs.shapes, inputs.starts, locations, weights)

    assert torch.autograd.gradcheck(function, given, fast_mode=True)


@on_each
def test_registration(forced: str) -> None:
    inputs = make_inputs("registration", SHAPES).to(torch.float32)
    given = [
        x.requires_grad_() if x.is_floating_point() else x for x in map(torch.clone, inputs[:5])
    ]
    torch.library.opcheck(torch.ops.vss2.ms_deform_attn.default, given)
    plain = [x.detach() for x in given]
    torch.library.opcheck(
        torch.ops.vss2.ms_deform_attn_backward.default, [inputs.grad.clone(), *plain]
    )


@on_each
def test_compiled_whole(forced: str) -> None:
    module, inputs = MSDeformAttn(16, 2, 4, 3), module_inputs()
    with torch.no_grad():
        module.sampling_offsets.weight.normal_(std=0.1)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    results = []
    for function in (module, compiled):
        module.zero_grad()
        output = function(*inputs)
        output.square().sum().backward()
        grads = [parameter.grad.clone() for parameter in module.parameters()]
        results.append([output.detach(), *grads])
    for actual, expected in zip(*results, strict=True):
        close(actual, expected, 1e-5)
    longer = [torch.cat([x, x], dim=1) for x in inputs[:2]]
    close(compiled(*longer, *inputs[2:]), module(*longer, *inputs[2:]), 1e-5)


def test_exported() -> None:
    module, inputs = MSDeformAttn(16, 2, 4, 3).eval(), module_inputs()
    program = torch.export.export(module, inputs)
    names = [str(node.target) for node in program.graph.nodes]
    assert "vss2.ms_deform_attn.default" in names
    close(program.module()(*inputs), module(*inputs), 1e-6)


@on_each
def test_autocast(forced: str) -> None:
    module, inputs = MSDeformAttn(16, 2, 4, 3), module_inputs()
    expected = module(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(*inputs)
        output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    close(output, expected, 0.05)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name


def test_half_locations_are_taken_in_float32() -> None:
    inputs = make_inputs("half locations", SHAPES).to(torch.bfloat16)
    output = call(inputs)
    assert output.dtype == torch.bfloat16
    close(output, call(inputs.to(torch.float32)), 2**-8 * 1.01)


@on_each
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}, {"points": 0}])
def test_nothing_to_do(forced: str, sizes: dict) -> None:
    inputs = make_inputs("nothing", SHAPES, **sizes)
    given = [x.requires_grad_() for x in (inputs.value, inputs.locations, inputs.weights)]
    output = call(inputs)
    assert output.shape == inputs.grad.shape
    output.sum().backward()
    assert (output == 0).all()
    for x in given:
        assert x.grad is not None
        assert x.grad.shape == x.shape
        assert (x.grad == 0).all()


@on_each
def test_nan_stays_where_it_is(forced: str) -> None:
    inputs = make_inputs("nan", SHAPES)
    inputs.locations[0, 2] = float("nan")
    output = call(inputs)
    assert output.isfinite().all()
    assert (output[0, 2] == 0).all()


def test_levels_may_lie_anywhere_in_the_tokens() -> None:
    inputs = make_inputs("order", [[3, 4], [2, 2]])
    parts = inputs.value.split([12, 4], dim=1)
    hole = torch.full_like(parts[1], float("nan"))
    moved = inputs._replace(
        value=torch.cat([parts[1], hole, parts[0]], dim=1), starts=torch.tensor([8, 0])
    )
    close(call(moved), call(inputs), 1e-14)


def test_default_and_what_is_forced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("VSS2_MSDEFORM", raising=False)
    built = cpu_backend.missing(torch.device("cpu"), torch.float32) is None
    choice._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger=choice.__name__):
        for _ in range(3):
            assert backend_name("cpu") == ("cpu" if built else "torch")
    assert len(caplog.records) == 1
    assert "float32: backend" in caplog.text
    monkeypatch.setenv("VSS2_MSDEFORM", "torch")
    assert backend_name("cpu") == "torch"
    for name in ("cuda", "triton"):
        monkeypatch.setenv("VSS2_MSDEFORM", name)
        with pytest.raises(InputError, match=rf"VSS2_MSDEFORM={name} cannot .* on cpu"):
            call(make_inputs("forced", SHAPES))
    monkeypatch.setenv("VSS2_MSDEFORM", "tritn")
    with pytest.raises(InputError, match=r"there are cuda, triton, cpu, torch.*mean 'triton'"):
        backend_name("cpu")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VSS2_MSDEFORM", raising=False)
    monkeypatch.setattr(cpu_backend, "missing_reason", lambda *_: "there is no C++ compiler")
    assert backend_name("cpu") == "torch"
    monkeypatch.setenv("VSS2_MSDEFORM", "cpu")
    with pytest.raises(InputError, match="there is no C\\+\\+ compiler"):
        backend_name("cpu")


def test_an_exception_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise MemoryError("no memory left")

    monkeypatch.delenv("VSS2_MSDEFORM", raising=False)
    chosen = choice.choose(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(chosen, "forward", fail)
    with pytest.raises(MemoryError, match="no memory left"):
        call(make_inputs("failing", SHAPES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.zeros(2, 13, 16)}, r"value must be .* \[N, S, M, D\]"),
        ({"value": torch.zeros(2, 13, 2, 8, dtype=torch.int64)}, "found torch.int64"),
        ({"locations": torch.zeros(2, 5, 2, 2, 3)}, "sampling_locations must be"),
        ({"locations": torch.zeros(2, 5, 2, 2, 3, 3)}, r"\(2, 5, 2, 2, 3, 2\), found"),
        ({"weights": torch.zeros(2, 5, 2, 3, 2)}, "attention_weights must have shape"),
        ({"weights": torch.zeros(2, 5, 2, 2, 3, device="meta")}, "found torch.float32 on meta"),
        ({"shapes": torch.tensor([[4, 3, 1], [1, 1, 1]])}, "spatial_shapes must have shape"),
        ({"starts": torch.tensor([0])}, "level_start_index must have shape"),
        ({"starts": torch.tensor([0, 13])}, "1x1 tokens from token 13 on does not lie .* 13"),
        ({"starts": torch.tensor([-1, 0])}, "from token -1 on"),
        ({"shapes": torch.tensor([[4, 4], [1, 1]])}, "4x4 tokens"),
        ({"shapes": torch.tensor([[4, 0], [1, 1]])}, "4x0 tokens"),
    ],
)
def test_what_does_not_fit(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(make_inputs("unfit", SHAPES)._replace(**change))


def test_module_starts_as_published() -> None:
    module = MSDeformAttn(32, num_levels=3, num_heads=8, num_points=4)
    bias = module.sampling_offsets.bias.detach().view(8, 3, 4, 2)
    assert torch.equal(bias[:, 0], bias[:, 2])
    expected = {0: [1.0, 0.0], 1: [1.0, 1.0], 2: [0.0, 1.0], 5: [-1.0, -1.0], 6: [0.0, -1.0]}
    for head, direction in expected.items():
        close(bias[head, 1, 2], 3 * torch.tensor(direction), 1e-6)
    zeros = (module.sampling_offsets.weight, module.attention_weights.weight)
    zeros += (module.attention_weights.bias, module.value_proj.bias, module.output_proj.bias)
    assert all((x == 0).all() for x in zeros)
    assert module.value_proj.weight.abs().max() <= (6 / 64) ** 0.5
    assert module.value_proj.weight.std() > 0.1


def test_module_bad_arguments() -> None:
    with pytest.raises(InputError, match="embed_dim 30 is not a multiple of num_heads 8"):
        MSDeformAttn(30)
    query, _, *others = module_inputs()
    with pytest.raises(InputError, match=r"reference_points must end in 2 .* \(2, 7, 2, 3\)"):
        MSDeformAttn(16, 2, 4, 3)(query, torch.zeros(2, 7, 2, 3), *others)


def test_padding_is_zero_and_boxes_scale_offsets() -> None:
    module, (query, reference, tokens, shapes, starts) = MSDeformAttn(16, 2, 4, 3), module_inputs()
    padding = torch.zeros(2, 13, dtype=torch.bool)
    padding[0, 5:] = True
    garbage = torch.where(padding[..., None], 1e4, tokens)
    masked = [module(query, reference, x, shapes, starts, padding) for x in (tokens, garbage)]
    assert torch.equal(*masked)
    # A box of 2P/W by 2P/H makes an offset of 1 one pixel, as with points.
    sizes = 2 * 3 / shapes.flip(-1).float()
    boxes = torch.cat([reference, sizes.expand_as(reference)], dim=-1)
    close(
        module(query, boxes, tokens, shapes, starts),
        module(query, reference, tokens, shapes, starts),
        1e-5,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_module_on_a_gpu(dtype: torch.dtype) -> None:
    """The level tables stay on the CPU, as they may; the results are those of the CPU."""
    torch.manual_seed(0)
    module, inputs = MSDeformAttn(16, 2, 4, 3), module_inputs()
    expected = module(*inputs)
    expected.square().sum().backward()
    grads = {name: x.grad for name, x in module.named_parameters()}
    module.zero_grad()
    module.cuda()
    moved = [x.cuda() for x in inputs[:3]]
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = torch.compile(module, fullgraph=True, backend="aot_eager")(*moved, *inputs[3:])
    output.float().square().sum().backward()
    assert output.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    close(output.cpu(), expected, tolerance)
    for name, parameter in module.named_parameters():
        close(parameter.grad.cpu(), grads[name], tolerance)
