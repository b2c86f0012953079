"""The detector's task: its input, its loss, its samples and its figures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastrestore.damage import KINDS
from fastrestore.kernels import fusion
from fastrestore.train import detection
from fastrestore.train.config import TrainConfig
from fastrestore.train.data import Pictures
from fastrestore.train.detection import Case, Damaged, Detection

SIDE = 64


def picture(seed: int, height: int = 80, width: int = 96) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 64
    planes = [np.sin(6 * x + 3 * y + seed), np.cos(8 * y - 2 * x), np.sin(5 * x * y)]
    noise = rng.normal(0, 5, (height, width, 3))
    return np.clip(np.rint(127 + 90 * np.stack(planes, -1) + noise), 0, 255).astype(np.uint8)


def make_task(**changes: Any) -> Detection:
    values = {"preset": "nano", "track": "free", "data": ("x",), "steps": 10, **changes}
    return Detection(TrainConfig(**values))


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    train = [picture(i) for i in range(3)]
    return Pictures(train, np.full(3, 1 / 3), [picture(7), picture(8, 67, 70)], [])


@pytest.fixture(scope="module")
def batch(pictures: Pictures) -> Damaged:
    return make_task().sampler(pictures, SIDE)(np.random.default_rng(1), 48)


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


class Oracle(nn.Module):
    """Finds what is pure green, and notes that it was given packed input."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, packed: Tensor) -> Tensor:
        assert packed.shape[1] == 8
        green = (packed[:, 1:2] > 0.99) & (packed[:, :1] < 0.01) & (packed[:, 2:3] < 0.01)
        return self.scale * (2 * green.float() - 1)


def green_case(share: float = 1.0) -> Case:
    """Truth of 16 x 16 px, of which that share of the rows is green and so found."""
    frame, mask = picture(1, 48, 48), np.zeros((48, 48), np.uint8)
    mask[8:24, 8:24] = 1
    frame[8 : 8 + round(16 * share), 8:24] = (0, 255, 0)
    return Case(frame, mask)


def test_input_is_the_restorers_without_hole_and_noise() -> None:
    frame = torch.from_numpy(picture(0)).permute(2, 0, 1)[None].float()
    packed = detection.pack_frame(frame)
    luma = (frame / 255 * fusion.LUMA).sum(1, keepdim=True)
    assert packed.shape == (1, 8, *frame.shape[2:])
    assert torch.equal(packed[:, :3], frame / 255)
    assert torch.equal(packed[:, 4:5], fusion.sobel(luma))
    assert not packed[:, [3, 5, 6, 7]].any()


def test_untrained_network_gives_the_prior() -> None:
    net = make_task().network()
    with torch.no_grad():
        p = net(detection.pack_frame(torch.rand(1, 3, 16, 24) * 255)).sigmoid()
    assert p.shape == (1, 1, 16, 24)
    assert torch.allclose(p, torch.full_like(p, detection.PRIOR))


def test_loss_is_least_for_the_truth(batch: Damaged) -> None:
    mask = torch.from_numpy(batch.mask)[:, None].float()
    right, wrong, undecided = 12 * (2 * mask - 1), 12 * (1 - 2 * mask), 0 * mask
    for loss in (detection.cross_entropy, detection.dice):
        assert loss(right, mask) < 0.02
        assert loss(right, mask) < loss(undecided, mask) < loss(wrong, mask)


def test_a_pixel_of_a_scratch_counts_more_than_one_of_a_block() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 8:40, 8:40] = 1
    mask[..., :, 56] = 1
    logits = torch.zeros_like(mask).requires_grad_()
    (g,) = torch.autograd.grad(detection.cross_entropy(logits, mask), logits)
    scratch, block, outside = -g[0, 0, 20, 56], -g[0, 0, 24, 24], g[0, 0, 60, 20]
    assert block == pytest.approx(float(outside))
    expected = 1 + detection.THIN_WEIGHT * (1 - 1 / detection.THIN_PX)
    assert scratch / block == pytest.approx(expected, rel=1e-4)


def test_dice_by_hand_and_only_where_there_is_damage() -> None:
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :4] = 1  # 32 px
    p = torch.full_like(mask, 0.25)
    expected = 1 - 2 * 0.25 * 32 / (64 * 0.25**2 + 32 + 1)
    assert detection.dice(torch.full_like(p, logit(0.25)), mask) == pytest.approx(expected)
    assert detection.dice(torch.zeros_like(mask), torch.zeros_like(mask)) == 0


