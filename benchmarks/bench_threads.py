"""How many threads ONNX Runtime should use, and whether they should spin while they wait.

    python benchmarks/bench_threads.py

The choice in fastrestore/backends/ort.py (all usable cores, no spinning) rests on this. Run it on
an idle machine and on a busy one; p50 of wall time and processor time of one call, in ms.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import onnxruntime as ort

from fastrestore.backend import find_model
from fastrestore.bench import Percentiles, time_calls
from fastrestore.environment import describe, usable_cores


def main() -> None:
    """Measure every combination in turn, twice, so that drift shows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seconds", type=float, default=2.0)
    a = parser.parse_args()
    env = describe()
    print(f"{env['cpu']}, load {env['load_average']}, onnxruntime {ort.__version__}")
    data = find_model(a.model).read_bytes()
    rng = np.random.default_rng(0)
    counts = sorted({1, usable_cores()})
    print("| size | threads | spinning | round | p50 ms | cpu ms |\n" + "| --- " * 6 + "|")
    for size, threads, spin, turn in itertools.product((256, 512), counts, "01", (1, 2)):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", spin)
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        feeds = {
            "frame": rng.integers(0, 256, (1, size, size, 3), np.uint8),
            "mask": np.zeros((1, size, size, 1), np.uint8),
            "state": np.zeros((1, size, size, 4), np.uint8),
            "sigma": np.full(1, 15, np.float32),
        }
        samples = time_calls(lambda s=session, f=feeds: s.run(None, f), min_s=a.seconds)
        wall, cpu = Percentiles.of(samples.wall_ms), Percentiles.of(samples.cpu_ms)
        print(f"| {size} | {threads} | {spin} | {turn} | {wall.p50:.1f} | {cpu.p50:.1f} |")


if __name__ == "__main__":
    main()
