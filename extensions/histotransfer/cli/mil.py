"""The options of `tiaft probe mil` that other probes have not: how attention is trained."""

import click

from tiaft_extensions.histotransfer.recipe import Recipe
from tiaft_plugin.cli.options import POSITIVE, WIDTHS, at_least

OPTIONS = (
    click.option(
        "--epochs",
        type=click.IntRange(min=1),
        default=Recipe.epochs,
        show_default=True,
        help="Times that every training bag is seen.",
    ),
    click.option("--lr", type=POSITIVE, default=Recipe.lr, show_default=True, help="Adam's rate."),
    click.option(
        "--hidden",
        type=WIDTHS,
        callback=at_least(1),
        default=",".join(map(str, Recipe.hidden)),
        show_default=True,
        metavar="N[,N]",
        help="Widths of the layers that a tile goes through before attention.",
    ),
    click.option(
        "--attention",
        type=click.IntRange(min=1),
        default=Recipe.attention,
        show_default=True,
        help="Width of the attention's own layer.",
    ),
    click.option(
        "--held-out",
        type=click.IntRange(min=2),
        default=Recipe.held_out,
        show_default=True,
        help="One of so many parts of the training patients chooses the epoch.",
    ),
    click.option(
        "--standardise/--as-they-are",
        default=Recipe.standardise,
        show_default="standardise",
        help="Features over the training tiles; the paper leaves them as they are.",
    ),
)
