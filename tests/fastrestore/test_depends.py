"""What a resumed job is compared by, and `restore --resume` on the command line."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore import cli
from fastrestore.batch import Options
from fastrestore.depends import depends_on
from fastrestore.images import Picture, write_picture
from fastrestore.journal import differences, fingerprint, is_begun
from fastrestore.restore import Restorer
from tests.fastrestore.broken_jobs import N, contents, make_clip


@pytest.fixture(scope="module")
def nano() -> Restorer:
    return Restorer("nano", backend="ort", threads=1)


def test_every_option_that_changes_frames_counts(tmp_path: Path, nano: Restorer) -> None:
    mask = tmp_path / "mask.png"
    white = np.full((4, 4, 3), 255, np.uint8)
    write_picture(mask, Picture(white), white)
    old = depends_on(Options(mask=str(mask)), nano, None)
    assert depends_on(Options(mask=str(mask), overwrite=True, quality=9), nano, None) == old
    new = depends_on(Options(mask=str(mask), grow_px=2, sigma=5.0), nano, None)
    assert differences(old, new) == ["grow px 1 (now 2)", "sigma none (now 5.0)"]
    write_picture(mask, Picture(white), white * np.uint8(0))
    assert differences(old, depends_on(Options(mask=str(mask)), nano, None)) == ["another mask"]


def test_models_differ_by_their_bytes(nano: Restorer) -> None:
    with Restorer("tiny", backend="ort", threads=1) as tiny:
        told = differences(nano.identity, tiny.identity)
    assert told == ["another model"]
    assert nano.identity["backend"] == "ort"


def test_fingerprints_tell_files_and_folders_apart(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(bytes(3_000_000))
    seen = {fingerprint(tmp_path)}
    b.write_bytes(b"x")
    seen |= {fingerprint(tmp_path), fingerprint(a)}
    data = bytearray(3_000_000)
    data[-1] = 1
    a.write_bytes(data)
    seen |= {fingerprint(a), fingerprint(tmp_path)}
    assert len(seen) == 5


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["fastrestore", *arguments])
    old = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, old)
    return int(str(ended.value.code))


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(Path("in.mkv"))
    common = ["restore", "in.mkv", "--encoder", "ffv1", "--model", "nano", "--threads", "1",
              "--resume", "--segment", "0.4", "-o"]  # fmt: skip
    assert run([*common, "whole.mkv"], monkeypatch) == 0
    notes = capfd.readouterr().err.splitlines()[1:]
    calls, frame = 0, Restorer.frame

    def interrupted(self: Restorer, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyboardInterrupt
        return frame(self, *args, **options)

    monkeypatch.setattr(Restorer, "frame", interrupted)
    assert run([*common, "a b.mkv", "--overwrite"], monkeypatch) == 130
    said = capfd.readouterr().err
    words = "fastrestore restore in.mkv --encoder ffv1 --model nano --threads 1"
    assert said.lstrip() == (
        f"fastrestore: interrupted; 24 frames are kept; go on with: {words} "
        "--resume --segment 0.4 -o 'a b.mkv'\n"
    )
    assert run([*common, "a b.mkv", "--skip-existing"], monkeypatch) == 0
    assert calls == 30 + N - 24
    assert capfd.readouterr().err.splitlines()[1:] == notes
    assert contents(Path("a b.mkv")) == contents(Path("whole.mkv"))
    assert not is_begun(Path("a b.mkv"))
    assert run([*common, "a b.mkv", "--mask-out", "m.mkv", "--mask", "auto"], monkeypatch) == 5
    assert run([*common, "c.mkv", "--mask-out", "m.mkv", "--mask", "auto"], monkeypatch) == 3
    assert "--mask-out does not go with --resume" in capfd.readouterr().err
