"""Two levels, a guess of the time left, and the word that ends a build."""

from __future__ import annotations

import io
from typing import Any

import pytest

from fastrestore.export.progress import BarDisplay, LineDisplay, Progress, Shown, open_display

STEPS = "Computing reformatting costs"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Seen:
    def __init__(self) -> None:
        self.shown: list[Shown] = []

    def show(self, shown: Shown) -> None:
        self.shown.append(shown)


def test_root_and_leaf() -> None:
    progress = Progress()
    assert progress.shown() is None
    progress.phase_start("Building engine", None, 6)
    progress.step_complete("Building engine", 0)
    progress.phase_start("Timing tactics", "Building engine", 4)
    progress.step_complete("Timing tactics", 1)
    shown = progress.shown()
    assert shown is not None
    assert (shown.root_step, shown.root_steps) == (2, 6)
    assert (shown.leaf, shown.leaf_step, shown.leaf_steps) == ("Timing tactics", 2, 4)
    assert shown.fraction == pytest.approx(1 / 6 + 2 / 4 / 6)
    assert shown.text() == "2/6 Timing tactics 2/4"


def test_names_that_repeat_end_the_innermost() -> None:
    progress = Progress()
    progress.phase_start("root", None, 2)
    progress.phase_start(STEPS, "root", 3)
    progress.phase_start(STEPS, STEPS, 5)
    progress.step_complete(STEPS, 3)
    progress.phase_finish(STEPS)
    shown = progress.shown()
    assert shown is not None
    assert (shown.leaf, shown.leaf_step, shown.leaf_steps) == (STEPS, 0, 3)


def test_the_fraction_never_falls() -> None:
    seen = Seen()
    progress = Progress(seen)
    progress.phase_start("root", None, 2)
    progress.phase_start("leaf", "root", 4)
    for i in range(4):
        progress.step_complete("leaf", i)
    progress.phase_finish("leaf")  # the root's own step is not yet told
    progress.step_complete("root", 0)
    fractions = [s.fraction for s in seen.shown]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 0.5


def test_time_left_follows_the_fraction() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    progress.phase_start("root", None, 4)
    clock.now += 0.5
    progress.step_complete("root", 0)
    assert progress.shown().eta_s is None  # type: ignore[union-attr]
    clock.now += 9.5
    shown = progress.shown()
    assert shown is not None
    assert shown.eta_s == pytest.approx(30.0)
    assert shown.text() == "2/4, 30 s left"
    clock.now += 990
    assert progress.shown().text() == "2/4, 50 min 00 s left"  # type: ignore[union-attr]


def test_cancel_ends_it_at_the_next_step() -> None:
    progress = Progress()
    progress.phase_start("root", None, 4)
    assert progress.step_complete("root", 0)
    progress.cancel()
    assert not progress.step_complete("root", 1)
    assert progress.is_cancelled


def test_a_display_that_fails_ends_the_build_and_is_kept() -> None:
    class Broken:
        def show(self, shown: Shown) -> None:
            raise OSError("terminal gone")

    progress = Progress(Broken())
    progress.phase_start("root", None, 4)
    assert not progress.step_complete("root", 0)
    assert str(progress.failure) == "terminal gone"


def test_lines_come_by_step_and_by_time() -> None:
    clock, lines = Clock(), list[str]()
    progress = Progress(LineDisplay("tiny", lines.append, clock), clock)
    progress.phase_start("root", None, 2)
    progress.phase_start("leaf", "root", 100)
    for i in range(50):
        clock.now += 0.5
        progress.step_complete("leaf", i)
    progress.step_complete("root", 0)
    assert [line.split(",")[0] for line in lines] == [
        "tiny: root 1/2",
        "tiny: root 1/2 leaf 20/100",
        "tiny: root 1/2 leaf 40/100",
        "tiny: root 2/2 leaf 50/100",
    ]


def test_bars_show_both_levels() -> None:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TextColumn

    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    words = ("{task.description}", "{task.fields[figures]}")
    bars = Bars(*(TextColumn(w, markup=False) for w in words), console=console)
    progress = Progress(BarDisplay("tiny fp16", bars))
    progress.phase_start("root", None, 6)
    progress.phase_start("[leaf]", "root", 10)
    whole, leaf = bars.tasks
    assert whole.fields["figures"] == "1/6"
    BarDisplay.show(_display(progress), _shown("[leaf]", 4, 10))
    assert (leaf.description, leaf.completed, leaf.total) == ("  [leaf]", 4, 10)
    assert leaf.visible


def _display(progress: Progress) -> Any:
    display: Any = progress._display
    display._last = 0.0  # redraw at once
    return display


def _shown(leaf: str, step: int, steps: int) -> Shown:
    return Shown("root", 1, 6, leaf, step, steps, 0.1, 1.0, None)


def test_no_terminal_means_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with open_display("tiny", lines.append) as display:
        assert isinstance(display, LineDisplay)
    with open_display("tiny", lines.append, quiet=True) as display:
        assert display is None
