"""Write dashboards/*.json from the code beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from collector.grafana.boards import DASHBOARDS

if TYPE_CHECKING:
    from collector.grafana.model import Dashboard

FOLDER: Final = Path(__file__).parent / "dashboards"


def path(dashboard: Dashboard) -> Path:
    """Return the file of a dashboard."""
    return FOLDER / f"{dashboard.uid}.json"


def text(dashboard: Dashboard) -> str:
    """Return what its file holds."""
    return json.dumps(dashboard.to_json(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        path(dashboard).write_text(text(dashboard))


if __name__ == "__main__":
    main()
