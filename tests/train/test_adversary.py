"""The discriminator in training: whom its terms move, and when they are due."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fastrestore.train import losses
from fastrestore.train.adversary import Adversary
from fastrestore.train.config import CHOICES, TrainConfig
from fastrestore.train.discriminator import fake_target

MakeConfig = Callable[..., TrainConfig]
Material = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def make(stage2: MakeConfig) -> Callable[..., Adversary]:
    def make(**changes: object) -> Adversary:
        torch.manual_seed(0)
        return Adversary(stage2(**({"d_warm": 0} | changes)))

    return make


MakeAdversary = Callable[..., Adversary]


@pytest.fixture
def material() -> Material:
    """A composite that is the truth outside its holes; the second sample has none."""
    rng = torch.Generator().manual_seed(1)
    real = torch.rand(2, 3, 32, 48, generator=rng)
    mask = torch.zeros(2, 1, 32, 48)
    mask[0, :, :16, 8:40] = 1
    fake = real + mask * (torch.rand(real.shape, generator=rng) - real)
    return fake, real, mask


def grads(value: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


@pytest.mark.parametrize("kind", CHOICES["gan"])
def test_terms_are_their_formulas(make: MakeAdversary, material: Material, kind: str) -> None:
    """Patches and the single logit count alike."""
    adversary = make(gan=kind, adversarial=0.3, feature_matching=0.7)
    fake, real, mask = material
    terms = adversary.terms(*material, step=0)
    with torch.no_grad():
        on_real, on_fake = adversary.judge(real, mask), adversary.judge(fake, mask)
        target, holed = fake_target(mask, on_fake.patches), torch.tensor([[1.0], [0.0]])
        own = [
            losses.discriminator_loss(kind, on_real.patches, on_fake.patches, target),
            losses.discriminator_loss(kind, on_real.whole, on_fake.whole, holed),
        ]
        generators = [
            losses.generator_adversarial_loss(kind, on_fake.patches, target),
            losses.generator_adversarial_loss(kind, on_fake.whole, holed),
        ]
        distance = losses.feature_matching(on_fake.features, on_real.features, mask)
    assert terms["discriminator"].item() == pytest.approx(float(sum(own)) / 2)
    assert terms["adversarial"].item() == pytest.approx(0.3 * float(sum(generators)) / 2)
    assert terms["feature_matching"].item() == pytest.approx(0.7 * float(distance))


@pytest.mark.parametrize("kind", CHOICES["gan"])
def test_players_are_apart(make: MakeAdversary, material: Material, kind: str) -> None:
    adversary = make(gan=kind)
    fake, real, mask = material
    fake.requires_grad_()
    terms = adversary.terms(fake, real, mask, step=0)
    weights = list(adversary.net.parameters())
    assert all(g.any() for g in grads(terms["discriminator"], weights))
    assert not grads(terms["discriminator"], [fake])[0].any()
    for name in ("adversarial", "feature_matching"):
        assert not any(g.any() for g in grads(terms[name], weights)), name
        (g,) = grads(terms[name], [fake])
        assert g[0].any(), name
        assert not g[1].any(), name  # no hole, nothing to learn
    assert all(p.requires_grad for p in weights)  # for the next step


def test_generator_waits_and_weights_at_zero_cost_nothing(
    make: MakeAdversary, material: Material
) -> None:
    assert make(d_warm=3).terms(*material, step=2).keys() == {"discriminator"}
    assert len(make(d_warm=3).terms(*material, step=3)) == 3
    without = make(feature_matching=0.0).terms(*material, step=0)
    assert without.keys() == {"adversarial", "discriminator"}


def test_penalty_is_lazy_and_replaces_spectral_norm(
    make: MakeAdversary, material: Material
) -> None:
    _, real, mask = material
    without, adversary = make(r1=1e-9, r1_every=4), make(r1=0.5, r1_every=4)
    assert not any("parametrizations" in name for name, _ in adversary.net.named_parameters())
    assert any("parametrizations" in name for name, _ in make().net.named_parameters())
    leaf = real.clone().requires_grad_()
    (slope,) = torch.autograd.grad(adversary.judge(leaf, mask).patches.sum(), leaf)
    penalty = float(slope.square().sum((1, 2, 3)).mean())
    for step, due in ((0, True), (1, False), (3, False), (4, True)):
        plain, found = (
            a.terms(*material, step)["discriminator"].item() for a in (without, adversary)
        )
        expected = 0.5 * 4 / 2 * penalty if due else 0
        assert found - plain == pytest.approx(expected, rel=0.02, abs=1e-5), step
    loss = adversary.terms(*material, 0)["discriminator"]
    weights = list(adversary.net.parameters())
    assert all(torch.isfinite(g).all() for g in grads(loss, weights))


def test_learns_to_tell_them_apart_and_says_so(make: MakeAdversary, material: Material) -> None:
    fake, real, mask = material
    adversary = make(d_lr=2e-3)
    before = adversary.health(fake, real, mask)
    for step in range(30):
        adversary.terms(fake, real, mask, step)["discriminator"].backward()
        adversary.step()
        assert all(p.grad is None for p in adversary.net.parameters())
    after = adversary.health(fake, real, mask)
    gap = [h["real_logit"] - h["fake_logit"] for h in (before, after)]
    assert gap[1] > gap[0] + 0.3
    logits = [adversary.mean_logit(x, mask) for x in (real, fake)]
    assert logits[0] > logits[1]


def largest_singular_values(adversary: Adversary) -> list[float]:
    return [
        float(torch.linalg.matrix_norm(c.weight.detach().flatten(1), 2)) for c in adversary.net.body
    ]


def test_spectral_norm_is_followed_once_a_step(make: MakeAdversary, material: Material) -> None:
    """Judging changes nothing, so a step does not depend on how its samples are split."""
    adversary = make()
    states = [{k: v.clone() for k, v in adversary.net.state_dict().items()}]
    for _ in range(2):
        loss = adversary.terms(*material, step=0)["discriminator"]
        adversary.health(*material)
        states.append({k: v.clone() for k, v in adversary.net.state_dict().items()})
    for a, b in pairwise(states):
        assert all(torch.equal(a[k], b[k]) for k in a)
    loss.backward()
    adversary.step()
    moved = adversary.net.state_dict()
    assert all(not torch.equal(moved[k], v) for k, v in states[0].items() if k.endswith("._u"))
    for step in range(20):
        adversary.terms(*material, step)["discriminator"].backward()
        adversary.step()
    assert largest_singular_values(adversary) == pytest.approx([1] * 4, abs=0.2)


def test_judges_in_bfloat16_and_answers_in_float(make: MakeAdversary, material: Material) -> None:
    adversary = make()
    seen = []
    hook = adversary.net.body[1].register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    verdict = adversary.judge(*material[1:])
    hook.remove()
    assert seen == [torch.bfloat16]
    maps = [verdict.patches, verdict.whole, *verdict.features]
    assert all(m.dtype == torch.float32 for m in maps)
    assert F.sigmoid(verdict.whole).shape == (2, 1)
