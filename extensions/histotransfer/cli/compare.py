"""`tiaft histotransfer compare`: which encoder, with which weights, and how much of it."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from tiaft_extensions.histotransfer.recipe import Recipe
from tiaft_plugin.cli.options import (
    POSITIVE,
    Finite,
    Sections,
    batch_size_option,
    device_option,
    section,
    seed_option,
)

_PATH = click.Path(path_type=Path)

_ENCODERS = section(
    "Encoders",
    click.option(
        "--encoder",
        "encoders",
        multiple=True,
        metavar="[NAME=]ENCODER",
        help="MODEL or BACKBONE, then :CUT to cut it off, then @imagenet, @random, @FILE or @MODEL "
        "for its weights; may be repeated.",
    ),
    click.option(
        "--features",
        "ready",
        multiple=True,
        metavar="NAME=STORES",
        help="Feature stores that are there already, of any encoder; may be repeated.",
    ),
    click.option(
        "--reference",
        metavar="NAME",
        help="Encoder that the others are compared with [default: the first].",
    ),
    click.option(
        "--tile-size",
        type=click.IntRange(min=1),
        metavar="PX",
        help="Tiles of backbones that are no model yet [default: the first model's, or 224].",
    ),
    click.option(
        "--resolution",
        type=POSITIVE,
        metavar="UM_PER_PX",
        help="And their resolution [default: the first model's, or 0.5].",
    ),
)
_SLIDES = section(
    "Slides and labels",
    click.option(
        "--labels",
        type=_PATH,
        required=True,
        help="Table with columns slide,label or patient,label.",
    ),
    click.option("--patients", type=_PATH, help="CSV table with columns slide,patient."),
    click.option(
        "--unmatched",
        type=click.Choice(["refuse", "drop"]),
        default="refuse",
        show_default=True,
        help="What to do with slides without label, and labels without slide.",
    ),
    click.option(
        "--mpp",
        type=POSITIVE,
        metavar="UM_PER_PX",
        help="Resolution of slides whose file has none.",
    ),
    click.option("--no-mask", is_flag=True, help="Take every tile, tissue or not."),
    click.option(
        "--min-tissue",
        type=Finite(0, 1),
        default=0.0,
        show_default=True,
        help="Leave out tiles with less tissue than this fraction.",
    ),
)
_PROTOCOL = section(
    "Protocol (as of `tiaft probe mil`)",
    click.option("--gated", is_flag=True, help="Gated attention."),
    click.option("--epochs", type=click.IntRange(min=1), default=Recipe.epochs, show_default=True),
    click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True),
    click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True),
    click.option(
        "--permutations",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Of the labels, for each encoder; 99 or more, or 0 for none.",
    ),
    click.option("--draws", type=click.IntRange(min=100), default=2000, show_default=True),
    click.option(
        "--margin",
        type=Finite(0, 1),
        default=0.02,
        show_default=True,
        help="Loss of AUROC that a smaller network may have.",
    ),
    seed_option,
)
_COMPUTER = section(
    "Computer",
    batch_size_option(32),
    device_option,
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Threads that read tiles, then processes that train; they change no result.",
    ),
)
_RESULTS = section(
    "Results",
    click.option("--out", type=_PATH, required=True, help="Folder for the comparison."),
    click.option(
        "--sort",
        type=click.Choice(["auroc", "macs", "parameters", "given"]),
        default="auroc",
        show_default=True,
        help="Order of the table.",
    ),
    click.option("--overwrite", is_flag=True, help="Remove the comparison in OUT and begin anew."),
)


@click.command(cls=Sections, short_help="Compare encoders: their weights, size and depth.")
@click.argument("slides", nargs=-1, type=_PATH)
@_ENCODERS
@_SLIDES
@_PROTOCOL
@_COMPUTER
@_RESULTS
def compare(
    slides: tuple[Path, ...],
    encoders: tuple[str, ...],
    ready: tuple[str, ...],
    out: Path,
    overwrite: bool,
    **given: Any,
) -> None:
    """Extract features of SLIDES with each encoder, train attention pooling, compare in one table.

    SLIDES may be folders of tiles instead, each of which is then a bag (with --mpp).
    Interrupted, the same command goes on; encoders may be added to it. Writes OUT/report.html,
    comparison.csv, differences.csv and comparison.png; beside them the encoders, their feature
    stores, and what `tiaft probe mil` says of each.
    """
    if encoders and not slides:
        raise click.UsageError("Missing argument 'SLIDES...', which --encoder is for.")
    if slides and not encoders:
        raise click.UsageError("SLIDES need encoders: --encoder, once or more.")
    from tiaft_extensions.histotransfer.compare.report import REPORT
    from tiaft_extensions.histotransfer.compare.study import Settings, prepare, run_comparison
    from tiaft_plugin.probes.features import parse_feature_arguments

    names = (
        *("labels", "patients", "unmatched", "reference", "folds", "repeats", "permutations"),
        *("draws", "margin", "seed", "workers", "tile_size", "sort"),
    )
    settings = Settings(
        **{name: given[name] for name in names},
        options={"epochs": given["epochs"]},
        probe="mil-gated" if given["gated"] else "mil",
        mpp=given["resolution"],
    )
    places = parse_feature_arguments(ready)
    chosen = prepare(encoders, places, settings)
    engine = {name: given[name] for name in ("min_tissue", "batch_size", "workers", "device")}
    found = run_comparison(
        chosen,
        _jobs(slides, settings.patients, given["mpp"]),
        places,
        out,
        settings,
        engine={**engine, "auto_mask": not given["no_mask"]},
        overwrite=overwrite,
        say=partial(click.echo, err=True),
    )
    _echo(found)
    click.echo(f"\nreport  {out / REPORT}")


def _jobs(slides: tuple[Path, ...], patients: Path | None, mpp: float | None) -> list[Any]:
    from tiaft_plugin.engine.jobs import SlideJob, patient_of, read_patients

    known = read_patients(patients) if patients else {}
    unique = {slide.absolute(): slide for slide in slides}.values()
    return [SlideJob(slide, None, mpp, patient_of(slide, known)) for slide in unique]


def _echo(found: Any) -> None:
    """Print the warnings, the table and the answers."""
    from tiaft_extensions.histotransfer.compare.report import main_table

    for note in found.notes:
        click.echo(f"warning: {note}")
    head, rows = main_table(found)
    left_out = ("network", "weights", "MB", "AUPRC", "balanced accuracy")  # the page has them
    keep = [place for place, name in enumerate(head) if name not in left_out]
    lines = [[line[place] for place in keep] for line in (head, *rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(keep))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
    for answer in found.answers:
        click.echo(f"\n{answer.question}")
        for text in answer.sentences:
            click.echo(f"  {text}")
