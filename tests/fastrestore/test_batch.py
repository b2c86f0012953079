from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.batch import Job, Options, Outcome, collect, exit_code, run
from fastrestore.containers import Meta, encode_png
from fastrestore.detect import Detector
from fastrestore.errors import FastRestoreError, InputError, ModelError, OutputError
from fastrestore.images import Picture, read_picture, write_picture
from fastrestore.masks import grow, read_mask
from fastrestore.video_io import read_frames, write_frames

H, W = 24, 32


class Inverter:
    """Stands for a Restorer: inverts holes, or everything where there is no mask."""

    sigma = 0.0

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.resets = 0

    def __call__(self, image: U8, mask: U8 | None = None, **options: Any) -> U8:
        self.calls.append({"mask": mask, **options})
        if mask is not None and mask.all():
            raise InputError("the mask covers the whole picture: nothing is left")
        changed = True if mask is None else mask[..., None] > 0
        return np.where(changed, 255 - image, image).astype(np.uint8)

    frame = __call__

    def reset(self) -> None:
        self.resets += 1


def restored(job: Job, options: Options | None = None, restorer: Any = None) -> Outcome:
    return run(job, restorer or Inverter(), options or Options(), None)


def noise(seed: int = 0, channels: int = 3) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (H, W, channels), np.uint8)


