"""What the engine's room registers."""

from pathlib import Path
from typing import Any

from tiaft_plugin.hookspecs import hookimpl


@hookimpl
def register_sinks(register: Any) -> None:
    """Add TIAToolbox's annotation store and a picture to look at."""
    register("annotationstore", write_annotation_store, suffix=".db")
    register("picture", write_picture, suffix=".png")


def write_annotation_store(predictions: Any, path: Path) -> None:
    """Write tile predictions as TIAToolbox's SQLite annotation store."""
    from tiaft_plugin.engine import annotation_store

    annotation_store.write_annotation_store(predictions, path)


def write_picture(predictions: Any, path: Path) -> None:
    """Draw tile predictions on the slide's thumbnail."""
    from tiaft_plugin.engine import picture

    picture.write_picture(predictions, path)
