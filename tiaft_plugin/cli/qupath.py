"""`tiaft qupath`: predictions into QuPath projects, and people's annotations out of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import CLASSES, Finite, map_option, together
from tiaft_plugin.cli.qupath_pull import pull
from tiaft_plugin.errors import TiaftError

project_argument = click.argument("project", type=click.Path(path_type=Path))
image_option = click.option(
    "--image",
    "images",
    multiple=True,
    metavar="ID|NAME",
    help="Image of the project to write into, where it cannot be told; may be repeated.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")
_how_options = together(
    click.option(
        "--as",
        "made",
        type=click.Choice(["tiles", "annotations"]),
        default="tiles",
        show_default=True,
        help="A tile object each, or annotations of neighbouring tiles of one class.",
    ),
    click.option(
        "--min-probability",
        type=Finite(0, 1),
        metavar="P",
        help="Leave tiles unclassified whose class is less probable.",
    ),
    click.option(
        "--classes", type=CLASSES, metavar="A,B", help="Make objects of these classes only."
    ),
)


@click.group(short_help="Predictions into QuPath projects, annotations out of them.")
def qupath() -> None:
    """Predictions into QuPath projects, and people's annotations out of them as training tiles.

    Needs QuPath 0.5 or newer on this computer and `pip install "tiaft_plugin[qupath]"`; what
    works without is said of each command. Close a project in QuPath before writing into it.
    """


@qupath.command()
@project_argument
@click.argument("predictions", nargs=-1, required=True, type=click.Path(path_type=Path))
@_how_options
@click.option("--create", is_flag=True, help="Make the project if there is none.")
@click.option(
    "--slides",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="Slide, or folder of slides, to add to the project where it lacks one; may be repeated.",
)
@map_option
@image_option
@click.option(
    "--no-java",
    is_flag=True,
    help="Without QuPath on this computer: write GeoJSON and a script that imports it, to run from "
    "QuPath's menu.",
)
@dry_run_option
def push(project: Path, predictions: tuple[Path, ...], **options: Any) -> None:
    """Write PREDICTIONS (stores of `tiaft predict`, or folders of them) into PROJECT.

    Of each image the model's own earlier objects are replaced, except those whose class a person
    changed. Nobody else's objects are touched. `tiaft qupath remove` takes them out again.
    """
    from tiaft_plugin.qupath.pushing import push as pushing

    stores = stores_in(predictions)
    how = pushing.How(
        options["made"] == "annotations", options["min_probability"], options["classes"] or None
    )
    where = pushing.Where(options["moved"], options["images"])
    dry_run = options["dry_run"]
    if options["no_java"]:
        if options["create"] or options["slides"]:
            raise click.UsageError("--create and --slides need QuPath: leave out --no-java")
        _report_script(pushing.push_by_script(project, stores, how, where, dry_run=dry_run))
        return
    _warn_of_qupath()
    if options["create"] or options["slides"]:
        from tiaft_plugin.qupath.project.adding import add_slides

        read = [pushing.read_predictions(store) for store in stores]
        adding = {name: options[name] for name in ("create", "slides", "dry_run")}
        for text in add_slides(project, read, where=where, **adding):
            click.echo(text)
        if dry_run and not project.exists():
            return
    _report(pushing.push(project, stores, how, where, dry_run=dry_run), dry_run)


@qupath.command()
@project_argument
@click.option(
    "--model", required=True, metavar="NAME|SHA256", help="Its name, or the SHA-256's beginning."
)
@dry_run_option
def remove(project: Path, model: str, dry_run: bool) -> None:
    """Take a model's objects out of every image of PROJECT; those people corrected stay."""
    from tiaft_plugin.qupath.pushing import push as pushing

    _warn_of_qupath()
    _report(pushing.remove(project, model, dry_run=dry_run), dry_run)


def stores_in(paths: Iterable[Path]) -> list[Path]:
    """Return prediction stores: paths themselves, and the ``.zarr`` in folders.

    Raises TiaftError where there is none.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise TiaftError(f"{path}: no such store")
        inside = [] if (path / "zarr.json").exists() else sorted(path.glob("*.zarr"))
        if path.is_dir() and path.suffix != ".zarr" and not inside:
            raise TiaftError(f"{path} holds no store (.zarr): `tiaft predict` makes them")
        found += inside or [path]
    return list(dict.fromkeys(found))


def _report_script(changes: list[Any]) -> None:
    failed = [change for change in changes if change.reason]
    for change in failed:
        click.echo(f"FAILED {change.image}: {change.reason}", err=True)
    for change in changes:
        if not change.reason:
            click.echo(f"{change.image}: {change.added} objects in a file for it")
            for note in change.notes:
                click.echo(f"  {note}")
    click.echo(
        f"{len(changes) - len(failed)} of {len(changes)} images prepared. In QuPath: Automate > "
        "Project scripts > tiaft import …, then Run > Run for project"
    )
    if failed:
        raise click.exceptions.Exit(1)


def _report(changes: Iterable[Any], dry_run: bool) -> None:
    """Print a line for each image; fail with 1 if one failed."""
    done = failed = 0
    for change in changes:
        if change.reason:
            failed += 1
            click.echo(f"FAILED {change.image}: {change.reason}", err=True)
            continue
        done += 1
        would = "would be " if dry_run else ""
        parts = [f"{change.added} {would}added", f"{change.removed} {would}removed"]
        if change.corrected:
            parts.append(f"{change.corrected} stay whose class a person changed")
        parts.append(f"{change.others} of others untouched")
        click.echo(f"{change.image}: {', '.join(parts)}")
        for note in change.notes:
            click.echo(f"  {note}")
    click.echo(f"{done} of {done + failed} images done")
    if failed:
        raise click.exceptions.Exit(1)


def _warn_of_qupath() -> None:
    """Say so where QuPath runs: it would write over what is written now."""
    from tiaft_plugin.qupath.project.project_file import running_qupath

    if running_qupath():
        click.echo(
            "Warning: QuPath is running: if this project is open there, close it first, since what "
            "QuPath saves later would take the place of what is written now",
            err=True,
        )


qupath.add_command(pull)
