"""Masks that were made elsewhere: one file, a mask clip, a folder by frame number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.batch import Options
from fastrestore.errors import InputError
from fastrestore.frame_masks import ConstantMask, FrameMask, open_masks
from fastrestore.images import Picture, write_picture
from fastrestore.mask_video import MaskVideo
from fastrestore.moving_masks import FolderMasks, VideoMasks, count_frames
from fastrestore.video_io import write_frames

H, W = 32, 48
FRAME = np.zeros((H, W, 3), np.uint8)


def mask_at(i: int) -> U8:
    """The mask of frame i: a square that moves."""
    mask = np.zeros((H, W), np.uint8)
    mask[4:20, 2 * i : 2 * i + 16] = 1
    return mask


def white(mask: U8) -> U8:
    return np.repeat(mask[..., None] * np.uint8(255), 3, 2)


def save(path: Path, mask: U8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, Picture(white(mask)), white(mask))
    return path


def save_clip(path: Path, n: int, codec: str = "ffv1") -> Path:
    write_frames(path, [white(mask_at(i)) for i in range(n)], fps=10, codec=codec)
    return path


def opened(source: Path | str, mask: Path, size: tuple[int, int] = (H, W), **rest: Any) -> Any:
    return open_masks(source, size, Options(mask=str(mask), grow_px=0, **rest), None)


def refused(source: Path | str, mask: Path, **rest: Any) -> str:
    with pytest.raises(InputError) as e:
        opened(source, mask, **rest)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return save_clip(tmp_path / "shot.mkv", 5)


# One mask for all frames.


def test_a_picture_is_the_mask_of_every_frame(tmp_path: Path, clip: Path) -> None:
    masks = opened(clip, save(tmp_path / "m.png", mask_at(3)))
    assert isinstance(masks, ConstantMask)
    for number in (0, 7, 2):
        assert np.array_equal(masks(FRAME, number), mask_at(3))
    assert (masks.remember(), masks.notes()) == ({}, [])


def test_a_picture_that_is_black_or_white_throughout(tmp_path: Path, clip: Path) -> None:
    black = save(tmp_path / "b.png", np.zeros((H, W), np.uint8))
    assert opened(clip, black).notes() == ["the mask is empty: nothing is changed"]
    everything = save(tmp_path / "w.png", np.ones((H, W), np.uint8))
    assert "covers the whole picture" in refused(clip, everything)


def test_no_mask_and_what_a_video_cannot_have(clip: Path) -> None:
    assert open_masks(clip, (H, W), Options(), None) is None
    for options in (Options(mask="alpha"), Options(mask_colour="#ff00ff")):
        with pytest.raises(InputError, match=r"shot\.mkv: a video needs a mask file"):
            open_masks(clip, (H, W), options, None)
    with pytest.raises(InputError, match="mask auto needs a detector"):
        open_masks(clip, (H, W), Options(mask="auto"), None)


# A mask clip.


@pytest.mark.parametrize("codec", ["ffv1", "libx264"])
def test_a_mask_clip_goes_by_number(codec: str, tmp_path: Path, clip: Path) -> None:
    masks = opened(clip, save_clip(tmp_path / "m.mkv", 5, codec))
    assert isinstance(masks, VideoMasks)
    for number in (0, 1, 4, 2, 2):  # on, over lost frames, back, once more
        found = masks(FRAME, number)
        assert (found.dtype, set(np.unique(found))) == (np.uint8, {0, 1})
        assert (found != mask_at(number)).mean() < 0.02
        assert (masks.grown == found).all()
    masks.close()
    masks.close()


def test_a_mask_clip_may_be_inverted(tmp_path: Path, clip: Path) -> None:
    masks = opened(clip, save_clip(tmp_path / "m.mkv", 5), invert=True)
    assert np.array_equal(masks(FRAME, 1), 1 - mask_at(1))


def test_half_of_the_luma_is_a_hole(tmp_path: Path, clip: Path) -> None:
    levels = np.repeat(np.arange(118, 140, dtype=np.uint8).repeat(2)[None, :, None], 32, 0)
    grey = np.pad(levels, ((0, 0), (0, W - levels.shape[1]), (0, 0))).repeat(3, 2)
    write_frames(tmp_path / "m.mkv", [grey] * 5, fps=10, codec="ffv1")
    found = opened(clip, tmp_path / "m.mkv")(FRAME, 0)
    wanted = grey[..., 0] >= 128
    assert (found != wanted)[(grey[..., 0] < 127) | (grey[..., 0] > 128)].sum() == 0


def test_what_mask_out_writes_is_read_back(tmp_path: Path, clip: Path) -> None:
    video = MaskVideo(tmp_path / "m.mkv", 29.97)
    for i in range(5):
        video.write(mask_at(i))
    video.finish()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["m.mkv", "shot.mkv"]
    masks = opened(clip, tmp_path / "m.mkv")
    assert all(np.array_equal(masks(FRAME, i), mask_at(i)) for i in range(5))


def test_a_mask_clip_of_another_length(tmp_path: Path, clip: Path) -> None:
    long = opened(clip, save_clip(tmp_path / "long.mkv", 8))
    assert [int(long(FRAME, i).sum()) for i in range(5)] == [256] * 5
    assert long.notes() == [f"{tmp_path / 'long.mkv'}: 3 frames more than the clip has"]
    short = save_clip(tmp_path / "short.mkv", 3)
    # The end of a stream that was cut may be told only when it comes.
    masks = opened(clip, short)
    for i in range(3):
        masks(FRAME, i)
    with pytest.raises(InputError, match=r"short\.mkv: has 3 frames, .*shot\.mkv has more; make"):
        masks(FRAME, 3)
    many = save_clip(tmp_path / "many.mkv", 40)
    assert "short.mkv: has 3 frames, " in refused(many, short)
    assert "many.mkv has 40 frames; make a mask for every frame" in refused(many, short)


def test_a_mask_clip_of_another_size_or_kind(tmp_path: Path, clip: Path) -> None:
    path = save_clip(tmp_path / "m.mkv", 5)
    text = refused(clip, path, size=(H, W + 2))
    assert "m.mkv: the mask is 48x32, the clip 50x32; scale the mask" in text
    path.write_bytes(b"no video")
    assert "m.mkv: not a video" in refused(clip, path)


def test_a_damaged_mask_clip_does_not_slip_by_a_frame(tmp_path: Path, clip: Path) -> None:
    path = save_clip(tmp_path / "m.mkv", 9, "libx264")
    with av.open(str(path)) as container:
        packet = [bytes(p) for p in container.demux(video=0) if p.size][4]
    path.write_bytes(path.read_bytes().replace(packet, bytes(len(packet))))
    masks = opened(clip, path)
    assert (masks(FRAME, 0) != mask_at(0)).mean() < 0.02
    with pytest.raises(InputError, match=r"m\.mkv: is damaged; copy or make it again"):
        masks(FRAME, 4)


def test_a_frame_that_is_all_hole_does_not_end_the_clip(tmp_path: Path, clip: Path) -> None:
    everything = np.ones((H, W), np.uint8)
    stack = [mask_at(0), everything, mask_at(2)]
    write_frames(tmp_path / "m.mkv", [white(m) for m in stack], fps=10, codec="ffv1")
    masks = opened(clip, tmp_path / "m.mkv")
    assert [int(masks(FRAME, i).sum()) for i in range(3)] == [256, 0, 256]
    assert masks.notes() == ["1 masks cover the whole frame, which gets no repair"]


def test_count_frames_without_decoding(tmp_path: Path) -> None:
    for n in (1, 7):
        assert count_frames(save_clip(tmp_path / f"{n}.mp4", n, "libx264")) == n


# A folder by frame number.


@pytest.mark.parametrize(
    ("first", "name"), [(0, "{:05d}.png"), (1, "mask_{:04d}_v.png"), (1, "{}.png")]
)
def test_numbers_count_from_the_lowest(first: int, name: str, tmp_path: Path, clip: Path) -> None:
    for i in range(12):
        save(tmp_path / "masks" / name.format(i + first), mask_at(i))
    (tmp_path / "masks" / "notes.txt").touch()
    (tmp_path / "masks" / "99.png").mkdir()
    save(tmp_path / "masks" / "thumb.png", mask_at(0))
    masks = opened(clip, tmp_path / "masks")
    assert isinstance(masks, FolderMasks)
    for number in (0, 1, 11, 9):
        assert np.array_equal(masks(FRAME, number), mask_at(number))
    assert masks.notes() == [f"{tmp_path / 'masks'}: its numbers count frames from {first}"]


def test_a_missing_number_is_a_frame_without_a_hole(tmp_path: Path, clip: Path) -> None:
    folder = tmp_path / "masks"
    for i in (0, 3, 7):
        save(folder / f"{i:03d}.png", mask_at(i))
    masks = opened(clip, folder, invert=True)
    assert [int(masks(FRAME, i).sum()) for i in range(5)] == [1280, 0, 0, 1280, 0]
    assert masks.notes() == [
        f"{folder}: its numbers count frames from 0",
        f"3 of 5 frames have no mask in {folder} and get no repair",
        f"{folder}: 1 masks are for frames after the last, number 5",
    ]


def test_a_folder_in_which_every_mask_is_empty(tmp_path: Path, clip: Path) -> None:
    save(tmp_path / "masks" / "0.png", np.zeros((H, W), np.uint8))
    masks = opened(clip, tmp_path / "masks")
    masks(FRAME, 0)
    assert "the mask of every frame is empty: nothing is changed" in masks.notes()


def test_folders_that_cannot_be_read_by_number(tmp_path: Path, clip: Path) -> None:
    folder = tmp_path / "masks"
    save(folder / "a.png", mask_at(0))
    assert re.search(r"shot\.mkv: no mask named shot\.\* in .*masks", refused(clip, folder))
    save(folder / "57.png", mask_at(0))
    assert "the lowest number is 57, so it cannot be told" in refused(clip, folder)
    save(folder / "0.png", mask_at(0))
    save(folder / "m_057.png", mask_at(0))
    assert "57.png and m_057.png are for one frame; keep one" in refused(clip, folder)
    (folder / "m_057.png").unlink()
    save(folder / "1.png", mask_at(0)[:, :20])
    masks = opened(clip, folder)
    with pytest.raises(InputError, match=r"1\.png: the mask is 20x32, the picture 48x32; resize"):
        masks(FRAME, 1)


def test_what_is_named_like_the_clip_wins(tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "shot2.mkv", 5)
    folder = tmp_path / "masks"
    for i in (1, 3):
        save(folder / f"shot{i}.png", mask_at(0))
    # Masks of its neighbours are not frames of it.
    assert "no mask named shot2.* in" in refused(clip, folder)
    for i in range(2):
        save(folder / "shot2" / f"shot{i}.png", mask_at(i))
    assert np.array_equal(opened(clip, folder)(FRAME, 1), mask_at(1))
    save(folder / "shot2.png", mask_at(4))
    assert "shot2.mkv: 2 masks in" in refused(clip, folder)
    (folder / "shot2").rename(tmp_path / "away")
    assert np.array_equal(opened(clip, folder)(FRAME, 1), mask_at(4))
    (folder / "shot2.png").unlink()
    save_clip(folder / "shot2.mkv", 5)
    assert isinstance(opened(clip, folder), VideoMasks)


def test_a_camera_has_no_mask_named_like_it(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "masks" / f"{i}.png", mask_at(i))
    assert np.array_equal(opened("0", tmp_path / "masks")(FRAME, 2), mask_at(2))


def test_masks_may_lie_beside_the_clip(tmp_path: Path, clip: Path) -> None:
    save(tmp_path / "shot.png", mask_at(2))
    assert isinstance(opened(clip, tmp_path), ConstantMask)


@pytest.mark.parametrize("kind", ["clip", "folder", "picture"])
def test_they_go_on_from_what_they_remember(kind: str, tmp_path: Path, clip: Path) -> None:
    """At every frame: the rest of the masks, and the notes, as without a break."""
    path = tmp_path / {"clip": "m.mkv", "folder": "masks", "picture": "m.png"}[kind]
    if kind == "clip":
        save_clip(path, 7)
    elif kind == "picture":
        save(path, mask_at(0))
    else:
        for i in (0, 2, 3, 9):
            save(path / f"{i}.png", mask_at(i))

    def step(masks: FrameMask, numbers: range) -> list[bytes]:
        return [masks(FRAME, i).tobytes() for i in numbers]

    whole = opened(clip, path)
    wanted = step(whole, range(5))
    for stop in range(6):
        first, rest = opened(clip, path), opened(clip, path)
        begun = step(first, range(stop))
        rest.recall(first.remember())
        assert begun + step(rest, range(stop, 5)) == wanted
        if stop < 5:
            assert rest.notes() == whole.notes()
