"""``summary.csv``: one line a slide, whichever run it was in."""

import csv
from pathlib import Path
from typing import Any

from tiaft_plugin.engine.jobs import SlideResult
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import locked, write_atomically

COLUMNS = ("slide", "status", "tiles", "seconds", "reason")


def read_summary(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of a summary by slide; none where there is no file. Raises TiaftError."""
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {row["slide"]: {name: row[name] for name in COLUMNS} for row in rows}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise TiaftError(f"{path} is in the way and no summary of tiaft's: move it") from error


def add_to_summary(path: Path, result: SlideResult) -> None:
    """Add or replace a slide's line; other runs may be adding theirs at the same time."""
    with locked(path, wait=True):
        lines = read_summary(path)
        lines[str(result.slide)] = {
            "slide": str(result.slide),
            "status": result.status,
            "tiles": result.tiles,
            "seconds": f"{result.seconds:.1f}",
            "reason": result.reason or result.note,
        }
        with write_atomically(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(lines.values())
