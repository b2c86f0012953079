"""Every operator on a CUDA device: all cases, one large picture, and the PTX that ships."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="the extra kernels is not installed")

from fastrestore.kernels import launch, shipped  # noqa: E402
from fastrestore.kernels.operator import Case, Launch, Operator  # noqa: E402
from fastrestore.kernels.registry import OPERATORS, launches  # noqa: E402

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
CASES = [(operator, case) for operator in OPERATORS.values() for case in operator.cases]
LARGE = [
    (operator, Case(1, 1088, 1920, options))
    for operator in OPERATORS.values()
    for options in operator.variants
]
STEP = 2**-10  # of float16 relative to a value: one step of rounding on large pictures


def names(cases: list[tuple[Operator, Case]]) -> list[str]:
    return [f"{operator.name} {case}" for operator, case in cases]


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory for results is filled before kernels run: what they leave out is seen."""
    allocate = launch.allocate

    def poisoned(*arguments: Any) -> Any:
        memory = allocate(*arguments)
        return memory.fill_(float("nan") if memory.is_floating_point() else 0xA5)

    monkeypatch.setattr(launch, "allocate", poisoned)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def outputs(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def widen(value: Any) -> Any:
    wide = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if wide else value


def check(operator: Operator, inputs: Any, relative: float = 0.0) -> None:
    """Compare with the reference in float64; the same inputs give the same bits."""
    got, again = (outputs(operator.run(*inputs)) for _ in range(2))
    want = outputs(operator.reference(*(widen(x) for x in inputs)))
    for i, (g, a, w, most) in enumerate(zip(got, again, want, operator.tolerance, strict=True)):
        assert g.device == inputs[0].device
        assert g.shape == w.shape
        excess = (g.double() - w.double()).abs() - relative * w.double().abs()
        error = float(excess.max())
        assert error <= most, f"output {i}: error {error:.3g}, allowed {most:.3g}"
        assert torch.equal(g, a), f"output {i} differs from run to run"


@pytest.mark.parametrize(("operator", "case"), CASES, ids=names(CASES))
def test_kernels_agree_with_the_reference(operator: Operator, case: Case) -> None:
    check(operator, operator.inputs(case, CUDA, 7))


@pytest.mark.parametrize(("operator", "case"), LARGE, ids=names(LARGE))
def test_kernels_agree_on_a_large_picture(operator: Operator, case: Case) -> None:
    """A million pixels hold larger values than a small case: one step of float16 more."""
    check(operator, operator.inputs(case, CUDA, 11), STEP)


@pytest.mark.parametrize(
    "operator", [o for o in OPERATORS.values() if o.differentiable], ids=lambda o: o.name
)
def test_gradients_agree_with_the_reference(operator: Operator) -> None:
    case = operator.cases[0]
    given = operator.inputs(case, CUDA, 5)

    def gradients(function: Any, inputs: list[Any]) -> Any:
        leaves = [inputs[i].detach().requires_grad_() for i in operator.differentiable]
        for i, leaf in zip(operator.differentiable, leaves, strict=True):
            inputs[i] = leaf
        return torch.autograd.grad(sum(y.sum() for y in outputs(function(*inputs))), leaves)

    found = gradients(operator.run, list(given))
    wanted = gradients(operator.reference, [widen(x) for x in given])
    for f, w in zip(found, wanted, strict=True):
        assert float((f.double() - w).abs().max()) <= 4e-3 * float(w.abs().max())


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda o: o.name)
def test_kernels_are_captured_and_replayed(operator: Operator) -> None:
    """A CUDA graph computes from what lies in the inputs when it is replayed."""
    case = max(operator.cases, key=lambda c: c.n * c.height * c.width)
    static, other = (operator.inputs(case, CUDA, seed) for seed in (1, 2))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        operator.run(*static)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results = outputs(operator.run(*static))
        for inputs in (other, operator.inputs(case, CUDA, 1)):
            for x, y in zip(static, inputs, strict=True):
                if isinstance(x, torch.Tensor):
                    x.copy_(y)
            graph.replay()
            for found, wanted in zip(results, outputs(operator.run(*inputs)), strict=True):
                assert torch.equal(found, wanted)
    torch.cuda.synchronize()


# The PTX that ships, launched as a program without torch and Triton would.

PLUGINS = [form for form in launches() if form.plugin]
TYPES = {
    "*u8": torch.uint8,
    "*i32": torch.int32,
    "*fp16": torch.float16,
    "*fp32": torch.float32,
}
HEIGHT, WIDTH = 64, 96
# Whatever a kernel calls its sizes; a grid that is too large writes nothing more.
SIZES = {
    "n": 1,
    "height": HEIGHT,
    "width": WIDTH,
    "rows": HEIGHT,
    "columns": WIDTH,
    "pixels": HEIGHT * WIDTH,
    "cells": HEIGHT * WIDTH,
    "levels": 3,
}
ELEMENTS = 2**20  # of every buffer: more than any kernel reaches


class Driver:
    """The CUDA driver, through ctypes; torch has made the context current."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            name = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(name))
            raise RuntimeError(f"{function}: {(name.value or b'?').decode()}")

    def launch(self, kernel: shipped.PluginKernel, values: list[Any]) -> None:
        """Run a kernel on the default stream and wait for it."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), kernel.ptx.encode() + b"\0")
        self._call("cuModuleGetFunction", ctypes.byref(function), module, kernel.entry.encode())
        held = [
            ctypes.c_int32(v) if isinstance(v, int) else ctypes.c_uint64(v.data_ptr())
            for v in values
        ]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
        grid = [axis.at(SIZES) for axis in kernel.grid]
        block = (kernel.block, 1, 1)
        self._call("cuLaunchKernel", function, *grid, *block, kernel.shared, None, pointers, None)
        self._call("cuCtxSynchronize")
        self._call("cuModuleUnload", module)


def arguments(form: Launch) -> list[Any]:
    """Seeded values in the order of the launch; the same buffers whatever the kernel does."""
    rng = torch.Generator().manual_seed(3)
    values: list[Any] = []
    for name, kind in form.arguments.items():
        if not kind.startswith("*"):
            values.append(SIZES[name])
            continue
        # Levels of a picture; what is multiplied and summed stays in the range of float16.
        top = 1 if form.tensor_cores else 256
        x = torch.rand(ELEMENTS, generator=rng) * top - (0.5 if form.tensor_cores else 0)
        values.append(x.to(TYPES[kind]).to(CUDA))
    return values


@pytest.mark.parametrize("form", PLUGINS, ids=lambda form: form.name)
def test_shipped_ptx_computes_what_triton_compiles(form: Launch) -> None:
    """Inputs, int32 scalars, outputs, nothing else: the order that TensorRT has."""
    kernel = {k.name: k for k in shipped.read_manifest()}[form.name]
    assert list(kernel.arguments) == list(form.arguments)
    ours, theirs = arguments(form), arguments(form)
    before = arguments(form)
    form(SIZES, *ours)
    torch.cuda.synchronize()
    Driver().launch(kernel, theirs)
    changed = False
    for x, y, z in zip(ours, theirs, before, strict=True):
        if isinstance(x, int):
            continue
        changed |= not torch.equal(x, z)
        if form.tensor_cores:  # another chip's matrix instructions sum in another order
            assert float((x.float() - y.float()).abs().max()) <= 2 * STEP * float(x.abs().max())
        else:
            assert torch.equal(x.view(torch.uint8), y.view(torch.uint8))
    assert changed
