"""The residual block: the kernel in the interpreter, its reference, and what torch sees of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrestore.errors import InputError
from fastrestore.kernels import launch, tiles
from fastrestore.kernels import residual_block as module
from fastrestore.kernels.operator import Case
from fastrestore.kernels.residual_block import OPERATOR, residual_block, weights

# Without a CUDA device the interpreter runs, on the CPU; with one, the compiled kernels.
DEVICE = torch.device("cpu" if launch.INTERPRETED else "cuda")
TOLERANCE = OPERATOR.tolerance[0]
GRADIENT_NAMES = ("x", "w3", "b3", "w1", "b1")


def level(n: int, height: int, width: int, channels: int, dilation: int) -> tuple[Any, ...]:
    """Inputs whose x has exactly this size."""
    step = module.REDUCTION[channels]
    options = {"channels": channels, "dilation": dilation}
    return module.inputs(Case(n, height * step, width * step, options), DEVICE, 7)


def exact(x: Tensor, w3: Tensor, b3: Tensor, w1: Tensor, b1: Tensor, dilation: int) -> Tensor:
    """The definition by loops over taps, float64, the intermediate rounded to float16."""
    n, height, width, channels = x.shape
    total = b3.double().expand(n, height, width, channels).clone()
    for tap in range(9):
        dy, dx = (tap // 3 - 1) * dilation, (tap % 3 - 1) * dilation
        kernel = w3[tap * channels : (tap + 1) * channels].double()
        rows = slice(max(0, -dy), height - max(0, dy))
        columns = slice(max(0, -dx), width - max(0, dx))
        if rows.stop > rows.start and columns.stop > columns.start:
            there = x.double()[
                :, rows.start + dy : rows.stop + dy, columns.start + dx : columns.stop + dx
            ]
            total[:, rows, columns] += there @ kernel
    hidden = total.clamp(min=0).half().double()
    return x.double() + hidden @ w1.double() + b1.double()


def in_half(x: Tensor, w3: Tensor, b3: Tensor, w1: Tensor, b1: Tensor, dilation: int) -> Tensor:
    """Two convolutions of torch in float16, as they would run without the kernel."""
    c = x.shape[3]
    conv3 = w3.reshape(3, 3, c, c).permute(3, 2, 0, 1)
    conv1 = w1.T.reshape(c, c, 1, 1)
    planar = x.permute(0, 3, 1, 2)
    conv2d = nn.functional.conv2d
    hidden = conv2d(planar, conv3, b3.half(), padding=dilation, dilation=dilation).relu()
    return (planar + conv2d(hidden, conv1, b1.half())).permute(0, 2, 3, 1)


def error(y: Tensor, expected: Tensor) -> float:
    return float((y.double() - expected).abs().max())


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results start as NaN: what a kernel does not write shows."""

    def allocate(shape: Any, dtype: torch.dtype, like: Tensor) -> Tensor:
        return torch.full(tuple(shape), float("nan"), dtype=dtype, device=like.device)

    monkeypatch.setattr(launch, "allocate", allocate)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", OPERATOR.cases, ids=str)
def test_kernel_is_right_and_at_most_twice_as_far_off_as_torch(case: Case) -> None:
    inputs = OPERATOR.inputs(case, DEVICE, 3)
    expected = exact(*inputs)
    y = residual_block(*inputs)
    assert y.dtype == torch.float16
    assert y.shape == inputs[0].shape
    assert error(y, expected) <= TOLERANCE
    assert error(y, expected) <= 2 * error(in_half(*inputs), expected)


def test_cases_hold_every_width_and_dilation_and_a_picture_below_the_dilation() -> None:
    options = {(c.options["channels"], c.options["dilation"]) for c in OPERATOR.cases}
    assert options == {(c, d) for c in tiles.WIDTHS for d in module.DILATIONS}
    shapes = [
        (OPERATOR.inputs(c, DEVICE, 0)[0].shape, c.options["dilation"]) for c in OPERATOR.cases
    ]
    assert any(max(shape[1:3]) < d for shape, d in shapes)
    assert any(shape[0] > 1 for shape, _ in shapes)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1)])
def test_borders_of_lines_and_of_a_single_pixel(height: int, width: int) -> None:
    for dilation in (1, 8):
        inputs = level(1, height, width, 16, dilation)
        assert error(residual_block(*inputs), exact(*inputs)) <= TOLERANCE


@pytest.mark.usefixtures("poisoned")
def test_every_program_of_a_larger_picture() -> None:
    inputs = level(2, 9, 11, 16, 2)  # 198 pixels: four programs, the last one ragged
    assert inputs[0].shape[:3].numel() > 3 * tiles.choose(16, 198).block_m
    assert error(residual_block(*inputs), exact(*inputs)) <= TOLERANCE


