from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, features
from PIL.TiffImagePlugin import IFDRational

from fastrestore.containers import Meta, encode_png, encode_tiff
from fastrestore.errors import InputError, OutputError
from fastrestore.images import (
    PICTURE_SUFFIXES,
    Picture,
    check_format,
    decode_picture,
    encode_picture,
    is_picture,
    read_picture,
    write_picture,
)

needs_avif = pytest.mark.skipif(
    "avif" not in features.get_supported(), reason="this Pillow has no AVIF"
)
LOSSLESS = [".png", ".tif", ".webp"]
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def samples(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def saved(array: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes, **options: Any) -> Picture:
    return decode_picture(io.BytesIO(data), "x", **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header: tuple[int, int, int, int], *chunks: bytes, pixels: bytes = b"") -> bytes:
    """A PNG by hand; header is width, height, bits, colour type."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    return b"".join((start, *chunks, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")))


# A picture that each of the eight orientations turns into UPRIGHT: what a camera stored.
UPRIGHT = np.zeros((48, 32, 3), np.uint8)
UPRIGHT[:16, :16], UPRIGHT[:16, 16:], UPRIGHT[16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, 3),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=needs_avif)]
)
def test_all_orientations_come_upright_and_stay_so(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Camera"
    sharp = {"quality": 95, "subsampling": "4:4:4"}
    options = {"WEBP": {"lossless": True}, "JPEG": sharp, "AVIF": sharp}
    stored = np.ascontiguousarray(STORED[orientation])
    picture = decoded(saved(stored, kind, exif=exif, **options.get(kind, {})))
    assert picture.rgb.shape == UPRIGHT.shape
    assert np.abs(picture.rgb.astype(int) - UPRIGHT)[4:-4, 4:-4].mean() < 3
    again = decoded(encode_picture(picture, picture.rgb, ".png"))
    assert np.array_equal(again.rgb, picture.rgb)
    with Image.open(io.BytesIO(encode_picture(picture, picture.rgb, ".jpg"))) as result:
        assert result.getexif().get(0x0112, 1) == 1
        assert result.getexif()[0x010F] == "Camera"


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_orientation_of_16_bit_files(kind: str, orientation: int) -> None:
    deep = samples(4, 6, 3, dtype=np.uint16)
    if kind == "PNG":
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode_png(deep, Meta(exif=exif.tobytes()))
    else:
        data = _with_tag(encode_tiff(deep, Meta()), 0x0112, orientation)
    picture = decoded(data)
    turned = {
        1: deep,
        2: deep[:, ::-1],
        3: deep[::-1, ::-1],
        4: deep[::-1],
        5: deep.transpose(1, 0, 2),
        6: np.rot90(deep, 3),
        7: deep[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(deep, 1),
    }[orientation]
    assert np.array_equal(picture.deep, turned)


def _with_tag(tiff: bytes, tag: int, value: int, instead_of: int = 278) -> bytes:
    """Overwrite a tag that readers can do without (278: rows per strip) by another short one."""
    data = bytearray(tiff)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = [bytes(data[at + 2 + 12 * i : at + 14 + 12 * i]) for i in range(count)]
    new = struct.pack("<HHIHH", tag, 3, 1, value, 0)
    kept = [new if e[:2] == struct.pack("<H", instead_of) else e for e in entries]
    kept.sort(key=lambda e: struct.unpack_from("<H", e)[0])
    data[at + 2 : at + 2 + 12 * count] = b"".join(kept)
    return bytes(data)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_kept(channels: int, suffix: str) -> None:
    deep = samples(30, 40, channels, dtype=np.uint16)
    first = decoded(encode_png(deep, Meta()))
    picture = decoded(encode_picture(first, first.rgb, suffix))
    assert picture.deep is not None
    colour = deep[..., [0, 0, 0]] if channels < 3 else deep[..., :3]
    assert np.array_equal(picture.deep, colour)
    assert np.array_equal(picture.rgb, np.rint(picture.deep / 257).astype(np.uint8))
    if channels in (2, 4):
        assert np.array_equal(picture.alpha, deep[..., -1])
    else:
        assert picture.alpha is None
    changed = picture.rgb.copy()
    changed[:5] = np.clip(changed[:5].astype(int) + 3, 0, 255)
    result = decoded(encode_picture(picture, changed, suffix)).deep
    assert result is not None
    assert np.array_equal(result[5:], picture.deep[5:])
    step = changed[:5].astype(int) - picture.rgb[:5]
    assert np.array_equal(result[:5], np.clip(picture.deep[:5] + step * 257, 0, 65535))


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp", ".avif"])
def test_16_bits_are_never_cut(suffix: str) -> None:
    picture = decoded(encode_png(samples(3, 3, 3, dtype=np.uint16), Meta()))
    with pytest.raises(OutputError, match=r"16 bits; use \.png or \.tif"):
        encode_picture(picture, picture.rgb, suffix)


def test_odd_16_bit_files() -> None:
    deep = samples(5, 4, 1, dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    key = int(deep[2, 1, 0])
    keyed = decoded(png((4, 5, 16, 0), chunk(b"tRNS", struct.pack(">H", key)), pixels=rows))
    assert keyed.alpha is not None
    assert np.array_equal(keyed.alpha == 0, deep[..., 0] == key)
    assert keyed.gray
    white_is_zero = _with_tag(encode_tiff(deep, Meta()), 262, 0, instead_of=262)
    assert np.array_equal(decoded(white_is_zero).deep, 65535 - deep.repeat(3, 2))
    premultiplied = _with_tag(
        encode_tiff(samples(5, 4, 4, dtype=np.uint16), Meta()), 338, 1, instead_of=338
    )
    signed = _with_tag(encode_tiff(deep, Meta()), 339, 2)
    for data in (premultiplied, signed):
        with pytest.raises(InputError, match="this kind of 16-bit TIFF"):
            decoded(data)


def test_profile_of_another_kind_in_16_bit_png_prints_nothing(capfd: Any) -> None:
    meta = Meta(icc_profile=ICC)  # RGB profile, grey picture: libpng would complain
    picture = decoded(encode_png(samples(5, 4, 1, dtype=np.uint16), meta))
    assert picture.meta.icc_profile == ICC
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "P with tRNS", "RGB", "RGBA", "RGB with tRNS"]
)
def test_pixel_types(mode: str) -> None:
    source = samples(20, 30, 4)
    source[:, :10, 3] = 0
    image = (
        Image.fromarray(source).convert("RGB" if "P" in mode else "RGBA").convert(mode.split()[0])
    )
    options: dict[str, Any] = {}
    if mode == "P with tRNS":
        options["transparency"] = bytes(range(256))
    elif mode == "RGB with tRNS":
        options["transparency"] = image.getpixel((3, 4))
    data = saved(image, "PNG", **options)
    picture = decoded(data)
    with Image.open(io.BytesIO(data)) as opened:
        shown = np.asarray(opened.convert("RGBA"))
    has_alpha = mode not in ("1", "L", "P", "RGB")
    assert picture.gray == (mode in ("1", "L", "LA"))
    assert (picture.alpha is not None) == has_alpha
    assert np.array_equal(picture.rgb, shown[..., :3])  # below alpha 0 too
    assert not has_alpha or np.array_equal(picture.alpha, shown[..., 3])
    for suffix in LOSSLESS:
        again = decoded(encode_picture(picture, picture.rgb, suffix))
        assert np.array_equal(again.rgb, picture.rgb)
        assert np.array_equal(again.alpha, picture.alpha) if has_alpha else again.alpha is None
        assert again.gray == (picture.gray and suffix != ".webp")


def test_gray_takes_luma_only_where_changed() -> None:
    picture = decoded(saved(samples(6, 7), "PNG"))
    restored = picture.rgb.copy()
    restored[2, 3] = 200, 100, 50
    result = decoded(encode_picture(picture, restored, ".png"))
    assert result.gray
    expected = picture.rgb.copy()
    expected[2, 3] = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert np.array_equal(result.rgb, expected)


@pytest.mark.parametrize(
    "suffix", [".png", ".jpg", ".webp", ".tif", pytest.param(".avif", marks=needs_avif)]
)
def test_profile_exif_and_resolution_travel(suffix: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif[0x8769] = {0x829A: IFDRational(1, 50)}
    options = {"icc_profile": ICC, "exif": exif, "dpi": (300, 300)}
    picture = decoded(saved(samples(8, 8, 3), "JPEG", **options))
    with Image.open(io.BytesIO(encode_picture(picture, picture.rgb, suffix))) as result:
        assert result.info["icc_profile"] == ICC
        assert result.getexif()[0x010F] == "Camera"
        assert result.getexif().get_ifd(0x8769)[0x829A] == 0.02
        if suffix not in (".webp", ".avif"):
            assert result.info["dpi"] == pytest.approx((300, 300), abs=0.01)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_profile_and_exif_travel_in_16_bits(suffix: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    meta = Meta(ICC, exif.tobytes(), (300.0, 300.0))
    picture = decoded(encode_tiff(samples(8, 8, 3, dtype=np.uint16), meta))
    result = decoded(encode_picture(picture, picture.rgb, suffix)).meta
    assert (result.icc_profile, result.exif) == (ICC, exif.tobytes())
    assert result.dpi == pytest.approx((300, 300), abs=0.01)


def test_exif_of_a_tiff_leaves_its_layout_behind() -> None:
    picture = decoded(encode_tiff(samples(8, 8, 3), Meta(ICC, None, (300.0, 300.0))))
    assert picture.meta.exif is None


def test_profile_that_a_format_cannot_hold_is_said(caplog: pytest.LogCaptureFixture) -> None:
    picture = decoded(saved(samples(8, 8, 3), "PNG", icc_profile=ICC))
    decoded(encode_picture(picture, picture.rgb, ".bmp"))
    assert "colour profile" in caplog.text


def test_cmyk_is_converted_by_its_profile_or_refused() -> None:
    ink = Image.new("CMYK", (4, 4), (0, 0, 255, 0))
    for kind in ("JPEG", "TIFF"):
        with pytest.raises(InputError, match="CMYK without a colour profile"):
            decoded(saved(ink, kind))
        picture = decoded(saved(ink, kind, icc_profile=_cmyk_profile()))
        assert np.abs(picture.rgb.astype(int) - (255, 238, 27)).max() <= 8  # yellow
        assert picture.meta.icc_profile is None
    with pytest.raises(InputError, match="x: "):
        decoded(saved(ink, "JPEG", icc_profile=b"nonsense"))


def _cmyk_profile() -> bytes:
    """The smallest profile that turns inks into colours: a table with two steps an ink."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    table = bytearray()
    for c, m, y, k in itertools.product((0, 1), repeat=4):
        lightness = 255 * (1 - k) * (1 - 0.2 * c) * (1 - 0.3 * m) * (1 - 0.05 * y)
        a, b = 128 + (1 - k) * (70 * m - 40 * c), 128 + (1 - k) * (90 * y - 40 * c - 5 * m)
        table += bytes(int(np.clip(v, 0, 255)) for v in (lightness, a, b))
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += ramp * 4 + bytes(table) + ramp * 3
    white = fixed(0.9642, 1, 0.8249)
    directory = struct.pack(">I4sII", 1, b"A2B0", 144, len(lut))
    size = 128 + len(directory) + len(lut)
    head = struct.pack(">I4xI4s4s4s12x4s28x", size, 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp")
    return (head + white).ljust(128, b"\0") + directory + lut


def test_first_picture_of_a_stereo_pair() -> None:
    first = Image.fromarray(np.full((16, 16, 3), 200, np.uint8))
    second = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    picture = decoded(saved(first, "MPO", save_all=True, append_images=[second]))
    assert (picture.rgb.mean() > 190, picture.format) == (True, "JPEG")


PASSES = [
    *((suffix, channels, np.uint8) for suffix in LOSSLESS for channels in (2, 3)),
    *((suffix, channels, np.uint16) for suffix in (".png", ".tif") for channels in (1, 4)),
]


@pytest.mark.parametrize(("suffix", "channels", "dtype"), PASSES)
def test_five_passes_change_nothing(tmp_path: Path, suffix: str, channels: int, dtype: Any) -> None:
    first = decoded(encode_png(samples(33, 47, channels, dtype=dtype), Meta(ICC, None, (300, 300))))
    picture = first
    for turn in range(5):
        write_picture(tmp_path / f"{turn}{suffix}", picture, picture.rgb)
        picture = read_picture(tmp_path / f"{turn}{suffix}")
    assert np.array_equal(picture.rgb, first.rgb)
    for now, then in ((picture.deep, first.deep), (picture.alpha, first.alpha)):
        assert (now is None) == (then is None)
        assert now is None or np.array_equal(now, then)
    assert picture.meta.icc_profile == ICC


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (17, 5)])
@pytest.mark.parametrize(
    "suffix", [*LOSSLESS, ".jpg", ".bmp", pytest.param(".avif", marks=needs_avif)]
)
def test_small_sizes(size: tuple[int, int], suffix: str) -> None:
    picture = Picture(samples(*size, 3))
    assert decoded(encode_picture(picture, picture.rgb, suffix)).rgb.shape == (*size, 3)


