"""Stain normalisation: each tile's haematoxylin and eosin made those of a target."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.images import read_image

# Stain vectors (H, E; optical density of R, G, B) and maximal concentrations that M. Veta's
# implementation has as its reference (github.com/mitkovetta/staining-normalization, 2013).
REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
REFERENCE_MAXIMA = np.array([[1.9705, 1.0308]])
LEAST_STAINED = 0.1  # of a tile's pixels
_FAINTEST = 219  # of 255: optical density 0.15 (natural logarithm), that implementation's beta


class Macenko:
    """Macenko et al. (ISBI 2009), by TIAToolbox's MacenkoNormalizer, a tile at a time.

    `target` is an RGB image, uint8 (H, W, 3), to take the stains of; without, the stains are the
    reference of the method's widest spread implementation. Raises TiaftError for a target that
    shows too little tissue.
    """

    def __init__(self, target: np.ndarray | None = None):
        from tiatoolbox.tools.stainnorm import MacenkoNormalizer

        self.normaliser: Any = MacenkoNormalizer()
        self.facts = {"name": "macenko", "target": "reference"}
        self.normaliser.stain_matrix_target = REFERENCE
        self.normaliser.maxC_target = REFERENCE_MAXIMA
        if target is not None:
            target = np.ascontiguousarray(target, dtype=np.uint8)
            digest = hashlib.sha256(f"{target.shape}".encode() + target.tobytes())
            self.facts["target"] = f"sha256:{digest.hexdigest()}"
            self._fit(target)

    def __repr__(self) -> str:
        return f"Macenko(target={self.facts['target']!r})"  # what is kept of tiles is known by it

    def __call__(self, tile: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return a uint8 tile (H, W, 3) normalised, and True; or as it is, and False.

        It stays as it is where fewer than a tenth of its pixels are stained (optical density 0.15
        or more in every channel), or stains are not to be found. On glass, the method has no stains
        to find, finds some in the noise, and paints tissue.
        """
        stains = _stains(self.normaliser, tile)
        if stains is None:
            return tile, False
        concentrations, strongest = stains
        density = concentrations * (self.normaliser.maxC_target / strongest)
        pixels = 255 * np.exp(-density @ self.normaliser.stain_matrix_target)
        return np.clip(pixels, 0, 255).reshape(tile.shape).astype(np.uint8), True

    def _fit(self, target: np.ndarray) -> None:
        if _stains(self.normaliser, target) is None:
            raise TiaftError(
                "the stain target shows too little tissue to take stains from: choose another image"
            )
        self.normaliser.fit(target.copy())


def _stains(normaliser: Any, tile: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return concentrations (pixels, 2) and the 99th percentile (1, 2) of each, or None."""
    if tile.dtype != np.uint8 or tile.ndim != 3 or tile.shape[2] != 3:
        return None
    if (tile <= _FAINTEST).all(axis=2).mean() < LEAST_STAINED:
        return None
    try:
        with (
            np.errstate(divide="raise", over="raise", invalid="raise"),
            warnings.catch_warnings(action="ignore", category=RuntimeWarning),
        ):
            matrix = normaliser.extractor.get_stain_matrix(tile.copy())  # it writes into its input
            concentrations = normaliser.get_concentrations(tile.copy(), matrix)
    except (ValueError, ArithmeticError):  # numpy's LinAlgError is a ValueError
        return None
    strongest = np.percentile(concentrations, 99, axis=0).reshape(1, 2)
    sound = np.isfinite(concentrations).all() and (strongest > 0).all()
    return (concentrations, strongest) if sound else None


def make_stain(name: str | None, target: Path | None = None) -> Macenko | None:
    """Return the stain normalisation of a name, fit to the image `target`. Raises TiaftError."""
    if name is None:
        return None
    if name != "macenko":
        raise TiaftError(f"no stain normalisation {name!r}: there is macenko")
    try:
        return Macenko(None if target is None else read_image(target))
    except TiaftError as error:
        if target is None or str(target) in str(error):
            raise
        raise TiaftError(f"{target}: {error}") from error


@dataclass(frozen=True)
class Normalise:
    """A stain normalisation as a function from tile to tile, uint8 (H, W, 3)."""

    stain: Macenko

    @property
    def facts(self) -> dict[str, str]:
        """What model cards and stores say of it."""
        return self.stain.facts

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Return a tile normalised; as it is, where it shows too little tissue."""
        return self.stain(tile)[0]


def normaliser(name: str) -> Normalise | None:
    """Return the normalisation of a name as a function of tiles; None for ``none``."""
    stain = make_stain(None if name == "none" else name)
    return None if stain is None else Normalise(stain)


def stain_of_training(training: Any, model: str) -> Macenko | None:
    """Return the normalisation that a model's tiles had in training, by its card, or None.

    Raises TiaftError for one that cannot be made here.
    """
    facts = training.get("stain")
    if facts is None:
        return None
    stain = Macenko()
    if facts != stain.facts:
        raise TiaftError(
            f"model {model} is for tiles whose stains are normalised in a way that this "
            f"tiaft_plugin does not know ({facts!r:.80}): upgrade tiaft_plugin"
        )
    return stain


def agreed_stain(own: Macenko, asked: Any, model: str) -> Macenko:
    """Return the normalisation that a model's tiles had in training, and get from now on.

    Raises TiaftError where another one is `asked` for (None: none is).
    """
    if asked is not None and getattr(asked, "facts", None) != own.facts:
        raise TiaftError(
            f"model {model} was trained on tiles normalised to the method's reference stains and "
            "gets such tiles without being asked; another normalisation would change what it sees: "
            "leave out --stain-target"
        )
    return own
