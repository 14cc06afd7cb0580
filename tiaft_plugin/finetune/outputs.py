"""The files of a run: models, tables of metrics and of held-out tiles, and the report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from tiaft_plugin.errors import reason
from tiaft_plugin.files import write_atomically, write_csv
from tiaft_plugin.finetune.baseline import ColourBaseline, colour_baseline
from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult
from tiaft_plugin.finetune.measured import StageResult
from tiaft_plugin.finetune.origin import joined_licence
from tiaft_plugin.finetune.provenance import describe_training
from tiaft_plugin.finetune.recipes import Recipe
from tiaft_plugin.finetune.report import Run, build_report
from tiaft_plugin.finetune.report_measures import (
    Compared,
    compared,
    headline_set,
    steered,
    summary,
    validated,
)
from tiaft_plugin.finetune.report_tiles import names_of
from tiaft_plugin.finetune.sets import Sets
from tiaft_plugin.network.card import Card
from tiaft_plugin.network.file import save_model

MODEL, STAGE1 = "model.safetensors", "stage1.safetensors"
METRICS, CONFUSION, LABELS, TILES = "metrics.csv", "confusion.csv", "labels.csv", "tiles.csv"
REPORT = "report.html"
FILES = (MODEL, STAGE1, METRICS, CONFUSION, LABELS, TILES, REPORT)
COLUMNS = ("stage", "epoch", "split", "loss", "accuracy", "balanced_accuracy", "lr", "seconds")
LABEL_COLUMNS = ("label", "tiles", "prevalence", "auroc", "auprc")


def write_run(
    job: FinetuneJob,
    recipe: Recipe,
    results: list[StageResult],
    data: dict[str, Any],
    sets: Sets,
    warnings: tuple[str, ...],
    times: Mapping[str, float],
    environment: Mapping[str, Any] | None = None,
) -> FinetuneResult:
    """Write all files of a run, each atomically; the model file last. Returns where they lie.

    `recipe` has every number of the run, and `job` the precision and activation checkpointing
    there were; `data` is the card's, `times` are seconds by part of the run, `environment`
    is what decides its last digits. Files of a run that is being overwritten go first: whoever
    finds a model finds nothing beside it that is of another.
    """
    for number, result in enumerate(results, start=1):
        result.net.card = _finished(job, recipe, results[:number], data, environment or {})
    started = perf_counter()
    colour, doubts = _colour(sets, job.seed)
    times = dict(times) | {"colour baseline": perf_counter() - started}
    warnings += doubts
    held_out = compared(results, sets, colour)
    report = build_report(Run(recipe, results, sets, colour, warnings, times))
    for name in FILES:
        (job.out / name).unlink(missing_ok=True)
    _write_metrics(job.out / METRICS, results)
    _write_held_out(job.out, results[-1], sets, held_out)
    with write_atomically(job.out / REPORT) as temporary:
        temporary.write_text(report, encoding="utf-8")
    stage1 = save_model(results[0].net, job.out / STAGE1) if len(results) > 1 else None
    return FinetuneResult(
        model=save_model(results[-1].net, job.out / MODEL),
        stage1=stage1,
        metrics=job.out / METRICS,
        report=job.out / REPORT,
        confusion=_if_there(job.out / CONFUSION),
        labels=_if_there(job.out / LABELS),
        tiles=_if_there(job.out / TILES),
        last=_last(held_out, sets),
        summary=summary(held_out, validated(results, sets), steered(recipe, sets)),
        warnings=warnings,
    )


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


def _finished(
    job: FinetuneJob,
    recipe: Recipe,
    results: list[StageResult],
    data: dict[str, Any],
    environment: Mapping[str, Any],
) -> Card:
    card = results[-1].net.card
    return replace(
        card,
        source=f"{card.source}; fine-tuned on {data['name']}",
        licence=joined_licence(card.licence, data),
        data=data,
        training=card.training | describe_training(job, recipe, results, environment),
    )


def _colour(sets: Sets, seed: int) -> tuple[ColourBaseline | None, tuple[str, ...]]:
    """Return the colour baseline, or None and why there is none: it must not cost the model."""
    _, held_out = headline_set(sets)
    if held_out is None:
        return None, ()
    try:
        return colour_baseline(sets.train, held_out, seed), ()
    except Exception as error:
        return None, (f"the colour baseline could not be computed: {reason(error)}",)


def _last(held_out: Compared | None, sets: Sets) -> dict[str, float]:
    if held_out is None:
        return {}
    blind = {"majority_baseline": held_out.blind.accuracy}
    return held_out.model.metrics(sets.train.counts) | blind


def _write_metrics(path: Path, results: Sequence[StageResult]) -> None:
    rows = []
    for row in (row for result in results for row in result.measured.rows):
        given = {name: row.get(name) for name in COLUMNS}
        numbers = {n: _number(given[n]) for n in ("loss", "accuracy", "balanced_accuracy", "lr")}
        rows.append((given | numbers | {"seconds": f"{row['seconds']:.3f}"}).values())
    write_csv(path, COLUMNS, rows)


def _write_held_out(out: Path, last: StageResult, sets: Sets, held_out: Compared | None) -> None:
    """Write what is known of held-out tiles, where there are any: of classes, and of each tile."""
    if held_out is None:
        return
    model = held_out.model
    if model.multilabel:
        write_csv(out / LABELS, LABEL_COLUMNS, _label_rows(model))
    else:
        matrix = zip(model.classes, model.confusion.tolist(), strict=True)
        write_csv(
            out / CONFUSION,
            ("true\\predicted", *model.classes),
            ([name, *row] for name, row in matrix),
        )
    given = (f"probability of {name}" for name in model.classes)
    columns = ("set", "file", "group", "class", "predicted", "loss", *given)
    write_csv(out / TILES, columns, _tile_rows(last, sets))


def _label_rows(found: Evaluation) -> Iterator[list[Any]]:
    for name, count in found.counts.items():
        measures = (found.prevalence, found.auroc, found.auprc)
        yield [name, count, *(_number(measure.get(name)) for measure in measures)]


def _tile_rows(last: StageResult, sets: Sets) -> Iterator[list[Any]]:
    pairs = (("test", sets.test, last.measured.test), ("val", sets.val, last.measured.val))
    for name, tiles, found in pairs:
        if tiles is None or found is None:
            continue
        for i, (file, group) in enumerate(zip(tiles.files, tiles.groups, strict=True)):
            yield [
                name,
                tiles.shown(file),
                group or "",
                names_of(found, found.truth[i]),
                names_of(found, found.said[i]),
                _number(found.losses[i]),
                *map(_number, found.probabilities[i].tolist()),
            ]


def _number(value: float | None) -> str:
    """Return a number with six digits; nothing for what is missing or no number."""
    return "" if value is None or value != value else f"{value:.6g}"
