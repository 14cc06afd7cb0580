"""The steps of a chain: each is done once, and an interrupted chain goes on where it stopped."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.tiles.words import some

FOLDER = "steps"


class Steps:
    """Runs steps in the folder `out`; ``out/steps/<name>.json`` says what is done, and of what."""

    def __init__(self, out: Path, say: Callable[[str], None]):
        self.out, self.say = out, say

    def run(
        self,
        name: str,
        settings: Mapping[str, Any],
        outputs: Sequence[Path],
        work: Callable[[], Any],
    ) -> None:
        """Do `work`, unless it was done with the same settings and all its outputs are there.

        `settings` are all that decides the outputs. Raises TiaftError where a step was done with
        others: what was made of it would be mixed up with what is to be made.
        """
        settings = json.loads(json.dumps(settings, default=str))
        note = self.out / FOLDER / f"{name}.json"
        before = _read(note)
        if before is not None:
            _refuse_others(note, before, settings)
            if all(path.exists() for path in outputs):
                self.say(f"{name}: done before")
                return
        self.say(name)
        work()
        with write_atomically(note) as part:
            text = json.dumps(settings, indent=1, sort_keys=True, ensure_ascii=False)
            part.write_text(text + "\n", encoding="utf-8")


def _read(note: Path) -> dict[str, Any] | None:
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TiaftError(
            f"{note} cannot be read ({error}): remove it to do the step again"
        ) from error


def _refuse_others(note: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    differ = sorted(
        key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key)
    )
    if differ:
        raise TiaftError(
            f"{note.parent.parent} was made with another {some(differ)} (step {note.stem}): choose "
            "another --out, or that folder's settings"
        )
