"""The discriminator: its shapes, its mask-aware targets, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastrestore.errors import InputError
from fastrestore.train import losses
from fastrestore.train.discriminator import Discriminator, Judgement, fake_target, health


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def make_input(side: int = 64, n: int = 2) -> tuple[Tensor, Tensor]:
    """Pictures of noise and a mask with a square hole off the centre, in whole cells."""
    mask = torch.zeros(n, 1, side, side)
    mask[..., :32, :16] = 1
    return torch.rand(n, 3, side, side), mask


@pytest.mark.parametrize("size", [(64, 64), (80, 96), (512, 64), (256, 256)])
def test_shapes(size: tuple[int, int]) -> None:
    judgement = Discriminator(4)(torch.rand(2, 4, *size))
    h, w = size
    assert judgement.patches.shape == (2, 1, h // 16, w // 16)
    assert judgement.whole.shape == (2, 1)
    shapes = [(2, 4 * 2**i, h // 2 ** (i + 1), w // 2 ** (i + 1)) for i in range(4)]
    assert [tuple(f.shape) for f in judgement.features] == shapes


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 4, 60, 64), (1, 4, 64, 72)])
def test_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="multiples of 16"):
        Discriminator(4)(torch.rand(shape))


def test_a_patch_sees_80_px() -> None:
    net = Discriminator(4, spectral=False)
    x = torch.rand(1, 4, 256, 256, requires_grad=True)
    (g,) = torch.autograd.grad(net(x).patches[0, 0, 8, 8], x)
    rows = g.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 80
    assert int(rows[0] + rows[-1] + 1) == 2 * (8 * 16 + 8)  # centred on its cell


def test_a_verdict_does_not_depend_on_the_rest_of_the_batch() -> None:
    net = Discriminator(4).eval()
    x = torch.rand(3, 4, 64, 64)
    torch.testing.assert_close(net(x).patches[1:2], net(x[1:2]).patches)
    torch.testing.assert_close(net(x).whole[1:2], net(x[1:2]).whole)


def largest_singular_values(net: Discriminator) -> list[float]:
    weights = [c.weight.detach() for c in net.body if isinstance(c, nn.Conv2d)]
    return [float(torch.linalg.matrix_norm(w.flatten(1), 2)) for w in weights]


def test_spectral_norm_bounds_the_body() -> None:
    net = Discriminator(8)
    with torch.no_grad():
        for conv in net.body:
            conv.parametrizations.weight.original.mul_(50)
        for _ in range(30):  # one power iteration each
            net(torch.rand(1, 4, 32, 32))
    assert largest_singular_values(net) == pytest.approx([1] * 4, abs=0.02)
    assert max(largest_singular_values(Discriminator(8, spectral=False))) > 1.2


def test_two_verdicts_before_one_backward_pass() -> None:
    """Power iteration changes its vectors at every verdict; the graph must not mind."""
    net = Discriminator(4)
    x, mask = make_input()
    real, fake = net(torch.cat([x, mask], 1)), net(torch.cat([1 - x, mask], 1))
    target = fake_target(mask, fake.patches)
    losses.discriminator_loss("hinge", real.patches, fake.patches, target).backward()
    assert all(p.grad is not None for p in net.body.parameters())


def test_r1_reaches_every_weight_of_the_body() -> None:
    net = Discriminator(4)
    x = torch.rand(2, 4, 32, 32, requires_grad=True)
    losses.r1(net(x).patches, x).backward()
    for name, p in net.body.named_parameters():
        if "bias" not in name:
            assert p.grad is not None
            assert p.grad.abs().max() > 0


def test_resumes_to_the_bit() -> None:
    """The vectors of the power iteration are part of the state."""
    a, b = Discriminator(4), Discriminator(4)
    x = torch.rand(1, 4, 32, 32)
    a(x)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(x).patches, b(x).patches)


def test_target_is_the_share_of_the_cell_four_times_over() -> None:
    patches = torch.zeros(1, 1, 4, 4)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :16, :16] = 1
    mask[..., 16:32, 3:7] = 1  # a line of 4 px through a cell
    mask[..., 32, 16:32] = 1  # one of 1 px
    mask[..., 63, 63] = 1
    expected = torch.zeros(4, 4)
    expected[0, 0] = expected[1, 0] = 1
    expected[2, 1] = 0.25
    expected[3, 3] = 4 / 256
    assert torch.equal(fake_target(mask, patches)[0, 0], expected)


def test_known_patches_are_pushed_to_real() -> None:
    """Through the whole network: a step downhill raises the logits of untouched patches."""
    net = Discriminator(4)
    x, mask = make_input()
    fake = net(torch.cat([x, mask], 1)).patches
    fake.retain_grad()
    target = fake_target(mask, fake)
    assert set(target.unique().tolist()) == {0, 1}
    losses.discriminator_loss("nonsaturating", torch.zeros_like(fake), fake, target).backward()
    assert fake.grad is not None
    assert (fake.grad[target == 0] < 0).all()
    assert (fake.grad[target == 1] > 0).all()


@pytest.mark.parametrize("kind", ["nonsaturating", "least-squares", "hinge"])
def test_learns_to_tell_a_white_fill(kind: str) -> None:
    net = Discriminator(4)
    figures: dict[str, float] = {}
    for _ in range(40):
        x, mask = make_input(side=32)
        filled = x * (1 - mask) + mask
        real, fake = (net(torch.cat([v, mask], 1)) for v in (x, filled))
        target = fake_target(mask, fake.patches)
        one = torch.ones_like(fake.whole)
        loss = losses.discriminator_loss(kind, real.patches, fake.patches, target)
        loss = loss + losses.discriminator_loss(kind, real.whole, fake.whole, one)
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 3e-3 * p.grad.sign()  # Adam without memory, and without its slow import
        figures = health(real, fake, target, kind)
    assert min(v for k, v in figures.items() if "accuracy" in k) > 0.9
    assert figures["real_logit"] > figures["fake_logit"] + 0.2


def test_health_by_hand() -> None:
    target = torch.tensor([1.0, 0.5, 0.0, 0.0]).view(1, 1, 2, 2)
    real = Judgement(
        torch.tensor([3.0, -3.0, 9.0, 9.0]).view(1, 1, 2, 2), torch.tensor([[0.2]]), []
    )
    fake = Judgement(
        torch.tensor([0.3, -0.6, 9.0, -9.0]).view(1, 1, 2, 2), torch.tensor([[0.4]]), []
    )
    assert health(real, fake, target) == pytest.approx(
        {
            "real_logit": 1.0,
            "fake_logit": 0.0,
            "real_accuracy": 2 / 3,
            "fake_accuracy": 1 / 3,
            "known_accuracy": 0.5,
            "whole_accuracy": 0.5,
        }
    )
    squares = health(real, fake, target, "least-squares")
    assert squares["fake_accuracy"] == 1
    assert squares["whole_accuracy"] == 0.5
    assert math.isnan(health(real, fake, torch.zeros_like(target))["fake_logit"])
