"""PSNR, SSIM, edges and intervals: the figures that every report and test shares."""

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
EDGE_LEVELS_PX = (10, 20)  # Canny's two thresholds, grey levels a pixel
EDGE_BLUR_PX = 1.0  # sigma of the Gaussian before it
EDGE_TOLERANCE_PX = 1  # in rows and columns, so the 3x3 surroundings count


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


def edge_f1(a: U8, b: U8, mask: U8 | None = None) -> float:
    """Return how well the edges of two pictures agree: harmonic mean of precision and recall.

    Edges: luma (BT.601), Gaussian of sigma 1 px, Canny with Sobel 3x3, L2 magnitude and
    thresholds of 10 and 20 levels a pixel. An edge pixel of one picture is matched if the other
    has one within 1 px, diagonals included; several may share one. Both pictures go the same
    way, so the result does not depend on their order.

    Args:
        a: uint8 RGB, `(H, W, 3)`.
        b: Likewise, same size.
        mask: uint8, `(H, W)`, 1 = hole: only edge pixels in the hole count, though they may be
            matched just outside it. None: all count.

    Returns:
        0 to 1; 1 where neither picture has an edge to count, 0 where only one has.

    Raises:
        InputError: Sizes or types differ.

    Source: Canny, PAMI 8(6), 1986, for the edges; the matching by dilation is that of the
    boundary measure of Perazzi et al., CVPR 2016, section 5.1.
    """
    import cv2

    _check_pair(a, b)
    if mask is not None and mask.shape != a.shape[:2]:
        raise InputError(f"mask {mask.shape}: image is {a.shape[:2]}; give a mask of that size")
    inside = np.ones(a.shape[:2], np.bool_) if mask is None else mask > 0
    edges = [_edges(x) for x in (a, b)]
    square = np.ones((2 * EDGE_TOLERANCE_PX + 1,) * 2, np.uint8)
    near = [cv2.dilate(e, square) > 0 for e in edges]
    counted = [(e > 0) & inside for e in edges]
    n = [int(c.sum()) for c in counted]
    if not any(n):
        return 1.0
    if not all(n):
        return 0.0
    precision, recall = (float((counted[i] & near[1 - i]).sum()) / n[i] for i in (0, 1))
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


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


def bootstrap_intervals(table: npt.ArrayLike, rng: np.random.Generator, n: int = 10_000) -> F64:
    """Return what `bootstrap_interval` does, for many rows over the same images at once.

    Every row sees the same resamples, so that methods and their differences belong together.

    Args:
        table: Finite numbers, `(rows, images)`.
        rng: Source of randomness.
        n: Resamples.

    Returns:
        float64 `(rows, 3)`: mean, low and high end.

    Raises:
        InputError: Not such a table, or n is below 1.
    """
    x = np.asarray(table, np.float64)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise InputError("values: need rows of finite numbers; cap infinite PSNR first")
    if n < 1:
        raise InputError(f"n {n}: need at least 1 resample")
    images = x.shape[1]
    drawn = rng.integers(0, images, (n, images))
    # How often each resample holds each image: one product then gives all the means.
    flat = (drawn + images * np.arange(n)[:, None]).ravel()
    counts = np.bincount(flat, minlength=n * images).reshape(n, images).astype(np.float64)
    means = counts @ x.T / images
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return np.stack([x.mean(1), low, high], 1)


def _edges(image: U8) -> U8:
    """Return Canny's edges, uint8 `(H, W)`, nonzero = edge."""
    import cv2

    luma = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), EDGE_BLUR_PX)
    low, high = (8 * level for level in EDGE_LEVELS_PX)  # Sobel answers 8 to 1 level a pixel
    return np.asarray(cv2.Canny(luma, low, high, apertureSize=3, L2gradient=True), np.uint8)


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
