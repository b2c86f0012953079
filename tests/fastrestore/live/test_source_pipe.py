"""Video through pipes: what is recognised, when it comes out, and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fastrestore.errors import InputError
from fastrestore.live.source_pipe import PipeSource
from fastrestore.live.sources import open_source
from tests.fastrestore.live.clips import (
    RATE,
    H,
    W,
    clip,
    drain,
    ended,
    flat,
    greys,
    in_thread,
    nothing_left,
    pipe_of,
    y4m,
    y4m_frame,
)

MAX_PIXELS = 1000 * 1000


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe; the writing end is left open."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def source_of(descriptor: int, **how: Any) -> PipeSource:
    return PipeSource(descriptor, **{"max_pixels": MAX_PIXELS, **how})


def read_all(data: bytes, **how: Any) -> tuple[PipeSource, list[Any]]:
    with pipe_of(data) as descriptor, nothing_left():
        source = source_of(descriptor, **how)
        frames = drain(source)
        source.close()
    return source, frames


def test_y4m() -> None:
    source, frames = read_all(y4m(5))
    assert (source.live, source.rate, source.notes) == (False, RATE, [])
    assert greys(frames) == [f.number for f in frames] == [0, 1, 2, 3, 4]
    assert [f.pts for f in frames] == [i / RATE for i in range(5)]
    assert frames[0].rgb.shape == (H, W, 3)
    assert frames[0].captured <= frames[-1].captured


def test_colour_of_y4m() -> None:
    """Limited range by default, the header's own where it says; BT.601 at this size."""
    grey = bytes([100]) * (H * W) + bytes([128]) * (H * W // 2)
    header = f"YUV4MPEG2 W{W} H{H} F20:1 Ip C420jpeg"
    for extra, shown in (("", (100 - 16) * 255 / 219), (" XCOLORRANGE=FULL", 100)):
        _, frames = read_all(f"{header}{extra}\nFRAME\n".encode() + grey)
        assert abs(frames[0].rgb.astype(float) - shown).max() <= 1
    red = bytes([81]) * (H * W) + bytes([90]) * (H * W // 4) + bytes([240]) * (H * W // 4)
    _, frames = read_all(f"{header}\nFRAME\n".encode() + red)
    assert abs(frames[0].rgb.astype(int) - (254, 0, 0)).max() <= 2  # BT.709 would be 237, 26, 0


@pytest.mark.parametrize("form", ["matroska", "mpegts", "nut", "mp4"])
def test_containers(form: str) -> None:
    if form == "mp4":  # one that can be streamed
        import io

        import av

        file = io.BytesIO()
        with av.open(io.BytesIO(clip("matroska"))) as old:
            how = {"movflags": "frag_keyframe+empty_moov"}
            with av.open(file, "w", format="mp4", options=how) as new:
                stream = new.add_stream_from_template(old.streams.video[0])
                for packet in old.demux(old.streams.video[0]):
                    if packet.dts is not None:
                        packet.stream = stream
                        new.mux(packet)
        data = file.getvalue()
    else:
        data = clip(form)
    source, frames = read_all(data)
    assert greys(frames) == list(range(10))
    assert source.rate == RATE
    assert [f.pts - frames[0].pts for f in frames] == [i / RATE for i in range(10)]


@pytest.mark.parametrize(("pixel_format", "order"), [("rgb24", (0, 1, 2)), ("bgr24", (2, 1, 0))])
def test_raw(pixel_format: str, order: tuple[int, ...]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, H, W, 3), np.uint8)
    source, frames = read_all(
        pictures[..., order].tobytes(),
        input_size=(W, H),
        pixel_format=pixel_format,
        rate=Fraction(30000, 1001),
    )
    assert source.rate == Fraction(30000, 1001)
    assert [f.pts for f in frames] == [Fraction(1001 * i, 30000) for i in range(3)]
    assert all((f.rgb == p).all() for f, p in zip(frames, pictures, strict=True))


def test_raw_without_rate_says_so() -> None:
    source, frames = read_all(flat(9).tobytes(), input_size=(W, H))
    assert len(frames) == 1
    assert source.rate == 25
    assert "no --rate" in source.notes[0]


def test_a_frame_does_not_wait_for_the_next_one(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    source = source_of(reading)
    os.write(writing, y4m(0))
    for i in range(3):
        os.write(writing, b"FRAME\n" + y4m_frame(i))
        thread, result = in_thread(source.read)
        assert ended(thread)
        assert greys(result) == [i]
    source.close()


@pytest.mark.parametrize("cut", [3, 5 + H * W, H * W * 3 // 2 + 5])
def test_a_cut_off_frame_is_said(cut: int) -> None:
    whole = y4m(3)
    source, frames = read_all(whole[:-cut])
    assert len(frames) == 2
    assert "1 frames were cut off" in source.notes[0]
    raw = flat(1).tobytes() * 3
    source, frames = read_all(raw[:-cut], input_size=(W, H), rate=RATE)
    assert len(frames) == 2
    assert "1 frames were cut off" in source.notes[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "did the program before it fail"),
        (b"hello world, this is no video" * 20, "--input-size"),
        (b"#EXTM3U\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "--input-size"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "--input-size"),
        (y4m(0), "before a whole frame"),
        (y4m(1)[:-9], "before a whole frame"),
        (y4m(1, "W64 H48 F20:1 C777"), "known colour format"),
        (y4m(1, "W99999 H99999 F20:1"), "--max-pixels"),
        (y4m(1, "W999999999 H1 F20:1"), "no usable size"),
        (y4m(1, "W0 H48 F20:1"), "no usable size"),
        (y4m(1, "W-64 H48 F20:1"), "no usable size"),
        (y4m(1, "F20:1"), "no usable size"),
        (y4m(1, "W64 H48 F-20:1"), "no usable rate"),
        (y4m(1, "W64 H48 F20:0"), "no usable rate"),
        (y4m(1, "W64 H48 F20"), "no usable rate"),
        (y4m(1, "W64 H48 F999999999:1"), "no usable rate"),
        (y4m(1, "W64 H48 F1:999999999"), "no usable rate"),
        (y4m(1, "W64 H48 F20:1 It"), "interlaced"),
        (b"YUV4MPEG2 " + b"W" * 5000, "no end"),
        (clip("matroska", tags={"color_trc": 16}), "HDR"),
        (clip("mpegts", options={"x264-params": "interlaced=1"}), "interlaced"),
    ],
)
def test_refused_in_one_line(data: bytes, words: str) -> None:
    with pipe_of(data) as descriptor, nothing_left():
        source = source_of(descriptor)
        with pytest.raises(InputError, match=r"^stdin: ") as e:
            source.read()
        source.close()
    assert words in str(e.value)
    assert "\n" not in str(e.value)
    assert not source.notes  # of a frame that was cut off: it is the error already


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"height": H + 16}, "is 64x64, the ones before 64x48"),
        ({"options": {"x264-params": "interlaced=1"}}, "is interlaced"),
    ],
)
def test_a_stream_that_changes(other: dict[str, Any], words: str) -> None:
    with pipe_of(clip("mpegts", 30) + clip("mpegts", 5, **other)) as descriptor:
        source = source_of(descriptor)
        with pytest.raises(InputError, match=rf"frame \d+ {words}"):
            drain(source)
        source.close()


