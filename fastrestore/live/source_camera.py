"""A camera as a source, by OpenCV: V4L2 on Linux, what the system has elsewhere."""

from __future__ import annotations

import math
import os
import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastrestore.errors import InputError
from fastrestore.live.feed import Feed, Pictures
from fastrestore.live.frame import SourceLostError

if TYPE_CHECKING:
    from cv2 import VideoCapture

DEVICES = Path("/dev")
_CAMERA = re.compile(r"\d{1,3}|/dev/video\d{1,3}")
_VGA = 640 * 480
_PATIENCE_S = 10.0  # V4L2 waits so long for a picture before it gives up
_FASTEST_FPS = 1000.0  # a driver that says more, or nothing, does not know


def is_camera(text: str) -> bool:
    """Tell whether a source's text means a camera: `0`, `1`, `/dev/video0`."""
    return _CAMERA.fullmatch(text) is not None


def open_camera(
    text: str, *, input_size: tuple[int, int] | None, rate: Fraction | None, max_pixels: int
) -> Feed:
    """Open a camera.

    Args:
        text: Its number or device.
        input_size: Width and height to ask it for; it may answer with others.
        rate: Frames per second to ask it for.
        max_pixels: Largest picture that is accepted.

    Raises:
        SourceLostError: It is not plugged in, or another program has it.
        InputError: It may not be opened, or its pictures are too large.
    """
    name = text if text.startswith("/") else f"camera {text}"
    if sys.platform == "linux":
        name = text if text.startswith("/") else str(DEVICES / f"video{text}")
        _check_device(Path(name))
    capture = _capture(text, input_size, rate)
    try:
        width, height, fps = _settled(capture, name)
        if width * height > max_pixels:
            raise InputError(f"{name}: {width}x{height} is more than {max_pixels} pixels")
    except InputError:
        capture.release()
        raise
    notes = []
    if input_size and input_size != (width, height):
        wished = "{}x{}".format(*input_size)
        notes.append(f"{name}: gives {width}x{height} instead of {wished}")
    return Feed(
        name, _pictures(capture, name), live=True, rate=fps, notes=notes, patience=_PATIENCE_S
    )


def _check_device(device: Path) -> None:
    """Say what is wrong with a device of Linux before OpenCV fails without a word."""
    if not device.exists():
        there = sorted(str(d) for d in device.parent.glob("video*"))
        others = f"there is {', '.join(there)}" if there else "there is no camera at all"
        raise SourceLostError(f"{device}: no such camera, {others}; plug it in")
    if not os.access(device, os.R_OK | os.W_OK):
        raise InputError(
            f"{device}: no permission to use it; join its group (`sudo usermod -aG video $USER`) "
            "and log in again"
        )


def _capture(text: str, input_size: tuple[int, int] | None, rate: Fraction | None) -> VideoCapture:
    import cv2

    source = text if text.startswith("/") else int(text)
    capture = cv2.VideoCapture(source, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    if input_size:
        if input_size[0] * input_size[1] > _VGA:
            # 720p at 30 Hz takes 55 MB/s uncompressed: too much for USB 2.
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, input_size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, input_size[1])
    if rate:
        capture.set(cv2.CAP_PROP_FPS, float(rate))
    return capture


def _settled(capture: VideoCapture, name: str) -> tuple[int, int, Fraction | None]:
    """Ask an open camera what it will give: width, height, rate."""
    import cv2

    if not capture.isOpened():
        raise SourceLostError(
            f"{name}: cannot be opened; is it a camera, and does another program use it?"
        )
    width, height, fps = (
        capture.get(p)
        for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS)
    )
    known = math.isfinite(fps) and 0 < fps <= _FASTEST_FPS
    return int(width), int(height), Fraction(fps).limit_denominator(1001) if known else None


def _pictures(capture: VideoCapture, name: str) -> Pictures:
    """Yield the camera's pictures until it is gone; let go of it."""
    import cv2

    try:
        while True:
            taken, bgr = capture.read()
            if not taken:
                raise SourceLostError(f"{name}: gives no more pictures; is it still plugged in?")
            yield np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8), None
    finally:
        capture.release()
