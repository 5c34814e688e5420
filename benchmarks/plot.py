"""Draw the figures of a run, given on standard input as JSON: the CPU time per message as bars, relative to txsmtpd."""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from peers import PEERS
from scenarios import SCENARIOS

COLOURS = ["#1f6f8b", "#d1603d", "#e3a857", "#7a9e7e", "#6c8ebf", "#777777", "#c9c9c9", "#dedede"]
LONGEST = 30  # times txsmtpd's; longer bars are cut, so that the others can be distinguished


def draw(record: dict[str, Any], file: str) -> None:
    """One panel for each scenario, one bar for each server, on a scale that shows ratios."""
    matplotlib.rcParams["svg.hashsalt"] = "txsmtpd"  # the same figures give the same file
    shown = [scenario for scenario in SCENARIOS if "txsmtpd" in record["ratios"].get(scenario.name, {})]
    columns = 4
    rows = -(-len(shown) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(3.4 * columns, 2.1 * rows), squeeze=False)
    for panel in panels.flat[len(shown) :]:
        panel.set_visible(False)
    for panel, scenario in zip(panels.flat, shown, strict=False):
        ratios = record["ratios"][scenario.name]
        bars = [
            (peer.name, ratios[peer.name][scenario.figure], colour)
            for peer, colour in zip(PEERS, COLOURS, strict=True)
            if scenario.figure in ratios.get(peer.name, {})
        ][::-1]
        names, values, colours = zip(*bars, strict=True)
        longest = min(max(values), LONGEST)
        drawn = panel.barh(names, [min(value, longest) for value in values], color=colours)
        panel.bar_label(
            drawn, labels=[f"{value:.2g}" if value < 9.95 else f"{value:.0f}" for value in values], padding=2
        )
        what = {"cpu": "CPU", "peak": "peak memory", "idle": "memory"}[scenario.figure]
        panel.set_title(f"{scenario.title}: {what}", fontsize=9, loc="left")
        panel.set_xlim(0, longest * 1.18)
        panel.set_xticks([])
        panel.tick_params(axis="y", labelsize=8, length=0)
        panel.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle("Shorter is better; txsmtpd is 1", fontsize=10, x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None} if file.endswith(".svg") else None)


if __name__ == "__main__":
    draw(json.load(sys.stdin), sys.argv[1])
