"""Programs and libraries that crash, hang or ask back are answers; nothing waits for them."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastrestore import native, probe
from fastrestore.probe import Answer, ask, ask_native

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-ins are shell scripts")


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(probe, "_SYSTEM", ())
    return folder


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_program_that_answers(bin_folder: Path) -> None:
    script(bin_folder / "tell", 'echo "$1 $LC_ALL"; echo noise >&2')
    assert ask(["tell", "a b"]) == Answer("a b C\n")
    assert ask(["absent"]) == Answer("", "not found")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("echo half; echo first >&2; echo last >&2; exit 3", "exit code 3: last"),
        ("exit 1", "exit code 1"),
        ("kill -SEGV $$", "crashed (SIGSEGV)"),
    ],
)
def test_a_program_that_fails(bin_folder: Path, text: str, problem: str) -> None:
    script(bin_folder / "bad", text)
    assert ask(["bad"]) == Answer("", problem)


def test_a_program_that_asks_back_gets_nothing(bin_folder: Path) -> None:
    script(bin_folder / "sudo", "read password && echo $password")
    kept, (terminal, keyboard) = os.dup(0), os.pipe()
    try:
        os.write(keyboard, b"secret\n")
        os.dup2(terminal, 0)
        assert ask(["sudo"]) == Answer("", "exit code 1")
    finally:
        os.dup2(kept, 0)
        for number in (kept, terminal, keyboard):
            os.close(number)


def test_what_cannot_be_run_is_said(bin_folder: Path) -> None:
    (bin_folder / "odd").write_bytes(b"\x7fELF of another machine")
    (bin_folder / "odd").chmod(0o755)
    assert ask(["odd"]).problem.startswith("cannot be started: ")


def test_a_program_that_hangs_is_ended_with_what_it_started(bin_folder: Path) -> None:
    note = bin_folder / "pid"
    script(bin_folder / "slow", f"/bin/sleep 60 & echo $! > {note}; trap '' TERM; wait")
    began = time.monotonic()
    assert ask(["slow"], 0.5) == Answer("", "no answer in 0.5 s")
    assert time.monotonic() - began < 2
    child = Path(f"/proc/{note.read_text().strip()}/stat")
    for _ in range(100):  # whoever inherits it has to take its result
        if not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.01)
    else:
        pytest.fail("what it started still runs")


def test_one_that_cannot_even_be_killed_is_left(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(bin_folder / "stuck", "exec /bin/sleep 1.5")
    monkeypatch.setattr(probe, "_GRACE_S", 0.1)
    monkeypatch.setattr(os, "killpg", lambda group, number: None)
    kept: list[Any] = []
    real = probe.subprocess.Popen

    def start(*args: Any, **options: Any) -> Any:
        kept.append(real(*args, **options))
        return kept[-1]

    monkeypatch.setattr(probe.subprocess, "Popen", start)
    began = time.monotonic()
    assert ask(["stuck"], 0.1).problem == "no answer in 0.1 s"
    assert time.monotonic() - began < 1
    kept[0].wait()


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "fr_fake_module.py").write_text(text)
    monkeypatch.syspath_prepend(folder)


def test_a_module_is_imported_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, "__version__ = '1.2'\nprint('{\"not\": \"this\"}')")
    facts = ask_native("import:fr_fake_module")
    assert facts["version"] == "1.2"
    assert facts["file"] == str(tmp_path / "fr_fake_module.py")
    assert facts["libraries"] == []
    assert "fr_fake_module" not in sys.modules


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (
            "raise ImportError('libx.so.1: gone\\n  now')",
            {"error": "ImportError: libx.so.1: gone now"},
        ),
        ("import fr_no_such", {"error": "ModuleNotFoundError: No module named 'fr_no_such'"}),
        ("import os; os.kill(os.getpid(), 11)", {"lost": "crashed (SIGSEGV)"}),
        ("import os; os._exit(0)", {"lost": "ended without an answer"}),
    ],
)
def test_a_module_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, facts: dict[str, str]
) -> None:
    module(tmp_path, monkeypatch, text)
    assert ask_native("import:fr_fake_module") == facts


def test_a_module_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(probe, "LOAD_S", 0.3)
    assert ask_native("import:fr_fake_module") == {"lost": "no answer in 0.3 s"}


def test_the_current_folder_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    (tmp_path / "fr_fake_module.py").write_text("")
    monkeypatch.chdir(tmp_path)
    facts = ask_native("import:fr_fake_module")
    assert facts == {"error": "ModuleNotFoundError: No module named 'fr_fake_module'"}


class FakeDriver:
    """libcuda with one device."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.cuInit = lambda flags: code

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = 12060
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = 1
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = 70 + index
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, device: Any) -> int:
        assert device.value == 70
        buffer.value = b"Orin"
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: Any) -> int:
        out._obj.value = 7620 << 20
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: Any) -> int:
        out._obj.value = {75: 8, 76: 7, 18: 1}[attribute]
        return 0


def test_the_driver_is_asked_for_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    library = SimpleNamespace(**{**vars(ctypes), "CDLL": lambda name: driver})
    monkeypatch.setattr(native, "ctypes", library)
    orin = {"name": "Orin", "sm": [8, 7], "is_integrated": True, "total_mb": 7620}
    assert native.cuda() == {"code": 0, "version": 12060, "devices": [orin]}
    driver = FakeDriver(code=100)
    assert native.cuda() == {"code": 100, "version": 12060, "devices": []}
