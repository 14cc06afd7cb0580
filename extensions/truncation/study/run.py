"""How much of a pretrained network is needed: the study of paper 3, as one resumable run."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiaft_extensions.truncation.backbones.cuts import WHOLE, find_cut, list_cuts
from tiaft_extensions.truncation.study.costs import Cost, cost_of, measured_costs
from tiaft_extensions.truncation.study.grid import Cell, Variant, cells_of, variants_of
from tiaft_extensions.truncation.study.measures import MEAN, read_scores
from tiaft_extensions.truncation.study.report import build_report
from tiaft_extensions.truncation.study.search import block_ends, layers_around
from tiaft_extensions.truncation.study.settings import StudySettings
from tiaft_extensions.truncation.study.summary import (
    CELL_COLUMNS,
    FEWEST_GROUPS,
    MODEL_COLUMNS,
    SUMMARY_COLUMNS,
    VARIANT,
    Choice,
    bootstrap_weights,
    cell_rows,
    choose,
    grouped,
    standard_error,
    summary_rows,
    write_rows,
)
from tiaft_extensions.truncation.study.training import Trainer, backbone_of
from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.files import locked, refuse_unwritable, sha256_of, write_atomically
from tiaft_plugin.finetune.outputs import MODEL, TILES
from tiaft_plugin.finetune.sets import Sets, read_tiles
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.fingerprint import fingerprint
from tiaft_plugin.tiles.split import split_share
from tiaft_plugin.tiles.words import some

STUDY, REPORT = "study.json", "report.html"
CELLS, SUMMARY, MODELS = "cells.csv", "summary.csv", "models.csv"
SHARE = 0.2  # of the tiles, held out to test where nothing says which
Say = Callable[[str], None]


@dataclass(frozen=True)
class StudyResult:
    """The files of a study, the choice, and a few lines for people."""

    model: Path
    report: Path
    cells: Path
    summary: Path
    models: Path
    choice: Choice
    text: str


def hold_out(path: Path, test_share: float | None = None, **given: Any) -> tuple[Sets, list[str]]:
    """Return the tiles of a study and what to say of them; `given` is that of ``read_tiles``.

    Where nothing says which tiles test, `test_share` of them do (a fifth by default; 0: none, and
    results are those of validation tiles). Raises TiaftError.
    """
    chosen = read_tiles(path, needs_val=True, **given)
    notes = [*chosen.notes]
    sets = Sets(chosen.train, chosen.val, chosen.test)
    if sets.val is None:
        raise TiaftError("a study chooses by validation tiles: --val-share is more than 0")
    share = SHARE if test_share is None else test_share
    if sets.test is None and share:
        train, test, more = split_share(sets.train, share, given.get("seed", 0) + 1)
        sets, notes = replace(sets, train=train, test=test), [*notes, *more]
    if sets.test is None:
        notes.append(
            "no tiles test: results are those of the validation tiles, which chose epochs and "
            "networks, and are too good: pass --test or --test-groups"
        )
    return sets, list(dict.fromkeys(notes))


def run_study(
    settings: StudySettings,
    sets: Sets,
    notes: Sequence[str] = (),
    say: Say | None = None,
    *,
    overwrite: bool = False,
) -> StudyResult:
    """Train every cell that is missing, and write tables, report and the model that is enough.

    Interrupted or killed at any moment, the same study goes on and ends with the same tables. Its
    grid may grow: cells that are there stay. With `overwrite` the study in the folder is removed
    once this one is known to be possible. Raises TiaftError; Stopped where cells failed.
    """
    settings = settings.as_weights_ask()
    trainer = Trainer(settings, sets)
    variants = plan(settings, trainer.tile_size)
    cells = cells_of(variants, settings.percents, settings.repeats)
    if any(variant.init != "random" for variant in variants):
        trainer.whole()  # what pretrained means cannot be had, or can
    refuse_unwritable(settings.out / STUDY)
    with locked(settings.out / STUDY, wait=False):
        if overwrite:
            _remove_study(settings.out)
        _refuse_other(settings, sets)
        work = _Work(trainer, say or (lambda line: None))
        work.train(cells)
        if settings.search:
            work.train(_second_stage(work, settings, trainer.tile_size))
        return _finish(work, notes)


def plan(settings: StudySettings, tile_size: int) -> list[Variant]:
    """Return the variants of a study. Raises TiaftError for what cannot be had, before training."""
    backbone, args = settings.backbone, settings.backbone_args
    cuts = settings.cuts
    if not cuts:
        cuts = tuple(block_ends(list_cuts(backbone, tile_size, args, layers=False)))
    nothing_left_out = {c for c in cuts if not find_cut(backbone, c, tile_size, args).left_out}
    cuts = tuple(WHOLE if cut in nothing_left_out else cut for cut in cuts)
    variants = variants_of(backbone, cuts, settings.inits, settings.baselines, settings.also)
    for variant in {backbone_of(variant): variant for variant in variants}.values():
        cost_of(variant, settings, tile_size)
    return variants


class _Work:
    """The cells of a study as they come to be done."""

    def __init__(self, trainer: Trainer, say: Say):
        self.trainer, self.say = trainer, say
        self.done: dict[Cell, dict[str, Any]] = {}
        self.failed: dict[Cell, str] = {}

    def train(self, cells: Sequence[Cell]) -> None:
        """Train cells, or read what was found before; one that fails does not stop the others."""
        trainer, most = self.trainer, max(self.trainer.settings.percents)
        known = sum(trainer.find(cell) is not None for cell in cells)
        self.say(f"{len(cells)} trainings" + (f", {known} of them done before" if known else ""))
        with progress(len(cells), "Study", "training") as bar:
            for cell in cells:
                bar.set_postfix_str(f"{cell.variant.title}, {cell.percent:g} %")
                try:
                    self.done[cell] = trainer.run(cell, keep_model=cell.percent == most)
                except Stopped as error:
                    self.failed[cell] = str(error)
                bar.update(1)
        if not self.done:
            raise Stopped(f"every training failed: {next(iter(self.failed.values()))}")


def _second_stage(work: _Work, settings: StudySettings, tile_size: int) -> list[Cell]:
    """Return the cells of layers around the best cut, by validation tiles (TTL-2 of paper 3)."""
    most = max(settings.percents)
    own = {
        key: each
        for key, each in grouped(work.done.values()).items()
        if key[0].strategy == "ttl" and key[0].backbone == settings.backbone and key[1] == most
    }
    if not own:
        return []
    best, _ = max(own, key=lambda key: _val_auprc(own[key]))
    cuts = list_cuts(settings.backbone, tile_size, settings.backbone_args)
    tried = sorted({variant.cut for variant, _ in own})
    names = layers_around(cuts, tried, best.cut, settings.search_layers)
    work.say(f"search: {best.title} is best so far; around it {some(names, 20) or 'is nothing'}")
    variants = [replace(best, cut=name) for name in names]
    return cells_of(variants, [most], settings.repeats) if variants else []


def _val_auprc(cells: Sequence[dict[str, Any]]) -> float:
    values = [found["sets"]["val"][MEAN]["auprc"] for found in cells]
    return sum(values) / len(values)


def _refuse_other(settings: StudySettings, sets: Sets) -> None:
    """Write down what decides every cell. Raises TiaftError where the folder is another study's."""
    path, cells = settings.out / STUDY, settings.out / "cells"
    weights = Path(settings.weights)
    now = json.loads(json.dumps({
        **settings.decisive(),
        "weights": sha256_of(weights) if weights.is_file() else settings.weights,
        **{f"{name} tiles": fingerprint(tiles) for name, tiles in sets.named().items()},
        "classes": sets.train.classes,
        "multilabel": sets.train.multilabel,
    }))  # fmt: skip
    # Where nothing was trained, as after a wrong --augment, nothing can be mixed.
    begun = cells.is_dir() and any(cells.iterdir())
    if path.is_file() and begun:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            raise TiaftError(
                f"{settings.out} holds another study: {some(changed)} changed: choose another "
                "--out, or pass --overwrite to begin anew"
            )
    elif begun:
        raise TiaftError(f"{settings.out} holds cells of no known study: choose another --out")
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(now, indent=1, sort_keys=True), encoding="utf-8")


