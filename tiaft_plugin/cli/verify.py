"""`tiaft verify`: is a store what it says it is."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import batch_size_option, device_option, seed_option

_COLOURS = {"PASS": "green", "SKIP": "yellow", "FAIL": "red"}
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(short_help="Check that stores are whole, and true to their slides.")
@click.argument("stores", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--slide",
    "slides",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Slide of a store, or a folder with it, to make tiles again from; may be repeated.",
)
@click.option(
    "--model", metavar="NAME|FILE", help="Model to make them with [default: the store's, by name]."
)
@click.option(
    "--mask",
    type=_FILE,
    help="Mask that the store was made with, to see whether a tile is missing.",
)
@click.option("--mask-class", multiple=True, metavar="CLASS", help="Its regions of this class.")
@click.option("--stain-target", type=_FILE, metavar="IMAGE", help="As the store was made with.")
@click.option(
    "--tiles",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    help="How many tiles of each store to make again.",
)
@seed_option
@batch_size_option(32)
@device_option
@click.pass_context
def verify(ctx: click.Context, stores: tuple[Path, ...], **options: Any) -> None:
    """Check STORES, or folders of them: PASS, FAIL or SKIP for each check, with the reason.

    Without --slide: schema, completeness, checksums, settings, timing, shapes and grid. With it,
    also whether a tile is missing, and whether tiles drawn at random come out the same again. The
    exit code is 1 if a store fails.
    """
    from tiaft_plugin.engine.export import stores_in
    from tiaft_plugin.engine.verify import verify_store

    if options["mask_class"] and not options["mask"]:
        raise click.UsageError("--mask-class needs --mask")
    run = {name: options[name] for name in ("tiles", "seed", "batch_size", "device")}
    found, failed = stores_in(stores), 0
    for store in found:
        findings = verify_store(store, _source(store, options), **run)
        click.echo(store)
        for finding in findings:
            status = click.style(finding.status, fg=_COLOURS[finding.status], bold=True)
            click.echo(f"  {status}  {finding.check}: {finding.text}")
        failed += any(finding.status == "FAIL" for finding in findings)
    click.echo(f"{len(found) - failed} of {len(found)} stores pass")
    ctx.exit(1 if failed else 0)


def _source(store: Path, options: dict[str, Any]) -> Any:
    from tiaft_plugin.engine.again import Source
    from tiaft_plugin.engine.verify import find_slide

    slide = find_slide(store, options["slides"])
    if slide is None:
        return None
    mask = options["mask"]
    if mask is not None and mask.suffix.lower() in (".geojson", ".json"):
        from tiaft_plugin.qupath.masks import RegionMask

        mask = RegionMask(mask, tuple(options["mask_class"]))
    return Source(slide, options["model"], mask, options["stain_target"])
