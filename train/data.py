"""Pictures in memory and a bank of hole masks: the source of training samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastrestore.arrays import F32, U8
from fastrestore.degrade import make_mask
from fastrestore.errors import InputError
from fastrestore.images import is_picture, read_picture

_KINDS = ["freeform", "rects", "grid", "thin"]
_SHARES = [0.6, 0.25, 0.1, 0.05]


class Batch(NamedTuple):
    """Raw material of one step; `train.samples` turns it into network input and target."""

    clean: U8  # (N, H, W, 3)
    mask: U8  # (N, H, W), 1 = hole
    trusted: U8  # (N, H, W), 1 = hole pixels whose content is remembered from the past
    sigma: F32  # (N,), noise on the 0-255 scale
    frames: F32  # (N, H, W), how many averaged frames the known pixels are worth, 1-15


@dataclass(frozen=True, slots=True)
class Pictures:
    """Training and held-out pictures of one track, all in memory.

    Attributes:
        train: uint8 RGB arrays, any size.
        weights: Probability of each to be drawn; sums to 1.
        held_out: Pictures never drawn, for validation.
        skipped: Files that could not be read, with the reason.
    """

    train: list[U8]
    weights: np.ndarray
    held_out: list[U8]
    skipped: list[str]

    @classmethod
    def load(cls, folders: tuple[str, ...], held_out: int, smallest: int) -> Pictures:
        """Read all pictures of the folders.

        Args:
            folders: `FOLDER` or `FOLDER=WEIGHT`: the folder's share of the samples.
            held_out: Pictures to keep back, spread evenly over all folders.
            smallest: Pictures with a side below this many px are skipped.

        Raises:
            InputError: A folder is absent, or too few pictures are left.
        """
        train: list[U8] = []
        kept: list[U8] = []
        weights: list[float] = []
        skipped: list[str] = []
        for entry in folders:
            folder, share = _split(entry)
            found = []
            for path in _files(Path(folder)):
                try:
                    picture = read_picture(path).rgb
                except InputError as e:
                    skipped.append(str(e))
                    continue
                if min(picture.shape[:2]) < smallest:
                    skipped.append(f"{path}: smaller than the crop of {smallest} px")
                else:
                    found.append(picture)
            quota = -(-held_out // len(folders))
            if len(found) <= 2 * quota:
                raise InputError(f"{folder}: {len(found)} usable pictures, too few to train on")
            back = {round((i + 0.5) * len(found) / quota) for i in range(quota)}
            kept += [p for i, p in enumerate(found) if i in back]
            rest = [p for i, p in enumerate(found) if i not in back]
            train += rest
            weights += [share / len(rest)] * len(rest)
        w = np.array(weights)
        return cls(train, w / w.sum(), kept[:held_out], skipped)


def _split(entry: str) -> tuple[str, float]:
    """Split `FOLDER=WEIGHT`; a folder that exists under the whole name has weight 1."""
    folder, equals, share = entry.rpartition("=")
    if not equals or Path(entry).is_dir():
        return entry, 1.0
    try:
        weight = float(share)
    except ValueError:
        weight = 0.0
    if not 0 < weight < math.inf:
        raise InputError(f"{folder}: its share {share!r} is not a number above zero; mend it")
    return folder, weight


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pictures")
    return sorted(p for p in folder.rglob("*") if is_picture(p))


class Sampler:
    """Draws batches; the only state is its random generator and a bank of masks.

    Masks are drawn once, at twice the crop, then cropped and flipped: drawing costs 1-8 ms each,
    a whole training sample of the smallest preset 3 ms.
    """

    def __init__(
        self,
        pictures: Pictures,
        rng: np.random.Generator,
        crop: int,
        *,
        noisy: float,
        max_sigma: float,
        max_ratio: float,
        bank: int = 400,
    ) -> None:
        self.pictures, self.rng, self.crop = pictures, rng, crop
        self.noisy, self.max_sigma = noisy, max_sigma
        masks = np.random.default_rng(crop)  # not self.rng: a resumed run makes the same bank
        self.bank = []
        for _ in range(bank):
            kind = str(masks.choice(_KINDS, p=_SHARES))
            ratio = masks.uniform(0.03, min(max_ratio, 0.2 if kind == "thin" else 1.0))
            cell = int(masks.choice([8, 16, 32]))
            self.bank.append(make_mask(kind, masks, 2 * crop, 2 * crop, ratio, cell))

    def batch(self, n: int) -> Batch:
        """Draw `n` samples; see `Batch`."""
        c, rng = self.crop, self.rng
        clean = np.stack([self._picture() for _ in range(n)])
        # Squared: half of the noise is below a quarter of the strongest, as in real pictures.
        sigma = self.max_sigma * rng.random(n) ** 2 * (rng.random(n) < self.noisy)
        holes = (sigma == 0) | (rng.random(n) < 0.5)
        mask = np.stack([self._mask() if h else np.zeros((c, c), np.uint8) for h in holes])
        remembers = rng.random(n) < 0.3
        trusted = np.stack(
            [
                m & self._mask() if r else np.zeros_like(m)
                for m, r in zip(mask, remembers, strict=True)
            ]
        )
        single = rng.random(n) < 0.5
        frames = np.stack([np.ones((c, c)) if s else self._frames() for s in single])
        return Batch(clean, mask, trusted, sigma.astype(np.float32), frames.astype(np.float32))

    def _picture(self) -> U8:
        c, rng = self.crop, self.rng
        picture = self.pictures.train[rng.choice(len(self.pictures.train), p=self.pictures.weights)]
        h, w = picture.shape[:2]
        if rng.random() < 0.3 and min(h, w) > c:
            picture = _shrink(picture, rng.uniform(c / min(h, w), 1))
            h, w = picture.shape[:2]
        y, x = rng.integers(0, h - c + 1), rng.integers(0, w - c + 1)
        return picture[y : y + c, x : x + c][:, :: 1 if rng.random() < 0.5 else -1]

    def _mask(self) -> U8:
        """Cut a mask that has a hole: a clean sample without one would teach nothing."""
        rng = self.rng
        while True:
            m = self.bank[rng.integers(len(self.bank))]
            y, x = rng.integers(0, m.shape[0] - self.crop + 1, 2)
            part = m[y : y + self.crop, x : x + self.crop]
            if part.mean() >= 0.01:
                flips = rng.random(2) < 0.5
                return part[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]

    def _frames(self) -> F32:
        """Smooth random map of 1-15 averaged frames, as a moving scene leaves behind."""
        import cv2

        coarse = self.rng.uniform(0, 1, (4, 4)).astype(np.float32)
        smooth = cv2.resize(coarse, (self.crop, self.crop), interpolation=cv2.INTER_CUBIC)
        return np.asarray(15 ** np.clip(smooth, 0, 1), np.float32)


def _shrink(picture: U8, factor: float) -> U8:
    import cv2

    h, w = picture.shape[:2]
    size = (max(1, round(w * factor + 0.5)), max(1, round(h * factor + 0.5)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
