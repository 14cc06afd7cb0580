"""The whole way in a few minutes, offline, on real tissue that scikit-image carries.

The tissue is colonic glands, stained brown (DAB) for FHL2 and blue (haematoxylin). The brown stain
marks the glands' epithelium, so that tiles can be labelled without a person: by colour
deconvolution. The left half of the picture trains, the right half tests.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically

TILE = 24  # px
MPP = 0.5  # µm/px: the picture says nothing of its scale, nuclei of about 16 px suggest this
NAME = "demo-colon"
_MARK = ".tiaft-demo"  # stands in folders that the demo made, which alone it may empty


@dataclass(frozen=True)
class Demo:
    """Where the demo's files lie."""

    slide: Path
    model: Path
    picture: Path
    geojson: Path
    features: Path
    report: Path


def run_demo(out: Path, *, overwrite: bool = False, say: Callable[[str], None] = print) -> Demo:
    """Run the demo into the folder `out`, telling each step to `say`. Raises TiaftError.

    `out` has to be new or empty, or with `overwrite` an earlier demo's.
    """
    _make_room(out, overwrite)
    with _own_models(out / "models"):
        return _run_all(out, say)


def _run_all(out: Path, say: Callable[[str], None]) -> Demo:
    from skimage.data import immunohistochemistry

    from tiaft_plugin.zoo.folder import file_of

    pixels = immunohistochemistry()
    slide = write_slide(out / "colon.ome.tiff", pixels)
    say(f"1/4  a slide of colonic glands, {pixels.shape[1]}×{pixels.shape[0]} px: {slide}")
    half = pixels.shape[1] // 2
    for part, side, piece in (
        ("train", "left", pixels[:, :half]),
        ("test", "right", pixels[:, half:]),
    ):
        counts = cut_tiles(piece, out / "tiles" / part)
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        say(f"     {side} half, to {part}: {listed}")
    say("2/4  fine-tuning in two stages, from random weights")
    result = _finetune(out)
    say("\n".join(f"     {line}".rstrip() for line in result.summary.splitlines()))
    say(f"3/4  predicting the slide with TIAToolbox, model {NAME!r} by name")
    predictions = _run("predictions", slide, out, sinks=("geojson", "picture"))
    say("4/4  extracting its features")
    features = _run("features", slide, out)
    return Demo(
        slide,
        model=file_of(NAME),
        picture=predictions.with_suffix(".png"),
        geojson=predictions.with_suffix(".geojson"),
        features=features,
        report=result.report,
    )


def write_slide(path: Path, pixels: np.ndarray) -> Path:
    """Write RGB pixels (H, W, 3) uint8 as a tiled OME-TIFF that TIAToolbox and QuPath open."""
    import tifffile

    size = {"PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
    units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    with write_atomically(path) as temporary:
        tifffile.imwrite(
            temporary,
            pixels,
            ome=True,
            tile=(256, 256),
            photometric="rgb",
            compression="zlib",
            metadata={"axes": "YXS", **size, **units},
        )
    return path


def cut_tiles(pixels: np.ndarray, folder: Path) -> dict[str, int]:
    """Cut a picture (H, W, 3) into a tile set with a manifest; return each class's tiles."""
    from PIL import Image
    from skimage.color import rgb2hed

    brown = rgb2hed(pixels)[..., 2]
    counts: dict[str, int] = {}
    manifest = ["file,label,group,mpp"]
    for y in range(0, pixels.shape[0] - TILE + 1, TILE // 2):
        for x in range(0, pixels.shape[1] - TILE + 1, TILE // 2):
            place = np.s_[y : y + TILE, x : x + TILE]
            label = _label(pixels[place], brown[place])
            if label is None:
                continue
            path = folder / label / f"x{x:03d}_y{y:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[place]).save(path)
            manifest.append(f"{label}/{path.name},{label},{folder.name},{MPP}")
            counts[label] = counts.get(label, 0) + 1
    (folder / "manifest.csv").write_text("\n".join(manifest) + "\n")
    return dict(sorted(counts.items()))


def _label(tile: np.ndarray, brown: np.ndarray) -> str | None:
    """Label a tile by its stain; None where it shows some of two classes."""
    share = (brown > 0.04).mean()  # of its pixels, brown
    if share > 0.7:
        return "Gland"
    if share > 0.1:
        return None
    return "Empty" if tile.mean(axis=2).std() < 12 else "Stroma"  # grey levels; glass is even


def _finetune(out: Path):
    from tiaft_plugin.finetune.interface import FinetuneJob
    from tiaft_plugin.finetune.run import finetune
    from tiaft_plugin.tiles.tileset import read_tileset

    job = FinetuneJob(
        out=out / "finetuned",
        train=read_tileset(out / "tiles" / "train"),
        val=read_tileset(out / "tiles" / "test"),
        backbone="resnet10t",
        init="random",
        # The paper's rates suit ImageNet weights and 100,000 tiles; here are neither.
        epochs=(5, 10),
        lrs=(1e-3, 1e-3),
        batch_size=32,
        device="cpu",
    )
    return finetune(job, register=NAME)


def _run(kind: str, slide: Path, out: Path, sinks: tuple[str, ...] = ()) -> Path:
    from tiaft_plugin.engine.jobs import SlideJob
    from tiaft_plugin.engine.run import make_engine, run_slides
    from tiaft_plugin.engine.sinks import named_sinks

    engine = make_engine(kind, NAME, stride=TILE // 2, auto_mask=False)
    [result] = run_slides(engine, [SlideJob(slide)], out / kind, sinks=named_sinks(sinks))
    if result.store is None or result.status == "failed":
        raise TiaftError(f"{result.slide}: {result.reason}")
    return result.store


def _make_room(out: Path, overwrite: bool) -> None:
    """Make an empty folder with the demo's mark, out of an earlier demo's if `overwrite`."""
    if out.is_dir() and any(out.iterdir()):
        if not (out / _MARK).is_file():
            raise TiaftError(f"{out} holds other files: choose another --out")
        if not overwrite:
            raise TiaftError(f"{out} holds a demo already: choose another --out, or --overwrite")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).touch()


@contextmanager
def _own_models(folder: Path) -> Iterator[None]:
    """Let names stand for models in `folder`: a demo leaves the user's own models alone."""
    before = os.environ.get("TIAFT_MODELS")
    os.environ["TIAFT_MODELS"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TIAFT_MODELS"]
        else:
            os.environ["TIAFT_MODELS"] = before
