"""The packed network input and the next state against float64; kernels in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
import torch
from torch import Tensor

from fastrestore.errors import InputError
from fastrestore.kernels import fusion, launch
from fastrestore.kernels.operator import Case
from fastrestore.kernels.pack import (
    OPERATOR,
    PLUGIN,
    inputs,
    pack,
    reference,
    space_to_depth,
    traffic,
)

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(
    not launch.INTERPRETED, reason="kernels run on the GPU here, not in the interpreter"
)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill memory for results with what no result is."""
    allocate = launch.allocate

    def poisoned(*arguments: Any) -> Tensor:
        memory = allocate(*arguments)
        return memory.fill_(float("nan") if memory.is_floating_point() else 0xAA)

    monkeypatch.setattr(launch, "allocate", poisoned)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without the interpreter: the op runs its reference."""
    monkeypatch.setattr(launch, "INTERPRETED", False)


def make(n: int, height: int, width: int, past: bool = True, **changes: Any) -> dict[str, Any]:
    """Return the arguments of `pack` by name, some replaced."""
    names = ("frame", "mask", "state", "sigma", "fill", "motion", "past")
    values = inputs(Case(n, height, width, {"past": past}), CPU, 11)
    return {**dict(zip(names, values, strict=True)), **changes}


def in_float64(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    wide = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in arguments.items()
    }
    return reference(**wide)


def compare(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Run, and hold both results against float64."""
    packed, state = pack(**arguments)
    want_packed, want_state = in_float64(arguments)
    assert packed.dtype == torch.float16
    assert state.dtype == torch.uint8
    # Half a step of float16, and what float32 may add
    error = (packed.double() - want_packed).abs()
    allowed = torch.maximum(want_packed.abs() * 2**-11, torch.tensor(2.0**-25)) + 3e-6
    assert bool((error <= allowed).all()), float((error - allowed).max())
    apart = (state.int() - want_state.int()).abs()
    assert int(apart.max()) <= 1
    assert int((apart > 0).sum()) <= 1 + apart.numel() // 1000
    return packed, state


@interpreted
@pytest.mark.parametrize(
    ("n", "height", "width", "past"),
    [
        (2, 8, 72, True),  # more than one strip across; sigma 5 and 75; level 3 of 1 x 9
        (1, 24, 8, True),  # more than one strip down
        (2, 8, 8, False),
    ],
)
def test_results_are_those_of_float64(n: int, height: int, width: int, past: bool) -> None:
    compare(make(n, height, width, past))


@interpreted
@pytest.mark.parametrize("sigma", [0.0, 75.0])
def test_past_near_the_frame_is_averaged(sigma: float) -> None:
    arguments = make(1, 8, 24, sigma=torch.tensor([sigma]))
    near = arguments["frame"].int() + torch.randint(-3, 4, (1, 8, 24, 3))
    trust = torch.randint(0, 256, (1, 8, 24, 1))
    state = torch.cat([near.clamp(0, 255), trust], 3).to(torch.uint8)
    compare({**arguments, "state": state})


@interpreted
@pytest.mark.parametrize("hole", [0, 1, 255])
def test_a_mask_may_be_empty_or_full_and_a_hole_is_anything_but_zero(hole: int) -> None:
    mask = torch.full((1, 8, 8, 1), hole, dtype=torch.uint8)
    packed, _ = compare(make(1, 8, 8, mask=mask))
    soft = packed.reshape(1, 4, 4, 4, 8)[..., 3]
    assert bool((soft > 0).all() if hole else (soft == 0).all())


@interpreted
def test_known_pixels_without_noise_keep_all_256_levels() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 8, 32, 1).repeat(1, 1, 1, 3)
    mask = torch.zeros(1, 8, 32, 1, dtype=torch.uint8)
    arguments = make(1, 8, 32, frame=levels, mask=mask, sigma=torch.zeros(1))
    packed, state = pack(**arguments)
    assert torch.equal(state[..., :3], levels)
    base = packed.float().reshape(1, 4, 16, 4, 8)[..., :3] * 255
    cells = space_to_depth(levels.permute(0, 3, 1, 2)).reshape(base.shape)
    assert torch.equal(base.round(), cells.float())
    assert not packed.reshape(1, 4, 16, 4, 8)[..., [3, 5, 6, 7]].any()
    assert bool((state[..., 3] == 128).all())  # one frame: 127.5, half to even


@interpreted
def test_a_still_reads_neither_state_nor_motion() -> None:
    arguments = make(1, 8, 8, past=False)
    empty = {**arguments, "state": torch.zeros(1, 8, 8, 4, dtype=torch.uint8)}
    junk = {**arguments, "motion": torch.full((1, 1, 1), float("nan")).half()}
    for first, second in zip(pack(**junk), reference(**junk), strict=True):
        assert bool(torch.isfinite(first.float()).all())
        torch.testing.assert_close(first.float(), second.float(), rtol=1e-3, atol=1e-6)
    for first, second in zip(reference(**empty), reference(**junk), strict=True):
        assert torch.equal(first, second)


