"""`fastrestore live`."""

from __future__ import annotations

import math
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import click

from fastrestore.commands.options import (
    RateType,
    engine_options,
    model_options,
    repair_options,
)
from fastrestore.errors import FastRestoreError, InputError

if TYPE_CHECKING:
    from types import FrameType

    from fastrestore.live.run import Live
    from fastrestore.live.status import Status
    from fastrestore.live.stream import Stream
    from fastrestore.restore import Sigma


@click.command("live", no_args_is_help=True)
@click.option(
    "--source",
    "sources",
    multiple=True,
    required=True,
    metavar="0|rtsp://..|-|FILE",
    help="A camera's number, an address, stdin (y4m, or raw with --input-size), a file. "
    "Several: give as many --sink, in the same order.",
)
@click.option(
    "--sink",
    "sinks",
    multiple=True,
    metavar="-|FILE|rtmp://..|none",
    help="stdout (y4m), a file, an address, nowhere.  [- where stdout is no terminal]",
)
@click.option(
    "--mask",
    metavar="FILE|DIR|auto",
    help="White = repair; a folder goes by frame number, auto looks for the damage.",
)
@repair_options
@click.option(
    "--keep",
    type=click.Choice(["newest", "all"]),
    help="When restoring is too slow: newest drops frames, all lets the source wait.  "
    "[newest for cameras and networks, all for pipes and files]",
)
@click.option(
    "--budget-ms",
    type=click.FloatRange(0, min_open=True),
    help="Time that a frame may take, from its arrival to restored; then --when-late.",
)
@click.option(
    "--when-late",
    metavar="STEPS",
    help="What gives way, in order: preset (nano restores), box (only the damage, noise stays), "
    "skip (frames that would be late are dropped).  [those of preset,box,skip that can]",
)
@click.option("--input-size", metavar="WxH", help="Of raw video from a pipe.")
@click.option("--pixel-format", metavar="NAME", help="Of raw video, in and out.  [rgb24]")
@click.option(
    "--rate", type=RateType(), metavar="FPS", help="Frames a second, where the source does not say."
)
@click.option(
    "--output-format",
    metavar="NAME",
    help="Of stdout: y4m (the default), rawvideo, matroska, nut, mpegts.",
)
@click.option("--encoder", metavar="NAME", help="Of files and addresses.")
@click.option("--crf", type=click.IntRange(0, 63), help="Quality of the encoder, 0 = best.")
@click.option("--max-pixels", type=click.IntRange(1), default=100_000_000, show_default=True)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="End after so long.")
@click.option(
    "--reconnect/--no-reconnect",
    default=True,
    show_default=True,
    help="Open a camera or an address again when it is lost.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="The status as JSON lines, on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@model_options
@engine_options
def command(
    sources: tuple[str, ...],
    sinks: tuple[str, ...],
    mask: str | None,
    invert_mask: bool,
    threshold: float | None,
    hold: int | None,
    detector: str | None,
    grow: int,
    clean: Sigma,
    motion: bool | None,
    keep: str | None,
    budget_ms: float | None,
    when_late: str | None,
    input_size: str | None,
    pixel_format: str | None,
    rate: Fraction | None,
    output_format: str | None,
    encoder: str | None,
    crf: int | None,
    max_pixels: int,
    seconds: float | None,
    reconnect: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    model: str,
    backend: str,
    threads: int | None,
    engine: str | None,
    device: int,
    trust_engine: bool,
) -> int:
    """Restore a camera, a stream or a pipe as it comes.

    The newest frame wins: where the model is slower than a camera, frames are dropped, and what is
    shown stays fresh. Ctrl+C ends it; files that are written are completed.

    \b
    fastrestore live --source 0 | ffplay -f yuv4mpegpipe -
    ffmpeg -i old.mp4 -f yuv4mpegpipe - | fastrestore live --source - --sink new.mkv
    fastrestore live --source rtsp://camera/main --sink clean.mkv --budget-ms 50
    """
    from fastrestore.backend import shipped_models
    from fastrestore.batch import Options
    from fastrestore.detect import SHIPPED, Detector
    from fastrestore.live.policy import parse_steps
    from fastrestore.live.repair import Repair
    from fastrestore.live.run import Live
    from fastrestore.live.setup import SMALL, Ends, open_ladder, open_streams, pair
    from fastrestore.live.status import Status
    from fastrestore.restore import Restorer

    if not sinks and len(sources) == 1 and sys.stdout is not None and sys.stdout.isatty():
        click.echo(
            "fastrestore: video does not go to a terminal; add `| ffplay -f yuv4mpegpipe -` to see "
            "it, or `--sink FILE.mkv` to keep it",
            err=True,
        )
        return 2
    if when_late is not None and budget_ms is None:
        raise InputError("--when-late goes with --budget-ms only; give that, or leave it away")
    for name, number in (("--budget-ms", budget_ms), ("--seconds", seconds)):
        if number is not None and not math.isfinite(number):
            raise InputError(f"{name} {number}: must be a number; leave it away for no limit")
    if invert_mask and mask in (None, "auto"):
        raise InputError("--invert-mask goes with a mask that is a file; leave it away")
    steps = None if when_late is None else parse_steps(when_late)
    pairs = pair(sources, sinks)
    if output_format is not None and all(sink != "-" for _, sink in pairs):
        raise InputError("--output-format is that of stdout, `--sink -`; leave it away")
    if detector is not None and mask != "auto":
        raise InputError("--detector goes with --mask auto only; leave it away")
    options = Options(
        mask=mask,
        invert=invert_mask,
        threshold=threshold,
        hold=hold,
        grow_px=grow,
        sigma=clean,
        max_pixels=max_pixels,
    )
    ends = Ends(
        source={
            "input_size": _size(input_size),
            "pixel_format": pixel_format or "rgb24",
            "rate": rate,
            "max_pixels": max_pixels,
        },
        sink={
            "encoder": encoder,
            "crf": crf,
            "pixel_format": pixel_format,
            "overwrite": overwrite,
            "output_format": output_format,
        },
        newest=None if keep is None else keep == "newest",
        reconnect=reconnect,
    )
    status = Status(as_json=as_json, quiet=quiet)
    with _errors(status, as_json=as_json), ExitStack() as stack:
        load = partial(
            Restorer, threads=threads, device=device, trust_engine=trust_engine, motion=motion
        )
        restorer = stack.enter_context(load(model, backend=backend, engine=engine))
        finder = None
        if mask == "auto":
            finder = stack.enter_context(Detector(detector or SHIPPED, threads))
        streams = open_streams(pairs, ends, options, finder, stack)
        small, ladder = None, None
        if budget_ms is not None:
            # Of a model in INT8 (-u8) nano saves next to nothing: 19 of 20 ms at 256x256, tiny 26.
            known = {p.stem for p in shipped_models() if not p.stem.endswith("-u8")}
            own = engine is not None or model not in known
            open_small = None if own else partial(load, SMALL, backend=restorer.backend)
            ladder, small, said = open_ladder(
                budget_ms, steps, streams, options, restorer, open_small
            )
            status.note(said)
        if small is not None:
            stack.enter_context(small)
        repair = Repair(restorer, small, sigma=clean, grow_px=grow)
        live = Live(streams, repair, status, ladder=ladder, seconds=seconds)
        with _signals(live):
            live.run()
        return _exit_code(live, streams)


@contextmanager
def _errors(status: Status, *, as_json: bool) -> Iterator[None]:
    """Say what went wrong as JSON where all else is."""
    try:
        yield
    except FastRestoreError as e:
        if not as_json:
            raise
        status.error(e)
        raise click.exceptions.Exit(e.exit_code) from e


def _size(text: str | None) -> tuple[int, int] | None:
    """Read `640x480`."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise InputError(f"--input-size {text}: must be like 640x480")
    return int(match[1]), int(match[2])


@contextmanager
def _signals(live: Live) -> Iterator[None]:
    """Let Ctrl+C and SIGTERM end the run in order, and the second of them at once."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, frame: FrameType | None) -> None:
        live.stop()
        for s in before:
            signal.signal(s, signal.default_int_handler)

    for s in before:
        signal.signal(s, end)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _exit_code(live: Live, streams: Sequence[Stream]) -> int:
    """Return 0, or what says why not all went to its end."""
    from fastrestore.live.frame import ReaderGoneError

    errors = []
    for stream in streams:
        viewer = isinstance(stream.error, ReaderGoneError) and (stream.newest or live.stopped)
        if stream.error is not None and not viewer:
            errors.append(stream.error)
    if errors and len(streams) == 1:
        raise errors[0]
    if errors:
        return 1 if len(errors) < len(streams) else max(e.exit_code for e in errors)
    if live.stopped and not all(s.newest for s in streams):
        raise KeyboardInterrupt  # a file or a pipe had an end of its own
    return 0
