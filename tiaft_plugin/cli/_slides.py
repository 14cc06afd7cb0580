"""What `tiaft extract` and `tiaft predict` share: their options, and how a run looks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import (
    CLASSES,
    POSITIVE,
    Finite,
    batch_size_option,
    device_option,
    map_option,
    model_option,
    stain_of,
    stain_options,
    together,
)
from tiaft_plugin.errors import TiaftError

sinks_option = click.option(
    "--to",
    "sinks",
    default="geojson,annotationstore",
    show_default=True,
    type=CLASSES,
    metavar="A,B",
    help="What to make of them: geojson, qupath=PROJECT, annotationstore, picture, or a plug-in's.",
)
slide_options = together(
    click.argument("slides", nargs=-1, type=click.Path(readable=False, path_type=Path)),
    model_option,
    click.option(
        "--out",
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder for the results; what is in it stays.",
    ),
    click.option(
        "--mpp",
        type=POSITIVE,
        metavar="UM_PER_PX",
        help="Resolution of slides whose file has none.",
    ),
    click.option(
        "--resolution",
        type=POSITIVE,
        metavar="UM_PER_PX",
        help="Read tiles at this resolution [default: the model's].",
    ),
    click.option(
        "--stride",
        type=click.IntRange(min=1),
        metavar="PX",
        help="Step between tiles at that resolution [default: the tile size].",
    ),
    click.option(
        "--masks",
        multiple=True,
        type=click.Path(exists=True, path_type=Path),
        help="Mask image or QuPath GeoJSON, or a folder of them named as the slides are; may be "
        "repeated.",
    ),
    click.option(
        "--mask-class",
        multiple=True,
        metavar="CLASS",
        help="Use only the regions of this class in GeoJSON masks; may be repeated.",
    ),
    click.option(
        "--project",
        type=click.Path(exists=True, path_type=Path),
        help="QuPath project, for --within; without SLIDES, all its images that have such regions.",
    ),
    click.option(
        "--within",
        multiple=True,
        metavar="CLASS",
        help="Take only tiles in the project's annotations of this class; may be repeated.",
    ),
    map_option,
    click.option("--no-mask", is_flag=True, help="Take every tile, tissue or not."),
    click.option(
        "--min-tissue",
        type=Finite(0, 1),
        default=0.0,
        show_default=True,
        help="Leave out tiles with less tissue than this fraction.",
    ),
    click.option(
        "--patients",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="CSV table with columns slide,patient: noted in the stores.",
    ),
    stain_options,
    click.option(
        "--stain-scope",
        type=click.Choice(["tile", "slide"]),
        default="tile",
        show_default=True,
        help="Estimate the stains of each tile by itself, or once of the whole slide.",
    ),
    batch_size_option(32),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help="auto: bfloat16 where the device has it and 64 tiles of the slide give what float32 "
        "gives.",
    ),
    click.option(
        "--compile",
        "compiled",
        is_flag=True,
        help="Compile the network first: takes up to a minute or two, and pays for some networks "
        "(docs/performance.md).",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Threads that read tiles ahead of the network.",
    ),
    device_option,
    click.option(
        "--overwrite", is_flag=True, help="Replace results of these slides that stand in the way."
    ),
)


def run(kind: str, sinks: Sequence[str], options: dict[str, Any]) -> None:
    """Run an engine over the slides; print a line for each; fail with 1 if one failed."""
    from tiaft_plugin.engine.run import make_engine, run_slides
    from tiaft_plugin.engine.sinks import named_sinks

    out: Path = options["out"]
    chosen = named_sinks(sinks)
    jobs = _jobs(options)
    engine = make_engine(kind, options["model"], **engine_options(options))
    failed = 0
    for result in run_slides(engine, jobs, out, sinks=chosen, overwrite=options["overwrite"]):
        if result.status == "failed":
            failed += 1
            click.echo(f"FAILED {result.slide}: {result.reason}", err=True)
        else:
            again = " (was there already)" if result.status == "exists" else ""
            told = "".join(f"; {text}" for text in (result.note, result.speed) if text)
            click.echo(f"{result.slide.name}: {result.tiles} tiles -> {result.store}{again}{told}")
    click.echo(f"{len(jobs) - failed} of {len(jobs)} slides done; summary in {out / 'summary.csv'}")
    if failed:
        raise click.exceptions.Exit(1)


def engine_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return `make_engine`'s arguments."""
    names = ("resolution", "stride", "min_tissue", "batch_size", "workers", "device")
    return {
        **{name: options[name] for name in (*names, "precision", "compiled")},
        "auto_mask": not options["no_mask"],
        "stain": stain_of(options),
    }


def _jobs(options: dict[str, Any]) -> list[Any]:
    from tiaft_plugin.engine.jobs import SlideJob, match_masks, patient_of, read_patients

    _check_masks(options)
    # A slide named twice, a.svs and ./a.svs, is one slide.
    slides = list({slide.absolute(): slide for slide in options["slides"]}.values())
    within = _within(options) if options["project"] else None
    if not slides and within is not None:
        slides = within.slides()
    if not slides:
        raise click.UsageError("Missing argument 'SLIDES...'.")
    masks = match_masks(slides, options["masks"]) if options["masks"] else {}
    patients = read_patients(options["patients"]) if options["patients"] else {}
    return [
        SlideJob(
            slide,
            within or mask_of(masks.get(slide), options["mask_class"]),
            options["mpp"],
            patient_of(slide, patients),
        )
        for slide in slides
    ]


def _check_masks(options: dict[str, Any]) -> None:
    given = [name for name in ("masks", "no_mask", "within") if options[name]]
    if len(given) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in given[:2])
        raise click.UsageError(f"{first} and {second} exclude each other")
    if options["mask_class"] and not options["masks"]:
        raise click.UsageError("--mask-class needs --masks")
    if options["moved"] and not options["project"]:
        raise click.UsageError("--map needs --project")
    if bool(options["project"]) != bool(options["within"]):
        raise click.UsageError("--project and --within go together")


def _within(options: dict[str, Any]) -> Any:
    from tiaft_plugin.qupath.masks import ProjectMask

    return ProjectMask(options["project"], options["within"], tuple(options["moved"]))


def mask_of(path: Path | None, classes: Sequence[str]) -> Any:
    """Return a mask as an engine takes it: an image, or the regions of a GeoJSON file."""
    if path is None or path.suffix.lower() not in (".geojson", ".json"):
        if classes and path is not None:
            raise TiaftError(f"{path}: --mask-class needs GeoJSON, this is an image")
        return path
    from tiaft_plugin.qupath.masks import RegionMask

    return RegionMask(path, tuple(classes))
