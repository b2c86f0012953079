"""Level `pipeline`: a clip from file to file, decode -> restore -> encode, in frames a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.bench.host import Host
from fastrestore.bench.power import PowerLog, Span
from fastrestore.bench.quiet import Watch
from fastrestore.bench.record import Labels, Run
from fastrestore.bench.scene import SIGMA, photo
from fastrestore.bench.timing import Clock, Samples
from fastrestore.degrade import add_noise
from fastrestore.errors import InputError
from fastrestore.video import restore_video
from fastrestore.video_probe import MAX_PIXELS, open_video

WARM_UP = 3  # frames of a pass that are not counted: the first fill the queues
ROUNDS = 2
FRAMES = (8, 96)  # fewest and most, where nobody says how many
SHORT_S = 1.0  # a pass in which filling and emptying the encoder counts too much
STEP_PX = 2  # that the made clip moves from frame to frame


@dataclass(frozen=True, slots=True)
class Clip:
    """What is restored.

    Attributes:
        path: The file.
        name: In the report.
        frames: In the file.
    """

    path: Path
    name: str
    frames: int


@contextmanager
def clip(height: int, width: int, frames: int, source: str | None = None) -> Iterator[Clip]:
    """Make a noisy clip, or cut the beginning of a real one off by packet copy.

    Args:
        height: Of the made one, px.
        width: Likewise.
        frames: At most.
        source: A real clip; None = make one.

    Raises:
        InputError: Fewer frames than are needed, or no clip.
    """
    if frames <= WARM_UP:
        raise InputError(f"--frames {frames}: {WARM_UP} are warm-up; take more")
    with TemporaryDirectory(prefix="fastrestore-bench-") as folder:
        if source is None:
            path = Path(folder) / "made.mkv"
            _write(path, height, width, frames)
            yield Clip(path, f"made {frames} frames", frames)
            return
        path = Path(folder) / "cut.mkv"
        found = _cut(source, path, frames)
        if found <= WARM_UP:
            raise InputError(f"{label(source)}: {found} frames, {WARM_UP} are warm-up; take more")
        yield Clip(path, f"{Path(source).name} {found} frames", found)


def size_of(source: str) -> tuple[int, int]:
    """Return height and width of a clip, as it is stored.

    Raises:
        InputError: It is none.
    """
    container, video = open_video(source, MAX_PIXELS)
    with container:
        return video.height, video.width


def fitting_frames(
    hosts: Sequence[Host],
    height: int,
    width: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Return how many frames the slowest restores in a time, within `FRAMES`."""
    # without noise there would be nothing to restore
    frame = add_noise(photo(height, width), SIGMA, np.random.default_rng(0))
    slowest = 0.0
    for host in hosts:
        for _ in range(2):  # the first also prepares
            before = clock()
            host.restorers[0].frame(frame)
            took = clock() - before
        slowest = max(slowest, took)
    least, most = FRAMES
    return WARM_UP + max(least, min(most, int(seconds / max(slowest, 1e-9))))


@dataclass(slots=True)
class Passes:
    """What one subject did in all its passes; times of frames in s."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    restoring_s: float = 0.0
    whole_s: float = 0.0
    frames: int = 0
    shape: tuple[int, ...] = ()


def measure_clip(
    hosts: Sequence[Host],
    made: Clip,
    rounds: int = ROUNDS,
    *,
    watch: Watch | None = None,
    power: PowerLog | None = None,
    clock: Clock | None = None,
) -> list[Run]:
    """Restore a clip with each model in turn and return a line for each.

    Args:
        hosts: Each with one stream.
        made: The clip.
        rounds: Passes of each.
        watch: Looks at the machine after every pass.
        power: Runs meanwhile.
        clock: Replaced in tests.

    Raises:
        FastRestoreError: See `restore_video`.
    """
    passes = [Passes() for _ in hosts]
    for _ in range(rounds):
        for host, one in zip(hosts, passes, strict=True):
            _pass(host, made, one, clock or Clock())
            if watch is not None:
                watch.look()
    return [_run(host, made, one, power) for host, one in zip(hosts, passes, strict=True)]


def _run(host: Host, made: Clip, done: Passes, power: PowerLog | None) -> Run:
    labels = Labels(host.backend, host.name, host.precision, made.name)
    samples = Samples(
        1e3 * np.asarray(done.wall_s), 1e3 * np.asarray(done.cpu_s), tuple(done.turns)
    )
    rate = done.frames / done.whole_s
    share = done.restoring_s / sum(done.wall_s)  # from frame to frame, without the end
    bound = "the network" if share > 0.85 else "the decoder or the encoder"
    notes = [f"restoring takes {share:.0%} of the time, the limit is {bound}"]
    if done.whole_s < SHORT_S * len(done.turns):
        notes.append(f"a pass took less than {SHORT_S:g} s; take more --frames")
    return Run(
        "pipeline",
        labels,
        done.shape,
        samples,
        1,
        rate,
        sha256=host.sha256,
        power=power.summary(done.spans, 1 / rate) if power else (),
        notes=notes,
    )


def _pass(host: Host, made: Clip, done: Passes, clock: Clock) -> None:
    """Restore the clip once. Frames a second count until the file is closed."""
    restorer = host.restorers[0]
    restorer.reset()
    wall, cpu = np.empty(made.frames + 1), np.empty(made.frames + 1)
    wall[0], cpu[0] = clock.wall(), clock.cpu()
    seen = 0

    def restore(frame: U8) -> U8:
        done.shape = frame.shape
        before = clock.wall()
        restored = restorer.frame(frame)
        if seen >= WARM_UP:
            done.restoring_s += clock.wall() - before
        return restored

    def progress(count: int, _total: int | None, _fps: float) -> None:
        nonlocal seen
        if count <= made.frames:
            wall[count], cpu[count] = clock.wall(), clock.cpu()
        seen = count

    target = made.path.with_name("restored.mkv")
    restore_video(made.path, target, restore, overwrite=True, progress=progress)
    end = clock.wall()
    if seen != made.frames:
        raise InputError(f"{made.name}: {seen} frames came out; take a clip that is whole")
    counted = slice(WARM_UP, made.frames + 1)
    done.wall_s += np.diff(wall[counted]).tolist()
    done.cpu_s += np.diff(cpu[counted]).tolist()
    done.turns.append(made.frames - WARM_UP)
    done.spans.append((float(wall[0]), end))
    done.whole_s += end - float(wall[WARM_UP])
    done.frames += made.frames - WARM_UP


def _write(path: Path, height: int, width: int, frames: int) -> None:
    """Write a photograph that moves, with fresh noise in every frame, as H.264."""
    import av

    still = photo(height, width + STEP_PX * frames)
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(30), options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            shown = still[:, STEP_PX * i : STEP_PX * i + width]
            noisy = add_noise(np.ascontiguousarray(shown), SIGMA, rng)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
        out.mux(stream.encode(None))


def _cut(source: str, path: Path, frames: int) -> int:
    """Copy the packets of a clip's first frames; return how many of them decode."""
    import av

    given, video = open_video(source, MAX_PIXELS)
    try:
        with given, av.open(str(path), "w") as out:
            copy = out.add_stream_from_template(video)
            for packet in islice((p for p in given.demux(video) if p.size), frames):
                packet.stream = copy
                out.mux(packet)
        with av.open(str(path)) as cut:  # the last packets may need frames that were cut off
            return sum(1 for _ in cut.decode(video=0))
    except (av.error.FFmpegError, OSError, ValueError) as e:
        raise InputError(f"{label(source)}: cannot be cut ({e}); give a clip that plays") from e
