"""What a picture file's header tells, and what is refused on its word before decoding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import IO, TYPE_CHECKING

from fastrestore.errors import InputError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

PLUGINS = {
    "AVIF": "AvifImagePlugin",
    "BMP": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "TIFF": "TiffImagePlugin",
    "WEBP": "WebPImagePlugin",
}
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    *((start, "TIFF") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_MODES_8BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr", "CMYK")
_BITS, _PHOTOMETRIC, _SUBFILE, _EXTRA, _FORMAT, _DNG = 258, 262, 254, 338, 339, 50706
_STARTS, _SIZES = (273, 324), (279, 325)  # of strips, of tiles


def sniff(head: bytes, name: str) -> str:
    """Return the format that the first 64 bytes of a file claim, a key of `PLUGINS`.

    Raises:
        InputError: Empty, HEIC, or no picture format that is read here.
    """
    if not head:
        raise InputError(f"{name}: is empty (0 bytes); copy it again")
    for start, kind in _MAGIC:
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = head[8 : int.from_bytes(head[:4], "big")]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        if any(brand in brands for brand in _HEIC):
            raise InputError(
                f"{name}: is HEIC, which is not read; convert it first, with `heif-convert` or "
                "the Python package pillow-heif"
            )
    known = ", ".join(sorted(PLUGINS))
    raise InputError(f"{name}: is not a picture that is read here; convert it to one of {known}")


def open_header(file: IO[bytes], head: bytes, kind: str, name: str, max_pixels: int) -> ImageFile:
    """Parse the header without decoding.

    The plug-in is named for two reasons: `Image.open` has a pixel limit of its own, global and
    with warnings, and it tries formats that run other programs (EPS).

    Raises:
        InputError: Too large, or this Pillow does not know the format.
    """
    from PIL import Image

    if kind == "WEBP":  # its plug-in allocates the canvas on opening
        _check_size(*_webp_size(head), name, max_pixels)
    try:
        import_module(f"PIL.{PLUGINS[kind]}")
    except ImportError as e:
        raise InputError(f"{name}: {kind} needs a newer Pillow: pip install -U pillow") from e
    image = Image.OPEN[kind][0](file, "")
    _check_size(*image.size, name, max_pixels)
    return image


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{name}: {width}x{height} is {width * height / 1e6:.4g} million pixels, over the "
            f"limit of {max_pixels / 1e6:.4g}; allow it with --max-pixels {width * height}"
        )


def _webp_size(head: bytes) -> tuple[int, int]:
    """Return width and height of a WebP. Source: RFC 9649, sections 2.5 to 2.7."""
    if head[12:16] == b"VP8X":
        size = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        size = ((bits >> shift & 0x3FFF) + 1 for shift in (0, 14))
    else:
        size = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    width, height = size
    return width, height


@contextmanager
def pillow_limit(max_pixels: int) -> Iterator[None]:
    """Keep Pillow's own pixel limit, a global, from standing below one the caller raised."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    if before is None or max_pixels <= 2 * before:  # it refuses from twice the limit on
        yield
        return
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def refuse(image: ImageFile, file: IO[bytes], name: str) -> None:
    """Refuse what is cut short, moves, has pages or is only the preview of something else.

    Raises:
        InputError: See above.
    """
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined] # of TiffImageFile
        starts, sizes = (tags.get(a) or tags.get(b) or () for a, b in (_STARTS, _SIZES))
        ends = [start + size for start, size in zip(starts, sizes, strict=False)]
        if ends and max(ends) > file.seek(0, os.SEEK_END):  # libtiff would print to stderr
            raise InputError(f"{name}: is cut short; copy it again")
        if tags.get(_SUBFILE, 0) & 1 or _DNG in tags:
            raise InputError(f"{name}: is a camera raw file; develop it to PNG or TIFF first")
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: first of a pair
        if image.format == "TIFF":
            raise InputError(f"{name}: has several pages; save the one to restore by itself")
        raise InputError(
            f"{name}: is animated; make a video of it, `ffmpeg -i FILE clip.mp4`, and run "
            "`fastrestore restore clip.mp4`"
        )


def depth(image: ImageFile, head: bytes, kind: str, name: str) -> tuple[int, bool]:
    """Return bits per sample, 8 or 16, and whether there is a single colour channel.

    The header is asked, because Pillow calls 16-bit colour "RGB" and drops the low bytes.

    Raises:
        InputError: A pixel type that could not be kept.
    """
    if kind == "PNG" and head[24] == 16:
        return 16, head[25] in (0, 4)
    if kind == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined] # of TiffImageFile
        if set(tags.get(_BITS, (1,))) == {16}:
            plain = set(tags.get(_FORMAT, (1,))) == {1} and tags.get(_PHOTOMETRIC) in (0, 1, 2)
            if plain and 1 not in tags.get(_EXTRA, ()):  # 1: colours are multiplied by alpha
                return 16, tags[_PHOTOMETRIC] < 2
            raise InputError(f"{name}: this kind of 16-bit TIFF is not read; save it as 16-bit PNG")
    if image.mode not in _MODES_8BIT:
        raise InputError(
            f"{name}: pixel type {image.mode} is not read; save it with 8 or 16 bits per channel"
        )
    return 8, image.mode in ("1", "L", "LA")
