"""Picture files: read upright as 8-bit RGB with all that must survive, write back atomically.

Pixel numbers are never colour-converted (the profile travels along), except CMYK, which becomes
sRGB through its own profile or is refused. Samples whose restored value equals the 8-bit source
are written as the source's own samples, in 16 bit too.
"""

from __future__ import annotations

import logging
import os
import struct
import warnings
from dataclasses import asdict, dataclass, field
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from fastrestore.arrays import U8, U16
from fastrestore.atomic import label, write_file
from fastrestore.containers import (
    EXIF_IFD,
    GPS_IFD,
    ORIENTATION,
    Meta,
    decode_deep,
    encode_png,
    encode_tiff,
)
from fastrestore.errors import InputError, OutputError
from fastrestore.headers import PLUGINS, depth, open_header, pillow_limit, refuse, sniff

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 100_000_000
PICTURE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
)
WRITTEN = {
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
_DEEP, _OPAQUE = ("PNG", "TIFF"), ("JPEG", "BMP")
# The tags of a TIFF that speak of the photograph; the rest says where its strips lie.
_PHOTO_TAGS = (270, 271, 272, 305, 306, 315, 33432, EXIF_IFD, GPS_IFD)
# Byte 8 to 16 bits is a factor of 257; the way back rounds to nearest.
_TO_8BIT: U8 = ((np.arange(65536) + 128) // 257).astype(np.uint8)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One decoded picture, upright.

    Attributes:
        rgb: uint8 `(H, W, 3)`, 0 to 255, in the colour space of the profile; read-only or not.
        alpha: uint8 or (16-bit sources) uint16 `(H, W)`, 0 = transparent; None where absent.
        deep: uint16 `(H, W, 3)`, the exact samples of a 16-bit source; None for 8 bits.
        gray: The file had one colour channel; the three of `rgb` and `deep` are equal.
        meta: Profile, EXIF, resolution.
        format: `AVIF`, `BMP`, `GIF`, `JPEG`, `PNG`, `TIFF` or `WEBP`, by content.
    """

    rgb: U8
    alpha: U8 | U16 | None = None
    deep: U16 | None = None
    gray: bool = False
    meta: Meta = field(default_factory=Meta)
    format: str = "PNG"


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Tell by the suffix, in any case, whether a file is meant to be a picture."""
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def read_picture(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file.

    Args:
        path: A file; its content decides the format, not its name.
        max_pixels: Larger pictures are refused from the header, before anything is allocated.

    Raises:
        InputError: Missing, unreadable, not a picture, damaged, too large, animated, several
            pages, or of a pixel type that cannot be kept.
    """
    name = label(path)
    try:
        with open(path, "rb") as file:
            return decode_picture(file, name, max_pixels)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; check the name") from None
    except IsADirectoryError:
        raise InputError(f"{name}: is a folder, not a picture; name a file in it") from None
    except PermissionError:
        raise InputError(
            f"{name}: may not be read (permission denied); change its mode or owner"
        ) from None
    except InputError:
        raise
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
        raise InputError(f"{name}: cannot be opened ({_why(e)}); check the name") from e


def decode_picture(file: IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture from an open binary file that can seek.

    Args:
        file: For example an open file, or `io.BytesIO` of what came through a pipe.
        name: What messages call it.
        max_pixels: As for `read_picture`.

    Raises:
        InputError: As for `read_picture`.
    """
    head = file.read(64)
    file.seek(0)
    kind = sniff(head, name)
    with warnings.catch_warnings():
        # Odd EXIF, truncated tags: Pillow warns and reads on. Only its modules are silenced, so
        # that a race between threads can at worst leave those silent.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            with pillow_limit(max_pixels):
                image = open_header(file, head, kind, name, max_pixels)
                refuse(image, file, name)
                return _decode(image, file, head, kind, name)
        except InputError:
            raise
        except MemoryError as e:
            raise InputError(f"{name}: does not fit into memory; make it smaller first") from e
        except Exception as e:  # decoders raise anything on damaged bytes, EOFError to KeyError
            raise InputError(
                f"{name}: cut short, damaged or no {kind} picture ({_why(e)}); copy it again"
            ) from e


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def _decode(image: ImageFile, file: IO[bytes], head: bytes, kind: str, name: str) -> Picture:
    orientation, meta, lost = _meta(image)
    bits, gray = depth(image, head, kind, name)
    image.load()  # also for 16 bits: OpenCV fills in what a truncated file lacks
    if lost:  # not before: a file that is cut short has one error, not two
        _log.warning("%s: EXIF cannot be read and is left out (%s)", name, lost)
    if bits == 16:
        file.seek(0)
        colour, alpha = _split_deep(decode_deep(file.read(), kind), image, gray, name)
        colour = _upright(colour, orientation)
        alpha = None if alpha is None else _upright(alpha, orientation)
        return Picture(_TO_8BIT[colour], alpha, colour, gray, meta, kind)
    if kind == "TIFF":
        orientation = 1  # Pillow has turned it
    shown: Image = image
    if image.mode == "CMYK":
        shown = _from_cmyk(image, meta.icc_profile, name)
        meta = Meta(None, meta.exif, meta.dpi)
    shown_alpha = None
    if shown.has_transparency_data:
        shown = shown.convert("RGBA")
        shown_alpha = _upright(np.asarray(shown.getchannel("A")), orientation)
    rgb = _upright(np.asarray(shown.convert("RGB")), orientation)
    return Picture(rgb, shown_alpha, None, gray, meta, kind)


def _split_deep(
    samples: U16 | None, image: ImageFile, gray: bool, name: str
) -> tuple[U16, U16 | None]:
    """Return uint16 colour `(H, W, 3)` and alpha, with what the header says about them."""
    if samples is None:
        raise InputError(
            f"{name}: its 16-bit samples cannot be decoded, it may be damaged; save it anew as PNG"
        )
    colour = samples[..., :1].repeat(3, 2) if gray else samples[..., :3]
    if image.format == "TIFF" and image.tag_v2[262] == 0:  # type: ignore[attr-defined]
        colour = 65535 - colour  # a TIFF where 0 is white
    key = image.info.get("transparency")  # of a PNG: one colour is transparent
    if samples.shape[2] == 4:
        return colour, samples[..., 3]
    if key is None:
        return colour, None
    shown = (colour != np.asarray(key, np.uint16)).any(2)
    return colour, shown.astype(np.uint16) * np.uint16(65535)


def _upright(samples: Any, orientation: int) -> Any:
    """Turn `(H, W, ...)` as EXIF orientation 1 to 8 asks. Source: EXIF 2.3, tag 0x0112."""
    turned = samples.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else samples
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def _meta(image: ImageFile) -> tuple[int, Meta, str]:
    """Return the EXIF orientation, what will be carried over, and why EXIF will not.

    Before `load` changes it.
    """
    from PIL.Image import Exif

    orientation, block, lost = 1, None, ""
    try:
        exif = image.getexif()
        orientation = exif.get(ORIENTATION, 1)
        kept = Exif()
        for tag in _PHOTO_TAGS if image.format == "TIFF" else tuple(exif):
            if tag in exif and tag != ORIENTATION:
                kept[tag] = exif.get_ifd(tag) if tag in (EXIF_IFD, GPS_IFD) else exif[tag]
        block = kept.tobytes() if len(kept) else None
    except Exception as e:  # the picture is worth more than its EXIF; parsers raise anything
        lost = _why(e)
    dpi = tuple(float(value) for value in image.info.get("dpi", ()))
    usable = len(dpi) == 2 and all(1 < value < 1e6 for value in dpi)  # 1: Pillow's "not said"
    profile = image.info.get("icc_profile") or None
    return orientation, Meta(profile, block, (dpi[0], dpi[1]) if usable else None), lost


def _from_cmyk(image: Image, profile: bytes | None, name: str) -> Image:
    """Convert inks to sRGB through the file's own profile; without one it would be a guess."""
    from PIL import ImageCms

    if profile is None:
        raise InputError(
            f"{name}: is CMYK without a colour profile; convert it to RGB in the program it is from"
        )
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    rgb = ImageCms.profileToProfile(image, source, target, intent, "RGB", flags=flags)
    if rgb is None:
        raise InputError(f"{name}: CMYK cannot be converted; convert it to RGB first")
    return rgb


def check_format(picture: Picture, suffix: str, name: str) -> None:
    """Refuse a file format that is unknown or cannot hold the picture; ask before the work.

    Args:
        picture: The source.
        suffix: Of the result, with its dot, in any case.
        name: What messages call the result.

    Raises:
        OutputError: Unknown suffix, transparency or 16 bits that would be lost.
    """
    kind = WRITTEN.get(suffix.lower())
    if kind is None:
        known, given = ", ".join(sorted(WRITTEN)), suffix or "without a suffix"
        raise OutputError(f"{name}: pictures are not written {given}; use one of {known}")
    if picture.deep is not None and kind not in _DEEP:
        raise OutputError(f"{name}: {kind} cannot hold the source's 16 bits; use .png or .tif")
    if picture.alpha is not None and kind in _OPAQUE and picture.alpha.min() < 255:
        raise OutputError(f"{name}: {kind} cannot hold the source's transparency; use .png")


def encode_picture(
    picture: Picture, restored_rgb: U8, suffix: str, *, quality: int = 95, name: str = "result"
) -> bytes:
    """Return the bytes of a picture file.

    Args:
        picture: The source: what is unchanged comes from it, alpha and metadata too.
        restored_rgb: uint8 `(H, W, 3)`. Where all three values equal `picture.rgb`, the source's
            own samples are written; 16-bit sources take the change times 257; grey sources take
            the luma (BT.601) of changed pixels.
        suffix: `.png`, `.jpg` (4:4:4), `.webp` (lossless), `.tif`, `.bmp`, `.avif` (lossy, its
            alpha too).
        quality: Of JPEG and AVIF, 1 to 100.
        name: What messages call the result.

    Raises:
        InputError: `restored_rgb` does not fit the picture, or quality is out of range.
        OutputError: The format is unknown or cannot hold the picture.
    """
    check_format(picture, suffix, name)
    if restored_rgb.dtype != np.uint8 or restored_rgb.shape != picture.rgb.shape:
        raise InputError(
            f"{name}: restored is {restored_rgb.dtype} {restored_rgb.shape}, the picture "
            f"uint8 {picture.rgb.shape}"
        )
    if not 1 <= quality <= 100:
        raise InputError(f"{name}: quality {quality} must be from 1 to 100")
    kind = WRITTEN[suffix.lower()]
    samples = _merge(picture, restored_rgb)
    if picture.alpha is not None and kind not in _OPAQUE:
        samples = cast("U8 | U16", np.dstack((samples, picture.alpha)))
    meta, profile = picture.meta, picture.meta.icc_profile or b""
    gray_in_rgb = picture.gray and kind in ("WEBP", "AVIF") and profile[16:20] == b"GRAY"
    if gray_in_rgb or (profile and kind == "BMP"):
        _log.warning("%s: %s cannot hold the colour profile; it is left out", name, kind)
        meta = Meta(None, meta.exif, meta.dpi)
    try:
        if kind in _DEEP:
            return (encode_png if kind == "PNG" else encode_tiff)(samples, meta)
        return _encode_pillow(samples, meta, kind, quality)
    except (OSError, ValueError, ImportError, KeyError, struct.error) as e:
        # Too large for the format, EXIF too long, an encoder that this Pillow lacks.
        raise OutputError(f"{name}: cannot be encoded as {kind} ({_why(e)}); use .png") from e


def _merge(picture: Picture, restored: U8) -> U8 | U16:
    """Return `(H, W, 1 or 3)` in the source's depth; unchanged pixels are the source's own."""
    if picture.deep is None and not picture.gray:
        return restored
    changed = (restored != picture.rgb).any(2)
    channels = 1 if picture.gray else 3
    new = restored[changed].astype(np.int32)
    if picture.gray:
        new = (new @ np.array((299, 587, 114)) + 500)[:, None] // 1000
    if picture.deep is None:
        merged = picture.rgb[..., :1].copy()
        merged[changed] = new
        return merged
    deep = picture.deep[..., :channels].copy()
    change = (new - picture.rgb[changed][:, :channels]) * 257
    deep[changed] = np.clip(deep[changed] + change, 0, 65535)
    return deep


def _encode_pillow(samples: U8 | U16, meta: Meta, kind: str, quality: int) -> bytes:
    from PIL import Image

    import_module(f"PIL.{PLUGINS[kind]}")
    file = BytesIO()
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"lossless": True, "exact": True, "method": 0, "quality": 0},
        "AVIF": {"quality": quality, "subsampling": "4:4:4", "speed": 8},
        "BMP": {},
    }
    carried = {key: value for key, value in asdict(meta).items() if value}
    plain = samples[..., 0] if samples.shape[2] == 1 else samples
    Image.fromarray(plain).save(file, kind, **options[kind], **carried)
    return file.getvalue()


def write_picture(
    path: str | os.PathLike[str], picture: Picture, restored_rgb: U8, *, quality: int = 95
) -> None:
    """Write a picture file whose suffix tells the format; see `encode_picture`, `write_file`.

    Raises:
        InputError: As for `encode_picture`.
        OutputError: As for `encode_picture` and `write_file`.
    """
    suffix = Path(path).suffix
    write_file(
        path, encode_picture(picture, restored_rgb, suffix, quality=quality, name=label(path))
    )
