"""``tiaft transcriptomics evaluate``: models by tasks, each against its own base."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import batch_size_option, device_option, seed_option

_PATH = click.Path(path_type=Path)
LEAST = 99  # permutations that can give a p value of .01


@click.command(short_help="Probe models on a table of tasks, each against its base.")
@click.argument("tasks", metavar="TASKS.csv", type=_PATH)
@click.option(
    "--model",
    "models",
    required=True,
    multiple=True,
    metavar="NAME[=BASE]",
    help="Registered name or model file, and which of the models it was made from; repeated.",
)
@click.option("--out", required=True, type=_PATH, help="Folder for features, probes and table.")
@click.option(
    "--folds", type=click.IntRange(min=2), default=5, show_default=True, help="Of each repeat."
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Times that everything is split anew.",
)
@click.option(
    "--permutations",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the labels, in each probe, and its leak control; 99 or more, or 0 for neither.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=100),
    default=2000,
    show_default=True,
    help="Of the bootstrap that gives the intervals.",
)
@click.option(
    "--unmatched",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="What to do with rows without label, and labels without a row.",
)
@click.option(
    "--missing",
    type=click.Choice(["refuse", "drop-genes", "drop-rows"]),
    default="refuse",
    show_default=True,
    help="What to do where a label or a gene's value is empty.",
)
@click.option(
    "--leave-out",
    multiple=True,
    metavar="RUN",
    type=_PATH,
    help="Leave out the patients that this `tune` has learnt from; repeated.",
)
@seed_option
@batch_size_option(32)
@device_option
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that compute probes side by side; they change no result.",
)
def evaluate(
    tasks: Path,
    models: tuple[str, ...],
    out: Path,
    folds: int,
    repeats: int,
    leave_out: tuple[Path, ...],
    device: str,
    batch_size: int,
    workers: int,
    **protocol: Any,
) -> None:
    """Probe models on the tasks of a table, and say what each gains over its base.

    TASKS.csv has a row a task: task, one of tiles, slides and features, labels, column, split,
    metric, level, patients, genes, folds, repeats. Features and probes are made once and kept in
    OUT: interrupted, or with more tasks or models, the same command goes on. Writes
    evaluation.csv, means.csv, gains.csv, evaluation.json (all three) and report.html.
    """
    from tiaft_extensions.transcriptomics.evaluate.features import FeatureCache
    from tiaft_extensions.transcriptomics.evaluate.finished import read_learnt
    from tiaft_extensions.transcriptomics.evaluate.models import read_models
    from tiaft_extensions.transcriptomics.evaluate.report import TABLE, lines, write_evaluation
    from tiaft_extensions.transcriptomics.evaluate.run import FEATURES, Protocol
    from tiaft_extensions.transcriptomics.evaluate.run import evaluate as run
    from tiaft_extensions.transcriptomics.evaluate.tasks import read_tasks
    from tiaft_plugin.errors import Stopped
    from tiaft_plugin.files import locked, refuse_unwritable

    if 0 < protocol["permutations"] < LEAST:
        raise click.UsageError(f"--permutations: {LEAST} or more give a p value, 0 leaves them out")
    chosen = read_tasks(tasks, folds=folds, repeats=repeats)
    candidates = read_models(models, leave_out)
    learnt = frozenset[str]().union(*map(read_learnt, leave_out))
    refuse_unwritable(out / TABLE)
    cache = FeatureCache(out / FEATURES, device, batch_size)
    with locked(out / TABLE, wait=False):
        found = run(
            chosen,
            candidates,
            out,
            Protocol(**protocol),
            cache,
            leave_out=learnt,
            workers=workers,
            say=_say,
        )
        report = write_evaluation(out, found)
    click.echo("")
    for line in (*lines(found), *(f"note: {note}" for note in found.notes)):
        click.echo(line)
    click.echo(f"\nreport  {report}")
    if found.failed:
        raise Stopped(f"{len(found.failed)} failed: {'; '.join(found.failed[:3])}")


def _say(line: str) -> None:
    click.echo(line, err=True)
