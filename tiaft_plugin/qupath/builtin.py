"""What the QuPath room registers."""

from pathlib import Path
from typing import Any

from tiaft_plugin.hookspecs import hookimpl


@hookimpl
def register_sinks(register: Any) -> None:
    """Add the file that QuPath opens, and the project that it works on."""
    register("geojson", write_geojson, suffix=".geojson")
    register("qupath", write_project, target="PROJECT")


def write_geojson(predictions: Any, path: Path) -> None:
    """Write tile predictions as GeoJSON."""
    from tiaft_plugin.qupath import geojson

    geojson.write_geojson(predictions, path)


def write_project(predictions: Any, project: Path) -> None:
    """Write tile predictions into a project; it is made, and the slide added, where it is not."""
    from tiaft_plugin.qupath import sink

    sink.write_project(predictions, project)
