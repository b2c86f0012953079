"""One clip, whole: masks that move, what is written of them, and a break in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.batch import Job, Options, Outcome, collect, run
from fastrestore.clip import Steps
from fastrestore.detect import Detector
from fastrestore.errors import InputError, OutputError
from fastrestore.frame_masks import open_masks
from fastrestore.images import Picture, write_picture
from fastrestore.video_io import read_frames, write_frames

H, W, N = 32, 48, 5


class Averager:
    """Stands for a Restorer: fills holes with the mean of its past, which is all that it keeps."""

    def __init__(self) -> None:
        self.past: U8 | None = None
        self.sigma = 0.0
        self.masks: list[Any] = []

    def reset(self) -> None:
        self.past = None

    def frame(self, image: U8, mask: U8 | None = None, **_: Any) -> U8:
        self.masks.append(mask)
        before = image if self.past is None else self.past
        self.past = ((image.astype(int) + before) // 2).astype(np.uint8)
        self.sigma = float(image[0, 0, 0])
        hole = np.ones((H, W), np.uint8) if mask is None else mask
        return np.where(hole[..., None] > 0, self.past, image).astype(np.uint8)


def hole_at(i: int) -> U8:
    mask = np.zeros((H, W), np.uint8)
    mask[4:20, 6 * i : 6 * i + 10] = 1
    return mask


def frame_at(i: int, magenta: bool = False) -> U8:
    image = np.random.default_rng(i).integers(0, 40, (H, W, 3), np.uint8)
    if magenta:
        image[hole_at(i) > 0] = (255, 0, 255)
    return image


def white(mask: U8) -> U8:
    return np.repeat(mask[..., None] * np.uint8(255), 3, 2)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a clip and its masks, as clip and as numbered files."""
    monkeypatch.chdir(tmp_path)
    frames = [frame_at(i, magenta=True) for i in range(N)]
    write_frames("v.mkv", frames, fps=10, codec="ffv1")
    write_frames("m.mkv", [white(hole_at(i)) for i in range(N)], fps=10, codec="ffv1")
    (tmp_path / "masks").mkdir()
    for i in range(N):
        write_picture(f"masks/{i + 1:03d}.png", Picture(white(hole_at(i))), white(hole_at(i)))
    return tmp_path


@pytest.fixture(scope="module")
def detector(magenta_detector: Path) -> Detector:
    return Detector(magenta_detector, 1)


def done(
    mask: str | None, mask_out: str | None = None, finder: Detector | None = None, **options: Any
) -> tuple[Outcome, Averager]:
    restorer: Any = Averager()
    job = Job(Path("v.mkv"), Path("out.mkv"), None if mask_out is None else Path(mask_out))
    given = Options(mask=mask, grow_px=0, encoder="ffv1", overwrite=True, **options)
    return run(job, restorer, given, None, finder), restorer


@pytest.mark.parametrize("mask", ["m.mkv", "masks", "auto"])
def test_each_frame_is_repaired_under_its_own_mask(
    mask: str, here: Path, detector: Detector
) -> None:
    outcome, restorer = done(mask, finder=detector)
    assert outcome.error is None
    assert outcome.frames == N
    for i, used in enumerate(restorer.masks):
        assert np.array_equal(used, hole_at(i))
    pairs = zip(read_frames("v.mkv"), read_frames("out.mkv"), strict=True)
    for i, (old, new) in enumerate(pairs):
        assert np.array_equal(old[hole_at(i) == 0], new[hole_at(i) == 0])
        assert i == 0 or (old != new).any()
    wanted = {
        "m.mkv": [],
        "masks": ["masks: its numbers count frames from 1"],
        "auto": [f"damage found in {N} of {N} frames"],
    }
    assert outcome.notes[: len(wanted[mask])] == wanted[mask]


@pytest.mark.parametrize("mask", ["m.mkv", "masks", "auto", "masks/002.png"])
def test_the_masks_are_written_as_a_clip(mask: str, here: Path, detector: Detector) -> None:
    outcome, restorer = done(mask, "shown.mkv", detector)
    assert outcome.error is None
    for used, shown in zip(restorer.masks, read_frames("shown.mkv"), strict=True):
        assert np.array_equal(white(used), shown)
    # What was written is a mask.
    again, second = done("shown.mkv")
    assert again.error is None
    assert all(map(np.array_equal, second.masks, restorer.masks))


