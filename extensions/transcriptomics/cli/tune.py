"""``tiaft transcriptomics tune``: a tile encoder, fine-tuned on the expression of slides."""

from pathlib import Path
from typing import Any

import click

from tiaft_plugin.cli.options import (
    POSITIVE,
    Finite,
    Sections,
    backbone_option,
    device_option,
    section,
    seed_option,
    settings,
)

_PATH = click.Path(path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COUNT = click.IntRange(min=1)
_SHARE = Finite(0, 1, max_open=True)

_DATA = section(
    "Data",
    click.option("--expression", required=True, type=_FILE, help="Expression table."),
    click.option("--out", type=_PATH, required=True, help="Folder for the results."),
    click.option("--patients", type=_FILE, help="Table slide,patient, where names do not tell."),
    click.option("--genes", type=_FILE, help="Gene list, one a line [default: all genes]."),
    click.option(
        "--most-variable",
        type=_COUNT,
        metavar="N",
        show_default="all",
        help="Of these, keep the N that vary most among training patients.",
    ),
    click.option("--unit", default="", metavar="UNIT", help="tpm, fpkm … [default: shown]."),
    click.option(
        "--genes-in",
        type=click.Choice(["rows", "columns"]),
        help="Where genes stand [default: by their names].",
    ),
    click.option(
        "--val-share",
        type=_SHARE,
        default=0.15,
        show_default=True,
        metavar="SHARE",
        help="Of the patients, to choose the epoch by.",
    ),
    click.option(
        "--test-share",
        type=_SHARE,
        default=0.2,
        show_default=True,
        metavar="SHARE",
        help="Of the patients, to measure on at the end; they choose nothing.",
    ),
    click.option("--mpp", type=POSITIVE, metavar="UM_PER_PX", help="The tiles' µm/px."),
)
_TRAINING = section(
    "Training (paper 5)",
    click.option(
        "--objective",
        type=click.Choice(["contrastive", "direct"]),
        default="contrastive",
        show_default=True,
        help="Find a slide's expression among others', or predict it.",
    ),
    click.option(
        "--train",
        type=click.Choice(["head", "last", "whole"]),
        default="head",
        show_default=True,
        help="What learns of the encoder: nothing, its last blocks, or all.",
    ),
    click.option("--blocks", type=_COUNT, default=1, show_default=True, help="For --train last."),
    click.option(
        "--pooling",
        type=click.Choice(["mean", "attention"]),
        default="mean",
        show_default=True,
        help="From tiles to a slide.",
    ),
    click.option("--epochs", type=_COUNT, default=50, show_default=True, metavar="N"),
    click.option("--lr", type=POSITIVE, default=1e-4, show_default=True, metavar="F"),
    click.option(
        "--slides", type=click.IntRange(min=2), default=64, show_default=True, help="In a step."
    ),
    click.option("--tiles", type=_COUNT, default=64, show_default=True, help="Of each slide."),
    click.option(
        "--chunk",
        type=_COUNT,
        default=16,
        show_default=True,
        help="Slides in memory at once; the gradient is that of all in the step.",
    ),
    settings("--set", "more", "Another setting, such as width=512 or temperature=0.1"),
    seed_option,
)
_MODEL = section(
    "Model",
    backbone_option("the init file's"),
    click.option(
        "--init",
        default="imagenet",
        show_default=True,
        metavar="NAME|FILE|imagenet|random",
        help="The encoder to begin with; of feature stores, the one that made them.",
    ),
    settings("--backbone-arg", "backbone_args", "An argument for timm, such as pad_type=same"),
    click.option("--register", metavar="NAME", help="Give the model a name in TIAToolbox."),
)
_COMPUTER = section(
    "Computer",
    device_option,
    click.option("--devices", type=_COUNT, default=1, show_default=True, help="Processes."),
    click.option("--nodes", type=_COUNT, default=1, show_default=True, help="Machines."),
    click.option("--resume-anyway", is_flag=True, help="Go on where versions differ."),
    click.option("--overwrite", is_flag=True, help="Replace the results of an earlier run."),
)


@click.command(cls=Sections, short_help="Fine-tune a tile encoder on expression.")
@click.argument("source", metavar="STORES|TILES", type=_PATH)
@_DATA
@_TRAINING
@_MODEL
@_COMPUTER
def tune(source: Path, objective: str, register: str | None, init: str, **given: Any) -> None:
    """Fine-tune an encoder on slides' expression, directly or by contrast, to a model file.

    Tiles stand in a folder a slide, or in a manifest.csv whose column group is the slide. Feature
    stores are for --train head. Patients are split three ways: to learn from, to choose the epoch
    by, and to test on, beside the encoder as it was. Interrupted, the same command goes on. Writes
    model.safetensors, heads.safetensors, report.html, metrics.csv (epochs), test.csv, test.json,
    test.npz and genes.csv (the test), slides.csv (who is in which set), left_out.csv (genes) and
    unmatched.csv (slides, samples and genes before training).
    """
    from tiaft_extensions.transcriptomics.tune.outputs import FILES, TABLES, refuse_results
    from tiaft_extensions.transcriptomics.tune.samples import NamedJob, read_samples
    from tiaft_plugin.files import refuse_among_tiles
    from tiaft_plugin.finetune.processes import is_first
    from tiaft_plugin.finetune.run import finetune
    from tiaft_plugin.zoo.folder import file_of, names

    # At once: the tiles may take minutes to read.
    refuse_among_tiles(given["out"], source)
    refuse_results(given["out"], (*FILES, *TABLES), overwrite=given["overwrite"])
    data = read_samples(
        source,
        given.pop("expression"),
        patients=given.pop("patients"),
        genes=given.pop("genes"),
        val_share=given.pop("val_share"),
        test_share=given.pop("test_share"),
        seed=given["seed"],
        mpp=given["mpp"],
        unit=given.pop("unit"),
        genes_in=given.pop("genes_in") or "",
    )
    options = {name: given.pop(name) for name in ("train", "blocks", "pooling", "epochs", "lr",
                                                  "slides", "tiles", "chunk")}  # fmt: skip
    options |= {"genes": given.pop("most_variable"), **given.pop("more")}
    job = NamedJob(
        train=data.train,
        val=data.val,
        test=data.test,
        inputs=data.inputs,
        targets="regression",
        init=str(file_of(init)) if init in names() else init,
        options=options,
        notes=tuple(line.strip() for line in data.left.summary()),
        prepared=data,
        **given,
    )
    if is_first(job):
        for line in (*data.lines, *data.left.summary()):
            click.echo(line, err=True)
    result = finetune(job, f"expression-{objective}", register)
    click.echo(result.summary)
    for name in ("model", "report", "metrics"):
        click.echo(f"{name:10}{getattr(result, name)}")
