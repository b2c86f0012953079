"""PSNR, SSIM and intervals: the figures that every report and test shares, numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import F64, U8
from fastrestore.errors import InputError

SSIM_RADIUS_PX = 5  # 3.5 sigma of the window, so 11 taps
_WINDOW = np.exp(-0.5 * (np.arange(-SSIM_RADIUS_PX, SSIM_RADIUS_PX + 1) / 1.5) ** 2)
_WINDOW /= _WINDOW.sum()
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_CHUNK = 2**20  # resampled values held at once by the bootstrap: 8 MB


def psnr(a: U8, b: U8) -> float:
    """Return the peak signal-to-noise ratio of a whole picture in dB, peak 255.

    Args:
        a: uint8 RGB, `(H, W, 3)`.
        b: Likewise, same size.

    Returns:
        dB; `inf` where the pictures are equal.

    Raises:
        InputError: Not two uint8 RGB pictures of one size.
    """
    _check_pair(a, b)
    return _decibel(a, b)


def hole_psnr(a: U8, b: U8, mask: U8) -> float:
    """Return the PSNR over the hole pixels alone, in dB.

    Args:
        a: uint8 RGB, `(H, W, 3)`.
        b: Likewise, same size.
        mask: uint8, `(H, W)`, 1 = hole.

    Raises:
        InputError: Sizes or types differ, or the mask has no hole.
    """
    _check_pair(a, b)
    if mask.shape != a.shape[:2]:
        raise InputError(f"mask {mask.shape}: image is {a.shape[:2]}; give a mask of that size")
    hole = mask > 0
    if not hole.any():
        raise InputError("mask: has no hole, so there is no hole PSNR; use psnr")
    return _decibel(a[hole], b[hole])


def ssim(a: U8, b: U8) -> float:
    """Return the structural similarity: Gaussian window, per RGB channel, then their mean.

    The window is 11x11 with sigma 1.5 px, covariances are biased, and only pixels whose window
    lies inside the picture count.

    Args:
        a: uint8 RGB, `(H, W, 3)`, at least 11 px a side.
        b: Likewise, same size.

    Returns:
        -1 to 1; 1 where the pictures are equal.

    Raises:
        InputError: Not two uint8 RGB pictures of one size, or smaller than the window.

    Source: Wang, Bovik, Sheikh, Simoncelli, IEEE Transactions on Image Processing 13(4), 2004.
    """
    _check_pair(a, b)
    if min(a.shape[:2]) < len(_WINDOW):
        raise InputError(f"image {a.shape[:2]}: SSIM needs at least {len(_WINDOW)} px a side")
    return float(np.mean([_ssim_plane(a[..., c], b[..., c]) for c in range(3)]))


def bootstrap_interval(
    values: npt.ArrayLike, rng: np.random.Generator, n: int = 10_000
) -> tuple[float, float, float]:
    """Return mean and 95 % percentile interval over images; for A against B give differences.

    Args:
        values: One finite number an image.
        rng: Source of randomness.
        n: Resamples.

    Returns:
        Mean, low and high in the unit of the values.

    Raises:
        InputError: No values, not one-dimensional, or not finite; or n is below 1.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise InputError("values: need a list of finite numbers; cap infinite PSNR first")
    if n < 1:
        raise InputError(f"n {n}: need at least 1 resample")
    rows = max(1, _CHUNK // x.size)
    means = [
        x[rng.integers(0, x.size, (min(rows, n - i), x.size))].mean(1) for i in range(0, n, rows)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(x.mean()), float(low), float(high)


def _check_pair(a: U8, b: U8) -> None:
    for x in (a, b):
        if x.dtype != np.uint8 or x.ndim != 3 or x.shape[2] != 3 or not x.size:
            raise InputError(f"image {x.dtype} {x.shape}: must be uint8 (H, W, 3); convert it")
    if a.shape != b.shape:
        raise InputError(f"images {a.shape} and {b.shape}: must be of one size; resize one")


def _decibel(a: U8, b: U8) -> float:
    """PSNR of any two uint8 arrays; the squares are summed as integers, so order cannot matter."""
    difference = a.astype(np.int32) - b
    total = int(np.square(difference, out=difference).sum(dtype=np.int64))
    return float(10 * np.log10(255**2 * a.size / total)) if total else float("inf")


def _ssim_plane(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    mx, my = _blur(x), _blur(y)
    mxx, myy, mxy = mx * mx, my * my, mx * my
    # The sum of both variances is all that the formula needs: four blurs, not five.
    variances = _blur(x * x + y * y) - mxx - myy
    covariance = _blur(x * y) - mxy
    top = (2 * mxy + _C1) * (2 * covariance + _C2)
    return float((top / ((mxx + myy + _C1) * (variances + _C2))).mean())


def _blur(x: F64) -> F64:
    """Filter with the window along both axes, where it fits: `(H, W)` to `(H - 10, W - 10)`."""
    for _ in range(2):  # rows, then (transposed) columns; the window is symmetric, so taps pair up
        size, r = x.shape[0] - 2 * SSIM_RADIUS_PX, SSIM_RADIUS_PX
        out = _WINDOW[r] * x[r : r + size]
        for k in range(r):
            out += _WINDOW[k] * (x[k : k + size] + x[2 * r - k : 2 * r - k + size])
        x = np.ascontiguousarray(out.T)
    return x
