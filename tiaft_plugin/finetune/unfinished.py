"""``OUT/.unfinished``: what an interrupted run left, and whether this one may go on with it."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import locked, write_atomically
from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.tiles.words import some

FOLDER = ".unfinished"
_WRITING = "writing"  # a file that says: what stands beside the folder is this run's
_SETTINGS = "settings.json"


def is_being_written(out: Path) -> bool:
    """Tell whether a run was interrupted while it wrote its results."""
    return (out / FOLDER / _WRITING).exists()


def now_written(folder: Path) -> None:
    """Note that a run begins to write its results."""
    (folder / _WRITING).touch()


@contextmanager
def unfinished(
    job: FinetuneJob, settings: dict[str, Any], environment: dict[str, Any], *, first: bool = True
) -> Iterator[tuple[Path, list[str]]]:
    """Give the folder for what an interruption must not lose, and warnings.

    It is removed when all went well.

    An earlier run's state in it is kept if `settings` (what decides the result) and `environment`
    (what decides its last digits) are the same. Raises TiaftError where they are not, and where
    another process is working on the run. Only the `first` process of a run locks and writes.
    """
    folder = job.out / FOLDER
    if not first:
        yield folder, []
        return
    try:
        with locked(folder, wait=False):
            doubts = _prepare(folder, job, settings, environment)
            try:
                yield folder, doubts
            except BaseException:
                if not _is_worth_keeping(folder):
                    shutil.rmtree(folder)
                raise
            # First what lets a run write over results: these are whole now.
            (folder / _WRITING).unlink(missing_ok=True)
            # Network drives keep a file that is still mapped: the results do not fail for it.
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        with suppress(OSError):  # there is something in it
            job.out.rmdir()


def _prepare(
    folder: Path, job: FinetuneJob, settings: dict[str, Any], environment: dict[str, Any]
) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for half in folder.glob(".*"):  # what a killed run was writing
        half.unlink()
    now = json.loads(json.dumps({"settings": settings, "environment": environment}))
    doubts = []
    if any(folder.glob("*.pt")):
        settings_changed, elsewhere = _compare(folder, job, now)
        if settings_changed:
            for state in folder.glob("*.pt"):
                state.unlink()
        elif elsewhere:
            doubts = [
                f"this run was begun elsewhere, so that its last digits differ: {some(elsewhere)}"
            ]
    with write_atomically(folder / _SETTINGS) as temporary:
        temporary.write_text(json.dumps(now, indent=1, sort_keys=True), encoding="utf-8")
    return doubts


def _is_worth_keeping(folder: Path) -> bool:
    return any(path.name != _SETTINGS for path in folder.rglob("*") if path.is_file())


def _compare(folder: Path, job: FinetuneJob, now: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Tell whether to begin anew, and what is different around. Raises TiaftError."""
    try:
        before = json.loads((folder / _SETTINGS).read_bytes())
        settings, elsewhere = (_changes(before[k], now[k]) for k in ("settings", "environment"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        settings, elsewhere = ["its settings cannot be read"], []
    if (settings or (elsewhere and not job.resume_anyway)) and job.overwrite:
        return True, []
    if settings:
        raise TiaftError(
            f"{job.out} holds an unfinished run with other settings: {some(settings)}: give the "
            "same again to go on with it, or --overwrite to begin anew"
        )
    if elsewhere and not job.resume_anyway:
        raise TiaftError(
            f"{job.out} holds a run begun elsewhere: {some(elsewhere)}: its last digits would "
            "differ; pass --resume-anyway to go on all the same, or --overwrite to begin anew"
        )
    return False, elsewhere


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs, in words."""
    before, now = _flat(before), _flat(now)
    names = sorted(before.keys() | now.keys())
    return [
        f"{name} {_short(now.get(name))}, was {_short(before.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of each stage by a name of their own, such as ``stage 2's lr``."""
    stages = enumerate(values.get("stages") or (), start=1)
    of_stages = {f"stage {n}'s {name}": each[name] for n, each in stages for name in each}
    return {name: value for name, value in values.items() if name != "stages"} | of_stages


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
