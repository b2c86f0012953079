"""What is to be measured: the options of `fastrestore bench`, as a report keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from fastrestore.bench.record import Level, Scenario
from fastrestore.bench.scene import Task
from fastrestore.errors import InputError

LEVELS: tuple[Level, ...] = get_args(Level)
TASKS: tuple[Task, ...] = get_args(Task)
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
MAX_PIXELS = 2**26


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured; sizes are WIDTHxHEIGHT.

    Attributes:
        models: Names or files.
        backends: Of `open_backend`; empty = all that run here.
        threads: CPU threads; None = all usable.
        device: CUDA device.
        levels: Of the report.
        sizes: Of pictures, levels `engine` and `host`.
        batches: Pictures in one call, level `engine`.
        tasks: Level `host`.
        hole: Share of the picture, task `fill`.
        scenarios: Level `host`.
        streams: Pictures restored at the same time, level `host`; 0 = as the scenario has it.
        clip: A real clip for level `pipeline`; None = a made one.
        video_size: Of the made one.
        frames: Of either; 0 = as many as go in `seconds`.
        rivals: Names or ONNX files.
        adapters: For the files.
        rival_provider: `cpu` or `cuda`.
        seconds: For each subject at each point.
        rounds: Turns of each.
    """

    models: Sequence[str] = ("tiny",)
    backends: Sequence[str] = ()
    threads: int | None = None
    device: int = 0
    levels: Sequence[Level] = LEVELS
    sizes: Sequence[str] = ("512x512",)
    batches: Sequence[int] = (1,)
    tasks: Sequence[Task] = TASKS
    hole: float = 0.05
    scenarios: Sequence[Scenario] = ("single-stream",)
    streams: int = 0
    clip: str | None = None
    video_size: str = "1280x720"
    frames: int = 0
    rivals: Sequence[str] = ()
    adapters: Sequence[str] = ()
    rival_provider: str = "cpu"
    seconds: float = 3.0
    rounds: int = 10

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any], name: str) -> Plan:
        """Read what `to_dict` wrote.

        Args:
            options: Of a report.
            name: The report's, for messages.

        Raises:
            InputError: It is none.
        """
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in options.items()
        }
        odd = [k for k, v in given.items() if k not in _KINDS or not _KINDS[k](v)]
        if odd:
            raise InputError(f"{name}: options: {', '.join(odd)}: cannot be repeated; make it anew")
        plan = cls(**given)
        plan.check()
        return plan

    def check(self) -> None:
        """Refuse what cannot be measured, before anything is.

        Raises:
            InputError: A size that is none.
        """
        for size in (*self.sizes, self.video_size):
            pixels(size)

    def streams_of(self, scenario: Scenario) -> int:
        """Return how many pictures a scenario restores at the same time."""
        if scenario == "single-stream":
            return 1
        if self.streams:
            return self.streams
        return 8 if scenario == "multi-stream" else 1


def _all(kind: type, *allowed: object) -> Callable[[Any], bool]:
    """Return what tells a tuple of one kind, of the allowed values if there are any."""
    return lambda v: (
        isinstance(v, tuple) and all(type(x) is kind and (not allowed or x in allowed) for x in v)
    )


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda v: type(v) in kinds


_TEXTS = _all(str)
_KINDS: dict[str, Callable[[Any], bool]] = {
    "models": _TEXTS,
    "backends": _TEXTS,
    "threads": _is(int, type(None)),
    "device": _is(int),
    "levels": _all(str, *LEVELS),
    "sizes": _TEXTS,
    "batches": _all(int),
    "tasks": _all(str, *TASKS),
    "hole": _is(float),
    "scenarios": _all(str, *SCENARIOS),
    "streams": _is(int),
    "clip": _is(str, type(None)),
    "video_size": _is(str),
    "frames": _is(int),
    "rivals": _TEXTS,
    "adapters": _TEXTS,
    "rival_provider": lambda v: v in ("cpu", "cuda"),
    "seconds": _is(int, float),
    "rounds": _is(int),
}


def pixels(text: str) -> tuple[int, int]:
    """Return height and width of WIDTHxHEIGHT.

    Raises:
        InputError: It is no such text, or too small or too large.
    """
    try:
        w, h = (int(v) for v in text.lower().split("x"))
    except ValueError:
        raise InputError(f"size {text}: write it as WIDTHxHEIGHT, for example 512x512") from None
    if min(w, h) < 16 or w * h > MAX_PIXELS:
        raise InputError(f"size {text}: must be from 16x16 to 64 megapixels")
    return h, w
