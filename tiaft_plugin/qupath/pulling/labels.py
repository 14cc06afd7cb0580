"""Which label of a training tile a class in QuPath becomes."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.listing import SEPARATOR
from tiaft_plugin.tiles.words import some

_REGION = "Region*"  # QuPath's frames to work in: in its own training, too, they are no label


@dataclass(frozen=True)
class Labels:
    """How classes are called (`renamed`: old names to new), and which of them are wanted (or all).

    Names are QuPath's, "Tumor: Positive" for derived classes; `wanted` are the new ones.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    wanted: Collection[str] | None = None

    def label_of(self, class_name: str) -> str | None:
        """Return the label of a class; None where its annotations give no tiles.

        These are classes that are not wanted, and those whose name ends in "*", as QuPath has it.
        """
        label = self.renamed.get(class_name, class_name)
        if label.endswith("*") or (self.wanted is not None and label not in self.wanted):
            return None
        return label

    def lies_on_top(self, class_name: str) -> bool:
        """Whether an annotation of a class takes away the place of larger ones below it.

        All do but QuPath's Region*, which is drawn around what is to be looked at.
        """
        return self.renamed.get(class_name, class_name) != _REGION

    def refuse_unknown(self, seen: Iterable[str]) -> None:
        """Raise TiaftError for classes to rename or to take that nobody drew, and unfit labels."""
        names = sorted(set(seen))
        listed = some(names, 20) or "none at all"
        if unknown := sorted(set(self.renamed) - set(names)):
            raise TiaftError(f"--class: nothing has the class {some(unknown)}; there are: {listed}")
        labels = {self.renamed.get(name, name) for name in names}
        if unknown := sorted(set(self.wanted or ()) - labels):
            there = some(sorted(labels), 20) or "none at all"
            raise TiaftError(
                f"--classes: nothing has the class {some(unknown)}; there are: {there}"
            )
        _refuse_unfit({label for name in names if (label := self.label_of(name)) is not None})


def folder_names(labels: Iterable[str]) -> dict[str, str]:
    """Return a folder's name for each label, which every system can have, and no two share."""
    names: dict[str, str] = {}
    for label in sorted(set(labels)):
        plain = "".join("_" if c in '<>:"/\\|?*' else c for c in label).rstrip(". ") or "_"
        plain = f"_{plain}" if plain.startswith(".") else plain
        name, number = plain, 1
        while name.casefold() in {taken.casefold() for taken in names.values()}:
            number += 1
            name = f"{plain}-{number}"
        names[label] = name
    return names


def _refuse_unfit(labels: set[str]) -> None:
    """Raise TiaftError for names that a tile set cannot have (tiles/tileset.py)."""
    odd = sorted(
        label for label in labels if not label.strip() or not label.isprintable()
        or SEPARATOR in label
    )  # fmt: skip
    if odd:
        raise TiaftError(
            f"no label can be called {some([repr(name) for name in odd])}: rename it with "
            "--class OLD=NEW"
        )
    by_folded: dict[str, list[str]] = {}
    for label in sorted(labels):
        by_folded.setdefault(label.casefold(), []).append(label)
    for same in by_folded.values():
        if len(same) > 1:
            raise TiaftError(
                f"classes differ only in case: {' and '.join(same)}: give them one name with "
                f"--class {same[0]}={same[1]}"
            )
