"""The generator against what `fastrestore.presets` says of it without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fastrestore.kernels import fusion
from fastrestore.presets import IN_CHANNELS, PRESETS, Conv
from fastrestore.train.config import CHOICES
from fastrestore.train.generator import Generator
from fastrestore.train.layers import EdgeConv


def make_packed(height: int, width: int, n: int = 2) -> Tensor:
    torch.manual_seed(4)
    packed = torch.rand(n, IN_CHANNELS, height, width)
    packed[:, 6:] = 0
    return packed


def fill_zeros(generator: Generator) -> Generator:
    """Give the layers that start at zero something to say."""
    with torch.no_grad():
        for p in generator.parameters():
            if not p.any():
                p.normal_(std=0.3 * p[0].numel() ** -0.5)
    return generator


def convolutions_that_run(generator: Generator, packed: Tensor) -> list[tuple[Any, ...]]:
    """Run once; return name, channels, geometry and output size of each layer, in order."""
    seen: list[tuple[Any, ...]] = []

    def watch(name: str, layer: nn.Conv2d | nn.ConvTranspose2d) -> Any:
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            sizes = (layer.kernel_size[0], layer.stride[0], layer.dilation[0])
            seen.append((name, layer.in_channels, layer.out_channels, *sizes, *out.shape[2:]))

        return hook

    for name, module in generator.named_modules():
        if isinstance(module, EdgeConv):
            module.register_forward_hook(watch(name, module.conv))
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(watch(name, module))
    generator(packed)
    return seen


def as_tuple(c: Conv) -> tuple[Any, ...]:
    return (c.name, c.cin, c.cout, c.kernel, c.stride, c.dilation, c.height, c.width)


@pytest.mark.parametrize("name", PRESETS)
def test_layers_are_the_presets(name: str) -> None:
    preset = PRESETS[name]
    height, width = 2 * preset.multiple, 3 * preset.multiple
    generator = Generator(preset).fuse()
    with torch.no_grad():
        ran = convolutions_that_run(generator, make_packed(height, width, 1))
    assert ran == [as_tuple(c) for c in preset.convs(height, width)]
    assert sum(p.numel() for p in generator.parameters()) == preset.parameters


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_designed_size(name: str) -> None:
    millions, gmac = {"nano": (0.21, 0.39), "tiny": (1.12, 0.74), "base": (3.0, 3.1)}[name]
    preset = PRESETS[name]
    assert preset.parameters / 1e6 == pytest.approx(millions, rel=0.03)
    assert preset.macs(256, 256) / 1e9 == pytest.approx(gmac, rel=0.03)


@pytest.mark.parametrize("name", PRESETS)
def test_fuse_changes_nothing_but_the_layers(name: str) -> None:
    preset = PRESETS[name]
    generator = fill_zeros(Generator(preset)).double()
    packed = make_packed(preset.multiple, 3 * preset.multiple).double()
    with torch.no_grad():
        before = generator(packed)
        after = generator.fuse()(packed)
        again = generator.fuse()(packed)
    assert before.abs().mean() > 0.001
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    assert torch.equal(again, after)
    assert not [k for k in generator.state_dict() if k.endswith((".mix", ".scale"))]


@pytest.mark.parametrize("name", PRESETS)
def test_untrained_network_is_the_identity(name: str) -> None:
    packed = make_packed(PRESETS[name].multiple, PRESETS[name].multiple)
    assert torch.equal(Generator(PRESETS[name]).restore(packed), packed[:, :3])


def test_skips_are_added() -> None:
    """With nothing coming up from below, the picture still passes at full size."""
    generator = fill_zeros(Generator(PRESETS["nano"])).double().fuse()
    packed = make_packed(16, 24).double()
    with torch.no_grad():
        for up in generator.up:
            for p in up.parameters():
                p.zero_()
        stem = generator.stem(F.pixel_unshuffle(packed, 2))
        expected = F.pixel_shuffle(generator.head(stem), 2)
        torch.testing.assert_close(generator(packed), expected, rtol=0, atol=1e-12)


def test_every_weight_learns_once_the_last_layers_speak() -> None:
    generator = fill_zeros(Generator(PRESETS["nano"]))
    generator(make_packed(48, 64)).square().sum().backward()
    dead = [n for n, p in generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_correction_is_scaled_by_the_gain() -> None:
    generator = fill_zeros(Generator(PRESETS["nano"]))
    packed = make_packed(16, 24)
    packed[:, 5] = 0
    packed[:, 3] = 0
    packed[:, 3, 4:9, 3:11] = 1
    with torch.no_grad():
        change = generator.restore(packed) - packed[:, :3]
        correction = generator(packed)
    hole = packed[:, 3:4] == 1
    torch.testing.assert_close(change, correction * hole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_receptive_field_by_gradient(name: str) -> None:
    """The stated side bounds the measured one, from above and by less than one step."""
    preset = replace(PRESETS[name], widths=(16,) * len(PRESETS[name].widths))
    generator = Generator(preset).fuse()
    with torch.no_grad():
        for p in generator.parameters():  # positive: nothing cancels, no ReLU is off
            p.fill_(1 / p[0].numel() if p.ndim > 1 else 0)
    packed = torch.ones(1, IN_CHANNELS, preset.multiple, 1024).requires_grad_()
    row = generator(packed)[0, 0, 0]
    sides = []
    for x in range(512, 512 + preset.multiple):
        (gradient,) = torch.autograd.grad(row[x], packed, retain_graph=True)
        reached = gradient.abs().sum((0, 1, 2)).nonzero()
        sides.append(int(reached.max() - reached.min()) + 1)
    assert preset.receptive_field - preset.multiple < max(sides) <= preset.receptive_field


ABLATIONS = [name for name in CHOICES["ablate"] if name]


def make_input(other_fill: bool = False) -> Tensor:
    """A base with a hole of invented content, as the restorer sees it."""
    torch.manual_seed(6)
    base, soft_mask = torch.rand(2, 3, 32, 40), torch.zeros(2, 1, 32, 40)
    soft_mask[..., 6:20, 8:30] = 1
    if other_fill:
        base = torch.where(soft_mask > 0, 1 - base, base)
    return fusion.pack(base, soft_mask, torch.full_like(soft_mask, 12.0) * (1 - soft_mask))


def make_ablated(ablate: str) -> Generator:
    """Weights as in every other one, as far as they go."""
    torch.manual_seed(7)
    whole = fill_zeros(Generator(PRESETS["nano"])).state_dict()
    net = Generator(PRESETS["nano"], ablate=ablate)
    own = net.state_dict()
    net.load_state_dict({k: whole[k] if whole[k].shape == v.shape else v for k, v in own.items()})
    return fill_zeros(net)


@pytest.mark.parametrize("ablate", ABLATIONS)
def test_every_ablation_runs_learns_and_matters(ablate: str) -> None:
    net, packed = make_ablated(ablate), make_input()
    with torch.no_grad():
        whole = make_ablated("").restore(packed)
    restored = net.restore(packed)
    assert restored.shape == whole.shape
    assert (restored - whole).abs().mean() > 1e-4
    restored.square().sum().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("ablate", ["", *ABLATIONS])
def test_ablated_network_starts_as_the_identity_of_its_input(ablate: str) -> None:
    packed = make_input()
    restored = Generator(PRESETS["nano"], ablate=ablate).restore(packed)
    known = packed[:, 3:4] == 0
    assert torch.equal(restored * known, packed[:, :3] * known)
    assert torch.equal(restored, packed[:, :3]) == (ablate != "zero-fill")


@pytest.mark.parametrize("ablate", ["", *ABLATIONS])
def test_parameters_of_the_ablated(ablate: str) -> None:
    preset = PRESETS["nano"]
    net = Generator(preset, ablate=ablate)
    mixes = [k for k in net.state_dict() if k.endswith(".mix")]
    assert bool(mixes) == (ablate != "plain-conv")
    fused = sum(p.numel() for p in net.fuse().parameters())
    pointwise = [c for c in preset.convs(16, 16) if c.role == "pointwise"]
    more = sum(8 * c.cin * c.cout for c in pointwise) if ablate == "block-33" else 0
    assert fused == preset.parameters + more


@pytest.mark.parametrize("ablate", ["", "zero-fill"])
def test_zero_fill_does_not_see_the_fill(ablate: str) -> None:
    """The base's content in the hole, and the edges that come from it, make no difference."""
    net, packed = make_ablated(ablate), make_input()
    with torch.no_grad():
        a, b = net.restore(packed), net.restore(make_input(other_fill=True))
        half = net.restore(torch.cat([packed[:, :3], packed[:, 3:4] / 2, packed[:, 4:]], 1))
    assert torch.equal(a, b) == (ablate == "zero-fill")
    assert (half - a).abs().mean() > 1e-4  # what is only in part invented is seen in part


@pytest.mark.parametrize("ablate", ["", "no-sobel"])
def test_no_sobel_does_not_see_the_edges(ablate: str) -> None:
    net, packed = make_ablated(ablate), make_input()
    other = packed.clone()
    other[:, 4] += 0.3
    with torch.no_grad():
        assert torch.equal(net.restore(packed), net.restore(other)) == (ablate == "no-sobel")


def test_number_of_outputs_is_free() -> None:
    net = Generator(PRESETS["nano"], outputs=1)
    assert net(make_packed(16, 24)).shape == (2, 1, 16, 24)
