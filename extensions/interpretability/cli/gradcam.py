"""``tiaft interpret gradcam``: where in tiles and slides a class gets its evidence from."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import CLASSES, Finite, device_option, model_option, seed_option
from tiaft_plugin.errors import Stopped, TiaftError

_PATH = click.Path(path_type=Path)


@click.command(short_help="Show where in a tile, or a slide, a class gets its evidence from.")
@click.argument("tiles", required=False, type=_PATH)
@model_option
@click.option(
    "--store",
    "stores",
    multiple=True,
    type=_PATH,
    help="Store of `tiaft predict`, or a folder of them, instead of TILES; may be repeated.",
)
@click.option(
    "--slide",
    "slides",
    multiple=True,
    type=_PATH,
    help="The slide of --store, or a folder that has it; may be repeated.",
)
@click.option("--out", required=True, type=_PATH, help="Folder for report.html and gradcam/.")
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="CLASS",
    help="Class to explain; may be repeated [default: all that TILES have; --store needs one].",
)
@click.option("--layer", metavar="NAME", help="Layer to look at [default: the last with a map].")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    help="Tiles of each class to show.",
)
@click.option(
    "--at-least",
    type=Finite(0, 1, max_open=True),
    default=0.99,
    show_default=True,
    help="Show tiles that the model gives their class with more than this probability.",
)
@click.option(
    "--to",
    "sinks",
    type=CLASSES,
    metavar="A,B",
    help="Where a slide's tiles go, with scores: geojson, qupath=PROJECT, … [default: geojson].",
)
@click.option(
    "--stain-target",
    type=_PATH,
    metavar="IMAGE",
    help="Image that the stains of --store were normalised to.",
)
@seed_option
@device_option
@click.option("--overwrite", is_flag=True, help="Replace what an earlier run put into OUT/gradcam.")
def gradcam(tiles: Path | None, stores: tuple[Path, ...], **options: Any) -> None:
    """Explain a model's sure tiles among TILES (folders per class, or a manifest), or a --store.

    Writes OUT/report.html and OUT/gradcam: pictures, tables, and of a slide a heat map (OME-TIFF).
    Scores of a slide's tiles are kept beside its store; what goes to QuPath later has them, too.
    """
    _check(tiles, stores, options)
    from tiaft_extensions.interpretability.gradcam.explain import How, write_files
    from tiaft_extensions.interpretability.gradcam.section import section
    from tiaft_extensions.interpretability.pick import class_index
    from tiaft_extensions.interpretability.report import section_folder
    from tiaft_extensions.interpretability.subject import layer, load_subject

    out: Path = options["out"]
    how = How(options["layer"], options["count"], options["at_least"], options["seed"])
    with section_folder(out, "gradcam", overwrite=options["overwrite"]) as folder:
        subject = load_subject(options["model"], options["device"])
        for cls in options["classes"] or subject.classes[:1] or [""]:
            class_index(subject, cls)
        if how.layer:
            layer(subject, how.layer)
        failed = 0
        if tiles is not None:
            found = _of_tiles(subject, tiles, options["classes"], how)
        else:
            found, failed = _of_stores(subject, stores, options, how, folder)
        write_files(folder, found)
        (folder / "section.html").write_text(section(subject, found, how), encoding="utf-8")
    for note in found.notes:
        click.echo(f"Note: {note}", err=True)
    for each in found.examples:
        click.echo(f"{each.cls}: {len(each.tiles)} tiles explained")
    click.echo(f"Look at {out / 'report.html'}")
    if failed:
        raise click.exceptions.Exit(1)


def _check(tiles: Path | None, stores: tuple[Path, ...], options: dict[str, Any]) -> None:
    if (tiles is None) == (not stores):
        raise click.UsageError("name TILES, or a --store with its --slide")
    if tiles is not None:
        for name in ("slides", "sinks", "stain_target"):
            if options[name]:
                shown = {"slides": "slide", "sinks": "to"}.get(name, name.replace("_", "-"))
                raise click.UsageError(f"--{shown} needs --store")
    elif not options["slides"]:
        raise click.UsageError("--store needs --slide: the slide that it was predicted of")
    elif not options["classes"]:
        raise click.UsageError("--store needs --class: the class to explain")


def _of_tiles(subject: Any, tiles: Path, classes: tuple[str, ...], how: Any) -> Any:
    from tiaft_extensions.interpretability.gradcam.explain import explain_tiles
    from tiaft_plugin.tiles.tileset import read_tileset

    return explain_tiles(
        subject, read_tileset(tiles, multilabel=subject.multilabel), list(classes), how
    )


def _of_stores(
    subject: Any, paths: tuple[Path, ...], options: dict[str, Any], how: Any, folder: Path
) -> tuple[Any, int]:
    """Explain each store; return what was found, and how many failed. Raises where all did."""
    from tiaft_extensions.interpretability.gradcam.explain import Found, explain_slide
    from tiaft_plugin.cli.qupath import stores_in
    from tiaft_plugin.engine.sinks import named_sinks
    from tiaft_plugin.engine.store import read_store

    outlets = named_sinks(options["sinks"] or ["geojson"])
    found, failures = Found(), []
    stores = stores_in(paths)
    stems = [path.stem for path in stores]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise TiaftError(
            f"two stores are called {twice[0]}: their files would, too: explain them one by one, "
            "each to an --out of its own"
        )
    for path in stores:
        try:
            store = read_store(path)
            one = explain_slide(
                subject,
                store,
                _slide_of(store, options["slides"], alone=len(stores) == 1),
                list(options["classes"]),
                how,
                folder,
                outlets,
                options["stain_target"],
            )
        except TiaftError as error:
            failures.append(str(error))
            continue
        found.examples += one.examples
        found.slides += one.slides
        found.notes += one.notes
    if len(failures) == len(stores):
        raise (TiaftError if len(failures) == 1 else Stopped)("; ".join(failures))
    for failure in failures:
        click.echo(f"FAILED {failure}", err=True)
    return found, len(failures)


def _slide_of(store: Any, slides: tuple[Path, ...], *, alone: bool) -> Path:
    """Return a store's slide among files, and folders that hold it. Raises TiaftError."""
    name = store.facts["slide"]["name"]
    if alone and len(slides) == 1 and not (slides[0] / name).exists():
        return slides[0]
    for path in slides:
        if path.name == name and path.exists():
            return path
        if (path / name).exists():
            return path / name
    raise TiaftError(f"{store.path}: its slide {name} is not among --slide")
