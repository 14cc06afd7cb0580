"""`tiaft qupath`: predictions into QuPath projects, and people's annotations out of them."""

from collections.abc import Callable, Iterable
from contextlib import suppress
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

    if options["classes"] == ():
        raise click.UsageError("--classes names no class")
    stores = stores_in(predictions)
    how = pushing.How(
        options["made"] == "annotations", options["min_probability"], options["classes"]
    )
    where = pushing.Where(options["moved"], options["images"])
    dry_run = options["dry_run"]
    if options["no_java"]:
        if options["create"] or options["slides"]:
            raise click.UsageError("--create and --slides need QuPath: leave out --no-java")
        _report_script(
            pushing.push_by_script(project, stores, how, where, dry_run=dry_run), dry_run
        )
        return
    _start()
    if options["create"] or options["slides"]:
        stores = _add_slides(project, stores, where, options)
    _finish(pushing.push(project, stores, how, where, dry_run=dry_run, report=_printer(dry_run)))


@qupath.command()
@project_argument
@click.option(
    "--model", required=True, metavar="NAME|SHA256", help="Its name, or the SHA-256's beginning."
)
@dry_run_option
def remove(project: Path, model: str, dry_run: bool) -> None:
    """Take a model's objects out of every image of PROJECT; those people corrected stay."""
    from tiaft_plugin.qupath.pushing import push as pushing

    _start()
    _finish(pushing.remove(project, model, dry_run=dry_run, report=_printer(dry_run)))


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


def _report_script(changes: list[Any], dry_run: bool) -> None:
    failed = [change for change in changes if change.reason]
    for change in failed:
        click.echo(f"FAILED {change.image}: {change.reason}", err=True)
    for change in changes:
        if not change.reason:
            where = "would be written to a file" if dry_run else "in a file for it"
            click.echo(f"{change.image}: {change.added} objects {where}")
            for note in change.notes:
                click.echo(f"  {note}")
    done = len(changes) - len(failed)
    click.echo(f"{done} of {len(changes)} images {'would be ' if dry_run else ''}prepared")
    if done and not dry_run:
        click.echo(
            "In QuPath: Automate > Project scripts > tiaft import …, then Run > Run for project"
        )
    if failed:
        raise click.exceptions.Exit(1)


def _add_slides(project: Path, stores: list[Path], where: Any, options: dict[str, Any]) -> list:
    """Add what the project lacks; return the stores to push: in a dry run, of what is there."""
    from tiaft_plugin.qupath.pushing import adding
    from tiaft_plugin.qupath.pushing.push import read_predictions

    dry_run = options["dry_run"]
    new = options["create"] and not adding.is_project(project)
    read = {}
    for store in stores:
        with suppress(TiaftError):  # the push says why
            read[store] = read_predictions(store)
    added = adding.add_slides(
        project,
        list(read.values()),
        create=options["create"],
        slides=options["slides"],
        where=where,
        dry_run=dry_run,
    )
    if new:
        click.echo(f"{project}: {'a new project would be made' if dry_run else 'a new project'}")
    for each, file in added:
        click.echo(f"{file}: {f'would be added, {each.count} tiles' if dry_run else 'added'}")
    if not dry_run:
        return stores
    left = [store for store in stores if all(read.get(store) is not each for each, _ in added)]
    if new and left:
        raise TiaftError(f"{left[0]}: its slide is not among --slides: name its file or folder")
    if new or not left:
        raise click.exceptions.Exit(0)
    return left


def _printer(dry_run: bool) -> Callable[[Any], None]:
    """Return what prints a line for each image."""
    would = "would be " if dry_run else ""

    def show(change: Any) -> None:
        if change.reason:
            click.echo(f"FAILED {change.image}: {change.reason}", err=True)
            return
        parts = [f"{change.added} {would}added"] if change.added else []
        parts.append(f"{change.removed} {would}removed")
        if change.corrected:
            parts.append(f"{change.corrected} stay that a person changed")
        parts.append(f"{change.others} of others untouched")
        click.echo(f"{change.image}: {', '.join(parts)}")
        for note in change.notes:
            click.echo(f"  {note}")

    return show


def _finish(changes: list[Any]) -> None:
    """Print how many images were done; fail with 1 if one failed."""
    failed = sum(bool(change.reason) for change in changes)
    click.echo(f"{len(changes) - failed} of {len(changes)} images done")
    if failed:
        raise click.exceptions.Exit(1)


def _start() -> None:
    """Start QuPath's Java, and say so where QuPath runs: it would write over what is written."""
    from tiaft_plugin.qupath.java.start import start_java
    from tiaft_plugin.qupath.project.project_file import running_qupath

    start_java()
    if running_qupath():
        click.echo(
            "Warning: QuPath is running: if this project is open there, close it first, since what "
            "QuPath saves later would take the place of what is written now",
            err=True,
        )


qupath.add_command(pull)
