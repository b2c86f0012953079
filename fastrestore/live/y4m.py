"""The header line of y4m, the simplest form of video in a pipe.

Source: yuv4mpeg(5) of mjpegtools; XCOLORRANGE is FFmpeg's addition.
"""

from __future__ import annotations

import re
from fractions import Fraction

from fastrestore.errors import InputError
from fastrestore.live.timeline import FASTEST, SLOWEST
from fastrestore.video_probe import DEINTERLACE

MAGIC = b"YUV4MPEG2 "
FRAME = b"FRAME\n"
HEADER_BYTES = 1024  # the longest line that is taken for a header
# Format of FFmpeg -> chroma token. 4:2:0 with chroma amid its four pixels, as the scaler puts it.
CHROMA = {"yuv420p": "420jpeg", "yuv422p": "422", "yuv444p": "444"}
_POSITIVE, _RATIO = re.compile(r"[1-9]\d{0,5}"), re.compile(r"(\d{1,9}):(\d{1,9})")


def check_header(line: bytes, name: str, max_pixels: int) -> None:
    """Refuse a header that cannot be read, before anything of its size is allocated.

    Args:
        line: With its line break, if it has one.
        name: For messages.
        max_pixels: Largest picture that is accepted.

    Raises:
        InputError: No end, no size, too large, interlaced, a rate that is none.
    """
    if not line.endswith(b"\n"):
        raise InputError(f"{name}: its y4m header has no end; send it anew")
    fields = {token[0]: token[1:] for token in line.decode("latin-1").split()[1:]}
    width, height = fields.get("W", ""), fields.get("H", "")
    if not (_POSITIVE.fullmatch(width) and _POSITIVE.fullmatch(height)):
        raise InputError(f"{name}: its y4m header has no usable size (W and H); send it anew")
    if int(width) * int(height) > max_pixels:
        raise InputError(
            f"{name}: {width}x{height} is more than {max_pixels} pixels; "
            "raise --max-pixels if it is meant to be so large"
        )
    rate = _RATIO.fullmatch(fields.get("F", "0:0"))
    if rate is None or not _is_usable(int(rate[1]), int(rate[2])):
        raise InputError(f"{name}: its y4m header has no usable rate (F); send it anew")
    if fields.get("I", "p")[:1] in ("t", "b", "m"):
        raise InputError(f"{name}: interlaced video; {DEINTERLACE}")


def _is_usable(numerator: int, denominator: int) -> bool:
    """Tell whether a rate is one, or 0:0, which stands for unknown."""
    if not numerator and not denominator:
        return True
    return bool(denominator) and SLOWEST <= Fraction(numerator, denominator) <= FASTEST


def header(width: int, height: int, rate: Fraction, pixel_format: str) -> bytes:
    """Return the line that starts a stream of limited range and square pixels.

    Args:
        width: Pixels.
        height: Pixels.
        rate: Frames per second.
        pixel_format: A key of `CHROMA`.
    """
    return (
        f"YUV4MPEG2 W{width} H{height} F{rate.numerator}:{rate.denominator} Ip A1:1 "
        f"C{CHROMA[pixel_format]} XCOLORRANGE=LIMITED\n"
    ).encode()
