"""What gives way when restoring takes longer than it may: one step after the other, and back."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from fastrestore.errors import InputError

Step = Literal["preset", "box", "skip"]
STEPS: tuple[Step, ...] = get_args(Step)

WINDOW = 8  # frames that decide; the slower half of them must agree
ROOM = 0.6  # of the budget: a step is taken back where so little is enough
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 300.0  # before a step is taken back; doubled when that failed
FRESH = 1.1  # of the time to restore: a frame is fresh while its age adds no more
MOST_SKIPPED = 3  # in succession: even a late picture is better than none

_MEANING = {
    "preset": "the smaller model restores",
    "box": "only the damage is restored, noise stays",
    "skip": "frames that would be late are dropped",
}


def parse_steps(text: str) -> tuple[Step, ...]:
    """Read the steps of `--when-late`, separated by commas.

    Raises:
        InputError: A step that is not known, or named twice.
    """
    names = [s.strip() for s in text.split(",") if s.strip()]
    steps = tuple(step for name in names for step in STEPS if step == name)
    if len(steps) != len(names) or len(set(steps)) != len(steps) or not steps:
        raise InputError(f"--when-late {text!r}: name some of {','.join(STEPS)}, each once")
    return steps


class Ladder:
    """Keeps the time of a frame within a budget, by steps that are taken in order.

    A step is taken when more than half of the last frames were late. It is taken back when they
    would have fitted into a part of the budget for a while; where it then has to be taken again at
    once, that while is doubled: it does not flap.
    """

    def __init__(
        self,
        budget_s: float,
        steps: Sequence[Step],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with no step taken.

        Args:
            budget_s: Seconds that a frame may take.
            steps: Those that can be taken, first to last.
            clock: Seconds; moves on only.
        """
        self._budget, self._steps, self._clock = budget_s, tuple(steps), clock
        self._taken = 0
        self._times: deque[float] = deque(maxlen=WINDOW)
        self._works: deque[float] = deque(maxlen=WINDOW)
        self._wait = FIRST_WAIT_S
        self._easy_since: float | None = None
        self._returned: float | None = None  # when a step was taken back last
        self._hopeless = False

    @property
    def taken(self) -> tuple[Step, ...]:
        """The steps in force."""
        return self._steps[: self._taken]

    def skips(self, age: float, skipped: int) -> bool:
        """Tell whether a frame is to be dropped, because restored it would be late.

        Where not even a fresh frame is in time, fresh ones are restored and others dropped.

        Args:
            age: Seconds that it has waited.
            skipped: Frames of its stream dropped so since the last one that was restored.
        """
        if "skip" not in self.taken or not self._works or skipped >= MOST_SKIPPED:
            return False
        work = statistics.median(self._works)
        if age + work <= max(self._budget, FRESH * work):
            return False
        self._times.append(age + work)
        return True

    def record(self, age: float, work: float) -> str | None:
        """Take note of a restored frame; return a sentence where a step was taken or taken back.

        Args:
            age: Seconds that it had waited before.
            work: Seconds that it took to restore.
        """
        self._works.append(work)
        self._times.append(age + work)
        if len(self._times) < WINDOW:
            return None
        typical = statistics.median(self._times)
        if typical > self._budget:
            return self._down(typical)
        self._hopeless = False
        if typical > ROOM * self._budget or not self._taken:
            self._easy_since = None
            return None
        return self._up(typical)

    def _down(self, typical: float) -> str | None:
        self._easy_since = None
        late = f"{1e3 * typical:.0f} ms a frame, {1e3 * self._budget:.0f} allowed"
        if self._taken == len(self._steps):
            if self._hopeless:
                return None
            self._hopeless = True
            return f"late: {late}, and nothing more can give way; use a smaller picture or model"
        now = self._clock()
        if self._returned is not None and now - self._returned < self._wait:
            self._wait = min(2 * self._wait, LONGEST_WAIT_S)
        else:
            self._wait = FIRST_WAIT_S
        self._returned = None
        self._taken += 1
        self._forget()
        step = self._steps[self._taken - 1]
        return f"late: {late}; {step}: {_MEANING[step]}"

    def _up(self, typical: float) -> str | None:
        now = self._clock()
        if self._easy_since is None:
            self._easy_since = now
        if now - self._easy_since < self._wait:
            return None
        step = self._steps[self._taken - 1]
        self._taken -= 1
        self._returned = now
        self._forget()
        return f"in time again: {1e3 * typical:.0f} ms a frame; {step} is taken back"

    def _forget(self) -> None:
        """Judge the new step by its own frames."""
        self._times.clear()
        self._works.clear()
        self._easy_since = None
        self._hopeless = False
