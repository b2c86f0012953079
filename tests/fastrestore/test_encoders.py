"""Which encoder a clip gets, what is refused, and that what is chosen really encodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest

from fastrestore import encoders
from fastrestore.encoders import CONTAINERS, ENCODERS, NAMES, choose_encoding
from fastrestore.errors import EncoderError, InputError
from fastrestore.video_probe import Orientation, VideoInfo
from fastrestore.yuv import ColourTags


def clip(pixel_format: str = "yuv420p", width: int = 128, height: int = 96) -> VideoInfo:
    return VideoInfo(
        width, height, 10, 25.0, 0.4, pixel_format, ColourTags(1, False), Orientation(), 0, None, ()
    )  # fmt: skip


def choose(name: str = "a.mp4", info: VideoInfo | None = None, **wishes: Any) -> encoders.Encoding:
    return choose_encoding(Path(name), info or clip(), **wishes)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """FFmpeg's names of encoders that shall fail at their first picture."""
    names: set[str] = set()
    real = encoders._trial

    def trial(codec: str, *rest: Any) -> str:
        return "Operation not permitted" if codec in names else real(codec, *rest)

    monkeypatch.setattr(encoders, "_trial", trial)
    return names


def test_the_table_is_whole() -> None:
    assert NAMES == ("auto", "x264", "x265", "svt-av1", "vp9", "ffv1", "nvenc")
    held = set().union(*(c.holds for c in CONTAINERS.values()))
    assert held == set(ENCODERS)
    for container in CONTAINERS.values():
        assert set(container.deep) == set(container.usual)
        assert "nvenc" not in container.usual  # asked for by name only: its results were not seen


@pytest.mark.parametrize(
    ("name", "pixel_format", "codec", "encoded"),
    [
        ("a.MP4", "yuv420p", "libx264", "yuv420p"),
        ("a.mov", "yuv422p", "libx264", "yuv422p"),
        ("a.mkv", "yuv444p", "libx264", "yuv444p"),
        ("a.webm", "yuv420p", "libvpx-vp9", "yuv420p"),
        ("a.webm", "yuv444p", "libvpx-vp9", "yuv444p"),
        ("a.mp4", "yuv420p10le", "libx265", "yuv420p10le"),
        ("a.mkv", "yuv422p12le", "libx265", "yuv422p12le"),
        ("a.mkv", "p010le", "libx265", "yuv420p10le"),
        ("a.webm", "yuv420p10le", "libsvtav1", "yuv420p10le"),
        ("a.webm", "yuv422p10le", "libvpx-vp9", "yuv422p"),  # AV1 here holds 4:2:0 only
    ],
)
def test_auto_keeps_chroma_then_depth(
    name: str, pixel_format: str, codec: str, encoded: str
) -> None:
    found = choose(name, clip(pixel_format))
    assert (found.codec, found.pixel_format, found.layout.target) == (codec, encoded, encoded)


