"""A run over many slides: stores, sinks, and a summary that says what became of each."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tiaft_plugin.engine.extractor import FeatureExtractor, TilePredictor
from tiaft_plugin.engine.jobs import SlideJob, SlideResult
from tiaft_plugin.engine.prepare import Stain
from tiaft_plugin.engine.sinks import Outlet, write_sinks
from tiaft_plugin.engine.summary import add_to_summary, read_summary
from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.network.device import pick_device
from tiaft_plugin.tiles.slide_stain import SlideMacenko


def make_engine(
    kind: str,
    model: str,
    *,
    resolution: float | None = None,
    stride: int | None = None,
    min_tissue: float = 0.0,
    auto_mask: bool = True,
    batch_size: int = 32,
    workers: int = 0,
    device: str = "auto",
    stain: Stain | SlideMacenko | None = None,
    precision: str = "float32",
    compiled: bool = False,
) -> FeatureExtractor | TilePredictor:
    """Make an engine for ``features`` or ``predictions``, ready to `process` slides.

    `model` is a name or a model file. `resolution` (µm/px) and `stride` (px at that resolution)
    replace the model's; `precision` may be ``auto`` (`engine.precision.earned`), `compiled`
    has the network compiled (`engine.compute`); `stain` is `tiles.stain.make_stain`'s. Raises
    TiaftError.
    """
    engine_class = {"features": FeatureExtractor, "predictions": TilePredictor}[kind]
    argument = _model_argument(model, kind)
    try:
        engine = engine_class(
            argument,
            batch_size=batch_size,
            num_workers=workers,
            device=str(pick_device(device)),
            stain=stain,
            precision=precision,
            compiled=compiled,
        )
    except TiaftError:
        raise
    except Exception as error:  # TIAToolbox, timm and the hub raise their own
        raise TiaftError(f"model {model} cannot be loaded: {reason(error)}") from error
    if engine.ioconfig is None:
        raise TiaftError(
            f"{model} comes without tile size and µm/px: make a model file of it with "
            f"`tiaft models create FILE --backbone {model}` and use that"
        )
    config: Any = engine.ioconfig
    if resolution is not None:
        config.input_resolutions = [{"units": "mpp", "resolution": resolution}]
    if stride is not None:
        config.stride_shape = [stride, stride]
    engine._ioconfig = config
    engine.patch_mode = False
    engine.min_tissue, engine.auto_mask = min_tissue, auto_mask
    return engine


def run_slides(
    engine: FeatureExtractor | TilePredictor,
    jobs: Sequence[SlideJob],
    out: Path,
    *,
    sinks: Sequence[Outlet] = (),
    overwrite: bool = False,
) -> Iterator[SlideResult]:
    """Work through slides; give each result once its store, sinks and summary line are there.

    Writes ``out/<slide>.zarr``, ``out/<slide><suffix>`` for each sink with files and
    ``out/summary.csv``, which keeps the lines of earlier runs over other slides.
    """
    read_summary(out / "summary.csv")  # raises now, not after the first slide
    masks = (getattr(job.mask, "path", job.mask) for job in jobs)
    inputs = {job.slide for job in jobs} | {mask for mask in masks if isinstance(mask, Path)}
    for result in engine.process(jobs, out, overwrite=overwrite):
        if result.status == "begun":  # what ends it gives it to sinks
            yield result
            continue
        done = write_sinks(result, sinks, inputs, overwrite=overwrite)
        add_to_summary(out / "summary.csv", done)
        yield done


def _model_argument(model: str, kind: str) -> str:
    """Turn what a person typed into what an engine takes: a name with its view, or a file."""
    from tiaft_plugin.zoo.names import find
    from tiaft_plugin.zoo.promises import FEATURES
    from tiaft_plugin.zoo.registry import owner_of

    if Path(model).suffix == ".safetensors" or Path(model).is_file():
        if not Path(model).is_file():
            raise TiaftError(f"{model}: no such model file")
        if Path(model).suffix != ".safetensors":
            raise TiaftError(
                f"{model} is no model file (.safetensors): make one with `tiaft models create FILE "
                f"--init {model}`, or of a Keras file with `tiaft models convert`"
            )
        return model
    named = find(model)
    if named is None:
        if owner_of(model):
            return model
        raise TiaftError(
            f"no model {model!r}: `tiaft models list` shows those there are, and a model file "
            "(.safetensors) will do, too"
        )
    if kind == "features" and named.view == "classes":
        return named.base + FEATURES
    return model
