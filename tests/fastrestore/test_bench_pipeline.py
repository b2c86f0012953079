"""Level `pipeline`: made and cut clips, and what is counted of a pass. No speed is asserted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.bench import pipeline
from fastrestore.bench.pipeline import FRAMES, WARM_UP, clip, fitting_frames, measure_clip, size_of
from fastrestore.bench.timing import Clock
from fastrestore.errors import InputError
from fastrestore.video_io import read_frames, write_frames


class FakeTime:
    """Time that passes only where it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.clock = Clock(lambda: self.now_s, lambda: self.now_s / 2)


class FakeHost:
    """A host whose frames take a second, and are inverted."""

    backend, name, precision = "fake", "tiny", "fp32"

    def __init__(self, time: FakeTime, seconds: float = 1.0) -> None:
        self.sha256 = {"model": "ab"}
        self.time, self.seconds = time, seconds
        self.frames: list[tuple[int, ...]] = []
        self.resets = 0
        self.restorers = [self]

    def reset(self) -> None:
        self.resets += 1

    def frame(self, image: U8) -> U8:
        self.frames.append(image.shape)
        self.time.now_s += self.seconds
        return 255 - image


def test_a_clip_is_made_noisy_and_moves() -> None:
    with clip(48, 64, 6) as made:
        assert (made.name, made.frames) == ("made 6 frames", 6)
        frames = list(read_frames(made.path))
        folder = made.path.parent
    assert [f.shape for f in frames] == [(48, 64, 3)] * 6
    still = frames[1][:, : 64 - 2].astype(float) - frames[0][:, 2:]
    assert still.std() < (frames[1].astype(float) - frames[0]).std()
    assert still.std() > 5  # the noise is new in every frame
    assert not folder.exists()


def test_the_beginning_of_a_real_clip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(12)]
    write_frames(tmp_path / "real.mkv", frames, fps=10, codec="ffv1")
    with clip(1, 1, 5, str(tmp_path / "real.mkv")) as cut:
        assert (cut.name, cut.frames) == ("real.mkv 5 frames", 5)
        found = list(read_frames(cut.path))
    assert all(np.abs(a.astype(int) - b).mean() < 3 for a, b in zip(found, frames, strict=False))
    with clip(1, 1, 99, str(tmp_path / "real.mkv")) as cut:
        assert cut.frames == 12
    assert size_of(str(tmp_path / "real.mkv")) == (32, 48)


def test_frames_that_were_cut_off_are_not_promised(tmp_path: Path) -> None:
    """Of a clip with frames out of order some of the last packets may not decode."""
    rng = np.random.default_rng(0)
    path = tmp_path / "b.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"bf": "3", "g": "99"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(30):
            noise = rng.integers(0, 256, (48, 64, 3), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        out.mux(stream.encode(None))
    with clip(1, 1, 10, str(path)) as cut:
        assert cut.frames == len(list(read_frames(cut.path))) <= 10


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: None, "no such file"),
        (lambda p: p.write_text("hello"), "not a video"),
        (
            lambda p: write_frames(p, [np.zeros((8, 8, 3), np.uint8)] * 2, fps=9, codec="ffv1"),
            "2 f",
        ),
    ],
)
def test_clips_that_will_not_do(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "x.mkv"
    make(path)
    with pytest.raises(InputError, match=words), clip(1, 1, 9, str(path)):
        pass


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(InputError, match="--frames 3: 3 are warm-up"), clip(32, 32, WARM_UP):
        pass


def test_what_is_counted_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    t = FakeTime()
    host = FakeHost(t)

    def restore_video(source: Path, target: Path, restore: Any, **more: Any) -> None:
        for i in range(7):
            t.now_s += 0.5  # decoding
            restored = restore(np.zeros((6, 8, 3), np.uint8))
            assert (restored == 255).all()
            more["progress"](i + 1, 7, 1.0)
        t.now_s += 2.0  # the encoder is emptied

    monkeypatch.setattr(pipeline, "restore_video", restore_video)
    made = pipeline.Clip(Path("x/made.mkv"), "made 7 frames", 7)
    (run,) = measure_clip([host], made, 2, clock=t.clock)  # type: ignore[list-item]
    assert (run.level, run.shape, run.labels.task) == ("pipeline", (6, 8, 3), "made 7 frames")
    assert run.samples.turns == (4, 4)
    assert run.samples.wall_ms.tolist() == [1500.0] * 8
    assert run.samples.cpu_ms.tolist() == [750.0] * 8
    assert run.rate == pytest.approx(8 / (2 * (4 * 1.5 + 2)))  # until the file is closed
    # a second of the 1.5 from frame to frame
    assert run.notes == ["restoring takes 67% of the time, the limit is the decoder or the encoder"]
    assert host.resets == 2


def test_a_short_pass_and_lost_frames_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    t = FakeTime()
    host = FakeHost(t, 0.01)
    counts = [7, 6]

    def restore_video(source: Path, target: Path, restore: Any, **more: Any) -> None:
        for i in range(counts.pop(0)):
            restore(np.zeros((6, 8, 3), np.uint8))
            more["progress"](i + 1, 7, 1.0)

    monkeypatch.setattr(pipeline, "restore_video", restore_video)
    made = pipeline.Clip(Path("x/made.mkv"), "made 7 frames", 7)
    (run,) = measure_clip([host], made, 1, clock=t.clock)  # type: ignore[list-item]
    assert run.notes == [
        "restoring takes 100% of the time, the limit is the network",
        "a pass took less than 1 s; take more --frames",
    ]
    with pytest.raises(InputError, match="made 7 frames: 6 frames came out"):
        measure_clip([host], made, 1, clock=t.clock)  # type: ignore[list-item]


@pytest.mark.parametrize(("seconds", "frames"), [(3.0, FRAMES[0]), (30.0, 20), (999.0, FRAMES[1])])
def test_how_many_frames_go_in_a_time(seconds: float, frames: int) -> None:
    t = FakeTime()
    hosts: Any = [FakeHost(t, 0.5), FakeHost(t, 1.5)]
    assert fitting_frames(hosts, 16, 16, seconds, t.clock.wall) == WARM_UP + frames


def test_a_clip_goes_from_file_to_file() -> None:
    t = FakeTime()
    host = FakeHost(t)
    with clip(32, 48, 6) as made:
        (run,) = measure_clip([host], made, 1)  # type: ignore[list-item]
        restored = list(read_frames(made.path.with_name("restored.mkv")))
        given = list(read_frames(made.path))
    assert len(run.samples.wall_ms) == 3
    assert len(restored) == 6
    assert host.frames == [(32, 48, 3)] * 6
    assert np.abs(restored[0].astype(int) - (255 - given[0])).mean() < 12