@pytest.mark.parametrize("name", ["x264", "x265", "svt-av1", "vp9", "ffv1"])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le"])
def test_every_encoder_makes_a_file_that_decodes(
    tmp_path: Path, name: str, pixel_format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = choose("a.mkv", clip(pixel_format), encoder=name)
    with av.open(str(tmp_path / "a.mkv"), "w") as c:
        v: Any = c.add_stream(found.codec, rate=25)
        v.width, v.height, v.pix_fmt, v.options = 128, 96, found.pixel_format, found.options
        for _ in range(3):
            c.mux(v.encode(av.VideoFrame(128, 96, found.layout.target)))
        c.mux(v.encode(None))
    with av.open(str(tmp_path / "a.mkv")) as c:
        decoded = list(c.decode(video=0))
    assert len(decoded) == 3
    assert decoded[0].format.name == found.pixel_format
    assert capfd.readouterr() == ("", "")


def test_defaults_and_wishes_reach_the_encoder() -> None:
    assert choose().options == {"crf": "17", "preset": "veryfast"}
    assert choose(crf=30, preset="slow").options == {"crf": "30", "preset": "slow"}
    assert choose(encoder="x265").options["crf"] == "18"
    assert choose(encoder="svt-av1", preset="12").options == {"crf": "20", "preset": "12"}
    assert choose("a.webm", preset="8").options["cpu-used"] == "8"
    assert "crf" not in choose("a.mkv", encoder="ffv1").options


@pytest.mark.parametrize(
    ("name", "wishes", "words"),
    [
        ("a.gif", {}, (".gif", ".mp4, .mov, .mkv, .webm")),
        ("a", {}, ("without suffix",)),
        ("a.mp4", {"encoder": "libx264"}, ("libx264 is unknown", "auto, x264")),
        ("a.webm", {"encoder": "x264"}, ("WebM", ".mp4 or .mov or .mkv", "vp9, svt-av1")),
        ("a.mp4", {"encoder": "ffv1"}, ("MP4", "use .mkv")),
        ("a.mp4", {"crf": 60}, ("crf 60", "0 to 51 for x264")),
        ("a.mkv", {"encoder": "ffv1", "crf": 3}, ("lossless", "leave it away")),
        ("a.mkv", {"encoder": "ffv1", "preset": "fast"}, ("unknown to ffv1", "leave it away")),
        ("a.mp4", {"encoder": "svt-av1", "preset": "fast"}, ("unknown to svt-av1", "0, 1, 2")),
        ("a.mp4", {"preset": "warp"}, ("warp is unknown to x264", "veryfast")),
    ],
)
def test_refused_wishes(name: str, wishes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        choose(name, **wishes)
    assert str(caught.value).isprintable()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("encoder", "least"), [("svt-av1", 64), ("x265", 16)])
def test_small_pictures_never_reach_encoders_that_hang(encoder: str, least: int) -> None:
    choose(info=clip("yuv420p", least, least), encoder=encoder)
    with pytest.raises(InputError, match=f"too small for {encoder}"):
        choose(info=clip("yuv420p", least * 4, least - 2), encoder=encoder)
    assert choose(info=clip("yuv420p10le", 8, 8)).codec == "libx264"


def test_chroma_that_an_encoder_cannot_hold() -> None:
    with pytest.raises(InputError, match="libsvtav1 holds no such chroma"):
        choose(info=clip("yuv444p"), encoder="svt-av1")


def test_auto_goes_on_to_the_next_and_says_so(broken: set[str]) -> None:
    broken.add("libx264")
    found = choose()
    assert found.codec == "libx265"
    assert found.layout.notes == (
        "x264 does not work here (Operation not permitted): x265 is used",
    )
    broken.update(("libx265", "libsvtav1", "libvpx-vp9"))
    with pytest.raises(EncoderError, match="vp9 does not work here"):
        choose()


def test_a_named_encoder_that_fails_is_refused(broken: set[str]) -> None:
    broken.add("libx264")
    with pytest.raises(EncoderError) as caught:
        choose(encoder="x264")
    assert caught.value.exit_code == 4
    assert str(caught.value).endswith("(Operation not permitted); use --encoder auto")


def test_absent_encoders_and_those_that_open_and_fail() -> None:
    def trial(codec: str, side: int = 64) -> str:
        return encoders._trial(codec, "yuv420p", (), (side, side))

    assert trial("libnope") == "it is not in this build of FFmpeg"
    assert trial("aac") == "it encodes no video"
    assert trial("libx264", 63)
    assert trial("libx264") == ""


def test_hardware_is_tried_in_the_true_size(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def trial(*what: Any) -> str:
        tried.append(what)
        return ""

    monkeypatch.setattr(encoders, "_trial", trial)
    monkeypatch.setattr(encoders, "pixel_formats", lambda codec: ("yuv420p", "p010le"))
    assert choose(encoder="nvenc").options == {"rc": "vbr", "cq": "19", "b": "0", "preset": "p5"}
    deep = choose(info=clip("yuv420p10le"), encoder="nvenc", crf=25)
    assert (deep.codec, deep.layout.target, deep.pixel_format) == (
        "hevc_nvenc", "yuv420p10le", "p010le",
    )  # fmt: skip
    choose()
    assert [(codec, size) for codec, _, _, size in tried] == [
        ("h264_nvenc", (128, 96)), ("hevc_nvenc", (128, 96)), ("libx264", (64, 64)),
    ]  # fmt: skip