def test_jpeg_keeps_full_colour_and_obeys_quality() -> None:
    picture = decoded(saved(samples(64, 64, 3), "PNG"))
    best = encode_picture(picture, picture.rgb, ".JPEG")
    with Image.open(io.BytesIO(best)) as result:
        assert {layer[1:3] for layer in result.layer} == {(1, 1)}  # type: ignore[attr-defined]
    assert len(encode_picture(picture, picture.rgb, ".jpg", quality=50)) < len(best)
    with pytest.raises(InputError, match="quality 0"):
        encode_picture(picture, picture.rgb, ".jpg", quality=0)


def test_transparency_is_never_dropped() -> None:
    alpha = np.full((4, 4), 255, np.uint8)
    picture = Picture(samples(4, 4, 3), alpha)
    assert decoded(encode_picture(picture, picture.rgb, ".jpg")).alpha is None  # nothing is lost
    alpha[0, 0] = 254
    for suffix in (".jpg", ".bmp"):
        with pytest.raises(OutputError, match=r"transparency; use \.png"):
            check_format(picture, suffix, "x")


@pytest.mark.parametrize("suffix", ["", ".gif", ".xyz"])
def test_unknown_formats_are_refused_with_the_known(suffix: str) -> None:
    with pytest.raises(OutputError, match=r"x: .*use one of \.avif, \.bmp"):
        check_format(Picture(samples(2, 2, 3)), suffix, "x")


def test_restored_must_fit() -> None:
    picture = Picture(samples(4, 4, 3))
    for wrong in (samples(4, 5, 3), samples(4, 4, 3, dtype=np.uint16)):
        with pytest.raises(InputError, match="restored is"):
            encode_picture(picture, wrong, ".png")


def test_picture_suffixes() -> None:
    assert is_picture("a/b.PNG")
    assert is_picture(Path("x.tiff"))
    assert not is_picture("clip.mp4")
    assert ".jpg" in PICTURE_SUFFIXES
