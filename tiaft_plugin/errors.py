"""The errors people see: what is wrong, with which file, and what to do."""

import os
import traceback


class TiaftError(Exception):
    """Something its reader can put right. The message is one line and needs no traceback."""

    exit_code = 2  # of the command line: nothing was done

    def __init__(self, message: object = ""):
        super().__init__(one_line(str(message)))


class Stopped(TiaftError):
    """Something was begun and could not be finished, or an input proved bad when it was tried."""

    exit_code = 1


class SlidesFailed(Stopped):
    """Some slides of a run failed; the others are done.

    ``results`` maps each finished slide to its store, ``failures`` each failed one to its reason.
    """

    def __init__(self, results: dict, failures: dict):
        self.results, self.failures = results, failures
        listed = "; ".join(f"{slide}: {reason}" for slide, reason in failures.items())
        total = len(results) + len(failures)
        super().__init__(f"{len(failures)} of {total} slides failed: {listed}")


def one_line(text: str) -> str:
    r"""Return lines joined by "; ", and what else cannot be printed written as ``\x85``.

    Names of files, classes and settings are anybody's, and messages quote them.
    """
    joined = "; ".join(line.strip() for line in text.split("\n") if line.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


def first_line(error: BaseException) -> str:
    """Return an exception in one line; its type where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # torch hands on what happened in a worker as a whole traceback; its last line says what.
    return lines[-1] if "in DataLoader worker process" in lines[0] else lines[0]


def reason(error: BaseException) -> str:
    """Return why something failed, in one line; other people's exceptions with their type.

    ``TIAFT_DEBUG=1`` prints the traceback, too.
    """
    if os.environ.get("TIAFT_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, TiaftError):
        return str(error)
    name, text = type(error).__name__, first_line(error)
    return text if text == name else f"{name}: {text}"
