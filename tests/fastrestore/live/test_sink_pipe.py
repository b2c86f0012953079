"""Restored frames through pipes: their bytes, when they leave, and a reader that goes away."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np
import pytest

from fastrestore.errors import InputError, OutputError
from fastrestore.live.descriptors import Outlet
from fastrestore.live.encode import choose_encoding
from fastrestore.live.frame import ReaderGoneError, Sink
from fastrestore.live.sink_pipe import MUXERS, PlainSink, container_sink
from fastrestore.live.sinks import open_sink
from fastrestore.live.source_pipe import PipeSource
from tests.fastrestore.live.clips import (
    RATE,
    H,
    W,
    drain,
    ended,
    flat,
    in_thread,
    live_frame,
    nothing_left,
)

TICK = 1 / RATE
Make = Callable[[Outlet], Sink]


def plain(form: str, pixel_format: str | None = None, rate: Fraction | None = RATE) -> Make:
    return lambda outlet: PlainSink(outlet, form, pixel_format, rate)


def container(muxer: str, codec: str = "x264") -> Make:
    encoding = choose_encoding(muxer, name="stdout", encoder=codec)
    return lambda outlet: container_sink(outlet, encoding, RATE)


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    """Reading and writing end; a test that closes one replaces it by -1."""
    ends = list(os.pipe())
    yield ends
    for end in ends:
        if end >= 0:
            os.close(end)


def available(reading: int) -> bytes:
    """What lies in a pipe now."""
    os.set_blocking(reading, False)
    data = b""
    try:
        while more := os.read(reading, 1 << 20):
            data += more
    except BlockingIOError:
        pass
    os.set_blocking(reading, True)
    return data


def test_y4m_is_read_back(pipe: list[int]) -> None:
    """Colours, rate and odd sizes survive, through our own source."""
    reading, writing = pipe
    rgb = np.zeros((49, 65, 3), np.uint8)
    rgb[...] = 200, 30, 60
    with nothing_left():
        sink = plain("y4m", rate=Fraction(30000, 1001))(Outlet(writing, "stdout"))
        for i in range(3):
            sink.write(live_frame(i, rgb))
        sink.finish()
    os.close(writing)
    pipe[1] = -1
    source = PipeSource(reading, max_pixels=10**6)
    frames = drain(source)
    source.close()
    assert source.rate == Fraction(30000, 1001)
    assert len(frames) == 3
    assert abs(frames[2].rgb.astype(int) - rgb).max() <= 2


def test_y4m_bytes(pipe: list[int]) -> None:
    reading, writing = pipe
    sink = plain("y4m", "yuv444p")(Outlet(writing, "stdout"))
    sink.write(live_frame(0, flat(255, 2, 4)))
    head, planes = available(reading).split(b"\nFRAME\n")
    assert head == b"YUV4MPEG2 W4 H2 F20:1 Ip A1:1 C444 XCOLORRANGE=LIMITED"
    assert planes == bytes([235] * 8 + [128] * 16)
    sink.finish()


@pytest.mark.parametrize("order", ["rgb24", "bgr24"])
def test_raw_bytes(pipe: list[int], order: str) -> None:
    reading, writing = pipe
    rgb = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    sink = plain("rawvideo", order)(Outlet(writing, "stdout"))
    for _ in range(2):
        sink.write(live_frame(0, rgb))
    step = 1 if order == "rgb24" else -1
    assert available(reading) == 2 * rgb[..., ::step].tobytes()
    sink.finish()


@pytest.mark.parametrize("muxer", MUXERS)
def test_a_container_keeps_the_times(pipe: list[int], muxer: str) -> None:
    reading, writing = pipe
    kept = (0, 1, 5, 6)
    with nothing_left():
        sink = container(muxer)(Outlet(writing, "stdout"))
        for n in kept:
            sink.write(live_frame(n, pts=n * TICK))
        sink.finish()
        with av.open(io.BytesIO(available(reading))) as stream:
            times = [float(f.pts * f.time_base) for f in stream.decode(video=0)]  # type: ignore[operator]
        assert [t - times[0] for t in times] == pytest.approx([float(n * TICK) for n in kept])


def test_frames_leave_at_once(pipe: list[int]) -> None:
    """NUT and MPEG-TS with the frame itself, Matroska with the next one."""
    for muxer, held in (("nut", 0), ("mpegts", 0), ("matroska", 1)):
        sink = container(muxer)(Outlet(pipe[1], "stdout"))
        for n in range(held):
            sink.write(live_frame(n, pts=n * TICK))
        available(pipe[0])
        for n in range(held, held + 3):
            sink.write(live_frame(n, pts=n * TICK))
            assert len(available(pipe[0])) > 10
        sink.finish()


@pytest.mark.parametrize("make", [plain("y4m"), plain("rawvideo"), container("nut")])
def test_a_reader_that_goes_away(pipe: list[int], make: Make) -> None:
    os.close(pipe[0])
    pipe[0] = -1
    with nothing_left():
        sink = make(Outlet(pipe[1], "stdout"))
        with pytest.raises(ReaderGoneError, match="its reader has gone"):
            list(map(sink.write, map(live_frame, range(50))))
        sink.abandon()


@pytest.mark.parametrize("make", [plain("rawvideo"), container("nut", "ffv1")])
def test_a_reader_that_stops(pipe: list[int], make: Make) -> None:
    """A viewer that is paused: `abandon` from another thread ends the write that waits for it."""
    noise = np.random.default_rng(0).integers(0, 256, (8 * H, 8 * W, 3), np.uint8)
    with nothing_left():
        sink = make(Outlet(pipe[1], "stdout"))
        thread, result = in_thread(lambda: sink.write(live_frame(0, noise)))
        time.sleep(0.1)
        assert thread.is_alive()
        closing, _ = in_thread(sink.abandon)
        assert ended(closing)
        assert ended(thread)
        assert isinstance(result[0], OutputError)
        assert "was closed" in str(result[0])
        sink.abandon()


def test_another_size(pipe: list[int]) -> None:
    sink = plain("rawvideo")(Outlet(pipe[1], "stdout"))
    sink.write(live_frame(0))
    with pytest.raises(OutputError, match="a frame is 64x50"):
        sink.write(live_frame(1, flat(0, 50)))
    sink.abandon()


@pytest.mark.parametrize(("form", "pixel_format"), [("y4m", "rgb24"), ("rawvideo", "nv12")])
def test_pixel_formats_that_do_not_fit(pipe: list[int], form: str, pixel_format: str) -> None:
    with pytest.raises(InputError, match=f"no {form} of {pixel_format}; use one of"):
        plain(form, pixel_format)(Outlet(pipe[1], "stdout"))


@pytest.mark.parametrize("form", [None, "rawvideo", "nut"])
def test_stdout(pipe: list[int], monkeypatch: pytest.MonkeyPatch, form: str | None) -> None:
    """The rate is asked at the first frame; a raw source's format is not taken for y4m's."""
    rates: list[Fraction | None] = [None]
    with os.fdopen(os.dup(pipe[1]), "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        sink = open_sink("-", rate=lambda: rates[0], output_format=form, pixel_format="bgr24")
        rates[0] = Fraction(50)
        sink.write(live_frame(0, pts=Fraction(0)))
        sink.finish()
        monkeypatch.undo()
    data = available(pipe[0])
    assert sink.name == "stdout"
    if form is None:
        assert data.startswith(b"YUV4MPEG2 W64 H48 F50:1 Ip A1:1 C420jpeg")
    elif form == "rawvideo":
        assert len(data) == H * W * 3
    else:
        assert data.startswith(b"nut/multimedia container")


def test_a_terminal_is_no_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        closed = False

        def isatty(self) -> bool:
            return True

    for stdout in (Terminal(), None):
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(OutputError, match=r"\| ffplay -"):
            open_sink("-", rate=None)
