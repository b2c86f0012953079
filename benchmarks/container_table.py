"""What comes out of each kind of clip, in each kind of file: frames, times, sound, all else.

    python benchmarks/container_table.py     # writes results/containers.md and .json; minutes

The clips are made here and their truth is known (`container_clips`). Each is passed through
`restore_video` with a restorer that changes nothing, into .mp4, .mov, .mkv and .webm with
`--encoder auto`, and read again: by PyAV, and by the system's ffprobe where there is one. A row
fails if a frame is absent, of the wrong picture or more than a millisecond off (a container counts
in its own ticks), if sound is not copied byte for byte or has moved against the picture, or if
anything else of the input is neither in the output nor named in the notes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from container_clips import RATE, SIDEWAYS, Clip, level
from container_kinds import KINDS

from fastrestore.encoders import OUTPUT_SUFFIXES
from fastrestore.environment import describe
from fastrestore.errors import FastRestoreError
from fastrestore.planes import planes
from fastrestore.video import restore_video
from fastrestore.yuv import FULL

HERE = Path(__file__).resolve().parent
MOST_MS = 1.0  # Matroska counts milliseconds: half of one at either end
MOST_LEVELS = 14.0  # mean of a frame, after an encoder; neighbours differ by 47
_NO_TIMES = (".avi", ".h264", ".hevc", ".y4m")  # a plain decoder has no right ones


@dataclass(frozen=True)
class Row:
    """One clip in one kind of file.

    Attributes:
        kind: Of clip.
        target: Suffix.
        codec: Of the result's video.
        frames_in: Frames that are shown of the input.
        frames_out: Frames of the output that are the right ones, in order.
        error_ms: Largest error of a frame's time, relative to the first frame.
        end_ms: Error of where the last frame ends, relative to the first frame.
        lag_ms: How far sound has moved against the picture.
        sound_in: Packets of sound to be copied.
        sound_out: Of those, the ones copied byte for byte.
        kept: What else is in the output.
        said: What is not, and is named in a note.
        lost: What is not, without a word.
        probe: Frames that ffprobe counts; None: there is no ffprobe.
        notes: What the user is told.
        failure: Why there is no output; empty if there is.
    """

    kind: str
    target: str
    codec: str = ""
    frames_in: int = 0
    frames_out: int = 0
    error_ms: float = 0.0
    end_ms: float = 0.0
    lag_ms: float = 0.0
    sound_in: int = 0
    sound_out: int = 0
    kept: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    probe: int | None = None
    notes: tuple[str, ...] = ()
    failure: str = ""

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong with it."""
        return (
            not (self.failure or self.lost)
            and self.frames_in == self.frames_out
            and self.probe in (None, self.frames_in)
            and self.error_ms <= MOST_MS
            and max(abs(self.end_ms), abs(self.lag_ms)) <= MOST_MS
            and self.sound_in == self.sound_out
        )


def measure(kind: str, clip: Clip, target: Path) -> Row:
    """Pass a clip through and compare."""
    try:
        report = restore_video(clip.path, target, lambda rgb: rgb)
    except FastRestoreError as e:
        return Row(kind, target.suffix, failure=str(e).replace(str(target.parent), ""))
    with av.open(str(target)) as c:
        codec = c.streams.video[0].codec_context.name
        found = list(c.decode(video=0))
    shown = [f.time or 0.0 for f in found]
    notes = tuple(report.notes)
    sound_in, sound_out, lag = _compare_sound(clip, target, shown[0], notes)
    kept, said, lost = _judge(clip, target, notes)
    return Row(
        kind,
        target.suffix,
        codec,
        len(clip.numbers),
        _right_frames(found, clip) if len(found) == len(clip.numbers) else -len(found),
        _error_ms(shown, clip),
        _end_ms(clip, target),
        lag,
        sound_in,
        sound_out,
        kept,
        said,
        lost,
        _count_with_ffprobe(target),
        notes,
    )


def _right_frames(found: list[Any], clip: Clip) -> int:
    """Count the frames that show the picture that belongs to their place."""
    right = 0
    for frame, number in zip(found, clip.numbers, strict=True):
        luma = planes(frame)[0].mean() / 2 ** (frame.format.components[0].bits - 8)
        right += number is None or abs(float(luma) - level(number)) < MOST_LEVELS
    return right


