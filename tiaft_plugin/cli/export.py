"""`tiaft export`: stores to the files that other tools read."""

from pathlib import Path

import click


@click.command(short_help="Write stores as files that other tools read.")
@click.argument("stores", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--to",
    required=True,
    type=click.Choice(["h5", "stamp", "pt", "anndata"]),
    help="h5: CLAM and TRIDENT; stamp: STAMP; pt: CLAM's pt_files; anndata: .h5ad for scverse.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the files; what is in it stays.",
)
@click.option("--overwrite", is_flag=True, help="Replace files of these names.")
def export(stores: tuple[Path, ...], to: str, out: Path, overwrite: bool) -> None:
    """Write STORES, or folders of them, as files for other tools: OUT/<store>.h5, .pt or .h5ad.

    Features go to any of them, predictions to anndata. For models there is `tiaft models export`.
    """
    from tiaft_plugin.engine.export import export_paths, export_store, stores_in
    from tiaft_plugin.errors import reason

    found = stores_in(stores)
    failed = 0
    for store, path in zip(found, export_paths(found, to, out), strict=True):
        try:
            tiles = export_store(store, to, path, overwrite=overwrite)
        except Exception as error:  # a damaged store or full disk: each library raises its own
            failed += 1
            click.echo(f"FAILED {store}: {reason(error)}", err=True)
        else:
            click.echo(f"{store.name}: {tiles} tiles -> {path}")
    if failed:
        click.echo(f"{len(found) - failed} of {len(found)} stores exported")
        raise click.exceptions.Exit(1)
