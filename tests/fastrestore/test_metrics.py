from __future__ import annotations

import time

import numpy as np
import pytest

from fastrestore.errors import InputError
from fastrestore.metrics import (
    bootstrap_interval,
    bootstrap_intervals,
    edge_f1,
    hole_psnr,
    psnr,
    ssim,
)


def random_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def smooth_image(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / 9 + c) * np.cos(y / 13 - c) for c in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def test_psnr_of_a_known_error():
    a = np.full((5, 7, 3), 100, np.uint8)
    assert psnr(a, a + 10) == pytest.approx(20 * np.log10(255 / 10), abs=1e-12)
    assert psnr(a, a - 10) == psnr(a, a + 10)  # no wrap-around of uint8
    assert psnr(np.zeros_like(a), np.full_like(a, 255)) == 0


def test_psnr_of_equal_pictures_is_infinite():
    a = random_image(np.random.default_rng(0), 3, 3)
    assert psnr(a, a.copy()) == float("inf")


def test_hole_psnr_reads_the_hole_alone():
    a = np.full((10, 10, 3), 100, np.uint8)
    b, mask = a.copy(), np.zeros((10, 10), np.uint8)
    mask[:2] = 1
    b[:2] += 10
    assert hole_psnr(a, b, mask) == pytest.approx(20 * np.log10(25.5))
    assert hole_psnr(a, b, mask * 255) == hole_psnr(a, b, mask)
    # For a composite the whole picture's PSNR differs by the ratio.
    assert hole_psnr(a, b, mask) == pytest.approx(psnr(a, b) + 10 * np.log10(0.2))
    b[5:] = 0
    assert hole_psnr(a, b, mask) == pytest.approx(20 * np.log10(25.5))


def test_hole_psnr_without_a_hole_is_refused():
    a = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(InputError, match="no hole"):
        hole_psnr(a, a, np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match="mask"):
        hole_psnr(a, a, np.ones((4, 5), np.uint8))


@pytest.mark.parametrize("size", [(11, 11), (11, 40), (12, 17), (33, 64), (80, 51)])
@pytest.mark.parametrize("noisy", [False, True])
def test_ssim_is_scikit_images(size: tuple[int, int], noisy: bool):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    rng = np.random.default_rng(size[1])
    a = smooth_image(*size)
    b = np.roll(a, 1, 1) if not noisy else random_image(rng, *size)
    expected = metrics.structural_similarity(
        a,
        b,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(a, b) == pytest.approx(expected, abs=1e-6)
    assert ssim(b, a) == pytest.approx(expected, abs=1e-6)


def test_ssim_of_flat_pictures_follows_the_formula():
    a, b = np.full((16, 16, 3), 100, np.uint8), np.full((16, 16, 3), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)


def test_ssim_averages_channels():
    a = random_image(np.random.default_rng(1), 20, 20)
    b = a.copy()
    b[..., 1] = 255 - b[..., 1]
    assert ssim(a, b) == pytest.approx(ssim(a[..., ::-1], b[..., ::-1]), abs=1e-12)
    assert 1 / 3 < ssim(a, b) < 2 / 3  # two channels are equal, one is inverted


@pytest.mark.parametrize("size", [(10, 50), (50, 10), (1, 1)])
def test_ssim_smaller_than_its_window_is_refused(size: tuple[int, int]):
    a = np.zeros((*size, 3), np.uint8)
    with pytest.raises(InputError, match="at least 11 px"):
        ssim(a, a)


def test_ssim_is_fast():
    a, b = smooth_image(256, 256), random_image(np.random.default_rng(2), 256, 256)
    took = []
    for _ in range(5):
        start = time.process_time()
        ssim(a, b)
        took.append(time.process_time() - start)
    # 8 ms on one core of an EPYC; the bound, in CPU time, leaves room for slower ones.
    assert min(took) < 0.06


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pairs_that_do_not_fit_are_refused(measure):
    a = np.zeros((16, 16, 3), np.uint8)
    for b in (a[:, :12], a.astype(np.float32), a[..., 0], np.zeros((16, 16, 4), np.uint8), a[:0]):
        with pytest.raises(InputError):
            measure(a, b)
        with pytest.raises(InputError):
            measure(b, a)


def test_bootstrap_of_normal_values_is_the_textbook_interval():
    values = np.random.default_rng(3).normal(30, 3, 400)
    mean, low, high = bootstrap_interval(values, np.random.default_rng(0))
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - half, abs=0.05 * half)
    assert high == pytest.approx(mean + half, abs=0.05 * half)


