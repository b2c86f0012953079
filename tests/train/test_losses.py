"""Loss terms against oracles in float64 NumPy and against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastrestore.train import losses

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES = [losses.l1, losses.edge, losses.log_mse]


def make_case(height: int = 5, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Output, target and weights; no difference is near zero, where |d| has no gradient."""
    rng = np.random.default_rng(3)
    target = rng.uniform(0, 1, (2, 3, height, width))
    sign = rng.choice([-1, 1], target.shape)
    output = target + sign * rng.uniform(0.05, 0.4, target.shape)
    weights = rng.uniform(0.1, 6, (2, 1, height, width))
    weights[0, :, :2] = 0
    return torch.tensor(output), torch.tensor(target), torch.tensor(weights)


def sobel_loss(output: Tensor, target: Tensor, weights: Tensor) -> float:
    """`mean(w (|Kx * d| + |Ky * d|))` by explicit correlation, kernels / 8, replicate border."""
    kx = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    d = (output - target).numpy()
    padded = np.pad(d, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    total = np.zeros_like(d)
    for kernel in (kx, kx.T):
        g = np.zeros_like(d)
        for y in range(3):
            for x in range(3):
                g += kernel[y, x] * padded[..., y : y + d.shape[2], x : x + d.shape[3]]
        total += abs(g)
    return float((total * weights.numpy()).mean())


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_that_of_finite_differences(loss: Loss) -> None:
    output, target, weights = make_case()
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(output, target, weights), output)
    step, numeric = 1e-6, torch.zeros_like(output)
    flat = output.detach().clone().flatten()
    for i in range(len(flat)):
        values = []
        for sign in (1, -1):
            moved = flat.clone()
            moved[i] += sign * step
            values.append(float(loss(moved.view_as(output), target, weights)))
        numeric.view(-1)[i] = (values[0] - values[1]) / (2 * step)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", [(5, 6), (1, 7), (9, 1), (16, 16)])
def test_edge_is_the_explicit_sobel(size: tuple[int, int]) -> None:
    case = make_case(*size)
    assert float(losses.edge(*case)) == pytest.approx(sobel_loss(*case), rel=1e-12)


def test_edge_of_a_ramp_is_its_slope() -> None:
    d = 0.03 * torch.arange(20.0, dtype=torch.float64).expand(1, 3, 8, 20)
    weights = torch.zeros(1, 1, 8, 20, dtype=torch.float64)
    weights[..., 1:-1] = 1
    loss = losses.edge(d, torch.zeros_like(d), weights)
    assert float(loss / weights.mean()) == pytest.approx(0.03)


def test_l1_is_a_weighted_mean() -> None:
    output, target, weights = make_case()
    expected = (np.abs(output.numpy() - target.numpy()) * weights.numpy()).mean()
    assert float(losses.l1(output, target, weights)) == pytest.approx(expected, rel=1e-12)


def test_log_mse_is_minus_the_psnr_of_what_has_weight() -> None:
    output, target, _ = make_case(32, 32)
    weights = torch.zeros(2, 1, 32, 32, dtype=torch.float64)
    weights[0, :, 4:20, 3:30] = 0.7
    weights[1, :, 10:12, 3:8] = 4
    inside = weights.numpy()[:, 0] > 0
    d2 = np.square(output.numpy() - target.numpy())
    mse = [float(d2[i][:, inside[i]].mean()) for i in range(2)]
    decibel = np.mean([-10 * math.log10(m) for m in mse])
    loss = float(losses.log_mse(output, target, weights))
    assert -loss * 10 / math.log(10) == pytest.approx(decibel, abs=0.01)


def test_log_mse_weighs_samples_alike() -> None:
    """Ten times the error of one sample moves the loss as much whichever sample it is."""
    output, target, weights = make_case()
    weights = torch.ones_like(weights)
    start = losses.log_mse(output, target, weights)
    moves = []
    for i in range(2):
        other = output.clone()
        other[i] = target[i] + 10 * (output[i] - target[i])
        moves.append(float(losses.log_mse(other, target, weights) - start))
    assert moves == pytest.approx([math.log(100) / 2] * 2, rel=2e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_pixels_without_weight_do_not_matter(loss: Loss) -> None:
    output, target, weights = make_case()
    weights = torch.zeros_like(weights)
    weights[..., :2] = 1
    other = output.clone()
    other[..., 4:] += 0.5
    assert loss(other, target, weights) == loss(output, target, weights)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_pictures_and_no_weight_are_finite(loss: Loss) -> None:
    output, target, weights = make_case()
    for o, w in ((target, weights), (output, torch.zeros_like(weights))):
        x = o.clone().requires_grad_()
        value = loss(x, target, w)
        value.backward()
        assert torch.isfinite(value)
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()


@given(hole=st.integers(82, 4096), seed=st.integers(0, 99))
def test_clean_sample_weighs_the_same_whatever_its_hole(hole: int, seed: int) -> None:
    """From 2 % of the picture up; the weight is in the hole alone, and even there."""
    mask = torch.zeros(4096)
    mask[torch.from_numpy(np.random.default_rng(seed).permutation(4096)[:hole])] = 1
    mask = mask.view(1, 1, 64, 64)
    weights = losses.pixel_weights(mask, torch.zeros_like(mask))
    assert float(weights.double().mean()) == pytest.approx(0.6, rel=1e-4)
    assert torch.equal(weights > 0, mask > 0)
    assert weights[mask > 0].unique().numel() == 1


def test_tiny_hole_does_not_blow_up() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    assert not losses.pixel_weights(mask, torch.zeros_like(mask)).any()
    mask[..., 0, 0] = 1
    assert float(losses.pixel_weights(mask, torch.zeros_like(mask)).max()) == pytest.approx(30)


@pytest.mark.parametrize("sigma", [0.5, 5.0, 25.0, 50.0])
def test_noisy_sample_counts_everywhere_and_six_times_in_the_hole(sigma: float) -> None:
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 1:4] = 1
    noise = torch.tensor([sigma, 0.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    weights = losses.pixel_weights(mask, noise)
    known = weights[0, 0, 0, 0]
    assert known > 0
    torch.testing.assert_close(weights[0], known * (1 + 5 * mask[0]))
    assert torch.equal(weights[1] > 0, mask[1] > 0)  # its neighbour in the batch is clean
    assert float(weights[1].mean()) == pytest.approx(0.6)


def test_noise_is_weighed_by_the_inverse_of_the_error_it_leaves() -> None:
    """One at sigma 25; errors of 3, 7 and 11 levels at sigma 5, 25 and 50, pixel by pixel."""
    noise = torch.tensor([5.0, 25.0, 50.0]).view(1, 1, 1, 3)
    weights = losses.pixel_weights(torch.zeros(1, 1, 1, 3), noise).flatten()
    assert float(weights[1]) == 1
    torch.testing.assert_close(weights, torch.tensor([7 / 3, 1, 7 / 11]), rtol=0.05, atol=0)