def _error_ms(shown: list[float], clip: Clip) -> float:
    truth = [i / RATE for i in range(len(shown))] if clip.times is None else clip.times
    if len(truth) != len(shown):
        return float("inf")
    error = np.subtract(shown, shown[0]) - np.subtract(truth, truth[0])
    return round(float(np.abs(error).max()) * 1e3, 3)


def _end_ms(clip: Clip, target: Path) -> float:
    """Compare where the last frame ends: with the input if that says so, else at its pace."""
    if clip.path.suffix in OUTPUT_SUFFIXES and clip.whole:
        wanted = _length(clip.path)
    else:
        wanted = (clip.times[-1] - clip.times[0] if clip.times else 0.0) + 1 / RATE
    return round((_length(target) - wanted) * 1e3, 3)


def _length(path: Path) -> float:
    """Return the time from the first frame to the end of the last, seconds."""
    with av.open(str(path)) as c:
        v = c.streams.video[0]
        if path.suffix in (".mp4", ".mov"):  # packets tell durations in decoding order
            return float((v.duration or 0) * (v.time_base or 0))
        spans = [(p.pts, p.pts + (p.duration or 0)) for p in c.demux(v) if p.pts is not None]
        return float((max(b for _, b in spans) - min(a for a, _ in spans)) * (v.time_base or 0))


def _sound(path: Path, heard: bool) -> list[list[tuple[bytes, float]]]:
    """Return bytes and time of every packet of every track; `heard`: that no edit list hides."""
    with av.open(str(path)) as c:
        tracks: dict[int, list[tuple[bytes, float]]] = {s.index: [] for s in c.streams.audio}
        for packet in c.demux(*c.streams.audio) if tracks else ():
            if packet.size and not (heard and packet.is_discard):
                time = float((packet.pts or 0) * packet.time_base)
                tracks[packet.stream.index].append((_bare(packet), time))
    return list(tracks.values())


def _bare(packet: Any) -> bytes:
    """Return a packet without the head that transport streams give AAC."""
    data = bytes(packet)
    is_adts = packet.stream.codec_context.name == "aac" and data[:1] == b"\xff"
    return data[7:] if is_adts and data[1] & 0xF6 == 0xF0 else data


def _compare_sound(
    clip: Clip, target: Path, first_out: float, notes: tuple[str, ...]
) -> tuple[int, int, float]:
    """Return packets to copy, packets copied, and how sound has moved, milliseconds."""
    mine, theirs = _sound(clip.path, heard=True), _sound(target, heard=False)
    with av.open(str(clip.path)) as c:
        indices = [s.index for s in c.streams.audio]
        first_in = next(c.decode(video=0)).time or 0.0
    if clip.path.suffix in _NO_TIMES and clip.times is not None:
        first_in = clip.times[0]
    wanted = copied = 0
    lag = 0.0
    kept = [t for t, i in zip(mine, indices, strict=True) if not _is_said(f"audio #{i}", notes)]
    if len(kept) != len(theirs):
        return 1, 0, 0.0
    for old, new in zip(kept, theirs, strict=True):
        wanted += len(old)
        same = [a == b for (a, _), (b, _) in zip(reversed(old), reversed(new), strict=False)]
        copied += same.index(False) if False in same else len(same)
        begins = min(len(old), len(new))  # a decoder may need more ahead
        moved = (new[-begins][1] - first_out) - (old[-begins][1] - first_in)
        lag = max(lag, abs(moved) * 1e3)
    return wanted, copied, round(lag, 3)


def _is_said(what: str, notes: tuple[str, ...]) -> bool:
    return any(f"{what}," in note for note in notes)


