"""Whole clips through `restore_video`: what must stay, what must change, what is refused."""

from __future__ import annotations

import os
import re
import resource
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fastrestore.errors import FastRestoreError, InputError, OutputError
from fastrestore.video import VideoReport, restore_video

H, W, N = 48, 64, 24
CFR = [512 * i for i in range(N)]
VFR = [0, 500, 1100, 1130, 2900, 3000, 3050, 4400, 4500, 5990, 6001, 7000]
BFRAMES = {"x264-params": "bframes=3:b-adapt=0", "crf": "12"}
SAMPLES = Path(__file__).parents[2].parent / "shared" / "data" / "test" / "video"


def make_clip(
    path: Path,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    *,
    size: tuple[int, int] = (H, W),
    pts: list[int] = CFR,
    clock: int = 12800,
    options: dict[str, str] | None = None,
    sound_at: float | None = None,
    sound_first: bool = False,
    subtitles: str | None = None,
    matrix: tuple[int, ...] | None = None,
    chapters: bool = False,
    tags: dict[str, int] | None = None,
) -> Path:
    """Write a clip whose frame `i` is a moving ramp; sound, subtitles and tags as asked for."""
    rng = np.random.default_rng(len(pts))
    with av.open(str(path), "w") as c:
        if sound_first:
            sound = _add_sound(c)
        v: Any = c.add_stream(codec, rate=25)
        v.height, v.width, v.pix_fmt = (*size, pix_fmt)
        v.options = options or BFRAMES if codec == "libx264" else {}
        v.codec_context.time_base = Fraction(1, clock)
        for key, value in (tags or {}).items():
            setattr(v.codec_context, key, value)
        if matrix:
            v.set_display_matrix(matrix)
        v.metadata["language"] = "fra"
        if not sound_first and sound_at is not None:
            sound = _add_sound(c)
        s: Any = c.add_mux_stream(subtitles) if subtitles else None
        if chapters:
            marks = [(0, 400, "one"), (400, 900, "two")]
            c.set_chapters(
                [
                    {"id": i, "start": a, "end": b, "time_base": Fraction(1, 1000),
                     "metadata": {"title": t}}
                    for i, (a, b, t) in enumerate(marks)
                ]
            )  # fmt: skip
            c.metadata["title"] = "Holiday"
        if s is not None:
            s.time_base = Fraction(1, 1000)
            s.metadata["language"] = "deu"
            s.disposition = av.stream.Disposition.forced
        for i, t in enumerate(pts):
            f = noise_frame(rng, size, pix_fmt, i)
            f.pts, f.time_base = t, Fraction(1, clock)
            c.mux(v.encode(f))
        c.mux(v.encode(None))
        if sound_at is not None or sound_first:
            _write_sound(c, sound, sound_at or 0.0)
        if s is not None:
            p = av.Packet(b"hello" if subtitles == "subrip" else b"\0\5hello")
            p.stream, p.pts, p.dts, p.duration = s, 200, 200, 300
            p.time_base = Fraction(1, 1000)
            c.mux(p)
    return path


def noise_frame(
    rng: np.random.Generator, size: tuple[int, int], pix_fmt: str, i: int
) -> av.VideoFrame:
    """A frame of smooth content: luma about 40 + 5 i, chroma away from neutral."""
    f = av.VideoFrame(size[1], size[0], pix_fmt)
    wide = "10le" in pix_fmt
    for k, p in enumerate(f.planes):
        a = np.frombuffer(memoryview(p), np.uint16 if wide else np.uint8)
        base = 40 + 5 * i if k == 0 else 110 + 20 * k
        values = np.clip(base + rng.integers(0, 16, a.size), 16, 235)
        a[:] = values * 4 + rng.integers(0, 4, a.size) if wide else values
    return f


def _add_sound(c: Any) -> Any:
    a = c.add_stream("aac", rate=8000, layout="mono")
    a.metadata["language"] = "ita"
    return a


def _write_sound(c: Any, a: Any, start: float) -> None:
    for i in range(8):
        data = (np.sin(np.arange(1024) * 0.3) * 0.3).astype(np.float32)[None]
        f = av.AudioFrame.from_ndarray(data, format="fltp", layout="mono")
        f.sample_rate, f.pts, f.time_base = 8000, round(start * 8000) + 1024 * i, Fraction(1, 8000)
        c.mux(a.encode(f))
    c.mux(a.encode(None))


