"""Stain normalisation: each tile's haematoxylin and eosin made those of a target."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.images import read_image

if TYPE_CHECKING:
    from tiaft_plugin.tiles.slide_stain import SlideMacenko

# Stain vectors (H, E; optical density of R, G, B) and maximal concentrations that M. Veta's
# implementation has as its reference (github.com/mitkovetta/staining-normalization, 2013).
REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
REFERENCE_MAXIMA = np.array([[1.9705, 1.0308]])
SCOPES = ("tile", "slide")
LEAST_STAINED = 10  # one of so many pixels of a tile
FAINTEST = 219  # of 255: optical density 0.15 (natural logarithm), that implementation's beta


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
        stains = stains_of(self.normaliser, tile) if is_stained(tile) else None
        if stains is None:
            return tile, False
        density = stains.concentrations * (self.normaliser.maxC_target / stains.maxima)
        pixels = 255 * np.exp(-density @ self.normaliser.stain_matrix_target)
        return np.clip(pixels, 0, 255).reshape(tile.shape).astype(np.uint8), True

    def _fit(self, target: np.ndarray) -> None:
        if not is_stained(target) or stains_of(self.normaliser, target) is None:
            raise TiaftError(
                "the stain target shows too little tissue to take stains from: choose another image"
            )
        self.normaliser.fit(target.copy())


class Stains(NamedTuple):
    """What TIAToolbox finds in an image: all float64, haematoxylin first."""

    matrix: np.ndarray  # (2, 3), a unit vector of optical density for each stain
    concentrations: np.ndarray  # (pixels, 2)
    maxima: np.ndarray  # (1, 2), their 99th percentile


def is_stained(tile: np.ndarray) -> bool:
    """Tell whether a tile is uint8 (H, W, 3) and a tenth of its pixels stained.

    That is, of an optical density (natural logarithm) of 0.15 or more in every channel.
    """
    if tile.dtype != np.uint8 or tile.ndim != 3 or tile.shape[2] != 3:
        return False
    stained = np.count_nonzero((tile <= FAINTEST).all(axis=2))
    return int(stained) >= least_stained_pixels(tile.shape[0] * tile.shape[1])


def least_stained_pixels(pixels: int) -> int:
    """Return how many of a tile's pixels have to be stained, at least one."""
    return max(1, -(-pixels // LEAST_STAINED))


def stains_of(normaliser: Any, image: np.ndarray) -> Stains | None:
    """Return the stains of a uint8 image (H, W, 3) by a normaliser of TIAToolbox, or None."""
    try:
        with (
            np.errstate(divide="raise", over="raise", invalid="raise"),
            warnings.catch_warnings(action="ignore", category=RuntimeWarning),
        ):
            matrix = normaliser.extractor.get_stain_matrix(image.copy())  # it writes into its input
            concentrations = normaliser.get_concentrations(image.copy(), matrix)
    except (ValueError, ArithmeticError):  # numpy's LinAlgError is a ValueError
        return None
    maxima = np.percentile(concentrations, 99, axis=0).reshape(1, 2)
    sound = np.isfinite(concentrations).all() and (maxima > 0).all()
    return Stains(matrix, concentrations, maxima) if sound else None


def make_stain(
    name: str | None, target: Path | None = None, scope: str = "tile"
) -> "Macenko | SlideMacenko | None":
    """Return the stain normalisation of a name, fit to the image `target`. Raises TiaftError.

    With `scope` ``tile`` it is of each tile by itself (the paper's way), with ``slide`` of a slide.
    """
    if name is None:
        return None
    if name != "macenko":
        raise TiaftError(f"no stain normalisation {name!r}: there is macenko")
    if scope not in SCOPES:
        raise TiaftError(f"no stain normalisation of a {scope!r}: there are {', '.join(SCOPES)}")
    from tiaft_plugin.tiles.slide_stain import SlideMacenko  # it builds on this module, and torch

    make = Macenko if scope == "tile" else SlideMacenko
    try:
        return make(None if target is None else read_image(target))
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
    return Normalise(stain) if isinstance(stain, Macenko) else None


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
            "leave out --stain-target and --stain-scope"
        )
    return own
