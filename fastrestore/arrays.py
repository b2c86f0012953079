"""The array types that cross module borders, and what a picture is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastrestore.errors import InputError

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def check_image(image: object) -> None:
    """Refuse what is no picture; callers without a type checker hand in anything.

    Raises:
        InputError: Not uint8 `(H, W, 3)` with at least one pixel.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"image must be uint8 (H, W, 3), got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
