"""What a run writes: report.html, results.csv, summary.json, predictions.npz, and run.json."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically, write_csv
from tiaft_plugin.probes.interface import Result

UNFINISHED = ".unfinished"  # the folder of what a run has computed so far
FILES = ("report.html", "results.csv", "predictions.npz", "run.json", "summary.json")


def refuse_results(out: Path) -> None:
    """Raise TiaftError where a folder holds results already."""
    if out.exists() and not out.is_dir():
        raise TiaftError(f"{out} is a file: name a folder for the results")
    there = [name for name in FILES if (out / name).exists()]
    # A run that was killed while it wrote goes on: summary.json, the last, is not there yet.
    if there and not ("summary.json" not in there and (out / UNFINISHED).is_dir()):
        raise TiaftError(
            f"{out} holds results already ({', '.join(there)}): choose another folder, or pass "
            "--overwrite"
        )


def write_result(out: Path, result: Result, circumstances: Mapping[str, Any]) -> None:
    """Write a result into the folder `out`; summary.json comes last: with it, all is there.

    Only run.json tells of times, paths and workers; the others are the same bytes for the same
    inputs, seed and versions.
    """
    from tiaft_plugin.probes.report import build_report

    report = build_report(result)
    (out / "summary.json").unlink(missing_ok=True)
    with write_atomically(out / "report.html") as part:
        part.write_text(report, encoding="utf-8")
    columns = list(result.rows[0])
    cells = ([_cell(row.get(name)) for name in columns] for row in result.rows)
    write_csv(out / "results.csv", columns, cells)
    with write_atomically(out / "predictions.npz") as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **result.predictions)
    with write_atomically(out / "run.json") as part:
        part.write_text(_json(circumstances), encoding="utf-8")
    with write_atomically(out / "summary.json") as part:
        part.write_text(_json(result.summary), encoding="utf-8")


def read_result(out: Path) -> Result:
    """Read what `write_result` wrote. Raises TiaftError for what is no whole result."""
    lacking = [name for name in FILES if not (out / name).is_file()]
    if lacking:
        raise TiaftError(f"{out} holds no result of a probe ({', '.join(lacking)} missing)")
    try:
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        if (summary.get("schema"), summary.get("version")) != ("tiaft-probe", 1):
            raise ValueError("another schema")
        with (out / "results.csv").open(newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        with np.load(out / "predictions.npz", allow_pickle=False) as arrays:
            predictions = dict(arrays)
    except Exception as error:  # whatever is damaged, json, csv and numpy say it in their ways
        raise TiaftError(f"{out} holds a damaged result ({error}): run the probe again") from error
    return Result(summary, rows, predictions)


def _cell(value: Any) -> Any:
    """A number in as few digits as tell it from all others; nothing where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else value


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Return `value` as JSON knows it: NaN is null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
