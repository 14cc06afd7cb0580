"""Results of a benchmark that can be interrupted, row by row: JSON to go on from, CSV to read."""

import csv
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

import tiaft_plugin
from tiaft_plugin.engine import facts
from tiaft_plugin.files import write_atomically
from tiaft_plugin.network.precision import environment, has_bfloat16

SOURCES = ("engine", "network")  # rooms of the package whose code decides what is measured


class Kept:
    """Rows (dicts) in ``folder/name.json`` and ``.csv``; those that are there are not made again.

    `settings` are what rows of one file have in common, besides machine, versions and code. Ends
    the program where the file has others.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]):
        self.path = folder / f"{name}.json"
        self.about = {"settings": settings, **_circumstances()}
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            found = json.loads(self.path.read_text(encoding="utf-8"))
            for what, value in self.about.items():
                if found[what] != value:
                    sys.exit(
                        f"{self.path} was begun with other {what}: {found[what]}, now {value}; "
                        "give another folder"
                    )
            self.rows = found["rows"]

    def once(self, measure: Callable[[], dict[str, Any]], **key: Any) -> dict[str, Any]:
        """Return the row of `key`; if there is none, what `measure` returns becomes it."""
        for row in self.rows:
            if key.items() <= row.items():
                return row
        with others() as share:
            row = key | measure()
        self.rows.append(row | {"others": round(share[0], 3)})
        self._write()
        return self.rows[-1]

    def _write(self) -> None:
        with write_atomically(self.path) as part:
            about = self.about | {"rows": self.rows}
            part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with (
            write_atomically(self.path.with_suffix(".csv")) as part,
            part.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)


@contextmanager
def others() -> Iterator[list[float]]:
    """Give a list that holds, afterwards, the share of all processors that other programs had.

    What a hypervisor took away counts as theirs.
    """
    share, own = [0.0], psutil.Process()
    started, busy, mine = time.perf_counter(), _busy(), _used(own)
    yield share
    took = (time.perf_counter() - started) * psutil.cpu_count()
    share[0] = max(0.0, (_busy() - busy - (_used(own) - mine)) / took)


def machine() -> str:
    """Return the processor, its instructions, how many there are, and versions, in a line."""
    found = _circumstances()
    about, versions = found["machine"], found["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("tiatoolbox", "torch"))
    return f"{about['processors']} × {about['processor']} ({about['instructions']}), {named}"


def _circumstances() -> dict[str, Any]:
    device = torch.device("cpu")
    found = environment(device, "")
    return {
        "machine": {
            "processor": found["processor"],
            "instructions": found["capability"] + ", bfloat16" * has_bfloat16(device),
            "processors": psutil.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": facts.versions(),
        "code": _code(),
    }


def _code() -> str:
    """Return a fingerprint of the code that is measured."""
    root = Path(tiaft_plugin.__file__).parent
    files = sorted(file for room in SOURCES for file in (root / room).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _busy() -> float:
    times = psutil.cpu_times()._asdict()
    # Linux counts guests' time in user's and nice's, too.
    return sum(times[name] for name in times.keys() - {"idle", "iowait", "guest", "guest_nice"})


def _used(process: psutil.Process) -> float:
    """Return seconds of a process, and of those it started that ended."""
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system
