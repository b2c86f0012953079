"""Pictures in memory and a bank of hole masks: the source of training samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fastrestore.arrays import F32, U8
from fastrestore.degrade import make_mask
from fastrestore.errors import InputError
from fastrestore.train.memory import Held, Memory
from fastrestore.train.portraits import Alphas, composite
from fastrestore.train.sources import open_source, split_weight

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
        train: uint8 RGB arrays, any size; decoded when drawn where they are too many.
        weights: Probability of each to be drawn; sums to 1.
        held_out: Pictures never drawn, for validation.
        skipped: Files that could not be read, with the reason.
        origin: Number of the entry that each of `train` is from.
        alphas: Backgrounds of `train` that can be replaced; found on first use.
    """

    train: Sequence[U8]
    weights: np.ndarray
    held_out: list[U8]
    skipped: list[str]
    origin: np.ndarray | None = None
    alphas: Alphas = field(init=False)

    def __post_init__(self) -> None:
        """Make the lazy list of backgrounds; without `origin` all pictures are one set."""
        origin = np.zeros(len(self.train), np.int64) if self.origin is None else self.origin
        object.__setattr__(self, "alphas", Alphas(self.train, origin))

    @classmethod
    def load(
        cls, folders: tuple[str, ...], held_out: int, smallest: int, *, limit_gib: float = 0
    ) -> Pictures:
        """Read all pictures of the entries.

        Args:
            folders: What `sources.open_source` takes, or that with `=WEIGHT`: its share of the
                samples.
            held_out: Pictures to keep back, spread evenly over all entries.
            smallest: Pictures with a side below this many px are skipped.
            limit_gib: Above this many GiB of decoded pictures their files are kept in memory
                instead, and decoded when drawn; 0 = half of the free memory.

        Raises:
            InputError: An entry is absent, or too few pictures are left.
            MissingExtraError: See `sources.open_source`.
        """
        entries = [split_weight(entry) for entry in folders]
        memory = Memory(limit_gib)
        kept: list[Held] = []
        train: list[Held] = []
        weights: list[float] = []
        origin: list[int] = []
        skipped: list[str] = []
        quota = -(-held_out // len(entries))
        for number, (entry, share) in enumerate(entries):
            with open_source(entry) as source:
                found = memory.read(source, smallest, skipped)
            if len(found) <= 2 * quota:
                why = f" ({skipped[-1]})" if skipped else ""
                raise InputError(
                    f"{entry}: {len(found)} usable pictures, too few to train on: more than "
                    f"{2 * quota} are needed; add some or lower --held-out{why}"
                )
            back = {round((i + 0.5) * len(found) / quota) for i in range(quota)}
            kept += [p for i, p in enumerate(found) if i in back]
            rest = [p for i, p in enumerate(found) if i not in back]
            train += rest
            weights += [share / len(rest)] * len(rest)
            origin += [number] * len(rest)
        w = np.array(weights)
        held = [*memory.pictures(kept[:held_out])]
        return cls(memory.pictures(train), w / w.sum(), held, skipped, np.array(origin))


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
        replace_background: float = 0.0,
    ) -> None:
        self.replace_background = replace_background
        self.pictures, self.rng, self.crop = pictures, rng, crop
        self.noisy, self.max_sigma = noisy, max_sigma
        masks = np.random.default_rng(crop)  # not self.rng: a resumed run makes the same bank
        self.bank = []
        for _ in range(bank):
            kind = str(masks.choice(_KINDS, p=_SHARES))
            ratio = masks.uniform(0.03, min(max_ratio, 0.2 if kind == "thin" else 1.0))
            cell = int(masks.choice([8, 16, 32]))
            self.bank.append(make_mask(kind, masks, 2 * crop, 2 * crop, ratio, cell))

    def batch(self, n: int, rng: np.random.Generator | None = None) -> Batch:
        """Draw `n` samples; see `Batch`.

        Args:
            n: How many.
            rng: In place of the sampler's own: threads that share a sampler have one each.
        """
        c, rng = self.crop, self.rng if rng is None else rng
        clean = np.stack([self._picture(rng) for _ in range(n)])
        # Squared: half of the noise is below a quarter of the strongest, as in real pictures.
        sigma = self.max_sigma * rng.random(n) ** 2 * (rng.random(n) < self.noisy)
        holes = (sigma == 0) | (rng.random(n) < 0.5)
        mask = np.stack([self._mask(rng) if h else np.zeros((c, c), np.uint8) for h in holes])
        remembers = rng.random(n) < 0.3
        trusted = np.stack(
            [
                m & self._mask(rng) if r else np.zeros_like(m)
                for m, r in zip(mask, remembers, strict=True)
            ]
        )
        single = rng.random(n) < 0.5
        frames = np.stack([np.ones((c, c)) if s else self._frames(rng) for s in single])
        return Batch(clean, mask, trusted, sigma.astype(np.float32), frames.astype(np.float32))

    def _picture(self, rng: np.random.Generator) -> U8:
        i = int(rng.choice(len(self.pictures.train), p=self.pictures.weights))
        picture, alpha = self.pictures.train[i], None
        if self.replace_background and rng.random() < self.replace_background:
            alpha = self.pictures.alphas[i]
        if alpha is None:
            return self._crop(picture, rng)
        byte = np.rint(255 * alpha).astype(np.uint8)
        part = self._crop(np.dstack((picture, byte)), rng)
        photo = self._backdrop(rng)
        if photo is None:
            return part[..., :3]
        return composite(part[..., :3], part[..., 3] * np.float32(1 / 255), photo)

    def _backdrop(self, rng: np.random.Generator) -> U8 | None:
        """Draw a part of a photograph, half of the time out of focus as behind a portrait."""
        import cv2

        alphas, weights = self.pictures.alphas, self.pictures.weights
        photos = weights * ~alphas.keyed
        if photos.any():
            i = int(rng.choice(len(weights), p=photos / photos.sum()))
        else:  # portraits only: one that has a background of its own
            tries = (int(rng.choice(len(weights), p=weights)) for _ in range(8))
            i = next((i for i in tries if alphas[i] is None), -1)
        if i < 0:
            return None
        photo = self._crop(self.pictures.train[i], rng)
        if rng.random() < 0.5:
            return np.asarray(cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.5, 4)), np.uint8)
        return photo

    def _crop(self, picture: U8, rng: np.random.Generator) -> U8:
        c = self.crop
        h, w = picture.shape[:2]
        if rng.random() < 0.3 and min(h, w) > c:
            picture = _shrink(picture, rng.uniform(c / min(h, w), 1))
            h, w = picture.shape[:2]
        y, x = rng.integers(0, h - c + 1), rng.integers(0, w - c + 1)
        return picture[y : y + c, x : x + c][:, :: 1 if rng.random() < 0.5 else -1]

    def _mask(self, rng: np.random.Generator) -> U8:
        """Cut a mask that has a hole: a clean sample without one would teach nothing."""
        while True:
            m = self.bank[rng.integers(len(self.bank))]
            y, x = rng.integers(0, m.shape[0] - self.crop + 1, 2)
            part = m[y : y + self.crop, x : x + self.crop]
            if part.mean() >= 0.01:
                flips = rng.random(2) < 0.5
                return part[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]

    def _frames(self, rng: np.random.Generator) -> F32:
        """Smooth random map of 1-15 averaged frames, as a moving scene leaves behind."""
        import cv2

        coarse = rng.uniform(0, 1, (4, 4)).astype(np.float32)
        smooth = cv2.resize(coarse, (self.crop, self.crop), interpolation=cv2.INTER_CUBIC)
        return np.asarray(15 ** np.clip(smooth, 0, 1), np.float32)


def _shrink(picture: U8, factor: float) -> U8:
    import cv2

    h, w = picture.shape[:2]
    size = (max(1, round(w * factor + 0.5)), max(1, round(h * factor + 0.5)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
