"""Every operator keeps what it says of itself; kernels in the interpreter, results poisoned."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrestore.errors import InputError
from fastrestore.kernels import launch
from fastrestore.kernels.operator import Axis, Case, Launch, Operator
from fastrestore.kernels.registry import OPERATORS, launches

CPU = torch.device("cpu")
CASES = [(operator, case) for operator in OPERATORS.values() for case in operator.cases]
NAMES = [f"{operator.name} {case}" for operator, case in CASES]
TILED = {"residual_block"}  # a table of tiles for the card at hand may name others than ship
interpreted = pytest.mark.skipif(
    not launch.INTERPRETED, reason="kernels run on the GPU here, not in the interpreter"
)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Launches that a test causes; memory for results is poisoned before they run."""
    seen: list[Launch] = []
    call, allocate = Launch.__call__, launch.allocate

    def record(self: Launch, *arguments: Any) -> None:
        seen.append(self)
        call(self, *arguments)

    def poison(*arguments: Any) -> torch.Tensor:
        memory = allocate(*arguments)
        return memory.fill_(float("nan") if memory.is_floating_point() else 0xA5)

    monkeypatch.setattr(Launch, "__call__", record)
    monkeypatch.setattr(launch, "allocate", poison)
    return seen


def outputs(result: Any) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def widen(value: Any) -> Any:
    wide = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if wide else value


def untiled(form: Launch) -> Launch:
    """Forget what a tile decides."""
    constants = {k: v for k, v in form.constants.items() if not k.startswith("block_")}
    axes = tuple(axis._replace(per=1) for axis in form.grid)
    return replace(form, name="", constants=constants, grid=axes, warps=4, stages=2)


@interpreted
@pytest.mark.parametrize(("operator", "case"), CASES, ids=NAMES)
def test_kernels_agree_with_the_reference_in_float64(
    operator: Operator, case: Case, ran: list[Launch]
) -> None:
    inputs = operator.inputs(case, CPU, 7)
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    got = outputs(operator.run(*inputs))
    want = outputs(operator.reference(*(widen(x) for x in copies)))
    assert len(got) == len(want) == len(operator.tolerance)
    for i, (g, w, tolerance) in enumerate(zip(got, want, operator.tolerance, strict=True)):
        assert g.shape == w.shape
        assert g.is_contiguous()
        error = (g.double() - w.double()).abs().max().item()
        assert error <= tolerance, f"output {i}: error {error:.3g}, allowed {tolerance:.3g}"
    for x, copy in zip(inputs, copies, strict=True):  # nothing is written but results
        assert not isinstance(x, torch.Tensor) or torch.equal(x, copy)
    assert ran, "no kernel ran"
    shipped = list(operator.launches())
    if operator.name in TILED:
        shipped, ran = [untiled(form) for form in shipped], [untiled(form) for form in ran]
    for form in ran:  # what runs has passed the ahead-of-time gate
        assert form in shipped, f"{form.name} is not among the launches"


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_op_is_sound(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema, fake results, autograd and tracing, as torch's own checker sees them."""
    monkeypatch.setattr(launch, "INTERPRETED", False)  # it runs the op a dozen times
    smallest = min(operator.cases, key=lambda case: case.n * case.height * case.width)
    inputs = list(operator.inputs(smallest, CPU, 3))
    for i in operator.differentiable:
        inputs[i] = inputs[i].clone().requires_grad_()
    op = getattr(torch.ops.fastrestore, operator.name).default
    torch.library.opcheck(op, tuple(inputs))


@pytest.mark.parametrize(("operator", "case"), CASES, ids=NAMES)
def test_reference_and_fake_have_the_same_results(operator: Operator, case: Case) -> None:
    inputs = operator.inputs(case, CPU, 1)
    want = outputs(operator.reference(*inputs))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs]
        got = outputs(operator.run(*fakes))
    assert [(g.shape, g.dtype) for g in got] == [(w.shape, w.dtype) for w in want]


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_inputs_are_seeded(operator: Operator) -> None:
    first, again, other = (operator.inputs(operator.cases[0], CPU, seed) for seed in (5, 5, 6))
    tensors = [i for i, x in enumerate(first) if isinstance(x, torch.Tensor)]
    assert all(torch.equal(first[i], again[i]) for i in tensors)
    assert any(not torch.equal(first[i], other[i]) for i in tensors)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_traffic_and_variants_are_those_of_the_op(operator: Operator) -> None:
    assert operator.cases
    assert operator.variants
    for options in operator.variants:
        small, large = (operator.traffic(Case(1, side, side, options)) for side in (64, 128))
        assert small.read > 0
        assert small.written > 0
        assert small.flops >= 0
        assert small.read < large.read < 5 * small.read  # at most, it grows as the picture does
        assert small.written < large.written < 5 * small.written


def test_names_are_unique() -> None:
    assert list(OPERATORS) == [
        "pull_push",
        "pack",
        "unpack",
        "sobel",
        "edge_loss",
        "residual_block",
    ]
    names = [form.name for form in launches()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("form", launches(), ids=lambda form: form.name)
def test_launch_is_what_the_compiler_needs(form: Launch) -> None:
    assert re.fullmatch(r"[a-z]\w*", form.name)
    parameters = list(inspect.signature(form.kernel.fn).parameters)
    assert parameters == [*form.arguments, *form.constants]
    assert set(form.divisible) <= set(form.arguments)
    assert form.warps in (1, 2, 4, 8, 16)
    kinds = form.arguments.values()
    assert all(re.fullmatch(r"\*(u8|i8|i32|fp16|fp32)|i32|fp32", kind) for kind in kinds)
    assert not form.plugin or "fp32" not in kinds


@pytest.mark.parametrize(
    ("axis", "size", "most"),
    [(0, "columns", 2**31 - 1), (1, "rows", 65_535), (2, "n", 65_535)],
)
def test_more_programs_than_cuda_starts_are_refused(axis: int, size: str, most: int) -> None:
    started: list[Any] = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *_, **__: started.append(grid)

    grid = (Axis(("columns",), 4), Axis(("rows",), 4), Axis(("n",), 4))
    form = Launch("wide", Kernel(), {}, {}, grid)
    sizes = {"columns": 1, "rows": 1, "n": 1, size: 4 * most}
    form(sizes)
    assert started[0][axis] == most
    sizes[size] += 1
    line = rf"^wide: {size} = {4 * most + 1} takes {most + 1} programs along {'xyz'[axis]}, "
    with pytest.raises(InputError, match=line) as caught:
        form(sizes)
    assert "\n" not in str(caught.value)
    assert len(started) == 1