@pytest.mark.parametrize("channels", tiles.WIDTHS)
def test_large_tiles_are_as_right_as_small_ones(channels: int) -> None:
    *inputs, _ = level(1, 10, 13, channels, 1)
    x, w3, b3, w1, b1 = inputs
    y = torch.full_like(x, float("nan"))
    record = module.form(channels, 1, tiles.choose(channels, tiles.MANY_PIXELS))
    module.compute(record, x, w3, b3, w1, b1, y)
    assert error(y, exact(x, w3, b3, w1, b1, 1)) <= TOLERANCE


def test_nothing_leaks_between_the_pictures_of_a_batch() -> None:
    x, *rest = level(3, 3, 5, 16, 4)
    x[0] = float("nan")
    x[2] = float("nan")
    y = residual_block(x, *rest)
    assert error(y[1:2], exact(x[1:2], *rest)) <= TOLERANCE


def test_a_nan_spreads_as_in_torch() -> None:
    x, *rest = level(1, 5, 7, 16, 1)
    x[0, 2, 3, 5] = float("nan")
    spread = residual_block(x, *rest).isnan()
    assert spread[0, 1:4, 2:5].all()
    assert torch.equal(spread, in_half(x, *rest).isnan())


def test_reference_is_the_definition_in_every_float_type() -> None:
    x, w3, b3, w1, b1, dilation = level(2, 4, 5, 32, 2)
    expected = exact(x, w3, b3, w1, b1, dilation)
    assert error(OPERATOR.reference(x, w3, b3, w1, b1, dilation), expected) <= TOLERANCE
    wide = [t.double() for t in (x, w3, b3, w1, b1)]
    y = OPERATOR.reference(*wide, dilation)
    assert y.dtype == torch.float64
    assert error(y, expected) < 1e-3  # an intermediate may round the other way


def test_weights_are_those_of_torch() -> None:
    torch.manual_seed(4)
    conv3, conv1 = nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.Conv2d(16, 16, 1)
    x = torch.randn(1, 16, 5, 6).half()
    with torch.no_grad():
        expected = x + conv1(conv3(x.float()).relu())
        given = weights(conv3.weight, conv3.bias, conv1.weight, conv1.bias)
        y = residual_block(x.permute(0, 2, 3, 1).contiguous(), *given, 2)
    torch.testing.assert_close(y.permute(0, 3, 1, 2).float(), expected, atol=TOLERANCE, rtol=0)


def test_weights_of_another_shape_are_refused() -> None:
    conv3, conv1, bias = torch.zeros(16, 16, 3, 3), torch.zeros(16, 16, 1, 1), torch.zeros(16)
    with pytest.raises(InputError, match="residual_block: conv1 must be"):
        weights(conv3, bias, conv1[:8], bias)
    with pytest.raises(InputError, match="residual_block: conv3 must be"):
        weights(torch.zeros(16, 16, 1, 1), bias, conv1, bias)


def test_gradients_are_those_of_torch() -> None:
    torch.manual_seed(5)
    conv3, conv1 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
    leaves = [p for layer in (conv3, conv1) for p in (layer.weight, layer.bias)]
    x = torch.randn(1, 16, 4, 5).half().float().requires_grad_()
    pull = torch.randn(1, 16, 4, 5)
    expected = torch.autograd.grad((x + conv1(conv3(x).relu())), [x, *leaves], pull)
    rows = x.permute(0, 2, 3, 1).contiguous().half()
    y = residual_block(rows, *weights(*leaves), 1).permute(0, 3, 1, 2).float()
    for found, want in zip(torch.autograd.grad(y, [x, *leaves], pull), expected, strict=True):
        # Float16 weights and a rounded intermediate: a sign of ReLU may differ near zero.
        assert float((found - want).norm() / want.norm()) < 3e-3


def test_only_the_gradients_asked_for_are_computed() -> None:
    x, w3, b3, w1, b1, dilation = level(1, 2, 3, 16, 1)
    b1.requires_grad_()
    residual_block(x, w3, b3, w1, b1, dilation).sum().backward()
    assert b1.grad is not None
    torch.testing.assert_close(b1.grad, torch.full_like(b1, 6.0))


def test_torch_accepts_the_operator() -> None:
    *tensors, dilation = level(1, 2, 3, 16, 1)
    tensors = [t.requires_grad_() for t in tensors]
    op = torch.ops.fastrestore.residual_block.default
    torch.library.opcheck(op, (*tensors, dilation))


