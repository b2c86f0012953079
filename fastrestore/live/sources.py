"""What a source's text means, and the source that it opens."""

from __future__ import annotations

import os
from fractions import Fraction

from fastrestore.atomic import label
from fastrestore.errors import InputError
from fastrestore.images import is_picture
from fastrestore.live.addresses import masked, scheme
from fastrestore.live.frame import Source
from fastrestore.live.source_camera import is_camera, open_camera
from fastrestore.live.source_file import FileSource
from fastrestore.live.source_images import ImageSource
from fastrestore.live.source_network import SCHEMES, open_network
from fastrestore.live.source_pipe import open_stdin
from fastrestore.video_probe import MAX_PIXELS


def open_source(
    text: str,
    *,
    input_size: tuple[int, int] | None = None,
    pixel_format: str = "rgb24",
    rate: Fraction | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """Open what a text means.

    - `0`, `1`, `/dev/video0`: a camera.
    - `rtsp://...`, `http://...`, `udp://...` and the like: a stream of the network.
    - `-`: stdin, as y4m, as Matroska, MPEG-TS or another container that can be streamed, or with
      `input_size` as raw frames.
    - `in/%05d.png`, or a folder: numbered pictures.
    - Anything else: a video file.

    A stream or camera that is lost can be opened again with the same arguments.

    Args:
        text: See above.
        input_size: Width and height, px: of raw frames, or asked of a camera.
        pixel_format: Of raw frames, FFmpeg's name.
        rate: Frames per second: of raw frames and pictures (None = 25), or asked of a camera.
        max_pixels: Largest picture that is accepted.

    Raises:
        SourceLostError: A camera or stream is not there now.
        InputError: What was given cannot be read.
    """
    if rate is not None and rate <= 0:
        raise InputError(f"--rate {rate}: must be above 0")
    if text == "-":
        return open_stdin(
            input_size=input_size, pixel_format=pixel_format, rate=rate, max_pixels=max_pixels
        )
    if is_camera(text) and not os.path.isfile(text):
        return open_camera(text, input_size=input_size, rate=rate, max_pixels=max_pixels)
    if kind := scheme(text):
        if kind not in SCHEMES:
            known = ", ".join(f"{s}://" for s in SCHEMES)
            raise InputError(f"{masked(text)}: {kind}:// is not read; use one of {known}")
        return open_network(text, max_pixels=max_pixels)
    if os.path.isdir(text) or ("%" in os.path.basename(text) and not os.path.exists(text)):
        return ImageSource(text, rate=rate, max_pixels=max_pixels)
    if is_picture(text):
        raise InputError(f"{label(text)}: is one picture; use `fastrestore restore {label(text)}`")
    return FileSource(text, max_pixels=max_pixels)