def test_samples_mix_clean_and_damaged(batch: Damaged) -> None:
    assert batch.frame.shape == (48, SIDE, SIDE, 3)
    assert batch.mask.shape == (48, SIDE, SIDE)
    assert batch.frame.dtype == batch.mask.dtype == np.uint8
    damaged = batch.mask.any((1, 2)).mean()
    assert 0.4 < damaged < 0.85


def test_undamaged_samples_are_also_noisy(pictures: Pictures) -> None:
    """Noise is no damage: the mask of a picture that only has noise is empty."""

    def roughness(noisy: float) -> list[float]:
        draw = make_task(noisy=noisy).sampler(pictures, SIDE)
        frames, masks = draw(np.random.default_rng(2), 24)
        clean = frames[~masks.any((1, 2))].astype(float)
        return [float(np.abs(np.diff(f, axis=0)).mean()) for f in clean]

    assert np.mean(roughness(1.0)) > 1.5 * np.mean(roughness(0.0))


def test_a_draw_follows_from_its_generator_alone(pictures: Pictures) -> None:
    draw = make_task().sampler(pictures, 32)
    first, _, again = (draw(np.random.default_rng(s), 3) for s in (3, 4, 3))
    assert np.array_equal(first.frame, again.frame)
    assert np.array_equal(first.mask, again.mask)


def test_terms_train_the_network(pictures: Pictures) -> None:
    task = make_task()
    net = task.network()
    few = task.sampler(pictures, 32)(np.random.default_rng(0), 4)
    run: Any = SimpleNamespace(net=net)
    terms = task.terms(run, few, 0)
    assert set(terms) == {"cross_entropy", "dice"}
    for name, term in terms.items():
        (g,) = torch.autograd.grad(term, net.head.conv.weight, retain_graph=True)
        assert g.abs().sum() > 0, name


def test_cases_are_damaged_as_named_and_seeded(pictures: Pictures) -> None:
    task = make_task()
    cases, again = (task.cases(pictures.held_out) for _ in range(2))
    assert list(cases) == [*KINDS, "in_noise", "clean", "noisy"]
    for name, material in cases.items():
        assert len(material) == 2
        for case, same in zip(material, again[name], strict=True):
            assert np.array_equal(case.frame, same.frame)
            assert np.array_equal(case.mask, same.mask)
            assert case.frame.shape[0] % 8 == case.frame.shape[1] % 8 == 0
            assert case.mask.any() == (name not in ("clean", "noisy"))
    assert np.array_equal(cases["clean"][0].frame, picture(7))


@pytest.mark.parametrize("share", [1.0, 0.75, 0.25])
def test_iou_is_the_share_that_is_found(share: float) -> None:
    assert detection.mean_iou(Oracle(), [green_case(share)]) == pytest.approx(share)


def test_iou_counts_pixels_not_pictures() -> None:
    cases = [green_case(1.0), green_case(0.0)]
    assert detection.mean_iou(Oracle(), cases) == pytest.approx(0.5)


def test_false_alarms_are_a_share_of_the_pixels() -> None:
    frame, mask = green_case()
    empty = np.zeros_like(mask)
    cases = [Case(frame, empty), Case(picture(1, 48, 48), empty)]
    assert detection.false_alarms(Oracle(), cases) == pytest.approx(0.5 * 16 * 16 / 48**2)


def test_probability_is_that_of_the_exported_graph() -> None:
    net = make_task().network()
    expected = round(255 * detection.PRIOR)
    found = detection.probability(net, picture(0, 32, 40))
    assert found.shape == (32, 40)
    assert found.dtype == np.uint8
    assert (found == expected).all()


def test_report_and_grid(pictures: Pictures, tmp_path: Path) -> None:
    task = make_task()
    run: Any = SimpleNamespace(ema=Oracle())
    cases = task.cases(pictures.held_out)
    row = task.report(run, cases, tmp_path)
    assert json.loads(json.dumps(row)) == row
    assert list(row["iou"]) == [*KINDS, "in_noise"]
    assert all(0 <= v <= 1 for v in row["iou"].values())
    assert row["false_alarms_percent"] == {"clean": 0, "noisy": 0}
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * 64, 5 * 80 + 5 * 64)  # both pictures take turns
