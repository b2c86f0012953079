"""What a sink's text means, and the sink that it prepares."""

from __future__ import annotations

from functools import partial

from fastrestore.atomic import label
from fastrestore.errors import InputError
from fastrestore.images import is_picture
from fastrestore.live.addresses import masked, scheme
from fastrestore.live.encode import SUBSAMPLINGS, choose_encoding
from fastrestore.live.frame import Sink
from fastrestore.live.sink_container import Rate
from fastrestore.live.sink_file import FileSink, file_muxer
from fastrestore.live.sink_images import ImageSink, NullSink
from fastrestore.live.sink_network import NETWORK_MUXERS, network_sink
from fastrestore.live.sink_pipe import (
    MUXERS,
    PIPE_FORMATS,
    PlainSink,
    container_sink,
    open_stdout,
)


def open_sink(
    text: str,
    *,
    rate: Rate,
    encoder: str | None = None,
    crf: int | None = None,
    pixel_format: str | None = None,
    output_format: str | None = None,
    overwrite: bool = False,
) -> Sink:
    """Prepare what a text means. It opens itself at the first frame.

    - `-`: stdout, as y4m, which ffplay, mpv and ffmpeg read; see `output_format`.
    - `rtmp://...`, `rtsp://...`, `udp://...`, `tcp://...`: encoded, to the network.
    - `out/%05d.png`: numbered pictures.
    - `none`: nowhere.
    - Anything else: a video file, .mkv, .mp4, .mov, .webm or .ts.

    Files and containers carry time stamps: they play at the right speed though frames were
    dropped. y4m and raw frames carry none.

    Args:
        text: See above.
        rate: Nominal frames per second; a function is asked for it at the first frame.
        encoder: `x264`, `x265`, `vp9`, `svt-av1`, `ffv1` or `nvenc`; None: the usual one.
        crf: Quality, 0 = best; None: 20.
        pixel_format: Of raw frames one of `RAW_FORMATS`. Elsewhere one of `SUBSAMPLINGS`; others
            do not count there, as they may be those of a raw source. None: the usual one.
        output_format: Of stdout, one of `PIPE_FORMATS`; None: y4m.
        overwrite: Replace files that exist.

    Raises:
        InputError: An option that does not fit.
        OutputError: The place cannot be written, or is the terminal.
    """
    form = output_format or "y4m"
    if form not in PIPE_FORMATS:
        raise InputError(f"--output-format {form}: must be one of {', '.join(PIPE_FORMATS)}")
    planar = pixel_format if pixel_format in SUBSAMPLINGS else None
    encoding = partial(choose_encoding, encoder=encoder, crf=crf, pixel_format=planar)
    if text == "none":
        return NullSink()
    if text == "-":
        outlet = open_stdout()
        if form in MUXERS:
            return container_sink(outlet, encoding(form, name=outlet.name), rate)
        return PlainSink(outlet, form, pixel_format if form == "rawvideo" else planar, rate)
    if kind := scheme(text):
        if kind not in NETWORK_MUXERS:
            known = ", ".join(f"{s}://" for s in NETWORK_MUXERS)
            raise InputError(f"{masked(text)}: nothing is sent to {kind}://; use one of {known}")
        return network_sink(text, encoding(NETWORK_MUXERS[kind], name=masked(text)), rate)
    if is_picture(text):
        return ImageSink(text, overwrite=overwrite)
    return FileSink(text, encoding(file_muxer(text), name=label(text)), rate, overwrite=overwrite)
