"""Bad picture files: each is refused with one line that names it and the mend."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrestore.containers import Meta, encode_png, encode_tiff
from fastrestore.errors import InputError
from fastrestore.images import decode_picture, read_picture

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)


def saved(array: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def refused(path: Path) -> str:
    """Return the message, after checking that it is one line that names the file."""
    with pytest.raises(InputError) as caught:
        read_picture(path)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "; " in message  # the mend
    return message


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


BMP = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 0, 0, 54, 40, 20000, 20000, 1, 24, 0, 0, 0, 0, 0, 0)
WEBP = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (19999).to_bytes(3, "little") * 2
VP8L = b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + (16000 | 16000 << 14).to_bytes(4, "little")
GIF = b"GIF89a" + struct.pack("<HH", 20000, 20000) + bytes(3) + b","
GIF += struct.pack("<HHHHB", 0, 0, 20000, 20000, 0) + b"\x08\0;"
JPEG = saved(PHOTO, "JPEG")
JPEG = JPEG.replace(struct.pack(">HH", 40, 50), struct.pack(">HH", 20000, 20000), 1)
TIFF = encode_tiff(PHOTO[..., :1], Meta())
for tag, size in ((256, 50), (257, 40)):
    TIFF = TIFF.replace(
        struct.pack("<HHII", tag, 4, 1, size), struct.pack("<HHII", tag, 4, 1, 20000)
    )
FORGED = {
    "png": png_header(20000, 20000),
    "bmp": BMP,
    "webp": WEBP,
    "vp8l": VP8L,
    "gif": GIF,
    "jpg": JPEG,
    "tif": TIFF,
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_huge_header_is_refused_before_anything_is_allocated(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"huge.{kind}"
    path.write_bytes(FORGED[kind])
    tracemalloc.start()
    message = refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "over the limit of 100; allow it with --max-pixels" in message
    assert "20000x20000 is 400 million" in message or kind == "vp8l"
    assert peak < 10_000_000


def test_the_limit_is_the_callers() -> None:
    data = saved(PHOTO, "PNG")
    assert decode_picture(io.BytesIO(data), "x", 2000).rgb.shape == (40, 50, 3)
    with pytest.raises(InputError, match="allow it with --max-pixels 2000"):
        decode_picture(io.BytesIO(data), "x", 1999)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "GIF"])
def test_pillows_own_limit_says_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # would warn; filterwarnings = error
    data = saved(PHOTO, kind)
    assert decode_picture(io.BytesIO(data), "x", 2500).rgb.shape == (40, 50, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # would raise
    assert decode_picture(io.BytesIO(data), "x", 2500).rgb.shape == (40, 50, 3)
    assert Image.MAX_IMAGE_PIXELS == 500


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "png16", "tiff16"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_truncated(kind: str, part: float, tmp_path: Path, capfd: Any) -> None:
    deep = PHOTO.astype(np.uint16) * 257 + 3
    make = {"png16": lambda: encode_png(deep, Meta()), "tiff16": lambda: encode_tiff(deep, Meta())}
    data = make.get(kind, lambda: saved(PHOTO, kind))()
    path = tmp_path / "photo.png"
    path.write_bytes(data[: int(part * len(data))])
    assert "cut short" in refused(path)
    assert capfd.readouterr() == ("", "")


def test_damaged_bytes_never_escape_as_another_error() -> None:
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        data = saved(PHOTO, kind)
        for _ in range(20):
            broken = bytearray(data)
            for at in rng.integers(2, min(len(data), 300), 4):
                broken[at] = rng.integers(0, 256)
            with contextlib.suppress(InputError):  # some damage goes unseen, anything else fails
                decode_picture(io.BytesIO(bytes(broken)), "x", 1_000_000)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.png", b"", "is empty"),
        ("text.jpg", b"hello, this is no picture", "is not a picture"),
        ("program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
        ("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "HEIC.*heif-convert"),
        ("clip.mp4", b"\0\0\0\x18ftypisom\0\0\0\0mp42isom" + bytes(50), "is not a picture"),
        ("magic.png", b"\x89PNG\r\n\x1a\n", "cut short"),
    ],
)
def test_not_a_picture(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    message = refused(path)
    assert re.search(words, message)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animated_names_the_command_that_helps(kind: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)]
    path = tmp_path / "moving.gif"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=100)
    message = refused(path)
    assert "animated" in message
    assert "fastrestore restore" in message


def test_pages_and_raw_files(tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    Image.fromarray(PHOTO).save(path, save_all=True, append_images=[Image.fromarray(PHOTO)])
    assert "several pages" in refused(path)
    for tag in ({254: 1}, {50706: b"\1\4\0\0"}):  # a preview comes first; a DNG
        Image.fromarray(PHOTO).save(path, tiffinfo=tag)
        assert "camera raw" in refused(path)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixel_types_that_cannot_be_kept(dtype: Any, tmp_path: Path) -> None:
    path = tmp_path / "depth.tif"
    Image.fromarray(PHOTO[..., 0].astype(dtype)).save(path)
    assert "8 or 16 bits per channel" in refused(path)


def test_missing_folder_and_link(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "gone.png")
    assert "is a folder" in refused(tmp_path)
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    assert "cannot be opened" in refused(loop)
    with pytest.raises(InputError, match="cannot be opened"):
        read_picture("a\0b")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(saved(PHOTO, "PNG"))
    if os.geteuid() == 0:  # root reads anything

        def denied(*_args: Any, **_options: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", denied)
    path.chmod(0)
    assert "may not be read" in refused(path)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
def test_content_decides_not_the_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(saved(PHOTO, kind))
    assert read_picture(path).format == kind


NAMES = [
    "two words.png",
    "gr\u00fc\u00dfe \u5199\u771f \U0001f5bc.png",
    "-o.png",
    "100%d.png",
    "a[1]*.png",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [8, 16])
def test_odd_names(name: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrestore.images import write_picture

    monkeypatch.chdir(tmp_path)
    deep = PHOTO.astype(np.uint16) * 257
    Path(name).write_bytes(encode_png(deep if bits == 16 else PHOTO, Meta()))
    picture = read_picture(name)
    write_picture(f"{name}.tif", picture, picture.rgb)
    assert np.array_equal(read_picture(f"{name}.tif").rgb, PHOTO)
    assert sorted(os.listdir()) == sorted([name, f"{name}.tif"])


def test_a_name_with_a_line_break_makes_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_picture(tmp_path / "a\nb.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_odd_exif_does_not_cost_the_picture(kind: str, exif: bytes) -> None:
    picture = decode_picture(io.BytesIO(saved(PHOTO, kind, exif=exif)), "x")
    assert picture.rgb.shape == (40, 50, 3)
    assert picture.meta.exif is None


def test_exif_that_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    decode_picture(io.BytesIO(saved(PHOTO, "PNG", exif=b"Exif\0\0nonsense")), "x")
    assert "x: EXIF cannot be read" in caplog.text
