"""What a run looks at while it trains."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastrestore.degrade import TOLERANCE
from fastrestore.kernels import fusion
from fastrestore.metrics import psnr
from fastrestore.presets import Preset
from fastrestore.train import validate
from fastrestore.train.generator import Generator

MICRO = Preset("micro", (16, 32), (1,), 1, (2,), (1,))


def picture(height: int = 64, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / 64
    planes = [np.sin(6 * x + 3 * y), np.cos(8 * y - 2 * x), np.sin(5 * x * y)]
    return np.rint(127 + 100 * np.stack(planes, -1)).astype(np.uint8)


@pytest.fixture
def cases() -> dict[str, list[validate.Case]]:
    return validate.make_cases([picture(), picture()[::-1]], MICRO.multiple)


def make_net(zero: bool = False) -> Generator:
    torch.manual_seed(3)
    net = Generator(MICRO)
    with torch.no_grad():
        for p in net.parameters():
            if not zero and not p.any():  # the layers that start at zero
                p.normal_(std=0.2 * p[0].numel() ** -0.5)
    return net


def test_cases_are_named_and_damaged_as_named(cases: dict[str, list[validate.Case]]) -> None:
    assert list(cases) == ["ff10", "ff20", "ff40", "s25"]
    for name, ratio in (("ff10", 0.1), ("ff20", 0.2), ("ff40", 0.4)):
        for c in cases[name]:
            assert abs(c.mask.mean() - ratio) <= TOLERANCE
            assert np.array_equal(c.damaged, c.clean)
            assert c.sigma == 0
    for c in cases["s25"]:
        assert not c.mask.any()
        assert c.sigma == 25
        inner = (c.clean > 90) & (c.clean < 165)  # not clipped
        assert np.std(c.damaged[inner] - c.clean[inner].astype(float)) == pytest.approx(25, rel=0.1)


def test_cases_are_the_same_in_every_run(cases: dict[str, list[validate.Case]]) -> None:
    again = validate.make_cases([picture(), picture()[::-1]], MICRO.multiple)
    for name, rows in cases.items():
        for a, b in zip(rows, again[name], strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(cases["ff20"][0].mask, cases["ff20"][1].mask)


@pytest.mark.parametrize(
    ("size", "expected"), [((67, 70), (64, 64)), ((300, 90), (256, 88)), ((400, 500), (256, 256))]
)
def test_cases_are_centres_that_the_net_can_take(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    (case,) = validate.make_cases([picture(*size)], 8)["ff20"]
    (h, w), (ch, cw) = size, expected
    y, x = (h - ch) // 2, (w - cw) // 2
    assert np.array_equal(case.clean, picture(*size)[y : y + ch, x : x + cw])
    assert case.mask.shape == expected


def test_untrained_net_gives_the_fill_and_the_noisy_picture(
    cases: dict[str, list[validate.Case]],
) -> None:
    net, case = make_net(zero=True), cases["ff20"][0]
    frame = torch.from_numpy(case.damaged).permute(2, 0, 1)[None].float()
    mask = torch.from_numpy(case.mask)[None, None].float()
    filled = fusion.fill(frame, mask)[0].permute(1, 2, 0).numpy()
    out = validate.restore(net, case)
    assert out.dtype == np.uint8
    assert np.abs(out - filled).max() <= 0.5 + 1e-3
    noisy = cases["s25"][0]
    assert np.array_equal(validate.restore(net, noisy), noisy.damaged)


def test_known_pixels_stay_to_the_byte_and_noise_is_worked_on(
    cases: dict[str, list[validate.Case]],
) -> None:
    net, untrained = make_net(), make_net(zero=True)
    for c in (*cases["ff10"], *cases["ff40"]):
        out = validate.restore(net, c)
        known = c.mask == 0
        assert np.array_equal(out[known], c.damaged[known])
        assert not np.array_equal(out, validate.restore(untrained, c))
    assert not np.array_equal(validate.restore(net, cases["s25"][0]), cases["s25"][0].damaged)


def test_mean_psnr_is_over_pictures(cases: dict[str, list[validate.Case]]) -> None:
    net = make_net()
    each = [psnr(validate.restore(net, c), c.clean) for c in cases["ff20"]]
    assert abs(each[0] - each[1]) > 1e-3
    assert validate.mean_psnr(net, cases["ff20"]) == pytest.approx(sum(each) / 2)


def test_perfect_picture_keeps_the_mean_a_number() -> None:
    """A blank scan is restored exactly: the figures must stay JSON."""
    blank = np.full((64, 64, 3), 255, np.uint8)
    net, cases = make_net(zero=True), validate.make_cases([blank, picture()], MICRO.multiple)
    assert math.isfinite(validate.mean_psnr(net, cases["ff20"]))
    assert all(math.isfinite(v) for v in validate.bypass_losses(net, cases["ff20"]).values())


def test_active_fractions_name_every_block_and_show_a_dead_one(
    cases: dict[str, list[validate.Case]],
) -> None:
    net, case = make_net(), cases["ff20"][0]
    found = validate.active_fractions(net, case)
    assert list(found) == ["encoder.0.0", "middle.0", "middle.1", "decoder.0.0"]
    assert all(0.1 < v < 0.9 for v in found.values())
    with torch.no_grad():
        net.get_submodule("middle.1.conv3.conv").bias.fill_(-100)
        net.get_submodule("decoder.0.0.conv3.conv").bias.fill_(100)
    found = validate.active_fractions(net, case)
    assert found["middle.1"] == 0
    assert found["decoder.0.0"] == 1
    assert found["middle.0"] > 0.1


def test_looking_leaves_no_hooks(cases: dict[str, list[validate.Case]]) -> None:
    net = make_net()
    validate.active_fractions(net, cases["ff20"][0])
    assert not any(m._forward_hooks for m in net.modules())


def test_bypass_is_the_loss_without_a_levels_blocks(
    cases: dict[str, list[validate.Case]],
) -> None:
    """A block whose 1x1 is zero is the identity: the same figure by another way."""
    net, few = make_net(), cases["ff20"]
    lost = validate.bypass_losses(net, few)
    assert list(lost) == ["middle", "encoder.0", "decoder.0"]
    whole = validate.mean_psnr(net, few)
    for level, value in lost.items():
        silent = make_net()
        with torch.no_grad():
            for name, p in silent.named_parameters():
                if name.startswith(level) and "conv1" in name:
                    p.zero_()
        assert value == pytest.approx(whole - validate.mean_psnr(silent, few), abs=6e-4)
    assert any(value != 0 for value in lost.values())


def test_bypass_gives_the_net_back(cases: dict[str, list[validate.Case]]) -> None:
    net = make_net()
    before, modules = list(net.state_dict()), list(net.modules())
    out = validate.restore(net, cases["ff20"][0])
    validate.bypass_losses(net, cases["ff20"][:1])
    assert list(net.state_dict()) == before
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert np.array_equal(validate.restore(net, cases["ff20"][0]), out)


def test_level_without_blocks_has_no_figure(cases: dict[str, list[validate.Case]]) -> None:
    preset = Preset("bare", (16, 32), (0,), 1, (), (1,))
    lost = validate.bypass_losses(Generator(preset), cases["ff20"][:1])
    assert lost == {"middle": 0.0, "decoder.0": 0.0}  # starts at zero, so is worth nothing yet


def test_grid_shows_damaged_restored_clean(
    tmp_path: Path, cases: dict[str, list[validate.Case]]
) -> None:
    net, rows = make_net(), [cases["ff20"][0], cases["s25"][0]]
    validate.write_grid(tmp_path / "grid.png", net, rows)
    with Image.open(tmp_path / "grid.png") as im:
        grid = np.asarray(im)
    assert grid.shape == (128, 192, 3)
    for i, c in enumerate(rows):
        damaged, restored, clean = np.split(grid[64 * i : 64 * (i + 1)], 3, 1)
        assert (damaged[c.mask > 0] == 255).all()
        assert np.array_equal(damaged[c.mask == 0], c.damaged[c.mask == 0])
        assert np.array_equal(restored, validate.restore(net, c))
        assert np.array_equal(clean, c.clean)


def test_grid_of_several_widths_shows_all_three_columns(tmp_path: Path) -> None:
    net, wide, narrow = make_net(), picture(64, 96), picture(64, 64)
    rows = validate.make_cases([wide, narrow], MICRO.multiple)["ff20"]
    validate.write_grid(tmp_path / "grid.png", net, rows)
    with Image.open(tmp_path / "grid.png") as im:
        grid = np.asarray(im)
    assert np.array_equal(grid[64:, -64:], narrow)
    assert np.array_equal(grid[:64, -64:], wide[:, :64])


def test_validation_needs_no_gradients(cases: dict[str, list[validate.Case]]) -> None:
    net = make_net()
    validate.bypass_losses(net, cases["ff20"][:1])
    assert all(p.grad is None for p in net.parameters())
    assert isinstance(net.middle, nn.Sequential)
