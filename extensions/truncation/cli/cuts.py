"""`tiaft truncate cuts`: where a backbone can be cut off, and what is then left of it."""

from typing import Any

import click

from tiaft_plugin.cli.options import settings


@click.command(short_help="List where a backbone can be cut off.")
@click.argument("backbone")
@click.option("--layers", is_flag=True, help="Also list cuts inside stages and blocks.")
@click.option(
    "--tile-size",
    type=click.IntRange(min=1),
    default=224,
    show_default=True,
    metavar="PX",
    help="Side of the tiles that GMACs are counted for.",
)
@settings("--backbone-arg", "backbone_args", "An argument for timm, such as pad_type=same")
def cuts(backbone: str, layers: bool, tile_size: int, backbone_args: dict[str, Any]) -> None:
    """List where BACKBONE, any of timm's with stages or blocks, can be cut off.

    `--backbone BACKBONE:CUT` is then the name of the network up to there; T1, T2, … are other names
    of the ends of its stages. Million parameters and GMACs (thousand million multiply-accumulates
    of a tile) are of what is left, without Part B.
    """
    from tiaft_extensions.truncation.backbones.cuts import list_cuts, nothing_to_cut

    found = list_cuts(backbone, tile_size, backbone_args, layers=layers)
    if not found:
        raise nothing_to_cut(backbone)
    rows = [("CUT", "OR", "FEATURES", "M PARAMETERS", "GMACS")]
    rows += [
        (
            each.name,
            each.stage,
            str(each.width),
            f"{each.parameters / 1e6:.3f}",
            f"{each.macs / 1e9:.3f}",
        )
        for each in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False))
        right = (cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
        click.echo("  ".join([left, *right]))
