"""A QuPath project on disk: ``project.qpproj`` and ``classifiers/classes.json``, without Java.

QuPath writes neither atomically, so what is changed here is changed as JSON, and by
``os.replace``: a project is the old one or the new one, whenever a run is killed.
"""

import glob
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiaft_plugin.engine.predictions import Colour
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import locked
from tiaft_plugin.qupath.names import as_written
from tiaft_plugin.qupath.project.exact_json import edited_json, read_json, write_json
from tiaft_plugin.qupath.project.places import file_name, moved_along, path_text
from tiaft_plugin.qupath.project.server import Box, read_server, size_in

_PROJECT = "QuPath project"
_CLASSES = "list of QuPath's classes"
_NAME = "project.qpproj"
_NO_CLASS = "Unclassified"  # what QuPath calls having none; it drops a class of that name
_MAIN = "qupath.QuPath"  # its Java class, where no launcher of its own name runs
# QuPath's list where a project has none, with its colours (PathClassManager, PathClass).
_DEFAULT_CLASSES: tuple[tuple[str, Colour], ...] = (
    ("Tumor", (200, 0, 0)), ("Stroma", (150, 200, 150)), ("Immune cells", (160, 90, 160)),
    ("Necrosis", (50, 50, 50)), ("Other", (255, 200, 0)), ("Region*", (0, 0, 180)),
    ("Ignore*", (180, 180, 180)), ("Positive", (200, 50, 50)), ("Negative", (90, 90, 180)),
)  # fmt: skip
_TOO_OLD = ("v0.2.0-m1", "v0.2.0-m2")  # QuPath refuses them, too


@dataclass(frozen=True)
class ImageEntry:
    """An image of a project. `size` (width, height) is in pixels of the image that QuPath shows.

    `uris` and `args` are those of the file it is read from, `mpp` is in µm/px, x and y, `kind` the
    outermost ``builderType``. QuPath shows of the file's image what is in `crop` (x, y, width,
    height; of `base_size`), turned by `rotation` (0, 90, 180 or 270 degrees clockwise); `odd` names
    another way in which it moves the pixels. `previous` is the project's URI when QuPath wrote it,
    `builder` the JSON of its server builder.
    """

    id: int
    name: str
    uris: tuple[str, ...]
    args: tuple[str, ...]
    size: tuple[int, int] | None
    mpp: tuple[float, float] | None
    rotation: int
    kind: str
    metadata: Mapping[str, str]
    folder: Path
    crop: Box | None = None
    odd: str = ""
    previous: str = ""
    base_size: tuple[int, int] | None = None
    builder: str = ""

    @property
    def data(self) -> Path:
        """Where QuPath keeps the image's objects; it need not exist."""
        return self.folder / "data.qpdata"

    @property
    def file_name(self) -> str:
        """The name of its first file, from wherever; the image's name if it has no file."""
        text = path_text(self.uris[0]) if self.uris else None
        return file_name(text) if text else self.name

    @property
    def path(self) -> Path | None:
        """Its first file on this machine; None if it has none (a server's).

        Where the file is not found, it is looked for where it would be if it was moved along with
        the project, as QuPath does it. The path need not exist.
        """
        text = path_text(self.uris[0]) if self.uris else None
        if text is None:
            return None
        if not _exists(text) and (before := path_text(self.previous)):
            here = str(self.folder.parent.parent.absolute())
            along = moved_along(text, before.replace("\\", "/").rpartition("/")[0] or "/", here)
            if along and _exists(along):
                return Path(along)
        return Path(text)


@dataclass(frozen=True)
class Snapshot:
    """What files looked like at a moment: time of change (ns), size and inode, or None."""

    states: Mapping[Path, tuple[int, int, int] | None]


@dataclass(frozen=True)
class Project:
    """A project as it was read. `classes` are QuPath's names with their packed colour (ARGB)."""

    path: Path
    images: tuple[ImageEntry, ...]
    classes: tuple[tuple[str, int | None], ...]
    version: str | None