def save(path: Path, image: U8 | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise() if image is None else image
    write_picture(path, Picture(pixels), pixels)
    return path


def save_mask(path: Path, hole: tuple[slice, slice] = (slice(4, 9), slice(3, 20))) -> U8:
    mask = np.zeros((H, W), np.uint8)
    mask[hole] = 1
    save(path, mask[..., None].repeat(3, 2) * np.uint8(255))
    return mask


def save_clip(path: Path, n: int = 4) -> list[U8]:
    frames = [np.ascontiguousarray(np.roll(noise(), i, 1)) for i in range(n)]
    write_frames(path, frames, fps=10, codec="ffv1")
    return frames


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


# Which input goes where.


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def targets(inputs: list[str], output: str | None = None) -> list[str]:
    return [job.target.as_posix() for job in collect(inputs, output)]


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_without_an_output_the_result_lies_beside(here: Path) -> None:
    assert targets(["a.png", "d/b.JPG", "c.mp4"]) == [
        "a.restored.png",
        "d/b.restored.JPG",
        "c.restored.mp4",
    ]


def test_one_input_may_name_its_result(here: Path) -> None:
    assert targets(["a.png"], "b.jpg") == ["b.jpg"]


def test_an_output_may_be_a_folder_that_is_there_or_not(here: Path) -> None:
    Path("old").mkdir()
    assert targets(["a.png"], "old") == ["old/a.png"]
    assert targets(["a.png"], "new/") == ["new/a.png"]
    assert targets(["a.png", "b.png"], "new") == ["new/a.png", "new/b.png"]


def test_folders_give_what_is_directly_inside_by_name(here: Path) -> None:
    touch("in/b.png", "in/A.JPEG", "in/c.mkv", "in/notes.txt", "in/.hidden", "in/deep/d.png")
    assert targets(["in"], "out") == ["out/A.JPEG", "out/b.png", "out/c.mkv"]
    assert targets(["in"]) == ["in/A.restored.JPEG", "in/b.restored.png", "in/c.restored.mkv"]


def test_a_folder_of_one_picture_still_needs_a_folder(here: Path) -> None:
    touch("in/b.png", "file.png")
    assert targets(["in"], "out") == ["out/b.png"]
    with pytest.raises(InputError, match=r"file\.png: is a file"):
        collect(["in"], "file.png")


def test_a_second_run_on_a_folder_takes_the_same_inputs(here: Path) -> None:
    touch("in/a.png", "in/b.png")
    first = collect(["in"], None)
    for job in first:
        job.target.touch()
    assert collect(["in"], None) == first


def test_patterns_are_expanded_unless_such_a_file_exists(here: Path) -> None:
    touch("a1.png", "a2.png", "b.png", "a[12].jpg", "a1.jpg")
    assert [j.source.name for j in collect(["a*.png"], None)] == ["a1.png", "a2.png"]
    assert [j.source.name for j in collect(["a[12].png"], None)] == ["a1.png", "a2.png"]
    assert [j.source.name for j in collect(["a[12].jpg"], None)] == ["a[12].jpg"]


def test_inputs_keep_their_order(here: Path) -> None:
    touch("z.png", "a.png", "m/2.png", "m/1.png")
    assert [j.source.as_posix() for j in collect(["z.png", "m", "a.png"], None)] == [
        "z.png",
        "m/1.png",
        "m/2.png",
        "a.png",
    ]


def test_odd_names_are_only_names(here: Path) -> None:
    names = ["sp ace.png", "-dash.png", "p%03d.png", "br[1].png", "ünï☃.png", "dot.s.png", "'.png"]
    touch(*names)
    assert [j.source.name for j in collect(names, "out")] == names
    assert targets(["dot.s.png"]) == ["dot.s.restored.png"]


@pytest.mark.parametrize(
    ("inputs", "output", "words"),
    [
        (["empty"], None, "^empty: no pictures or videos in this folder"),
        (["*.webp"], None, r"^\*\.webp: matches no file"),
        (["a.png", "b.png"], "old.png", r"^old\.png: is a file, but 2 inputs need a folder"),
        (["a.png"], "a.png", r"^a\.png: the output would replace the input; choose another"),
        (["a.png"], "./x/../a.png", r"^a\.png: the output would replace the input"),
        (["a.png"], ".", r"^a\.png: the output would replace the input"),
        (["x"], "x", r"^x/a\.png: the output would replace the input"),
        (["a.png", "x/a.png"], "out", r"^x/a\.png: would be written to out/a\.png, as a\.png"),
        (["a.png", "./a.png"], None, r"would be written to a\.restored\.png"),
        (["x", "y"], "out", r"^y/a\.png: would be written to out/a\.png, as x/a\.png"),
    ],
)
def test_what_cannot_go_anywhere(
    here: Path, inputs: list[str], output: str | None, words: str
) -> None:
    touch("a.png", "b.png", "old.png", "x/a.png", "y/a.png")
    Path("empty").mkdir()
    with pytest.raises(InputError, match=words):
        collect(inputs, output)


def test_the_same_stem_with_two_suffixes_gives_two_results(here: Path) -> None:
    touch("in/a.png", "in/a.jpg")
    assert targets(["in"], "out") == ["out/a.jpg", "out/a.png"]
    assert targets(["in"]) == ["in/a.restored.jpg", "in/a.restored.png"]


def test_a_link_to_the_input_is_the_input(here: Path) -> None:
    touch("a.png")
    Path("link.png").symlink_to("a.png")
    Path("folder").symlink_to(".")
    for source, target in (("a.png", "link.png"), ("link.png", "a.png"), ("a.png", "folder/a.png")):
        with pytest.raises(InputError, match="would replace the input"):
            collect([source], target)


# One job.


def test_a_picture(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png")
    job = Job(source, tmp_path / "new" / "deep" / "b.png")
    outcome = restored(job)
    assert (outcome.error, outcome.size, outcome.frames) == (None, (W, H), 1)
    assert np.array_equal(read_picture(job.target).rgb, 255 - noise())
    assert outcome.to_json() == {
        "input": str(source),
        "output": str(job.target),
        "width": W,
        "height": H,
        "frames": 1,
        "ms": pytest.approx(1e3 * outcome.seconds, abs=0.1),
        "notes": outcome.notes,
        "error": None,
    }


def test_options_reach_the_restorer(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png")
    mask = save_mask(tmp_path / "m.png")
    restorer = Inverter()
    options = Options(mask=str(tmp_path / "m.png"), grow_px=7, sigma=12.5)
    assert not restored(Job(source, tmp_path / "b.png"), options, restorer).error
    (call,) = restorer.calls
    assert np.array_equal(call.pop("mask"), mask)
    assert call == {"sigma": 12.5, "grow_px": 7}


MASKS: dict[str, Callable[[Path], Options]] = {
    "file": lambda d: Options(mask=str(d / "m.png")),
    "folder": lambda d: Options(mask=str(d / "masks")),
    "inverted": lambda d: Options(mask=str(d / "inverted.png"), invert=True),
    "colour": lambda d: Options(mask_colour="#ff00ff"),
    "alpha": lambda d: Options(mask="alpha"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks(kind: str, tmp_path: Path) -> None:
    mask = save_mask(tmp_path / "m.png")
    save_mask(tmp_path / "masks" / "a.png")
    save_mask(tmp_path / "masks" / "b.png", (slice(0, 1), slice(0, 1)))
    save(tmp_path / "inverted.png", (1 - mask)[..., None].repeat(3, 2) * np.uint8(255))
    image = noise()
    if kind == "colour":
        image[mask > 0] = 255, 0, 255
    source = tmp_path / "a.png"
    alpha = np.where(mask > 0, 0, 255).astype(np.uint8)
    extra = alpha[..., None] if kind == "alpha" else np.zeros((H, W, 0), np.uint8)
    source.write_bytes(encode_png(np.dstack((image, extra)), Meta()))
    outcome = restored(Job(source, tmp_path / "out.png"), MASKS[kind](tmp_path))
    assert outcome.error is None
    out = read_picture(tmp_path / "out.png").rgb
    assert np.array_equal(out, np.where(mask[..., None] > 0, 255 - image, image))


def test_a_mask_folder_goes_by_stem_whatever_the_suffix(tmp_path: Path) -> None:
    source = save(tmp_path / "x.y.png")
    save_mask(tmp_path / "masks" / "x.y.webp")
    (tmp_path / "masks" / "x.y.txt").write_text("not a picture")
    (tmp_path / "masks" / "x.png").touch()
    options = Options(mask=str(tmp_path / "masks"))
    assert restored(Job(source, tmp_path / "out.png"), options).error is None


def test_an_empty_mask_is_said(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png")
    save_mask(tmp_path / "m.png", (slice(0, 0), slice(0, 0)))
    options = Options(mask=str(tmp_path / "m.png"))
    outcome = restored(Job(source, tmp_path / "out.png"), options)
    assert outcome.error is None
    assert any("mask is empty" in note for note in outcome.notes)
    assert np.array_equal(read_picture(tmp_path / "out.png").rgb, noise())


def test_a_clip(tmp_path: Path) -> None:
    frames = save_clip(tmp_path / "v.mkv")
    mask = save_mask(tmp_path / "m.png")
    restorer = Inverter()
    shown: list[tuple[int, int | None]] = []
    job = Job(tmp_path / "v.mkv", tmp_path / "out.mkv")
    options = Options(mask=str(tmp_path / "m.png"), grow_px=0, encoder="ffv1")
    outcome = run(job, restorer, options, lambda *p: shown.append(p[:2]))  # type: ignore[arg-type]
    assert outcome.error is None
    assert (outcome.size, outcome.frames, restorer.resets) == ((W, H), 4, 1)
    assert [done for done, _ in shown] == [1, 2, 3, 4]
    before, after = list(read_frames(tmp_path / "v.mkv")), list(read_frames(job.target))
    assert len(after) == len(frames)
    for a, b in zip(before, after, strict=True):
        assert np.array_equal(a[mask == 0], b[mask == 0])
        assert np.abs(b[mask > 0].astype(int) - (255 - a[mask > 0])).max() <= 3


def test_the_grown_mask_of_a_clip_is_what_may_change(tmp_path: Path) -> None:
    save_clip(tmp_path / "v.mkv", 1)
    mask = save_mask(tmp_path / "m.png")
    restorer: Any = Inverter()
    restorer.frame = lambda image, *_, **__: 255 - image  # changes all
    job = Job(tmp_path / "v.mkv", tmp_path / "out.mkv")
    options = Options(mask=str(tmp_path / "m.png"), grow_px=2, encoder="ffv1")
    assert run(job, restorer, options, None).error is None
    (before,), (after,) = read_frames(tmp_path / "v.mkv"), read_frames(job.target)
    changed = (before != after).any(2)
    rows, cols = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (2, 10)
    assert (cols[0], cols[-1]) == (1, 21)
    assert changed[mask > 0].mean() > 0.9


# The mask is found: what is magenta is damaged.

SPOT = (slice(6, 11), slice(9, 20))


@pytest.fixture
def detector(magenta_detector: Path) -> Iterator[Detector]:
    with Detector(magenta_detector, 1) as found:
        yield found


def spotted(hole: tuple[slice, slice] = SPOT, seed: int = 0) -> U8:
    image = noise(seed) // 2
    image[hole] = (255, 0, 255)
    return image


def mask_of(hole: tuple[slice, slice] = SPOT) -> U8:
    mask = np.zeros((H, W), np.uint8)
    mask[hole] = 1
    return mask


def test_what_is_found_is_repaired_and_nothing_else(tmp_path: Path, detector: Detector) -> None:
    image = spotted()
    job = Job(save(tmp_path / "a.png", image), tmp_path / "b.png", tmp_path / "m.png")
    outcome = run(job, Inverter(), Options(mask="auto", grow_px=0), None, detector)
    assert outcome.error is None
    assert outcome.notes == ["damage found: 7.16% of the picture"]
    expected = np.where(mask_of()[..., None] > 0, 255 - image, image)
    assert np.array_equal(read_picture(job.target).rgb, expected)
    assert np.array_equal(read_mask(tmp_path / "m.png", (H, W)), mask_of())
    assert np.unique(read_picture(tmp_path / "m.png").rgb).tolist() == [0, 255]


def test_holes_are_widened_by_one_unless_told_otherwise(tmp_path: Path, detector: Detector) -> None:
    save(tmp_path / "a.png", spotted())
    save_mask(tmp_path / "m.png")
    for i, (mask, given, used) in enumerate(
        [("auto", None, 1), ("auto", 3, 3), ("m.png", None, 1), ("m.png", 5, 5)]
    ):
        path = mask if mask == "auto" else str(tmp_path / mask)
        restorer: Any = Inverter()
        job = Job(tmp_path / "a.png", tmp_path / f"{i}.png")
        options = Options(mask=path) if given is None else Options(mask=path, grow_px=given)
        run(job, restorer, options, None, detector)
        assert restorer.calls[0]["grow_px"] == used
        assert restorer.calls[0]["sigma"] is None


def test_the_threshold_reaches_the_detector(tmp_path: Path, detector: Detector) -> None:
    image = spotted()
    image[SPOT] = (255, 8, 255)  # of probability 0.37, but for one pixel
    image[SPOT[0].start, SPOT[1].start] = (255, 0, 255)
    save(tmp_path / "a.png", image)
    for threshold, found in ((None, 1), (0.5, 1), (0.3, 55)):
        restorer: Any = Inverter()
        job = Job(tmp_path / "a.png", tmp_path / f"{threshold}.png")
        run(job, restorer, Options(mask="auto", threshold=threshold), None, detector)
        assert restorer.calls[0]["mask"].sum() == found


@pytest.mark.parametrize(
    ("sigma", "change"), [(None, "nothing is changed"), (20.0, "only noise is removed")]
)
def test_nothing_found_is_said_and_changes_nothing(
    sigma: float | None, change: str, tmp_path: Path, detector: Detector
) -> None:
    job = Job(save(tmp_path / "a.png", noise() // 2), tmp_path / "b.png", tmp_path / "m.png")
    outcome = run(job, Inverter(), Options(mask="auto", sigma=sigma), None, detector)
    assert outcome.notes == [f"no damage found: {change}"]
    assert np.array_equal(read_picture(job.target).rgb, noise() // 2)
    assert not read_mask(tmp_path / "m.png", (H, W)).any()


def test_all_damaged_is_refused_and_shown(tmp_path: Path, detector: Detector) -> None:
    everywhere = (slice(None), slice(None))
    job = Job(save(tmp_path / "a.png", spotted(everywhere)), tmp_path / "b.png", tmp_path / "m.png")
    error = run(job, Inverter(), Options(mask="auto"), None, detector).error
    assert isinstance(error, InputError)
    assert re.search(r"a\.png: all of it looks damaged.*raise --threshold", str(error))
    assert files(tmp_path) == ["a.png", "m.png"]
    assert read_mask(tmp_path / "m.png", (H, W)).all()


def test_without_a_detector(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save_clip(tmp_path / "v.mkv", 1)
    for name in ("a.png", "v.mkv"):
        error = failing(Job(tmp_path / name, tmp_path / f"out-{name}"), Options(mask="auto"))
        assert "mask auto needs a detector" in str(error)


@pytest.mark.parametrize("source", ["file", "alpha", "colour"])
def test_every_mask_can_be_written(source: str, tmp_path: Path) -> None:
    pixels = np.dstack((spotted(), 255 * (1 - mask_of())))
    (tmp_path / "a.png").write_bytes(encode_png(pixels, Meta()))
    save_mask(tmp_path / "black.png", SPOT)
    black = 255 - read_picture(tmp_path / "black.png").rgb
    save(tmp_path / "black.png", black)
    options = {
        "file": Options(mask=str(tmp_path / "black.png"), invert=True),
        "alpha": Options(mask="alpha"),
        "colour": Options(mask_colour="#ff00ff"),
    }[source]
    job = Job(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "new" / "m.png")
    assert restored(job, options).error is None
    assert np.array_equal(read_mask(tmp_path / "new" / "m.png", (H, W)), mask_of())


def test_a_mask_is_not_written_over_a_file(tmp_path: Path) -> None:
    job = Job(save(tmp_path / "a.png", spotted()), tmp_path / "b.png", tmp_path / "m.png")
    (tmp_path / "m.png").write_text("mine")
    options = Options(mask_colour="#ff00ff")
    assert re.search(r"m\.png: exists; use --overwrite$", str(failing(job, options)))
    assert (tmp_path / "m.png").read_text() == "mine"
    assert restored(job, replace(options, overwrite=True)).error is None
    assert read_mask(tmp_path / "m.png", (H, W)).sum() == 55


def test_no_mask_to_write(tmp_path: Path) -> None:
    job = Job(save(tmp_path / "a.png"), tmp_path / "b.png", tmp_path / "m.png")
    assert re.search(r"m\.png: there is no mask; give --mask", str(failing(job)))


@pytest.mark.parametrize("folder", [False, True])
def test_a_given_mask_is_never_replaced(tmp_path: Path, folder: bool) -> None:
    given = save_mask(tmp_path / "masks" / "a.png")
    options = Options(mask=str(tmp_path / "masks" / ("" if folder else "a.png")), overwrite=True)
    masks = tmp_path / "masks" / "a.png"
    source = save(tmp_path / "a.png")
    for job in (Job(source, tmp_path / "b.png", masks), Job(source, masks)):
        assert "is a mask that was given; choose another" in str(failing(job, options))
    assert np.array_equal(read_mask(masks, (H, W)), given)


def test_where_masks_go(here: Path) -> None:
    touch("in/a.png", "in/b.jpg", "c.png")

    def places(inputs: list[str], output: str | None, mask_out: str) -> list[str]:
        return [Path(str(j.mask_target)).as_posix() for j in collect(inputs, output, mask_out)]

    assert places(["c.png"], None, "m.png") == ["m.png"]
    assert places(["c.png"], None, "m/") == ["m/c.png"]
    assert places(["in"], "out", "m") == ["m/a.png", "m/b.png"]
    assert [j.mask_target for j in collect(["c.png"], None)] == [None]


@pytest.mark.parametrize(
    ("inputs", "output", "mask_out", "words"),
    [
        (["c.png"], None, "c.png", r"c\.png: its mask would replace c\.png"),
        (["c.png"], "o.png", "./x/../o.png", r"its mask would replace o\.png"),
        (["c.png"], None, "m.jpg", r"m\.jpg: masks are written as PNG; end the name in \.png"),
        (["c.png"], None, "m", r"^m: masks are written as PNG"),
        (["in"], "out", "out", r"in/a\.png: its mask would replace out/a\.png; choose"),
        (["c.png", "c.jpg"], "out", "m", r"c\.jpg: its mask would replace m/c\.png"),
        (["in"], "out", "file.png", r"file\.png: is a file, but 2 inputs need a folder"),
    ],
)
def test_where_masks_cannot_go(
    inputs: list[str], output: str | None, mask_out: str, words: str, here: Path
) -> None:
    touch("in/a.png", "in/b.png", "c.png", "c.jpg", "file.png", "x/y")
    with pytest.raises(InputError, match=words):
        collect(inputs, output, mask_out)


def save_spotted_clip(path: Path, holes: list[tuple[slice, slice] | None]) -> None:
    frames = [noise(9) // 2 if h is None else spotted(h, 9) for h in holes]
    write_frames(path, frames, fps=10, codec="ffv1")


MOVING = [SPOT, (slice(2, 8), slice(20, 30)), None, (slice(14, 20), slice(0, 6))]


def test_a_clip_is_repaired_frame_by_frame(tmp_path: Path, detector: Detector) -> None:
    save_spotted_clip(tmp_path / "v.mkv", MOVING)
    restorer: Any = Inverter()
    job = Job(tmp_path / "v.mkv", tmp_path / "out.mkv")
    outcome = run(job, restorer, Options(mask="auto", encoder="ffv1", grow_px=0), None, detector)
    assert outcome.error is None
    assert outcome.notes[0] == "damage found in 3 of 4 frames"
    assert (restorer.resets, outcome.frames) == (1, 4)
    wanted = [np.zeros((H, W), np.uint8) if h is None else mask_of(h) for h in MOVING]
    for call, mask in zip(restorer.calls, wanted, strict=True):
        assert np.array_equal(call["mask"], mask)
    before, after = read_frames(tmp_path / "v.mkv"), read_frames(job.target)
    for old, new, mask in zip(before, after, wanted, strict=True):
        assert np.array_equal(old[mask == 0], new[mask == 0])
        if mask.any():
            assert np.abs(new[mask > 0].astype(int) - (0, 255, 0)).max() < 8


def test_what_may_change_in_a_clip_is_each_frames_grown_mask(
    tmp_path: Path, detector: Detector
) -> None:
    """A restorer that changes everything shows it."""

    class Eager(Inverter):
        def frame(self, image: U8, mask: U8 | None = None, **options: Any) -> U8:
            return 255 - image

    save_spotted_clip(tmp_path / "v.mkv", MOVING)
    job = Job(tmp_path / "v.mkv", tmp_path / "out.mkv")
    run(job, Eager(), Options(mask="auto", encoder="ffv1"), None, detector)
    before, after = read_frames(tmp_path / "v.mkv"), read_frames(job.target)
    for old, new, hole in zip(before, after, MOVING, strict=True):
        allowed = grow(np.zeros((H, W), np.uint8) if hole is None else mask_of(hole), 1)
        changed = (old != new).any(2)
        assert not changed[allowed == 0].any()
        assert hole is None or changed[allowed > 0].mean() > 0.9


def test_with_noise_to_remove_the_whole_frame_may_change(
    tmp_path: Path, detector: Detector
) -> None:
    save_spotted_clip(tmp_path / "v.mkv", MOVING[:1])
    restorer: Any = Inverter()
    restorer.frame = lambda image, mask, **_: (restorer.calls.append({"mask": mask}), 255 - image)[
        1
    ]
    job = Job(tmp_path / "v.mkv", tmp_path / "out.mkv")
    run(job, restorer, Options(mask="auto", sigma=20.0, encoder="ffv1"), None, detector)
    (before,), (after,) = read_frames(tmp_path / "v.mkv"), read_frames(job.target)
    assert (before != after).any(2).mean() > 0.9
    assert np.array_equal(restorer.calls[0]["mask"], mask_of())


def test_a_frame_that_is_all_damage_does_not_end_the_clip(
    tmp_path: Path, detector: Detector
) -> None:
    holes = [SPOT, (slice(None), slice(None)), SPOT]
    save_spotted_clip(tmp_path / "v.mkv", holes)
    job = Job(tmp_path / "v.mkv", tmp_path / "out.mkv")
    outcome = run(job, Inverter(), Options(mask="auto", encoder="ffv1"), None, detector)
    assert outcome.notes[:2] == [
        "damage found in 3 of 3 frames",
        "1 of them look damaged all over and get no repair",
    ]
    before, after = list(read_frames(tmp_path / "v.mkv")), list(read_frames(job.target))
    assert np.array_equal(before[1], after[1])
    assert not np.array_equal(before[2], after[2])


def test_a_clip_without_damage_keeps_every_sample(tmp_path: Path, detector: Detector) -> None:
    save_spotted_clip(tmp_path / "v.mkv", [None, None])
    job = Job(tmp_path / "v.mkv", tmp_path / "out.mkv")
    outcome = run(job, Inverter(), Options(mask="auto", encoder="ffv1"), None, detector)
    assert outcome.notes[0] == "no damage found: nothing is changed"
    pairs = zip(read_frames(tmp_path / "v.mkv"), read_frames(job.target), strict=True)
    assert all(np.array_equal(old, new) for old, new in pairs)


def test_the_mask_of_a_clip_is_written_if_it_has_one(tmp_path: Path, detector: Detector) -> None:
    save_clip(tmp_path / "v.mkv", 1)
    mask = save_mask(tmp_path / "m.png")
    job = Job(tmp_path / "v.mkv", tmp_path / "out.mkv", tmp_path / "used.png")
    assert run(job, Inverter(), Options(mask=str(tmp_path / "m.png")), None).error is None
    assert np.array_equal(read_mask(tmp_path / "used.png", (H, W)), mask)
    job = Job(tmp_path / "v.mkv", tmp_path / "out2.mkv", tmp_path / "used2.png")
    error = run(job, Inverter(), Options(mask="auto"), None, detector).error
    assert "v.mkv: every frame has its own mask; end --mask-out in .mkv" in str(error)


# What fails is one line, names the file, and leaves nothing.


def failing(job: Job, options: Options | None = None) -> FastRestoreError:
    before = files(job.source.parent)
    error = restored(job, options).error
    assert error is not None
    assert "\n" not in str(error)
    assert files(job.source.parent) == before
    return error


BAD_PICTURES = {
    "missing.png": (None, "no such file"),
    "missing": (None, "no such file"),
    "zero.png": (b"", r"is empty \(0 bytes\)"),
    "text.png": (b"hello" * 9, "is not a picture that is read here"),
    "cut.png": ("cut", "cut short"),
    "folder.png": ("folder", "is a folder"),
    "large.png": ("large", "over the limit of .* --max-pixels"),
    "zero.mkv": (b"", "the file is empty"),
    "text.mp4": (b"hello" * 9, "video"),
    "list.mp4": (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "video"),
    "missing.mkv": (None, "no such file"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_inputs(name: str, tmp_path: Path) -> None:
    data, words = BAD_PICTURES[name]
    source = tmp_path / name
    if data == "folder":
        source.mkdir()
    elif data == "cut":
        whole = encode_png(noise(), Meta())
        source.write_bytes(whole[: len(whole) // 2])
    elif data == "large":
        save(source)
    elif data is not None:
        source.write_bytes(bytes(data))  # type: ignore[arg-type]
    options = Options(max_pixels=H * W - (data == "large"))
    target = tmp_path / f"out{source.suffix}" if source.suffix else tmp_path / "out.png"
    error = failing(Job(source, target), options)
    assert isinstance(error, InputError)
    assert name in str(error)
    assert re.search(words, str(error))


def test_a_missing_input_without_a_suffix_is_what_is_missing(here: Path) -> None:
    (job,) = collect(["phtoo"], None)
    assert "no such file" in str(failing(Job(here / job.source, here / job.target)))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("absent", "a.png: no mask named a.* in .*masks"),
        ("size", r"m\.png: the mask is 5x5, the picture 32x24; resize the mask"),
        ("text", r"m\.png: is not a picture"),
        ("full", r"a\.png: .*covers the whole picture"),
        ("alpha", r"a\.png: has no alpha channel; give a mask file"),
    ],
)
def test_bad_masks(mask: str, words: str, tmp_path: Path) -> None:
    source = save(tmp_path / "a.png")
    path = tmp_path / "m.png"
    (tmp_path / "masks").mkdir()
    if mask == "size":
        save(path, noise()[:5, :5])
    elif mask == "full":
        save_mask(path, (slice(None), slice(None)))
    elif mask == "text":
        path.write_text("hello")
    given = {"absent": str(tmp_path / "masks"), "alpha": "alpha"}.get(mask, str(path))
    error = failing(Job(source, tmp_path / "out.png"), Options(mask=given))
    assert isinstance(error, InputError)
    assert re.search(words, str(error))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(mask="alpha"), "needs a mask file"),
        (Options(mask_colour="#ff00ff"), "needs a mask file"),
        (Options(encoder="zzz"), "zzz is unknown"),
    ],
)
def test_what_a_clip_cannot_have(options: Options, words: str, tmp_path: Path) -> None:
    save_clip(tmp_path / "v.mkv", 1)
    error = failing(Job(tmp_path / "v.mkv", tmp_path / "out.mkv"), options)
    assert isinstance(error, InputError)
    assert re.search(rf"(v|out)\.mkv: .*{words}", str(error))


def test_a_mask_of_another_size_for_a_clip(tmp_path: Path) -> None:
    save_clip(tmp_path / "v.mkv", 1)
    save(tmp_path / "m.png", noise()[:5, :5])
    options = Options(mask=str(tmp_path / "m.png"))
    error = failing(Job(tmp_path / "v.mkv", tmp_path / "out.mkv"), options)
    assert "resize the mask" in str(error)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a.png", "b.txt"),
        ("a.png", "b"),
        ("a.png", "b.mkv"),
        ("a.png", "b.gif"),
        ("v.mkv", "b.png"),
        ("v.mkv", "b.avi"),
        ("v.mkv", "b"),
    ],
)
def test_formats_that_are_not_written(source: str, target: str, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save_clip(tmp_path / "v.mkv", 1)
    error = failing(Job(tmp_path / source, tmp_path / target))
    assert target in str(error)
    assert error.exit_code in (3, 5)


def test_an_existing_output_is_kept_or_replaced(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png")
    target = tmp_path / "b.png"
    target.write_text("mine")
    error = failing(Job(source, target))
    assert isinstance(error, OutputError)
    assert "exists; use --overwrite" in str(error)
    assert target.read_text() == "mine"
    assert restored(Job(source, target), Options(overwrite=True)).error is None
    assert read_picture(target).rgb.shape == (H, W, 3)


def test_a_failure_leaves_the_old_output(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    source.write_text("no picture")
    target = save(tmp_path / "b.png", noise(5))
    failing(Job(source, target), Options(overwrite=True))
    assert np.array_equal(read_picture(target).rgb, noise(5))


@pytest.mark.parametrize("suffix", [".png", ".mkv"])
def test_outputs_that_cannot_be_written(suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"a{suffix}"
    if suffix == ".png":
        save(source)
    else:
        save_clip(source, 1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / f"b{suffix}").mkdir()
    for target in (source / f"b{suffix}", tmp_path / "folder" / f"b{suffix}"):
        error = failing(Job(source, target), Options(overwrite=True))
        assert isinstance(error, OutputError)
        assert str(tmp_path) in str(error)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert isinstance(failing(Job(source, locked / "b.png")), OutputError)
    assert isinstance(failing(Job(source, locked / "deep" / "b.png")), OutputError)


def test_a_link_as_target_is_replaced_not_followed(tmp_path: Path) -> None:
    source, other = save(tmp_path / "a.png"), save(tmp_path / "other.png", noise(5))
    target = tmp_path / "link.png"
    target.symlink_to(other)
    assert restored(Job(source, target)).error is not None  # it exists
    assert restored(Job(source, target), Options(overwrite=True)).error is None
    assert not target.is_symlink()
    assert np.array_equal(read_picture(other).rgb, noise(5))
    dangling = tmp_path / "dangling.png"
    dangling.symlink_to(tmp_path / "nowhere.png")
    assert restored(Job(source, dangling), Options(overwrite=True)).error is None
    assert not (tmp_path / "nowhere.png").exists()


def test_messages_stay_one_line_for_odd_names(tmp_path: Path) -> None:
    source = save(tmp_path / "line\nbreak.png")
    target = save(tmp_path / "b\nc.png")
    for job in (Job(source, target), Job(source, tmp_path / "b\nc.txt")):
        assert "\n" not in str(restored(job).error)
    masks = Options(mask=str(tmp_path))
    target.unlink()
    source.rename(tmp_path / "d\ne.jpg")
    error = restored(Job(tmp_path / "d\ne.jpg", target), masks).error
    assert "\n" not in str(error)


def test_a_surprise_is_not_swallowed(tmp_path: Path) -> None:
    def broken(*_: Any, **__: Any) -> U8:
        raise ZeroDivisionError

    job = Job(save(tmp_path / "a.png"), tmp_path / "b.png")
    with pytest.raises(ZeroDivisionError):
        run(job, broken, Options(), None)  # type: ignore[arg-type]


# Options and exit codes.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": "a", "mask_colour": "#ffffff"}, "not both"),
        ({"mask": "auto", "threshold": 1.5}, "threshold 1.5: must be from 0 to 1"),
        ({"mask": "a", "threshold": 0.5}, "goes with --mask auto only"),
        ({"threshold": 0.5}, "goes with --mask auto only"),
        ({"mask": "/no/such/mask.png"}, "no such mask"),
        ({"mask_colour": "pink"}, "six hexadecimal digits"),
    ],
)
def test_contradictions_are_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Options(**options)


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([], 0),
        ([None], 0),
        ([InputError("x")], 3),
        ([OutputError("x")], 5),
        ([ModelError("x")], 4),
        ([InputError("x"), None], 1),
        ([None, OutputError("x"), None], 1),
        ([InputError("x"), InputError("y")], 3),
        ([InputError("x"), OutputError("y")], 5),
    ],
)
def test_exit_codes(errors: list[FastRestoreError | None], code: int) -> None:
    job = Job(Path("a"), Path("b"))
    assert exit_code([Outcome(job, 0.1, error=e) for e in errors]) == code


def test_a_failed_outcome_as_json() -> None:
    outcome = Outcome(Job(Path("a.png"), Path("b.png")), 0.0123, error=OutputError("b.png: full"))
    found = outcome.to_json()
    assert (found["input"], found["output"], found["frames"]) == ("a.png", None, 0)
    assert found["ms"] == 12.3
    assert found["error"] == {"code": 5, "message": "b.png: full"}


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    job = Job(tmp_path / "pipe.png", tmp_path / "out.png")
    assert "no regular file" in str(restored(job).error)


def test_what_transparency_marked_is_seen_afterwards(tmp_path: Path) -> None:
    pixels = np.full((40, 48, 4), 200, np.uint8)
    pixels[..., 3] = 255
    pixels[10:20, 10:20, 3] = 0
    (tmp_path / "a.png").write_bytes(encode_png(pixels, Meta()))
    job = Job(tmp_path / "a.png", tmp_path / "b.png")
    assert restored(job, Options(mask="alpha")).error is None
    alpha = read_picture(job.target).alpha
    assert alpha is None or alpha.min() == 255
