"""`tiaft qupath pull`: annotations and corrections in QuPath to a tile set."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import CLASSES, POSITIVE, Finite, map_option, together
from tiaft_plugin.errors import TiaftError

_NOTES = 5  # of a slide that are printed


_size_options = together(
    click.option(
        "--tile-size",
        type=click.IntRange(min=1),
        metavar="PX",
        help="Side of the tiles [default: the corrected tiles', with --corrections-of].",
    ),
    click.option(
        "--mpp",
        type=POSITIVE,
        metavar="UM_PER_PX",
        help="Their resolution [default: the corrected tiles', with --corrections-of].",
    ),
)
grid_options = together(
    click.option(
        "--min-coverage",
        type=Finite(0, 1, min_open=True),
        default=0.5,
        show_default=True,
        help="Share of a tile that annotations of its class have to cover.",
    ),
    click.option(
        "--stride",
        type=click.IntRange(min=1),
        metavar="PX",
        help="Step between tiles [default: the tile size].",
    ),
)
label_options = together(
    click.option(
        "--class",
        "renamed",
        multiple=True,
        metavar="OLD=NEW",
        help="Call a class of the annotations' so in the tile set; may be repeated.",
    ),
    click.option(
        "--classes", type=CLASSES, metavar="A,B", help="Take tiles of these (new) classes only."
    ),
)
_correction_options = together(
    click.option(
        "--corrections-of",
        metavar="NAME|SHA256",
        help="Also take this model's tiles whose class a person changed after a push.",
    ),
    click.option("--corrections-only", is_flag=True, help="Take these alone, and no annotations."),
)
_place_options = together(
    click.option(
        "--slides",
        multiple=True,
        type=click.Path(exists=True, path_type=Path),
        metavar="PATH",
        help="Slide, or folder of slides, found by name; may be repeated [default: the project's, "
        "and those beside GeoJSON files].",
    ),
    map_option,
)
slide_options = together(
    click.option(
        "--slide-mpp",
        type=POSITIVE,
        metavar="UM_PER_PX",
        help="Resolution of slides whose file has none.",
    ),
    click.option(
        "--patients",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="CSV table with columns slide,patient: groups are patients, not slides.",
    ),
)


@click.command(short_help="Annotations in QuPath to labelled tiles for `tiaft finetune`.")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    metavar="TILES",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the tiles.",
)
@_size_options
@grid_options
@label_options
@_correction_options
@_place_options
@slide_options
@click.option("--overwrite", is_flag=True, help="Replace the tiles of an earlier pull.")
@click.option("--dry-run", is_flag=True, help="Say what would be cut; do nothing.")
def pull(sources: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Cut labelled tiles out of slides where people drew annotations in QuPath.

    SOURCES are projects (which need QuPath on this computer), GeoJSON files that QuPath exported,
    or folders of them. Every slide has one grid of tiles; a tile gets the class that covers most of
    it. Where annotations overlap, the smaller one counts. Writes a folder per class, manifest.csv,
    and pull.json, which says what gave no tile.
    """
    from tiaft_plugin.cli._logging import quiet_tiatoolbox
    from tiaft_plugin.qupath.pulling.asked import How, Where
    from tiaft_plugin.qupath.pulling.pull import pull as pull_tiles

    quiet_tiatoolbox()
    if options["corrections_only"] and not options["corrections_of"]:
        raise click.UsageError("--corrections-only needs --corrections-of")
    how = How(
        options["tile_size"],
        options["mpp"],
        options["stride"],
        options["min_coverage"],
        labels_of(options["renamed"], options["classes"]),
        options["corrections_of"],
        not options["corrections_only"],
    )
    where = Where(options["slides"], options["moved"], options["slide_mpp"], options["patients"])
    dry_run = options["dry_run"]
    results = pull_tiles(sources, out, how, where, overwrite=options["overwrite"], dry_run=dry_run)
    report_pulled(results, out, dry_run)


def labels_of(renamed: tuple[str, ...], wanted: tuple[str, ...] | None) -> Any:
    """Return the `Labels` that ``--class`` and ``--classes`` ask for; may be a usage error."""
    from tiaft_plugin.qupath.names import as_written
    from tiaft_plugin.qupath.pulling.labels import Labels

    if wanted == ():
        raise click.UsageError("--classes names no class")
    return Labels(_renamed(renamed), frozenset(map(as_written, wanted)) if wanted else None)


def _renamed(texts: tuple[str, ...]) -> dict[str, str]:
    from tiaft_plugin.qupath.names import as_written

    renamed: dict[str, str] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not (old.strip() and equals and new.strip()):
            raise click.UsageError(f"--class {text!r} is not OLD=NEW")
        if renamed.setdefault(as_written(old), as_written(new)) != as_written(new):
            raise TiaftError(f"--class {old}: two new names, {renamed[as_written(old)]} and {new}")
    return renamed


def report_pulled(results: list[Any], out: Path, dry_run: bool) -> None:
    """Print a line for each slide; fail with 1 if one failed."""
    totals: dict[str, int] = {}
    for result in results:
        if result.reason:
            click.echo(f"FAILED {result.slide}: {result.reason}", err=True)
            continue
        for label, count in result.counts.items():
            totals[label] = totals.get(label, 0) + count
        parts = [f"{sum(result.counts.values())} tiles{_listed(result.counts)}"]
        if result.corrected:
            parts.append(f"{result.corrected} of them corrections")
        click.echo(f"{result.slide}: {', '.join(parts)}")
        for note in result.notes[:_NOTES]:
            click.echo(f"  {note}")
        if len(result.notes) > _NOTES:
            click.echo(f"  and {len(result.notes) - _NOTES} more notes, in pull.json")
    total = f"{sum(totals.values())} tiles{_listed(totals)}"
    click.echo(f"{total} would be cut" if dry_run else f"{total} -> {out}")
    if len(totals) < 2 or min(totals.values()) < 2:
        click.echo("To fine-tune on them takes two classes or more, of two tiles or more each")
    if any(result.reason for result in results):
        raise click.exceptions.Exit(1)


def _listed(counts: dict[str, int]) -> str:
    texts = [f"{label} {count}" for label, count in counts.items()]
    return f" ({', '.join(texts)})" if texts else ""
