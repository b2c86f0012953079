"""Network input made from clean crops: true where it is said to be, noisy as it is said to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastrestore.kernels import fusion
from fastrestore.train import samples
from fastrestore.train.data import Batch
from fastrestore.train.samples import Sample, coarse_guess, make_sample

N, SIDE = 2, 48


@pytest.fixture
def clean() -> np.ndarray:
    """Structured, all levels: `(N, 48, 48, 3)` uint8."""
    y, x = np.mgrid[:SIDE, :SIDE]
    planes = [(5 * x + 3 * y) % 256, (7 * y) % 256, (x * y) % 256]
    return np.stack([np.stack(planes, -1), np.stack(planes[::-1], -1)]).astype(np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((N, SIDE, SIDE), np.uint8)
    mask[0, 8:30, 10:25] = 1
    mask[1, 20:, 30:] = 1
    return mask


def make_batch(clean: np.ndarray, **changes: Any) -> Batch:
    n, h, w = clean.shape[:3]
    empty = np.zeros((n, h, w), np.uint8)
    batch = Batch(clean, empty, empty, np.zeros(n, np.float32), np.ones((n, h, w), np.float32))
    return batch._replace(**changes)


def sample(batch: Batch, seed: int = 0) -> Sample:
    return make_sample(batch, torch.Generator().manual_seed(seed), torch.device("cpu"))


def planes(clean: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(clean).permute(0, 3, 1, 2) / 255


def test_shapes_and_types(clean: np.ndarray, mask: np.ndarray) -> None:
    s = sample(make_batch(clean, mask=mask, sigma=np.array([0, 9], np.float32)))
    shapes = [tuple(t.shape[1:]) for t in s]
    assert shapes == [(8, SIDE, SIDE), (3, SIDE, SIDE), (1, SIDE, SIDE), (1, SIDE, SIDE)]
    assert all(t.dtype == torch.float32 for t in s)
    assert s.noise[:, 0, 0, 0].tolist() == [0, 9]
    assert torch.equal(s.target, planes(clean))
    assert torch.equal(s.mask[:, 0], torch.from_numpy(mask).float())


def test_nothing_damaged_is_the_clean_picture_exactly(clean: np.ndarray) -> None:
    s = sample(make_batch(clean))
    assert torch.equal(s.packed[:, :3], planes(clean))
    assert not s.packed[:, [3, 5, 6, 7]].any()
    assert not fusion.correction_gain(s.packed).any()


def test_same_generator_same_sample(clean: np.ndarray, mask: np.ndarray) -> None:
    batch = make_batch(clean, mask=mask, trusted=mask, sigma=np.full(N, 20, np.float32))
    first, again, other = sample(batch), sample(batch), sample(batch, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.packed, other.packed)


@pytest.mark.parametrize(("sigma", "frames"), [(20.0, 1.0), (20.0, 4.0), (6.0, 9.0)])
def test_noise_falls_with_the_root_of_the_frames(sigma: float, frames: float) -> None:
    grey = np.full((N, 128, 128, 3), 128, np.uint8)  # far from both ends: nothing is clipped
    s = sample(
        make_batch(
            grey,
            sigma=np.full(N, sigma, np.float32),
            frames=np.full((N, 128, 128), frames, np.float32),
        )
    )
    noise = (s.packed[:, :3] - s.target) * 255
    expected = sigma / frames**0.5
    assert float(noise.std()) == pytest.approx((expected**2 + 1 / 12) ** 0.5, rel=0.02)
    assert abs(float(noise.mean())) < 0.1


def test_half_of_the_noisy_pictures_are_as_a_camera_stores_them() -> None:
    n = 200
    dark = np.zeros((n, 8, 8, 3), np.uint8)
    s = sample(make_batch(dark, sigma=np.full(n, 20, np.float32)))
    levels = (s.packed[:, :3] * 255).flatten(1)
    rounded = (levels - levels.round()).abs().amax(1) < 1e-4
    assert float(rounded.float().mean()) == pytest.approx(0.5, abs=0.12)
    assert levels[rounded].min() == 0  # clipped
    assert levels[~rounded].amin(1).max() < 0


def test_frames_may_differ_from_pixel_to_pixel() -> None:
    grey = np.full((1, 64, 128, 3), 128, np.uint8)
    frames = np.ones((1, 64, 128), np.float32)
    frames[..., 64:] = 15
    s = sample(make_batch(grey, sigma=np.full(1, 30, np.float32), frames=frames))
    noise = (s.packed[:, :3] - s.target) * 255
    left, right = (float(h.std()) for h in noise.split(64, 3))
    assert left / right == pytest.approx(15**0.5, rel=0.05)
    torch.testing.assert_close(s.noise, 30 / torch.from_numpy(frames)[:, None].sqrt())
    left, right = (float(h.mean()) for h in s.packed[:, 5:6].split(64, 3))
    assert left / right == pytest.approx(15**0.5, rel=1e-4)


def test_noise_map_tells_the_noise_within_a_tenth() -> None:
    """In use sigma is estimated, so the network must bear an error: one factor a sample."""
    grey, told = np.full((64, 8, 8, 3), 128, np.uint8), 24.0
    s = sample(make_batch(grey, sigma=np.full(64, told, np.float32)))
    factors = (s.packed[:, 5] * (255 / 4) / told).flatten(1)
    assert (factors.amax(1) - factors.amin(1)).max() < 1e-5
    assert factors.min() >= np.exp(-0.1) - 1e-5
    assert factors.max() <= np.exp(0.1) + 1e-5
    assert factors[:, 0].std() > 0.03


def test_hole_is_the_fill_and_sees_nothing_of_its_content(
    clean: np.ndarray, mask: np.ndarray
) -> None:
    s = sample(make_batch(clean, mask=mask))
    filled = fusion.fill(planes(clean) * 255, s.mask)
    torch.testing.assert_close(s.packed[:, :3] * 255, filled, rtol=0, atol=1e-3)
    assert torch.equal(s.packed[:, 3:4], s.mask)
    other = clean.copy()
    other[mask > 0] = 200
    assert torch.equal(sample(make_batch(other, mask=mask)).packed, s.packed)


def test_trusted_pixels_carry_true_content_as_far_as_the_soft_mask_says(
    clean: np.ndarray, mask: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "GUESSED", 0.0)
    trusted = mask.copy()
    trusted[:, :24] = 0
    s = sample(make_batch(clean, mask=mask, trusted=trusted))
    soft, true = s.packed[:, 3:4], planes(clean) * 255
    inside = torch.from_numpy(trusted)[:, None] > 0
    filled = fusion.fill(true, s.mask)
    expected = soft * filled + (1 - soft) * true
    torch.testing.assert_close(s.packed[:, :3] * 255, expected, rtol=0, atol=1e-3)
    assert soft[inside].max() <= 0.5
    assert torch.equal(soft[~inside], s.mask[~inside])
    assert all(soft[i][inside[i]].unique().numel() == 1 for i in range(N))  # one trust a sample
    error = (s.packed[:, :3] * 255 - true).abs()
    assert error[inside.expand_as(error)].mean() < 0.5 * (filled - true).abs()[
        inside.expand_as(error)
    ].mean() * (1 + 1e-4)


def test_trust_is_from_half_to_all() -> None:
    n = 200
    every = np.ones((n, 4, 4), np.uint8)
    soft = sample(make_batch(np.zeros((n, 4, 4, 3), np.uint8), mask=every, trusted=every))
    trust = 1 - soft.packed[:, 3, 0, 0]
    assert 0.5 <= trust.min() < 0.52
    assert 0.98 < trust.max() <= 1


@pytest.mark.parametrize("sigma", [0.0, 25.0])
def test_is_what_a_still_leaves_in_the_graph(
    clean: np.ndarray, mask: np.ndarray, sigma: float
) -> None:
    """With one frame and no memory: the same as `fuse` with an empty state, as it is exported."""
    s = sample(make_batch(clean, mask=mask, sigma=np.full(N, sigma, np.float32)))
    frame = s.packed[:, :3] * 255 * (1 - s.mask)
    empty = torch.zeros(N, 4, SIDE, SIDE)
    used = fusion.fuse(frame, s.mask, empty, torch.full((N, 1, 1, 1), sigma)).packed
    torch.testing.assert_close(s.packed[:, :5], used[:, :5], rtol=0, atol=1e-4)
    torch.testing.assert_close(s.packed[:, 5], used[:, 5], rtol=0.106, atol=1e-6)


def test_a_guess_takes_the_place_of_true_content_where_it_is_trusted(
    clean: np.ndarray, mask: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "GUESSED", 1.0)
    monkeypatch.setattr(samples, "coarse_guess", lambda c, _: torch.full_like(c, 77))
    trusted = mask.copy()
    trusted[:, :24] = 0
    s = sample(make_batch(clean, mask=mask, trusted=trusted))
    soft = s.packed[:, 3:4]
    filled = fusion.fill(planes(clean) * 255, s.mask)
    expected = torch.where(soft < s.mask, soft * filled + (1 - soft) * 77, filled)
    torch.testing.assert_close(s.packed[:, :3] * 255, expected, rtol=0, atol=1e-3)
    assert torch.equal(s.target, planes(clean))


def test_a_share_of_the_samples_is_guessed() -> None:
    n = 400
    step = np.tile(np.repeat(np.array([0, 200], np.uint8), 8)[:, None], (n, 8, 1, 3))
    every = np.ones((n, 8, 16), np.uint8)
    s = sample(make_batch(step, mask=every, trusted=every))
    levels = s.packed[:, 0, 4] / (1 - s.packed[:, 3, 4]) * 255  # nothing is known: the fill is 0
    true = (levels - planes(step)[:, 0, 4] * 255).abs().amax(1) < 0.1
    assert 1 - float(true.float().mean()) == pytest.approx(samples.GUESSED, abs=0.08)


def test_a_guess_is_the_truth_of_a_coarser_scale() -> None:
    ramp = torch.linspace(0, 255, 41).expand(3, 3, 27, 41).contiguous()  # odd sizes
    draws = torch.full((3, 4, 1, 1), 0.5)
    draws[:, 0, 0, 0] = torch.tensor([0.1, 0.5, 0.9])
    guess = coarse_guess(ramp, draws)
    assert guess.shape == ramp.shape
    torch.testing.assert_close(guess[..., 8:32], ramp[..., 8:32], rtol=0, atol=2e-3)
    dots = torch.zeros(3, 3, 32, 32)
    dots[..., ::8, ::8] = 128
    peaks = coarse_guess(dots, draws).amax((1, 2, 3)).tolist()
    assert peaks == pytest.approx([128 / 4, 128 / 16, 128 / 64])
    draws[:, 1:] = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)
    shift = (coarse_guess(ramp * 0 + 100, draws) - 100)[0, :, 0, 0].tolist()
    assert shift == [-samples.GUESS_SHIFT, 0, samples.GUESS_SHIFT]
