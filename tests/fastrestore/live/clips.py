"""Small clips as bytes, what serves them, and what waits for things to happen."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
import numpy as np

from fastrestore.arrays import U8
from fastrestore.live.frame import LiveFrame, Source

H, W = 48, 64
RATE = Fraction(20)
PASSWORD = "hunter2"  # noqa: S105  # looked for in messages


def grey(number: int) -> int:
    """Grey value of a clip's frame; far enough apart to be told after any codec."""
    return 20 + 10 * (number % 20)


def flat(value: int, height: int = H, width: int = W) -> U8:
    return np.full((height, width, 3), value, np.uint8)


def live_frame(
    number: int, rgb: U8 | None = None, *, pts: Fraction | None = None, captured: float = 0.0
) -> LiveFrame:
    return LiveFrame(flat(grey(number)) if rgb is None else rgb, number, captured, pts)


def clip(
    muxer: str,
    n: int = 10,
    *,
    height: int = H,
    options: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
    matrix: tuple[int, ...] | None = None,
) -> bytes:
    """A clip of `n` grey frames at 20 Hz, with a keyframe every second one."""
    file = io.BytesIO()
    with av.open(file, "w", format=muxer) as container:
        stream: Any = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = W, height, "yuv420p"
        stream.codec_context.gop_size = 2
        stream.options = {"tune": "zerolatency", **(options or {})}
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if matrix:
            stream.set_display_matrix(matrix)
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(flat(grey(i), height), format="rgb24")
            frame.pts, frame.time_base = i, 1 / RATE
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    return file.getvalue()


def y4m(n: int = 3, header: str = f"W{W} H{H} F20:1 Ip C420jpeg") -> bytes:
    frames = b"".join(b"FRAME\n" + y4m_frame(i) for i in range(n))
    return f"YUV4MPEG2 {header}\n".encode() + frames


def y4m_frame(number: int) -> bytes:
    luma = round(16 + grey(number) * 219 / 255)
    return bytes([luma]) * (H * W) + bytes([128]) * (H * W // 2)


def greys(frames: list[LiveFrame]) -> list[int]:
    """Mean of each frame, in steps of the clip's: `[0, 1, 2]` = the first three."""
    return [round((float(f.rgb.mean()) - 20) / 10) for f in frames]


def drain(source: Source, limit: int = 1000) -> list[LiveFrame]:
    frames = []
    while len(frames) < limit and (frame := source.read()) is not None:
        frames.append(frame)
    return frames


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start it; what it returns or raises is in the list when the thread has ended."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as e:
            result.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result


def ended(thread: threading.Thread) -> bool:
    thread.join(5)
    return not thread.is_alive()


@contextmanager
def nothing_left() -> Iterator[None]:
    """Every thread and every descriptor that was opened inside is gone at the end."""
    threads, descriptors = threading.active_count(), _descriptors()
    yield
    end = time.monotonic() + 5
    while time.monotonic() < end and threading.active_count() > threads:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    assert _descriptors() <= descriptors


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@contextmanager
def pipe_of(data: bytes) -> Iterator[int]:
    """The reading end of a pipe through which `data` comes, and then its end."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            try:
                file.write(data)
                file.flush()
            except BrokenPipeError:
                file.detach()
                os.close(writing)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield reading
    finally:
        os.close(reading)
        thread.join(5)


@contextmanager
def tcp_server(data: bytes, *, then: Callable[[], Any] = lambda: None) -> Iterator[int]:
    """Port of a server that sends `data` to one client, does `then`, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(data)
                then()

        thread, _ = in_thread(serve)
        yield server.getsockname()[1]
        with socket.socket() as last:  # for a server whose client never came
            last.settimeout(0.1)
            last.connect_ex(server.getsockname())
        thread.join(5)


def free_port() -> int:
    """A port of localhost that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