def stamps(path: Path) -> list[float]:
    """Presentation times of the video in seconds."""
    with av.open(str(path)) as c:
        v = c.streams.video[0]
        return [float(f.pts * v.time_base) for f in c.decode(v)]


def frames(path: Path) -> list[Any]:
    with av.open(str(path)) as c:
        return list(c.decode(video=0))


def samples(frame: Any, plane: int) -> Any:
    p = frame.planes[plane]
    return np.frombuffer(memoryview(p), np.uint8).reshape(-1, p.line_size)[: p.height, : p.width]


def packets(path: Path, kind: str) -> list[tuple[bytes, float]]:
    with av.open(str(path)) as c:
        s = getattr(c.streams, kind)[0]
        return [(bytes(p), float(p.pts * p.time_base)) for p in c.demux(s) if p.size]


def invert(rgb: Any) -> Any:
    return 255 - rgb


def hole(h: int = H, w: int = W) -> Any:
    m = np.zeros((h, w), np.uint8)
    m[h // 4 + 1 : h // 2, w // 4 + 1 : w // 2] = 1
    return m


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_every_frame_in_order_at_its_time(tmp_path: Path, suffix: str) -> None:
    source = make_clip(tmp_path / f"in{suffix}")
    seen = []

    def record(rgb: Any) -> Any:
        seen.append(rgb.mean())
        return rgb

    report = restore_video(source, tmp_path / f"out{suffix}", record)
    assert isinstance(report, VideoReport)
    assert (report.frames, len(seen), report.dropped_packets) == (N, N, 0)
    assert report.notes == []
    assert seen == sorted(seen)
    assert stamps(tmp_path / f"out{suffix}") == stamps(source)
    assert sorted(os.listdir(tmp_path)) == [f"in{suffix}", f"out{suffix}"]


@pytest.mark.parametrize(
    ("given", "wanted"), [(".mp4", ".mp4"), (".mkv", ".mkv"), (".mp4", ".mkv")]
)
def test_variable_frame_rate(tmp_path: Path, given: str, wanted: str) -> None:
    source = make_clip(tmp_path / f"in{given}", pts=VFR, clock=10000 if given == ".mp4" else 1000)
    target = tmp_path / f"out{wanted}"
    restore_video(source, target, invert)
    error = 0.0 if given == wanted else 0.0005  # Matroska counts milliseconds
    assert np.abs(np.subtract(stamps(target), stamps(source))).max() <= error + 1e-9
    with av.open(str(source)) as a, av.open(str(target)) as b:
        assert abs(a.duration - b.duration) <= 1000


def test_avi_without_time_stamps_keeps_every_frame(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.avi", "mpeg4", pts=list(range(N)), clock=25)
    report = restore_video(source, tmp_path / "out.mp4", invert)
    assert report.frames == N
    assert np.diff(stamps(tmp_path / "out.mp4")) == pytest.approx(1 / 25)


def test_transport_stream_clock_starts_at_zero(tmp_path: Path) -> None:
    start = 3600
    late = [start * 12800 + t for t in CFR]
    source = make_clip(tmp_path / "in.ts", pts=late, sound_at=start + 0.2)
    report = restore_video(source, tmp_path / "out.mp4", invert)
    assert report.frames == N
    before, after = stamps(source), stamps(tmp_path / "out.mp4")
    assert before[0] >= start
    assert after[0] < 0.3
    assert np.subtract(before, before[0]) == pytest.approx(np.subtract(after, after[0]), abs=1e-4)
    lag = [packets(p, "audio")[0][1] - t[0] for p, t in
           ((source, before), (tmp_path / "out.mp4", after))]  # fmt: skip
    assert lag[0] == pytest.approx(lag[1], abs=1e-3)


@pytest.mark.parametrize("sound_first", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_is_copied_with_its_offset(tmp_path: Path, suffix: str, sound_first: bool) -> None:
    source = make_clip(tmp_path / f"in{suffix}", sound_at=0.5, sound_first=sound_first)
    target = tmp_path / f"out{suffix}"
    assert restore_video(source, target, invert).frames == N
    assert packets(target, "audio") == packets(source, "audio")
    assert stamps(target) == stamps(source)
    with av.open(str(source)) as a, av.open(str(target)) as b:
        assert [s.type for s in b.streams] == [s.type for s in a.streams]
        assert [s.language for s in b.streams] == [s.language for s in a.streams]
        assert [s.disposition for s in b.streams] == [s.disposition for s in a.streams]
        assert b.streams.audio[0].language == "ita"


def test_subtitles_are_copied_or_named(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", subtitles="subrip")
    assert restore_video(source, tmp_path / "out.mkv", invert).notes == []
    assert packets(tmp_path / "out.mkv", "subtitles") == packets(source, "subtitles")
    with av.open(str(tmp_path / "out.mkv")) as c:
        assert c.streams.subtitles[0].language == "deu"
        assert c.streams.subtitles[0].disposition & av.stream.Disposition.forced
    report = restore_video(source, tmp_path / "out.mp4", invert)
    assert report.notes == ["dropped: subtitle #1, MP4 cannot hold SubRip; use .mkv"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_chapters_and_title_stay(tmp_path: Path, suffix: str) -> None:
    source = make_clip(tmp_path / f"in{suffix}", chapters=True)
    report = restore_video(source, tmp_path / f"out{suffix}", invert)
    assert report.notes == []
    with av.open(str(source)) as a, av.open(str(tmp_path / f"out{suffix}")) as b:
        assert len(a.chapters()) == 2
        for old, new in zip(a.chapters(), b.chapters(), strict=True):
            assert new["metadata"]["title"] == old["metadata"]["title"]
            assert new["start"] * new["time_base"] == old["start"] * old["time_base"]
        assert b.metadata["title"] == "Holiday"
        assert b.streams.video[0].language == "fra"


TURNS = {  # display matrix -> what a player does with the stored picture
    (0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30): lambda a: np.rot90(a),
    (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30): lambda a: np.rot90(a, -1),
    (-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30): lambda a: np.rot90(a, 2),
    (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30): lambda a: a[:, ::-1],
}


@pytest.mark.parametrize("matrix", TURNS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_turned_clips_are_restored_upright(
    tmp_path: Path, suffix: str, matrix: tuple[int, ...]
) -> None:
    source = make_clip(tmp_path / f"in{suffix}", matrix=matrix, pts=CFR[:4])
    stored = np.zeros((H, W), np.uint8)
    stored[4:12, 6:30] = 1
    upright = TURNS[matrix](stored)
    shapes = set()

    def paint(rgb: Any) -> Any:
        shapes.add(rgb.shape[:2])
        return np.where(upright[..., None] > 0, 255, rgb).astype(np.uint8)

    target = tmp_path / f"out{suffix}"
    restore_video(source, target, paint, mask=np.ascontiguousarray(upright))
    assert shapes == {upright.shape}
    for f in frames(target):
        side = f.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
        assert tuple(np.frombuffer(side, np.int32).tolist()) == matrix
        luma = samples(f, 0)
        assert luma[5:11, 7:29].min() > 220
        assert luma[:, 33:].max() < 100


@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("value_range", [1, 2])
def test_colour_tags_stay(tmp_path: Path, matrix: int, value_range: int) -> None:
    tags = {"colorspace": matrix, "color_range": value_range, "color_primaries": matrix,
            "color_trc": matrix}  # fmt: skip
    source = make_clip(tmp_path / "in.mp4", tags=tags, pts=CFR[:3])
    restore_video(source, tmp_path / "out.mkv", invert)
    f = frames(tmp_path / "out.mkv")[0]
    assert {k: int(getattr(f, k)) for k in tags} == tags


@pytest.mark.parametrize(("height", "matrix"), [(H, 6), (720, 1)])
def test_untagged_clips_get_the_tag_that_was_assumed(
    tmp_path: Path, height: int, matrix: int
) -> None:
    source = make_clip(tmp_path / "in.mp4", size=(height, W), pts=CFR[:2])
    assert int(frames(source)[0].colorspace) == 2
    restore_video(source, tmp_path / "out.mp4", invert)
    f = frames(tmp_path / "out.mp4")[0]
    assert (int(f.colorspace), int(f.color_range)) == (matrix, 1)


@pytest.mark.parametrize("matrix", [None, (0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30)])
def test_a_mask_may_differ_from_frame_to_frame(
    tmp_path: Path, matrix: tuple[int, ...] | None
) -> None:
    """More frames than the queues hold: each mask stays with its own frame."""
    source = make_clip(tmp_path / "in.mkv", "ffv1", "yuv444p", matrix=matrix)
    masks: list[Any] = []

    def restore(rgb: Any) -> Any:
        mask = np.zeros(rgb.shape[:2], np.uint8)
        if len(masks) % 5:  # some have none
            mask[len(masks) : len(masks) + 9, 3:20] = 1
        masks.append(mask)
        return 255 - rgb

    target = tmp_path / "out.mkv"
    restore_video(source, target, restore, mask=lambda: masks[-1], encoder="ffv1")
    assert len(masks) == N
    for old, new, mask in zip(frames(source), frames(target), masks, strict=True):
        stored = mask if matrix is None else np.rot90(mask, -1)
        for k in range(3):
            changed = samples(old, k) != samples(new, k)
            assert not changed[stored == 0].any()
        if mask.any():
            assert (samples(old, 0) != samples(new, 0))[stored > 0].mean() > 0.9


@pytest.mark.parametrize("value_range", [1, 2])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "gray"])
@pytest.mark.parametrize("size", [(H, W), (H + 1, W + 1)])
def test_untouched_samples_are_exact(
    tmp_path: Path, pix_fmt: str, value_range: int, size: tuple[int, int]
) -> None:
    source = make_clip(
        tmp_path / "in.mkv", "ffv1", pix_fmt, size=size, pts=CFR[:4],
        tags={"color_range": value_range, "colorspace": 1},
    )  # fmt: skip
    mask = hole(*size)
    target = tmp_path / "out.mkv"
    assert restore_video(source, target, invert, mask=mask, encoder="ffv1").notes == []
    for old, new in zip(frames(source), frames(target), strict=True):
        assert new.format.name == pix_fmt
        for k in range(len(old.planes)):
            a, b = samples(old, k).astype(int), samples(new, k).astype(int)
            fy, fx = -(-size[0] // a.shape[0]), -(-size[1] // a.shape[1])
            padded = np.pad(mask, ((0, -size[0] % fy), (0, -size[1] % fx)))
            touched = padded.reshape(a.shape[0], fy, a.shape[1], fx).max((1, 3)) > 0
            assert np.array_equal(a[~touched], b[~touched])
            assert np.abs(a[touched] - b[touched]).mean() > 5


def test_identity_keeps_colours(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", "ffv1", pts=CFR[:6], tags={"colorspace": 1})
    restore_video(source, tmp_path / "out.mkv", lambda a: a, encoder="ffv1")
    for old, new in zip(frames(source), frames(tmp_path / "out.mkv"), strict=True):
        for k in range(3):
            bias = samples(new, k).astype(float).mean() - samples(old, k).mean()
            assert abs(bias) < 0.1


@pytest.mark.parametrize("size", [(H, W + 1), (H + 1, W)])
def test_odd_sizes_become_444_in_h264(tmp_path: Path, size: tuple[int, int]) -> None:
    source = make_clip(tmp_path / "in.webm", "libvpx-vp9", size=size, pts=CFR[:4])
    report = restore_video(source, tmp_path / "out.mp4", invert, mask=hole(*size))
    assert len(report.notes) == 1
    assert "odd" in report.notes[0]
    f = frames(tmp_path / "out.mp4")[0]
    assert (f.height, f.width, f.format.name) == (*size, "yuv444p")
    report = restore_video(source, tmp_path / "out.webm", invert)
    assert report.notes == []
    assert frames(tmp_path / "out.webm")[0].format.name == "yuv420p"


def test_ten_bits_stay_where_nothing_is_restored(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", "ffv1", "yuv420p10le", pts=CFR[:3])
    mask = hole()
    report = restore_video(source, tmp_path / "out.mkv", invert, mask=mask, encoder="ffv1")
    assert report.notes == ["10 bit a sample are kept; what is restored has the precision of 8"]
    for old, new in zip(frames(source), frames(tmp_path / "out.mkv"), strict=True):
        assert new.format.name == "yuv420p10le"
        a, b = (deep_luma(f).astype(int) for f in (old, new))
        assert np.array_equal(a[mask == 0], b[mask == 0])
        assert np.abs(a[mask > 0] - b[mask > 0]).mean() > 20
        assert (b[mask == 0] % 4 > 0).any()


def deep_luma(frame: Any) -> Any:
    p = frame.planes[0]
    return np.frombuffer(memoryview(p), np.uint16).reshape(H, -1)[:, :W]


def test_ctrl_c_leaves_a_part_file_that_plays(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", sound_at=0.0)
    done = 0

    def impatient(rgb: Any) -> Any:
        nonlocal done
        done += 1
        if done == 12:
            raise KeyboardInterrupt
        return rgb

    with pytest.raises(KeyboardInterrupt):
        restore_video(source, tmp_path / "out.mp4", impatient)
    (part,) = tmp_path.glob("out.part-*.mp4")
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", part.name]
    assert stamps(part) == stamps(source)[:11]


def test_stop_event_ends_like_ctrl_c(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv")
    stop = threading.Event()

    def progress(done: int, total: int | None, fps: float) -> None:
        assert fps > 0
        if done == 5:
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        restore_video(source, tmp_path / "out.mkv", invert, progress=progress, stop=stop)
    (part,) = tmp_path.glob("out.part-*.mkv")
    assert len(frames(part)) == 5
    assert not (tmp_path / "out.mkv").exists()


def test_progress_counts_to_the_estimate(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4")
    calls: list[tuple[int, int | None]] = []
    restore_video(
        source, tmp_path / "out.mp4", invert, progress=lambda n, of, _fps: calls.append((n, of))
    )
    assert calls == [(i + 1, N) for i in range(N)]


def test_reading_ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrestore.yuv import Converter

    source = make_clip(tmp_path / "in.mkv", "ffv1", pts=[40 * i for i in range(60)], clock=1000)
    decoded, lead, original = 0, [], Converter.to_rgb

    def count(self: Converter, frame: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return original(self, frame)

    def slow(rgb: Any) -> Any:
        threading.Event().wait(0.003)
        lead.append(decoded - len(lead))
        return rgb

    monkeypatch.setattr(Converter, "to_rgb", count)
    restore_video(source, tmp_path / "out.mkv", slow)
    assert len(lead) == 60
    assert max(lead) <= 4 + 2  # the queue, the frame here, the one that waits to be put


def test_a_buffer_that_is_used_again_is_safe(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", "ffv1", pts=CFR[:12])
    buffer = np.zeros((H, W, 3), np.uint8)
    shade = iter(range(0, 240, 20))

    def reuse(_rgb: Any) -> Any:
        buffer[:] = next(shade)
        return buffer

    restore_video(source, tmp_path / "out.mkv", reuse, encoder="ffv1")
    luma = [samples(f, 0).mean() for f in frames(tmp_path / "out.mkv")]
    assert np.diff(luma).min() > 10


def _refuse(
    source: Path, target: Path, error: type[FastRestoreError], *words: str, **options: Any
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in target.parent.glob("*")}
    with pytest.raises(error) as caught:
        restore_video(source, target, options.pop("restore_frame", invert), **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert {p.name: p.stat().st_mtime_ns for p in target.parent.glob("*")} == before


def test_refused_targets(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", pts=CFR[:2])
    (tmp_path / "old.mp4").write_bytes(b"old")
    (tmp_path / "link.mp4").symlink_to(source)
    (tmp_path / "dir.mp4").mkdir()
    _refuse(source, tmp_path / "old.mp4", OutputError, "old.mp4", "--overwrite")
    _refuse(source, source, OutputError, "in.mp4", "overwrite the input", overwrite=True)
    _refuse(source, tmp_path / "link.mp4", OutputError, "the input", overwrite=True)
    _refuse(source, tmp_path / "dir.mp4", OutputError, "is a folder", overwrite=True)
    _refuse(source, tmp_path / "no" / "out.mp4", OutputError, "folder does not exist")
    restore_video(source, tmp_path / "old.mp4", invert, overwrite=True)
    assert len(frames(tmp_path / "old.mp4")) == 2


def test_refused_options(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", pts=CFR[:2])
    _refuse(source, tmp_path / "o.gif", InputError, ".gif", ".mp4, .mov, .mkv, .webm")
    _refuse(source, tmp_path / "o", InputError, "without suffix")
    _refuse(source, tmp_path / "o.webm", InputError, "WebM", "x264", ".mkv", encoder="x264")
    _refuse(source, tmp_path / "o.mp4", InputError, "MP4", "ffv1", ".mkv", encoder="ffv1")
    _refuse(source, tmp_path / "o.mp4", InputError, "crf 60", "0 to 51", crf=60)
    _refuse(source, tmp_path / "o.mp4", InputError, "preset warp", "veryfast", preset="warp")
    mask = np.ones((W, H), np.uint8)
    _refuse(source, tmp_path / "o.mp4", InputError, "mask is 48x64", "64x48", mask=mask)
    _refuse(source, tmp_path / "o.mp4", InputError, "64x48", "--max-pixels", max_pixels=1000)


def test_errors_of_the_network_leave_nothing(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4")
    calls = iter(range(N))

    def fail(rgb: Any) -> Any:
        if next(calls) == 9:
            raise InputError("the model is gone")
        return rgb

    _refuse(source, tmp_path / "o.mp4", InputError, "the model is gone", restore_frame=fail)
    _refuse(source, tmp_path / "o.mp4", InputError, "(24, 64, 3)", restore_frame=lambda a: a[::2])


def test_full_disk(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", size=(96, 128))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        rng = np.random.default_rng(0)
        _refuse(
            source, tmp_path / "o.mp4", OutputError, "o.mp4", "no space left", crf=0,
            restore_frame=lambda a: rng.integers(0, 256, a.shape, np.uint8),
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_damaged_packets_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = make_clip(tmp_path / "in.mkv")
    data = bytearray(source.read_bytes())
    body = packets(source, "video")[10][0]
    at = data.index(body)
    data[at : at + len(body)] = bytes(len(body))
    source.write_bytes(data)
    report = restore_video(source, tmp_path / "out.mkv", invert)
    assert report.frames + report.dropped_packets == N
    assert report.dropped_packets == 1
    assert report.notes == ["1 damaged packets skipped"]
    assert capfd.readouterr() == ("", "")


def test_cut_off_file_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = make_clip(tmp_path / "in.mkv", "ffv1", pts=[40 * i for i in range(50)], clock=1000)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    report = restore_video(source, tmp_path / "out.mkv", invert)
    assert 10 <= report.frames <= 30
    assert re.fullmatch(r"cut off: ends at [01]\.\d s, its header says 2\.0 s", report.notes[-1])
    assert capfd.readouterr() == ("", "")


def test_several_video_streams(tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as c:
        streams = []
        for h, w in ((24, 32), (H, W)):
            v: Any = c.add_stream("ffv1", rate=25)
            v.height, v.width, v.pix_fmt = h, w, "yuv420p"
            v.disposition = av.stream.Disposition.default
            streams.append(v)
        for i in range(5):
            for v in streams:
                f = av.VideoFrame(v.width, v.height, "yuv420p")
                f.pts = i
                c.mux(v.encode(f))
        for v in streams:
            c.mux(v.encode(None))
    report = restore_video(source, tmp_path / "out.mkv", invert)
    assert report.frames == 5
    assert report.notes == [
        "2 video streams: #1 (64x48) is restored",
        "dropped: video #0, only one is kept",
    ]
    assert frames(tmp_path / "out.mkv")[0].width == W


def test_encoder_logs_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = make_clip(tmp_path / "in.mp4", sound_at=0.0)
    restore_video(source, tmp_path / "out.mp4", invert)
    restore_video(source, tmp_path / "out.webm", invert)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="sample clips are not beside the repository")
def test_real_clip_with_two_videos_and_four_other_streams(tmp_path: Path) -> None:
    source = SAMPLES / "nasa_13013.mp4"
    report = restore_video(source, tmp_path / "out.mp4", lambda a: a, preset="ultrafast")
    assert report.frames == 390
    with av.open(str(source)) as a, av.open(str(tmp_path / "out.mp4")) as b:
        assert [s.type for s in b.streams] == ["audio", "subtitle", "video", "audio", "subtitle"]
        assert b.streams.video[0].duration * b.streams.video[0].time_base == pytest.approx(13.013)
        for kind in ("audio", "subtitles"):
            for old, new in zip(getattr(a.streams, kind), getattr(b.streams, kind), strict=True):
                with av.open(str(source)) as c, av.open(str(tmp_path / "out.mp4")) as d:
                    x = [bytes(p) for p in c.demux(c.streams[old.index]) if p.size]
                    y = [bytes(p) for p in d.demux(d.streams[new.index]) if p.size]
                assert x == y
