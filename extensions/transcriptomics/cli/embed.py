"""``tiaft transcriptomics embed``: slides as points, by their images or their reports."""

from itertools import pairwise
from pathlib import Path

import click

from tiaft_plugin.cli.options import POSITIVE, seed_option

_PATH = click.Path(path_type=Path)


@click.command(short_help="A t-SNE picture of slides' embeddings, images beside texts.")
@click.argument("tables", nargs=-1, required=True, metavar="[NAME=]TABLE...")
@click.option("--out", required=True, type=_PATH, help="Folder for picture and coordinates.")
@click.option("--labels", type=_PATH, help="Table slide,label to colour by.")
@click.option("--column", default="label", show_default=True, help="Its column of labels.")
@click.option(
    "--method", type=click.Choice(["tsne", "umap"]), default="tsne", show_default=True, help="How."
)
@click.option(
    "--perplexity",
    type=POSITIVE,
    default=30.0,
    show_default=True,
    help="Of t-SNE: about how many neighbours count; a third of the slides at most.",
)
@click.option(
    "--together", is_flag=True, help="All in one plane: they must be of one space, such as CLIP's."
)
@seed_option
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
def embed(
    tables: tuple[str, ...],
    out: Path,
    labels: Path | None,
    column: str,
    method: str,
    perplexity: float,
    together: bool,
    seed: int,
    overwrite: bool,
) -> None:
    """Draw slides as points, a panel a TABLE; a line joins what is of one slide.

    TABLE has a column slide and numbers (.csv, .tsv, .parquet), such as embeddings of reports; or
    is an .npz of features and keys, or a folder of stores, whose tiles are averaged. Writes
    embedding.png and embedding.csv.
    """
    from tiaft_extensions.transcriptomics.evaluate.embedding import (
        COORDINATES,
        PICTURE,
        flatten,
        labels_by_slide,
        pairs_of,
        read_embeddings,
        write_embedding,
    )
    from tiaft_plugin.errors import TiaftError
    from tiaft_plugin.files import refuse_existing, refuse_unwritable
    from tiaft_plugin.probes.features import parse_feature_arguments
    from tiaft_plugin.probes.slides import lookup

    refuse_unwritable(out)
    if not overwrite:
        refuse_existing(out)
    elif out.exists() and not all((out / name).is_file() for name in (COORDINATES, PICTURE)):
        raise TiaftError(f"{out} is not of `tiaft transcriptomics embed`: it is left alone")
    named = parse_feature_arguments(tables)
    for path in (*named.values(), *([labels] if labels else [])):
        if overwrite and path.resolve().is_relative_to(out.resolve()):
            raise TiaftError(f"--overwrite would remove {path}: choose another --out")
    of = labels_by_slide(labels, column) if labels else {}
    read = [read_embeddings(path, name) for name, path in named.items()]
    flats = flatten(read, method=method, together=together, perplexity=perplexity, seed=seed)
    write_embedding(out, flats, of, together=together, overwrite=overwrite)
    for flat in flats:
        bare = sum(not lookup(key, of) for key in flat.keys.tolist())
        without = f", {bare} without label" if labels and bare else ""
        click.echo(f"{flat.name}: {len(flat.keys)} slides{without}")
    for one, other in pairwise(flats):
        click.echo(f"{one.name} and {other.name} share {len(pairs_of(one, other))} slides")
    click.echo(f"\npicture  {out / PICTURE}")
