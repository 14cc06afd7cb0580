"""What the QuPath room registers."""

from pathlib import Path
from typing import Any

from tiaft_plugin.hookspecs import hookimpl


@hookimpl
def register_sinks(register: Any) -> None:
    """Add the file that QuPath opens, and the project that it works on."""
    register("geojson", write_geojson, suffix=".geojson")
    register("qupath", ProjectSink(), target="PROJECT")


def write_geojson(predictions: Any, path: Path) -> None:
    """Write tile predictions as GeoJSON."""
    from tiaft_plugin.qupath import geojson

    geojson.write_geojson(predictions, path)


class ProjectSink:
    """Writes tile predictions into a project; it is made, and the slide added, where it is not."""

    def __call__(self, predictions: Any, project: Path) -> None:
        """Write the tiles of one slide."""
        from tiaft_plugin.qupath import sink

        sink.write_project(predictions, project)

    def check(self, project: Path) -> None:
        """Raise TiaftError before hours of prediction, where nothing could be written."""
        from tiaft_plugin.qupath import sink

        sink.check_project(project)
