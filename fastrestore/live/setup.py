"""What `fastrestore live` opens before it runs: streams, models, and what can give way."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fastrestore.atomic import label
from fastrestore.errors import EngineError, InputError
from fastrestore.frame_masks import open_masks
from fastrestore.images import is_picture
from fastrestore.live.addresses import masked, scheme
from fastrestore.live.frame import Source
from fastrestore.live.policy import STEPS, Ladder, Step
from fastrestore.live.returning import ReturningSource
from fastrestore.live.sinks import open_sink
from fastrestore.live.sources import open_source
from fastrestore.live.stream import Stream
from fastrestore.restore import Restorer

if TYPE_CHECKING:
    from fastrestore.batch import Options
    from fastrestore.detect import Detector

SMALL = "nano"  # what the step `preset` goes down to


@dataclass(frozen=True, slots=True)
class Ends:
    """How sources and sinks are opened.

    Attributes:
        source: Keyword arguments of `open_source`.
        sink: Keyword arguments of `open_sink` but `rate`.
        newest: The newest frame wins; None = as each source says.
        reconnect: A live source that was lost is opened again.
    """

    source: dict[str, Any]
    sink: dict[str, Any]
    newest: bool | None = None
    reconnect: bool = True


def pair(sources: Sequence[str], sinks: Sequence[str]) -> list[tuple[str, str]]:
    """Return each source with its sink; one source alone goes to stdout.

    Raises:
        InputError: Their numbers differ, one has no name, or two would share a pipe or a file.
    """
    if not all(sources) or not all(sinks):
        raise InputError("a --source or --sink has no name; give it one, or leave it away")
    given = list(sinks) or ["-"] * (len(sources) == 1)
    if len(given) != len(sources):
        raise InputError(
            f"{len(sources)} sources and {len(given)} sinks: give one --sink for each --source"
        )
    for what, names in (("source", list(sources)), ("sink", given)):
        single = [n if n == "-" else os.path.realpath(n) for n in names if n != "none"]
        twice = {n for n in single if single.count(n) > 1}
        if twice and (what == "sink" or "-" in twice):
            raise InputError(f"one --{what} is named twice; every stream needs its own")
    for source, sink in zip(sources, given, strict=True):
        if _is_same(source, sink):
            name = masked(source) if scheme(source) else label(source)
            raise InputError(f"{name}: would be written to while it is read; name another --sink")
    return list(zip(sources, given, strict=True))


def _is_same(source: str, sink: str) -> bool:
    """Tell whether a sink would write what its source reads."""
    if "-" in (source, sink):
        return False
    if os.path.isdir(source) and is_picture(sink):
        sink = os.path.dirname(sink) or "."
    return source == sink or (
        os.path.exists(sink) and os.path.realpath(source) == os.path.realpath(sink)
    )


def open_streams(
    pairs: Sequence[tuple[str, str]],
    ends: Ends,
    options: Options,
    detector: Detector | None,
    stack: ExitStack,
) -> list[Stream]:
    """Open the sources, and prepare the sinks.

    Args:
        pairs: Source and sink of each stream.
        ends: How they are opened.
        options: The mask.
        detector: What finds the damage; needed for the mask `auto` only.
        stack: Closes what was opened.

    Raises:
        InputError: A source that cannot be opened.
        OutputError: A sink that cannot be written.
    """
    streams = []
    for source_name, sink_name in pairs:
        reopen = partial(open_source, source_name, **ends.source)
        source: Source = reopen()
        if source.live and ends.reconnect:
            source = ReturningSource(source, reopen)
        stack.callback(source.close)
        sink = open_sink(sink_name, rate=partial(getattr, source, "rate"), **ends.sink)
        masks = partial(open_masks, source.name, options=options, detector=detector)
        streams.append(
            Stream(source, sink, newest=ends.newest, open_masks=masks if options.mask else None)
        )
    return streams


def open_ladder(
    budget_ms: float,
    wanted: Sequence[Step] | None,
    streams: Sequence[Stream],
    options: Options,
    restorer: Restorer,
    open_small: Callable[[], Restorer] | None,
) -> tuple[Ladder, Restorer | None, str]:
    """Find out what can give way when frames are late.

    Args:
        budget_ms: Time of a frame.
        wanted: Steps in order; None = all that are possible.
        streams: What runs.
        options: Mask and noise.
        restorer: What restores.
        open_small: Loads the smaller model on the same backend; None: the model is the user's own.

    Returns:
        The ladder, the smaller model if it is one of the steps, and a sentence that says which.

    Raises:
        InputError: A step is wanted that is not possible here.
        EngineError: The smaller model is wanted, and no engine of it fits.
    """
    cannot: dict[Step, str] = {}
    if open_small is None or restorer.spec.preset == SMALL:
        cannot["preset"] = f"there is no smaller model in place of {restorer.spec.name}"
    if not options.mask:
        cannot["box"] = "there is no mask"
    elif not options.sigma:
        cannot["box"] = "without --clean only the damage is restored anyway"
    if not any(s.newest for s in streams):
        cannot["skip"] = "every frame is kept"
    for step in wanted or ():
        if step in cannot:
            raise InputError(f"--when-late {step}: {cannot[step]}; leave it away")
    steps = [s for s in wanted or STEPS if s not in cannot]
    small = None
    if open_small is not None and "preset" in steps:
        try:
            small = open_small()
        except EngineError:
            if wanted:
                raise
            steps.remove("preset")
    gives = ", then ".join(steps) or "nothing"
    return Ladder(budget_ms / 1e3, steps), small, f"budget {budget_ms:g} ms; may give way: {gives}"
