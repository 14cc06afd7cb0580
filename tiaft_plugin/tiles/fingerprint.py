"""What a tile set is known by: a hash of its names, labels, groups and every byte."""

import hashlib
import json
from functools import partial
from pathlib import Path

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.images import fault_of
from tiaft_plugin.tiles.threads import in_threads
from tiaft_plugin.tiles.tileset import TileSet
from tiaft_plugin.tiles.words import some


def fingerprint(tiles: TileSet, hashes: list[str] | None = None) -> str:
    """Return the SHA-256 over every tile's relative path, label, group and content.

    The order of the tiles does not matter, nor that of classes. `hashes` saves reading the files
    again.
    """
    hashes = content_hashes(tiles, decode=False) if hashes is None else hashes
    labels = [";".join(sorted(names)) for names in tiles.names]
    each = zip(tiles.files, labels, tiles.groups, hashes, strict=True)
    lines = sorted(json.dumps([tiles.shown(f), label, group, h]) for f, label, group, h in each)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def content_hashes(tiles: TileSet, *, decode: bool = True) -> list[str]:
    """Return the SHA-256 of each tile's file, in order.

    Raises TiaftError if one cannot be read; with `decode` the images are decoded on the way, and
    it names those that cannot be: better now than after hours of training.
    """
    look = partial(_look, decode=decode)
    looked = list(in_threads(look, tiles.files, "Reading every tile"))
    faults = [
        f"{tiles.shown(file)} ({fault})"
        for file, (_, fault) in zip(tiles.files, looked, strict=True)
        if fault
    ]
    if faults:
        raise TiaftError(
            f"{tiles.root}: {len(faults)} of {len(tiles)} tiles cannot be decoded: {some(faults)}: "
            "copy them again, or remove them"
        )
    return [digest for digest, _ in looked]


def _look(file: Path, decode: bool) -> tuple[str, str]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise TiaftError(f"{file} cannot be read: {error.strerror}") from error
    return hashlib.sha256(content).hexdigest(), fault_of(content) if decode else ""
