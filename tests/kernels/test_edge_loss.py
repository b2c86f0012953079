"""The edge loss and its gradient against float64 and finite differences; kernels interpreted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
import torch
from torch import Tensor

from fastrestore.errors import InputError
from fastrestore.kernels import edge_loss as module
from fastrestore.kernels import launch
from fastrestore.kernels.edge_loss import OPERATOR, edge_loss
from fastrestore.kernels.operator import Case

CPU = torch.device("cpu")
SMALL = Case(1, 5, 6)
interpreted = pytest.mark.skipif(
    not launch.INTERPRETED, reason="kernels run on the GPU here, not in the interpreter"
)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill memory for results with what no result may show."""
    allocate = launch.allocate

    def poisoned(*arguments: Any) -> Tensor:
        memory = allocate(*arguments)
        return memory.fill_(float("nan") if memory.is_floating_point() else 0xFF)

    monkeypatch.setattr(launch, "allocate", poisoned)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without the interpreter: the ops run their references."""
    monkeypatch.setattr(launch, "INTERPRETED", False)


def differentiate(
    loss: Callable[..., Tensor], inputs: tuple[Tensor, ...], dtype: torch.dtype, factor: float = 2.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradients by output and target, times a factor from above."""
    output, target, weights = (x.detach().to(dtype) for x in inputs)
    output.requires_grad_()
    target.requires_grad_()
    value = loss(output, target, weights)
    by_output, by_target = torch.autograd.grad(factor * value, (output, target))
    return value.detach(), by_output, by_target


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max())


@interpreted
@pytest.mark.parametrize("case", OPERATOR.cases, ids=str)
def test_errors_are_at_most_twice_those_of_eager_torch(case: Case) -> None:
    inputs = OPERATOR.inputs(case, CPU, 11)
    got = differentiate(edge_loss, inputs, torch.float32)
    eager = differentiate(OPERATOR.reference, inputs, torch.float32)
    want = differentiate(OPERATOR.reference, inputs, torch.float64)
    for g, e, w in zip(got, eager, want, strict=True):
        assert g.dtype == torch.float32
        rounding = torch.finfo(torch.float32).eps * float(w.abs().max())
        assert error(g, w) <= max(2 * error(e, w), rounding)
    assert float(want[1].abs().max()) > 0
    assert torch.equal(got[2], -got[1])


@pytest.mark.parametrize("case", OPERATOR.cases, ids=str)
def test_the_adjoint_is_that_of_autograd_in_float64(case: Case) -> None:
    """Both halves of the plain form, at every size."""
    inputs = tuple(x.double() for x in OPERATOR.inputs(case, CPU, 3))
    value, signs = module.forward_reference(*inputs)
    found = module.backward_reference(torch.tensor(2.5).double(), signs, inputs[2])
    want = differentiate(OPERATOR.reference, inputs, torch.float64)
    assert value == want[0]
    torch.testing.assert_close(found, want[1], rtol=1e-12, atol=1e-15)


def test_gradient_is_that_of_finite_differences() -> None:
    inputs = OPERATOR.inputs(SMALL, CPU, 2)
    _, gradient, _ = differentiate(edge_loss, inputs, torch.float32, 1.0)
    output, target, weights = (x.double() for x in inputs)
    step, numeric = 1e-6, torch.zeros_like(output)
    for i in range(output.numel()):
        moved = output.clone()
        moved.view(-1)[i] += step
        up = OPERATOR.reference(moved, target, weights)
        moved.view(-1)[i] -= 2 * step
        numeric.view(-1)[i] = (up - OPERATOR.reference(moved, target, weights)) / (2 * step)
    assert numeric.abs().max() > 1e-2
    torch.testing.assert_close(gradient.double(), numeric, rtol=1e-6, atol=1e-8)


