"""Restored frames into files, numbered pictures, nothing; the times and colours they get."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fastrestore.errors import InputError, OutputError
from fastrestore.images import read_picture
from fastrestore.live import encode
from fastrestore.live.frame import LiveFrame, Sink
from fastrestore.live.sink_file import FILE_MUXERS
from fastrestore.live.sink_images import NullSink
from fastrestore.live.sinks import open_sink
from fastrestore.live.timeline import TICKS_HZ, Timeline
from tests.fastrestore.live.clips import RATE, H, W, flat, live_frame, nothing_left

TICK = 1 / RATE


def write(sink: Sink, numbers: Iterable[int]) -> None:
    for number in numbers:
        sink.write(live_frame(number, pts=number * TICK))


def decoded(path: Path) -> list[tuple[float, Any]]:
    """Seconds and mean colour of each frame."""
    with av.open(str(path)) as container:
        return [
            (float(f.pts * f.time_base), f.to_ndarray(format="rgb24").mean((0, 1)))
            for f in container.decode(video=0)
            if f.pts is not None and f.time_base is not None
        ]


@pytest.mark.parametrize("suffix", FILE_MUXERS)
def test_a_file_keeps_times_though_frames_were_dropped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    kept = (2, 3, 4, 7, 8, 15)
    with nothing_left():
        sink = open_sink(str(path), rate=RATE)
        write(sink, kept)
        assert not path.exists()
        sink.finish()
    assert os.listdir(tmp_path) == [path.name]
    frames = decoded(path)
    times = [t - frames[0][0] for t, _ in frames]
    assert times == pytest.approx([float((n - 2) * TICK) for n in kept], abs=0.0011)
    assert [round((c.mean() - 20) / 10) for _, c in frames] == list(kept)


@pytest.mark.parametrize("encoder", ["x264", "libx265", "vp9", "svt-av1", "ffv1"])
def test_encoders(tmp_path: Path, encoder: str, capfd: Any) -> None:
    path = tmp_path / "a.mkv"
    size = flat(0, 128, 128)  # no smaller one is taken by SVT-AV1
    sink = open_sink(str(path), rate=RATE, encoder=encoder)
    for i in range(3):
        sink.write(live_frame(i, size + np.uint8(20 + 10 * i), pts=i * TICK))
    sink.finish()
    assert [round((c.mean() - 20) / 10) for _, c in decoded(path)] == [0, 1, 2]
    assert capfd.readouterr().err == ""


def test_colours_and_their_tags(tmp_path: Path) -> None:
    red = np.zeros((H, W, 3), np.uint8)
    red[...] = 200, 30, 60
    tall = np.zeros((720, 16, 3), np.uint8)
    tall[...] = 200, 30, 60
    for name, rgb, matrix in (("low.mkv", red, 6), ("high.mkv", tall, 1)):
        sink = open_sink(str(tmp_path / name), rate=RATE, crf=1)
        sink.write(live_frame(0, rgb))
        sink.finish()
        with av.open(str(tmp_path / name)) as container:
            (frame,) = container.decode(video=0)
        assert (int(frame.colorspace), int(frame.color_range)) == (matrix, 1)
        assert (int(frame.color_primaries), int(frame.color_trc)) == (matrix, matrix)
        assert abs(frame.to_ndarray(format="rgb24").astype(int) - (200, 30, 60)).max() <= 3


def test_an_odd_size_is_kept_and_said(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "a.mp4"), rate=RATE)
    sink.write(live_frame(0, flat(90, 49, 65)))
    sink.finish()
    assert "65x49 is odd" in sink.notes[0]
    with av.open(str(tmp_path / "a.mp4")) as container:
        (frame,) = container.decode(video=0)
    assert (frame.width, frame.height, frame.format.name) == (65, 49, "yuv444p")


def test_a_picture_too_small_for_its_encoder_is_refused(tmp_path: Path) -> None:
    """SVT-AV1 does not fail on such pictures, it hangs."""
    sink = open_sink(str(tmp_path / "a.mkv"), rate=RATE, encoder="svt-av1")
    small = live_frame(0)
    with pytest.raises(OutputError, match="from 64 px a side"):
        sink.write(dataclasses.replace(small, rgb=np.zeros((32, 400, 3), np.uint8)))
    sink.abandon()
    assert list(tmp_path.iterdir()) == []


def test_keyframes_come_by_time(tmp_path: Path) -> None:
    """Every two seconds of the clip, however few frames a second were left."""
    path = tmp_path / "a.mkv"
    sink = open_sink(str(path), rate=RATE)
    for i in range(10):  # two a second, where 20 were announced
        sink.write(live_frame(0, pts=i * TICK * 10))
    sink.finish()
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.pts is not None]
        keys = [float(p.pts * p.time_base) for p in packets if p.is_keyframe and p.time_base]
    assert keys == [0.0, 2.0, 4.0]


def _write_and_die(path: str) -> None:
    sink = open_sink(path, rate=RATE)
    write(sink, range(100))  # five seconds
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_what_was_written_plays_after_a_kill(tmp_path: Path, suffix: str) -> None:
    child = multiprocessing.get_context("spawn").Process(
        target=_write_and_die, args=(str(tmp_path / f"a{suffix}"),)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    (part,) = tmp_path.iterdir()
    assert part.name.startswith("a.part-")
    assert len(decoded(part)) >= 80  # in fragments of two seconds


def test_abandon_leaves_the_part_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with nothing_left():
        sink = open_sink(str(path), rate=RATE)
        write(sink, range(5))
        sink.abandon()
        sink.abandon()
    (part,) = tmp_path.iterdir()
    assert part != path
    assert sink.notes == [f"{path}: what was written until then plays: {part}"]
    assert len(decoded(part)) == 5
    with pytest.raises(OutputError, match="was closed"):
        write(sink, [6])


def test_no_frame_no_file(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "a.mkv"), rate=None)
    sink.finish()
    assert not list(tmp_path.iterdir())
    assert "no frame came" in sink.notes[0]


def test_another_size(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "a.mkv"), rate=RATE)
    write(sink, [0])
    with pytest.raises(OutputError, match="a frame is 64x50, the first was 64x48"):
        sink.write(live_frame(1, flat(0, 50)))
    sink.abandon()


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="--overwrite"):
        open_sink(str(path), rate=RATE)
    sink = open_sink(str(path), rate=RATE, overwrite=True)
    write(sink, [0])
    assert path.read_bytes() == b"old"
    sink.finish()
    assert len(decoded(path)) == 1


@pytest.mark.parametrize("rate", [Fraction(1, 999_999_999), Fraction(999_999_999)])
def test_a_rate_that_is_none_does_no_harm(tmp_path: Path, rate: Fraction) -> None:
    sink = open_sink(str(tmp_path / "a.mp4"), rate=rate)
    write(sink, range(3))
    sink.finish()
    assert len(decoded(tmp_path / "a.mp4")) == 3


def test_a_file_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    sink = open_sink(str(path), rate=RATE)
    write(sink, range(3))
    path.write_bytes(b"of another run")
    with pytest.raises(OutputError, match="another has made it meanwhile"):
        sink.finish()
    sink.abandon()
    assert path.read_bytes() == b"of another run"
    (part,) = tmp_path.glob("a.part-*")
    assert len(decoded(part)) == 3


def test_a_full_disk(tmp_path: Path) -> None:
    import resource

    sink = open_sink(str(tmp_path / "a.mkv"), rate=RATE, crf=0)
    noise = np.random.default_rng(0).integers(0, 256, (100, H, W, 3), np.uint8)
    frames = [live_frame(i, rgb, pts=i * TICK) for i, rgb in enumerate(noise)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match=r"a\.mkv: no space left"):
            list(map(sink.write, frames))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    sink.abandon()
    names = os.listdir(tmp_path)
    assert "a.mkv" not in names
    assert len(names) == 1  # what was written stays


def test_numbered_pictures(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "p%03d.png"), rate=RATE)
    write(sink, (4, 6))  # no gap: programs stop at one
    sink.finish()
    assert sorted(os.listdir(tmp_path)) == ["p000.png", "p001.png"]
    assert read_picture(tmp_path / "p001.png").rgb.max() == 80
    with pytest.raises(OutputError, match="--overwrite"):
        open_sink(str(tmp_path / "p%03d.png"), rate=RATE)
    open_sink(str(tmp_path / "p%03d.png"), rate=RATE, overwrite=True)


def test_nothing_is_counted() -> None:
    sink = open_sink("none", rate=None)
    write(sink, range(3))
    sink.finish()
    assert isinstance(sink, NullSink)
    assert sink.frames == 3


def ticks(*frames: LiveFrame, rate: Fraction | None = RATE) -> list[float]:
    timeline = Timeline(rate)
    return [timeline.ticks(f) / TICKS_HZ for f in frames]


def test_time_by_the_sources_clock() -> None:
    frames = [
        live_frame(i, pts=Fraction(p, 10), captured=99.0 * i) for i, p in enumerate((70, 71, 75))
    ]
    assert ticks(*frames) == [0, 0.1, 0.5]


def test_time_by_when_frames_were_captured() -> None:
    frames = [live_frame(i, captured=c) for i, c in enumerate((50.0, 50.5, 50.5, 53.0))]
    assert ticks(*frames) == pytest.approx([0, 0.5, 0.55, 3.05])  # a twentieth where none passed


def test_time_goes_on_when_the_sources_clock_is_set_back() -> None:
    frames = [
        live_frame(i, pts=Fraction(p), captured=c)
        for i, (p, c) in enumerate(((100, 0.0), (101, 1.0), (0, 4.0), (1, 5.0)))
    ]
    assert ticks(*frames) == [0, 1, 4, 5]


@pytest.mark.parametrize(
    ("text", "how", "error", "words"),
    [
        ("a.avi", {}, InputError, "not written as .avi; use one of .mkv"),
        ("a", {}, InputError, "a file without suffix"),
        ("none/a.mkv", {}, OutputError, "folder does not exist"),
        ("dir.mkv", {}, OutputError, "is a folder"),
        ("a.mkv", {"encoder": "x266"}, InputError, "use one of x264"),
        ("a.mp4", {"encoder": "vp9"}, InputError, "--encoder vp9 does not go with it"),
        ("a.mkv", {"crf": 52}, InputError, "use 0 to 51"),
        ("a.mkv", {"encoder": "vp9", "crf": 64}, InputError, "use 0 to 63"),
        ("a.mkv", {"encoder": "ffv1", "crf": 0}, InputError, "takes no --crf"),
        ("a.png", {}, InputError, "give it one number"),
        ("a%d.gif", {}, InputError, "use one of .avif"),
        ("none/a%d.png", {}, OutputError, "folder does not exist"),
        ("ftp://me:hunter2@host/a", {}, InputError, r"ftp://\*\*\*@host/a: nothing is sent"),
        ("udp://", {}, InputError, "is no address"),
        ("-", {"output_format": "avi"}, InputError, "must be one of y4m"),
    ],
)
def test_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    how: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir.mkv").mkdir()
    with pytest.raises(error, match=words) as e:
        open_sink(text, rate=RATE, **how)
    assert "hunter2" not in str(e.value)


def test_an_encoder_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def options(*_: object) -> dict[str, str]:
        return {"preset": "no such"}

    monkeypatch.setattr(encode, "_options", options)
    sink = open_sink(str(tmp_path / "a.mkv"), rate=RATE)
    with pytest.raises(OutputError, match="the encoder libx264 does not start here"):
        write(sink, [0])
    sink.abandon()
    assert not list(tmp_path.iterdir())
