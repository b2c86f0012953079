"""Predicted latency: against figures worked out by hand, and the trends it must show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastrestore.errors import InputError
from fastrestore.presets import PRESETS, Preset
from fastrestore.roofline import BOARDS, Board, kernels, predict_ms

FULL_HD = (1088, 1920)
(ORIN,) = (b for b in BOARDS if b.name == "AGX Orin 64 GB")


def test_convolutions_carry_the_presets_work() -> None:
    for preset in PRESETS.values():
        for fused in (True, False):
            on_tensor_cores = [k for k in kernels(preset, *FULL_HD, fused=fused) if k.channels]
            assert sum(k.flops for k in on_tensor_cores) == 2 * preset.macs(*FULL_HD)


@pytest.mark.parametrize(
    ("name", "gmac_256", "gmac_1088"),
    [("nano", 0.39, 12.4), ("tiny", 0.74, 23.6), ("base", 3.06, 97.5)],
)
def test_work_of_the_presets(name: str, gmac_256: float, gmac_1088: float) -> None:
    for size, gmac in (((256, 256), gmac_256), (FULL_HD, gmac_1088)):
        flops = sum(k.flops for k in kernels(PRESETS[name], *size) if k.channels)
        assert flops / 2e9 == pytest.approx(gmac, rel=0.01)


def test_one_convolution_by_hand() -> None:
    # stem of nano at 1088p: 32 -> 16 channels, 3x3, 544 x 960 cells, FP16.
    stem = next(k for k in kernels(PRESETS["nano"], *FULL_HD) if k.name == "stem")
    cells = 544 * 960
    assert stem.flops == 2 * 32 * 16 * 9 * cells
    assert stem.moved_bytes == 2 * (32 + 16) * cells
    assert (stem.products, stem.channels) == (288, 16)


def test_down_and_up_by_hand() -> None:
    by_name = {k.name: k for k in kernels(PRESETS["nano"], *FULL_HD)}
    coarse = 272 * 480
    assert by_name["down.0"].moved_bytes == 2 * (4 * 16 + 32) * coarse
    # reads 32 channels of the coarse level, writes 16 of the fine one and reads its skip
    assert by_name["up.0"].moved_bytes == 2 * (32 + 4 * (16 + 16)) * coarse
    assert (by_name["up.0"].products, by_name["up.0"].channels) == (32, 64)


def test_time_of_one_kernel_is_compute_or_memory() -> None:
    one_block = Preset("p", (32, 32), (0,), 1, (), (0,))
    free = Board("free", 1e9, 1e9, 1e9, 1e9, 1e-9, 0.0)
    (block,) = (k for k in kernels(one_block, 256, 256) if k.name == "middle.0")
    slow_memory = replace(free, bandwidth_gbs=1e-3)
    with_it = predict_ms(one_block, slow_memory, 256, 256)
    without = predict_ms(replace(one_block, middle=0), slow_memory, 256, 256)
    assert with_it - without == pytest.approx(1e3 * block.moved_bytes / (0.75 * 1e6), rel=1e-6)
    slow_cores = replace(free, fp16_tflops=1e-6)
    with_it = predict_ms(one_block, slow_cores, 256, 256)
    without = predict_ms(replace(one_block, middle=0), slow_cores, 256, 256)
    rate = 1e6 * 0.55 * (32 / 64) ** 0.5
    assert with_it - without == pytest.approx(1e3 * block.flops / rate, rel=1e-6)


def test_bytes_outside_the_network() -> None:
    # Per pixel: fill pyramid 15, pack 22, state and motion energy about 20, unpack 25.
    moved = {k.name: k.moved_bytes for k in kernels(PRESETS["tiny"], 1024, 1024) if not k.channels}
    assert sum(moved.values()) / 1024**2 == pytest.approx(15 + 22 + 20 + 25, rel=0.03)
    assert moved["UnpackFrame"] == 25 * 1024**2


def test_launches() -> None:
    preset = PRESETS["tiny"]
    names = [k.name for k in kernels(preset, 256, 256)]
    assert names.index("stem") == 13  # as many functions before the network as the file has
    assert names[-1] == "UnpackFrame"
    blocks = sum((*preset.encoder, *preset.decoder, preset.middle, len(preset.dilations)))
    assert len(kernels(preset, 256, 256, fused=False)) == len(names) + blocks
    assert len(set(names)) == len(names)


def test_launch_cost_is_counted_once_a_kernel() -> None:
    dearer = replace(ORIN, launch_us=ORIN.launch_us + 1000)
    n = len(kernels(PRESETS["nano"], 64, 64))
    gain = predict_ms(PRESETS["nano"], dearer, 64, 64) - predict_ms(PRESETS["nano"], ORIN, 64, 64)
    assert gain == pytest.approx(n)


def test_cache_helps() -> None:
    small = replace(ORIN, l2_mb=1e-6)
    assert predict_ms(PRESETS["tiny"], ORIN, 128, 128) < predict_ms(
        PRESETS["tiny"], small, 128, 128
    )


def test_int8_keeps_the_ends_and_the_finest_level_in_fp16() -> None:
    half = {k.name for k in kernels(PRESETS["tiny"], 256, 256, "int8") if k.precision == "fp16"}
    convs = {k.name for k in kernels(PRESETS["tiny"], 256, 256, "int8") if k.channels}
    assert half & convs == {"stem", "down.0", "up.0", "decoder.0.0", "head"}


def test_int8_halves_the_bytes_it_quantises() -> None:
    fp16 = {k.name: k for k in kernels(PRESETS["tiny"], 256, 256)}
    int8 = {k.name: k for k in kernels(PRESETS["tiny"], 256, 256, "int8")}
    assert int8["middle.0"].moved_bytes * 2 == fp16["middle.0"].moved_bytes
    assert int8["stem"] == fp16["stem"]


@pytest.mark.parametrize("board", BOARDS, ids=lambda b: b.name)
def test_order_of_sizes_forms_and_precisions(board: Board) -> None:
    nano, tiny, base = (predict_ms(PRESETS[n], board, *FULL_HD) for n in ("nano", "tiny", "base"))
    assert 0 < nano < tiny < base
    assert tiny < predict_ms(PRESETS["tiny"], board, *FULL_HD, fused=False)
    assert predict_ms(PRESETS["tiny"], board, *FULL_HD, precision="int8") < tiny


def test_boards_order() -> None:
    times = [predict_ms(PRESETS["tiny"], b, *FULL_HD) for b in BOARDS]
    assert times == sorted(times)


def test_size_is_padded_as_the_runtime_pads() -> None:
    preset = PRESETS["tiny"]
    assert predict_ms(preset, ORIN, 1080, 1913) == predict_ms(preset, ORIN, 1088, 1920)


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="0x720"):
        predict_ms(PRESETS["nano"], ORIN, 720, 0)
    with pytest.raises(InputError, match="fp8"):
        predict_ms(PRESETS["nano"], ORIN, 720, 1280, precision="fp8")  # type: ignore[arg-type]
