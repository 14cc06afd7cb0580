"""`tiaft histotransfer tune`: a tile encoder, fine-tuned through attention."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import POSITIVE, Sections, device_option, section, seed_option

_PATH = click.Path(path_type=Path)
_THERE = click.Path(exists=True, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COUNT = click.IntRange(min=1)

_DATA = section(
    "Data",
    click.option(
        "--attention",
        required=True,
        metavar="RUN",
        type=_THERE,
        help="OUT of `tiaft probe mil`: labels, folds and heads.",
    ),
    click.option(
        "--slides",
        required=True,
        multiple=True,
        type=_THERE,
        help="Folder that holds the stores' slides, or folders of tiles; may be repeated.",
    ),
    click.option("--out", required=True, type=_PATH, help="Folder for the results."),
    click.option("--set", "name", default="", metavar="NAME", help="Of RUN's, if several."),
    click.option(
        "--fold",
        "folds",
        multiple=True,
        type=click.IntRange(min=0),
        metavar="K",
        help="Hold out this fold of RUN only; may be repeated [default: each, one by one].",
    ),
    click.option("--stain-target", type=_FILE, metavar="IMAGE", help="As the stores were made."),
)
_TRAINING = section(
    "Training (paper 4, stage 2)",
    click.option(
        "-k", "k", type=_COUNT, default=64, show_default=True, metavar="N", help="Tiles of a bag."
    ),
    click.option("--epochs", type=_COUNT, default=20, show_default=True, metavar="N"),
    click.option("--lr", type=POSITIVE, default=1e-5, show_default=True, metavar="F"),
    click.option(
        "--keep",
        type=click.Choice(["best", "last"]),
        default="best",
        show_default=True,
        help="Epoch to keep, by accuracy on validation bags.",
    ),
    click.option(
        "--chunk",
        type=_COUNT,
        default=16,
        show_default=True,
        help="Tiles in memory at once; the gradient is that of all k.",
    ),
    seed_option,
)
_MODEL = section(
    "Model",
    click.option(
        "--model", metavar="NAME|FILE", help="The encoder [default: the stores' model, by name]."
    ),
    click.option("--register", metavar="NAME", help="Give the first fold's model a name."),
)
_COMPUTER = section(
    "Computer",
    device_option,
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Of training.",
    ),
    click.option("--cache", type=_PATH, help="Folder where tiles stay for other runs."),
    click.option(
        "--checkpoint-minutes", type=POSITIVE, default=10.0, show_default=True, metavar="F"
    ),
    click.option("--resume-anyway", is_flag=True, help="Go on where versions differ."),
    click.option("--overwrite", is_flag=True, help="Replace the results of an earlier run."),
)


@click.command(cls=Sections, short_help="Fine-tune a tile encoder through attention (top-k).")
@click.argument("stores", type=_THERE)
@_DATA
@_TRAINING
@_MODEL
@_COMPUTER
def tune(stores: Path, attention: Path, out: Path, **given: Any) -> None:
    """Fine-tune the encoder of STORES by the labels of bags, to model files.

    Of each bag, the k tiles with the most attention are read from its slides once, and encoder and
    attention head learn from them end to end. The patients of a fold of RUN are held out: report
    and table compare the tuned encoder with the frozen one on them. Interrupted, the same command
    goes on. Writes OUT/fold-K (model.safetensors, head.safetensors, metrics.csv, report.html),
    and OUT/report.html, held_out.csv and summary.json of all folds.
    """

    from tiaft_extensions.histotransfer.topk.folds import tune_folds

    names = ("slides", "k", "epochs", "lr", "keep", "chunk", "stain_target")
    options = {name: given.pop(name) for name in names}
    study = tune_folds(stores, attention, out, options=options, say=click.echo, **given)
    _echo(study)


def _echo(study: Any) -> None:
    from tiaft_extensions.histotransfer.topk.held_out import verdict

    compared = study.compared
    for name, (auroc, low, high, balanced) in compared.models.items():
        click.echo(f"{name:16}AUROC {auroc:.3f} ({low:.3f} to {high:.3f}), balanced {balanced:.3f}")
    click.echo(f"{compared.bags} held-out bags of {compared.groups} patients")
    for name, its in compared.differences.items():
        click.echo(f"{name} less frozen {its.value:+.3f}: {verdict(its)}")
    for note in dict.fromkeys(n for result in study.results.values() for n in result.warnings):
        click.echo(f"note: {note}")
    click.echo(f"\nmodel   {study.model}\nreport  {study.report}")
