"""What was left out of a cohort, and why: nothing is dropped without a line here."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tiaft_plugin.files import write_csv

COLUMNS = ("what", "which", "why")


@dataclass
class LeftOut:
    """Lines (what, which, why): a "slide", "sample", "patient", "gene" or kind of "variant"."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, which: Iterable[str], why: str) -> None:
        """Note several things that are left out for one reason."""
        self.lines += [(what, name, why) for name in which]

    def summary(self) -> list[str]:
        """Return a line for each reason, with its number, the most frequent first."""
        counted = Counter((what, why) for what, _, why in self.lines)
        most = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        return [f"{number:6}  {what}: {why}" for (what, why), number in most]

    def write(self, path: Path) -> Path:
        """Write ``left_out.csv``."""
        write_csv(path, COLUMNS, self.lines)
        return path
