"""A report as a picture: for all that was compared its distribution and its course in time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrestore.atomic import label
from fastrestore.bench.machine import line
from fastrestore.bench.record import groups, who
from fastrestore.errors import InputError, need
from fastrestore.figure import OTHERS, OURS

FORMATS = (".svg", ".png")
_COLOURS = (*OURS, *OTHERS)
_SALT = "fastrestore"  # names inside an SVG come from it: the same report, the same file


def check_format(path: str) -> str:
    """Return a picture's format by its suffix.

    Raises:
        InputError: None that is drawn here.
        MissingExtraError: matplotlib is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{label(path)}: end its name in {' or '.join(FORMATS)}")
    need("matplotlib.figure", "plot")
    return suffix[1:]


def draw(report: Mapping[str, Any], kind: str) -> bytes:
    """Draw a report: left what share of the calls took at most so long, right call by call.

    Args:
        report: From `Report.to_dict` or a file.
        kind: `svg` or `png`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    by_group = groups(report["runs"])
    names = list(dict.fromkeys(who(run) for run in report["runs"]))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    matplotlib = need("matplotlib", "plot")
    backend = need("matplotlib.backends.backend_agg", "plot")
    with matplotlib.rc_context({"svg.hashsalt": _SALT, "svg.fonttype": "none"}):
        figure = need("matplotlib.figure", "plot").Figure(
            figsize=(9, 0.6 + 2.1 * len(by_group)), dpi=150, layout="constrained"
        )
        backend.FigureCanvasAgg(figure)
        axes = figure.subplots(len(by_group), 2, squeeze=False, width_ratios=(2, 3))
        for (left, right), (title, runs) in zip(axes, by_group.items(), strict=True):
            _row(left, right, title, runs, colours)
        axes[-1][0].set_xlabel("ms", fontsize=8)
        axes[-1][1].set_xlabel("call, in the order of measuring", fontsize=8)
        figure.suptitle(line(report["env"]), fontsize=7, color="#444444")
        file = io.BytesIO()
        made = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, metadata=made)
    return file.getvalue()


def _row(
    left: Any,
    right: Any,
    title: str,
    runs: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str],
) -> None:
    for run in runs:
        name, times = who(run), np.asarray(run["samples_ms"])
        share = np.arange(1, times.size + 1) / times.size
        left.step(np.sort(times), share, where="post", color=colours[name], linewidth=1.4)
        # each over the whole width: they were measured in turn, so left is early for all
        right.plot(
            np.linspace(0, 1, times.size),
            times,
            ".-",
            color=colours[name],
            linewidth=0.5,
            markersize=2,
            label=name,
        )
    everything = [t for run in runs for t in run["samples_ms"]]
    if max(everything) > 20 * min(everything):
        left.set_xscale("log")
        right.set_yscale("log")
    left.set(ylim=(0, 1.02))
    left.set_ylabel("share of the calls", fontsize=8)
    right.set_ylabel("ms", fontsize=8)
    right.set_xticks([])
    left.set_title(title, fontsize=9, loc="left")
    right.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for axis in (left, right):
        axis.tick_params(labelsize=7)
        axis.grid(color="#DDDDDD", linewidth=0.5)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
