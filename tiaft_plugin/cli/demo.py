"""`tiaft demo`: the whole way on real tissue, offline."""

from pathlib import Path

import click


@click.command(short_help="The whole way on a small real slide, offline.")
@click.option(
    "--out",
    default="demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for its files.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo there.")
def demo(out: Path, overwrite: bool) -> None:
    """Fine-tune, register, predict, extract: the whole way on a small real slide, offline."""
    from tiaft_plugin.demo import NAME, run_demo

    found = run_demo(out, overwrite=overwrite, say=click.echo)
    click.echo(f"""
Done. What there is now:
  {found.picture}   the slide with its predicted tiles in colour
  {found.geojson}   the same tiles for QuPath: drop it onto {found.slide.name}, opened there
  {found.features}   features of every tile (zarr)
  {found.report}   how the model was trained, and how good it is
  {found.model}   the model: `TIAFT_MODELS={out / "models"}` gives scripts its name, {NAME}""")
