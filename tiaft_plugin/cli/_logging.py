"""What other people's libraries say while a command runs: warnings, one line each, on stderr."""

import logging
import warnings
from typing import Any


def quiet_tiatoolbox() -> None:
    """Let only warnings through, each once and in one line; call it where a command begins.

    TIAToolbox logs to stdout from INFO on, where it would stand among a command's own output. It
    leaves a root logger that has a handler alone, so this works before and after its import.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler:  # TIAToolbox's two, not pytest's
            root.removeHandler(handler)
    if not any(isinstance(handler, _OneLine) for handler in root.handlers):
        root.addHandler(_OneLine())
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)  # first, since TIAToolbox would do so and undo the next line
    warnings.showwarning = _show
    warnings.filterwarnings("ignore", category=FutureWarning)  # for programmers, not for users


# What TIAToolbox warns of that a command says better, or that changes nothing here.
_SAID_OTHERWISE = (
    "No GPU detected or cuda not installed",
    "OME objective power extraction failed",
    "Failed to infer objective power",
    "Objective power could not be determined",
    "Metadata: Objective power inferred",
    "Metadata: Unable to determine",
    "Unknown scale (no objective_power or mpp)",
    "Raw data is None",
    "The image mode is set to 'feature'",
    "get_frame_offsets is deprecated",
    "Read: Scale > 1",  # of 0.1 %, too; the engine warns where tiles are enlarged
)


class _OneLine(logging.Handler):
    """Prints each record's text once, above a progress bar if there is one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = " ".join(record.getMessage().split())
            if text not in self.said and not text.startswith(_SAID_OTHERWISE):
                self.said.add(text)
                _print(f"{record.levelname.capitalize()}: {text}")
        except Exception:
            self.handleError(record)


def _show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    logging.getLogger("py.warnings").warning("%s", message)


def _print(text: str) -> None:
    import sys

    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
