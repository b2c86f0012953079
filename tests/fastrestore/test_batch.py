from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.batch import Job, Options, Outcome, collect, exit_code, run
from fastrestore.containers import Meta, encode_png
from fastrestore.errors import FastRestoreError, InputError, ModelError, OutputError
from fastrestore.images import Picture, read_picture, write_picture
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
    options = Options(mask=str(tmp_path / "m.png"), grow_px=0, codec="ffv1")
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
    options = Options(mask=str(tmp_path / "m.png"), grow_px=2, codec="ffv1")
    assert run(job, restorer, options, None).error is None
    (before,), (after,) = read_frames(tmp_path / "v.mkv"), read_frames(job.target)
    changed = (before != after).any(2)
    rows, cols = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (2, 10)
    assert (cols[0], cols[-1]) == (1, 21)
    assert changed[mask > 0].mean() > 0.9


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
        (Options(codec="zzz"), "not written with zzz"),
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
        ({"mask": "auto"}, "no damage detector yet; give a mask file"),
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