def read_project(path: Path | str) -> Project:
    """Read a project, given as its folder or its ``.qpproj``.

    Raises TiaftError for what is none, what QuPath left half-written, or is too old.
    """
    path = _project_file(Path(path))
    content = _read(path)
    uri = content.get("uri")
    previous = uri if isinstance(uri, str) else ""
    images = tuple(
        _entry(member, number, path, previous) for number, member in enumerate(_members(content))
    )
    seen: dict[int, ImageEntry] = {}
    for entry in images:
        if entry.id in seen:
            raise TiaftError(
                f"{path}: {seen[entry.id].name!r} and {entry.name!r} have the same id, {entry.id}: "
                "they would share one data file; remove one of them in QuPath"
            )
        seen[entry.id] = entry
    version = content.get("version")
    classes = read_classes(path)
    return Project(path, images, classes, str(version) if version else None)


def read_classes(project_path: Path) -> tuple[tuple[str, int | None], ...]:
    """Return the project's own list of classes, empty where it has none. Raises TiaftError."""
    path = classes_path(project_path)
    if not path.exists():
        return ()
    classes = []
    for member in _class_members(read_json(path, _CLASSES), path):
        if isinstance(member, dict) and isinstance(member.get("name"), str):
            colour = member.get("color")
            known = isinstance(colour, int) and not isinstance(colour, bool)
            classes.append((member["name"], colour if known else None))
    return tuple(classes)


def classes_path(project_path: Path) -> Path:
    """Return where a project keeps its list of classes."""
    return project_path.parent / "classifiers" / "classes.json"


def check_writable(project: Project) -> None:
    """Raise TiaftError unless files can be made wherever a push makes them."""
    folder = project.path.parent
    places = [folder, folder / "data", folder / "classifiers"]
    for place in [*places, *(entry.folder for entry in project.images)]:
        if place.exists() and not os.access(place, os.W_OK | os.X_OK):
            raise TiaftError(
                f"{project.path} cannot be changed: {place} is read-only for you: copy the "
                "project, or ask for the right to write there"
            )


@contextmanager
def project_lock(project: Project, *, wait: bool = False) -> Iterator[None]:
    """Keep other runs of tiaft away from a project while the block runs; QuPath knows no lock.

    What a killed run left half-written is removed. Raises TiaftError if another run has it, unless
    it is to `wait`.
    """
    with locked(project.path, wait=wait):
        for path in (project.path, classes_path(project.path)):
            # As `write_atomically` calls its temporary files; nobody else writes any now.
            for left in path.parent.glob(
                f".{glob.escape(path.stem)}-{'[0-9a-f]' * 8}{path.suffix}"
            ):
                left.unlink(missing_ok=True)
        for folder in project.path.parent.glob(".tiaft-*"):  # in which slides were prepared
            shutil.rmtree(folder, ignore_errors=True)
        yield


def take_snapshot(*paths: Path) -> Snapshot:
    """Return what files look like now. Take it before reading them."""
    return Snapshot({path: _state(path) for path in paths})


def refuse_changed(snapshot: Snapshot) -> None:
    """Raise TiaftError if a file is no longer what it was."""
    for path, state in snapshot.states.items():
        if _state(path) != state:
            raise TiaftError(
                f"{path} was changed in the meantime, by QuPath perhaps: save and close it there, "
                "and run again"
            )


def refuse_half_saved(entry: ImageEntry) -> None:
    """Raise TiaftError where QuPath was stopped while it saved an image's objects.

    It moves them aside first and removes them after: what lies aside may be all there is.
    """
    aside = entry.data.with_name(entry.data.name + ".bkp")
    if aside.exists():
        raise TiaftError(
            f"{entry.name}: {aside} shows that QuPath was stopped while it saved: open the image "
            "in QuPath, see that its objects are there, save it, and run again"
        )


def set_image_metadata(
    project_path: Path, entry_id: int, add: Mapping[str, str], remove: Collection[str] = ()
) -> None:
    """Change an image's metadata, as QuPath shows it beside the image. Atomic.

    The file is read anew, and all else in it stays as it is. Raises TiaftError.
    """
    with edited_json(project_path, _PROJECT) as content:
        member = _member(content, entry_id, project_path)
        metadata = member.get("metadata")
        if metadata is None:
            metadata = member["metadata"] = {}
        if not isinstance(metadata, dict):
            raise TiaftError(f"{project_path} is damaged: image {entry_id}'s metadata is no object")
        for name in remove:
            metadata.pop(name, None)
        metadata.update(add)
        _touch(content)


