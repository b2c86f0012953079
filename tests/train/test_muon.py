"""Muon against the iteration written out plainly, and against singular values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastrestore.train.muon import Muon, orthogonalise

SHAPES = [(16, 16), (16, 288), (64, 32), (128, 1152), (128, 256), (12, 144), (1, 9), (64, 4)]


def newton_schulz(matrix: Tensor) -> Tensor:
    """Five quintic steps on the matrix itself, in float64."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x - 4.7750 * s @ x + 2.0315 * s @ s @ x
    return x


def scalar(s: Tensor) -> Tensor:
    """What the iteration makes of one singular value."""
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_plain_iteration(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(shape)
    result = orthogonalise(matrix)
    assert result.shape == shape
    torch.testing.assert_close(result.double(), newton_schulz(matrix), rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", [(32, 48), (48, 32)], ids=str)
def test_singular_values_go_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    k = min(shape)
    u, _ = torch.linalg.qr(torch.randn(shape[0], k, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(shape[1], k, dtype=torch.float64))
    s = torch.logspace(0, -1.5, k, dtype=torch.float64)  # 1 to 0.03
    result = orthogonalise((u * s @ v.T).float()).double()
    turned = u.T @ result @ v
    found = turned.diagonal()
    torch.testing.assert_close(turned, torch.diag(found), rtol=0, atol=1e-3)
    torch.testing.assert_close(found, scalar(s / s.norm()), rtol=0, atol=1e-3)
    assert found.min() > 0.65
    assert found.max() < 1.25


def test_size_of_the_gradient_does_not_matter() -> None:
    torch.manual_seed(3)
    matrix = torch.randn(16, 144)
    for scale in (1e-3, 1e3):
        torch.testing.assert_close(
            orthogonalise(scale * matrix), orthogonalise(matrix), rtol=0, atol=5e-4
        )


def test_no_gradient_is_no_update() -> None:
    assert torch.equal(orthogonalise(torch.zeros(8, 72)), torch.zeros(8, 72))


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        ((16, 4, 3, 3), 1.0),
        ((64, 4, 1, 1), 4.0),
        ((32, 16, 1, 1), math.sqrt(2)),
        ((32, 16, 2, 2), 1.0),
    ],
    ids=str,
)
def test_step_decays_and_scales(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(4)
    weight = nn.Parameter(torch.randn(shape))
    before, gradient = weight.detach().clone(), torch.randn(shape)
    weight.grad = gradient.clone()
    Muon([weight], lr=0.02, decay=0.5).step()
    update = newton_schulz(gradient.flatten(1)).view(shape).float()
    expected = before * (1 - 0.02 * 0.5) - 0.02 * scale * update
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=5e-5)


def test_momentum_is_nesterovs() -> None:
    torch.manual_seed(5)
    weight = nn.Parameter(torch.randn(8, 4, 3, 3))
    optimiser = Muon([weight], lr=0.1, momentum=0.8)
    expected, m = weight.detach().clone(), torch.zeros(8, 36)
    for _ in range(4):
        weight.grad = torch.randn_like(weight)
        g = weight.grad.flatten(1).clone()
        m = 0.8 * m + 0.2 * g
        update = newton_schulz(0.2 * g + 0.8 * m).float()
        expected -= 0.1 * update.view_as(expected)
        optimiser.step()
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-4)


def test_memory_layout_does_not_matter() -> None:
    """A resumed run has its momentum in another layout than the run that wrote it."""
    torch.manual_seed(6)
    start, gradient = torch.randn(16, 8, 3, 3), torch.randn(16, 8, 3, 3)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone(memory_format=layout))
        optimiser = Muon([weight], lr=0.1)
        for _ in range(2):
            weight.grad = gradient.clone(memory_format=layout)
            optimiser.step()
        results.append(weight.detach())
    assert torch.equal(*results)


def test_weight_without_gradient_stays() -> None:
    weights = [nn.Parameter(torch.ones(4, 2, 3, 3)) for _ in range(2)]
    weights[0].grad = torch.randn(4, 2, 3, 3)
    optimiser = Muon(weights, lr=0.1, decay=0.5)
    optimiser.step()
    assert torch.equal(weights[1].detach(), torch.ones(4, 2, 3, 3))
    assert weights[1] not in optimiser.state
    assert not torch.equal(weights[0].detach(), torch.ones(4, 2, 3, 3))
