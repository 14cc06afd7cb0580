"""`tiaft interpret tiles`: annotated slides to labelled tiles."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import POSITIVE
from tiaft_plugin.cli.qupath_pull import (
    grid_options,
    label_options,
    labels_of,
    report_pulled,
    slide_options,
)


@click.command(short_help="Annotated slides (ASAP XML, GeoJSON, QuPath) to labelled tiles.")
@click.argument("slides", metavar="SLIDE", type=click.Path(exists=True, path_type=Path))
@click.argument("annotations", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out",
    required=True,
    metavar="TILES",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the tiles.",
)
@click.option(
    "--tile-size",
    type=click.IntRange(min=1),
    default=224,
    show_default=True,
    metavar="PX",
    help="Side of the tiles.",
)
@click.option("--mpp", type=POSITIVE, required=True, metavar="UM_PER_PX", help="Their resolution.")
@grid_options
@label_options
@click.option(
    "--rest", metavar="NAME", help="Label of tissue that no annotation covers, such as normal."
)
@slide_options
@click.option("--overwrite", is_flag=True, help="Replace the tiles of an earlier run.")
@click.option("--dry-run", is_flag=True, help="Say what would be cut; do nothing.")
def tiles(slides: Path, annotations: Path, out: Path, **options: Any) -> None:
    """Cut labelled tiles out of annotated slides, for `tiaft finetune` and `tiaft interpret`.

    SLIDE is a slide or a folder of slides. ANNOTATIONS is ASAP's XML, as Camelyon's slides have it
    (a group is a class; Camelyon's are called tumor and normal), GeoJSON from QuPath, a folder of
    such files named after their slides, or a QuPath project (as `tiaft qupath pull` has it, which
    can do more). What is not annotated gives no tile, except with --rest.
    """
    from tiaft_extensions.interpretability.annotated.cut import cut_annotated
    from tiaft_plugin.qupath.pulling.asked import How, Where

    how = How(
        options["tile_size"],
        options["mpp"],
        options["stride"],
        options["min_coverage"],
        labels_of(options["renamed"], options["classes"]),
    )
    results = cut_annotated(
        slides,
        annotations,
        out,
        how,
        Where(mpp=options["slide_mpp"], patients=options["patients"]),
        rest=options["rest"],
        overwrite=options["overwrite"],
        dry_run=options["dry_run"],
    )
    report_pulled(results, out, options["dry_run"])