def extend_classes(project_path: Path, classes: Sequence[tuple[str, Colour]]) -> list[str]:
    """Add the classes that a project's list lacks, with colours (0 to 255); return their names.

    None is removed, and none that is there gets another colour. A project without a list shows
    QuPath's own classes, which therefore begin the new one. Atomic. Raises TiaftError.
    """
    path = classes_path(project_path)
    is_there = path.exists()
    there = [name for name, _ in read_classes(project_path)]
    first = () if is_there or not classes else _DEFAULT_CLASSES
    known = {as_written(name) for name in (*there, *dict(first), _NO_CLASS)}
    added: dict[str, Colour] = {}
    for name, colour in classes:
        if as_written(name) not in known:
            known.add(as_written(name))
            added[as_written(name)] = colour
    members = [{"name": name, "color": packed(colour)} for name, colour in (*first, *added.items())]
    if members and is_there:
        with edited_json(path, _CLASSES) as content:
            content["pathClasses"] = [*_class_members(content, path), *members]
    elif members:
        write_json(path, {"pathClasses": members})
    return list(added)


def packed(colour: Colour) -> int:
    """Return red, green and blue as Java packs them into a signed integer, opaque."""
    red, green, blue = colour
    return (255 << 24 | red << 16 | green << 8 | blue) - (1 << 32)


def add_entries(
    project_path: Path, entries: Sequence[dict[str, Any]], folders: Sequence[Path]
) -> list[int]:
    """Add images (members of ``images``, from a project of QuPath's own); return their new ids.

    `folders` are their data folders, in the same order; they are moved into the project first, so
    that it never names an image whose data are missing. Atomic. Raises TiaftError.
    """
    if len(entries) != len(folders):
        raise ValueError(f"{len(folders)} folders for {len(entries)} images")
    moved: list[tuple[Path, Path]] = []
    try:
        with edited_json(project_path, _PROJECT) as content:
            first = _last_id(read_json(project_path, _PROJECT), project_path) + 1
            ids = list(range(first, first + len(entries)))
            for new_id, folder in zip(ids, folders, strict=True):
                target = project_path.parent / "data" / str(new_id)
                target.parent.mkdir(exist_ok=True)
                if folder.exists():
                    moved.append((folder, target))
                    shutil.move(folder, target)
            images = [*_members(content)]
            images += [{**entry, "entryID": new} for entry, new in zip(entries, ids, strict=True)]
            content["images"] = images
            content["lastID"] = first + len(entries) - 1
            _touch(content)
    except BaseException:
        for folder, target in moved:
            with suppress(OSError):
                shutil.move(target, folder)
        raise
    return ids


def running_qupath() -> list[str]:
    """Return the QuPath processes on this machine, "QuPath-0.6.0 (process 123)" each."""
    import psutil

    found = []
    for process in psutil.process_iter(["name", "cmdline", "pid"]):
        name = process.info["name"] or ""
        if name.lower().startswith("qupath") or _MAIN in (process.info["cmdline"] or []):
            found.append(f"{name or 'QuPath'} (process {process.info['pid']})")
    return found


def _project_file(path: Path) -> Path:
    """Return the project file, and say what lies there instead."""
    if path.is_dir():
        found = sorted(p for p in path.glob("*.qpproj") if not p.name.startswith("."))
        whole = path / _NAME
        if whole not in found and len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise TiaftError(f"{path} holds {len(found)} projects ({names}): name one of them")
        lost = sorted(path.glob("*.qpproj.backup"))  # of a project with another name
        if whole in found or not (found or lost):
            path = whole
        else:
            path = found[0] if found else lost[0].with_suffix("")
    elif path.suffix.lower() != ".qpproj":
        if path.exists():
            raise TiaftError(f"{path} is no QuPath project: name its folder, or the .qpproj in it")
        raise TiaftError(f"{path}: no such folder")
    if path.exists():
        return path
    if left := _left_over(path):
        raise TiaftError(
            f"{path} is missing, and {left.name} is there: QuPath was stopped while it saved; "
            f"rename {left.name} to {path.name}"
        )
    if path.parent.is_dir():
        raise TiaftError(f"{path.parent} is no QuPath project: there is no {path.name} in it")
    raise TiaftError(f"{path.parent}: no such folder")