@interpreted
@pytest.mark.parametrize("first", [0, 10])
def test_fill_is_read_only_for_holes(first: int) -> None:
    """Not for known pixels, and at a border not from the other end of a neighbouring row."""
    mask = torch.zeros(1, 8, 24, 1, dtype=torch.uint8)
    mask[:, 2:5, 2 * first + first // 10 :][:, :, :3] = 1  # columns 0 to 2, or 21 to 23
    arguments = make(1, 8, 24, mask=mask)
    junk = torch.full_like(arguments["fill"], float("nan"))
    junk[:, 0:3, first : first + 2] = arguments["fill"][:, 0:3, first : first + 2]
    want = pack(**arguments)
    for result, clean in zip(pack(**{**arguments, "fill": junk}), want, strict=True):
        assert torch.equal(result, clean)


@interpreted
def test_a_hole_may_be_one_pixel_beside_a_strip() -> None:
    mask = torch.zeros(1, 8, 72, 1, dtype=torch.uint8)
    mask[:, 1, 64] = mask[:, 3, 63] = mask[:, 5, 7] = 1
    compare(make(1, 8, 72, mask=mask, sigma=torch.zeros(1)))


@interpreted
def test_plugin_form_takes_and_gives_float16() -> None:
    arguments = make(1, 8, 24)
    frame, mask, state, sigma, fill, motion, _ = arguments.values()
    packed = torch.full((1, 4, 12, 32), float("nan")).half()
    levels = torch.full((1, 8, 24, 4), float("nan")).half()
    halves = [x.half() for x in (frame, 255 * mask, state, sigma)]
    planes = fill.permute(0, 3, 1, 2).contiguous(), motion[:, None].contiguous()
    sizes = {"n": 1, "height": 8, "width": 24}
    PLUGIN(sizes, *halves, *planes, 8, 24, packed, levels)
    want_packed, want_state = pack(**arguments)
    assert torch.equal(packed, want_packed)
    assert torch.equal(levels, want_state.half())


def test_reference_is_the_fused_base(plain: None) -> None:
    frame, mask, state, sigma, fill, motion, _ = make(2, 16, 24).values()
    planes = [x.float().permute(0, 3, 1, 2) for x in (frame, mask, state)]
    pyramid = fusion.Pyramid(fill.float().permute(0, 3, 1, 2), motion.float()[:, None])
    fused = fusion.pack_frame(*planes, sigma.view(2, 1, 1, 1), pyramid)
    packed, state_out = pack(frame, mask, state, sigma, fill, motion, True)
    for sy, sx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cell = packed[..., 8 * (2 * sy + sx) :][..., :8].permute(0, 3, 1, 2)
        assert torch.equal(cell, fused.packed[:, :, sy::2, sx::2].half())
    assert torch.equal(state_out.permute(0, 3, 1, 2).float(), fused.state)


BAD = [
    ("frame", torch.zeros(1, 8, 16, 3), "frame must be uint8"),
    ("frame", torch.zeros(1, 8, 16, 4, dtype=torch.uint8), "frame must be uint8"),
    ("frame", torch.zeros(0, 8, 16, 3, dtype=torch.uint8), "frame must be uint8"),
    ("frame", torch.zeros(1, 9, 16, 3, dtype=torch.uint8), "frame is 9x16"),
    ("frame", torch.zeros(1, 8, 12, 3, dtype=torch.uint8), "frame is 8x12"),
    ("frame", torch.zeros(1, 3, 8, 16, dtype=torch.uint8).permute(0, 2, 3, 1), "contiguous"),
    ("mask", torch.zeros(1, 8, 16, dtype=torch.uint8), r"mask must be uint8 \(1, 8, 16, 1\)"),
    ("mask", torch.zeros(1, 8, 16, 1, dtype=torch.bool), "mask must be uint8"),
    ("state", torch.zeros(1, 8, 16, 3, dtype=torch.uint8), r"state must be .*\(1, 8, 16, 4\)"),
    ("sigma", torch.zeros(2), r"sigma must be float32 \(1\)"),
    ("sigma", torch.zeros(1).half(), "sigma must be float32"),
    ("fill", torch.zeros(1, 4, 8, 4), "fill must be float16"),
    ("fill", torch.zeros(1, 4, 4, 8).half(), r"fill must be .*\(1, 4, 8, 4\)"),
    ("motion", torch.zeros(1, 1, 1).half(), r"motion must be float16 \(1, 1, 2\)"),
    ("motion", torch.zeros(1, 1, 2, device="meta").half(), "motion is on meta"),
    ("frame", None, "frame must be a tensor, got NoneType"),
    ("state", None, "state must be a tensor, got NoneType"),
    ("past", 1, "past must be a bool, got int"),
    ("past", torch.ones(2), "past must be a bool, got Tensor"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_wrong_arguments_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^pack: .*{message}") as error:
        pack(**make(1, 8, 16, **{name: value}))
    assert "\n" not in str(error.value)


def test_too_many_pixels_for_the_offsets_are_refused() -> None:
    frame = torch.empty(1, 16384, 16392, 3, dtype=torch.uint8, device="meta")
    with pytest.raises(InputError, match=r"^pack: frame has 268566528 pixels"):
        pack(**make(1, 8, 16, frame=frame))


@pytest.mark.parametrize("past", [True, False])
def test_traffic_is_every_byte_once(past: bool) -> None:
    case = Case(2, 40, 200, {"past": past})
    *tensors, _ = inputs(case, CPU, 0)
    sizes = [x.numel() * x.element_size() for x in tensors]
    if not past:
        sizes[2] = sizes[5] = 0
    counted = traffic(case)
    assert counted.read == sum(sizes)
    assert counted.written == 2 * 40 * 200 * (16 + 4)


def test_there_are_three_forms() -> None:
    forms = {form.name: form for form in OPERATOR.launches()}
    assert list(forms) == ["pack_past", "pack_still", "pack_frame"]
    assert [name for name, form in forms.items() if form.plugin] == ["pack_frame"]
