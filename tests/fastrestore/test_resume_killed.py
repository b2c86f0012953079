"""Long jobs killed by SIGKILL, at every point at which the disk changes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.fastrestore import broken_jobs
from tests.fastrestore.broken_jobs import CFR, contents, make_clip, restore


def test_killed_at_every_change_of_the_disk(tmp_path: Path) -> None:
    source, whole = make_clip(tmp_path / "in.mp4", pts=CFR[:14]), tmp_path / "whole.mkv"
    restore(source, whole)
    done = subprocess.run(
        [sys.executable, "-m", broken_jobs.__name__, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = [line.split() for line in done.stdout.splitlines()]
    assert len(runs) > 20
    wanted = contents(whole)
    for n, killed, was_named, went_on in runs:
        assert killed == str(-signal.SIGKILL)
        # Where only the folder was left, it is said that the name is taken.
        assert went_on == "0" or (went_on == "5" and was_named == "True")
        assert contents(tmp_path / f"{n}.mkv") == wanted
    assert not list(tmp_path.glob(".*.parts"))
