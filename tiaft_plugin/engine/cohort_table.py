"""The tables of a cohort: the slides that a person lists, and what became of each."""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiaft_plugin.engine import store
from tiaft_plugin.engine.jobs import SlideResult
from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.files import write_atomically

COLUMNS = ("slide", "patient", "status", "tiles", "seconds", "reason", "store", "made_from")
WAITING = "waiting"


@dataclass(frozen=True)
class CohortRow:
    """A slide of a cohort; `mpp` (µm/px at baseline) serves where its file has none."""

    slide: Path
    patient: str | None = None
    mask: Path | None = None
    mpp: float | None = None


@dataclass(frozen=True)
class CohortLine:
    """What became of a slide: "done", "exists", "failed", or "waiting" while nothing has.

    `store` is a name in the cohort's folder; `made_from` tells of what, so that a later run knows
    whether it would be the same.
    """

    slide: str
    patient: str = ""
    status: str = WAITING
    tiles: int = 0
    seconds: float = 0.0
    reason: str = ""
    store: str = ""
    made_from: str = ""


def read_cohort(path: Path) -> list[CohortRow]:
    """Read a CSV table with the column slide and, if wanted, patient, mask and mpp.

    Paths are relative to the table; further columns are left alone. Raises TiaftError, with the
    line, for what no run could use; whether slides are there, the run says of each.
    """
    rows: dict[Path, CohortRow] = {}
    for line, fields in _read_csv(path):
        row = _row(path, line, fields)
        if rows.setdefault(row.slide, row) != row:
            raise TiaftError(f"{path}: line {line}: {row.slide} stands there twice, differently")
    if not rows:
        raise TiaftError(f"{path} lists no slide")
    return list(rows.values())


def read_lines(path: Path) -> dict[str, CohortLine]:
    """Return the lines of an earlier run's table by slide; none where there is no file."""
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError("other columns")
            rows = [{name: row[name] for name in COLUMNS} for row in reader]
        lines: list[Any] = [
            {**row, "tiles": int(row["tiles"]), "seconds": float(row["seconds"])} for row in rows
        ]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise TiaftError(f"{path} is in the way and no cohort table of tiaft's: move it") from error
    return {line["slide"]: CohortLine(**line) for line in lines}


def write_lines(path: Path, lines: Iterable[CohortLine]) -> None:
    """Write the table of what became of each slide, whole or not at all."""
    with write_atomically(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for line in lines:
            values = {**vars(line), "seconds": f"{line.seconds:.1f}"}
            writer.writerow([values[name] for name in COLUMNS])


def line_of(result: SlideResult, patient: str | None, made_from: str) -> CohortLine:
    """Return the table's line of a result."""
    return CohortLine(
        slide=str(result.slide),
        patient=patient or "",
        status=result.status,
        tiles=result.tiles,
        seconds=result.seconds,
        reason=result.reason or result.note,
        store=result.store.name if result.store else "",
        made_from=made_from,
    )


def standing_result(line: CohortLine, out: Path) -> SlideResult | None:
    """Return the result that an earlier run left, if it did not fail and its store is complete."""
    if line.status not in ("done", "exists"):
        return None
    path = out / line.store
    try:
        if store.count_missing(store.open_sound(path)):
            return None
    except TiaftError:
        return None
    return SlideResult(Path(line.slide), "exists", path, line.tiles, line.seconds, note=line.reason)


def _read_csv(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            columns = [str(name).strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            found = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise TiaftError(f"{path} cannot be read as a CSV table: {reason(error)}") from error
    if "slide" not in columns:
        there = ", ".join(columns) or "nothing"
        raise TiaftError(f"{path}: a CSV table with a column slide expected, not one with {there}")
    if len(set(columns)) != len(columns):
        raise TiaftError(f"{path} has two columns of one name")
    return found


def _row(path: Path, line: int, fields: dict[str, str]) -> CohortRow:
    values = {name: str(fields.get(name, "")).strip() for name in ("slide", "patient", "mask")}
    if not values["slide"]:
        raise TiaftError(f"{path}: line {line} names no slide")
    if "patient" in fields and not values["patient"]:
        raise TiaftError(f"{path}: line {line}: {values['slide']} has no patient")
    here = path.absolute().parent
    return CohortRow(
        here / values["slide"],
        values["patient"] or None,
        here / values["mask"] if values["mask"] else None,
        _mpp(path, line, str(fields.get("mpp", "")).strip()),
    )


def _mpp(path: Path, line: int, text: str) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise TiaftError(f"{path}: line {line}: mpp {text!r} is no number of µm/px")
    return number