def _judge(
    clip: Clip, target: Path, notes: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return what else of the input is kept, what is said to be dropped, and what is lost."""
    there, kept, lost = _contents(target), [], []
    said = ["sound" for note in notes if note.startswith("dropped: audio")]
    for what in clip.others:
        if what in there:
            there.remove(what)
            kept.append(what)
        elif any(_WORDS[what] in note for note in notes):
            said.append(what)
        else:
            lost.append(what)
    return tuple(kept), tuple(said), tuple(lost)


_WORDS = {  # what a note says when it is not kept
    "subtitle": "dropped: subtitle",
    "data": "dropped: data",
    "cover": "dropped: video",
    "font": "dropped: attachment",
    "chapters": "chapters",
    "timecode": "timecode",
    "rotation": "rotation",
    "full range": "range",
    "10 bit": "is written with 8 bit",
}


def _contents(path: Path) -> list[str]:
    from av.sidedata.sidedata import Type
    from av.stream import Disposition

    found = []
    with av.open(str(path)) as c:
        for s in c.streams:
            is_cover = s.type == "video" and s.disposition & Disposition.attached_pic
            kinds = {"subtitle": "subtitle", "attachment": "font", "data": "data"}
            if kind := "cover" if is_cover else kinds.get(s.type):
                found.append(kind)
        if c.chapters():
            found.append("chapters")
        if {k.lower() for k in c.streams.video[0].metadata} & {"timecode"}:
            found.append("timecode")
        first: Any = next(c.decode(video=0))
        matrix = first.side_data.get(Type.DISPLAYMATRIX)
        if matrix and tuple(np.frombuffer(matrix, np.int32).tolist()) == SIDEWAYS:
            found.append("rotation")
        if int(first.color_range) == FULL:
            found.append("full range")
        if first.format.components[0].bits == 10:
            found.append("10 bit")
    return found


def _count_with_ffprobe(path: Path) -> int | None:
    program = shutil.which("ffprobe")
    if program is None:
        return None
    wish = ["-select_streams", "v:0", "-count_frames", "-show_entries", "stream=nb_read_frames"]
    run = subprocess.run(  # noqa: S603
        [program, "-v", "error", *wish, "-of", "csv=p=0", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(run.stdout.split()[0].strip(",")) if run.stdout.strip() else -1


def as_markdown(rows: list[Row], head: str) -> str:
    """Return the table."""
    lines = [
        "| input | into | video | frames in / out | time error | error of the end | sound moved "
        "| sound packets | kept | said to be dropped | right |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        sound = f"{r.sound_out} of {r.sound_in}" if r.sound_in else "-"
        cells = [r.kind, r.target, r.codec or r.failure, f"{r.frames_in} / {r.frames_out}"]
        cells += [f"{r.error_ms} ms", f"{r.end_ms} ms"]
        cells += [f"{r.lag_ms} ms" if r.sound_in else "-", sound]
        cells += [", ".join(r.kept) or "-", ", ".join(r.said) or "-", "yes" if r.is_right else "NO"]
        lines.append(f"| {' | '.join(cells)} |")
    said: dict[str, None] = {}
    for r in rows:
        said |= dict.fromkeys(f"- {r.kind} into {r.target}: {note}" for note in r.notes)
    return f"{head}\n\n" + "\n".join([*lines, "", "What was said:", "", *said]) + "\n"


def main() -> int:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("-o", default=str(HERE / "results" / "containers"), help="without suffix")
    args = parser.parse_args()
    rows = []
    for kind, make in KINDS.items():
        for suffix in OUTPUT_SUFFIXES if args.only in kind else ():
            with tempfile.TemporaryDirectory() as folder:
                row = measure(kind, make(Path(folder)), Path(folder) / f"out{suffix}")
            rows.append(row)
            print(f"{kind} -> {suffix}: {'right' if row.is_right else row}", flush=True)
    wrong = sum(not row.is_right for row in rows)
    probe = "ffprobe agrees" if shutil.which("ffprobe") else "there was no ffprobe to agree"
    versions = f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}"
    head = (
        "# Containers\n\n`python benchmarks/container_table.py`: "
        f"{len(rows)} conversions, {len(rows) - wrong} right; {versions}; {probe} on the frames."
    )
    Path(f"{args.o}.md").write_text(as_markdown(rows, head))
    data = {"versions": versions, "machine": describe(), "rows": [asdict(r) for r in rows]}
    Path(f"{args.o}.json").write_text(json.dumps(data, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
