"""What `probe` says of a clip, and every file it refuses with one line."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fastrestore.encoders import OUTPUT_SUFFIXES
from fastrestore.errors import InputError
from fastrestore.video_io import VideoReader, read_frames, write_frames
from fastrestore.video_probe import VIDEO_SUFFIXES, Orientation, is_video, probe

H, W = 48, 64
SIDEWAYS = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


def make_clip(
    path: Path,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    n: int = 10,
    options: dict[str, str] | None = None,
    tags: dict[str, Any] | None = None,
    matrix: tuple[int, ...] | None = None,
    title: str | None = None,
    first: int = 0,
) -> Path:
    with av.open(os.path.abspath(path), "w") as c:
        v: Any = c.add_stream(codec, rate=20)
        v.height, v.width, v.pix_fmt = H, W, pix_fmt
        v.options = options or {}
        for key, value in (tags or {}).items():
            setattr(v.codec_context, key, value)
        if matrix:
            v.set_display_matrix(matrix)
        if title:
            c.metadata["title"] = title
        for i in range(n):
            f = av.VideoFrame(W, H, pix_fmt)
            for p in f.planes:
                np.frombuffer(memoryview(p), np.uint8)[:] = 90 + i
            f.pts, f.time_base = first + i, Fraction(1, 20)
            c.mux(v.encode(f))
        c.mux(v.encode(None))
    return path


def test_suffixes() -> None:
    assert is_video("a/b.MP4")
    assert is_video(Path("x.webm"))
    assert not is_video("x.png")
    assert not is_video("mp4")
    assert set(OUTPUT_SUFFIXES) <= set(VIDEO_SUFFIXES)


def test_probe(tmp_path: Path) -> None:
    tags = {"colorspace": 1, "color_range": 2}
    info = probe(make_clip(tmp_path / "a.mp4", tags=tags, matrix=SIDEWAYS))
    assert (info.width, info.height) == (H, W)
    assert info.stored_size == (W, H)
    assert (info.frames, info.fps, info.duration) == (10, 20.0, 0.5)
    assert info.pixel_format in ("yuv420p", "yuvj420p")
    assert str(info.colour) == "BT.709 full"
    assert info.notes == ()


def test_probe_estimates_frames_without_an_index(tmp_path: Path) -> None:
    assert probe(make_clip(tmp_path / "a.mkv")).frames == 10


@pytest.mark.parametrize("name", ["-x.mp4", "a b%d[1]é.mkv", "pipe:1.mp4", "concat:a.mkv"])
def test_odd_names_are_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert probe(make_clip(Path(name))).frames == 10


def test_titles_that_are_not_utf8(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", title="Xqzw")
    path.write_bytes(path.read_bytes().replace(b"Xqzw", b"X\xe9\xffw"))
    assert probe(path).frames == 10


def _refused(source: Path | str, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        probe(source)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(source))
    for word in words:
        assert word in message


def test_files_that_are_no_video(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    cut = make_clip(tmp_path / "cut.mp4")
    cut.write_bytes(cut.read_bytes()[:-600])
    _refused(tmp_path / "empty.mp4", "empty")
    _refused(tmp_path / "text.mp4", "not a video")
    _refused(cut, "cut off", "copy it again")
    cut.write_bytes(cut.read_bytes()[:1000])
    _refused(cut, "cut off")
    _refused(tmp_path / "none.mp4", "no such file")
    _refused(tmp_path, "not a file")
    assert capfd.readouterr() == ("", "")


def test_a_line_break_in_a_name_stays_out_of_the_message(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.mp4"
    for text in ("", "no video at all\n" * 50):
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            probe(path)
        assert "\n" not in str(caught.value)


def test_playlists_and_addresses_open_nothing(tmp_path: Path) -> None:
    real = make_clip(tmp_path / "real.ts")
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{real}\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "list.mp4").write_text((tmp_path / "list.m3u8").read_text())
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile real.ts\n")
    for name in ("list.m3u8", "list.mp4", "concat.mp4"):
        _refused(tmp_path / name, "not a video")
    _refused("http://127.0.0.1:9/a.mp4", "download")
    _refused(Path("http://127.0.0.1:9/a.mp4"), "download")
    _refused(f"file://{real}", "download")


def test_only_sound(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as c:
        a: Any = c.add_stream("aac", rate=8000, layout="mono")
        f = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        f.sample_rate = 8000
        c.mux(a.encode(f))
        c.mux(a.encode(None))
    _refused(path, "no video stream")


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr(tmp_path: Path, transfer: int, name: str) -> None:
    tags = {"color_trc": transfer, "color_primaries": 9, "colorspace": 9}
    _refused(make_clip(tmp_path / "a.mkv", tags=tags), name, "tone-map")


def test_interlaced(tmp_path: Path) -> None:
    options = {"x264-params": "tff=1"}
    _refused(make_clip(tmp_path / "a.mp4", options=options), "interlaced", "bwdif")


def test_foreign_matrix(tmp_path: Path) -> None:
    _refused(make_clip(tmp_path / "a.mkv", tags={"colorspace": 8}), "YCgCo", "BT.709")


def test_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as c:
        cover: Any = c.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 320, 240, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        v: Any = c.add_stream("libx264", rate=20)
        v.width, v.height, v.pix_fmt = W, H, "yuv420p"
        f = av.VideoFrame(320, 240, "yuvj420p")
        f.pts = 0
        c.mux(cover.encode(f))
        for i in range(5):
            f = av.VideoFrame(W, H, "yuv420p")
            f.pts = i
            c.mux(v.encode(f))
        c.mux(v.encode(None))
    info = probe(path)
    assert (info.width, info.height, info.notes) == (W, H, ())


def test_reader_mixes_frames_and_packets_and_can_be_left_early(tmp_path: Path) -> None:
    with VideoReader(make_clip(tmp_path / "a.mkv")) as reader:
        first = next(iter(reader))
        assert isinstance(first, av.VideoFrame)
        assert reader.time_base == Fraction(1, 1000)


def read_notes(path: Path) -> list[str]:
    with VideoReader(path) as reader:
        assert sum(isinstance(item, av.VideoFrame) for item in reader) == 10
        return reader.notes


def test_a_clip_that_begins_late_is_not_cut_off(tmp_path: Path) -> None:
    assert read_notes(make_clip(tmp_path / "a.mkv", first=60)) == []


def test_a_pixel_shape_that_only_the_container_tells_is_no_change(tmp_path: Path) -> None:
    tags = {"sample_aspect_ratio": Fraction(16, 11)}
    path = make_clip(tmp_path / "a.mp4", codec="libvpx-vp9", tags=tags)
    with VideoReader(path) as reader:
        assert reader.stream.sample_aspect_ratio == Fraction(16, 11)
    assert read_notes(path) == []


def test_frames_written_are_the_frames_read(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, W, dtype=np.uint8)
    still = np.stack(np.broadcast_arrays(ramp, ramp[::-1], np.uint8(90)), -1)
    clip = [
        np.ascontiguousarray(np.broadcast_to(np.roll(still, i, 0), (H, W, 3))) for i in range(3)
    ]
    write_frames(tmp_path / "a.mkv", clip, fps=24, codec="ffv1")
    back = list(read_frames(tmp_path / "a.mkv"))
    assert len(back) == 3
    for a, b in zip(clip, back, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 2
    assert probe(tmp_path / "a.mkv").fps == 24


@pytest.mark.parametrize("sign_a", [-65536, 65536])
@pytest.mark.parametrize("sign_b", [-65536, 65536])
@pytest.mark.parametrize("sideways", [False, True])
def test_orientation_is_undone(sideways: bool, sign_a: int, sign_b: int) -> None:
    turn = (0, sign_a, 0, sign_b, 0) if sideways else (sign_a, 0, 0, 0, sign_b)
    o = Orientation((*turn, 0, 0, 0, 1 << 30))
    a = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert o.sideways == sideways
    assert o.upright(a).shape == ((6, 4) if sideways else (4, 6))
    assert np.array_equal(o.stored(o.upright(a)), a)
    rgb = np.stack([a, a, a], -1)
    assert np.array_equal(o.upright(rgb)[..., 0], o.upright(a))
    # A player sends the stored pixel (x, y) to (a x + c y, b x + d y), moved into the picture.
    x, y = 5, 1
    m = [v // 65536 for v in turn]
    new_x, new_y = m[0] * x + m[3] * y, m[1] * x + m[4] * y
    h, w = o.upright(a).shape
    assert o.upright(a)[new_y % h if new_y >= 0 else h - 1 + new_y,
                        new_x % w if new_x >= 0 else w - 1 + new_x] == a[y, x]  # fmt: skip


def test_an_odd_angle_is_left_alone() -> None:
    o = Orientation((46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30))
    a = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(o.upright(a), a)
