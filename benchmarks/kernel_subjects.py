"""What is timed side by side, and how each result is checked: our kernels, eager torch, compiled.

Rivals are as fast as torch allows with the same inputs and results: float16 where that is right,
channels_last, cuDNN choosing its algorithm by time. All compute what the reference computes; who
does not, is not timed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from kernel_device import Device, Run
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fastrestore.kernels import launch
from fastrestore.kernels.operator import Case, Operator

Outputs = tuple[Tensor, ...]
Compute = Callable[[], Outputs]

# A million pixels hold larger values than a small case: one step of float16 more.
STEP = 2**-10
RIVAL = 4.0  # times our own tolerance: torch rounds more often


class Goal(NamedTuple):
    """What a result must be.

    Attributes:
        value: Of the reference.
        allowed: Largest error, beyond `STEP` times the value.
        outliers: So many values may be off: where rounding decides a sign.
    """

    value: Tensor
    allowed: float
    outliers: int = 0

    def error(self, found: Tensor) -> float:
        """Return the largest error, outliers aside; infinite for another shape."""
        if found.shape != self.value.shape:
            return float("inf")
        wanted = self.value.double()
        excess = ((found.double() - wanted).abs() - STEP * wanted.abs()).flatten()
        excess = excess.nan_to_num(float("inf"), float("inf"))
        most = min(self.outliers, excess.numel() - 1) + 1
        return max(float(excess.topk(most).values[-1]), 0.0)


class Subject(NamedTuple):
    """Somebody who computes the goals.

    Attributes:
        make: Returns what is captured; a compiler starts here or at the first run.
        slack: Times what the goals allow.
        compiled: Whether a time limit holds.
    """

    make: Callable[[], Compute]
    slack: float = 1.0
    compiled: bool = False


@dataclass(frozen=True, slots=True)
class Contest:
    """One case: who takes part, and what is right.

    Attributes:
        goals: Results in order.
        ours: By name; with a wrong one, nothing is timed.
        rivals: By name; a wrong one is left out.
        host: Takes the names of those who were right; returns their calls from host memory to
            host memory, by name.
        close: Gives back what they hold.
    """

    goals: tuple[Goal, ...]
    ours: Mapping[str, Subject]
    rivals: Mapping[str, Subject]
    host: Callable[[Iterable[str]], Mapping[str, Run]] | None = None
    close: Callable[[], None] = field(default=lambda: None)


def check(found: Outputs, goals: tuple[Goal, ...], slack: float = 1.0) -> list[dict[str, float]]:
    """Return error and what is allowed, result by result."""
    return [
        {"error": goal.error(x), "allowed": goal.allowed * slack}
        for x, goal in zip(found, goals, strict=True)
    ]


def is_green(rows: list[dict[str, float]]) -> bool:
    """Tell whether every error is allowed."""
    return all(row["error"] <= row["allowed"] for row in rows)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill memory for results before our kernels run: what they leave out is seen."""
    allocate = launch.allocate

    def poison(*arguments: Any) -> Tensor:
        memory = allocate(*arguments)
        return memory.fill_(float("nan") if memory.is_floating_point() else 0xA5)

    launch.allocate = poison
    try:
        yield
    finally:
        launch.allocate = allocate


@contextlib.contextmanager
def fastest() -> Iterator[None]:
    """Let cuDNN choose by time, as a rival would."""
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=True, deterministic=False, allow_tf32=True
    ):
        yield


def operator_contest(operator: Operator, case: Case, device: Device) -> Contest:
    """Return who takes part for an operator."""
    inputs = operator.inputs(case, device.torch_device, 11)
    if operator.name == "edge_loss":
        return _edge_contest(operator, inputs, device)
    with torch.no_grad():
        values = _tuple(operator.reference(*(_widen(x) for x in inputs)))
    goals = tuple(Goal(v, t) for v, t in zip(values, operator.tolerance, strict=True))
    return Contest(
        goals,
        {"kernel": Subject(lambda: _plainly(operator.run, inputs))},
        _rivals(operator, inputs, device),
    )


