"""Stamps on the copy's clock: origins, jumps, streams without stamps, and what cannot be sought."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest

from fastrestore.errors import InputError
from fastrestore.video import restore_video
from fastrestore.video_clock import Clock
from fastrestore.video_io import VideoReader
from fastrestore.video_probe import probe

MS = Fraction(1, 1000)
VIDEO, SOUND, TEXT = 0, 1, 2
KINDS = {VIDEO: "video", SOUND: "audio", TEXT: "subtitle"}


def clock(kind: str = "mpegts", start: float = 0.0, raw: Fraction | None = None) -> Clock:
    container: Any = SimpleNamespace(
        format=SimpleNamespace(name=kind), start_time=round(start * 1e6)
    )
    stream: Any = SimpleNamespace(index=VIDEO, time_base=MS)
    return Clock(container, stream, raw)


def packet(stream: int, at: int, length: int = 40, pts: int | None = None) -> Any:
    """A packet decoded at `at` ms and shown at `pts`."""
    return SimpleNamespace(
        stream=SimpleNamespace(index=stream, type=KINDS[stream]),
        dts=at,
        pts=at if pts is None else pts,
        duration=length,
        time_base=MS,
        size=1,
    )


def moved(c: Clock, *packets: Any) -> list[int]:
    for p in packets:
        c.move(p)
    return [p.pts for p in packets]


def test_a_broadcast_starts_at_zero_and_others_where_they_are() -> None:
    c = clock(start=5000.0)
    assert moved(c, packet(SOUND, 5_000_000), packet(VIDEO, 5_000_030, pts=5_000_110)) == [0, 110]
    assert (c.origin, c.end, c.jumps) == (5000, Fraction(150, 1000), 0)
    c = clock("matroska,webm", start=0.5)
    assert moved(c, packet(VIDEO, 500)) == [500]
    assert (c.origin, c.end) == (0, Fraction(540, 1000))


@pytest.mark.parametrize("to", [0, 3_600_000, 95_000_000])
def test_a_jump_of_the_video_is_closed_and_sound_follows(to: int) -> None:
    c = clock()
    before = [packet(VIDEO, 0), packet(SOUND, 0), packet(VIDEO, 40), packet(SOUND, 40)]
    before += [packet(VIDEO, 80), packet(SOUND, 80), packet(VIDEO, 120)]
    assert moved(c, *before)[-1] == 120
    # The last packet of sound comes after the jump, as it does in real files.
    after = [packet(VIDEO, to, pts=to + 80), packet(SOUND, 120), packet(SOUND, to)]
    after += [packet(VIDEO, to + 40), packet(SOUND, to + 40)]
    assert moved(c, *after) == [240, 120, 160, 200, 200]
    assert c.jumps == 1
    assert not c.finds_frames


def test_sound_that_jumps_ahead_of_the_video_goes_on() -> None:
    c = clock()
    moved(c, packet(VIDEO, 0), packet(SOUND, 0), packet(VIDEO, 40), packet(SOUND, 40))
    early = [packet(SOUND, 900_000), packet(VIDEO, 900_000), packet(SOUND, 900_040)]
    assert moved(c, *early) == [80, 80, 120]


def test_sparse_text_lies_where_the_video_is() -> None:
    c = clock()
    moved(c, packet(VIDEO, 0), packet(TEXT, 0, 0))
    moved(c, *(packet(VIDEO, 40 * i) for i in range(1, 500)))
    assert moved(c, packet(TEXT, 19_900)) == [19_900]  # far behind its last, but no jump
    moved(c, packet(VIDEO, 7_000_000))
    assert moved(c, packet(TEXT, 7_000_010)) == [20_010]


def test_gaps_of_seconds_are_no_jumps_and_pace_stands_in_for_lengths() -> None:
    c = clock()
    assert moved(c, packet(VIDEO, 0), packet(VIDEO, 9_000)) == [0, 9_000]
    assert c.jumps == 0
    c = clock()
    moved(c, *(packet(VIDEO, 40 * i, 0) for i in range(5)))
    assert moved(c, packet(VIDEO, 0, 0)) == [200]


def test_files_with_an_index_never_jump() -> None:
    c = clock("mov,mp4,m4a,3gp,3g2,mj2")
    assert moved(c, packet(VIDEO, 0), packet(VIDEO, 60_000), packet(VIDEO, 40)) == [0, 60_000, 40]
    assert c.finds_frames


def test_raw_streams_count_and_avi_takes_decoding_times_in_order() -> None:
    frame: Any = SimpleNamespace(pts=77, duration=48000)
    c = clock("h264", raw=Fraction(30000, 1001))
    assert c.time_base == Fraction(1001, 30000)
    assert [c.time_of(frame, n) for n in range(3)] == [0, 1, 2]
    assert (frame.duration, c.finds_frames) == (1, False)
    c = clock("avi")
    for at in (0, 40, 120):
        c.sent(packet(VIDEO, at))
    c.sent(SimpleNamespace(size=0, dts=None))  # type: ignore[arg-type]  # what flushes the decoder
    assert [c.time_of(frame, n) for n in range(4)] == [0, 40, 120, None]
    assert not c.finds_frames
    assert clock("matroska,webm").time_of(frame, 5) == 77


def raw_file(path: Path, codec: str, rate: int = 50, **options: str) -> Path:
    with av.open(str(path), "w") as c:
        v: Any = c.add_stream(codec, rate=rate)
        v.width, v.height, v.pix_fmt, v.options = 64, 48, "yuv420p", options
        for _ in range(6):
            c.mux(v.encode(av.VideoFrame(64, 48, "yuv420p")))
        c.mux(v.encode(None))
    return path


def times(path: Path) -> list[float]:
    with av.open(str(path)) as c:
        return [f.time or 0.0 for f in c.decode(video=0)]


def test_rate_of_a_raw_stream(tmp_path: Path) -> None:
    told = raw_file(tmp_path / "a.h264", "libx264")
    silent = raw_file(
        tmp_path / "a.hevc", "libx265", **{"x265-params": "log-level=none:vui-timing-info=0"}
    )
    assert (probe(told).fps, probe(told).notes) == (50.0, ())
    assert (probe(silent).fps, probe(silent).frames) == (25.0, None)
    assert probe(silent).notes == (
        "no time stamps, no frame rate: 25 a second taken; or give --rate",
    )
    given = Fraction(24000, 1001)
    assert probe(silent, rate=given).notes == ()
    report = restore_video(silent, tmp_path / "o.mp4", lambda a: a, rate=given)
    assert (report.frames, report.notes) == (6, [])
    assert times(tmp_path / "o.mp4") == pytest.approx([i * 1001 / 24000 for i in range(6)])
    with VideoReader(told) as reader:
        assert (reader.time_base, reader.rate, reader.finds_frames) == (Fraction(1, 50), 50, False)
    with VideoReader(told, rate=Fraction(10)) as reader:
        assert reader.rate == 10


def test_a_rate_for_a_file_with_stamps_is_refused(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "a.mkv", "libx264")
    with pytest.raises(InputError, match="stamps of its own; leave --rate away"):
        probe(path, rate=Fraction(30))
