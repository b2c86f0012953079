"""`fastrestore bench`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastrestore.atomic import write_file
from fastrestore.commands.options import device_option
from fastrestore.errors import InputError, OutputError

if TYPE_CHECKING:
    from fastrestore.bench import Run


@click.command("bench")
@click.option("--model", "models", multiple=True, default=("tiny",), show_default=True)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["ort", "openvino", "tensorrt", "rtx", "triton"]),
    help="Several times for several.  [all that run here]",
)
@click.option("--threads", type=click.IntRange(1, 256), help="CPU threads.  [all usable]")
@device_option
@click.option("--size", default="512x512", show_default=True, metavar="WxH", help="Of the picture.")
@click.option("--hole", type=click.FloatRange(0, 0.9), default=0.05, show_default=True)
@click.option("--video-size", default="1280x720", show_default=True, metavar="WxH")
@click.option("--seconds", type=click.FloatRange(0.1), default=3.0, show_default=True)
@click.option("--output", metavar="FILE", help="Write the full report as JSON.")
@click.option("--json", "as_json", is_flag=True, help="The full report on stdout.")
@click.option("--compare", nargs=2, metavar="A B", help="Compare two reports; nothing is run.")
def command(
    models: tuple[str, ...],
    backends: tuple[str, ...],
    threads: int | None,
    device: int,
    size: str,
    hole: float,
    video_size: str,
    seconds: float,
    output: str | None,
    as_json: bool,
    compare: tuple[str, str] | None,
) -> None:
    """Measure latency on this machine, after a warm-up.

    Three levels: `backend` is the model alone on a whole picture, `host` one picture with a hole
    in one place from memory to memory, `frames` a noisy video's frames in order.

    \b
    fastrestore bench
    fastrestore bench --model nano --backend ort --output ort.json
    fastrestore bench --compare ort.json openvino.json
    """
    from fastrestore.bench import Percentiles, Report
    from fastrestore.environment import describe

    if compare:
        _compare(*compare)
        return
    if output and not Path(output).absolute().parent.is_dir():
        raise OutputError(f"{output}: its folder does not exist; make the folder first")
    picture, frame = _size(size), _size(video_size)
    env = describe()
    runs: list[Run] = []
    for backend in backends or _usable(models, device):
        for model in models:
            runs += _measure(model, backend, threads, device, picture, hole, frame, seconds)
    report = Report({**env, "threads": threads}, runs)
    if output:
        write_file(output, report.to_json().encode())
    if as_json:
        click.echo(report.to_json(), nl=False)
        return
    for run in runs:
        p = Percentiles.of(run.samples.wall_ms)
        cpu = Percentiles.of(run.samples.cpu_ms)
        h, w = run.shape[-3:-1]
        click.echo(
            f"{run.labels.backend:8} {run.labels.model:5} {run.level:7} {w}x{h}: "
            f"p50 {p.p50:.1f} p90 {p.p90:.1f} p99 {p.p99:.1f} ms (n {p.n}, cpu {cpu.p50:.1f} ms)"
            + (f", {run.fps:.1f}/s" if run.fps else "")
        )
    for warning in report.to_dict()["warnings"]:
        click.echo(f"warning: {warning}", err=True)


def _size(text: str) -> tuple[int, int]:
    try:
        w, h = (int(v) for v in text.lower().split("x"))
    except ValueError:
        raise InputError(f"size {text}: write it as WIDTHxHEIGHT, for example 512x512") from None
    if min(w, h) < 16 or w * h > 2**26:
        raise InputError(f"size {text}: must be from 16x16 to 64 megapixels")
    return h, w


def _usable(models: tuple[str, ...], device: int) -> list[str]:
    """Return the backends that are installed and have their device, or an engine of each model."""
    from importlib.util import find_spec

    from fastrestore.backends.engine_choice import with_engines
    from fastrestore.environment import has_cuda_device

    names = ["ort"]
    if find_spec("openvino"):
        names.append("openvino")
    names += with_engines(models, device)
    if find_spec("torch") and find_spec("triton") and has_cuda_device():
        names.append("triton")
    return names


def _measure(
    model: str,
    backend: str,
    threads: int | None,
    device: int,
    picture: tuple[int, int],
    hole: float,
    frame: tuple[int, int],
    seconds: float,
) -> list[Run]:
    import numpy as np

    from fastrestore.backend import frames_of, open_backend
    from fastrestore.bench import Labels, bench_backend, bench_frames, bench_host, time_calls
    from fastrestore.degrade import add_noise
    from fastrestore.demo import sample_folder
    from fastrestore.images import read_picture
    from fastrestore.restore import Restorer
    from fastrestore.windows import fitting

    timer = functools.partial(time_calls, min_s=seconds)
    still = read_picture(sample_folder() / "vegetables.webp").rgb

    def fit(size: tuple[int, int]) -> Any:
        reps = [-(-s // t) for s, t in zip(size, still.shape, strict=False)]
        return np.ascontiguousarray(np.tile(still, (*reps, 1))[: size[0], : size[1]])

    runner = open_backend(model, backend, threads, device=device)
    m, fixed = runner.spec.multiple, frames_of(runner)
    h, w = (-(-s // m) * m for s in picture)
    if fixed is not None:  # an engine's own size, where it does not take this one
        h, w = fitting(h, w, fixed, m) or fixed[0][1][1:]
    precision = getattr(runner, "precision", "fp16" if backend == "triton" else "fp32")
    whole = bench_backend(runner, (1, h, w), precision=precision, timer=timer)
    runner.close()
    with Restorer(model, backend=backend, threads=threads, device=device) as restorer:
        labels = Labels(restorer.backend, restorer.spec.name, precision)
        image = fit(picture)
        mask = np.zeros(picture, np.uint8)
        side = round((hole * picture[0] * picture[1]) ** 0.5)
        y, x = ((s - side) // 2 for s in picture)
        mask[y : y + side, x : x + side] = 1
        host = bench_host(restorer, image, mask, labels, timer=timer)
        rng = np.random.default_rng(0)
        noisy = [add_noise(fit(frame), 15, rng) for _ in range(4)]
        n = 5 + max(10, int(seconds * host.fps)) if host.fps else 15
        video = (noisy[i % 4] for i in range(min(n, 60)))
        frames = bench_frames(lambda it: restorer.video(it), video, labels)
    return [whole, host, frames]


def _compare(a: str, b: str) -> None:
    from fastrestore.bench import compare

    reports = []
    for name in (a, b):
        try:
            reports.append(json.loads(Path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as e:
            raise InputError(f"{name}: not a report of `fastrestore bench --output` ({e})") from e
    for row in compare(reports[0], reports[1]):
        a, b = ("-" if p is None else f"{p:.1f}" for p in (row.p50_a_ms, row.p50_b_ms))
        by = "" if row.ratio is None else f" x{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})"
        click.echo(f"{row.run}: {row.verdict}, p50 {a} -> {b} ms{by}")
