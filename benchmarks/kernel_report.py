"""What the measurements say: a table, the targets, the roofline as a picture."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kernel_roofs import Roofs, number, table

from fastrestore.errors import need

Entry = Mapping[str, Any]  # one measured case, see `bench_kernels.measure`
_COLOURS = ("#0072B2", "#D55E00", "#CC79A7", "#009E73", "#E69F00", "#56B4E9")
_TARGETS_FOR = "H100"


def summarise(samples: Sequence[float]) -> dict[str, float]:
    """Return median, p99, least and number of samples in us."""
    median, p99, least = np.percentile(np.asarray(samples), (50, 99, 0)).tolist()
    return {
        "median": round(median, 3),
        "p99": round(p99, 3),
        "min": round(least, 3),
        "n": len(samples),
    }


def fastest(times: Mapping[str, Any], names: Iterable[str]) -> tuple[str, float] | None:
    """Return the one with the least median; None where none was timed."""
    found = [(times[n]["median"], n) for n in names if "median" in times.get(n, {})]
    return (min(found)[1], min(found)[0]) if found else None


def eager(entry: Entry) -> float | None:
    """Return the best median of eager torch in us."""
    best = _eager(entry)
    return best and best[1]


def _eager(entry: Entry) -> tuple[str, float] | None:
    times = entry["device_us"]
    return fastest(times, [name for name in times if name.startswith("eager")])


def ours(entry: Entry, side: str = "device_us") -> tuple[str, float] | None:
    """Return our faster form and its median in us."""
    return fastest(entry[side], ("kernel", "native"))


def share(entry: Entry) -> float | None:
    """Return which part of the roof an operator reaches."""
    found = ours(entry)
    return None if found is None else entry["predicted_us"]["kernel"] / found[1]


def report(data: Mapping[str, Any]) -> str:
    """Return the results of a card in Markdown."""
    roofs = Roofs(**data["roofs"])
    entries = sorted(data["cases"].values(), key=lambda e: (e["name"], e["variant"], e["height"]))
    card = data["card"]
    words = [
        f"# {card['name']}",
        f"Driver {card['driver']}, CUDA {card['cuda']}, cuDNN {card['cudnn']}, torch "
        f"{card['torch']}, triton {card['triton']}. Clocks under load: {_clocks(data['clocks'])}.",
        f"Roofs measured here: copy {roofs.bandwidth:.0f} GB/s, float16 products "
        f"{roofs.tensor:.1f} TFLOPS, float32 {roofs.plain:.1f} TFLOPS. A replay takes at least "
        f"{data['floor_us']:.1f} us: below three times that the share of the roof says little.",
        "Median (p99) in us of CUDA-graph replays, taken in turn, from memory; predicted = roofline"
        " with the roofs above. Ratios above 1: we are faster.",
        _operators([e for e in entries if e["kind"] == "operator"]),
        _networks([e for e in entries if e["kind"] == "network"]),
        targets_text(data),
    ]
    return "\n\n".join(w for w in words if w) + "\n"


def _clocks(clocks: Mapping[str, str] | None) -> str:
    return ", ".join(f"{k} {v}" for k, v in clocks.items()) if clocks else "not told"


def _time(times: Mapping[str, Any], name: str) -> str:
    one = times.get(name, {})
    if "fault" in one:
        return str(one["fault"])
    return f"{number(one['median'])} ({number(one['p99'])})" if one else "-"


def _ratio(rival: float | None, own: float | None) -> str:
    return f"{rival / own:.2f}" if rival and own else "-"


def _operators(entries: Sequence[Entry]) -> str:
    rows = []
    for e in entries:
        case = [e["name"], e["variant"] or "plain", e["size"]]
        times, mine, part = e["device_us"], ours(e), share(e)
        own = mine and mine[1]
        best = _eager(e)
        cells = [number(e["predicted_us"]["kernel"]), e["fault"] or _time(times, "kernel")]
        cells += [f"{part:.0%}" if part else "-", _time(times, best[0] if best else "eager")]
        cells += [_ratio(best and best[1], own), _time(times, "compiled")]
        cells += [_ratio(times.get("compiled", {}).get("median"), own)]
        rows.append([*case, *cells])
    heads = ["operator", "variant", "picture", "predicted", "kernel", "of the roof"]
    heads += ["eager (the faster)", "ratio", "compiled", "ratio"]
    return table(heads, rows) if rows else ""


def _networks(entries: Sequence[Entry]) -> str:
    rows = []
    for e in entries:
        for side, label in (("device_us", "device"), ("host_us", "host to host")):
            times, mine = e[side], ours(e, side)
            case = [e["size"], e["n"], label, number(e["predicted_us"]["kernel"])]
            cells = [e["fault"] or _time(times, blocks) for blocks in ("kernel", "native")]
            ratio = _ratio(times.get("compiled", {}).get("median"), mine and mine[1])
            rows.append([*case, *cells, _time(times, "compiled"), ratio])
    heads = ["picture", "batch", "from and to", "predicted", "blocks: kernel", "blocks: native"]
    return "Whole network\n\n" + table([*heads, "compiled", "ratio"], rows) if rows else ""


@dataclass(frozen=True, slots=True)
class Target:
    """What is wanted: `least` or `most` of a value, None where it was not measured."""

    text: str
    value: float | None
    least: float = 0.0
    most: float = float("inf")

    @property
    def verdict(self) -> str:
        """Return pass, miss or not measured."""
        if self.value is None:
            return "not measured"
        return "pass" if self.least <= self.value <= self.most else "miss"


def targets(data: Mapping[str, Any]) -> list[Target]:
    """Return every target with what was measured; of several variants the worst counts."""
    entries = list(data["cases"].values())

    def pick(name: str, size: str, **options: Any) -> list[Entry]:
        return [
            e
            for e in entries
            if (e["name"], e["size"]) == (name, size) and options.items() <= e["options"].items()
        ]

    found = []
    for name in ("pack", "unpack"):
        some = pick(name, "1080p")
        found.append(Target(f"{name} over eager torch, 1080p", _worst(some, _over_eager), 5))
        found.append(Target(f"{name}, share of copy bandwidth, 1080p", _worst(some, share), 0.6))
    some = pick("pull_push", "4K")
    found.append(Target("pull_push over eager torch, 4K", _worst(some, _over_eager), 5))
    some = pick("edge_loss", "1080p")
    found.append(
        Target("edge_loss, both ways, over eager torch, 1080p", _worst(some, _over_eager), 3)
    )
    for channels, least in ((32, 1.5), (64, 1.2)):
        some = pick("residual_block", "1080p", channels=channels)
        where = f"residual_block, C = {channels}, 1080p,"
        found.append(Target(f"{where} over cuDNN", _worst(some, _over_eager), least))
        found.append(Target(f"{where} over torch.compile", _worst(some, _over_compiled), 1.2))
    return found + _network_targets(pick)


def _network_targets(pick: Any) -> list[Target]:
    """Return the targets of the whole network, batch 1."""
    whole = [e for e in pick("network", "1080p") if e["n"] == 1]
    small = [e for e in pick("network", "256x256") if e["n"] == 1]

    def milliseconds(side: str) -> float | None:
        found = ours(small[0], side) if small else None
        return found and found[1] / 1e3

    def over(side: str) -> float | None:
        return _worst(whole, lambda e: _over_compiled(e, side))

    return [
        Target("network over torch.compile, 1080p, device", over("device_us"), 1.5),
        Target("network over torch.compile, 1080p, host to host", over("host_us"), 1.5),
        Target("network, 256x256, device, ms", milliseconds("device_us"), most=0.25),
        Target("network, 256x256, host to host, ms", milliseconds("host_us"), most=0.25),
    ]


def _over_eager(entry: Entry) -> float | None:
    rival, mine = eager(entry), ours(entry)
    return rival / mine[1] if rival and mine else None


def _over_compiled(entry: Entry, side: str = "device_us") -> float | None:
    rival, mine = entry[side].get("compiled", {}).get("median"), ours(entry, side)
    return rival / mine[1] if rival and mine else None


def _worst(entries: Sequence[Entry], value: Any) -> float | None:
    values = [value(e) for e in entries]
    return None if not values or None in values else min(values)


def targets_text(data: Mapping[str, Any]) -> str:
    """Return the targets in Markdown."""
    rows = []
    for t in targets(data):
        wanted = f">= {t.least:g}" if t.least else f"<= {t.most:g}"
        rows.append([t.text, wanted, "-" if t.value is None else f"{t.value:.2f}", t.verdict])
    note = "" if _TARGETS_FOR in data["card"]["name"] else f" They are set for an {_TARGETS_FOR}."
    return f"Targets.{note}\n\n{table(['what', 'wanted', 'measured', 'verdict'], rows)}"


def plot(data: Mapping[str, Any]) -> bytes:
    """Draw what operators reach under the measured roofs; a PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    roofs = Roofs(**data["roofs"])
    backend = need("matplotlib.backends.backend_agg", "evaluate")
    figure = need("matplotlib.figure", "evaluate").Figure(figsize=(8, 5.2), dpi=150)
    backend.FigureCanvasAgg(figure)
    axes = figure.subplots()
    x = np.logspace(-1, 3.3, 200)
    for top, label, style in (
        (roofs.tensor, "float16 products", "-"),
        (roofs.plain, "float32", "--"),
    ):
        y = np.minimum(x * roofs.bandwidth / 1e3, top)
        axes.plot(x, y, style, color="#444444", linewidth=1, label=f"roof, {label}")
    entries = [e for e in data["cases"].values() if e["kind"] == "operator" and ours(e)]
    for name, colour in zip(dict.fromkeys(e["name"] for e in entries), _COLOURS, strict=False):
        for values, mark, label in ((ours, "o", name), (eager, "x", None)):
            points = []
            for e in (e for e in entries if e["name"] == name and e["size"] in ("1080p", "4K")):
                found = values(e)
                us = found[1] if isinstance(found, tuple) else found
                if us:
                    moved = e["least"]["read"] + e["least"]["written"]
                    points.append((e["least"]["flops"] / moved, e["least"]["flops"] / us / 1e6))
            if points:
                axes.plot(*zip(*points, strict=True), mark, color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte (least traffic)", ylabel="TFLOPS")
    axes.set_title(f"{data['card']['name']}, 1080p and 4K; x = eager torch", fontsize=10)
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(fontsize=8, loc="lower right")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
