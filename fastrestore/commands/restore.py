"""`fastrestore restore`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fastrestore.atomic import label
from fastrestore.commands.options import (
    RateType,
    engine_options,
    model_options,
    progress_bar,
    repair_options,
)
from fastrestore.encoders import AUTO, NAMES
from fastrestore.errors import InputError

if TYPE_CHECKING:
    from fractions import Fraction

    from rich.progress import Progress

    from fastrestore.batch import Job, Options, Outcome
    from fastrestore.detect import Detector
    from fastrestore.restore import Restorer, Sigma


@click.command("restore", no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", metavar="PATH", help="File, or folder for several inputs.")
@click.option(
    "--mask",
    metavar="FILE|DIR|alpha|auto",
    help="White = repair: a picture, a mask video, a folder (by name, or for a video by frame "
    "number). auto looks for the damage.",
)
@click.option("--mask-color", metavar="#RRGGBB", help="Repair every pixel of this colour.")
@click.option(
    "--tolerance",
    type=click.IntRange(0, 255),
    default=0,
    show_default=True,
    help="Of --mask-color, per channel; a JPEG needs about 60.",
)
@click.option(
    "--mask-out",
    metavar="PATH",
    help="Write the mask, before --grow, as .png, of a video as .mkv; a folder for several.",
)
@repair_options
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True)
@click.option(
    "--encoder",
    type=click.Choice(NAMES),
    default=AUTO,
    show_default=True,
    help="Of video. auto: x264, for more than 8 bit x265; in .webm vp9 or svt-av1. ffv1 loses "
    "nothing (.mkv); nvenc needs an NVIDIA GPU.",
)
@click.option(
    "--crf",
    type=click.IntRange(0, 63),
    help="Quality of video, 0 = best.  [x264 17, x265 18, svt-av1 20, vp9 20, nvenc 19]",
)
@click.option(
    "--preset",
    help="Speed of --encoder: x264 and x265 ultrafast to veryslow, svt-av1 0-13, vp9 0-8, "
    "nvenc p1-p7.  [veryfast, fast, 8, 4, p5]",
)
@click.option(
    "--rate",
    type=RateType(),
    metavar="FPS",
    help="Of raw streams, which have no time stamps.  [what they say, else 25]",
)
@click.option("--max-pixels", type=click.IntRange(1), default=100_000_000, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.option(
    "--resume",
    is_flag=True,
    help="Videos: keep what is done in .NAME.parts beside the result, so that the same command "
    "goes on after a break; with --overwrite it begins anew.",
)
@click.option(
    "--segment",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Of --resume: seconds of video, about, that a break may cost.",
)
@click.option("--skip-existing", is_flag=True, help="Leave results that exist alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per input on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@model_options
@engine_options
def command(
    inputs: tuple[str, ...],
    output: str | None,
    mask: str | None,
    mask_color: str | None,
    tolerance: int,
    invert_mask: bool,
    grow: int,
    threshold: float | None,
    hold: int | None,
    detector: str | None,
    mask_out: str | None,
    clean: Sigma,
    quality: int,
    encoder: str,
    crf: int | None,
    preset: str | None,
    rate: Fraction | None,
    max_pixels: int,
    overwrite: bool,
    resume: bool,
    segment: float,
    skip_existing: bool,
    as_json: bool,
    quiet: bool,
    model: str,
    backend: str,
    threads: int | None,
    **engine: Any,
) -> int:
    """Restore pictures, folders and videos.

    With a mask only what it marks changes; lossless formats keep every other pixel bit for bit.
    Without one, noise is estimated and removed. `-` reads a picture from stdin; `-o -` writes
    PNG to stdout.

    \b
    fastrestore restore photo.jpg --mask holes.png
    fastrestore restore old.jpg --mask auto --mask-out found.png
    fastrestore restore scans/ -o clean/ --mask masks/
    fastrestore restore clip.mp4 -o clip.mkv --mask logo.png
    fastrestore restore noisy.png --clean 20
    """
    from fastrestore.batch import Options, collect, exit_code, run
    from fastrestore.detect import SHIPPED, Detector
    from fastrestore.journal import is_begun
    from fastrestore.restore import Restorer

    options = Options(
        mask=mask,
        mask_colour=mask_color,
        tolerance=tolerance,
        invert=invert_mask,
        threshold=threshold,
        hold=hold,
        grow_px=grow,
        sigma=clean,
        max_pixels=max_pixels,
        quality=quality,
        encoder=encoder,
        crf=crf,
        preset=preset,
        rate=rate,
        overwrite=overwrite,
        resume=resume,
        segment_s=segment,
        again=shlex.join(["fastrestore", *(a for a in sys.argv[1:] if a != "--overwrite")]),
    )
    if mask_out is not None and mask is None and mask_color is None:
        raise InputError("--mask-out: there is no mask to write; give --mask or --mask-color")
    if detector is not None and mask != "auto":
        raise InputError("--detector goes with --mask auto only; leave it away")
    finder = Detector(detector or SHIPPED, threads) if mask == "auto" else None
    if "-" in inputs or output == "-":
        if as_json or skip_existing:
            raise InputError("stdin and stdout go without --json and --skip-existing")
        with Restorer(model, backend=backend, threads=threads, **engine) as restorer:
            _pipe(inputs, output, mask_out, options, restorer, finder, quiet)
        return 0
    jobs = collect(inputs, output, mask_out)
    if skip_existing:
        jobs = [j for j in jobs if not j.target.exists() or (resume and is_begun(j.target))]
    outcomes: list[Outcome] = []
    with (
        Restorer(model, backend=backend, threads=threads, **engine) as restorer,
        progress_bar(quiet) as bar,
    ):
        for i, job in enumerate(jobs):
            head = f"{i + 1}/{len(jobs)} {job.source.name}"
            outcome = run(job, restorer, options, _frames(bar, head), finder)
            outcomes.append(outcome)
            try:
                _say(outcome, as_json, quiet)
            except BrokenPipeError:  # nobody reads any more; the work goes on
                as_json, quiet = False, True
                _unplug()
    if len(jobs) > 1 and not quiet:
        failed = sum(o.error is not None for o in outcomes)
        click.echo(f"{len(jobs) - failed} restored, {failed} failed", err=True)
    return exit_code(outcomes)


def _frames(bar: Progress, head: str) -> Callable[[int, int | None, float], None]:
    """Make the callback that shows one input's frames."""
    for task in bar.task_ids:
        bar.remove_task(task)
    task = bar.add_task(head, total=None, figures="")

    def show(done: int, total: int | None, fps: float) -> None:
        figures = f"{done}/{total or '?'} frames, {fps:.1f} fps"
        bar.update(task, completed=done, total=total, figures=figures)

    return show


