"""Convert the figures of all runs to tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from peers import PEERS
from scenarios import SCENARIOS, Scenario

OURS = "txsmtpd"
Runs = dict[str, dict[str, list[dict[str, float]]]]  # scenario -> server -> one for each run
Medians = dict[str, dict[str, dict[str, float]]]

FIGURES = {
    "cpu": "server CPU, microseconds a message",
    "rate": "messages a second",
    "megabytes": "MB a second",
    "peak": "peak memory, MB",
    "idle": "memory of an idle connection, KB",
}


def medians(runs: Runs) -> Medians:
    """The median of each figure."""
    return {
        scenario: {
            server: {figure: median(run[figure] for run in each) for figure in each[0]}
            for server, each in servers.items()
            if each
        }
        for scenario, servers in runs.items()
    }


def ratios(of: Medians) -> dict[str, dict[str, dict[str, float]]]:
    """Every figure as a multiple of txsmtpd's."""
    return {
        scenario: {
            server: {
                figure: value / servers[OURS][figure] for figure, value in figures.items() if servers[OURS].get(figure)
            }
            for server, figures in servers.items()
        }
        for scenario, servers in of.items()
        if OURS in servers
    }


def report(runs: Runs) -> str:
    """The tables: the main figure with its ratio to txsmtpd, and then the other figures."""
    of = medians(runs)
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in runs]
    servers = [peer.name for peer in PEERS if any(peer.name in runs[scenario.name] for scenario in scenarios)]

    def main(scenario: Scenario, server: str) -> str:
        figures = of[scenario.name].get(server)
        if figures is None:
            return "-"
        text = number(figures[scenario.figure])
        ours = of[scenario.name].get(OURS)
        if ours is None or server == OURS:
            return text
        return f"{text} ({figures[scenario.figure] / ours[scenario.figure]:.2f}x)"

    def other(figure: str) -> Callable[[Scenario, str], str]:
        def cell(scenario: Scenario, server: str) -> str:
            value = of[scenario.name].get(server, {}).get(figure)
            return "-" if value is None else number(value)

        return cell

    count = max((len(each) for by_server in runs.values() for each in by_server.values()), default=0)
    units = {"cpu": "us", "peak": "MB", "idle": "KB"}
    head = f"CPU of the server a message (or memory), and how many times {OURS}'s; medians of {count} runs"
    blocks = [_table(head, scenarios, servers, main, lambda scenario: f"{scenario.title}, {units[scenario.figure]}")]
    for figure in ("rate", "megabytes", "peak"):
        having = [
            scenario
            for scenario in scenarios
            if any(figure in figures for figures in of[scenario.name].values())
            and (figure != "megabytes" or scenario.size > 65536)
        ]
        if having:
            blocks.append(_table(FIGURES[figure], having, servers, other(figure), lambda scenario: scenario.title))
    return "\n\n".join(blocks)


def number(value: float) -> str:
    """Format a number with three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(
    title: str,
    scenarios: Sequence[Scenario],
    servers: Sequence[str],
    cell: Callable[[Scenario, str], str],
    label: Callable[[Scenario], str],
) -> str:
    rows = [["", *servers]]
    rows += [[label(scenario), *(cell(scenario, server) for server in servers)] for scenario in scenarios]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + row[0].ljust(widths[0]) + " | " + _right(row, widths) + " |" for row in rows]
    rules = ("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths))
    lines.insert(1, f"|{'|'.join(rules)}|")
    return "\n".join([title, "", *lines])


def _right(row: Sequence[Any], widths: Sequence[int]) -> str:
    return " | ".join(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