def _left_over(path: Path) -> Path | None:
    """Return the newer of QuPath's own copies that is whole: it writes .tmp, then makes .backup."""
    for end in (".tmp", ".backup"):
        copy = path.with_name(path.name + end)
        if copy.exists():
            with suppress(TiaftError):
                _members(read_json(copy, _PROJECT))
                return copy
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path, _PROJECT)
    except TiaftError as error:
        left = _left_over(path) if path.is_file() else None
        if left is None:
            raise
        raise TiaftError(f"{error}; {left.name} beside it is whole: rename it") from error
    version = content.get("version")
    if version in _TOO_OLD or (version is None and "lastID" not in content):
        raise TiaftError(
            f"{path} is of QuPath {version or '0.1'}, which later ones do not read: make a new "
            'project in QuPath, and there "Import images from v0.1.2 project"'
        )
    try:
        _members(content)
    except TiaftError as error:
        raise TiaftError(f"{path} (version {version}): {error}") from error
    return content


def _members(content: dict[str, Any]) -> list[Any]:
    images = content.get("images")
    if images is None:
        return []
    if not isinstance(images, list):
        raise TiaftError("its images are no list, as in no version that this tiaft_plugin knows")
    return images


def _member(content: dict[str, Any], entry_id: int, path: Path) -> dict[str, Any]:
    for member in _members(content):
        if isinstance(member, dict) and _id(member) == entry_id:
            return member
    raise TiaftError(f"{path} has no image {entry_id} any more: was it removed in QuPath?")


def _entry(member: Any, number: int, path: Path, previous: str) -> ImageEntry:
    entry_id = _id(member) if isinstance(member, dict) else None
    if entry_id is None:
        raise TiaftError(f"{path} is damaged: image {number + 1} of its list has no id")
    server = read_server(member.get("serverBuilder"))
    name, metadata = member.get("imageName"), member.get("metadata")
    folder = path.parent / "data" / str(entry_id)
    return ImageEntry(
        entry_id,
        name if isinstance(name, str) and name else f"Image {entry_id}",
        server.uris,
        server.args,
        server.size or _size_in_summary(folder),
        server.mpp,
        server.rotation,
        server.kind,
        _texts(metadata) if isinstance(metadata, dict) else {},
        folder,
        server.crop,
        server.odd,
        previous,
        server.base_size,
        json.dumps(member.get("serverBuilder")),
    )


def _id(member: dict[str, Any]) -> int | None:
    value = member.get("entryID")
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18
    return value if known else None


def _texts(metadata: dict[str, Any]) -> dict[str, str]:
    """Return what QuPath reads as text: numbers, too; nothing where it has no value."""
    texts = {}
    for name, value in metadata.items():
        if isinstance(value, bool):
            texts[name] = str(value).lower()
        elif isinstance(value, str | int | float):
            texts[name] = str(value)
    return texts


def _size_in_summary(folder: Path) -> tuple[int, int] | None:
    """Return the size that QuPath noted beside an image's objects."""
    with suppress(TiaftError):
        return size_in(read_json(folder / "summary.json", "summary").get("server"))
    return None


def _class_members(content: dict[str, Any], path: Path) -> list[Any]:
    members = content.get("pathClasses")
    if members is None:
        return []
    if not isinstance(members, list):
        raise TiaftError(f"{path} is no {_CLASSES}: its pathClasses are no list")
    return members


def _last_id(content: dict[str, Any], path: Path) -> int:
    """Return the highest id that an image has or had: what is left of a removed one, too."""
    data = path.parent / "data"
    ids = [int(p.name) for p in data.glob("*") if p.name.isascii() and p.name.isdigit()]
    ids += [found for member in _members(content) if (found := _id(member)) is not None]
    last = content.get("lastID")
    return max([last if isinstance(last, int) else 0, *ids, 0])


def _touch(content: dict[str, Any]) -> None:
    content["modifyTimestamp"] = int(time.time() * 1000)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # no path here: too long, or with a null byte
        return False
