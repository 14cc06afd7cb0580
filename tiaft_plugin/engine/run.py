"""A run over many slides: stores, sinks, and a summary that says what became of each."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiaft_plugin.engine.extractor import FeatureExtractor, SlideJob, SlideResult, TilePredictor
from tiaft_plugin.engine.predictions import predictions_of
from tiaft_plugin.engine.slides import first_line
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.network.device import pick_device
from tiaft_plugin.plugins import Registered, collect

SUMMARY_COLUMNS = ("slide", "status", "tiles", "seconds", "reason")


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
) -> FeatureExtractor | TilePredictor:
    """Make an engine for ``features`` or ``predictions``, ready to `process` slides.

    `model` is a name or a model file. `resolution` (µm/px) and `stride` (px at that resolution)
    replace the model's. Raises TiaftError.
    """
    engine_class = {"features": FeatureExtractor, "predictions": TilePredictor}[kind]
    engine = engine_class(
        _model_argument(model, kind),
        batch_size=batch_size,
        num_workers=workers,
        device=str(pick_device(device)),
    )
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
    sinks: Sequence[Registered] = (),
    overwrite: bool = False,
) -> Iterator[SlideResult]:
    """Work through slides; give each result once its store, sinks and summary line are there.

    Writes ``out/<slide>.zarr``, ``out/<slide><suffix>`` for each sink and ``out/summary.csv``,
    which keeps the lines of earlier runs over other slides.
    """
    lines = _read_summary(out / "summary.csv")
    for result in engine.process(jobs, out, overwrite=overwrite):
        done = _write_sinks(result, sinks, overwrite=overwrite)
        lines[str(done.slide)] = {
            "slide": str(done.slide),
            "status": done.status,
            "tiles": done.tiles,
            "seconds": f"{done.seconds:.1f}",
            "reason": done.reason,
        }
        _write_summary(out / "summary.csv", lines.values())
        yield done


def named_sinks(names: Iterable[str]) -> list[Registered]:
    """Return registered sinks by name. Raises TiaftError for one that nobody registers."""
    known = collect("register_sinks")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TiaftError(f"no sink {', '.join(unknown)}: there are {', '.join(sorted(known))}")
    return [known[name] for name in names]


def _write_sinks(
    result: SlideResult, sinks: Sequence[Registered], *, overwrite: bool
) -> SlideResult:
    if result.store is None or not sinks:
        return result
    predictions = predictions_of(read_store(result.store), result.slide)
    try:
        for sink in sinks:
            path = result.store.with_suffix(sink.options.get("suffix", f".{sink.name}"))
            # The store is finished, so what it says is final: a file from it stays as it is.
            if result.status == "done" or overwrite or not path.exists():
                sink.thing(predictions, path)
    except Exception as error:  # plug-ins raise whatever they like
        reason = f"{sink.name} cannot be written: {first_line(error)}"
        return replace(result, status="failed", reason=reason)
    return result


def _model_argument(model: str, kind: str) -> str:
    """Turn what a person typed into what an engine takes: a name with its view, or a file."""
    from tiaft_plugin.zoo.names import find
    from tiaft_plugin.zoo.promises import FEATURES

    if Path(model).suffix == ".safetensors" or Path(model).is_file():
        if not Path(model).is_file():
            raise TiaftError(f"{model}: no such model file")
        if Path(model).suffix != ".safetensors":
            raise TiaftError(f"{model} is no model file: import it with `tiaft models convert`")
        return model
    named = find(model)
    if named is None:
        return _tiatoolbox_name(model)
    if kind == "features" and named.view == "classes":
        return named.base + FEATURES
    return model


def _tiatoolbox_name(model: str) -> str:
    import timm
    from tiatoolbox import rcParam
    from tiatoolbox.models.architecture.vanilla import timm_arch_dict, torch_cnn_backbone_dict

    tables = (rcParam["pretrained_model_info"], timm_arch_dict, torch_cnn_backbone_dict)
    if any(dict.__contains__(table, model) for table in tables) or timm.is_model(model):
        return model
    raise TiaftError(
        f"no model {model!r}: `tiaft models list` shows those there are, and a model file "
        "(.safetensors) will do, too"
    )


def _read_summary(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {row["slide"]: {name: row[name] for name in SUMMARY_COLUMNS} for row in rows}
    except (KeyError, ValueError, csv.Error) as error:
        raise TiaftError(f"{path} is in the way and no summary of tiaft's: move it") from error


def _write_summary(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with (
        write_atomically(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as f,
    ):
        writer = csv.DictWriter(f, SUMMARY_COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
