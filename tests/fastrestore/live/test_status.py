"""The status line: in a terminal, in a log, as JSON."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from fastrestore.errors import InputError
from fastrestore.live.stats import Figures
from fastrestore.live.status import JSON_S, LOG_S, TERMINAL_S, Status
from tests.fastrestore.live.fakes import Clock

F = Figures(
    seconds=10.0,
    frames=250,
    fps=25.0,
    wait_p99=5.0,
    wait_max=6.0,
    work_p50=20.0,
    p50=21.4,
    p99=33.6,
    jitter=2.0,
    dropped=7,
    skipped=0,
    lost=0,
    queue=1,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "as_json", "every"),
    [(Terminal(), False, TERMINAL_S), (io.StringIO(), False, LOG_S), (Terminal(), True, JSON_S)],
)
def test_a_line_is_due_at_its_interval(stream: io.StringIO, as_json: bool, every: float) -> None:
    clock = Clock()
    status = Status(as_json=as_json, stream=stream, clock=clock)
    assert not status.due()
    clock.now += 0.99 * every
    assert not status.due()
    clock.now += 0.02 * every
    assert status.due()
    assert not status.due()


def test_a_log_gets_whole_lines() -> None:
    out = io.StringIO()
    Status(stream=out).show([("0 -> stdout", F)], "tiny on ort")
    line = "25.0 fps, p50 21 ms, p99 34 ms, 7 dropped, queue 1 | tiny on ort\n"
    assert out.getvalue() == line


def test_a_terminal_gets_one_line_that_notes_push_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal()
    status = Status(stream=out)
    status.show([("in", F)], "tiny on ort")
    status.note("camera: is back")
    shown = "25.0 fps, p50 21 ms, p99 34 ms, 7 dropped, queue 1"[:39]
    assert out.getvalue() == f"\r{shown}\x1b[K\r\x1b[Kfastrestore: camera: is back\n"


def test_several_streams_share_the_line() -> None:
    out = io.StringIO()
    other = replace(F, fps=10.0, p99=80.0, skipped=2, lost=1)
    Status(stream=out).show([("a", F), ("b", other)], "nano on ort")
    assert out.getvalue() == (
        "a 25.0 fps | b 10.0 fps, p99 80 ms, 17 dropped, queue 2 | nano on ort\n"
    )


def test_quiet_lets_errors_through_alone() -> None:
    out, clock = io.StringIO(), Clock()
    status = Status(quiet=True, stream=out, clock=clock)
    status.due()
    clock.now += 100
    assert not status.due()
    status.note("nothing")
    status.summary([("a", F, None)], "nano on ort")
    status.error(InputError("a: broken"))
    assert out.getvalue() == "fastrestore: a: broken\n"


def test_json_is_one_object_a_line() -> None:
    out = io.StringIO()
    status = Status(as_json=True, stream=out)
    status.show([("a", F)], "nano on ort")
    status.note("a\nb")
    status.error(InputError("a: broken"))
    status.summary([("a", F, InputError("a: broken"))], "nano on ort")
    shown, note, error, summary = (json.loads(line) for line in out.getvalue().splitlines())
    assert shown["streams"][0] == {"stream": "a", **F.to_json()}
    assert note == {"event": "note", "message": "a\nb"}
    assert error == {"event": "error", "code": 3, "message": "a: broken"}
    assert summary["streams"][0]["error"] == {"code": 3, "message": "a: broken"}


def test_the_summary_has_a_line_for_each_stream() -> None:
    out = io.StringIO()
    rows = [("a", F, None), ("b", replace(F, p50=None, p99=None, skipped=2, lost=3), None)]
    Status(stream=out).summary(rows, "nano on ort")
    assert out.getvalue().splitlines() == [
        "a: 250 frames in 10.0 s, 25.0 fps, p50 21 ms, p99 34 ms, 7 dropped",
        "b: 250 frames in 10.0 s, 25.0 fps, 7 dropped, 2 skipped, 3 lost before",
    ]


def test_the_summary_leaves_out_what_the_error_says() -> None:
    out = io.StringIO()
    Status(stream=out).summary([("a", replace(F, frames=0), InputError("a: broken"))], "nano")
    assert not out.getvalue()


def test_a_reader_that_has_gone_does_not_end_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    status = Status(stream=Gone())
    status.note("one")
    status.show([("a", F)], "nano")
    monkeypatch.setattr("sys.stderr", None)  # `2>&-`
    Status().note("one")
