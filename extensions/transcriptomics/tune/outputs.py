"""The files of a run: the model, its heads, metrics by epoch, what was left out, and a page."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiaft_extensions.transcriptomics.tune.loop import Progress, Tuned
from tiaft_extensions.transcriptomics.tune.settings import TuneSettings
from tiaft_plugin.files import write_atomically
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult
from tiaft_plugin.network.file import save_model
from tiaft_plugin.network.net import Network
from tiaft_plugin.page import COLOURS, drawing, page, shown, svg, table

if TYPE_CHECKING:
    from tiaft_extensions.transcriptomics.tune.run import Data

MODEL, HEADS = "model.safetensors", "heads.safetensors"
METRICS, GENES = "metrics.csv", "genes.csv"
LEFT_OUT, REPORT = "left_out.csv", "report.html"
FILES = (MODEL, HEADS, METRICS, GENES, LEFT_OUT, REPORT)
_MEASURES = ("pearson", "recall@1", "recall@10")


def write_run(
    job: FinetuneJob,
    net: Network,
    tuned: Tuned,
    found: Progress,
    data: "Data",
    settings: TuneSettings,
    objective: str,
    warnings: tuple[str, ...],
) -> FinetuneResult:
    """Write all files, each atomically, the model last; return where they lie."""
    for name in FILES:
        (job.out / name).unlink(missing_ok=True)
    measured = [name for name in _MEASURES if any(name in row for row in found.rows)]
    columns = ["epoch", "split", "loss", *measured, "lr"]
    rows = [[_number(row.get(name)) for name in columns] for row in found.rows]
    _write_table(job.out / METRICS, columns, rows)
    if any(found.genes.values()):
        by_gene = zip(data.scale.names, *found.genes.values(), strict=True)
        cells = [[gene, *map(_number, values)] for gene, *values in by_gene]
        _write_table(job.out / GENES, ["gene", *found.genes], cells)
    data.left.write(job.out / LEFT_OUT)
    _write_heads(job, tuned, data, settings, objective)
    kept = net.card.training["kept_epoch"]
    text = _report(objective, data, settings, columns, rows, found, kept, warnings)
    with write_atomically(job.out / REPORT) as part:
        part.write_text(text, encoding="utf-8")
    model = save_model(net, job.out / MODEL)
    last = {
        f"{row['split']} {name}": row[name]
        for row in found.rows
        for name in ("loss", *measured)
        if row["epoch"] == kept and name in row
    }
    said = ", ".join(f"{name} {value:.3f}" for name, value in last.items())
    return FinetuneResult(
        model=model,
        metrics=job.out / METRICS,
        report=job.out / REPORT,
        last=last,
        summary=f"epoch {kept} of {settings.epochs}: {said}",
        warnings=warnings,
    )


def _write_table(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    with write_atomically(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _write_heads(
    job: FinetuneJob, tuned: Tuned, data: "Data", settings: TuneSettings, objective: str
) -> None:
    """Write what goes on top of the model's features, and how genes were standardised."""
    from safetensors.torch import save_file

    weights = {
        name: value.contiguous()
        for name, value in tuned.state_dict().items()
        if not name.startswith("tower.encoder.")
    }
    scale = data.scale
    about = {
        "objective": objective,
        "settings": asdict(settings),
        "genes": list(scale.names),
        "mean": scale.mean.tolist(),
        "sd": scale.sd.tolist(),
    }
    with write_atomically(job.out / HEADS) as part:
        save_file(weights, part, metadata={"tiaft_expression": json.dumps(about, sort_keys=True)})


def _report(
    objective: str,
    data: "Data",
    settings: TuneSettings,
    columns: list[str],
    rows: list[list[str]],
    found: Progress,
    kept: int,
    warnings: tuple[str, ...],
) -> str:
    counts = ", ".join(f"{len(its.files)} {name}" for name, its in data.sets.items())
    learns = {
        "head": "only the heads learnt",
        "last": f"its last {settings.blocks} blocks learnt, too",
        "whole": "all of it learnt",
    }
    parts = [
        "<h1>Fine-tuning on expression</h1>",
        *(f'<p class="warning">{shown(text)}</p>' for text in warnings),
        f"<p>Objective: {objective}; {len(data.scale.names)} genes; slides: {counts}. Of the "
        f"encoder, {learns[settings.train]}. The epoch that is kept: {kept}.</p>",
        _curves(found),
        table(columns, rows),
        "<h2>Settings</h2>",
        table(("setting", "value"), asdict(settings).items()),
    ]
    left = data.left.summary()
    if left:
        parts += ["<h2>Left out</h2>", *(f"<p>{shown(line)}</p>" for line in left)]
    return page("Fine-tuning on expression", parts)


def _curves(found: Progress) -> str:
    """Return the losses by epoch as a figure."""
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.add_subplot()
        splits = dict.fromkeys(row["split"] for row in found.rows)
        for colour, split in zip(COLOURS, splits, strict=False):
            its = [(row["epoch"], row["loss"]) for row in found.rows if row["split"] == split]
            axes.plot(*zip(*its, strict=True), color=colour, label=split)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)
        return svg(figure, "Loss by epoch")


def _number(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
