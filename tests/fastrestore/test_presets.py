from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from fastrestore.errors import InputError
from fastrestore.presets import IN_CHANNELS, PRESETS, UNSHUFFLE, Conv, Preset

presets = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


# Parameters in millions, GMAC at 256x256 and at 1088x1920: the sizes the model was designed to.
@pytest.mark.parametrize(
    ("name", "millions", "gmac_256", "gmac_1080p", "multiple"),
    [
        ("nano", 0.212, 0.39, 12.4, 8),
        ("tiny", 1.121, 0.74, 23.6, 16),
        ("base", 3.037, 3.06, 97.5, 16),
    ],
)
def test_sizes(name: str, millions: float, gmac_256: float, gmac_1080p: float, multiple: int):
    preset = PRESETS[name]
    assert preset.name == name
    assert preset.parameters / 1e6 == pytest.approx(millions, abs=5e-4)
    assert preset.macs(256, 256) / 1e9 == pytest.approx(gmac_256, abs=5e-3)
    assert preset.macs(1088, 1920) / 1e9 == pytest.approx(gmac_1080p, abs=0.05)
    assert preset.multiple == multiple


def test_names():
    assert list(PRESETS) == ["nano", "tiny", "base"]


def test_conv_arithmetic():
    spatial = Conv("a", "spatial", 16, 32, 3, 1, 2, 10, 20)
    assert spatial.macs == 16 * 32 * 9 * 200
    assert spatial.parameters == 16 * 32 * 9 + 32
    down = Conv("b", "down", 16, 32, 2, 2, 1, 5, 10)
    assert down.macs == 16 * 32 * 4 * 50
    up = Conv("c", "up", 32, 16, 2, 2, 1, 10, 20)  # each output reads one input cell
    assert up.macs == 32 * 16 * 200
    assert up.parameters == 32 * 16 * 4 + 16


def test_nano_layer_by_layer():
    layers = [(c.name, c.cin, c.cout, c.dilation, c.height) for c in PRESETS["nano"].convs(64, 32)]
    assert layers == [
        ("stem", 32, 16, 1, 32),
        ("down.0", 16, 32, 1, 16),
        ("encoder.1.0.conv3", 32, 32, 1, 16),
        ("encoder.1.0.conv1", 32, 32, 1, 16),
        ("down.1", 32, 64, 1, 8),
        ("middle.0.conv3", 64, 64, 1, 8),
        ("middle.0.conv1", 64, 64, 1, 8),
        ("middle.1.conv3", 64, 64, 1, 8),
        ("middle.1.conv1", 64, 64, 1, 8),
        ("middle.2.conv3", 64, 64, 2, 8),
        ("middle.2.conv1", 64, 64, 1, 8),
        ("middle.3.conv3", 64, 64, 4, 8),
        ("middle.3.conv1", 64, 64, 1, 8),
        ("up.1", 64, 32, 1, 16),
        ("decoder.1.0.conv3", 32, 32, 1, 16),
        ("decoder.1.0.conv1", 32, 32, 1, 16),
        ("up.0", 32, 16, 1, 32),
        ("head", 16, 12, 1, 32),
    ]
    assert all(c.width * 2 == c.height for c in PRESETS["nano"].convs(64, 32))


@presets
def test_layers_fit_together(preset: Preset):
    size, channels = preset.multiple * 4, IN_CHANNELS * UNSHUFFLE**2
    side = size // UNSHUFFLE
    for conv in preset.convs(size, size):
        assert conv.cin == channels, conv.name
        side = {"down": side // 2, "up": side * 2}.get(conv.role, side)
        assert conv.height == conv.width == side, conv.name
        assert conv.stride == (2 if conv.role in ("down", "up") else 1)
        assert conv.kernel == {"pointwise": 1, "down": 2, "up": 2}.get(conv.role, 3)
        channels = conv.cout
    assert channels == 3 * UNSHUFFLE**2
    assert side * UNSHUFFLE == size


@presets
def test_layer_names_are_unique_and_enough(preset: Preset):
    names = [c.name for c in preset.convs(preset.multiple, preset.multiple)]
    assert len(set(names)) == len(names)
    blocks = sum(preset.encoder) + preset.middle + len(preset.dilations) + sum(preset.decoder)
    levels = len(preset.widths) - 1
    assert len(names) == 2 + 2 * blocks + 2 * levels


@presets
def test_smallest_picture_has_one_cell_at_the_bottom(preset: Preset):
    sizes = [(c.height, c.width) for c in preset.convs(preset.multiple, 2 * preset.multiple)]
    assert min(sizes) == (1, 2)


@presets
def test_macs_grow_with_the_area(preset: Preset):
    one = preset.macs(preset.multiple, preset.multiple)
    assert preset.macs(3 * preset.multiple, 5 * preset.multiple) == 15 * one


def reach(preset: Preset, at_px: int) -> tuple[int, int]:
    """First and last input px of one axis that output px `at_px` reads, walked layer by layer."""
    low = high = at_px // UNSHUFFLE
    for conv in reversed(list(preset.convs(preset.multiple, preset.multiple))):
        if conv.role == "down":
            low, high = 2 * low, 2 * high + 1
        elif conv.role == "up":
            low, high = low // 2, high // 2
        else:
            radius = conv.dilation * (conv.kernel // 2)
            low, high = low - radius, high + radius
    return UNSHUFFLE * low, UNSHUFFLE * high + UNSHUFFLE - 1


@presets
def test_receptive_field_holds_for_every_phase(preset: Preset):
    spans = [reach(preset, 4096 + i) for i in range(2 * preset.multiple)]
    widest = max(high - low + 1 for low, high in spans)
    assert widest <= preset.receptive_field <= widest + 8


@pytest.mark.parametrize("widths", [(24, 48), (16, 20), (16, 256), (8, 16), (0, 16)])
def test_other_widths_are_refused(widths: tuple[int, ...]):
    with pytest.raises(InputError, match="preset odd: widths"):
        Preset("odd", widths, (1,), 1, (1,), (1,))


@pytest.mark.parametrize(("encoder", "decoder"), [((1,), (1, 1)), ((1, 1), (1,)), ((), ())])
def test_one_entry_a_level(encoder: tuple[int, ...], decoder: tuple[int, ...]):
    with pytest.raises(InputError, match="preset odd: one encoder and decoder entry"):
        Preset("odd", (16, 32, 64), encoder, 1, (1,), decoder)


def test_presets_are_frozen():
    with pytest.raises(FrozenInstanceError):
        PRESETS["nano"].middle = 5
