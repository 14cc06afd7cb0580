"""What each pushed object carries, so that it is recognised later whatever its id."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

# QuPath shows an object's metadata as columns of its tables, and hides names that begin with "_".
SHOWN = "tiaft model"
HIDDEN = "_tiaft"
_TOLD = re.compile(r"tiaft (?P<model>.*) \(\w*\): SHA-256 (?P<sha256>\w+), .*", re.DOTALL)


@dataclass(frozen=True)
class Mark:
    """Where an object comes from: model, tile grid, and the class that it was given.

    `given` is the class as QuPath writes it ("Tumor: Positive"), empty where it was given none.
    `shape` tells the outline of a merged area (`shape_text`), to see that a person moved it; tiles
    have none.
    """

    model: str
    sha256: str
    grid: str
    given: str = ""
    shape: str = ""

    def metadata(self) -> dict[str, str]:
        """Return what goes into the metadata of the object."""
        hidden = {"sha256": self.sha256, "grid": self.grid, "class": self.given}
        if self.shape:
            hidden["shape"] = self.shape
        return {SHOWN: self.model, HIDDEN: json.dumps(hidden, ensure_ascii=False)}


def mark_of(shown: str | None, hidden: str | None) -> Mark | None:
    """Return the mark in an object's metadata (its values of SHOWN and HIDDEN), or None."""
    if hidden is None:
        return None
    try:
        found = json.loads(hidden)
        texts = [found["sha256"], found["grid"], found["class"], found.get("shape", "")]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # somebody else's, whatever it is: not ours to touch
    if not all(isinstance(text, str) for text in texts):
        return None
    return Mark(shown or "", *texts)


def shape_text(bounds: tuple[float, float, float, float], area: float) -> str:
    """Return an outline as text: bounds and area in pixels, rounded as QuPath may round them."""
    return " ".join(f"{value:.0f}" for value in (*bounds, area))


def image_metadata(model: str, sha256: str, date: str) -> dict[str, str]:
    """Return what goes into the metadata of an image that has objects of a model.

    `date` is ISO 8601. Two files of one name have two entries: a model is its SHA-256.
    """
    return {f"tiaft {model} ({sha256[:8]})": f"SHA-256 {sha256}, {date}"}


def metadata_of_model(metadata: Mapping[str, str], sha256: str) -> list[str]:
    """Return the keys of an image's metadata that tell of a model."""
    return [key for key, value in metadata.items() if value.startswith(f"SHA-256 {sha256}, ")]


def models_of_metadata(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return name and SHA-256 of each model that an image's metadata tell of."""
    found = []
    for key, value in metadata.items():
        if match := _TOLD.fullmatch(f"{key}: {value}"):
            found.append((match["model"], match["sha256"]))
    return found