def test_bootstrap_of_paired_differences_is_narrow():
    rng = np.random.default_rng(4)
    a = rng.normal(30, 3, 100)  # pictures differ by 3 dB, methods by 0.2
    b = a + rng.normal(0.2, 0.05, 100)
    _, low, high = bootstrap_interval(b - a, np.random.default_rng(0))
    assert 0.18 < low < high < 0.22


def test_bootstrap_is_seeded_and_takes_lists():
    values = [1.0, 2.0, 4.0]
    first = bootstrap_interval(values, np.random.default_rng(5), n=500)
    assert first == bootstrap_interval(np.array(values), np.random.default_rng(5), n=500)
    assert bootstrap_interval([7.0], np.random.default_rng(0), n=10) == (7, 7, 7)


def test_bootstrap_in_chunks_draws_every_resample(monkeypatch: pytest.MonkeyPatch):
    values = np.arange(50.0)
    whole = bootstrap_interval(values, np.random.default_rng(6), n=2000)
    monkeypatch.setattr("fastrestore.metrics._CHUNK", 70)  # one resample at a time
    parts = bootstrap_interval(values, np.random.default_rng(6), n=2000)
    assert parts == pytest.approx(whole, abs=0.5)


@pytest.mark.parametrize("values", [[], [1.0, float("inf")], [float("nan")], [[1.0, 2.0]], 3.0])
def test_bootstrap_of_unusable_values_is_refused(values):
    with pytest.raises(InputError, match="finite"):
        bootstrap_interval(values, np.random.default_rng(0))


def test_bootstrap_without_resamples_is_refused():
    with pytest.raises(InputError, match="resample"):
        bootstrap_interval([1.0], np.random.default_rng(0), n=0)


# Edges.


def step_image(at: int, height: int = 24, width: int = 40) -> np.ndarray:
    image = np.full((height, width, 3), 60, np.uint8)
    image[:, at:] = 200
    return image


@pytest.mark.parametrize(("shift", "wanted"), [(0, 1), (1, 1), (-1, 1), (2, 0), (5, 0)])
def test_edges_match_within_one_pixel(shift: int, wanted: float):
    assert edge_f1(step_image(20), step_image(20 + shift)) == wanted


def test_edges_of_flat_pictures():
    flat, step = np.full((24, 40, 3), 90, np.uint8), step_image(20)
    assert edge_f1(flat, flat) == 1
    assert edge_f1(flat, step) == edge_f1(step, flat) == 0


def test_precision_and_recall_of_edges():
    one, two = step_image(10), step_image(10)
    two[:, 30:] = 60  # a second edge of the same length
    assert edge_f1(two, one) == edge_f1(one, two) == pytest.approx(2 * 0.5 / 1.5)


def test_only_edges_in_the_hole_count():
    a, b = step_image(10), step_image(10)
    b[:, 30:] = 60
    left, right = np.zeros((24, 40), np.uint8), np.zeros((24, 40), np.uint8)
    left[:, :20], right[:, 20:] = 1, 1
    assert edge_f1(a, b, left) == 1
    assert edge_f1(a, b, right) == 0
    assert edge_f1(a, b, np.zeros_like(left)) == 1
    with pytest.raises(InputError, match="mask"):
        edge_f1(a, b, left[:5])


def test_weak_steps_are_no_edges():
    """The thresholds are 10 and 20 levels a pixel; the blur spreads a step over a few."""
    weak, strong = np.full((24, 40, 3), 100, np.uint8), np.full((24, 40, 3), 100, np.uint8)
    weak[:, 20:], strong[:, 20:] = 110, 190
    flat = np.full((24, 40, 3), 100, np.uint8)
    assert edge_f1(weak, flat) == 1
    assert edge_f1(strong, flat) == 0


# Many intervals at once.


def test_intervals_at_once_are_those_one_by_one():
    table = np.random.default_rng(3).normal(30, 3, (4, 17))
    found = bootstrap_intervals(table, np.random.default_rng(0), 2000)
    for row, interval in zip(table, found, strict=True):
        expected = bootstrap_interval(row, np.random.default_rng(0), 2000)
        assert interval == pytest.approx(expected, abs=1e-9)


def test_intervals_of_rows_belong_together():
    """The same resamples: a constant shift moves the interval and nothing else."""
    x = np.random.default_rng(3).normal(30, 3, 12)
    a, b = bootstrap_intervals([x, x + 5], np.random.default_rng(0), 500)
    assert b - a == pytest.approx([5, 5, 5])


@pytest.mark.parametrize("table", [[1.0, 2.0], [[1.0, np.inf]], [[]]])
def test_a_bad_table_is_refused(table: list):
    with pytest.raises(InputError, match="rows of finite numbers"):
        bootstrap_intervals(table, np.random.default_rng(0))
    with pytest.raises(InputError, match="at least 1"):
        bootstrap_intervals([[1.0]], np.random.default_rng(0), 0)
