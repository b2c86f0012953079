"""The base image: fill, average with the past, network input. All in grey levels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fastrestore.kernels import fusion
from fastrestore.kernels.fusion import (
    Fused,
    correction_gain,
    fill,
    fuse,
    normalise,
    pack,
    pull,
    sobel,
)


@pytest.fixture
def frame() -> Tensor:
    """Whole levels on a smooth picture, `(2, 3, 40, 56)`."""
    torch.manual_seed(5)
    coarse = torch.rand(2, 3, 5, 7) * 215 + 20
    return F.interpolate(coarse, (40, 56), mode="bicubic").clamp(0, 255).round()


@pytest.fixture
def mask() -> Tensor:
    mask = torch.zeros(2, 1, 40, 56)
    mask[0, :, 10:30, 8:20] = 1
    mask[1, :, 0:9, 30:56] = 1
    return mask


def run(frame: Tensor, mask: Tensor, state: Tensor | None = None, sigma: float = 0.0) -> Fused:
    if state is None:
        state = torch.zeros(len(frame), 4, *frame.shape[2:])
    return fuse(frame, mask, state, torch.full((len(frame), 1, 1, 1), sigma))


def noisy(frame: Tensor, sigma: float) -> Tensor:
    return (frame + sigma * torch.randn_like(frame)).round().clamp(0, 255)


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def test_pull_halves_with_ceil_and_keeps_a_constant() -> None:
    assert pull(torch.zeros(1, 2, 9, 14)).shape == (1, 2, 5, 7)
    inner = pull(torch.full((1, 1, 16, 16), 3.0))[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 3.0))


def test_normalise_divides_by_the_weight_but_keeps_a_small_one() -> None:
    x = torch.tensor([[0.3, 0.5], [0.3, 0.1]]).view(2, 2, 1, 1)
    expected = torch.tensor([[0.6, 1.0], [1.2, 0.4]]).view(2, 2, 1, 1)
    torch.testing.assert_close(normalise(x, [1, 1]), expected)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (37, 61), (8, 200)])
def test_fill_of_a_constant_picture_is_constant(size: tuple[int, int]) -> None:
    torch.manual_seed(6)
    mask = (torch.rand(1, 1, *size) < 0.7).float()
    mask[..., 0, 0] = 0
    colour = torch.tensor([10.0, 100.0, 200.0]).view(1, 3, 1, 1)
    filled = fill(colour.expand(1, 3, *size), mask)
    torch.testing.assert_close(filled, colour.expand_as(filled), rtol=0, atol=1e-3)


def test_fill_keeps_known_pixels_and_does_not_see_into_the_hole(
    frame: Tensor, mask: Tensor
) -> None:
    filled = fill(frame, mask)
    assert torch.equal(filled * (1 - mask), frame * (1 - mask))
    assert torch.equal(fill(frame * (1 - mask) + 77 * mask, mask), filled)
    assert filled.min() >= 0
    assert filled.max() <= 255


def test_fill_beyond_the_pyramid_is_the_mean() -> None:
    frame = torch.zeros(1, 3, 8, 1024)
    frame[..., :16] = 90.0
    mask = torch.ones(1, 1, 8, 1024)
    mask[..., :16] = 0
    far = fill(frame, mask)[..., 600:]
    torch.testing.assert_close(far, torch.full_like(far, 90.0), rtol=0, atol=0.1)


@pytest.mark.parametrize("sigma", [0.0, 25.0, 254.0])
def test_full_mask_is_finite(frame: Tensor, sigma: float) -> None:
    packed, state = run(frame, torch.ones(2, 1, 40, 56), sigma=sigma)
    assert torch.isfinite(packed).all()
    assert not state.any()  # black, and no confidence in it


def test_clean_still_keeps_known_pixels_to_the_byte(frame: Tensor, mask: Tensor) -> None:
    packed, state = run(frame, mask)
    known = (1 - mask).expand_as(frame) == 1
    assert torch.equal((packed[:, :3] * 255).round()[known], frame[known])
    assert torch.equal(state[:, :3][known], frame[known])
    one_frame = 128.0  # 255 * 1 / (1 + 1), half to even
    assert torch.equal(state[:, 3:], (1 - mask) * one_frame)


@pytest.mark.parametrize("sigma", [0.0, 20.0])
def test_empty_state_is_a_still(frame: Tensor, mask: Tensor, sigma: float) -> None:
    """Same as fill and pack alone; colours in a state of no confidence do not matter."""
    packed, state = run(frame, mask, sigma=sigma)
    base = fill(frame / 255, mask)
    still = pack(base, mask, sigma * (1 - mask))
    torch.testing.assert_close(packed, still, rtol=0, atol=1e-4)
    junk = torch.cat([torch.rand(2, 3, 40, 56) * 255, torch.zeros(2, 1, 40, 56)], 1)
    again = run(frame, mask, junk, sigma)
    assert torch.equal(again.packed, packed)
    assert torch.equal(again.state, state)


@pytest.mark.parametrize(("sigma", "frames"), [(0.0, 1.0), (2.0, 3.0), (25.0, 15.0)])
def test_confidence_grows_to_what_eight_bits_can_hold(
    frame: Tensor, sigma: float, frames: float
) -> None:
    mask, state = torch.zeros(2, 1, 40, 56), None
    for _ in range(18):
        state = run(frame, mask, state, sigma).state
    assert state is not None
    expected = round(255 * frames / (frames + 1))
    assert state[:, 3].min() >= expected - 1
    assert state[:, 3].max() <= expected


def test_static_noisy_scene_is_averaged(frame: Tensor) -> None:
    torch.manual_seed(7)
    mask, state, errors = torch.zeros(2, 1, 40, 56), None, []
    for _ in range(12):
        state = run(noisy(frame, 25.0), mask, state, 25.0).state
        errors.append(error(state[:, :3], frame))
    assert errors[-1] < errors[0] / 2  # 6 dB; 12 independent frames would give 10.8


def test_cut_takes_the_new_frame(frame: Tensor) -> None:
    mask = torch.zeros(2, 1, 40, 56)
    state = torch.cat([frame, torch.full((2, 1, 40, 56), 239.0)], 1)
    other = 255 - frame.flip(3)
    new = run(noisy(other, 5.0), mask, state, 5.0).state
    assert error(new[:, :3], other) < 6.5  # the noise itself is 5
    assert new[:, 3].mean() < 150  # worth little more than one frame


def test_hole_shows_what_was_seen_before(frame: Tensor, mask: Tensor) -> None:
    state = torch.cat([frame, torch.full((2, 1, 40, 56), 239.0)], 1)
    packed, new = run(frame * (1 - mask), mask, state, 2.0)
    hole = mask.expand_as(frame) == 1
    assert error(new[:, :3][hole], frame[hole]) < 1
    assert packed[:, 3:4][mask == 1].max() < 0.01  # no longer invented
    forgotten = run(frame * (1 - mask), mask, None, 2.0)
    assert error(forgotten.state[:, :3][hole], frame[hole]) > 5
    assert torch.equal(forgotten.packed[:, 3:4], mask)


def test_what_cannot_be_compared_is_not_motion(frame: Tensor, mask: Tensor) -> None:
    """Pixels without a past, or in a hole, do not take the trust from those around them."""
    state = torch.cat([frame, torch.full((2, 1, 40, 56), 226.0)], 1)
    whole = run(frame, torch.zeros_like(mask), state, 20.0).state
    unseen = run(frame, torch.zeros_like(mask), state * (1 - mask), 20.0).state
    hole = run(frame * (1 - mask), mask, state, 20.0).state
    known = (mask == 0).expand_as(whole)
    assert torch.equal(unseen[known], whole[known])
    assert torch.equal(hole[known], whole[known])


def test_foreign_confidence_is_worth_fifteen_frames(frame: Tensor, mask: Tensor) -> None:
    trusted = [torch.cat([frame, torch.full((2, 1, 40, 56), a)], 1) for a in (240.0, 255.0)]
    first, second = (run(noisy(frame, 0.0), mask, s, 9.0).packed for s in trusted)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-3)


def test_noise_map_falls_with_the_frames(frame: Tensor) -> None:
    mask, n = torch.zeros(2, 1, 40, 56), 8.0
    state = torch.cat([frame, torch.full((2, 1, 40, 56), 255 * n / (n + 1))], 1)
    noise = run(frame, mask, state, 20.0).packed[:, 5]
    expected = torch.full_like(noise, 20 / math.sqrt(n + 1) * 4 / 255)
    torch.testing.assert_close(noise, expected, rtol=0.01, atol=0)


def test_sobel_is_its_two_kernels_with_replicated_border() -> None:
    torch.manual_seed(8)
    luma = torch.rand(2, 1, 9, 12, dtype=torch.float64)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64) / 8
    kernels = torch.stack([kernel, kernel.T])[:, None]
    both = F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), kernels)
    torch.testing.assert_close(sobel(luma), both.square().sum(1, keepdim=True).sqrt())
    ramp = 0.01 * torch.arange(12.0).expand(1, 1, 9, 12)
    inner = sobel(ramp)[..., 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.01), rtol=1e-4, atol=0)


def test_pack_has_its_channels_in_order(frame: Tensor, mask: Tensor) -> None:
    base = frame / 255
    packed = pack(base, mask, torch.full_like(mask, 51.0))
    assert packed.shape == (2, 8, 40, 56)
    assert torch.equal(packed[:, :3], base)
    assert torch.equal(packed[:, 3:4], mask)
    luma = 0.299 * base[:, 0] + 0.587 * base[:, 1] + 0.114 * base[:, 2]
    torch.testing.assert_close(packed[:, 4:5], sobel(luma[:, None]), rtol=0, atol=1e-6)
    torch.testing.assert_close(packed[:, 5], torch.full_like(packed[:, 5], 0.8))
    assert not packed[:, 6:].any()


def test_gain_is_one_where_invented_and_zero_where_clean() -> None:
    packed = torch.zeros(1, 8, 1, 4)
    packed[0, 3, 0] = torch.tensor([0.0, 1.0, 0.0, 0.25])
    packed[0, 5, 0] = torch.tensor([0.0, 0.0, fusion.TAU_CORRECTION * 4 / 255, 0.0])
    gain = correction_gain(packed)
    torch.testing.assert_close(gain, torch.tensor([0.0, 1.0, 0.5, 0.25]).view(1, 1, 1, 4))


@pytest.mark.parametrize("sigma", [0.0, 0.05, 25.0, 100.0, 250.0])
def test_half_precision_is_finite_and_close(sigma: float) -> None:
    torch.manual_seed(9)
    frame = torch.randint(0, 256, (1, 3, 48, 64)).float()
    state = torch.randint(0, 256, (1, 4, 48, 64)).float()
    mask = (torch.rand(1, 1, 48, 64) < 0.3).float()
    s = torch.full((1, 1, 1, 1), sigma)
    full = fuse(frame, mask, state, s)
    half = fuse(frame.half(), mask.half(), state.half(), s.half())
    assert torch.isfinite(half.packed).all()
    assert half.state.min() >= 0
    assert half.state.max() <= 255
    assert error(half.packed.float(), full.packed) < 0.004  # one grey level
    assert error(half.state.float(), full.state) < 1
