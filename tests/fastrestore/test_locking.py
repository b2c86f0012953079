"""A lock between processes: one holds it, the others wait or are refused, and a death frees it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastrestore import locking
from fastrestore.errors import InputError, OutputError
from fastrestore.locking import lock

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., "subprocess.Popen[str]"]
HOLD = """
import sys
from fastrestore.locking import lock
with lock(sys.argv[1], lambda: print("waits", flush=True)):
    print("holds", flush=True)
    sys.stdin.read(1)
"""
COUNT = """
import sys, time
from pathlib import Path
from fastrestore.locking import lock
file = Path(sys.argv[2])
for _ in range(25):
    with lock(sys.argv[1]):
        n = int(file.read_text())
        time.sleep(0.0005)
        file.write_text(str(n + 1))
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program in a process of its own, which does not outlive the test."""
    running: list[subprocess.Popen[str]] = []

    def run(code: str, *args: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("x")
    process.stdin.flush()


def refuse() -> None:
    raise InputError("taken")


def is_free(path: Path) -> bool:
    try:
        with lock(path, refuse):
            return True
    except InputError:
        return False


def test_one_holds_it_and_the_other_waits(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "l"
    first = start(HOLD, path)
    assert line(first) == "holds"
    second = start(HOLD, path)
    assert line(second) == "waits"
    assert not is_free(path)
    let_go(first)
    assert line(second) == "holds"
    assert not is_free(path)
    let_go(second)
    assert (first.wait(5), second.wait(5)) == (0, 0)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_killed_process_lets_it_go(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "l"
    first = start(HOLD, path)
    assert line(first) == "holds"
    second = start(HOLD, path)
    assert line(second) == "waits"
    first.send_signal(signal.SIGKILL)
    assert line(second) == "holds"
    second.send_signal(signal.SIGKILL)
    second.wait(5)
    assert path.exists()  # nobody was left to remove it
    assert is_free(path)
    assert not path.exists()


def test_processes_never_hold_it_together(tmp_path: Path, start: Start) -> None:
    """The file is removed and made anew all the time, which must not make two locks of one."""
    counter = tmp_path / "n"
    counter.write_text("0")
    processes = [start(COUNT, tmp_path / "l", counter) for _ in range(3)]
    assert [p.wait(30) for p in processes] == [0, 0, 0]
    assert counter.read_text() == "75"


def test_threads_never_hold_it_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "POLL_S", 0.001)
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with lock(tmp_path / "l"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert most == 1


def test_a_holder_of_a_file_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    """Who opened the file before its holder removed it must look again."""
    path = tmp_path / "l"
    with lock(path):
        stale = os.open(path, os.O_RDWR)
    try:
        locking._try(stale)
        assert not locking._is_current(stale, path)
        with lock(path, refuse):  # the stale one is in nobody's way
            assert not locking._is_current(stale, path)
    finally:
        os.close(stale)


def test_waiting_is_said_once_and_not_without_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[int] = []
    with lock(tmp_path / "l", lambda: said.append(1)):
        assert said == []
    held = lock(tmp_path / "l")
    held.__enter__()
    naps = iter(range(3))

    def nap(seconds: float) -> None:
        assert seconds == locking.POLL_S
        if next(naps) == 2:
            held.__exit__(None, None, None)

    monkeypatch.setattr(locking.time, "sleep", nap)
    with lock(tmp_path / "l", lambda: said.append(1)):
        assert said == [1]


def test_an_error_inside_lets_it_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "l"):
        raise ZeroDivisionError
    assert is_free(tmp_path / "l")
    assert os.listdir(tmp_path) == []


def test_its_folder_is_made(tmp_path: Path) -> None:
    with lock(tmp_path / "a" / "b" / "l"):
        assert (tmp_path / "a" / "b" / "l").is_file()


def test_a_folder_that_went_away_is_no_error(tmp_path: Path) -> None:
    with lock(tmp_path / "a" / "l"):
        (tmp_path / "a" / "l").unlink()
        (tmp_path / "a").rmdir()


def refused(path: Path) -> str:
    with pytest.raises(OutputError) as e, lock(path):
        pass
    text = str(e.value)
    assert "\n" not in text
    assert "choose" in text
    return text


def test_a_lock_that_cannot_be_made_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be made" in refused(tmp_path / "file" / "l")
    (tmp_path / "folder").mkdir()
    assert "no lock can be made" in refused(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert "no lock can be made" in refused(tmp_path / "link")

    def fail(fd: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking, "_try", fail)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert "knows no locks" in refused(tmp_path / "l")
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
