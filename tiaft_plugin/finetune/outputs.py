"""The files of a run: two models, tables of metrics, and the report."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiaft_plugin.files import write_atomically
from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult
from tiaft_plugin.finetune.origin import joined_licence
from tiaft_plugin.finetune.provenance import describe_training
from tiaft_plugin.finetune.report import build_report
from tiaft_plugin.finetune.stage import Measured, Stage
from tiaft_plugin.network.file import save_model
from tiaft_plugin.network.net import Network

MODEL, STAGE1 = "model.safetensors", "stage1.safetensors"
METRICS, CONFUSION, REPORT = "metrics.csv", "confusion.csv", "report.html"
FILES = (MODEL, STAGE1, METRICS, CONFUSION, REPORT)
COLUMNS = ("stage", "epoch", "split", "loss", "accuracy", "lr", "seconds")


@dataclass(frozen=True)
class StageResult:
    """A stage that has ended: the network as it was then, and what was measured."""

    stage: Stage
    net: Network
    measured: Measured
    augmented: bool

    def summary(self) -> dict[str, Any]:
        """Return what the card tells of the stage; no times, which differ from run to run."""
        last = {row["split"]: row for row in self.measured.rows[-2:]}
        metrics = {s: {k: row[k] for k in ("loss", "accuracy")} for s, row in last.items()}
        held_out = self.measured.held_out
        if held_out:
            metrics["val"] = {
                "loss": held_out.loss,
                "accuracy": held_out.accuracy,
                "balanced_accuracy": held_out.balanced_accuracy,
            }
        return {
            "trains": self.stage.trains,
            "epochs": self.stage.epochs,
            "lr": self.stage.lr,
            "optimizer": self.measured.optimizer,
            "augmented": self.augmented,
            "metrics": metrics,
        }


def write_run(
    job: FinetuneJob,
    results: list[StageResult],
    data: dict[str, Any],
    counts: Mapping[str, int],
    warnings: tuple[str, ...],
) -> FinetuneResult:
    """Write all files of a run, each atomically; the model file last. Returns where they lie.

    `counts` are the training tiles per class.
    """
    for number, result in enumerate(results, start=1):
        result.net.card = _finished(job, results[:number], data)
    rows = [row for result in results for row in result.measured.rows]
    evaluations = [result.measured.held_out for result in results]
    held_out = evaluations[-1]
    last = results[-1]
    _write_metrics(job.out / METRICS, rows)
    confusion = _write_confusion(job.out / CONFUSION, held_out)
    with write_atomically(job.out / REPORT) as temporary:
        text = build_report(last.net.card, rows, evaluations, counts, warnings)
        temporary.write_text(text, encoding="utf-8")
    for name, result in ((STAGE1, results[0]), (MODEL, last)):
        save_model(result.net, job.out / name, overwrite=True)  # refused before, unless asked
    return FinetuneResult(
        model=job.out / MODEL,
        stage1=job.out / STAGE1,
        metrics=job.out / METRICS,
        report=job.out / REPORT,
        confusion=confusion,
        last=held_out.metrics(counts) if held_out else {},
        summary=_summary(held_out, counts),
        warnings=warnings,
    )


def _finished(job: FinetuneJob, results: list[StageResult], data: dict[str, Any]):
    card = results[-1].net.card
    return replace(
        card,
        source=f"{card.source}; fine-tuned on {data['name']}",
        licence=joined_licence(card.licence, data),
        data=data,
        training=card.training | describe_training(job, results),
    )


def _write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            rounded = {name: f"{row[name]:.6g}" for name in ("loss", "accuracy", "lr")}
            writer.writerow(row | rounded | {"seconds": f"{row['seconds']:.3f}"})


def _write_confusion(path: Path, held_out: Evaluation | None) -> Path | None:
    if held_out is None:
        path.unlink(missing_ok=True)  # of the run that is being overwritten
        return None
    with (
        write_atomically(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true\\predicted", *held_out.classes])
        for name, row in zip(held_out.classes, held_out.confusion.tolist(), strict=True):
            writer.writerow([name, *row])
    return path


def _summary(held_out: Evaluation | None, counts: Mapping[str, int]) -> str:
    if held_out is None:
        return "No tiles were held out (--val, --val-groups): how good the model is, is not known."
    return (
        f"Held-out accuracy {held_out.accuracy:.3f}, balanced {held_out.balanced_accuracy:.3f}, "
        f"on {held_out.confusion.sum()} tiles "
        f"(always the commonest class: {held_out.baseline(counts):.3f}).\n\n{held_out.table()}"
    )
