"""Video encoders: which there are, which file can hold which, and which one a clip gets."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from fastrestore.atomic import label
from fastrestore.errors import EncoderError, InputError
from fastrestore.video_probe import VideoInfo
from fastrestore.yuv import SAME_SAMPLES, PlaneLayout, pixel_formats, plane_layout

AUTO = "auto"
_X26X = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
)  # fmt: skip
_TRIAL_PX = 64  # side of the picture with which an encoder is tried


@dataclass(frozen=True, slots=True)
class Encoder:
    """One encoder, by the name that people know.

    Attributes:
        codec: FFmpeg's name.
        crf: Default quality, 0 = best; None: lossless. With its preset each gives 48.6 to 48.7 dB
            of luma, mean over 104 frames of three clips (FFmpeg 8.1.2); nvenc's is unmeasured.
        worst: Largest crf.
        preset: Default speed; None: it has none.
        presets: From fast to slow, or the other way.
        deep: FFmpeg's name for more than 8 bit a sample, where that is another.
        least: Smallest side of a picture, px: below it some do not fail but hang.
        hardware: It has limits of its own, so it is tried with the clip's true size.
    """

    codec: str
    crf: int | None
    worst: int
    preset: str | None
    presets: tuple[str, ...]
    deep: str | None = None
    least: int = 1
    hardware: bool = False


ENCODERS = {
    "x264": Encoder("libx264", 17, 51, "veryfast", _X26X),
    "x265": Encoder("libx265", 18, 51, "fast", _X26X, least=16),
    "svt-av1": Encoder("libsvtav1", 20, 63, "8", tuple(map(str, range(14))), least=64),
    "vp9": Encoder("libvpx-vp9", 20, 63, "4", tuple(map(str, range(9)))),
    "ffv1": Encoder("ffv1", None, 0, None, ()),
    "nvenc": Encoder(
        "h264_nvenc", 19, 51, "p5", tuple(f"p{i}" for i in range(1, 8)), "hevc_nvenc", hardware=True
    ),
}
NAMES = (AUTO, *ENCODERS)


@dataclass(frozen=True, slots=True)
class Container:
    """What one kind of file can hold.

    Attributes:
        name: For messages.
        usual: What `auto` takes, the first that works.
        deep: Likewise for more than 8 bit: hardly a player shows such H.264.
        more: What else it holds.
    """

    name: str
    usual: tuple[str, ...]
    deep: tuple[str, ...]
    more: tuple[str, ...] = ()

    @property
    def holds(self) -> tuple[str, ...]:
        """All encoders that fit."""
        return (*self.usual, *self.more)


CONTAINERS = {
    ".mp4": Container(
        "MP4", ("x264", "x265", "svt-av1", "vp9"), ("x265", "svt-av1", "x264", "vp9"), ("nvenc",)
    ),
    ".mov": Container("MOV", ("x264", "x265"), ("x265", "x264"), ("nvenc",)),
    ".mkv": Container(
        "Matroska",
        ("x264", "x265", "svt-av1", "vp9"),
        ("x265", "svt-av1", "x264", "vp9"),
        ("ffv1", "nvenc"),
    ),
    ".webm": Container("WebM", ("vp9", "svt-av1"), ("svt-av1", "vp9")),
}
OUTPUT_SUFFIXES = tuple(CONTAINERS)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one clip is encoded.

    Attributes:
        codec: FFmpeg's name of the encoder.
        pixel_format: In which the encoder takes frames: the samples of `layout.target`.
        options: Of the encoder.
        layout: What is made of the clip's frames, and what changes by that.
    """

    codec: str
    pixel_format: str
    options: dict[str, str]
    layout: PlaneLayout


def choose_encoding(
    target: Path,
    clip: VideoInfo,
    encoder: str = AUTO,
    crf: int | None = None,
    preset: str | None = None,
) -> Encoding:
    """Choose how a clip is encoded, and try that with one picture.

    Args:
        target: Its suffix names the container.
        clip: From `probe`.
        encoder: One of `NAMES`; `auto` is the usual one of the container that works here.
        crf: Quality, 0 = best; None: the encoder's own default.
        preset: Speed against size, in the encoder's own words; None: its default.

    Raises:
        InputError: A wish does not fit the container, the clip or the encoder.
        EncoderError: The encoder does not work here.
    """
    suffix = target.suffix.lower()
    if suffix not in CONTAINERS:
        raise InputError(
            f"{label(target)}: video is not written as {suffix or 'a file without suffix'}; "
            f"use one of {', '.join(CONTAINERS)}"
        )
    container = CONTAINERS[suffix]
    if encoder == AUTO:
        return _first_that_works(target, clip, container, crf, preset)
    _check_holds(target, container, encoder)
    check_wishes(encoder, crf, preset)
    encoding = _encoding(target, clip, encoder, crf, preset)
    if failure := _failure(encoding, encoder, clip):
        raise EncoderError(
            f"{label(target)}: {encoder} does not work here ({failure}); use --encoder {AUTO}"
        )
    return encoding


