"""Whether a sink writes any tile predictions, whole or not at all."""

import hashlib
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np

from tiaft_plugin.engine.predictions import Sink, TileBlock, TilePredictions
from tiaft_plugin.errors import TiaftError, reason


def check_sink(write: Sink, suffix: str, *, same_bytes: bool = True) -> None:
    """Raise TiaftError unless a sink writes any tile predictions, whole or not at all.

    `write` gets predictions of a small slide that exists: no tile, three tiles, 200 tiles in
    blocks of several sizes, tiles with several labels or none, and class names with all that
    people write into them, which it may refuse by a TiaftError. It has to write `path` and nothing
    else, to let go of each block before it takes the next but one, to leave the arrays as they are,
    and, where the predictions end in an error, to pass that on and leave what stood there before.
    With `same_bytes`, the same predictions have to give the same file.
    """
    if not suffix.startswith(".") or suffix == ".":
        raise TiaftError(f"suffix is {suffix!r}: it begins with a dot, as in '.csv'")
    with tempfile.TemporaryDirectory() as name:
        slide = _write_slide(Path(name) / "Slide 1, Müller & co.tif")
        for number, predictions in enumerate(_ordinary_predictions(slide)):
            _check_written(write, predictions, Path(name) / f"{number}" / f"out{suffix}")
        _check_odd_names(write, slide, Path(name) / "odd" / f"out{suffix}")
        _check_lazy(write, slide, Path(name) / "lazy" / f"out{suffix}")
        _check_broken_off(write, slide, Path(name) / "broken" / f"out{suffix}")
        if same_bytes:
            _check_same_bytes(write, slide, Path(name) / "same" / f"out{suffix}")


class _BrokenOffError(Exception):
    """What the predictions of `check_sink` end in."""


def _predictions(
    slide: Path,
    sizes: Sequence[int],
    *,
    classes: Sequence[str] = ("TUM", "STR", "NORM"),
    multilabel: bool = False,
) -> TilePredictions:
    """Return predictions of up to 256 tiles of 64 px, in blocks of the given sizes."""

    def blocks() -> Iterator[TileBlock]:
        first = 0
        for size in sizes:
            yield replace(_block(first, size, len(classes)), multilabel=multilabel)
            first += size

    return TilePredictions(
        slide=slide,
        slide_size=(1024, 1024),
        classes=tuple(classes),
        model="check-sink",
        model_sha256="0" * 64,
        count=sum(sizes),
        blocks=blocks,
        multilabel=multilabel,
    )


