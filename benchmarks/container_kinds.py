"""The kinds of input that the container table goes through, and how each is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from container_clips import (
    FRAMES,
    HEIGHT,
    RATE,
    SIDEWAYS,
    WIDTH,
    Clip,
    Plan,
    cut,
    edited,
    in_programs,
    joined,
    with_captions,
    write,
)

Maker = Callable[[Path], Clip]

PLAIN = Plan(options=(("x264-params", "bframes=0"),))
BFRAMES = Plan(options=(("x264-params", "bframes=3:b-adapt=0"),))
SOUND = replace(BFRAMES, sounds=(("aac", 0.0),))
UNEVEN = tuple(Fraction(t, 1000) for t in (0, 50, 110, 113, 290, 300, 305, 440, 450, 599, 600, 700))
LATE = tuple(Fraction(3, 10) + Fraction(i, RATE) for i in range(FRAMES))
BROADCAST = replace(SOUND, clock=90000, options=(("x264-params", "bframes=2:keyint=8"),))
SMALL = replace(BROADCAST, size=(HEIGHT // 2, WIDTH // 2), first=100)


def _file(name: str, plan: Plan) -> Maker:
    return lambda folder: write(folder / name, plan)


def _edited(*spans: tuple[float, float]) -> Maker:
    """Cut the sound as the video."""
    return lambda folder: edited(edited(write(folder / "in.mp4", SOUND), spans), spans, 1)


def _cut(name: str, plan: Plan, share: float) -> Maker:
    return lambda folder: cut(write(folder / name, plan), share)


def _joined(second: Plan) -> Maker:
    def make(folder: Path) -> Clip:
        parts = [write(folder / "a.ts", BROADCAST), write(folder / "b.ts", second)]
        return joined(folder / "in.ts", parts)

    return make


def _programs(folder: Path) -> Clip:
    clips = [write(folder / f"{i}.ts", BROADCAST) for i in range(2)]
    return in_programs(folder / "in.ts", *clips)


def _captions(folder: Path) -> Clip:
    return with_captions(write(folder / "in.h264", replace(BFRAMES, clock=25)))


KINDS: dict[str, Maker] = {
    "MP4, B-frames, AAC": _file("in.mp4", SOUND),
    "MOV, ALAC": _file("in.mov", replace(BFRAMES, sounds=(("alac", 0.0),))),
    "Matroska, AAC": _file("in.mkv", SOUND),
    "WebM, VP9, Opus": _file("in.webm", Plan("libvpx-vp9", sounds=(("libopus", 0.0),), clock=1000)),
    "MPEG-TS, AAC": _file("in.ts", BROADCAST),
    "AVI, MPEG-4, MP2": _file("in.avi", Plan("mpeg4", clock=25, sounds=(("mp2", 0.0),))),
    "AVI, H.264 with B-frames": _file("in.avi", replace(BFRAMES, clock=25)),
    "MPEG-PS, MPEG-2, MP2": _file("in.mpg", Plan("mpeg2video", clock=25, sounds=(("mp2", 0.0),))),
    "raw H.264": _file("in.h264", replace(BFRAMES, clock=25)),
    "raw H.265": _file("in.hevc", Plan("libx265", clock=25)),
    "IVF": _file("in.ivf", Plan("libvpx-vp9", clock=1000)),
    "y4m": _file("in.y4m", Plan("wrapped_avframe", clock=25)),
    "VFR in MP4": _file("in.mp4", replace(SOUND, times=UNEVEN, clock=1000)),
    "VFR in Matroska": _file("in.mkv", replace(SOUND, times=UNEVEN, clock=1000)),
    "10 bit H.265": _file("in.mp4", Plan("libx265", "yuv420p10le")),
    "10 bit 4:2:2 FFV1": _file("in.mkv", Plan("ffv1", "yuv422p10le", clock=1000)),
    "full range": _file("in.mp4", replace(BFRAMES, tags=(("color_range", 2), ("colorspace", 1)))),
    "rotated, MP4": _file("in.mp4", replace(BFRAMES, matrix=SIDEWAYS)),
    "rotated, Matroska": _file("in.mkv", replace(BFRAMES, matrix=SIDEWAYS)),
    "sound 0.3 s late, MP4": _file("in.mp4", replace(BFRAMES, sounds=(("aac", 0.3),))),
    "sound 0.3 s late, Matroska": _file("in.mkv", replace(BFRAMES, sounds=(("aac", 0.3),))),
    "video 0.3 s late, MP4": _file("in.mp4", replace(SOUND, times=LATE)),
    "video 0.3 s late, Matroska": _file("in.mkv", replace(SOUND, times=LATE)),
    "video 0.3 s late, MPEG-TS": _file("in.ts", replace(BROADCAST, times=LATE)),
    "last frame held, MP4": _file("in.mp4", replace(PLAIN, hold=0.5)),
    "last frame held, Matroska": _file("in.mkv", replace(BFRAMES, hold=0.5, clock=1000)),
    "edit list: from frame 5 on": _edited((5, FRAMES)),
    "edit list: four cut out": _edited((0, 8), (12, FRAMES)),
    "edit list: ends within a frame": _edited((5, 16.5)),
    "font and cover, Matroska": _file("in.mkv", replace(SOUND, font=True, cover=True)),
    "cover, MP4": _file("in.mp4", replace(SOUND, cover=True)),
    "chapters, MP4": _file("in.mp4", replace(SOUND, chapters=True)),
    "chapters, Matroska": _file("in.mkv", replace(SOUND, chapters=True)),
    "three sound tracks": _file(
        "in.mkv", replace(BFRAMES, sounds=(("aac", 0.0), ("ac3", 0.0), ("libopus", 0.0)))
    ),
    "text subtitles, Matroska": _file("in.mkv", replace(SOUND, texts=("subrip", "ass"))),
    "text subtitles, MP4": _file("in.mp4", replace(SOUND, texts=("mov_text",))),
    "bitmap subtitles": _file("in.mkv", replace(SOUND, texts=("hdmv_pgs_subtitle",))),
    "DVB subtitles, MPEG-TS": _file("in.ts", replace(BROADCAST, texts=("dvb_subtitle",))),
    "data stream": _file("in.ts", replace(BROADCAST, data=True)),
    "timecode, MOV": _file("in.mov", replace(SOUND, timecode="01:00:00:00")),
    "one frame, MP4": _file("in.mp4", Plan(times=(Fraction(0),))),
    "one frame, Matroska": _file("in.mkv", Plan(times=(Fraction(0),))),
    "one frame, MPEG-TS": _file("in.ts", Plan(times=(Fraction(0),), clock=25)),
    "size changes, MPEG-TS": _joined(SMALL),
    "clock jumps, MPEG-TS": _joined(
        replace(BROADCAST, times=tuple(500 + t for t in BROADCAST.times), sounds=(("aac", 500.0),))
    ),
    "two programs, MPEG-TS": _programs,
    "odd size": _file("in.webm", Plan("libvpx-vp9", size=(HEIGHT + 1, WIDTH + 1), clock=1000)),
    "cut off, MP4": _cut("in.mp4", replace(BFRAMES, index_first=True), 0.6),
    "cut off, Matroska": _cut("in.mkv", Plan("ffv1", clock=1000), 0.6),
    "cut off, MPEG-TS": _cut("in.ts", replace(BROADCAST, sounds=()), 0.6),
    "closed captions, H.264": _captions,
}
