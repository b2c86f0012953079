"""Where the mask of an input comes from, and where it is written to be looked at.

Masks here are uint8 `(H, W)`, 1 = hole, before they are grown.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.detect import Detector
from fastrestore.errors import InputError
from fastrestore.images import Picture, is_picture, write_picture
from fastrestore.masks import grow, mask_from_alpha, mask_from_colour, read_mask

if TYPE_CHECKING:
    from fastrestore.batch import Options


def find_mask(
    source: Path, picture: Picture, options: Options, detector: Detector | None
) -> U8 | None:
    """Return the mask of one picture; None where none is asked for.

    Raises:
        InputError: The mask is absent, or does not fit.
    """
    if options.mask_colour:
        return mask_from_colour(picture.rgb, options.mask_colour, options.tolerance)
    if options.mask == "alpha":
        if picture.alpha is None:
            raise InputError(f"{label(source)}: has no alpha channel; give a mask file")
        return mask_from_alpha(picture)
    if options.mask == "auto":
        return needed(detector).mask(picture.rgb, options.least)
    if options.mask is None:
        return None
    h, w = picture.rgb.shape[:2]
    return mask_file(source, (h, w), options)


def needed(detector: Detector | None) -> Detector:
    """Return the detector, or say that there must be one."""
    if detector is None:
        raise InputError("mask auto needs a detector; open one with fastrestore.detect.Detector")
    return detector


def mask_file(source: Path, size: tuple[int, int], options: Options) -> U8:
    """Read the mask file of one input.

    Args:
        source: The input; a folder of masks is searched for its stem.
        size: Its height and width, px.
        options: `mask` names the file or the folder.

    Raises:
        InputError: None or several in the folder, unreadable, or of another size.
    """
    path = Path(str(options.mask))
    if path.is_dir():
        found = [p for p in sorted(path.iterdir()) if p.stem == source.stem and is_picture(p)]
        if not found:
            wanted = label(f"{source.stem}.*")
            raise InputError(f"{label(source)}: no mask named {wanted} in {path}; add it there")
        if len(found) > 1:
            raise InputError(f"{label(source)}: {len(found)} masks in {path}; keep one")
        path = found[0]
    return read_mask(path, size, options.invert, options.max_pixels)


def check_mask(source: Path, mask: U8 | None, options: Options) -> None:
    """Refuse a mask that leaves nothing, by the name of the input that it is for.

    Raises:
        InputError: All of the picture is a hole.
    """
    if mask is None or not grow(mask, options.grow_px).all():
        return
    if options.mask == "auto":
        raise InputError(
            f"{label(source)}: all of it looks damaged, nothing is left to restore from; "
            "raise --threshold, lower --grow, or give a mask file"
        )
    raise InputError(
        f"{label(source)}: its mask covers the whole picture, nothing is left to restore from; "
        "mark less (white = repair, or give --invert-mask)"
    )


def mask_notes(mask: U8 | None, options: Options) -> list[str]:
    """Return what the user should know about the mask."""
    if mask is None:
        return []
    auto = options.mask == "auto"
    if mask.any():
        return [f"damage found: {mask.mean():.2%} of the picture"] if auto else []
    return [f"{'no damage found' if auto else 'the mask is empty'}: {if_unmarked(options)}"]


def if_unmarked(options: Options) -> str:
    """Say what happens where nothing is marked."""
    return "only noise is removed" if options.sigma else "nothing is changed"


def keep_mask(path: Path | None, mask: U8 | None) -> None:
    """Write a mask as a PNG, white = hole; without a path do nothing.

    To be done before the mask is judged: it shows why a picture is refused.

    Raises:
        InputError: There is no mask.
        OutputError: The file cannot be written.
    """
    if path is None:
        return
    if mask is None:
        raise InputError(f"{label(path)}: there is no mask; give --mask or --mask-color")
    white = np.repeat(mask[..., None] * np.uint8(255), 3, 2)
    write_picture(path, Picture(rgb=white, gray=True), white)