def test_a_mask_that_stays_may_be_written_as_a_picture(here: Path) -> None:
    assert done("masks/002.png", "shown.png")[0].error is None
    error = done("m.mkv", "other.png")[0].error
    assert "v.mkv: every frame has its own mask; end --mask-out in .mkv" in str(error)
    assert "there is no mask" in str(done(None, "other.mkv")[0].error)
    assert not Path("other.png").exists()
    assert not Path("other.mkv").exists()


def test_after_an_error_no_mask_clip_is_left(here: Path) -> None:
    class Broken(Averager):
        def frame(self, image: U8, mask: U8 | None = None, **_: Any) -> U8:
            if len(self.masks) == 2:
                raise InputError("that frame cannot be restored")
            return super().frame(image, mask)

    restorer: Any = Broken()
    job = Job(Path("v.mkv"), Path("out.mkv"), Path("shown.mkv"))
    before = sorted(here.rglob("*"))
    error = run(job, restorer, Options(mask="m.mkv"), None).error
    assert str(error) == "that frame cannot be restored"
    assert sorted(here.rglob("*")) == before


def test_a_mask_clip_that_cannot_be_written(here: Path) -> None:
    from fastrestore.mask_video import MaskVideo

    video = MaskVideo(here / "absent" / "m.mkv", None)
    with pytest.raises(OutputError, match=r"m\.mkv: cannot be written .*choose another --mask-out"):
        video.write(hole_at(0))
    video.abandon()


def test_where_masks_of_videos_go(here: Path) -> None:
    write_picture("p.png", Picture(frame_at(0)), frame_at(0))

    def places(inputs: list[str], out: str) -> list[str]:
        return [str(job.mask_target) for job in collect(inputs, None, out)]

    assert places(["v.mkv", "p.png"], "found/") == ["found/v.mkv", "found/p.png"]
    assert places(["v.mkv"], "f.mkv") == ["f.mkv"]
    assert places(["v.mkv"], "f.png") == ["f.png"]
    for inputs, words in (
        (["v.mkv"], r"f\.mp4: masks are written as \.mkv, one that stays also \.png"),
        (["p.png"], r"f\.mp4: masks are written as PNG; end the name in \.png"),
    ):
        with pytest.raises(InputError, match=words):
            collect(inputs, None, "f.mp4")


@pytest.mark.parametrize("mask", ["m.mkv", "masks", "auto", "masks/001.png", None])
def test_steps_go_on_from_what_they_remember(
    mask: str | None, here: Path, detector: Detector, tmp_path: Path
) -> None:
    """After each frame, through a file: the rest and the notes as without a break."""
    frames = list(read_frames("v.mkv"))
    options = Options(mask=mask)

    def begin() -> Steps:
        restorer: Any = Averager()
        return Steps(restorer, open_masks("v.mkv", (H, W), options, detector), options)

    whole = begin()
    wanted = [whole(f) for f in frames]
    for stop in range(N):
        first, rest = begin(), begin()
        for f in frames[:stop]:
            first(f)
        np.savez(tmp_path / "past.npz", **first.remember())  # type: ignore[arg-type]
        with np.load(tmp_path / "past.npz") as past:
            rest.recall(dict(past))
        for f, restored in zip(frames[stop:], wanted[stop:], strict=True):
            assert np.array_equal(rest(f), restored)
        assert rest.notes() == whole.notes()
        assert rest.number == N


def test_what_may_change(here: Path) -> None:
    restorer: Any = Averager()

    def changed(mask: str | None, **rest: Any) -> Any:
        options = Options(mask=mask, grow_px=1, **rest)
        steps = Steps(restorer, open_masks("v.mkv", (H, W), options, None), options)
        steps(frame_at(0))
        return steps.changed

    assert changed(None) is None
    assert changed("m.mkv", sigma=5.0) is None
    grown = changed("m.mkv")()
    assert np.array_equal(grown, changed("masks/001.png"))
    assert grown.sum() > hole_at(0).sum()
