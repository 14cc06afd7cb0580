"""What the QuPath room registers."""

from pathlib import Path
from typing import Any

from tiaft_plugin.hookspecs import hookimpl


@hookimpl
def register_sinks(register: Any) -> None:
    """Add the sink that QuPath opens."""
    register("geojson", write_geojson, suffix=".geojson")


def write_geojson(predictions: Any, path: Path) -> None:
    """Write tile predictions as GeoJSON."""
    from tiaft_plugin.qupath import geojson

    geojson.write_geojson(predictions, path)
