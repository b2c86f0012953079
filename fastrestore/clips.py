"""Short clips as arrays: write frames, read frames. For the demo, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

from fastrestore.arrays import U8
from fastrestore.errors import OutputError
from fastrestore.video_io import VideoReader


def write_frames(path: Path, frames: Iterable[U8], *, fps: int, codec: str = "ffv1") -> None:
    """Write RGB frames without loss (`ffv1` in .mkv), replacing an older file.

    Args:
        path: A .mkv file.
        frames: uint8 RGB `(H, W, 3)`, all of one size.
        fps: Frames a second, constant.
        codec: An encoder that takes the pixel format `bgr0`.

    Raises:
        OutputError: The file cannot be written.
    """
    import av
    from av.video.stream import VideoStream

    try:
        with av.open(str(path), "w") as out:
            stream: VideoStream | None = None
            for i, frame in enumerate(frames):
                if stream is None:
                    stream = out.add_stream(codec, rate=fps)
                    stream.height, stream.width = frame.shape[:2]
                    stream.pix_fmt = "bgr0"
                    stream.codec_context.time_base = Fraction(1, fps)
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                picture.pts, picture.time_base = i, Fraction(1, fps)
                out.mux(stream.encode(picture))
            if stream is not None:
                out.mux(stream.encode())
    except OSError as e:
        raise OutputError(f"{path}: cannot be written ({e.strerror})") from e


def read_frames(path: Path) -> Iterator[U8]:
    """Yield the frames of a clip, uint8 RGB `(H, W, 3)`, converted by its own colour tags."""
    import av

    from fastrestore.yuv import Converter

    with VideoReader(path) as reader:
        converter: Converter | None = None
        for item in reader:
            if isinstance(item, av.VideoFrame):
                converter = converter or Converter(reader.info)  # type: ignore[call-arg]
                yield converter.to_rgb(item)
