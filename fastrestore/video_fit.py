"""Frames of another size or colour made like the first: what a recording turns to on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrestore.planes import NEUTRAL_CHROMA, planes
from fastrestore.video_probe import VideoInfo
from fastrestore.yuv import ColourTags, colour_tags, plane_layout, scaler_matrix

if TYPE_CHECKING:
    from fractions import Fraction

    from av import VideoFrame

# The scaler's flags: bicubic, exact rounding, chroma at every pixel, in and out.
_SCALE = 0x4 | 0x40000 | 0x2000 | 0x4000
_SAME_SHAPE = 0.02  # two shapes that differ by less are one, stretched by nobody's notice


class Fit:
    """Makes the frames of one clip alike. Used by one thread."""

    def __init__(self, info: VideoInfo, pixel_shape: Fraction | int) -> None:
        """Begin.

        Args:
            info: Of the clip: its first frame is the measure.
            pixel_shape: Width of a pixel by its height, in the first frame.
        """
        from av.video.reformatter import VideoReformatter

        self._scaler = VideoReformatter()
        self._info, self._size = info, info.stored_size
        self._pixel = float(pixel_shape)
        self._layout = plane_layout(info.pixel_format, *self._size[::-1], "ffv1")

    def __call__(self, frame: VideoFrame, pixel_shape: Fraction | None) -> VideoFrame:
        """Return the frame itself if it is like the first, else one that is.

        A picture of another shape gets black bars; nothing is stretched or cut.

        Raises:
            InputError: Its colour cannot be read (without the file's name).
        """
        tags = colour_tags(frame)
        size = frame.width, frame.height
        if size == self._size and _alike(tags, self._info.colour) and self._is_of_format(frame):
            return frame
        inner = self._inner(frame, float(pixel_shape or 1))
        fitted = self._scale(frame, tags, inner)
        if inner != self._size:
            fitted = self._framed(fitted)
        fitted.pts, fitted.time_base, fitted.duration = frame.pts, frame.time_base, frame.duration
        return fitted

    def _is_of_format(self, frame: VideoFrame) -> bool:
        names = (frame.format.name, self._info.pixel_format)
        return len({name.replace("yuvj", "yuv") for name in names}) == 1

    def _inner(self, frame: VideoFrame, pixel: float) -> tuple[int, int]:
        """Return the size that the picture takes within the frame, whole chroma samples."""
        width, height = self._size
        by = frame.width * pixel * height / (frame.height * width * self._pixel)
        down, across = self._layout.block
        if by > 1 + _SAME_SHAPE:
            return width, max(down, round(height / by / down) * down)
        if by < 1 - _SAME_SHAPE:
            return max(across, round(width * by / across) * across), height
        return width, height

    def _scale(self, frame: VideoFrame, tags: ColourTags, inner: tuple[int, int]) -> VideoFrame:
        from av.video.reformatter import ColorRange

        wanted = self._info.colour
        ranges = {False: ColorRange.MPEG, True: ColorRange.JPEG}
        return self._scaler.reformat(
            frame,
            *inner,
            format=self._layout.source,
            src_colorspace=scaler_matrix(tags),
            dst_colorspace=scaler_matrix(wanted),
            src_color_range=ranges[tags.full or frame.format.is_rgb],
            dst_color_range=ranges[wanted.full],
            interpolation=_SCALE,
            threads=1,
        )

    def _framed(self, inner: VideoFrame) -> VideoFrame:
        """Put a picture into the middle of a black one."""
        from av import VideoFrame

        layout = self._layout
        whole = VideoFrame(*self._size, layout.source)
        down, across = layout.block
        top = (whole.height - inner.height) // 2 // down * down
        left = (whole.width - inner.width) // 2 // across * across
        deep = layout.depth - 8
        for k, (out, old) in enumerate(zip(planes(whole), planes(inner), strict=True)):
            out[:] = (NEUTRAL_CHROMA if k else 0 if self._info.colour.full else 16) << deep
            y, x = (top // down, left // across) if k else (top, left)
            out[y : y + old.shape[0], x : x + old.shape[1]] = old
        return whole


def _alike(a: ColourTags, b: ColourTags) -> bool:
    """Tell whether samples mean the same colours, whatever the primaries are called."""
    return scaler_matrix(a) == scaler_matrix(b) and a.full == b.full