def _block(first: int, size: int, classes: int) -> TileBlock:
    """Return tiles `first` to `first + size`; the arrays cannot be written to."""
    numbers = np.arange(first, first + size)
    corner = np.stack([numbers % 16, numbers // 16], axis=1) * 64.0
    bounds = np.concatenate([corner, corner + 63.5], axis=1)
    rng = np.random.default_rng(first)
    probabilities = rng.dirichlet(np.ones(classes), size).astype(np.float32)
    darkness = rng.uniform(0, 1, size)
    for array in (bounds, probabilities, darkness):
        array.flags.writeable = False
    ids = [UUID(int=int(number) + (4 << 76)) for number in numbers]
    return TileBlock(bounds, probabilities.reshape(size, classes), ids, {"Darkness": darkness})


def _check_written(write: Sink, predictions: TilePredictions, path: Path) -> None:
    path.parent.mkdir()
    asked = f"{predictions.count} tiles, classes {list(predictions.classes)}"
    if predictions.multilabel:
        asked += ", any number a tile; predictions.class_of(label) knows unclassified ones, too"
    try:
        write(predictions, path)
    except Exception as error:
        raise TiaftError(f"the sink fails on {asked}: {reason(error)}") from error
    if not path.exists():
        raise TiaftError(f"the sink wrote no {path.name} ({asked})")
    _check_nothing_beside(path)


def _check_nothing_beside(path: Path) -> None:
    others = sorted(other.name for other in path.parent.iterdir() if other != path)
    if others:
        raise TiaftError(f"the sink leaves {', '.join(others)} beside {path.name}")


def _check_odd_names(write: Sink, slide: Path, path: Path) -> None:
    """Class names with separators, quotes and letters from elsewhere: written, or refused whole."""
    odd = ("a,b;c", 'say "yes"', "it's <b>&amp;</b>", "µ→腫瘍", "Tumor: Positive", "two\nlines")
    for names in (odd[:-1], odd):
        path.parent.mkdir(exist_ok=True)
        try:
            write(_predictions(slide, [6], classes=names), path)
        except TiaftError:
            if path.exists():
                raise TiaftError(f"the sink refuses {names} and writes {path.name}") from None
        except Exception as error:
            raise TiaftError(f"the sink fails on classes {names}: {reason(error)}") from error
        _check_nothing_beside(path)
        path.unlink(missing_ok=True)


def _check_lazy(write: Sink, slide: Path, path: Path) -> None:
    """Count how many blocks the sink still holds when it asks for the next one."""
    path.parent.mkdir()
    predictions, held = _predictions(slide, [10] * 20), [0]

    def blocks() -> Iterator[TileBlock]:
        given: list[weakref.ref] = []
        for block in predictions.blocks():
            given += [weakref.ref(block.bounds), weakref.ref(block.probabilities)]
            yield block
            del block
            alive = sum(array() is not None for array in given[::2] + given[1::2])
            held[0] = max(held[0], alive // 2)

    write(replace(predictions, blocks=blocks), path)
    if held[0] > 2:
        raise TiaftError(
            f"the sink holds {held[0]} blocks at once: write each before taking the next, "
            "a slide may have a million tiles"
        )


def _check_broken_off(write: Sink, slide: Path, path: Path) -> None:
    """Let the predictions end in an error, where nothing stood before and where something did."""
    predictions = _predictions(slide, [10, 10])

    def blocks() -> Iterator[TileBlock]:
        yield from predictions.blocks()
        raise _BrokenOffError

    path.parent.mkdir()
    for before in (None, b"what stood here before"):
        if before is not None:
            path.write_bytes(before)
        try:
            write(replace(predictions, count=30, blocks=blocks), path)
        except Exception as error:
            if not _caused_by(error, _BrokenOffError):
                raise TiaftError(f"the sink fails where predictions do: {reason(error)}") from error
        else:
            raise TiaftError("the sink hides an error that the predictions end in")
        if before is None and path.exists():
            raise TiaftError(
                f"the sink leaves half of {path.name} where the predictions end in an error: "
                "tiaft_plugin.files.write_atomically does not"
            )
        if before is not None and (not path.is_file() or path.read_bytes() != before):
            raise TiaftError(f"the sink destroys an older {path.name} before the new one is whole")
        _check_nothing_beside(path)


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def _check_same_bytes(write: Sink, slide: Path, path: Path) -> None:
    digests = []
    path.parent.mkdir()
    for _ in range(2):
        write(_predictions(slide, [2, 3]), path)
        digests.append(_digest(path))
        if path.is_file():
            path.unlink()
    if digests[0] != digests[1]:
        raise TiaftError(
            "the sink gives other bytes for the same predictions: a date, a random id or an "
            "unsorted set in the file (pass same_bytes=False if its format wants that)"
        )


def _digest(path: Path) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path.parent).as_posix().encode())
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _write_slide(path: Path) -> Path:
    """Write a slide of 1024×1024 px at 0.5 µm/px, for sinks that draw on it."""
    import tifffile

    pixels = np.full((1024, 1024, 3), 220, np.uint8)
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    return path


def _ordinary_predictions(slide: Path) -> Iterator[TilePredictions]:
    yield _predictions(slide, [3])
    yield _predictions(slide, [])
    yield _predictions(slide, [0, 1, 0])
    yield _predictions(slide, [1, 99, 100])
    yield _predictions(slide, [100], multilabel=True)  # some of which are unclassified