def _unplug() -> None:
    """Send what is still written to stdout and stderr nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _say(outcome: Outcome, as_json: bool, quiet: bool) -> None:
    job: Job = outcome.job
    if as_json:
        click.echo(json.dumps(outcome.to_json()))
    if outcome.error:
        click.echo(f"fastrestore: {outcome.error}", err=True)
    elif not quiet:
        w, h = outcome.size
        frames = f", {outcome.frames} frames" if outcome.frames > 1 else ""
        time = f"{outcome.seconds:.2f} s"
        what = f"{label(job.source)} -> {label(job.target)}"
        click.echo(f"{what} ({w}x{h}{frames}, {time})", err=True)
        for note in outcome.notes:
            click.echo(f"  {note}", err=True)


def _pipe(
    inputs: tuple[str, ...],
    output: str | None,
    mask_out: str | None,
    options: Options,
    restorer: Restorer,
    detector: Detector | None,
    quiet: bool,
) -> None:
    """Restore one picture from stdin, to stdout, or both."""
    import io
    from pathlib import Path

    from fastrestore.batch import (
        Job,
        check_mask_target,
        check_target,
        restore_picture,
        with_masks,
        without_holes,
    )
    from fastrestore.images import decode_picture, encode_picture, read_picture, write_picture
    from fastrestore.video_probe import is_video

    if len(inputs) > 1 or output is None:
        raise InputError("stdin and stdout take one picture: fastrestore restore - -o -")
    source = Path("stdin" if inputs[0] == "-" else inputs[0])
    if is_video(source):
        raise InputError(f"{label(source)}: a video is written to a file; give -o NAME.mkv")
    job = Job(source, Path(output))
    if mask_out is not None:
        (job,) = with_masks([job], mask_out, many=False)
    if output != "-":
        check_target(job, options)
    check_mask_target(job, options)
    if (inputs[0] == "-" and sys.stdin is None) or (output == "-" and sys.stdout is None):
        raise InputError("stdin or stdout is closed; give a file instead of -")
    if inputs[0] == "-":
        picture = decode_picture(io.BytesIO(sys.stdin.buffer.read()), "stdin", options.max_pixels)
    else:
        picture = read_picture(source, options.max_pixels)
    restored, notes = restore_picture(job, picture, restorer, options, detector)
    shown = without_holes(picture, options)
    if output == "-":
        sys.stdout.buffer.write(encode_picture(shown, restored, ".png"))
        sys.stdout.buffer.flush()  # here, where a full disk or a closed pipe can still be said
    else:
        write_picture(Path(output), shown, restored, quality=options.quality)
    for note in () if quiet else notes:
        click.echo(f"{source}: {note}", err=True)
