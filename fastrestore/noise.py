"""How noisy a picture is: one number, close to 0 for clean photographs however textured."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import F64, U8
from fastrestore.errors import InputError

BLOCK_PX = 8
QUANTILE = 0.05  # the quietest blocks: there the picture's own texture is weakest
# True sigma over the 5 % quantile of white Gaussian noise, by independent channels (measured).
QUANTILE_GAIN = {3: 1.180, 1: 1.341}
TEXTURE_SIGMA = 1.5  # what the quietest blocks of most clean photographs stay under (measured)
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
    Noise that was blurred or compressed, that is weaker in the dark, or so strong (over 60) that
    most blocks clip, reads low; pictures under about 40 px a side read up to 15 % high.

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
    if _is_grey(image):
        image = np.ascontiguousarray(image[..., :1])  # three copies of one noise
    noise, clipped = _block_statistics(image, mask)
    if not noise.size:
        return 0.0
    few = max(_CLIPPED_FEW, float(np.quantile(clipped, _CLIPPED_SHARE)))
    usable = noise[(clipped <= few) & (clipped < _CLIPPED_MOST)]
    if not usable.size:
        return 0.0
    sigma = QUANTILE_GAIN[image.shape[2]] * float(np.quantile(usable, QUANTILE))
    return float(np.sqrt(min(max(sigma**2 - TEXTURE_SIGMA**2, 0.0), MAX_SIGMA**2)))


def _is_grey(image: U8) -> bool:
    """Tell whether the three channels are equal; few rows settle it for most colour pictures."""
    return all(
        np.array_equal(part[..., 0], part[..., c]) for part in (image[::16], image) for c in (1, 2)
    )


def _block_statistics(image: U8, mask: U8 | None) -> tuple[F64, F64]:
    """Return, per block with enough known pixels, its noise (sigma) and share of clipped samples.

    Both are float64 `(blocks,)`.
    """
    import cv2

    kernel = np.array([1, -2, 1], np.float32)
    filtered = cv2.sepFilter2D(image, cv2.CV_16S, kernel, kernel).reshape(image.shape)
    response = np.abs(filtered[1:-1, 1:-1])
    inner = image[1:-1, 1:-1]
    clipped = ((inner <= 1) | (inner >= 254)).view(np.uint8)
    known = np.ones(inner.shape[:2], np.uint8)
    if mask is not None:
        near_hole = cv2.dilate((mask > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        known = (near_hole[1:-1, 1:-1] == 0).astype(np.uint8)
        response = cv2.copyTo(response, known).reshape(inner.shape)
        clipped = np.asarray(cv2.copyTo(clipped, known), np.uint8).reshape(inner.shape)
    pixels = _block_sums(known[..., None])
    # Half of the best block: under a grid of dots no block is whole, yet all are of use.
    enough = (pixels > 0) & (pixels >= pixels.max() / 2)
    samples = float(inner.shape[2]) * pixels[enough]
    noise = _IMMERKAER * _block_sums(response)[enough] / samples
    return noise, _block_sums(clipped)[enough] / samples


def _block_sums(x: npt.NDArray[np.int16] | U8) -> npt.NDArray[np.int64]:
    """Sum `(H, W, C)` over whole blocks (smaller ones where the picture is) and channels."""
    height, width, channels = x.shape
    h, w = min(BLOCK_PX, height), min(BLOCK_PX, width)
    rows, columns = height // h, width // w
    stacked = x[: rows * h, : columns * w].reshape(rows, h, columns * w * channels)
    # 8 responses of at most 2040 fit 16 bits, which is what makes this sum vectorise.
    lines = stacked.sum(axis=1, dtype=np.int16)
    sums: npt.NDArray[np.int64] = lines.reshape(rows, columns, -1).sum(axis=2, dtype=np.int64)
    return sums
