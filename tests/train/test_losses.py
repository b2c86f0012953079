"""Loss terms against oracles in float64 NumPy and against finite differences."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastrestore.errors import InputError
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


KINDS = get_args(losses.GAN)


def make_logits(seed: int = 0, size: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Real and fake logits away from the hinge's corners, and a target with both extremes."""
    rng = np.random.default_rng(seed)
    real, fake = (torch.tensor(rng.uniform(-0.9, 0.9, (2, 1, size, size))) for _ in range(2))
    target = torch.tensor(rng.uniform(0, 1, (2, 1, size, size)))
    target[0, 0, 0], target[1, 0, 1] = 0, 1
    return real, fake, target


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


# Real logit 0.5, fake logit -0.25, target 0.75, so that 1 - t is 0.25.
BY_HAND = {
    "nonsaturating": softplus(-0.5) + 0.75 * softplus(-0.25) + 0.25 * softplus(0.25),
    "saturating": softplus(-0.5) + 0.75 * softplus(-0.25) + 0.25 * softplus(0.25),
    "least-squares": (0.25 + 0.25) / 2,
    "hinge": 0.5 + 0.75 * 0.75 + 0.25 * 1.25,
}
GENERATOR_BY_HAND = {
    "nonsaturating": softplus(0.25),
    "saturating": -softplus(-0.25),
    "least-squares": 1.25**2 / 2,
    "hinge": 0.25,
}


@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_terms_by_hand(kind: str) -> None:
    real, fake, target = (torch.full((1, 1, 2, 2), v) for v in (0.5, -0.25, 0.75))
    loss = losses.discriminator_loss(kind, real, fake, target)
    assert float(loss) == pytest.approx(BY_HAND[kind], rel=1e-6)
    loss = losses.generator_adversarial_loss(kind, fake, target)
    assert float(loss) == pytest.approx(GENERATOR_BY_HAND[kind], rel=1e-6)


