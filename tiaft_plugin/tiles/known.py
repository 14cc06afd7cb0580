"""Public tile sets that their file names give away: resolution, licence, and whose tile it is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiaft_plugin.errors import TiaftError

NCT = ("NCT-CRC-HE-100K", "NCT-CRC-HE-100K-NONORM")
NCT_TEST = "CRC-VAL-HE-7K"  # other patients' tiles, published with them to test on


@dataclass(frozen=True)
class KnownSet:
    """A published tile set: tiles of `tile_size` px at `mpp` µm/px; `doi` says where it is from.

    `stem` matches every file's name without its suffix; its part called group, if it has one, is
    the slide.
    """

    name: str
    tile_size: int
    mpp: float
    licence: str
    doi: str
    stem: re.Pattern[str]

    def group_of(self, file: Path) -> str | None:
        """Return the slide that a tile's name tells, or None where names tell none."""
        match = self.stem.fullmatch(file.stem)
        return match.groupdict().get("group") if match else None


_NCT_CLASS = "(ADI|BACK|DEB|LYM|MUC|MUS|NORM|STR|TUM)"

KNOWN_SETS = (
    KnownSet(
        # The twin without stain normalisation has the very same file names.
        name="NCT-CRC-HE-100K (or its NONORM twin)",
        tile_size=224,
        mpp=0.5,
        licence="CC BY 4.0",
        doi="10.5281/zenodo.1214456",
        stem=re.compile(_NCT_CLASS + r"-[A-Z]{8}"),
    ),
    KnownSet(
        name="CRC-VAL-HE-7K",
        tile_size=224,
        mpp=0.5,
        licence="CC BY 4.0",
        doi="10.5281/zenodo.1214456",
        stem=re.compile(_NCT_CLASS + r"-TCGA-[A-Z]{8}"),
    ),
    KnownSet(
        name="Kather 2016, textures in colorectal cancer histology",
        tile_size=150,
        mpp=0.495,
        licence="CC BY 4.0",
        doi="10.5281/zenodo.53169",
        stem=re.compile(
            r"[0-9A-F]+_(?P<group>CRC-Prim-HE-\d{2})[a-z]?(_\w+?)?(\.tif)?_Row_\d+_Col_\d+"
        ),
    ),
)


def nct_layout(folder: Path) -> tuple[Path, Path | None] | None:
    """Return NCT-CRC-HE's tiles to train on, and those to test on if there, in a folder of both.

    None where the folder holds no such sets. Raises TiaftError where it holds two to train on.
    """
    there = [folder / name for name in NCT if (folder / name).is_dir()]
    if not there:
        return None
    if len(there) > 1:
        raise TiaftError(
            f"{folder} holds both {NCT[0]} and {NCT[1]}: give one of them to train on, and "
            f"--test {folder / NCT_TEST}"
        )
    test = folder / NCT_TEST
    return there[0], test if test.is_dir() else None


def recognise(files: Sequence[Path], tile_size: int) -> KnownSet | None:
    """Return the known set that all `files`, of `tile_size` px, are of; None unless all are."""
    for known in KNOWN_SETS:
        if tile_size == known.tile_size and all(known.stem.fullmatch(f.stem) for f in files):
            return known
    return None
