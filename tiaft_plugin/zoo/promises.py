"""What tiaft's own names promise, whichever file stands behind them."""

from dataclasses import dataclass

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.kather100k import KATHER100K
from tiaft_plugin.network.card import Card

FEATURES = "-features"


@dataclass(frozen=True)
class Promise:
    """A name, and what a script that uses it may rely on. `remedy` says how to get weights."""

    name: str
    classes: tuple[str, ...]
    remedy: str
    tile_size: int = 224  # px
    mpp: float = 0.5  # µm/px
    feature_width: int = 2048
    backbones: tuple[str, ...] = ("legacy_xception", "keras_xception")

    def card(self) -> Card:
        """Return the card of a new model of this name, as weights without a card are taken for."""
        hidden = (self.feature_width,) if self.classes else ()
        return Card(self.backbones[0], self.tile_size, self.mpp, self.classes, hidden)

    def check(self, card: Card) -> None:
        """Raise TiaftError where a model does not keep the promise. Class order may differ."""
        width = card.hidden[-1] if card.hidden else self.feature_width
        faults = [
            f"{what} {found}, not {wanted}"
            for what, found, wanted, kept in (
                ("backbone", card.backbone, self.backbones[0], card.backbone in self.backbones),
                ("tile size", card.tile_size, self.tile_size, card.tile_size == self.tile_size),
                # 0.5 is nominal: 0.495 µm/px (Kather 2016) is the same scale, 0.25 is not
                ("µm/px", card.mpp, self.mpp, same_scale(card.mpp, self.mpp)),
                ("features", width, self.feature_width, width == self.feature_width),
                ("task", card.task, "classes", not card.multilabel),
                (
                    "classes",
                    ",".join(card.classes) or "none",
                    ",".join(self.classes) or "none",
                    sorted(card.classes) == sorted(self.classes),
                ),
            )
            if not kept
        ]
        if faults:
            raise TiaftError(
                f"{self.name} promises something else than this model is "
                f"({'; '.join(faults)}): give the model a name of its own"
            )


def same_scale(mpp: float | None, other: float) -> bool:
    """Whether two resolutions differ by at most 2 %."""
    return mpp is not None and abs(mpp - other) <= 0.02 * other


_FINETUNE = "fine-tune some (`tiaft finetune TILES --out RUN --register xception-kather100k`)"

PROMISES = {
    promise.name: promise
    for promise in (
        Promise(
            "xception-kather100k",
            KATHER100K,
            f"{_FINETUNE}, or import the paper authors' Keras file (`tiaft models convert`)",
        ),
        Promise("xception-kather100k-stage1", KATHER100K, _FINETUNE),
        Promise(
            "imgnet2048",
            (),
            "make a file with `tiaft models create imgnet2048.safetensors --backbone "
            "legacy_xception --init imagenet`",
        ),
    )
}

# The paper's names for feature views, beside NAME-features.
ALIASES = {
    "ftx2048": "xception-kather100k" + FEATURES,
    "imgnet2048-stage1": "xception-kather100k-stage1" + FEATURES,
}
