"""Features of each task's tiles or slides by each model: made once, and kept."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tiaft_extensions.transcriptomics.evaluate.models import Candidate
from tiaft_extensions.transcriptomics.evaluate.tasks import MODEL, Task
from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.files import sha256_of
from tiaft_plugin.tiles.fingerprint import fingerprint
from tiaft_plugin.tiles.listing import list_tiles
from tiaft_plugin.tiles.tileset import TileSet, in_order, read_tileset, refuse_rare_classes
from tiaft_plugin.tiles.words import some


class Tiles:
    """A tile set that was read, and its hash, which reads every tile, when it is asked for."""

    def __init__(self, path: Path):
        _, rows = list_tiles(path)
        # Labels may come from a table: what stands in the manifest may be one class.
        self.set: TileSet = read_tileset(path, classes=in_order(row.label for row in rows))

    @cached_property
    def sha256(self) -> str:
        """The fingerprint of names, labels, groups and contents."""
        return fingerprint(self.set)


@dataclass
class FeatureCache:
    """Where features are kept, and how they are computed.

    What is kept is called after all that decides it: a task whose tiles change gets new features.
    """

    folder: Path
    device: str = "auto"
    batch_size: int = 32
    _tiles: dict[Path, Tiles] = field(default_factory=dict)

    def check(self, task: Task, candidate: Candidate) -> None:
        """Raise TiaftError, which names the task's row, where there is nothing to look at."""
        try:
            if task.source == "features":
                path = self.of(task, candidate)
                if not path.exists():
                    raise TiaftError(f"features {path}: no such file or folder")
            elif task.source == "slides":
                self._missing_slides(task)
            elif task.level == "tile" and task.labels is None:
                refuse_rare_classes(self.tiles(task.path).set)
            else:
                self.tiles(task.path)
        except TiaftError as error:
            raise TiaftError(f"{task.where}: {error}") from error

    def of(self, task: Task, candidate: Candidate) -> Path:
        """Return a file of tiles' features, or a folder of slides' stores; makes what is missing.

        Raises TiaftError; Stopped where slides fail.
        """
        if task.source == "features":
            return Path(str(task.path).replace(MODEL, candidate.name))
        if task.source == "slides":
            return self.of_slides(task.path, candidate)
        return self.of_tiles(task.path, candidate)

    def tiles(self, path: Path) -> Tiles:
        """Return the tile set at `path`, read once."""
        path = path.resolve()
        if path not in self._tiles:
            self._tiles[path] = Tiles(path)
        return self._tiles[path]

    def of_tiles(self, path: Path, candidate: Candidate) -> Path:
        """Return the ``.npz`` of a tile set's features."""
        from tiaft_plugin.engine.tile_features import extract_tiles
        from tiaft_plugin.probes.features import write_features
        from tiaft_plugin.probes.interface import FeatureTable

        tiles = self.tiles(path)
        name = f"{plain(tiles.set.name)}-{digest(tiles.sha256, candidate.identity)}.npz"
        file = self.folder / plain(candidate.name) / name
        if file.exists():
            return file
        found = extract_tiles(
            tiles.set, candidate.model, batch_size=self.batch_size, device=self.device
        )
        about = {**found.about, "warnings": list(found.warnings)}
        source = {"models": found.about["models"], "about": about}
        table = FeatureTable(
            file.stem, found.keys, found.features, found.groups, found.labels, found.colour, source
        )
        return write_features(file, table)

    def of_slides(self, path: Path, candidate: Candidate) -> Path:
        """Return the folder of the stores of a table of slides. Raises Stopped where one fails."""
        from tiaft_plugin.engine.cohort_table import read_cohort
        from tiaft_plugin.engine.jobs import SlideJob
        from tiaft_plugin.engine.run import make_engine, run_slides

        name = f"{plain(path.stem)}-{digest(sha256_of(path), candidate.identity)}"
        folder = self.folder / plain(candidate.name) / name
        engine = make_engine(
            "features", candidate.model, batch_size=self.batch_size, device=self.device
        )
        jobs = [SlideJob(row.slide, row.mask, row.mpp, row.patient) for row in read_cohort(path)]
        failed = [
            f"{result.slide.name} ({result.reason})"
            for result in run_slides(engine, jobs, folder)
            if result.status == "failed"
        ]
        if failed:
            raise Stopped(f"{len(failed)} of {len(jobs)} slides of {path} fail: {some(failed, 3)}")
        return folder

    def _missing_slides(self, task: Task) -> None:
        from tiaft_plugin.engine.cohort_table import read_cohort

        missing = [row.slide.name for row in read_cohort(task.path) if not row.slide.exists()]
        if missing:
            raise TiaftError(f"{task.path}: {len(missing)} slides are not there: {some(missing)}")


def plain(name: str) -> str:
    """Return a name for a file or folder, of letters, digits and ``-._``."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def digest(*parts: Any) -> str:
    """Return eight signs that the parts alone decide."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
