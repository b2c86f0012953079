"""How noisy a picture is: one number, close to 0 for clean photographs however textured."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import F64, U8
from fastrestore.errors import InputError

BLOCK_PX = 8
QUANTILE = 0.05  # the quietest blocks: there the picture's own texture is weakest
# Mean of a full 8x8 RGB block over its 5 % quantile, of white Gaussian noise (measured).
QUANTILE_GAIN = 1.180
TEXTURE_SIGMA = 1.5  # what the quietest blocks of clean photographs still show (95 % of them less)
MAX_SIGMA = 254.0
_CLIPPED_FEW = 0.02  # share of clipped samples that does not yet flatten a block's noise
_CLIPPED_MOST = 0.5  # a block clipped more than this says nothing
_CLIPPED_SHARE = 0.2  # of the blocks: dark noisy pictures use this many of the least clipped
# Mean |response| of the 3x3 operator to white noise of sigma 1 is 6 * sqrt(2 / pi).
_IMMERKAER = float(np.sqrt(np.pi / 2) / 6)


def estimate_sigma(image: U8, mask: U8 | None = None) -> float:
    """Estimate the standard deviation of white noise from the quietest blocks of a picture.

    A 3x3 operator that is blind to planes measures noise and texture together; the low quantile
    over blocks, corrected for being low, leaves mostly noise. What texture is left adds in
    squares and is taken off. Blocks near black or white are skipped: clipping hides their noise.
    Noise that was blurred or compressed reads low; a picture with few blocks (under about 100 px
    a side) reads up to 15 % high.

    Args:
        image: uint8 RGB, `(H, W, 3)`.
        mask: uint8, `(H, W)`, 1 = hole; only pixels with no hole in their 3x3 surroundings count.

    Returns:
        Sigma on the 0-255 scale, 0 to 254; 0 where nothing can be measured.

    Raises:
        InputError: Not uint8 RGB, or a mask of another size.

    Source: Immerkaer, Fast noise variance estimation, CVIU 64(2), 1996, for the operator.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image {image.dtype} {image.shape}: must be uint8 (H, W, 3); convert it")
    if mask is not None and mask.shape != image.shape[:2]:
        raise InputError(f"mask {mask.shape}: image is {image.shape[:2]}; give one of that size")
    if min(image.shape[:2]) < 3:
        return 0.0
    noise, clipped = _block_statistics(image, mask)
    if not noise.size:
        return 0.0
    few = max(_CLIPPED_FEW, float(np.quantile(clipped, _CLIPPED_SHARE)))
    usable = noise[(clipped <= few) & (clipped < _CLIPPED_MOST)]
    if not usable.size:
        return 0.0
    sigma = QUANTILE_GAIN * float(np.quantile(usable, QUANTILE))
    return float(np.sqrt(min(max(sigma**2 - TEXTURE_SIGMA**2, 0.0), MAX_SIGMA**2)))


def _block_statistics(image: U8, mask: U8 | None) -> tuple[F64, F64]:
    """Return, per block with enough known pixels, its noise (sigma) and share of clipped samples.

    Both are float64 `(blocks,)`.
    """
    import cv2

    kernel = np.array([1, -2, 1], np.float32)
    response = np.abs(cv2.sepFilter2D(image, cv2.CV_16S, kernel, kernel)[1:-1, 1:-1])
    inner = image[1:-1, 1:-1]
    clipped = ((inner <= 1) | (inner >= 254)).view(np.uint8)
    known = np.ones(inner.shape[:2], np.uint8)
    if mask is not None:
        near_hole = cv2.dilate((mask > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        known = (near_hole[1:-1, 1:-1] == 0).astype(np.uint8)
        response, clipped = (cv2.copyTo(x, known) for x in (response, clipped))
    pixels = _block_sums(known[..., None])
    # Half of the best block: under a grid of dots no block is whole, yet all are of use.
    enough = (pixels > 0) & (pixels >= pixels.max() / 2)
    samples = 3.0 * pixels[enough]
    noise = _IMMERKAER * _block_sums(response)[enough] / samples
    return noise, _block_sums(clipped)[enough] / samples


def _block_sums(x: npt.NDArray[np.int16] | U8) -> npt.NDArray[np.int64]:
    """Sum `(H, W, C)` over whole blocks (smaller ones where the picture is) and channels."""
    height, width, channels = x.shape
    h, w = min(BLOCK_PX, height), min(BLOCK_PX, width)
    rows, columns = height // h, width // w
    x = x[: rows * h, : columns * w].reshape(rows, h, columns * w * channels)
    # 8 responses of at most 2040 fit 16 bits, which is what makes this sum vectorise.
    lines = x.sum(axis=1, dtype=np.int16)
    return lines.reshape(rows, columns, w * channels).sum(axis=2, dtype=np.int64)
