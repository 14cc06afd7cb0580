"""From an attention run to tuned encoders: a job a fold, and all held-out bags together."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.histotransfer.kept import CHOSE, AttentionRun, head_name, read_run
from tiaft_extensions.histotransfer.topk.held_out import (
    Compared,
    compare,
    read_held_out,
    write_held_out,
)
from tiaft_extensions.histotransfer.topk.outputs import (
    HELD_OUT,
    REPORT,
    SUMMARY,
    clear,
    numbers,
    write_summary,
)
from tiaft_extensions.histotransfer.topk.prepare import prepare
from tiaft_extensions.histotransfer.topk.report import Fold, build_report
from tiaft_extensions.histotransfer.topk.run import run_job
from tiaft_plugin.engine.store import Store
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import (
    locked,
    refuse_existing,
    refuse_unwritable,
    sha256_of,
    write_atomically,
)
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult, Samples
from tiaft_plugin.probes.stores import open_stores
from tiaft_plugin.tiles.words import some


@dataclass(frozen=True)
class Study:
    """What a run over folds ended in; `results` are those of each fold."""

    report: Path
    compared: Compared
    results: dict[int, FinetuneResult]

    @property
    def model(self) -> Path:
        """The model file of the first fold."""
        return next(iter(self.results.values())).model


def tune_folds(
    stores: Path,
    run: Path,
    out: Path,
    *,
    name: str = "",
    model: str | None = None,
    folds: Sequence[int] = (),
    register: str | None = None,
    overwrite: bool = False,
    options: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
    **job: Any,
) -> Study:
    """Fine-tune an encoder for folds of an attention run, and compare it on their held-out bags.

    `stores` are the run's feature stores, `name` its feature set where it has several. A fold's
    encoder learns from the bags that its head learnt from, of which those that chose the head's
    epoch choose the encoder's; the fold's own bags are only measured. `model` is the encoder's
    name or file, by default the stores' model. `options` are those of ``TopKSettings``, `job`
    fields of FinetuneJob. `register` names the first fold's model. What is finished of an
    interrupted run is not done again. Raises TiaftError.
    """
    attention = read_run(run, name)
    by_bag = _stores_by_bag(open_stores(stores, attention.name), attention)
    wanted = sorted(set(folds)) or list(range(attention.count))
    if wanted[0] < 0 or wanted[-1] >= attention.count:
        raise TiaftError(f"{run} has folds 0 to {attention.count - 1}, not {wanted[-1]}")
    init = str(_file_of_model(model, next(iter(by_bag.values()))[0]))
    if register:
        register = _free_name(register, init, overwrite)
    refuse_unwritable(out)
    with _kept_empty(out), locked(out / "topk", wait=False):
        jobs = {}
        for fold in wanted:
            sets: dict[str, Any] = _samples(attention, by_bag, fold, stores)
            jobs[fold] = FinetuneJob(
                out=out / f"fold-{fold}",
                **sets,
                inputs="slides",
                init=init,
                overwrite=overwrite,
                options={**(options or {}), "attention": attention.folder / head_name(fold)},
                **job,
            )
        if overwrite and (out / SUMMARY).exists():  # which stays where a fold is refused
            for one in jobs.values():
                prepare(one)
        _make_room(out, overwrite)
        results = {}
        for fold, one in jobs.items():
            results[fold] = run_job(one, fold=fold, reuse=True)
            say(f"fold {fold}: {results[fold].summary}")
        compared = _write_together(out, attention, results)
    if register:
        from tiaft_plugin.zoo.folder import add_model

        add_model(register, next(iter(results.values())).model, overwrite=overwrite)
    return Study(out / REPORT, compared, results)


def _stores_by_bag(stores: Sequence[Store], attention: AttentionRun) -> dict[str, list[Store]]:
    """Return the stores of each bag, in the order that the run has them. Raises TiaftError."""
    there = {store.path.name: store for store in stores}
    missing = sorted(set(attention.stores) - set(there))
    if missing:
        raise TiaftError(
            f"{len(missing)} of {len(attention.stores)} stores of {attention.folder} are not here: "
            f"{some(missing)}: give the folder that `tiaft probe mil` was given"
        )
    found: dict[str, list[Store]] = {key: [] for key in attention.keys.tolist()}
    for file, key in attention.stores.items():
        attention.tiles(there[file].path)  # which refuses what the run did not see
        found[key].append(there[file])
    return found


def _samples(
    attention: AttentionRun, by_bag: dict[str, list[Store]], fold: int, root: Path
) -> dict[str, Samples]:
    """Return train, val (where there are such) and test of a fold."""
    head = attention.head(fold)
    if set(head.classes) != set(attention.classes):
        lacking = sorted(set(attention.classes) - set(head.classes))
        raise TiaftError(
            f"the bags that fold {fold} learns from lack {some(lacking)}: leave that fold out "
            "with --fold, or run `tiaft probe mil` with fewer --folds"
        )
    if not isinstance(chose := head.about.get(CHOSE), list):
        raise TiaftError(
            f"{attention.folder} does not say which bags chose the epochs: run `tiaft probe mil` "
            "again"
        )
    test = attention.folds == fold
    val = np.isin(attention.keys, chose)
    parts = {"train": ~test & ~val, "val": val, "test": test}
    return {
        part: Samples(
            root=root,
            files=tuple(
                tuple(store.path for store in by_bag[key]) for key in attention.keys[rows].tolist()
            ),
            targets=tuple(
                tuple(float(label == name) for name in attention.classes)
                for label in attention.labels[rows].tolist()
            ),
            target_names=attention.classes,
            groups=tuple(attention.groups[rows].tolist()),
        )
        for part, rows in parts.items()
        if rows.any()
    }


def _file_of_model(model: str | None, store: Store) -> Path:
    """Return the model file of a name or path, by default of the stores' model."""
    from tiaft_plugin.zoo.names import find

    facts = store.facts["model"]
    wanted = model or facts["name"]
    path = Path(wanted)
    if path.suffix != ".safetensors":
        named = find(wanted)
        if named is None or named.file is None or not named.file.is_file():
            raise TiaftError(
                f"{wanted} has no model file here, and top-k tunes one: pass --model FILE, the one "
                "that made the features"
            )
        path = named.file
    if not path.is_file():
        raise TiaftError(
            f"{path}: no such model file: pass --model, the one that made the features"
        )
    if sha256_of(path) != facts["sha256"]:
        raise TiaftError(
            f"{path} is not the {facts['name']} that made the features of {store.path}: their "
            "SHA-256 differ"
        )
    return path


