"""The files of a run: the model, its heads, metrics, what the test found, and a page."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tiaft_extensions.transcriptomics.tune.checks import Data, patients_of
from tiaft_extensions.transcriptomics.tune.loop import Tuned
from tiaft_extensions.transcriptomics.tune.report import lines_of, plain, report
from tiaft_extensions.transcriptomics.tune.samples import SLIDES, UNMATCHED, NamedJob
from tiaft_extensions.transcriptomics.tune.scores import DRAWS, Score
from tiaft_extensions.transcriptomics.tune.settings import TuneSettings
from tiaft_extensions.transcriptomics.tune.tested import Tested
from tiaft_plugin.files import refuse_existing, write_atomically, write_csv
from tiaft_plugin.finetune.epochs import Progress
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult
from tiaft_plugin.finetune.unfinished import is_being_written
from tiaft_plugin.network.file import save_model
from tiaft_plugin.network.net import Network

MODEL, HEADS = "model.safetensors", "heads.safetensors"
METRICS, GENES = "metrics.csv", "genes.csv"
TEST, SUMMARY, PREDICTED = "test.csv", "test.json", "test.npz"
LEFT_OUT, REPORT = "left_out.csv", "report.html"
FILES = (MODEL, HEADS, METRICS, GENES, TEST, SUMMARY, PREDICTED, LEFT_OUT, REPORT)
TABLES = (SLIDES, UNMATCHED)  # of a job that knows its slides by name
_MEASURES = ("pearson", "recall@1", "recall@10")


@dataclass(frozen=True)
class Outcome:
    """A run that is done: what it was told, what it learnt, and what was measured."""

    job: FinetuneJob
    settings: TuneSettings
    objective: str
    data: Data
    tuned: Tuned
    found: Progress
    test: Tested | None
    warnings: tuple[str, ...]

    @property
    def kept(self) -> int:
        """The number of the epoch whose weights are kept."""
        return self.found.best["epoch"] if self.found.best else self.settings.epochs


def files_of(job: FinetuneJob) -> tuple[str, ...]:
    """Return the names of the files that a job's run writes."""
    return (*FILES, *TABLES) if isinstance(job, NamedJob) else FILES


def refuse_results(out: Path, names: Iterable[str], *, overwrite: bool) -> None:
    """Raise TiaftError where an earlier run has left its results, or somebody a file so called."""
    if not overwrite and not is_being_written(out):
        for name in names:
            refuse_existing(out / name)


def write_run(outcome: Outcome, net: Network) -> FinetuneResult:
    """Write all files, each atomically, the model last; return where they lie."""
    job, found, test = outcome.job, outcome.found, outcome.test
    out = job.out
    for name in files_of(job):
        (out / name).unlink(missing_ok=True)
    if isinstance(job, NamedJob):
        job.prepared.write(out)
    measured = [name for name in _MEASURES if any(name in row for row in found.rows)]
    columns = ["epoch", "split", "loss", *measured, "lr"]
    rows = [[plain(row.get(name)) for name in columns] for row in found.rows]
    write_csv(out / METRICS, columns, rows)
    if test is not None:
        _write_test(out, test, outcome.data)
    outcome.data.left.write(out / LEFT_OUT)
    _write_heads(outcome)
    text = report(outcome.objective, outcome.settings, outcome.data, found, outcome.kept, test,
                  columns, rows, outcome.warnings)  # fmt: skip
    with write_atomically(out / REPORT) as part:
        part.write_text(text, encoding="utf-8")
    model = save_model(net, out / MODEL)
    last = {
        f"{row['split']} {name}": row[name]
        for row in found.rows
        for name in ("loss", *measured)
        if row["epoch"] == outcome.kept and name in row
    }
    said = ", ".join(f"{name} {value:.3f}" for name, value in last.items())
    kept = f"epoch {outcome.kept} of {outcome.settings.epochs} is kept: {said}"
    if test is not None:
        last |= {f"test {name}": value for name, value in test.main().items()}
    return FinetuneResult(
        model=model,
        metrics=out / METRICS,
        report=out / REPORT,
        last=last,
        summary="\n".join([kept, *lines_of(test)]),
        warnings=outcome.warnings,
    )


def _write_test(out: Path, test: Tested, data: Data) -> None:
    """Write the test's scores, those of each gene, what was predicted, and a summary as JSON."""
    genes = data.scale.names
    rows = [[*its[:3], *map(plain, its[3:])] for its in test.scores]
    write_csv(out / TEST, Score._fields, rows)
    cells = zip(genes, *(column.tolist() for column in test.genes.values()), strict=True)
    by_gene = [[gene, *map(plain, values)] for gene, *values in cells]
    write_csv(out / GENES, ["gene", *test.genes], by_gene)
    patients = np.unique(patients_of(data.sets["test"]))
    arrays = {"observed": test.observed, **test.predicted}
    with write_atomically(out / PREDICTED) as part:
        np.savez(part, patients=patients, genes=np.array(genes),
                 **{name: its.astype(np.float32) for name, its in arrays.items()})  # fmt: skip
    about = {
        "slides": test.slides,
        "patients": test.patients,
        "genes": len(genes),
        "genes_told": test.genes_told,
        "genes_by": test.told_by,
        "found_by": test.found_by,
        "bootstrap_draws": DRAWS,
        "notes": test.notes,
        "scores": [
            {k: None if v != v else v for k, v in its._asdict().items()} for its in test.scores
        ],
    }
    with write_atomically(out / SUMMARY) as part:
        part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _write_heads(outcome: Outcome) -> None:
    """Write what goes on top of the model's features, and how genes were standardised."""
    from safetensors.torch import save_file

    weights = {
        name: value.contiguous()
        for name, value in outcome.tuned.state_dict().items()
        if not name.startswith("tower.encoder.")
    }
    scale = outcome.data.scale
    about = {
        "objective": outcome.objective,
        "settings": asdict(outcome.settings),
        "genes": list(scale.names),
        "mean": scale.mean.tolist(),
        "sd": scale.sd.tolist(),
    }
    with write_atomically(outcome.job.out / HEADS) as part:
        save_file(weights, part, metadata={"tiaft_expression": json.dumps(about, sort_keys=True)})