def test_upright() -> None:
    sideways = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    _, frames = read_all(clip("matroska", 2, matrix=sideways))
    assert frames[0].rgb.shape == (W, H, 3)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"input_size": (0, 48)}, "--input-size"),
        ({"input_size": (2000, 2000)}, "--max-pixels"),
        ({"input_size": (W, H), "pixel_format": "rgb99"}, "--pixel-format"),
    ],
)
def test_raw_wishes_are_checked(how: dict[str, Any], words: str) -> None:
    with pipe_of(flat(1).tobytes()) as descriptor:
        source = source_of(descriptor, **how)
        with pytest.raises(InputError, match=words):
            source.read()
        source.close()


@pytest.mark.parametrize("before", [b"", b"YUV4MPEG2 ", y4m(0), y4m(1), y4m(1)[:-100]])
def test_close_wakes_a_read(pipe: tuple[int, int], before: bytes) -> None:
    reading, writing = pipe
    with nothing_left():
        source = source_of(reading)
        os.write(writing, before)
        thread, result = in_thread(lambda: drain(source))
        thread.join(0.1)
        assert thread.is_alive()
        closing, _ = in_thread(source.close)
        assert ended(closing)
        assert ended(thread)
        assert len(result[0]) == (before == y4m(1))
        assert source.read() is None
        source.close()


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    with pipe_of(y4m(2)) as descriptor, os.fdopen(os.dup(descriptor)) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        source = open_source("-")
        assert source.name == "stdin"
        assert greys(drain(source)) == [0, 1]
        source.close()


def test_a_terminal_is_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        closed = False

        def isatty(self) -> bool:
            return True

    for stdin in (Terminal(), None):
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(InputError, match=r"ffmpeg -i .* \| fastrestore live --source -"):
            open_source("-")
