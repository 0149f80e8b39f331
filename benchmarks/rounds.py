"""Interleaved rounds: the machines are noisy, so only ratios within a round count.

Each round measures every contender once, in turn; what is printed is the
median of the rounds' ratios with their spread.
"""

from __future__ import annotations

import statistics
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def compare(
    contenders: Mapping[str, Callable[[], float]], *, rounds: int, show: str = "{:,.0f}"
) -> dict[str, list[float]]:
    """Run every contender once a round; return each one's figures, round by round."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, measure in contenders.items():
            if sys.stderr.isatty():
                sys.stderr.write(f"\r\033[Kround {number + 1}/{rounds}: {name}")
            figures[name].append(measure())
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    for name, values in figures.items():
        print(f"  {name:<44} median {show.format(statistics.median(values))}")
    return figures


def ratio(label: str, above: list[float], below: list[float], goal: str) -> float:
    """Print the median ratio of two contenders, its spread, and the goal; return it."""
    ratios = sorted(one / other for one, other in zip(above, below, strict=True))
    middle = statistics.median(ratios)
    print(f"  {label:<44} {middle:.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f}; goal {goal})")
    return middle
