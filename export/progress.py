"""How far a build is: two levels and the time left, on a terminal or as lines.

TensorRT reports nested phases whose names repeat ("Computing reformatting costs" a dozen times),
so phases are kept on a stack, never looked up by name alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

ETA_AFTER_S = 1.0  # before that the guess is worth nothing
ETA_FROM = 0.02
REDRAW_S = 0.1
LINE_S = 10.0  # between lines where there is no terminal and no new step


@dataclass(frozen=True, slots=True)
class Shown:
    """What a display shows.

    Attributes:
        root: The outermost phase.
        root_step: Its step at work, from 1.
        root_steps: How many it has.
        leaf: The innermost phase; empty if there is only the root.
        leaf_step: Steps of it that are done.
        leaf_steps: How many it has.
        fraction: Of the whole, 0 to 1; never falls.
        elapsed_s: Since the root began.
        eta_s: Time left; None while it cannot be guessed.
    """

    root: str
    root_step: int
    root_steps: int
    leaf: str
    leaf_step: int
    leaf_steps: int
    fraction: float
    elapsed_s: float
    eta_s: float | None

    def text(self) -> str:
        """Return one line: `2/6 Timing tactics 3/40, 12 s left`."""
        leaf = f" {self.leaf} {self.leaf_step}/{self.leaf_steps}" if self.leaf else ""
        left = "" if self.eta_s is None else f", {_seconds(self.eta_s)} left"
        return f"{self.root_step}/{self.root_steps}{leaf}{left}"


class Display(Protocol):
    """Shows progress; called from the thread that builds."""

    def show(self, shown: Shown) -> None:
        """Show how far it is."""


class _Phase:
    __slots__ = ("done", "name", "parent", "steps")

    def __init__(self, name: str, parent: str | None, steps: int) -> None:
        self.name, self.parent, self.steps, self.done = name, parent, max(1, steps), 0


class Progress:
    """Follows a build, tells a display, and says at every step whether to go on.

    Called from C++, perhaps from several threads. What a display raises ends the build and is kept
    in `failure`: it must not pass through C++.
    """

    def __init__(
        self, display: Display | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.failure: Exception | None = None
        self._display, self._clock = display, clock
        self._lock, self._cancelled = threading.Lock(), threading.Event()
        self._phases: list[_Phase] = []
        self._began, self._fraction = clock(), 0.0

    def cancel(self) -> None:
        """End the build at its next step."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins inside another one."""
        with self._lock:
            if not self._phases:
                self._began, self._fraction = self._clock(), 0.0
            self._phases.append(_Phase(name, parent, steps))
        self._tell()

    def step_complete(self, name: str, step: int) -> bool:
        """A step of a phase is done, the first one is 0. False = end the build."""
        with self._lock:
            phase = self._find(name)
            if phase is not None:
                phase.done = min(step + 1, phase.steps)
        self._tell()
        return not self._cancelled.is_set()

    def phase_finish(self, name: str) -> None:
        """A phase ends."""
        with self._lock:
            phase = self._find(name)
            if phase is not None:
                self._phases.remove(phase)
        self._tell()

    def shown(self) -> Shown | None:
        """Return how far it is; None outside a build."""
        with self._lock:
            if not self._phases:
                return None
            root, leaf = self._phases[0], self._phases[-1]
            self._fraction = max(self._fraction, _fraction(self._phases))
            elapsed, eta = self._clock() - self._began, None
            if elapsed >= ETA_AFTER_S and self._fraction >= ETA_FROM:
                eta = elapsed * (1 - self._fraction) / self._fraction
            step = min(root.done + 1, root.steps)
            inner = ("", 0, 0) if leaf is root else (leaf.name, leaf.done, leaf.steps)
            return Shown(root.name, step, root.steps, *inner, self._fraction, elapsed, eta)

    def _find(self, name: str) -> _Phase | None:
        """Return the innermost phase of a name."""
        return next((p for p in reversed(self._phases) if p.name == name), None)

    def _tell(self) -> None:
        if self._display is None or self._cancelled.is_set():
            return
        shown = self.shown()
        if shown is None:
            return
        try:
            self._display.show(shown)
        except Exception as e:
            self.failure = e
            self._cancelled.set()


def _fraction(phases: list[_Phase]) -> float:
    """Return the part that is done: of each phase, within one step of the one around it."""
    whole, weight = 0.0, 1.0
    for phase in phases:
        whole += weight * phase.done / phase.steps
        if phase.done == phase.steps:
            break
        weight /= phase.steps
    return whole


class LineDisplay:
    """A line at every step of the outermost phase, and every ten seconds: for logs."""

    def __init__(
        self,
        title: str,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._write, self._clock = title, write, clock
        self._step, self._last = 0, clock()

    def show(self, shown: Shown) -> None:
        """See `Display`."""
        now = self._clock()
        if shown.root_step == self._step and now - self._last < LINE_S:
            return
        self._step, self._last = shown.root_step, now
        self._write(f"{self._title}: {shown.root} {shown.text()}")


class BarDisplay:
    """Two bars of rich: the whole, and the phase at work."""

    def __init__(self, title: str, bars: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._bars, self._clock, self._last = bars, clock, 0.0
        self._root = bars.add_task(title, total=1.0, figures="")
        self._leaf = bars.add_task("", total=1, figures="", visible=False)

    def show(self, shown: Shown) -> None:
        """See `Display`."""
        now = self._clock()
        if now - self._last < REDRAW_S and shown.fraction < 1:
            return
        self._last = now
        left = "" if shown.eta_s is None else f", {_seconds(shown.eta_s)} left"
        figures = f"{shown.root_step}/{shown.root_steps}{left}"
        self._bars.update(self._root, completed=shown.fraction, figures=figures)
        self._bars.update(
            self._leaf,
            description=f"  {shown.leaf}",
            total=shown.leaf_steps or 1,
            completed=shown.leaf_step,
            figures=f"{shown.leaf_step}/{shown.leaf_steps}",
            visible=bool(shown.leaf),
        )


@contextmanager
def open_display(
    title: str, write: Callable[[str], None], quiet: bool = False
) -> Iterator[Display | None]:
    """Open bars if stderr is a terminal, else lines.

    Args:
        title: What is built.
        write: Takes a line.
        quiet: No display at all.
    """
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineDisplay(title, write)
        return
    words = "{task.description}", "{task.fields[figures]}"
    columns = (TextColumn(words[0], markup=False), BarColumn(), TextColumn(words[1], markup=False))
    with Bars(*columns, console=console, transient=True) as bars:
        yield BarDisplay(title, bars)


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
