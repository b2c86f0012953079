"""Long jobs: whatever ends a run, the next one goes on, and the result is that of one run."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fastrestore import video_seek
from fastrestore.errors import FastRestoreError, InputError, OutputError
from fastrestore.journal import WorkFolder, is_begun
from fastrestore.locking import lock
from fastrestore.segment_file import SegmentWriter
from fastrestore.video import Resume, restore_video
from fastrestore.video_io import VideoReader
from fastrestore.video_write import VideoWriter
from tests.fastrestore.broken_jobs import (
    CFR,
    SIDEWAYS,
    VFR,
    Blend,
    N,
    contents,
    frames,
    kept,
    make_clip,
    restore,
)

CLIPS: dict[str, dict[str, Any]] = {
    "open.mp4": {},
    "vfr.mkv": {"pts": [t // 12 for t in VFR], "clock": 1000},
    "turned.mp4": {"matrix": SIDEWAYS},
    "late.ts": {"pts": [t + 3600 * 12800 for t in CFR], "sound": False},
    "unindexed.avi": {"codec": "mpeg4", "pts": list(range(N)), "clock": 25, "options": {"g": "9"}},
    "onekey.mp4": {"options": {"g": "999", "bf": "2"}},
    "intra.mkv": {"codec": "ffv1", "options": {}, "clock": 1000, "pts": [t // 12 for t in VFR]},
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_broken_run_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(video_seek, "RUN_UP_S", 0)  # the clips are short
    source = make_clip(tmp_path / name, **CLIPS[name])
    whole, parts, plain = (tmp_path / f"{n}.mkv" for n in ("whole", "parts", "plain"))
    report = restore(source, whole)
    for stop_at in (30, 18):  # the second one is in another segment
        with pytest.raises(KeyboardInterrupt):
            restore(source, parts, Blend(stop_at))
    done = kept(parts)
    assert 20 <= done < N
    last = Blend()
    resumed = restore(source, parts, last)
    assert last.calls == N - done
    assert (resumed.frames, resumed.notes) == (N, report.notes)
    assert contents(parts) == contents(whole)
    assert restore(source, plain, resume=False).notes == report.notes
    assert frames(plain) == frames(whole)  # segments leave no trace in what is lossless
    assert sorted(os.listdir(tmp_path)) == sorted([name, "whole.mkv", "parts.mkv", "plain.mkv"])


@pytest.mark.parametrize("encoder", ["x264", "vp9"])
def test_lossy_encoders_in_other_files(tmp_path: Path, encoder: str) -> None:
    source = make_clip(tmp_path / "in.mp4", pts=VFR)
    whole, parts, plain = (tmp_path / f"{n}.mp4" for n in ("whole", "parts", "plain"))
    restore(source, whole, encoder=encoder)
    with pytest.raises(KeyboardInterrupt):
        restore(source, parts, Blend(30), encoder=encoder)
    restore(source, parts, encoder=encoder)
    restore(source, plain, encoder=encoder, resume=False)
    one, other = contents(parts), contents(plain)
    assert one == contents(whole)
    assert [f[0] for f in one["frames"]] == [f[0] for f in other["frames"]]
    assert one["length"] == other["length"]
    assert [p for p in one["packets"] if p[0] == 1] == [p for p in other["packets"] if p[0] == 1]


def test_a_place_is_found_though_the_index_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "in.mp4")
    restore(source, tmp_path / "whole.mkv")
    with pytest.raises(KeyboardInterrupt):
        restore(source, tmp_path / "parts.mkv", Blend(40))
    sought = []

    def too_far(self: VideoReader, pts: int) -> None:
        sought.append(pts)
        self.container.seek(CFR[50], stream=self.stream)

    monkeypatch.setattr(VideoReader, "seek", too_far)
    restore(source, tmp_path / "parts.mkv")
    assert len(sought) == 1  # and then from the beginning
    assert contents(tmp_path / "parts.mkv") == contents(tmp_path / "whole.mkv")


def test_what_earlier_runs_have_seen_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_seek, "RUN_UP_S", 0)
    source, target = make_clip(tmp_path / "in.mkv"), tmp_path / "out.mkv"
    data = source.read_bytes()
    with av.open(str(source)) as c:
        body = [bytes(p) for p in c.demux(video=0) if p.size][5]
    source.write_bytes(data.replace(body, bytes(len(body))))
    with pytest.raises(KeyboardInterrupt):
        restore(source, target, Blend(30))
    report = restore(source, target)
    assert report.notes == ["1 damaged packets skipped"]
    assert (report.frames, report.dropped_packets) == (N - 1, 1)


def test_joining_goes_through_all_streams_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, order = make_clip(tmp_path / "in.mp4"), []

    def note(write: Any) -> Any:
        def noted(self: VideoWriter, packet: Any, *end: Any) -> None:
            order.append(packet.dts * packet.time_base)
            write(self, packet, *end)

        return noted

    for name in ("write_encoded", "write_packet"):
        monkeypatch.setattr(VideoWriter, name, note(getattr(VideoWriter, name)))
    restore(source, tmp_path / "out.mkv")
    assert len(order) > N
    back = np.maximum.accumulate(order) - order
    assert max(back) < 0.3  # the memory of whoever has to sort them


def test_progress_counts_what_was_done(tmp_path: Path) -> None:
    source, target = make_clip(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        restore(source, target, Blend(30), encoder="x264")
    told: list[tuple[int, int | None]] = []
    restore(source, target, encoder="x264", progress=lambda n, of, _fps: told.append((n, of)))
    assert told == [(n, N) for n in range(25, N + 1)]


@pytest.mark.parametrize("n", [1, 5])
def test_clips_shorter_than_a_segment(tmp_path: Path, n: int) -> None:
    source = make_clip(tmp_path / "in.mp4", pts=CFR[:n])
    with pytest.raises(KeyboardInterrupt, match="0 frames are kept"):
        restore(source, tmp_path / "out.mp4", Blend(n - 1), encoder="x264")
    assert restore(source, tmp_path / "out.mp4", encoder="x264").frames == n
    restore(source, tmp_path / "plain.mp4", encoder="x264", resume=False)
    one, other = contents(tmp_path / "out.mp4"), contents(tmp_path / "plain.mp4")
    assert (one["frames"], one["length"]) == (other["frames"], other["length"])


def refused(error: type[FastRestoreError], *words: str, run: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def broken(tmp_path: Path, stop_at: int = 30, **options: Any) -> tuple[Path, Path]:
    """A job of which two segments are done."""
    source, target = make_clip(tmp_path / "in.mp4"), tmp_path / "out.mkv"
    with pytest.raises(KeyboardInterrupt) as caught:
        restore(source, target, Blend(stop_at), **options)
    assert caught.value.args == ("24 frames are kept; go on with: fastrestore again",)
    return source, target


def test_another_input_or_other_options_are_refused(tmp_path: Path) -> None:
    source, target = broken(tmp_path)
    refused(
        InputError, "out.mkv: was begun with", "grow none (now 3)", "another model", "--overwrite",
        run=lambda: restore(source, target, work={"model": "sha256:12", "grow": 3}),
    )  # fmt: skip
    refused(InputError, "encoder ffv1", "(now libx264", run=lambda: restore(
        source, target, encoder="x264"))  # fmt: skip
    other = make_clip(tmp_path / "other.mp4", seed=1)
    refused(InputError, "with another input;", run=lambda: restore(other, target))
    assert kept(target) == 24
    blend = Blend()
    assert restore(other, target, blend, overwrite=True).frames == N
    assert blend.calls == N
    assert not is_begun(target)


def test_a_target_is_not_replaced_unasked(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4")
    target = tmp_path / "out.mkv"
    target.write_bytes(b"old")
    refused(OutputError, "exists already", run=lambda: restore(source, target))
    assert not is_begun(target)
    with pytest.raises(KeyboardInterrupt):
        restore(source, target, Blend(30), overwrite=True)
    assert target.read_bytes() == b"old"
    blend = Blend()
    restore(source, target, blend)  # it was asked for when the job was begun
    assert blend.calls == N - 24
    assert len(frames(target)) == N


def test_a_target_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    source, target = broken(tmp_path)
    refused(OutputError, "exists already", "60 frames are kept", run=lambda: restore(
        source, target, progress=lambda *_: target.touch()))  # fmt: skip
    assert target.read_bytes() == b""
    target.unlink()
    assert restore(source, target, Blend(0)).frames == N  # nothing is left but to join


def test_one_run_at_a_time(tmp_path: Path) -> None:
    source, target = broken(tmp_path)
    with lock(WorkFolder(target).path / "lock"):
        refused(OutputError, "another run is at it", run=lambda: restore(source, target))
    assert restore(source, target).frames == N


def test_damage_in_the_work_folder_is_said(tmp_path: Path) -> None:
    source, target = broken(tmp_path)
    folder = WorkFolder(target)
    data = folder.segment(1).read_bytes()
    for name, spoilt in {
        "00001.nut": data[:-9],
        "00001.past.npz": b"PK",
        "journal.json": b"{}",
    }.items():
        path = folder.path / name
        whole = path.read_bytes()
        path.write_bytes(spoilt)
        refused(InputError, name, "--overwrite", run=lambda: restore(source, target))
        path.write_bytes(whole)
    middle = len(data) // 2
    folder.segment(1).write_bytes(data[:middle] + bytes(len(data) - middle))  # of the same size
    refused(InputError, "00001.nut: is damaged", "--overwrite", run=lambda: restore(source, target))
    folder.segment(1).write_bytes(data)
    assert restore(source, target).frames == N


def test_bytes_that_changed_in_the_work_folder_are_found(tmp_path: Path) -> None:
    source, target = broken(tmp_path)
    folder = WorkFolder(target).path
    names = ["00000.nut", "00000.pts.npy", "00001.nut", "00001.past.npz", "00001.pts.npy"]
    assert sorted(n for n in os.listdir(folder) if n[0] == "0") == names
    for path in (folder / name for name in names):
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[-9] ^= 1
        for spoilt in (bytes(flipped), b"", None):
            path.unlink() if spoilt is None else path.write_bytes(spoilt)
            words = (f"{path.name}: is damaged", "--overwrite")
            told = refused(InputError, *words, run=lambda: restore(source, target))
            assert "go on with" not in told
        path.write_bytes(data)
    assert restore(source, target).frames == N


def test_a_name_that_is_too_long_for_a_work_folder(tmp_path: Path) -> None:
    source, target = make_clip(tmp_path / "in.mp4"), tmp_path / ("n" * 248 + ".mkv")
    assert not is_begun(target)
    refused(OutputError, "too long", run=lambda: restore(source, target))
    assert os.listdir(tmp_path) == ["in.mp4"]


@pytest.mark.parametrize("length", [0.0, float("nan")])
def test_segments_of_no_length_are_refused(tmp_path: Path, length: float) -> None:
    source, target = make_clip(tmp_path / "in.mp4"), tmp_path / "o.mkv"
    how = Resume(segment_s=length)
    refused(InputError, "segment", run=lambda: restore_video(source, target, Blend(), resume=how))


def test_what_is_not_ours_stays_in_the_folder(tmp_path: Path) -> None:
    source, target = broken(tmp_path)
    folder = WorkFolder(target).path
    (folder / "mine.txt").write_text("mine")
    restore(source, target)
    assert os.listdir(folder) == ["mine.txt"]
    (folder / "mine.txt").unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    refused(OutputError, "is a link", run=lambda: restore(source, target, overwrite=True))


# What ends a run by itself.


def limited(size: int, run: Callable[[], object]) -> None:
    """Run while no file may grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        refused(OutputError, "out.mkv: no space left", "go on with: fastrestore again", run=run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(tmp_path: Path) -> None:
    source, target = broken(tmp_path)
    whole, folder = tmp_path / "whole.mkv", WorkFolder(target)
    restore(source, whole)
    rng = np.random.default_rng(0)

    class Loud(Blend):
        def __call__(self, rgb: Any) -> Any:
            super().__call__(rgb)
            return rng.integers(0, 256, rgb.shape, np.uint8)

    largest = max(folder.segment(i).stat().st_size for i in range(2))
    limited(largest + 2000, lambda: restore(source, target, Loud()))
    assert kept(target) == 24
    assert not list(folder.path.glob("*.part*"))
    limited(whole.stat().st_size - 1000, lambda: restore(source, target))  # the segments fit
    assert kept(target) == N
    assert not list(folder.path.glob("joined*"))
    restore(source, target, Blend(0))
    assert contents(target) == contents(whole)


def gone(source: Path) -> None:
    source.rename(source.with_name("gone"))


def cut(source: Path) -> None:
    (source.with_name("gone")).write_bytes(source.read_bytes())
    os.truncate(source, source.stat().st_size // 2)


@pytest.mark.parametrize(("harm", "words"), [(gone, "cannot be read"), (cut, "was changed")])
def test_an_input_that_vanishes_or_is_cut(
    tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    source, whole, target = make_clip(tmp_path / "in.mkv"), tmp_path / "w.mkv", tmp_path / "o.mkv"
    restore(source, whole)
    before = source.stat()

    def hurt(done: int, _of: int | None, _fps: float) -> None:
        if done == 14:
            harm(source)

    refused(InputError, "in.mkv:", words, "12 frames are kept; go on with:", run=lambda: restore(
        source, target, progress=hurt))  # fmt: skip
    (tmp_path / "gone").replace(source)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    restore(source, target)
    assert contents(target) == contents(whole)


@pytest.mark.parametrize("words", ["was changed", "cannot be read (Input/output error)"])
def test_an_end_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """What looks like the end is that of a file which is cut while it is read, or of its disk."""
    source, target = make_clip(tmp_path / "in.mkv"), tmp_path / "out.mkv"
    pictures = VideoReader.pictures

    def broken_off(self: VideoReader) -> Iterator[av.VideoFrame]:
        yield from islice(pictures(self), 50)
        if "Input/output" in words:
            self.stopped = av.error.OSError(errno.EIO, "Input/output error")
        else:
            cut(source)

    monkeypatch.setattr(VideoReader, "pictures", broken_off)
    refused(InputError, words, "48 frames are kept", run=lambda: restore(source, target))


def test_an_encoder_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, whole, target = make_clip(tmp_path / "in.mp4"), tmp_path / "w.mkv", tmp_path / "o.mkv"
    restore(source, whole)
    calls, write = 0, SegmentWriter.write

    def die(self: SegmentWriter, frame: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise av.error.ExternalError(542398533, "Generic error in an external library")
        write(self, frame)

    monkeypatch.setattr(SegmentWriter, "write", die)
    words = "o.mkv: cannot be written (Generic error", "12 frames are kept"
    refused(OutputError, *words, run=lambda: restore(source, target))
    restore(source, target)
    assert contents(target) == contents(whole)
