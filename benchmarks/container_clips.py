"""Tiny clips whose truth is known: when every frame is shown, and what else lies in the file.

Frame `i` is grey noise about level `level(i)`, so that a frame can be told by its mean. All is made
with PyAV; what its muxers cannot do is done to the bytes of the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

HEIGHT, WIDTH = 64, 96
FRAMES = 20
RATE = 25
SIDEWAYS = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
FONT = b"\0\1\0\0 no real font, but these bytes must come out again" * 40


@dataclass(frozen=True)
class Clip:
    """One file and what is true of it.

    Attributes:
        path: The file.
        numbers: Of the frames that are shown, in order; their level tells them. None = a frame
            that the file's end has spoiled.
        times: When each is shown, seconds on the file's own clock; None = unknown.
        others: What else is in it: subtitle, data, cover, font, chapters, timecode, rotation, full
            range, 10 bit.
        whole: It was not cut off.
    """

    path: Path
    numbers: Sequence[int | None]
    times: Sequence[float] | None
    others: tuple[str, ...] = ()
    whole: bool = True


@dataclass(frozen=True)
class Plan:
    """What a clip is made of; see `write`."""

    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    size: tuple[int, int] = (HEIGHT, WIDTH)
    times: Sequence[Fraction] = tuple(Fraction(i, RATE) for i in range(FRAMES))
    clock: int = 12800
    options: tuple[tuple[str, str], ...] = ()
    sounds: tuple[tuple[str, float], ...] = ()  # codec, start in seconds
    texts: tuple[str, ...] = ()  # codecs of subtitles, text or bitmap
    tags: tuple[tuple[str, Any], ...] = ()  # of the video's codec context
    matrix: tuple[int, ...] | None = None
    font: bool = False
    cover: bool = False
    chapters: bool = False
    data: bool = False
    timecode: str | None = None
    first: int = 0  # number of the first frame
    index_first: bool = False  # of MP4
    hold: float = 1 / RATE  # seconds for which the last frame is shown


def level(number: int) -> int:
    """Return the mean luma of a frame, 8 bit."""
    return 30 + number * 47 % 190


def picture(number: int, plan: Plan) -> av.VideoFrame:
    """Make a frame: its level with a little noise, coloured."""
    height, width = plan.size
    frame = av.VideoFrame(width, height, plan.pix_fmt)
    rng = np.random.default_rng(number)
    bits = frame.format.components[0].bits
    for k, p in enumerate(frame.planes):
        samples = np.frombuffer(memoryview(p), np.uint16 if bits > 8 else np.uint8)
        base = 110 + 20 * k if k else level(number)
        wide = (base << (bits - 8)) + rng.integers(0, 4 << (bits - 8), samples.size)
        samples[:] = wide - (2 << (bits - 8))
    return frame


def write(path: Path, plan: Plan | None = None) -> Clip:
    """Write a clip as planned."""
    plan = plan or Plan()
    front = {"movflags": "faststart"} if plan.index_first else {}
    with av.open(str(path), "w", container_options=front) as c:
        v = _add_video(c, plan)
        sounds = [(_add_sound(c, codec, i), start) for i, (codec, start) in enumerate(plan.sounds)]
        texts = [_add_text(c, codec) for codec in plan.texts]
        data: Any = c.add_data_stream("klv") if plan.data else None
        cover = _add_cover(c, path.suffix) if plan.cover else None
        if plan.font:
            c.add_attachment("a.ttf", "application/x-truetype-font", FONT)
        if plan.chapters:
            _add_chapters(c)
        _write_all(c, plan, v, sounds, texts)
        for stream in [data] if data else []:
            c.mux(_packet(stream, b"telemetry" * 4, 0, 100))
        if cover is not None:
            c.mux(_packet(cover, _jpeg(), 0, 1))
    flags = {"data": plan.data, "cover": plan.cover, "font": plan.font, "chapters": plan.chapters}
    flags |= {"timecode": bool(plan.timecode), "rotation": bool(plan.matrix)}
    flags |= {"full range": ("color_range", 2) in plan.tags, "10 bit": "10le" in plan.pix_fmt}
    others = [
        *("subtitle" for _ in plan.texts),
        *(kind for kind, is_there in flags.items() if is_there),
    ]
    numbers = [plan.first + i for i in range(len(plan.times))]
    return Clip(path, numbers, [float(t) for t in plan.times], tuple(others))


def _add_video(c: Any, plan: Plan) -> Any:
    v = c.add_stream(plan.codec, rate=RATE)
    v.height, v.width, v.pix_fmt = (*plan.size, plan.pix_fmt)
    quiet = {"x265-params": "log-level=none"} if plan.codec == "libx265" else {}
    quality = {"crf": "16"} if plan.codec in ("libx264", "libx265") else {}
    v.options = {**quality, **quiet, **dict(plan.options)}
    v.codec_context.time_base = Fraction(1, plan.clock)
    if plan.codec in ("mpeg4", "mpeg2video"):
        v.codec_context.bit_rate = 4_000_000
    for key, value in plan.tags:
        setattr(v.codec_context, key, value)
    if plan.matrix:
        v.set_display_matrix(plan.matrix)
    if plan.timecode:
        v.metadata["timecode"] = plan.timecode
    v.metadata["language"] = "fra"
    return v


def _add_sound(c: Any, codec: str, number: int) -> Any:
    stream = c.add_stream(codec, rate=48000, layout="mono")
    stream.metadata["language"] = ("eng", "deu", "ita")[number]
    return stream


def _add_text(c: Any, codec: str) -> Any:
    stream = c.add_mux_stream(codec)
    stream.time_base = Fraction(1, 1000)
    stream.metadata["language"] = "spa"
    return stream


def _add_cover(c: Any, suffix: str) -> Any:
    if suffix == ".mkv":
        c.add_attachment("cover.jpg", "image/jpeg", _jpeg())
        return None
    stream = c.add_mux_stream("mjpeg", width=32, height=32)
    stream.time_base = Fraction(1, 1000)
    stream.disposition = av.stream.Disposition.attached_pic
    return stream


def _jpeg() -> bytes:
    context: Any = av.CodecContext.create("mjpeg", "w")
    context.width = context.height = 32
    context.pix_fmt, context.time_base = "yuvj420p", Fraction(1, 25)
    frame = av.VideoFrame(32, 32, "yuvj420p")
    for plane in frame.planes:
        plane.update(bytes([128]) * plane.buffer_size)
    return b"".join(bytes(p) for p in (*context.encode(frame), *context.encode(None)))


def _add_chapters(c: Any) -> None:
    marks = ((0, 300, "one"), (300, 800, "two"))
    c.set_chapters(
        [
            {"id": i, "start": a, "end": b, "time_base": Fraction(1, 1000),
             "metadata": {"title": title}}
            for i, (a, b, title) in enumerate(marks)
        ]
    )  # fmt: skip


def _packet(stream: Any, data: bytes, start: int, length: int) -> Any:
    packet = av.Packet(data)
    packet.stream, packet.pts, packet.dts, packet.duration = stream, start, start, length
    packet.time_base = Fraction(1, 1000)
    return packet


def _write_all(c: Any, plan: Plan, v: Any, sounds: list[Any], texts: list[Any]) -> None:
    for i, time in enumerate(plan.times):
        frame = picture(plan.first + i, plan)
        frame.pts, frame.time_base = round(time * plan.clock), Fraction(1, plan.clock)
        _mux(c, v.encode(frame), plan)
    _mux(c, v.encode(None), plan)
    for stream, start in sounds:
        for frame in _tone(start, stream.codec_context.frame_size or 1024):
            c.mux(stream.encode(frame))
        c.mux(stream.encode(None))
    for stream, codec in zip(texts, plan.texts, strict=True):
        for at in (100, 500):
            words = b"\0\5hello" if codec == "mov_text" else b"0,0,Default,,0,0,0,,hello"
            c.mux(_packet(stream, words, at, 200))


def _mux(c: Any, packets: list[Any], plan: Plan) -> None:
    """Write packets of the video; encoders do not hand on for how long the last is shown."""
    for packet in packets:
        if plan.hold != 1 / RATE and packet.pts == round(plan.times[-1] * plan.clock):
            packet.duration = round(plan.hold * plan.clock)
        c.mux(packet)


def _tone(start: float, size: int) -> Iterator[av.AudioFrame]:
    wave = (np.sin(np.arange(size) * 0.06) * 0.3).astype(np.float32)[None]
    for i in range(round(0.8 * 48000 / size)):
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
        frame.pts = round(start * 48000) + size * i
        yield frame


def edited(clip: Clip, spans: Sequence[tuple[float, float]], track: int = 0) -> Clip:
    """Give a track of an MP4 an edit list.

    Args:
        clip: Its video comes first.
        spans: What is shown, in frames: where it begins, and where it ends.
        track: Of those that have an edit list.
    """
    data = clip.path.read_bytes()
    at = _find(data, b"elst", track)
    old = struct.unpack_from(">IIi", data, at + 16)
    movie, media = _scale(data, b"mvhd", 0), _scale(data, b"mdhd", track)
    entries = b"".join(
        struct.pack(
            ">IiI", round((b - a) * movie / RATE), old[1] + round(a * media / RATE), 1 << 16
        )
        for a, b in spans
    )  # fmt: skip
    box = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(spans)) + entries
    size = struct.unpack_from(">I", data, at)[0]
    grown = bytearray(data[:at] + box + data[at + size :])
    for parent in (b"edts", b"trak", b"moov"):
        where = data.rindex(parent, 0, at) - 4
        (length,) = struct.unpack_from(">I", grown, where)
        struct.pack_into(">I", grown, where, length + len(box) - size)
    clip.path.write_bytes(grown)
    if track:
        return clip
    numbers = [clip.numbers[i] for a, b in spans for i in range(int(a), math.ceil(b))]
    return replace(clip, numbers=numbers, times=[i / RATE for i in range(len(numbers))])


def _find(data: bytes, box: bytes, number: int) -> int:
    """Return where a box begins, by its number among those of its kind."""
    at = -1
    for _ in range(number + 1):
        at = data.index(box, at + 1)
    return at - 4


def _scale(data: bytes, box: bytes, number: int) -> int:
    """Return the time scale that a box tells, version 0."""
    scale: int = struct.unpack_from(">I", data, _find(data, box, number) + 20)[0]
    return scale


def cut(clip: Clip, share: float) -> Clip:
    """Cut the file off; what is left is what a plain decoder finds."""
    data = clip.path.read_bytes()
    clip.path.write_bytes(data[: int(len(data) * share)])
    found: list[float] = []
    numbers: list[int | None] = []
    with av.open(str(clip.path)) as c, suppress(av.error.FFmpegError):
        for packet in c.demux(video=0):
            half = packet.is_corrupt and clip.path.suffix != ".ts"
            for frame in () if half else packet.decode():
                found.append(frame.time or 0.0)
                numbers.append(None if frame.is_corrupt else clip.numbers[len(numbers)])
    return replace(clip, numbers=numbers, times=found, whole=False)


def joined(path: Path, clips: Iterable[Clip]) -> Clip:
    """Put transport streams one behind the other, as recorders do."""
    parts = list(clips)
    path.write_bytes(b"".join(clip.path.read_bytes() for clip in parts))
    numbers = [n for clip in parts for n in clip.numbers]
    times = [i / RATE for i in range(len(numbers))]
    return Clip(path, numbers, times, parts[0].others)


def with_captions(clip: Clip) -> Clip:
    """Put closed captions into every picture of a raw H.264 stream."""
    body = bytes([0xB5, 0, 0x31]) + b"GA94" + bytes([3, 0x41, 0xFF, 0xFC, 0x94, 0x20, 0xFF])
    message = b"\0\0\0\1\x06\x04" + bytes([len(body)]) + body + b"\x80"
    data = clip.path.read_bytes()
    out, at = bytearray(), 0
    while (start := data.find(b"\0\0\1", at)) >= 0:
        kind, first = data[start + 3] & 0x1F, data[start + 4] & 0x80
        head = start - (start > 0 and data[start - 1] == 0)
        out += (
            data[at:head] + (message if kind in (1, 5) and first else b"") + data[head : start + 4]
        )
        at = start + 4
    clip.path.write_bytes(bytes(out + data[at:]))
    return clip


def in_programs(path: Path, clip: Clip, alien: Clip) -> Clip:
    """Make one transport stream of two, each H.264 with AAC, as two programs."""
    packets = [_moved(p, 0) for p in _ts_packets(clip)] + [
        _moved(p, 0x200) for p in _ts_packets(alien)
    ]
    maps = {1: 0x1000, 2: 0x1001}
    entries = b"".join(_u16(n) + _u16(0xE000 | pid) for n, pid in maps.items())
    tables = [_table(0, 0, 1, entries)]
    for number, video in ((1, 0x100), (2, 0x300)):
        streams = ((0x1B, video), (0x0F, video + 1))  # H.264, AAC
        listed = b"".join(
            bytes([kind]) + _u16(0xE000 | pid) + _u16(0xF000) for kind, pid in streams
        )
        tables.append(_table(maps[number], 2, number, _u16(0xE000 | video) + _u16(0xF000) + listed))
    path.write_bytes(b"".join([*tables, *packets]))
    return replace(clip, path=path)


def _ts_packets(clip: Clip) -> list[bytes]:
    data = clip.path.read_bytes()
    packets = [data[i : i + 188] for i in range(0, len(data), 188)]
    return [p for p in packets if 0x100 <= int.from_bytes(p[1:3], "big") & 0x1FFF < 0x1000]


def _moved(packet: bytes, by: int) -> bytes:
    return packet[:1] + _u16(int.from_bytes(packet[1:3], "big") + by) + packet[3:]


def _table(pid: int, kind: int, number: int, body: bytes) -> bytes:
    """Return a transport packet with one table. Source: ISO/IEC 13818-1, section 2.4.4."""
    section = bytes([kind]) + _u16(0xB000 | (len(body) + 9)) + _u16(number) + b"\xc1\0\0" + body
    check = 0xFFFFFFFF
    for byte in section:
        check ^= byte << 24
        for _ in range(8):
            check = (check << 1) ^ (0x104C11DB7 if check & 1 << 31 else 0)
    packet = b"\x47" + _u16(0x4000 | pid) + b"\x10\0" + section + check.to_bytes(4, "big")
    return packet.ljust(188, b"\xff")


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "big")
