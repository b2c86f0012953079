"""Ask other programs and native libraries without being hung, killed or asked back by them.

What loads a native library is run in a process of its own (`native.py`), with this process's
import path: a library that crashes or never returns is then an answer like any other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path("/")
COMMAND_S = 2.0
# The first start of a GPU that nothing keeps awake, or TensorRT from a cold memory card, takes
# several seconds and is no fault.
LOAD_S = 10.0
_GRACE_S = 0.5  # a process that waits for its driver does not even die when it is killed
_SYSTEM = ("/usr/sbin", "/sbin")  # ldconfig is there, and not on every user's PATH
# `-c` would put the current folder first, and whatever lies there would be imported.
_START = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program wrote.

    Attributes:
        text: To its standard output; empty if it failed.
        problem: Why there is no answer, a few words; empty if there is one.
    """

    text: str
    problem: str = ""


def ask(command: Sequence[str], limit_s: float | None = None) -> Answer:
    """Run a program that answers without being asked for anything, for a limited time.

    Args:
        command: Program, looked up in PATH and where the system keeps its own, and arguments.
        limit_s: Wall time; None = `COMMAND_S`.
    """
    seconds = COMMAND_S if limit_s is None else limit_s
    program = find(command[0])
    if program is None:
        return Answer("", "not found")
    try:
        process = subprocess.Popen(  # noqa: S603  # no shell; the callers' own words
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=os.name == "posix",
        )
    except OSError as e:
        return Answer("", f"cannot be started: {e.strerror}")
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return Answer("", f"no answer in {seconds:g} s")
    if process.returncode < 0:
        return Answer("", f"crashed ({_signal(-process.returncode)})")
    if process.returncode:
        last = err.decode(errors="replace").strip().split("\n")[-1]
        return Answer("", f"exit code {process.returncode}" + (f": {last}" if last else ""))
    return Answer(out.decode(errors="replace"))


def find(program: str) -> str | None:
    """Return where a program is, None without one."""
    places = [p for p in os.environ.get("PATH", os.defpath).split(os.pathsep) if p]
    return shutil.which(program, path=os.pathsep.join([*places, *_SYSTEM]))


def ask_native(what: str) -> dict[str, Any]:
    """Return what `native.py` says of a thing.

    Returns:
        Its facts; or `error`, what the thing raised; or `lost`: it crashed or never answered.
    """
    script = Path(__file__).with_name("native.py")
    answer = ask([sys.executable, "-c", _START, str(script), what, *sys.path], LOAD_S)
    if answer.problem:
        return {"lost": answer.problem}
    for line in reversed(answer.text.splitlines()):  # libraries may write there as well
        if line.startswith("{"):
            facts: dict[str, Any] = json.loads(line)
            return facts
    return {"lost": "ended without an answer"}


def read(path: Path) -> str:
    """Return a small text file, empty if there is none or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and what it started; one that cannot be killed is left alone."""
    with suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_GRACE_S)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
