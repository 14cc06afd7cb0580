"""Writing files so that nobody ever finds half of one, and telling files apart."""

import csv
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import Stopped, TiaftError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


@contextmanager
def write_atomically(path: Path | str, *, overwrite: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there when the block ends well.

    Same folder, fsync, rename: whoever opens `path`, at any instant, after any crash, finds the
    old file or the whole new one. With ``overwrite=False`` an existing `path` is an error.
    """
    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}"
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there, which only we could read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if not overwrite:
            refuse_existing(path)  # somebody may have been quicker
        temporary.replace(path)
        _fsync_folder(path.parent)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise Stopped(f"{path} cannot be written: {error.strerror}") from error
        if error.errno is None and str(error).endswith(" written"):  # as numpy has it
            raise Stopped(f"{path} cannot be written ({error}): is the disk full?") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path: Path | str, header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table, atomically: UTF-8, commas, lines that end in a line feed."""
    with write_atomically(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


@contextmanager
def write_folder_atomically(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path`; it takes the place of `path` when the block ends well.

    With `overwrite`, what stood at `path` is removed then, and not before; without, it is an error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.stem}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            if not overwrite:
                raise TiaftError(f"{path} exists already: another run may just have made it")
            shutil.rmtree(path)
        temporary.rename(path)
        _fsync_folder(path.parent)
    except OSError as error:
        if error.errno in DISK_ERRORS:  # of a file that is gone by now, or of none
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except Stopped as error:
        if str(temporary) in str(error):  # as `write_atomically` has it, of a file that is gone
            raise Stopped(str(error).replace(str(temporary), str(path))) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path | str, *, wait: bool | float) -> Iterator[None]:
    """Keep other processes away from `path` while the block runs; a killed one lets go by itself.

    Raises TiaftError if another has it, at once or after `wait` seconds; with True never.
    """
    from filelock import FileLock, Timeout  # takes a tenth of a second to import

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.parent / f".{path.name}.lock", timeout=-1 if wait is True else float(wait))
    try:
        lock.acquire()
    except Timeout as error:
        raise TiaftError(f"{path}: another run is working on it") from error
    try:
        yield
    finally:
        lock.release()  # which removes the lock's file


def refuse_existing(path: Path) -> None:
    """Raise if `path` exists: nothing is overwritten unless asked."""
    if Path(path).exists():
        raise TiaftError(f"{path} exists already: choose another name, or pass --overwrite")


def refuse_among_tiles(out: Path, tiles: Path) -> None:
    """Raise if `out` lies in a folder of tiles: it would be read as a class or slide of theirs."""
    if not any(tiles.glob("*.zarr")) and out.resolve().is_relative_to(tiles.resolve()):
        raise TiaftError(f"{out} lies among the tiles of {tiles}: choose another --out")


def refuse_unwritable(path: Path) -> None:
    """Raise TiaftError unless a file can be made beside `path`; the folder is made for it."""
    folder = Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise TiaftError(
            f"{path} cannot be written: {folder}: {error.strerror}: choose another folder"
        ) from error


def sha256_of(path: Path | str) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
