"""Every kind of clip into the file of its own kind: the container table in its short form.

`python benchmarks/container_table.py` goes through all kinds of files.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import container_table as table
from container_clips import Clip, Plan, write
from container_kinds import KINDS

from fastrestore.encoders import OUTPUT_SUFFIXES

OTHERS = (  # kind, target: where something changes on the way
    ("edit list: from frame 5 on", ".mkv"),
    ("font and cover, Matroska", ".mp4"),
    ("cover, MP4", ".mkv"),
    ("cover, MP4", ".mov"),
    ("timecode, MOV", ".mkv"),
    ("three sound tracks", ".webm"),
    ("10 bit H.265", ".webm"),
    ("text subtitles, Matroska", ".mp4"),
    ("MPEG-TS, AAC", ".mp4"),
    ("clock jumps, MPEG-TS", ".mp4"),
)


@pytest.fixture(autouse=True)
def no_ffprobe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The long form asks it; here it is a program that may not be there, and takes time."""
    monkeypatch.setattr(table.shutil, "which", lambda _: None)


def row_of(kind: str, folder: Path, suffix: str | None = None) -> table.Row:
    clip = KINDS[kind](folder)
    own = clip.path.suffix if clip.path.suffix in OUTPUT_SUFFIXES else ".mkv"
    return table.measure(kind, clip, folder / f"out{suffix or own}")


@pytest.mark.parametrize("kind", KINDS)
def test_everything_comes_through_or_is_said(kind: str, tmp_path: Path) -> None:
    row = row_of(kind, tmp_path)
    assert row.is_right, row


@pytest.mark.parametrize(("kind", "suffix"), OTHERS)
def test_into_another_kind_of_file(kind: str, suffix: str, tmp_path: Path) -> None:
    row = row_of(kind, tmp_path, suffix)
    assert row.is_right, row


def test_a_held_frame_stays_held_from_copy_to_copy(tmp_path: Path) -> None:
    """B-frames in MP4: the last frame shown is not the last in the file."""
    clip = KINDS["last frame held, Matroska"](tmp_path)
    assert table.measure("", clip, tmp_path / "1.mp4").is_right
    again = replace(clip, path=tmp_path / "1.mp4")
    assert table.measure("", again, tmp_path / "2.mp4").is_right
    assert table._length(tmp_path / "2.mp4") == pytest.approx(19 / 25 + 0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "notes"),
    [
        ("MP4, B-frames, AAC", ()),
        ("raw H.264", ()),
        ("AVI, H.264 with B-frames", ()),
        ("edit list: four cut out", ()),
        ("font and cover, Matroska", ()),
        ("timecode, MOV", ()),
        ("10 bit H.265", ("10 bit a sample are kept; what is restored has the precision of 8",)),
        ("data stream", ("dropped: data #2, only sound and text are copied",)),
        ("closed captions, H.264",
         ("dropped: closed captions inside the video; ccextractor saves them",)),
        ("size changes, MPEG-TS",
         ("time stamps jumped 1 times: the gaps are closed",
          "20 frames of another size or colour were made like the first: 96x64")),
        ("two programs, MPEG-TS",
         ("2 video streams: #0 (96x64) is restored",
          "dropped: video #2, it belongs to another program",
          "dropped: audio #3, it belongs to another program")),
    ],
)  # fmt: skip
def test_what_is_said(kind: str, notes: tuple[str, ...], tmp_path: Path) -> None:
    assert row_of(kind, tmp_path).notes == notes


def test_the_table_finds_what_is_wrong(tmp_path: Path) -> None:
    """A clip whose truth is told wrongly fails in the column that it is wrong in."""
    clip = write(tmp_path / "in.mkv", Plan(clock=1000, sounds=(("aac", 0.0),)))

    def measured(wrong: Clip) -> table.Row:
        row = table.measure("", wrong, tmp_path / "out.mkv")
        (tmp_path / "out.mkv").unlink()
        assert not row.is_right
        return row

    swapped = [*clip.numbers[:4], clip.numbers[5], clip.numbers[4], *clip.numbers[6:]]
    assert measured(replace(clip, numbers=swapped)).frames_out == len(clip.numbers) - 2
    assert measured(replace(clip, numbers=clip.numbers[1:])).frames_out < 0
    late = [t + 0.01 * (i > 5) for i, t in enumerate(clip.times or ())]
    assert measured(replace(clip, times=late)).error_ms == 10.0
    assert measured(replace(clip, others=("cover",))).lost == ("cover",)


def test_the_results_are_a_table_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--only", "IVF", "-o", str(tmp_path / "t")])
    assert table.main() == 0
    text = (tmp_path / "t.md").read_text()
    assert "4 conversions, 4 right" in text
    assert "| IVF | .webm | vp9 | 20 / 20 | 0.0 ms |" in text
    assert '"target": ".mov"' in (tmp_path / "t.json").read_text()
    assert "IVF -> .mkv: right" in capsys.readouterr().out
