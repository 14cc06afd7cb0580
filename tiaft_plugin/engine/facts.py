"""What a store says of how it was made: the slide, the grid, the mask (docs/formats.md)."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiaft_plugin.engine.slides import fingerprint, slide_bounds, slide_mpp
from tiaft_plugin.files import sha256_of

if TYPE_CHECKING:
    from tiatoolbox.wsicore import WSIReader

_PACKAGES = ("tiaft_plugin", "tiatoolbox", "torch", "timm")


def slide_facts(slide: Path, reader: "WSIReader") -> dict[str, Any]:
    """Return a slide's name, fingerprint, size (px) and µm/px at baseline; bounds if it has any."""
    facts = {
        "name": slide.name,
        "fingerprint": fingerprint(slide),
        "size": [int(value) for value in reader.info.slide_dimensions],
        "mpp": list(slide_mpp(reader)),
    }
    bounds = slide_bounds(reader)
    return facts | {"bounds": list(bounds)} if bounds else facts


def grid_facts(config: Any, dataset: Any, mask: str, min_tissue: float) -> dict[str, Any]:
    """Return where the tiles lie: `config` is TIAToolbox's ioconfig, `dataset` its tiles."""
    return {
        "tile_size": _pair(config.patch_input_shape),
        "stride": _pair(config.stride_shape),
        "resolution": float(np.ravel(dataset.resolution)[0]),
        "units": dataset.units,
        "mask": mask,
        "min_tissue": min_tissue,
    }


def scale_to_baseline(reader: "WSIReader", dataset: Any) -> list[float]:
    """Return what coordinates are multiplied by to give baseline pixels, x and y."""
    if dataset.units == "mpp":
        wanted = np.broadcast_to(np.asarray(dataset.resolution, dtype=float), 2)
        return [float(value) for value in wanted / np.asarray(slide_mpp(reader))]
    read = reader.slide_dimensions(dataset.resolution, dataset.units)
    return [float(a) / float(b) for a, b in zip(reader.info.slide_dimensions, read, strict=True)]


def mask_facts(mask: Any, auto: bool) -> str:
    """Return which mask was used: ``otsu`` (TIAToolbox's), ``none``, or a mask's hash."""
    if mask is None:
        return "otsu" if auto else "none"
    if isinstance(mask, np.ndarray):
        digest = hashlib.sha256(str(mask.shape).encode())
        digest.update(np.ascontiguousarray(mask).tobytes())
        return f"sha256:{digest.hexdigest()}"
    return f"sha256:{sha256_of(mask)}"


def versions() -> dict[str, str]:
    """Return the versions of what decides the numbers."""
    return {name: version(name) for name in _PACKAGES}


def _pair(shape: Any) -> list[int]:
    return [int(value) for value in np.broadcast_to(np.asarray(shape), 2)]
