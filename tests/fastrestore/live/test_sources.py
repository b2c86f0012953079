"""What a source's text means; files and numbered pictures as sources."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fastrestore.errors import InputError
from fastrestore.images import Picture, write_picture
from fastrestore.live.sources import open_source
from tests.fastrestore.live.clips import (
    RATE,
    H,
    W,
    clip,
    drain,
    flat,
    grey,
    greys,
    in_thread,
    nothing_left,
)


def save(path: Path, value: int, height: int = H, width: int = W) -> None:
    rgb = flat(value, height, width)
    write_picture(path, Picture(rgb), rgb)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(clip("matroska"))
    with nothing_left():
        source = open_source(str(path))
        assert (source.name, source.live, source.rate) == (str(path), False, RATE)
        frames = drain(source)
        assert greys(frames) == [f.number for f in frames] == list(range(10))
        assert [f.pts for f in frames] == [i / RATE for i in range(10)]
        source.close()


def test_a_file_is_upright_and_in_its_own_colours(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"  # type: ignore[union-attr]
        stream.set_display_matrix((0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30))  # type: ignore[union-attr]
        stream.codec_context.colorspace = 1  # type: ignore[union-attr]
        frame = av.VideoFrame(W, H, "yuv420p")
        for plane, value in zip(frame.planes, (63, 102, 240), strict=True):  # red by BT.709
            np.frombuffer(memoryview(plane), np.uint8)[:] = value
        frame.pts, frame.time_base = 0, 1 / RATE
        container.mux(stream.encode(frame))  # type: ignore[union-attr]
        container.mux(stream.encode(None))  # type: ignore[union-attr]
    source = open_source(str(path))
    (shown,) = drain(source)
    assert shown.rgb.shape == (W, H, 3)
    assert abs(shown.rgb.astype(int) - (255, 0, 0)).max() <= 3
    source.close()


def test_a_file_is_closed_amid(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(clip("matroska", 40))
    with nothing_left():
        source = open_source(str(path))
        thread, result = in_thread(lambda: drain(source))
        source.close()
        source.close()
        thread.join(5)
        assert len(result[0]) <= 40
        assert source.read() is None


def test_a_pattern(tmp_path: Path) -> None:
    for number in (7, 8, 10):
        save(tmp_path / f"p{number:03d}.png", grey(number))
    save(tmp_path / "p0009.png", 255)  # four digits
    save(tmp_path / "p9.png", 255)
    source = open_source(str(tmp_path / "p%03d.png"))
    frames = drain(source)
    assert greys(frames) == [7, 8, 10]
    assert [f.number for f in frames] == [0, 1, 3]  # one is missing
    assert [f.pts for f in frames] == [0, Fraction(1, 25), Fraction(3, 25)]
    assert (source.live, source.rate, source.notes) == (False, 25, [])
    plain = open_source(str(tmp_path / "p%d.png"), rate=Fraction(10))
    assert [(f.rgb.max(), f.pts) for f in drain(plain)] == [(255, 0)]


def test_a_folder_in_natural_order(tmp_path: Path) -> None:
    for name, number in (("a10.png", 2), ("a9.PNG", 1), ("a1.jpg", 0)):
        save(tmp_path / name, grey(number))
    (tmp_path / "notes.txt").touch()
    source = open_source(str(tmp_path))
    frames = drain(source)
    assert greys(frames) == [f.number for f in frames] == [0, 1, 2]
    source.close()
    assert source.read() is None


def test_pictures_of_one_size(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 0)
    save(tmp_path / "2.png", 0, height=H + 1)
    source = open_source(str(tmp_path))
    assert source.read() is not None
    with pytest.raises(InputError, match=r"2\.png: is 64x49, the ones before 64x48"):
        source.read()


def test_what_pictures_lose(tmp_path: Path) -> None:
    rgb = flat(9)
    clear = Picture(rgb, alpha=np.full((H, W), 9, np.uint8))
    write_picture(tmp_path / "1.png", clear, rgb)
    source = open_source(str(tmp_path))
    drain(source)
    assert source.notes == [f"{tmp_path}: transparency and 16 bits are not kept"]


def test_a_file_that_looks_like_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0", "a%02d.mkv"):
        (tmp_path / name).write_bytes(clip("matroska", 2))
        source = open_source(name)
        assert len(drain(source)) == 2
        source.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("none.mkv", "no such file"),
        ("none/%03d.png", "its folder does not exist"),
        ("%03d.png", "no file of that name"),
        ("%03d%d.png", "give it one number"),
        ("%s.png", "give it one number"),
        ("one.png", "fastrestore restore one.png"),
        (".", "no pictures in this folder"),
        ("ftp://me:hunter2@host/x", r"ftp://\*\*\*@host/x: ftp:// is not read; use one of http://"),
        ("file:///etc/passwd", "is not read"),
        ("http://", "is no address"),
        ("http://[::1", "is no address"),
        ("tcp://host:99999", "is no address"),
    ],
)
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words) as e:
        open_source(text)
    assert "hunter2" not in str(e.value)


def test_a_rate_is_above_zero() -> None:
    with pytest.raises(InputError, match="--rate -5"):
        open_source("-", rate=Fraction(-5))
