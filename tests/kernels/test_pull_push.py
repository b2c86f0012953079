"""The pyramid's kernels against the plain reference in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrestore.errors import InputError
from fastrestore.kernels import fusion, launch
from fastrestore.kernels import pull_push as module
from fastrestore.kernels.operator import Case, Launch
from fastrestore.kernels.pull_push import (
    OPERATOR,
    first_coarse,
    inputs,
    level_sizes,
    pull_push,
    reference,
    traffic,
)

CPU = torch.device("cpu")
FILL, MOTION = OPERATOR.tolerance
GUARD = 64


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Results begin as NaN, and nothing may be written beside them."""
    blocks: list[Tensor] = []

    def allocate(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
        whole = torch.full((math.prod(shape) + 2 * GUARD,), math.nan, dtype=dtype)
        whole[:GUARD] = whole[-GUARD:] = 7.0
        blocks.append(whole)
        return whole[GUARD:-GUARD].view(shape)

    monkeypatch.setattr(launch, "allocate", allocate)
    yield
    for whole in blocks:
        assert (whole[:GUARD] == 7).all()
        assert (whole[-GUARD:] == 7).all()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    run = Launch.__call__

    def record(self: Launch, *arguments: Any) -> None:
        names.append(self.name)
        run(self, *arguments)

    monkeypatch.setattr(Launch, "__call__", record)
    return names


def make(n: int, height: int, width: int, past: bool, seed: int = 0) -> Any:
    return inputs(Case(n, height, width, {"past": past}), CPU, seed)


def exact(arguments: Any) -> tuple[Tensor, Tensor]:
    frame, mask, state, sigma, past = arguments
    return reference(frame, mask, state, sigma.double(), past)


def error(results: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> list[float]:
    for a, b in zip(results, wanted, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
    return [float((a.double() - b).abs().max()) for a, b in zip(results, wanted, strict=True)]


@pytest.mark.parametrize("case", OPERATOR.cases, ids=str)
def test_equals_the_reference(case: Case) -> None:
    """Within tolerance, and nearer to float64 than twice what torch reaches in float16."""
    arguments = inputs(case, CPU, 3)
    frame, mask, state, sigma, past = arguments
    wanted, results = exact(arguments), pull_push(*arguments)
    fill, motion = error(results, wanted)
    assert fill <= FILL
    assert motion <= MOTION
    relative = (results[1].double() - wanted[1]).abs() / (wanted[1].abs() + 1)
    assert relative.max() < 2**-8
    half = error(reference(frame, mask, state, sigma.half(), past), wanted)
    assert fill <= 2 * half[0]
    assert motion <= 2 * half[1]


@pytest.mark.parametrize("past", [True, False])
def test_large_levels_have_launches_of_their_own(
    past: bool, monkeypatch: pytest.MonkeyPatch, launched: list[str]
) -> None:
    """As in pictures of 4K: here the one program may walk three cells."""
    monkeypatch.setattr(module, "MOST_COARSE", 3)
    arguments = make(2, 8, 88, past)
    fill, motion = error(pull_push(*arguments), exact(arguments))
    assert fill <= FILL
    assert motion <= MOTION
    down = ["pull_band1", "pull_band2"] if past else ["pull_level_4_fp16", "pull_level_4_mixed"]
    up = ["push_split" if past else "push_level_4_mixed", "push_level_4_fp16"]
    kind, many = ("past", 6) if past else ("still", 4)
    # Level 3 has 11 cells, level 4 has 6, level 5 has 3
    pulls, pushes = [f"pull_level_{many}"] * 2, [f"push_level_{many}"] * 2
    assert launched == [f"pull_frame_{kind}", *down, *pulls, f"coarse_{many}", *pushes, *up]


@pytest.mark.parametrize(
    ("height", "width", "level"), [(256, 256, 3), (720, 1280, 4), (1080, 1920, 4), (2160, 3840, 5)]
)
def test_one_program_walks_few_cells(height: int, width: int, level: int) -> None:
    assert first_coarse(level_sizes(height, width)) == level


def test_level_sizes_are_rounded_up() -> None:
    assert level_sizes(72, 2) == [(72, 2), (36, 1), (18, 1), (9, 1), (5, 1), (3, 1), (2, 1)]


def test_wide_bright_hole_is_within_a_fifth_of_a_level() -> None:
    """Where all levels were float16, a hole that needs all six of them was off by 0.23."""
    frame, mask, state, sigma, past = make(1, 40, 8, False, seed=3)
    mask[:] = 200  # anything but 0 is a hole
    mask[:, :13, :2] = 0
    arguments = (frame // 4 + 192, mask, state, sigma, past)
    fill, _ = error(pull_push(*arguments), exact(arguments))
    assert fill <= FILL


def test_still_reads_no_past_and_fills_alike() -> None:
    frame, mask, state, sigma, _ = make(1, 8, 24, True)
    fill, motion = pull_push(frame, mask, state, torch.full_like(sigma, math.nan), False)
    assert not motion.any()
    assert motion.shape == (1, 1, 3)
    with_past, _ = pull_push(frame, mask, state, sigma, True)
    torch.testing.assert_close(fill, with_past, rtol=0, atol=2**-11)


def test_full_mask_is_black() -> None:
    frame, mask, state, sigma, past = make(1, 8, 24, True)
    fill, motion = pull_push(frame, torch.ones_like(mask), state, sigma, past)
    assert not fill.any()
    assert not motion.any()


def test_static_scene_has_energy_below_zero() -> None:
    """The sign stays: what is expected of noise and is not there counts as well."""
    frame, mask, state, sigma, past = make(1, 8, 16, True)
    state[..., :3] = frame
    state[..., 3] = 128
    arguments = (frame, torch.zeros_like(mask), state, torch.full_like(sigma, 25.0), past)
    results = pull_push(*arguments)
    assert results[1].max() < -1
    assert error(results, exact(arguments))[1] < 0.02


@pytest.mark.parametrize("sigma", [0.0, 254.0])
def test_largest_energy_is_finite(sigma: float) -> None:
    frame, mask, state, _, past = make(1, 8, 8, True)
    state[..., :3], state[..., 3] = 0, 255
    arguments = (torch.full_like(frame, 255), mask, state, torch.tensor([sigma]), past)
    fill, motion = error(pull_push(*arguments), exact(arguments))
    assert fill <= FILL
    assert motion <= MOTION
    if sigma == 0:
        assert exact(arguments)[1].max() == fusion.MAX_ENERGY * max(fusion.BAND_GAIN)


@pytest.mark.parametrize("past", [True, False])
def test_shapes_are_known_without_running(past: bool) -> None:
    arguments = make(2, 20, 36, past)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) for a in arguments[:4]]
        results = torch.ops.fastrestore.pull_push(*fakes, past)
    plain = reference(*arguments)
    for fake, real in zip(results, plain, strict=True):
        assert fake.shape == real.shape
        assert fake.dtype == real.dtype == torch.float16
    assert [tuple(r.shape) for r in plain] == [(2, 10, 18, 4), (2, 3, 5)]


@pytest.mark.parametrize("past", [True, False])
def test_results_have_the_same_type_whatever_sigma_has(
    past: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `_fake` says, where the op is called without its checks."""
    monkeypatch.setattr(launch, "INTERPRETED", False)
    frame, mask, state, sigma, _ = make(1, 8, 16, past)
    wanted = pull_push(frame, mask, state, sigma, past)
    for dtype in (torch.float64, torch.int32):
        given = sigma.to(dtype)  # whole numbers
        results = torch.ops.fastrestore.pull_push(frame, mask, state, given, past)
        assert all(torch.equal(r, w) for r, w in zip(results, wanted, strict=True))
        assert all(r.dtype == torch.float16 for r in results)


def without(i: int, new: Any, past: bool) -> Any:
    """Return good arguments with one replaced."""
    arguments = list(make(2, 8, 16, past))
    arguments[i] = new(arguments[i])
    return arguments


def misaligned(x: Tensor) -> Tensor:
    return torch.cat([x.flatten(), x.flatten()])[1 : x.numel() + 1].view(x.shape)


@pytest.mark.parametrize(
    ("argument", "i", "new"),
    [
        ("frame", 0, lambda x: x.float()),
        ("frame", 0, lambda x: x[..., :2].contiguous()),
        ("frame", 0, lambda x: x[:, :, ::2]),
        ("frame", 0, lambda x: x[:0]),
        ("frame", 0, lambda x: x[:, :7].contiguous()),
        ("frame", 0, lambda x: misaligned(x)),
        ("mask", 1, lambda x: x.bool()),
        ("mask", 1, lambda x: x[..., 0]),
        ("mask", 1, lambda x: x[:1]),
        ("state", 2, lambda x: x[..., :3].contiguous()),
        ("state", 2, lambda x: x.to("meta")),
        ("sigma", 3, lambda x: x.double()),
        ("sigma", 3, lambda x: x[:1]),
        ("sigma", 3, lambda x: x[:, None]),
        ("frame", 0, lambda x: None),
        ("state", 2, lambda x: None),
        ("past", 4, lambda x: 1),
        ("past", 4, lambda x: torch.ones(2)),
    ],
)
@pytest.mark.parametrize("past", [True, False])
def test_bad_input_is_named_in_one_line(argument: str, i: int, new: Any, past: bool) -> None:
    with pytest.raises(InputError) as caught:
        pull_push(*without(i, new, past))
    text = str(caught.value)
    assert text.startswith(f"pull_push: {argument} ")
    assert "\n" not in text


def test_records_name_the_arguments_of_their_kernels() -> None:
    records = list(OPERATOR.launches())
    assert len({record.name for record in records}) == len(records)
    for record in records:
        assert record.kernel.arg_names == [*record.arguments, *record.constants]
        assert set(record.divisible) <= set(record.arguments)


def test_traffic_is_what_the_launches_move() -> None:
    """64x64: levels of 1024, 256, 64, 16, 4 and 1 cells."""
    still = traffic(Case(1, 64, 64, {"past": False}))
    frame, pulls = 4 * 4096, 8 * (1024 + 256) + 16 * (64 + 16 + 4)
    pushes = pulls + 8 * 256 + 16 * (64 + 16 + 4 + 1)
    assert still.read == frame + pulls + 2 * 16 + pushes
    pulled = 8 * (1024 + 256) + 16 * (64 + 16 + 4 + 1)
    assert still.written == pulled + 16 + pulls + 2 * 64
    past = traffic(Case(3, 64, 64, {"past": True}))
    coarse = 64 + 16 + 4
    read = 8 * 4096 + 24 * (1024 + 256) + 32 * coarse + 2 * 32
    read += 8 * (1024 + 256) + 32 * coarse + 8 * 256 + 32 * (coarse + 1)
    assert past.read == 3 * read
    written = 24 * (1024 + 256) + 32 * (coarse + 1) + 32 + 8 * (1024 + 256) + 32 * coarse + 2 * 64
    assert past.written == 3 * written