def _free_name(name: str, init: str, overwrite: bool) -> str:
    """Return a name for the tuned model; whatever speaks against it is said before training."""
    from tiaft_plugin.network.card import read_card
    from tiaft_plugin.zoo.folder import check_name, file_of
    from tiaft_plugin.zoo.promises import PROMISES

    name = check_name(name)
    if name in PROMISES:
        PROMISES[name].check(read_card(init))
    if file_of(name).exists() and not overwrite:
        raise TiaftError(
            f"there is a model {name} already ({file_of(name)}): choose another name for "
            "--register, or pass --overwrite"
        )
    return name


@contextmanager
def _kept_empty(out: Path) -> Iterator[None]:
    """Leave no empty folder behind where all was refused."""
    try:
        yield
    finally:
        with suppress(OSError):  # there is something in it
            out.rmdir()


def _make_room(out: Path, overwrite: bool) -> None:
    """Refuse a finished run, or with `overwrite` make it an unfinished one."""
    if not overwrite:
        refuse_existing(out / SUMMARY)
    elif (out / SUMMARY).exists():
        for summary in out.glob(f"fold-*/{SUMMARY}"):
            summary.unlink()
        (out / REPORT).unlink(missing_ok=True)
        (out / SUMMARY).unlink()


def _write_together(
    out: Path, attention: AttentionRun, results: dict[int, FinetuneResult]
) -> Compared:
    """Pool the held-out bags of all folds; write table, page and, last, summary."""
    folders = [result.model.parent for result in results.values()]
    each = [json.loads((folder / SUMMARY).read_text(encoding="utf-8")) for folder in folders]
    found = read_held_out([folder / HELD_OUT for folder in folders], attention.classes)
    keys = [attention.keys[attention.folds == fold] for fold in results]
    found = replace(found, keys=np.concatenate(keys))  # a fold's own table has names of stores
    settings = each[0]["settings"]
    compared = compare(found, settings["seed"])
    by_fold = [compare(found.of_fold(fold), settings["seed"]) for fold in results]
    common = set.intersection(*(set(one["notes"]) for one in each))
    folds = []
    for fold, one in zip(results, each, strict=True):
        notes = [note if note in common else f"fold {fold}: {note}" for note in one["notes"]]
        folds.append(Fold(str(fold), one["kept_epoch"], one["rows"], one["data"], notes))
    clear(out, (HELD_OUT, REPORT, SUMMARY))
    write_held_out(out / HELD_OUT, found)
    text = build_report(folds, found, compared, settings, by_fold if len(folds) > 1 else ())
    with write_atomically(out / REPORT) as part:
        part.write_text(text, encoding="utf-8")
    summary = {
        "attention": attention.name,
        "classes": list(attention.classes),
        "settings": settings,
        "compared": numbers(compared),
        "folds": {str(fold): numbers(one) for fold, one in zip(results, by_fold, strict=True)},
    }
    write_summary(out / SUMMARY, summary)
    return compared