def _first_that_works(
    target: Path, clip: VideoInfo, container: Container, crf: int | None, preset: str | None
) -> Encoding:
    """Go through the container's usual encoders; say so where the first is not taken."""
    failures: list[str] = []
    refusal: InputError | None = None
    for name in container.deep if clip.depth > 8 else container.usual:
        check_wishes(name, crf, preset)
        try:
            encoding = _encoding(target, clip, name, crf, preset)
        except InputError as e:
            refusal = refusal or e
            continue
        if failure := _failure(encoding, name, clip):
            failures.append(f"{name} does not work here ({failure})")
            continue
        notes = (f"{', '.join(failures)}: {name} is used",) if failures else ()
        layout = encoding.layout
        return replace(encoding, layout=replace(layout, notes=(*notes, *layout.notes)))
    if refusal is not None:
        raise refusal
    raise EncoderError(f"{label(target)}: {', '.join(failures)}; install another build of PyAV")


def _check_holds(target: Path, container: Container, encoder: str) -> None:
    """Refuse an encoder that is not known or that the container cannot hold."""
    if encoder not in ENCODERS:
        raise InputError(f"{label(target)}: {encoder} is unknown; use one of {', '.join(NAMES)}")
    if encoder not in container.holds:
        fits = " or ".join(s for s, c in CONTAINERS.items() if encoder in c.holds)
        raise InputError(
            f"{label(target)}: {container.name} is not written with {encoder}; use {fits} for it, "
            f"or choose from {', '.join(container.holds)}"
        )


def _encoding(
    target: Path, clip: VideoInfo, name: str, crf: int | None, preset: str | None
) -> Encoding:
    """Apply the wishes to one encoder; raises InputError where the clip does not fit it."""
    encoder = ENCODERS[name]
    width, height = clip.stored_size
    if min(width, height) < encoder.least:
        raise InputError(
            f"{label(target)}: {width}x{height} is too small for {name}, which needs "
            f"{encoder.least} px a side; use --encoder {AUTO}"
        )
    codec = encoder.deep if encoder.deep and clip.depth > 8 else encoder.codec
    try:
        layout = plane_layout(clip.pixel_format, height, width, codec)
    except InputError as e:
        raise InputError(f"{label(target)}: {e}") from e
    quality = str(encoder.crf if crf is None else crf)
    options = _options(name, quality, preset or encoder.preset or "")
    held, same = pixel_formats(codec), SAME_SAMPLES.get(layout.target)
    taken = same if same in held and layout.target not in held else layout.target
    return Encoding(codec, taken, options, layout)


def check_wishes(name: str, crf: int | None, preset: str | None = None) -> None:
    """Refuse a quality or a speed that an encoder does not know; raises InputError."""
    encoder = ENCODERS[name]
    if crf is not None and encoder.crf is None:
        raise InputError(f"{name} is lossless and takes no --crf; leave it away")
    if crf is not None and not 0 <= crf <= encoder.worst:
        raise InputError(f"crf {crf} is out of range; use 0 to {encoder.worst} for {name}")
    if preset is not None and preset not in encoder.presets:
        known = f"use one of {', '.join(encoder.presets)}" if encoder.presets else "leave it away"
        raise InputError(f"preset {preset} is unknown to {name}; {known}")


def _options(name: str, crf: str, preset: str) -> dict[str, str]:
    """Return an encoder's options in FFmpeg's words."""
    if name == "ffv1":
        return {"level": "3", "slicecrc": "1"}
    if name == "vp9":
        return {"crf": crf, "deadline": "good", "cpu-used": preset, "row-mt": "1"}
    if name == "nvenc":
        return {"rc": "vbr", "cq": crf, "b": "0", "preset": preset}
    quiet = {"x265-params": "log-level=none"} if name == "x265" else {}
    return {"crf": crf, "preset": preset, **quiet}


def _failure(encoding: Encoding, name: str, clip: VideoInfo) -> str:
    """Say why an encoder does not work here; empty if it does."""
    size = clip.stored_size if ENCODERS[name].hardware else (_TRIAL_PX, _TRIAL_PX)
    options = tuple(encoding.options.items())
    return _trial(encoding.codec, encoding.pixel_format, options, size)


@lru_cache(maxsize=64)
def _trial(
    codec: str, pixel_format: str, options: tuple[tuple[str, str], ...], size: tuple[int, int]
) -> str:
    """Encode one picture: NVENC without a driver is there, and opens, and fails only then."""
    import av
    from av.video.codeccontext import VideoCodecContext

    # SVT-AV1 tells of itself on stderr; it asks the environment whether it may.
    os.environ.setdefault("SVT_LOG", "1")
    try:
        context = av.CodecContext.create(codec, "w")
        if not isinstance(context, VideoCodecContext):
            return "it encodes no video"
        context.width, context.height = size
        context.pix_fmt, context.options = pixel_format, dict(options)
        context.framerate, context.time_base = Fraction(25), Fraction(1, 25)
        frame = av.VideoFrame(*size, pixel_format)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts = 0
        context.encode(frame)
        context.encode(None)
    except (av.error.FFmpegError, OSError, ValueError) as e:
        if isinstance(e, av.codec.codec.UnknownCodecError):
            return "it is not in this build of FFmpeg"
        reason = getattr(e, "strerror", None) or str(e)
        return f"no NVIDIA GPU with its driver? {reason}" if "nvenc" in codec else reason
    return ""
