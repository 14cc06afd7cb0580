"""Which store is a slide's."""

from pathlib import Path

from tiaft_plugin.engine import store
from tiaft_plugin.errors import TiaftError


def store_path(out: Path, slide: Path, fingerprint: str, taken: dict[Path, Path]) -> Path:
    """Return the store of a slide: ``<stem>.zarr``, or with its fingerprint if that is taken.

    `taken` maps the stores of this run to their slides, and is added to. Two slides of one name
    never share a store, in whatever order and however many runs they come.
    """
    names = [slide.stem, f"{slide.stem}-{fingerprint[:8]}"]
    names += [f"{names[1]}-{number}" for number in range(2, len(taken) + 3)]  # copies of one slide
    for name in names:
        path = out / f"{name}.zarr"
        if taken.get(path, slide) == slide and _is_of(path, fingerprint):
            taken[path] = slide
            return path
    raise AssertionError("one of len(taken) + 2 names is free")


def _is_of(path: Path, fingerprint: str) -> bool:
    """Whether a store is this slide's, or not there; what is no store counts as its own."""
    if not path.exists():
        return True
    try:
        return store.facts_of(store.open_any(path))["slide"]["fingerprint"] == fingerprint
    except TiaftError:
        return True  # open_for_writing then says what is in the way