def test_logistic_terms_are_those_of_the_min_max_game() -> None:
    """At hard targets D maximises E log D(x) + E log(1 - D(G)), and G minimises the latter."""
    real, fake, _ = make_logits()
    one = torch.ones_like(fake)
    game = torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean()
    for kind in ("nonsaturating", "saturating"):
        torch.testing.assert_close(losses.discriminator_loss(kind, real, fake, one), -game)
    mine = losses.generator_adversarial_loss("saturating", fake, one)
    torch.testing.assert_close(mine, (1 - torch.sigmoid(fake)).log().mean())
    mine = losses.generator_adversarial_loss("nonsaturating", fake, one)
    torch.testing.assert_close(mine, -torch.sigmoid(fake).log().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_adversarial_terms(kind: str) -> None:
    real, fake, target = make_logits()
    real.requires_grad_()
    fake.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r, f: losses.discriminator_loss(kind, r, f, target), (real, fake)
    )
    assert torch.autograd.gradcheck(
        lambda f: losses.generator_adversarial_loss(kind, f, target), fake
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_side_pulls_its_way(kind: str) -> None:
    """A step downhill: D raises real logits and lowers fake ones, G raises fake ones."""
    real, fake = ((v + 1) / 2 for v in make_logits()[:2])  # between the targets of least squares
    target = torch.ones_like(fake)
    real.requires_grad_()
    fake.requires_grad_()
    loss = losses.discriminator_loss(kind, real, fake, target)
    up, down = torch.autograd.grad(loss, (real, fake))
    assert (up < 0).all()
    assert (down > 0).all()
    (up,) = torch.autograd.grad(losses.generator_adversarial_loss(kind, fake, target), fake)
    assert (up < 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_known_patches_are_taught_to_be_real_and_do_not_move_the_generator(kind: str) -> None:
    real, fake = ((v + 1) / 2 for v in make_logits(size=4)[:2])
    target = torch.zeros_like(fake)
    target[..., 1:3, 1:3] = 1
    fake.requires_grad_()
    (g,) = torch.autograd.grad(losses.discriminator_loss(kind, real, fake, target), fake)
    assert (g[target == 0] < 0).all()
    assert (g[target == 1] > 0).all()
    (g,) = torch.autograd.grad(losses.generator_adversarial_loss(kind, fake, target), fake)
    assert not g[target == 0].any()
    assert (g[target == 1] < 0).all()


def test_only_the_non_saturating_generator_learns_against_a_sure_discriminator() -> None:
    sure = torch.full((1, 1, 1, 1), -20.0, requires_grad=True)
    slope = {}
    for kind in ("nonsaturating", "saturating"):
        loss = losses.generator_adversarial_loss(kind, sure, torch.ones(1, 1, 1, 1))
        (g,) = torch.autograd.grad(loss, sure)
        slope[kind] = float(g)
    assert slope["nonsaturating"] == pytest.approx(-1)
    assert -1e-8 < slope["saturating"] < 0


def test_generators_term_is_a_mean_over_what_it_invented() -> None:
    """Whatever the size of the hole, down to one patch; no hole, no term."""
    fake = torch.full((1, 1, 4, 4), -0.5)
    fake[..., 2:, :] = 9
    for rows in (1, 2):
        weight = torch.zeros_like(fake)
        weight[..., :rows, :] = 1
        loss = losses.generator_adversarial_loss("hinge", fake, weight)
        assert float(loss) == pytest.approx(0.5)
    speck = torch.zeros_like(fake)
    assert float(losses.generator_adversarial_loss("hinge", fake, speck)) == 0
    speck[..., 0, 0] = 0.25
    assert float(losses.generator_adversarial_loss("hinge", fake, speck)) == pytest.approx(0.125)


@pytest.mark.parametrize("kind", KINDS)
def test_single_logit_works_alike(kind: str) -> None:
    real, fake = torch.tensor([[0.5], [0.5]]), torch.tensor([[-0.25], [-0.25]])
    one = torch.ones_like(fake)
    whole = losses.discriminator_loss(kind, real, fake, one)
    patch = losses.discriminator_loss(kind, *(v.view(2, 1, 1, 1) for v in (real, fake, one)))
    assert whole == patch


def test_unknown_kind_and_shapes_that_would_broadcast_are_refused() -> None:
    real, fake, target = make_logits()
    for call in (
        lambda k, t: losses.discriminator_loss(k, real, fake, t),
        lambda k, t: losses.generator_adversarial_loss(k, fake, t),
    ):
        with pytest.raises(InputError, match=r"'wgan': unknown; use one of nonsaturating, "):
            call("wgan", target)
        with pytest.raises(InputError, match="shapes differ"):
            call("hinge", target[:1])


def make_maps() -> tuple[list[Tensor], list[Tensor]]:
    rng = np.random.default_rng(2)
    real = [torch.tensor(rng.uniform(-1, 1, (2, c, s, s))) for c, s in ((3, 4), (2, 2))]
    fake = [r + torch.tensor(rng.choice([-1, 1], r.shape) * 0.3) for r in real]
    return fake, real


def test_perceptual_by_hand() -> None:
    a, b = torch.full((1, 2, 3, 3), 0.5), torch.full((1, 4, 1, 1), -2.0)
    zero = [torch.zeros_like(a), torch.zeros_like(b)]
    assert float(losses.perceptual([a, b], zero, [2, 0.5])) == pytest.approx(2 * 0.25 + 0.5 * 4)
    assert float(losses.perceptual([a, b], zero, [2, 0.5], "l1")) == pytest.approx(2 * 0.5 + 1)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_gradients_of_perceptual(norm: str) -> None:
    fake, real = make_maps()
    for f in fake:
        f.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *f: losses.perceptual(f, real, [0.7, 3.0], norm), tuple(fake)
    )


def test_perceptual_refuses() -> None:
    fake, real = make_maps()
    with pytest.raises(InputError, match="norm 'l3': unknown"):
        losses.perceptual(fake, real, [1, 1], "l3")
    with pytest.raises(InputError, match="2 and 2 feature maps for 1 weights"):
        losses.perceptual(fake, real, [1])


def test_small_differences_of_bf16_maps_survive() -> None:
    real = torch.full((1, 1, 64, 64), 100.0)
    loss = losses.perceptual([(real + 0.5).bfloat16()], [real.bfloat16()], [1])
    assert loss.dtype == torch.float32


def test_feature_matching_by_hand_and_outside_the_hole_nothing() -> None:
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mask[..., :4, :4] = 1  # one of four cells of the coarse map, four of 16 of the fine one
    real = [torch.zeros(1, c, s, s, dtype=torch.float64) for c, s in ((3, 4), (2, 2))]
    fake = [torch.full_like(r, v) for r, v in zip(real, (0.5, -2), strict=True)]
    assert float(losses.feature_matching(fake, real, mask)) == pytest.approx((0.5 + 2) / 2)
    moved = [f.clone() for f in fake]
    moved[0][..., 2:, :] += 7
    moved[1][..., :, 1:] -= 7
    assert losses.feature_matching(moved, real, mask) == losses.feature_matching(fake, real, mask)
    moved[1][..., 0, 0] -= 2
    assert float(losses.feature_matching(moved, real, mask)) == pytest.approx((0.5 + 4) / 2)
    assert float(losses.feature_matching(fake, real, torch.zeros_like(mask))) == 0


def test_gradients_of_feature_matching() -> None:
    fake, real = make_maps()
    for f in fake:
        f.requires_grad_()
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    mask[..., 1:7, :3] = 1
    assert torch.autograd.gradcheck(lambda *f: losses.feature_matching(f, real, mask), tuple(fake))


def test_r1_of_a_linear_and_of_a_quadratic_verdict() -> None:
    rng = np.random.default_rng(4)
    slope, x = (torch.tensor(rng.normal(size=s)) for s in ((1, 3, 4, 5), (2, 3, 4, 5)))
    x.requires_grad_()
    linear = losses.r1((slope * x).sum((1, 2, 3)), x)
    assert float(linear.detach()) == pytest.approx(float(slope.square().sum()))
    quadratic = losses.r1(x.square().sum((1, 2, 3)) / 2, x)
    assert float(quadratic.detach()) == pytest.approx(float(x.detach().square().sum()) / 2)
    (gradient,) = torch.autograd.grad(quadratic, x)  # it can be minimised
    torch.testing.assert_close(gradient, x.detach())


def test_gradient_shares() -> None:
    output = torch.randn(2, 3, 4, 4, requires_grad=True)
    other = torch.randn(3, requires_grad=True)
    terms = {
        "a": output.sum() * 3,
        "b": -output.sum(),
        "unrelated": other.sum(),
        "constant": torch.tensor(2.0),
    }
    shares = losses.gradient_shares(terms, output)
    assert list(shares) == list(terms)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["a"] == pytest.approx(0.75)
    assert shares["unrelated"] == shares["constant"] == 0
    (terms["a"] + terms["b"]).backward()  # the graph is still there
    assert output.grad is not None
    nothing = losses.gradient_shares({"constant": torch.tensor(2.0)}, output)
    assert nothing == {"constant": 0.0}


def test_every_term_of_the_paper_moves_the_output() -> None:
    target, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    output = (target + 0.1 * torch.randn_like(target)).requires_grad_()
    weights = losses.pixel_weights(mask, torch.zeros_like(mask))
    terms = {
        "l1": losses.l1(output, target, weights),
        "edge": losses.edge(output, target, weights),
        "perceptual": losses.perceptual([output.tanh()], [target.tanh()], [1]),
        "gan": losses.generator_adversarial_loss("nonsaturating", output.mean(1, True), mask),
    }
    shares = losses.gradient_shares(terms, output)
    assert min(shares.values()) > 0
    assert sum(shares.values()) == pytest.approx(1)


class OnCuda(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.fixture
def fresh_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the kernels is imported, and nothing is remembered of what was found."""
    losses._edge_kernels.cache_clear()
    monkeypatch.delitem(sys.modules, "fastrestore.kernels.edge_loss", raising=False)
    yield
    losses._edge_kernels.cache_clear()


@pytest.mark.usefixtures("fresh_kernels")
def test_edge_goes_to_the_kernels_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Tensor, ...]] = []

    def edge_loss(*inputs: Tensor) -> Tensor:
        calls.append(inputs)
        return torch.tensor(7.0)

    kernels = types.ModuleType("fastrestore.kernels.edge_loss")
    kernels.edge_loss = edge_loss  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    case = make_case()
    assert float(losses.edge(*case)) == pytest.approx(sobel_loss(*case))
    assert not calls
    on_cuda = tuple(x.as_subclass(OnCuda) for x in case)
    assert float(losses.edge(*on_cuda)) == 7
    assert len(calls) == 1
    assert all(a is b for a, b in zip(calls[0], on_cuda, strict=True))


@pytest.mark.usefixtures("fresh_kernels")
def test_edge_needs_no_triton(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a CPU it is not looked for; on CUDA the plain form runs, and one line says so."""
    monkeypatch.setitem(sys.modules, "triton", None)
    case = make_case()
    expected = pytest.approx(sobel_loss(*case))
    assert float(losses.edge(*case)) == expected
    assert not caplog.records
    for _ in range(2):
        assert float(losses.edge(*(x.as_subclass(OnCuda) for x in case))) == expected
    assert [r.message.splitlines() for r in caplog.records] == [
        [
            "triton is not installed: the edge loss runs as plain torch, slower; "
            "pip install 'fastrestore[kernels]'"
        ]
    ]


@pytest.mark.usefixtures("fresh_kernels")
def test_a_broken_triton_is_not_taken_for_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastrestore.kernels.edge_loss", None)
    case = make_case()
    with pytest.raises(ModuleNotFoundError, match="edge_loss"):
        losses.edge(*(x.as_subclass(OnCuda) for x in case))


def test_edge_and_its_kernel_agree() -> None:
    pytest.importorskip("triton")
    from fastrestore.kernels.edge_loss import edge_loss, reference

    case = make_case()
    assert losses.edge(*case) == reference(*case)
    single = tuple(x.float() for x in case)
    torch.testing.assert_close(edge_loss(*single), losses.edge(*single))