def test_compile_sees_one_node() -> None:
    inputs = level(1, 3, 4, 16, 2)
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(n.target for n in graph.graph.nodes if n.op == "call_function")
        return graph.forward

    torch.compile(residual_block, backend=backend, fullgraph=True)(*inputs)
    calls = [str(target) for target in seen if "getitem" not in str(target)]
    assert calls == ["fastrestore.residual_block.default"]
    compiled = torch.compile(residual_block, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), residual_block(*inputs))


def test_export_sees_one_node_of_any_size() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor, w3: Tensor, b3: Tensor, w1: Tensor, b1: Tensor) -> Tensor:
            return residual_block(x, w3, b3, w1, b1, 2)

    *tensors, _ = level(1, 3, 4, 16, 2)
    sizes = {1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)}
    exported = torch.export.export(
        Block(), tuple(tensors), dynamic_shapes=(sizes, None, None, None, None)
    )
    calls = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    assert calls == ["fastrestore.residual_block.default"]
    other = level(1, 5, 2, 16, 2)
    assert torch.equal(exported.module()(*other[:5]), residual_block(*other))


@pytest.mark.parametrize(
    ("argument", "bad", "says"),
    [
        ("x", lambda x: x.float(), "x must be float16"),
        ("x", lambda x: x[0], "x must be float16"),
        ("x", lambda x: x[:, :0], "x must be float16"),
        ("x", lambda x: x.transpose(1, 2), "x is not contiguous"),
        ("x", lambda x: torch.zeros(1, 3, 4, 24).half(), "x has 24 channels"),
        ("w3", lambda w: w[:144, :8].contiguous(), "w3 must be"),
        ("w3", lambda w: w.float(), "w3 must be float16"),
        ("b3", lambda b: b.half(), "b3 must be float32"),
        ("w1", lambda w: w.T, "w1 is not contiguous"),
        ("b1", lambda b: b[:15], "b1 must be"),
        ("b1", lambda b: b.to("meta"), "b1 is on meta"),
        ("dilation", lambda d: 3, "dilation is 3"),
        ("dilation", lambda d: 1.0, "dilation must be an int, got float"),
        ("dilation", lambda d: True, "dilation must be an int, got bool"),
        ("dilation", lambda d: torch.tensor([1, 2]), "dilation must be an int, got Tensor"),
        ("w1", lambda w: None, "w1 must be a tensor, got NoneType"),
    ],
)
def test_bad_arguments_are_named(argument: str, bad: Any, says: str) -> None:
    inputs = dict(zip((*GRADIENT_NAMES, "dilation"), level(1, 3, 4, 16, 1), strict=True))
    inputs[argument] = bad(inputs[argument])
    with pytest.raises(InputError, match=f"^residual_block: {says}") as caught:
        residual_block(**inputs)
    assert "\n" not in str(caught.value)


def test_traffic_counts_two_tensors_and_the_weights() -> None:
    case = Case(2, 4, 6, {"channels": 32, "dilation": 1})
    found = OPERATOR.traffic(case)
    x, w3, b3, w1, b1, _ = OPERATOR.inputs(case, DEVICE, 0)
    assert found.read == sum(t.numel() * t.element_size() for t in (x, w3, b3, w1, b1))
    assert found.written == x.numel() * 2
    assert found.flops == 2 * 2 * 2 * 3 * (9 * 32 * 32 + 32 * 32)


def test_launches_have_names_of_their_own_and_hold_every_block_of_the_presets() -> None:
    found = {record.name: record for record in OPERATOR.launches()}
    assert len(found) == len(list(OPERATOR.launches()))
    wanted = {f"residual_block_c{c}_d{d}" for c in tiles.WIDTHS for d in module.DILATIONS}
    plugins = {name for name, record in found.items() if record.plugin}
    assert plugins == {
        *(f"residual_block_plugin_c{c}_d1" for c in tiles.WIDTHS),
        *(f"residual_block_plugin_c{c}_d{d}" for c in (64, 128) for d in (2, 4)),
        "residual_block_plugin_c128_d8",
    }
    assert wanted <= found.keys() - plugins
    for record in found.values():
        biases = {record.arguments["b3_ptr"], record.arguments["b1_ptr"]}
        assert biases == {"*fp16" if record.plugin else "*fp32"}


def test_plugin_takes_biases_in_half() -> None:
    x, w3, b3, w1, b1, dilation = level(1, 3, 5, 64, 4)
    found = {record.name: record for record in OPERATOR.launches()}
    y = torch.full_like(x, float("nan"))
    module.compute(found["residual_block_plugin_c64_d4"], x, w3, b3.half(), w1, b1.half(), y)
    assert error(y, exact(x, w3, b3.half(), w1, b1.half(), dilation)) <= TOLERANCE