@interpreted
@pytest.mark.usefixtures("plain")
def test_plain_and_interpreted_forms_write_the_same_signs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Backward of one form can read the bytes of the other; zeros and NaN have no direction."""
    output, target, weights = OPERATOR.inputs(SMALL, CPU, 1)
    target[:, 0] = output[:, 0]
    output[0, 2, 3, 4] = float("nan")
    op = torch.ops.fastrestore.edge_loss
    loss, signs = op(output, target, weights)
    monkeypatch.setattr(launch, "INTERPRETED", True)
    again, bytes_ = op(output, target, weights)
    assert torch.equal(signs, bytes_)
    assert (signs[:, 0] == 5).all()
    assert set(signs.unique().tolist()) > {0, 2, 5, 8, 10}
    assert loss.isnan()
    assert again.isnan()


@pytest.fixture(scope="module")
def first() -> tuple[Tensor, Tensor]:
    """Loss and signs of planar pictures."""
    found: tuple[Tensor, Tensor] = torch.ops.fastrestore.edge_loss(*OPERATOR.inputs(SMALL, CPU, 8))
    return found


@interpreted
@pytest.mark.parametrize("last", [(), ("output",), ("target",), ("output", "target")])
def test_runs_and_layouts_repeat_to_the_bit(
    last: tuple[str, ...], first: tuple[Tensor, Tensor]
) -> None:
    inputs = OPERATOR.inputs(Case(1, 5, 6, {"channels_last": last}), CPU, 8)
    assert [x.is_contiguous() for x in inputs[:2]] == [n not in last for n in ("output", "target")]
    again = torch.ops.fastrestore.edge_loss(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@interpreted
def test_backward_repeats_to_the_bit(first: tuple[Tensor, Tensor]) -> None:
    arguments = (torch.tensor(0.3), first[1], OPERATOR.inputs(SMALL, CPU, 8)[2])
    runs = [torch.ops.fastrestore.edge_loss_backward(*arguments) for _ in range(2)]
    assert torch.equal(*runs)


@interpreted
def test_a_step_is_its_height() -> None:
    """By hand: gx is half the step on either side of it, rows at the border included."""
    output = torch.zeros(1, 3, 4, 6)
    output[..., 3:] = 0.5
    weights = torch.ones(1, 1, 4, 6)
    weights[..., :3] = 3
    expected = 0.25 * (3 + 1) / 6
    assert float(edge_loss(output, torch.zeros_like(output), weights)) == pytest.approx(expected)


@pytest.mark.usefixtures("plain")
def test_backward_keeps_one_byte_an_element_and_the_weights() -> None:
    output, target, weights = OPERATOR.inputs(SMALL, CPU, 1)
    output.requires_grad_()
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        edge_loss(output, target, weights)
    assert sum(x.numel() * x.element_size() for x in kept) == output.numel() + 4 * weights.numel()


@pytest.mark.usefixtures("plain")
def test_a_second_derivative_is_refused() -> None:
    output, target, weights = OPERATOR.inputs(SMALL, CPU, 1)
    output.requires_grad_()
    loss = edge_loss(output, target, weights)
    (gradient,) = torch.autograd.grad(loss * loss, output, create_graph=True)
    with pytest.raises(RuntimeError, match="edge_loss_backward"):
        gradient.sum().backward()


@pytest.mark.usefixtures("plain")
def test_ops_are_sound() -> None:
    """Schema, fake results, autograd and tracing, as torch's own checker sees them."""
    for case in (Case(1, 3, 4), Case(1, 3, 4, {"channels_last": ("output", "target")})):
        output, target, weights = OPERATOR.inputs(case, CPU, 1)
        output.requires_grad_()
        target.requires_grad_()
        torch.library.opcheck(torch.ops.fastrestore.edge_loss.default, (output, target, weights))
        signs = torch.ops.fastrestore.edge_loss(output, target, weights)[1]
        arguments = (torch.tensor(2.0), signs, weights)
        torch.library.opcheck(torch.ops.fastrestore.edge_loss_backward.default, arguments)


@pytest.mark.usefixtures("plain")
def test_compiled_whole_it_is_the_same() -> None:
    compiled = torch.compile(edge_loss, backend="aot_eager", fullgraph=True)
    inputs = OPERATOR.inputs(SMALL, CPU, 4)
    got, want = (differentiate(f, inputs, torch.float32) for f in (compiled, edge_loss))
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_traffic_is_counted_by_hand() -> None:
    case = Case(2, 10, 20)  # 400 pixels, 1200 values
    forward, backward = module.traffic(case), module.traffic_backward(case)
    assert forward[:2] == (1200 * (4 + 4) + 400 * 4, 1200 + 4)
    assert backward[:2] == (1200 + 400 * 4 + 4, 1200 * 4)


def shaped(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **options)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"output": shaped(2, 3, 8, 6).half()}, r"output must be float32 \(any, 3, any, any\)"),
        ({"output": shaped(2, 8, 6, 3)}, "output must be float32"),
        ({"output": shaped(3, 8, 6)}, "output must be float32"),
        ({"output": shaped(2, 3, 0, 6)}, "output must be float32"),
        ({"output": shaped(2, 3, 8, 12)[..., ::2]}, "output is not contiguous"),
        ({"output": shaped(1, 3, 30000, 30000, device="meta")}, "output has 2700000000 elements"),
        ({"target": shaped(2, 3, 8, 6).double()}, r"target must be float32 \(2, 3, 8, 6\)"),
        ({"target": shaped(1, 3, 8, 6)}, "target must be"),
        ({"target": shaped(2, 3, 6, 8).mT}, "target is not contiguous"),
        ({"target": shaped(2, 3, 8, 6, device="meta")}, "target is on meta, the others on cpu"),
        ({"weights": shaped(2, 3, 8, 6)}, r"weights must be float32 \(2, 1, 8, 6\)"),
        ({"weights": shaped(2, 8, 6)}, "weights must be"),
        ({"weights": shaped(2, 1, 8, 6).half()}, "weights must be"),
        ({"weights": shaped(1, 1, 8, 6).expand(2, 1, 8, 6)}, "weights is not contiguous"),
        ({"weights": shaped(2, 1, 8, 6, requires_grad=True)}, "weights get no gradient"),
        ({"output": None}, "output must be a tensor, got NoneType"),
        ({"target": 0.5}, "target must be a tensor, got float"),
        ({"weights": None}, "weights must be a tensor, got NoneType"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(change: dict[str, Any], line: str) -> None:
    good = {
        "output": shaped(2, 3, 8, 6),
        "target": shaped(2, 3, 8, 6),
        "weights": shaped(2, 1, 8, 6),
    }
    with pytest.raises(InputError, match=f"^edge_loss: {line}") as caught:
        edge_loss(**{**good, **change})
    assert "\n" not in str(caught.value)
