"""Classical methods to compare with, each at the settings that served it best.

All take and return uint8 RGB `(H, W, 3)`. The inpainting ones take a mask, uint8 `(H, W)`,
1 = hole, never look at what lies in the hole, and leave known pixels as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrestore.arrays import F32, U8
from fastrestore.degrade import punch
from fastrestore.errors import InputError, MissingExtraError, need

RADIUS_PX = 3
PATCH_RADIUS_PX = 3  # of PatchMatch: patches of 7x7


def telea(image: U8, mask: U8) -> U8:
    """Fill by fast marching from the rim inwards (OpenCV, radius 3 px).

    Raises:
        InputError: Not uint8 RGB, a mask of another size, or nothing known.

    Source: Telea, Journal of Graphics Tools 9(1), 2004.
    """
    import cv2

    return _opencv(image, mask, cv2.INPAINT_TELEA)


def navier_stokes(image: U8, mask: U8) -> U8:
    """Fill by continuing the lines of equal brightness (OpenCV, radius 3 px).

    Raises:
        InputError: Not uint8 RGB, a mask of another size, or nothing known.

    Source: Bertalmio, Bertozzi, Sapiro, CVPR 2001.
    """
    import cv2

    return _opencv(image, mask, cv2.INPAINT_NS)


def biharmonic(image: U8, mask: U8) -> U8:
    """Fill with the smoothest surface, the biharmonic equation (scikit-image; it has no settings).

    The best of the three on faces, and tens of times slower.

    Raises:
        InputError: Not uint8 RGB, a mask of another size, or nothing known.
        MissingExtraError: scikit-image is not installed.

    Source: Damelin, Hoang, Journal of Approximation Theory, 2018.
    """
    restoration = need("skimage.restoration", "evaluate")
    damaged, hole = _damaged(image, mask)
    if not hole.any():
        return damaged
    filled = restoration.inpaint_biharmonic(damaged, hole, channel_axis=-1)
    rounded = np.clip(np.rint(255 * filled), 0, 255).astype(np.uint8)
    return _composite(image, hole, rounded)


def patchmatch(image: U8, mask: U8) -> U8:
    """Fill with patches from elsewhere in the picture (PyPatchMatch, patches of 7x7 px).

    Radii of 2, 3, 5 and 7 px gave 26.6, 26.7, 26.3 and 25.6 dB on four portraits with 20 % holes;
    it takes seconds for 256x256 px. The package is apart: `pip install pypatchmatch`.

    Raises:
        InputError: Not uint8 RGB, a mask of another size, or nothing known.
        MissingExtraError: PyPatchMatch is not installed, or without its native part.

    Source: Barnes, Shechtman, Finkelstein, Goldman, SIGGRAPH 2009; the multi-scale filling is
    that of Wexler, Shechtman, Irani, PAMI 29(3), 2007.
    """
    library = _patchmatch_library()
    damaged, hole = _damaged(image, mask)
    if not hole.any():
        return damaged
    library.set_random_seed(0)  # every call starts from it: the same input, the same result
    return _composite(image, hole, library.inpaint(damaged, hole, patch_size=PATCH_RADIUS_PX))


def bilateral(image: U8, sigma: float) -> U8:
    """Denoise with the bilateral filter: window 9 px, colour 4 sigma, space 2 px.

    The settings are the best of a search over windows of 5-11 px, colours of 1.5-8 sigma and
    spaces of 1.5-3 px, at sigma 15, 25 and 50, on faces and photographs.

    Args:
        image: uint8 RGB, `(H, W, 3)`.
        sigma: Noise on the 0-255 scale; 0 returns a copy.

    Raises:
        InputError: Not uint8 RGB, or a sigma outside 0 to 254.

    Source: Tomasi, Manduchi, ICCV 1998.
    """
    import cv2

    _check_noisy(image, sigma)
    if sigma == 0:
        return image.copy()
    return np.asarray(cv2.bilateralFilter(image, 9, 4 * sigma, 2), np.uint8)


def bilateral_float(image: F32, sigma: float) -> U8:
    """Do the same to noise that was neither rounded nor clipped; the result is both.

    Args:
        image: float32 RGB, `(H, W, 3)`, 0 to 255 and beyond.
        sigma: Noise on the 0-255 scale, above 0.

    Raises:
        InputError: Not float32 RGB, or a sigma outside 0 to 254.
    """
    import cv2

    if image.dtype != np.float32 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image {image.dtype} {image.shape}: must be float32 (H, W, 3)")
    if not 0 < sigma < 255:
        raise InputError(f"sigma {sigma}: must be above 0 and below 255")
    out = cv2.bilateralFilter(image, 9, 4 * sigma, 2)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def non_local_means(image: U8, sigma: float) -> U8:
    """Denoise with non-local means: patch 7 px, search 21 px, h = 0.5 sigma for luma and colour.

    Args:
        image: uint8 RGB, `(H, W, 3)`.
        sigma: Noise on the 0-255 scale; 0 returns a copy.

    Raises:
        InputError: Not uint8 RGB, or a sigma outside 0 to 254.

    Source: Buades, Coll, Morel, Image Processing On Line 1, 2011.
    """
    import cv2

    _check_noisy(image, sigma)
    if sigma == 0:
        return image.copy()
    h = 0.5 * sigma  # 0.8 scores 0.5 to 1 dB lower on photographs at sigma 15 to 50
    # The filter works in Lab and takes its input for BGR.
    bgr = np.ascontiguousarray(image[..., ::-1])
    out = cv2.fastNlMeansDenoisingColored(bgr, None, h, h, 7, 21)
    return np.ascontiguousarray(np.asarray(out, np.uint8)[..., ::-1])


INPAINTERS: dict[str, Callable[[U8, U8], U8]] = {
    "telea": telea,
    "navier_stokes": navier_stokes,
    "biharmonic": biharmonic,
}
# Never run unless named: they need what no extra brings.
OPTIONAL: dict[str, Callable[[U8, U8], U8]] = {"patchmatch": patchmatch}
DENOISERS: dict[str, Callable[[U8, float], U8]] = {
    "bilateral": bilateral,
    "non_local_means": non_local_means,
}


def has_patchmatch() -> bool:
    """Tell whether PyPatchMatch is there."""
    try:
        _patchmatch_library()
    except MissingExtraError:
        return False
    return True


def _patchmatch_library() -> Any:
    try:
        library: Any = need("patchmatch", "")
    except MissingExtraError as e:
        raise MissingExtraError(
            "patchmatch: PyPatchMatch is not installed: pip install pypatchmatch"
        ) from e
    if not library.patchmatch_available:
        raise MissingExtraError(
            "patchmatch: PyPatchMatch has no native library for this machine; leave it out"
        )
    return library


def _opencv(image: U8, mask: U8, method: int) -> U8:
    import cv2

    damaged, hole = _damaged(image, mask)
    return _composite(image, hole, np.asarray(cv2.inpaint(damaged, hole, RADIUS_PX, method)))


def _damaged(image: U8, mask: U8) -> tuple[U8, U8]:
    """Return the picture with a black hole, and the mask as 0 and 1.

    OpenCV reads a few pixels of the hole next to the picture's edge: blackened, it cannot find
    the answer there.
    """
    _check_image(image)
    if mask.shape != image.shape[:2]:
        raise InputError(f"mask {mask.shape}: image is {image.shape[:2]}; give one of that size")
    hole = (mask > 0).astype(np.uint8)
    if hole.all():
        raise InputError("mask: is all hole, so there is nothing to fill from; use a smaller hole")
    return punch(image, hole), hole


def _composite(image: U8, hole: U8, filled: U8) -> U8:
    return np.where(hole[..., None] > 0, filled, image)


def _check_image(image: U8) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image {image.dtype} {image.shape}: must be uint8 (H, W, 3); convert it")


def _check_noisy(image: U8, sigma: float) -> None:
    _check_image(image)
    if not 0 <= sigma < 255:
        raise InputError(f"sigma {sigma}: must be from 0 to 254")
