"""Fail when too few of the branches were taken: coverage's own gate mixes them with lines.

Usage: python tests/project/branches.py coverage.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NEEDED = 95.0


def main(report: Path) -> str | None:
    """Give what is wrong, or None; prints the figure either way."""
    totals = json.loads(report.read_text(encoding="utf-8"))["totals"]
    share = 100 * totals["covered_branches"] / max(totals["num_branches"], 1)
    print(f"Branches taken: {share:.2f} % of {totals['num_branches']} (at least {NEEDED:g} %)")
    if share >= NEEDED:
        return None
    missing = totals["missing_branches"]
    return f"{missing} branches were not taken; `coverage html` shows which. Test them."


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
