"""Java with QuPath in it, inside this process: started once and quietly, or the reason why not.

paquo finds QuPath, starts its Java and knows its versions. There is one Java a process, of the
QuPath that ``PAQUO_QUPATH_DIR`` (or paquo's own search) gave when it was started.
"""

import logging
import os
import re
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import Stopped, TiaftError, first_line

_OLDEST = "0.5"
_SIZE = re.compile(r"[1-9]\d*[kKmMgG]")
_LEAST = 128 * 1024**2  # bytes; with a few, Java ends the process instead of saying so
_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3}
_HEAP_OPTIONS = ("-Xmx", "-XX:MaxRAMPercentage", "-XX:MaxHeapSize")
_OPTIONS = (
    "--enable-native-access=ALL-UNNAMED",  # without, Java 24 warns of paquo's on stderr
    "-Xrs",  # Ctrl-C is Python's to handle
    # Quick compilation only: all is done in seconds, half of which Java would spend on compiling.
    "-XX:TieredStopAtLevel=1",
)
_FULL = ("No space left on device", "Disk quota exceeded", "not enough space on the disk")


def start_java(*, memory: str | None = None) -> str:
    """Start QuPath's Java, unless it runs already; return QuPath's version, "0.6.0".

    `memory` ("4g") is the most that its objects may take; ``TIAFT_JAVA_MEMORY`` otherwise, and
    without either what paquo is set to (half of the machine's). A Java that runs already keeps
    what it has. Raises TiaftError: paquo or QuPath is missing, broken or too old.
    """
    jpype, settings = _import_paquo()
    ours = not jpype.isJVMStarted()
    if ours:
        _set_options(settings, memory or os.environ.get("TIAFT_JAVA_MEMORY", ""))
    else:
        _adopt(jpype)
    version = _import_qupath(settings)
    if ours:
        _silence(jpype)
    if not at_least(_OLDEST):
        raise TiaftError(f"QuPath {version} is too old: install {_OLDEST} or later")
    return version


def at_least(version: str) -> bool:
    """Whether the QuPath that runs is of a version or later."""
    from paquo._utils import QuPathVersion
    from paquo.java import qupath_version

    return qupath_version is None or qupath_version >= QuPathVersion(version)


def has_class(name: str) -> bool:
    """Whether the QuPath that runs knows a class, which is not loaded for it."""
    import jpype

    known = jpype.JClass("qupath.lib.io.PathIO").class_.getClassLoader()
    try:
        known.loadClass(name)
    except jpype.JException:
        return False
    return True


def load_openslide() -> None:
    """Have QuPath load OpenSlide's library, which its version 0.5 leaves to its windows."""
    import jpype

    try:
        loader = jpype.JClass("qupath.lib.images.servers.openslide.jna.OpenSlideLoader")
        loader.tryToLoadQuietly()
    except (TypeError, AttributeError, jpype.JException):
        return  # a QuPath without OpenSlide: other builders may read the slide


@contextmanager
def java_errors(path: Path | str) -> Iterator[None]:
    """Turn what Java throws in the block into a TiaftError of one line that names `path`."""
    import jpype

    try:
        yield
    except jpype.JException as error:
        raise _told(error, path) from error
    except OSError as error:  # paquo makes some of Java's so
        raise Stopped(f"{path}: QuPath could not read or write: {first_line(error)}") from error


def _import_paquo() -> tuple[Any, Any]:
    try:
        import jpype
        from paquo._config import settings
    except ImportError as error:
        raise TiaftError(
            f'QuPath projects need paquo ({first_line(error)}): pip install "tiaft_plugin[qupath]"'
        ) from error
    return jpype, settings


def _set_options(settings: Any, memory: str) -> None:
    """Tell paquo how to start Java."""
    given = settings.java_opts
    options = shlex.split(given) if isinstance(given, str) else list(given)
    if memory:
        if not _SIZE.fullmatch(memory) or int(memory[:-1]) * _UNITS[memory[-1].lower()] < _LEAST:
            raise TiaftError(
                f"{memory!r} is no memory for Java: give a size such as 4g or 800m, 128m at least "
                "(TIAFT_JAVA_MEMORY)"
            )
        options = [option for option in options if not option.startswith(_HEAP_OPTIONS)]
        options.append(f"-Xmx{memory}")
    settings.set("java_opts", list(dict.fromkeys([*options, *_OPTIONS])))


def _adopt(jpype: Any) -> None:
    """Accept a Java that somebody else started in this process, if QuPath is in it."""
    from paquo import jpype_backend
    from paquo._utils import QuPathVersion

    if jpype_backend._QUPATH_VERSION is not None:
        return
    try:
        version = str(jpype.JClass("qupath.lib.common.GeneralTools").getVersion())
    except (TypeError, AttributeError) as error:
        raise TiaftError(
            "Java runs in this process already, and without QuPath: call "
            "tiaft_plugin.qupath.java.start.start_java() before whatever starts it"
        ) from error
    jpype_backend._QUPATH_VERSION = QuPathVersion(version)


def _import_qupath(settings: Any) -> str:
    """Import paquo's Java half, which starts Java; return QuPath's version."""
    folder = settings.qupath_dir
    where = f"the QuPath in PAQUO_QUPATH_DIR={folder}" if folder else "the QuPath that paquo found"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is checked here
            from paquo.java import qupath_version
    except (FileNotFoundError, ValueError) as error:
        raise TiaftError(_not_found(folder)) from error
    except (OSError, RuntimeError) as error:
        raise TiaftError(f"Java cannot start from {where}: {first_line(error)}") from error
    except Exception as error:  # a class that is not there, or not for this Java
        raise TiaftError(f"{where} is not whole: {first_line(error)}: install it anew") from error
    return str(qupath_version) if qupath_version is not None else "of an unknown version"


def _not_found(folder: str) -> str:
    advice = "set PAQUO_QUPATH_DIR to the folder of QuPath (on Linux the one with lib/app in it)"
    if not folder:
        return f"no QuPath was found: install it (https://qupath.github.io), and {advice}"
    if not Path(folder).is_dir():
        return f"PAQUO_QUPATH_DIR={folder}: no such folder: {advice}"
    return f"PAQUO_QUPATH_DIR={folder}: there is no QuPath, with its own Java, in it: {advice}"


def _silence(jpype: Any) -> None:
    """Keep QuPath's log, and paquo's, off the terminal, where progress bars and results are.

    ``TIAFT_DEBUG=1`` leaves them there.
    """
    if os.environ.get("TIAFT_DEBUG", "0") not in ("", "0"):
        return
    for name in ("paquo", "qupath"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    system = jpype.JClass("java.lang.System")
    nothing = jpype.JClass("java.io.OutputStream").nullOutputStream()
    nowhere = jpype.JClass("java.io.PrintStream")(nothing)
    system.setOut(nowhere)
    system.setErr(nowhere)


def _told(error: Any, path: Path | str) -> TiaftError:
    chain = [error]
    while (cause := chain[-1].getCause()) is not None and len(chain) < 10:
        chain.append(cause)
    names = [str(each.getClass().getSimpleName()) for each in chain]
    if "OutOfMemoryError" in names:
        return Stopped(
            f"{path}: Java ran out of memory: set TIAFT_JAVA_MEMORY, for instance to 8g, and run "
            "again"
        )
    # The innermost knows the reason; those around it repeat it, or say less.
    text = str(chain[-1].getMessage() or "").strip()
    if any(full in text for full in _FULL):
        return Stopped(f"{path}: QuPath could not write: {text}")
    return TiaftError(f"{path}: QuPath stopped with {names[-1]}{': ' if text else ''}{text}")
