"""What a tile set is known by: a hash of its names, labels, groups and every byte."""

import hashlib
import json
from pathlib import Path

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import sha256_of
from tiaft_plugin.tiles.threads import in_threads
from tiaft_plugin.tiles.tileset import TileSet


def fingerprint(tiles: TileSet, hashes: list[str] | None = None) -> str:
    """Return the SHA-256 over every tile's relative path, label, group and content.

    The order of the tiles does not matter. `hashes` saves reading the files again.
    """
    hashes = content_hashes(tiles) if hashes is None else hashes
    each = zip(tiles.files, tiles.labels, tiles.groups, hashes, strict=True)
    lines = sorted(json.dumps([tiles.shown(f), label, group, h]) for f, label, group, h in each)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def content_hashes(tiles: TileSet) -> list[str]:
    """Return the SHA-256 of each tile's file, in order. Raises TiaftError if one cannot be read."""
    return list(in_threads(_hash, tiles.files, "Fingerprinting tiles"))


def _hash(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        raise TiaftError(f"{file} cannot be read: {error.strerror}") from error
