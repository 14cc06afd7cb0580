"""The errors people see: what is wrong, with which file, and what to do."""


class TiaftError(Exception):
    """Something its reader can put right. The message is one line and needs no traceback."""

    exit_code = 2  # of the command line: nothing was done


class SlidesFailed(TiaftError):
    """Some slides of a run failed; the others are done.

    ``results`` maps each finished slide to its store, ``failures`` each failed one to its reason.
    """

    exit_code = 1  # something was done, and something was not

    def __init__(self, results: dict, failures: dict):
        self.results, self.failures = results, failures
        listed = "; ".join(f"{slide}: {reason}" for slide, reason in failures.items())
        total = len(results) + len(failures)
        super().__init__(f"{len(failures)} of {total} slides failed: {listed}")