def _remove_study(out: Path) -> None:
    """Remove what a study wrote into a folder, and nothing else."""
    if not (out / STUDY).is_file():
        return
    shutil.rmtree(out / "cells", ignore_errors=True)
    for name in (MODEL, REPORT, CELLS, SUMMARY, MODELS, "costs.json", STUDY):
        (out / name).unlink(missing_ok=True)


def _finish(work: _Work, notes: Sequence[str]) -> StudyResult:
    trainer, settings = work.trainer, work.trainer.settings
    cells = list(work.done.values())
    costs = measured_costs(
        list(dict.fromkeys(cell.variant for cell in work.done)), settings, trainer.tile_size
    )
    choice = choose(cells, {variant: cost.parameters for variant, cost in costs.items()})
    name = "test" if trainer.sets.test is not None else "val"
    notes = list(dict.fromkeys([*notes, *_doubts(work, name)]))
    summary = _summary(work, name)
    models = _model_rows(work, costs, choice, summary)
    out = settings.out
    write_rows(out / CELLS, CELL_COLUMNS, cell_rows(cells))
    write_rows(out / SUMMARY, SUMMARY_COLUMNS, summary)
    write_rows(out / MODELS, MODEL_COLUMNS, models)
    text, page = build_report(settings, trainer.sets, name, summary, models, choice, costs, notes)
    with write_atomically(out / REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8")
    with write_atomically(out / MODEL) as temporary:
        shutil.copyfile(trainer.folder(_best_repeat(work, choice.chosen)) / MODEL, temporary)
    if work.failed:
        first = [f"{cell.name} ({why})" for cell, why in work.failed.items()]
        raise Stopped(
            f"{len(work.failed)} of {len(work.failed) + len(work.done)} trainings failed: "
            f"{some(first, 3)}: the rest is in {out / REPORT}; the same command tries them again"
        )
    files = {"cells": CELLS, "summary": SUMMARY, "models": MODELS}
    tables = {name: out / file for name, file in files.items()}
    return StudyResult(out / MODEL, out / REPORT, **tables, choice=choice, text=text)


def _doubts(work: _Work, name: str) -> list[str]:
    tiles = work.trainer.sets.named()[name]
    groups = len(tiles.group_names)
    found = [text for cell in work.done.values() for text in cell["warnings"]]
    if groups < FEWEST_GROUPS:
        known = f"{groups} slide{'s' * (groups != 1)} or patient{'s' * (groups != 1)}"
        found.append(
            f"the {name} tiles are of {known if groups else 'unknown slides'}: intervals are of "
            "tiles drawn one by one, and say nothing of other slides"
        )
    if work.trainer.settings.repeats < 2:
        found.append("one repeat has no standard error: the best network is chosen, not a smaller")
    return list(dict.fromkeys(found))


def _summary(work: _Work, name: str) -> list[dict[str, Any]]:
    """Return the summary of all cells on the tiles that test, with intervals."""
    trainer = work.trainer
    tiles = trainer.sets.named()[name]
    weights = bootstrap_weights(tiles.groups, len(tiles), trainer.settings.seed)
    groups = grouped(work.done.values())
    folders = {(c.variant, c.percent, c.repeat): trainer.folder(c) for c in work.done}
    rows = []
    with progress(len(groups), "Intervals", "variant") as bar:
        for (variant, percent), each in groups.items():
            paths = [folders[variant, percent, found["repeat"]] / TILES for found in each]
            scores = [read_scores(path, {name: tiles})[name] for path in paths]
            rows += summary_rows(each, {(variant, percent): scores}, weights, name)
            bar.update(1)
    return rows


def _model_rows(
    work: _Work, costs: dict[Variant, Cost], choice: Choice, summary: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    groups = grouped(work.done.values())
    most = max(percent for _, percent in groups)
    means = {
        (*(row[part] for part in VARIANT), row["metric"]): row["mean"]
        for row in summary
        if row["percent"] == most and row["class"] == MEAN
    }
    rows = []
    for (variant, percent), each in groups.items():
        if percent != most:
            continue
        key, cost = tuple(getattr(variant, part) for part in VARIANT), costs[variant]
        rows.append({
            **dict(zip(VARIANT, key, strict=True)),
            "width": cost.width, "parameters": cost.parameters, "gmacs": cost.macs / 1e9,
            "tiles_per_second": cost.tiles_per_second, "val_auprc": _val_auprc(each),
            "val_auprc_se": standard_error([f["sets"]["val"][MEAN]["auprc"] for f in each]),
            "auroc": means[*key, "auroc"], "auprc": means[*key, "auprc"],
            "within_one_se": variant in choice.enough, "chosen": variant == choice.chosen,
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["parameters"], row["strategy"], row["init"]))


def _best_repeat(work: _Work, variant: Variant) -> Cell:
    most = max(cell.percent for cell in work.done)
    own = {c: f for c, f in work.done.items() if c.variant == variant and c.percent == most}
    return max(own, key=lambda cell: own[cell]["sets"]["val"][MEAN]["auprc"])
