"""`tiaft cohort`: many slides, listed in a table, on several processes or computers."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli._slides import engine_options, mask_of, sinks_option, slide_options
from tiaft_plugin.cli.options import together

SPLIT = 20_000  # tiles: minutes of one worker
# A table has slides, masks and patients, and workers are processes that each do a slide.
_OTHERWISE = ("slides", "masks", "patients", "project", "within", "moved", "workers")


def _without(options: Callable, names: tuple[str, ...]) -> Callable[[Callable], Callable]:
    """Return a decorator that adds `options`, those of `names` left out."""

    def add(command: Callable) -> Callable:
        def empty() -> None: ...

        params = options(empty).__click_params__
        kept = [param for param in params if param.name not in names]
        command.__click_params__ = [*getattr(command, "__click_params__", []), *kept]  # type: ignore[attr-defined]
        return command

    return add


cohort_options = together(
    click.argument("table", type=click.Path(exists=True, dir_okay=False, path_type=Path)),
    _without(slide_options, _OTHERWISE),
    click.option(
        "--workers",
        "processes",
        type=click.IntRange(min=1),
        help="Processes of this computer, each with a slide at a time [default: 1].",
    ),
    click.option(
        "--cluster",
        metavar="ADDRESS",
        help="Workers of this dask scheduler (tcp://HOST:PORT, or its file), instead.",
    ),
    click.option(
        "--readers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Threads of each worker that read tiles ahead of the network.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="Threads of each worker that compute [default: an equal share of this computer's "
        "processors; with --cluster, as each worker's environment says].",
    ),
    click.option(
        "--split",
        type=click.IntRange(min=0),
        default=SPLIT,
        show_default=True,
        metavar="TILES",
        help="Have slides of more tiles made in parts of about so many, by several workers; 0: "
        "never.",
    ),
)


@click.group(short_help="Extract or predict a table of slides, on many workers.")
def cohort() -> None:
    """Extract or predict many slides, listed in a table, on many workers.

    TABLE is a CSV table with the column slide and, if wanted, patient, mask (an image or QuPath
    GeoJSON) and mpp (µm/px of slides whose file has none); paths are relative to it.
    """


@cohort.command()
@cohort_options
def extract(**options: Any) -> None:
    """Extract features of the tiles of a cohort's slides.

    Writes OUT/<slide>.zarr, and OUT/cohort.csv: what became of each slide of TABLE. Run it again
    after an interruption, or when failed slides are put right: it does what is missing.
    """
    _run("features", (), options)


@cohort.command()
@cohort_options
@sinks_option
def predict(sinks: tuple[str, ...], **options: Any) -> None:
    """Predict the class of the tiles of a cohort's slides.

    Writes OUT/<slide>.zarr, for each of --to a file beside it, and OUT/cohort.csv. Run it again
    after an interruption, or when failed slides are put right: it does what is missing.
    """
    _run("predictions", sinks, options)


def _run(kind: str, sinks: tuple[str, ...], options: dict[str, Any]) -> None:
    from tiaft_plugin.cli._logging import quiet_tiatoolbox
    from tiaft_plugin.engine.cluster import local_cluster, remote_cluster
    from tiaft_plugin.engine.cohort import Cohort
    from tiaft_plugin.engine.cohort_worker import Plan

    address, processes = options["cluster"], options["processes"]
    if address and processes:
        raise click.UsageError("--workers and --cluster exclude each other")
    processes = processes or 1
    threads = options["threads"] or (None if address else max(1, _processors() // processes))
    plan = Plan(
        kind,
        options["model"],
        engine_options({**options, "workers": options["readers"]}),
        sinks,
        threads,
        split=(options["split"] or None) if address or processes > 1 else None,
        overwrite=options["overwrite"],
        prepare=quiet_tiatoolbox,
    )
    cohort = Cohort(plan, _jobs(options), options["out"])
    counts = dict.fromkeys(("done", "exists", "failed"), 0)
    for result in cohort.run(
        lambda: remote_cluster(address) if address else local_cluster(processes), say=_say
    ):
        counts[result.status] += 1
        _report(result)
    _say(
        f"{counts['done']} slides done, {counts['exists']} were there already, "
        f"{counts['failed']} failed; table in {cohort.table}"
    )
    if counts["failed"]:
        raise click.exceptions.Exit(1)


def _jobs(options: dict[str, Any]) -> list[Any]:
    from tiaft_plugin.engine.cohort import TABLE
    from tiaft_plugin.engine.cohort_table import read_cohort
    from tiaft_plugin.engine.jobs import SlideJob

    table: Path = options["table"]
    if table.absolute() == (options["out"] / TABLE).absolute():
        raise click.UsageError(f"{table} is what this run writes: name the table it was made from")
    rows = read_cohort(table)
    masked = any(row.mask for row in rows)
    if masked and options["no_mask"]:
        raise click.UsageError(f"--no-mask and the masks of {table} exclude each other")
    if options["mask_class"] and not masked:
        raise click.UsageError("--mask-class needs masks in the table")
    return [
        SlideJob(
            row.slide,
            mask_of(row.mask, options["mask_class"]),
            row.mpp or options["mpp"],
            row.patient,
        )
        for row in rows
    ]


def _report(result: Any) -> None:
    if result.status == "failed":
        _say(f"FAILED {result.slide}: {result.reason}", err=True)
    elif result.status == "done":
        told = "".join(f"; {text}" for text in (result.note, result.speed) if text)
        _say(f"{result.slide.name}: {result.tiles} tiles -> {result.store}{told}")


def _say(text: str, err: bool = False) -> None:
    """Print a line; above the progress bar, where there is one to be seen."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        tqdm.write(text, file=sys.stderr if err else sys.stdout)
    else:
        click.echo(text, err=err)


def _processors() -> int:
    """Return how many processors this process may use; a cluster's jobs have not all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