def _rivals(operator: Operator, inputs: tuple[Any, ...], device: Device) -> dict[str, Subject]:
    """Return eager torch, in one or two forms, and the better one compiled."""
    if operator.name == "residual_block":
        plain, fused = _convolutions(*inputs, fused=False), _convolutions(*inputs, fused=True)
        return {
            "eager": Subject(lambda: _plainly(plain, inputs[:1]), RIVAL),
            "eager, fused ReLU": Subject(lambda: _plainly(fused, inputs[:1]), RIVAL),
            "compiled": Subject(
                lambda: _plainly(device.compile(plain), inputs[:1]), RIVAL, compiled=True
            ),
        }
    rivals = {"eager": Subject(lambda: _plainly(operator.reference, inputs), RIVAL)}
    if operator.name == "pull_push":  # its reference computes in the type of sigma
        frame, mask, state, sigma, past = inputs
        inputs = (frame, mask, state, sigma.half(), past)
        rivals["eager, float16"] = Subject(lambda: _plainly(operator.reference, inputs), RIVAL)
    rivals["compiled"] = Subject(
        lambda: _plainly(device.compile(operator.reference), inputs), RIVAL, compiled=True
    )
    return rivals


def _convolutions(
    x: Tensor, w3: Tensor, b3: Tensor, w1: Tensor, b1: Tensor, dilation: int, *, fused: bool
) -> Callable[[Tensor], Tensor]:
    """Return the residual block as two convolutions of cuDNN on the same bytes.

    Args:
        x: NHWC, as the kernel takes it, and the others.
        w3: Likewise.
        b3: Likewise.
        w1: Likewise.
        b1: Likewise.
        dilation: Likewise.
        fused: Bias and ReLU in the same call as the 3x3.
    """
    c, last = x.shape[3], torch.channels_last
    conv3 = w3.reshape(3, 3, c, c).permute(3, 2, 0, 1).contiguous(memory_format=last)
    conv1 = w1.T.reshape(c, c, 1, 1).contiguous(memory_format=last)
    bias3, bias1 = b3.to(x.dtype), b1.to(x.dtype)
    pair = [dilation, dilation]

    def block(x: Tensor) -> Tensor:
        rows = x.permute(0, 3, 1, 2)
        if fused:
            h = torch.cudnn_convolution_relu(rows, conv3, bias3, [1, 1], pair, pair, 1)
        else:
            h = F.conv2d(rows, conv3, bias3, padding=dilation, dilation=dilation).relu_()
        return F.conv2d(h, conv1, bias1).add_(rows).permute(0, 2, 3, 1)

    return block


def _edge_contest(operator: Operator, inputs: tuple[Tensor, ...], device: Device) -> Contest:
    """Return who takes part for the edge loss: forward, and backward to the output."""
    _, target, weights = inputs
    output = inputs[0].detach().requires_grad_()

    def both(function: Callable[..., Any]) -> Compute:
        def run() -> Outputs:
            loss = function(output, target, weights)
            return loss.detach(), torch.autograd.grad(loss, output)[0]

        return run

    wide = output.detach().double().requires_grad_()
    loss = operator.reference(wide, target.double(), weights.double())
    (gradient,) = torch.autograd.grad(loss, wide)
    outliers = max(16, gradient.numel() // 100_000)
    most = 1e-5 * float(gradient.abs().max())
    return Contest(
        (Goal(loss.detach(), operator.tolerance[0]), Goal(gradient, most, outliers)),
        {"kernel": Subject(lambda: both(operator.run))},
        {
            "eager": Subject(lambda: both(operator.reference), RIVAL),
            "compiled": Subject(
                lambda: both(device.compile(operator.reference)), RIVAL, compiled=True
            ),
        },
    )


def _plainly(function: Callable[..., Any], inputs: tuple[Any, ...]) -> Compute:
    """Return what computes without a graph of gradients."""

    def run() -> Outputs:
        with torch.no_grad():
            return _tuple(function(*inputs))

    return run


def _tuple(result: Any) -> Outputs:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _widen(value: Any) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if is_float else value
