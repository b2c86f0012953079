"""The generator against what `fastrestore.presets` says of it without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fastrestore.presets import IN_CHANNELS, PRESETS, Conv
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
