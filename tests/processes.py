"""Processes that begin with the large libraries imported: they start in a moment, not in seconds.

A server imports these once, and forks for each process. tiaft_plugin and tiatoolbox are not among
them: what they do when they are imported, and in which order, is as in a fresh process.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path

LIBRARIES = (
    "torch", "torchvision", "timm", "lightning.fabric", "matplotlib.pyplot", "numba", "pandas",
    "skimage", "sklearn", "zarr", "dask.array",
)  # fmt: skip


class Process:
    """A process that runs code as `python -c` does; one at a time.

    What it prints goes to `out`, stdout.txt and stderr.txt. The number of its threads is the
    server's, whatever OMP_NUM_THREADS is by now.
    """

    def __init__(self, code: str, *arguments: object, out: Path, **env: str):
        job = {"code": code, "argv": ["-c", *map(str, arguments)], "out": str(out)}
        self._server = _server()
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(job | {"env": {**os.environ, **env}}) + "\n")
        self._server.stdin.flush()
        self.pid = int(self._server.stdout.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code, negative for a signal; None where it is not there in time."""
        if self.returncode is None and select.select([self._server.stdout], [], [], timeout)[0]:
            assert self._server.stdout
            self.returncode = int(self._server.stdout.readline())
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL, and wait."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def run(code: str, *arguments: object, **env: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own; return its returncode, stdout and stderr."""
    with tempfile.TemporaryDirectory() as folder:
        process = Process(code, *arguments, out=Path(folder), **env)
        if process.wait(timeout=300) is None:
            process.kill()
            raise subprocess.TimeoutExpired(code, 300)
        out, err = (Path(folder, f"{name}.txt").read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(code, process.returncode, out, err)


@cache
def _server() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,
    )


def _next_job() -> dict:
    """Return a job in a process of its own, and end the server's when there are no more."""
    while line := sys.stdin.readline():
        pid = os.fork()
        if not pid:
            return json.loads(line)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)


if __name__ == "__main__":
    for library in LIBRARIES:
        import_module(library)
    job = _next_job()
    os.environ.clear()
    os.environ.update(job["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.path.join(job["out"], f"{name}.txt")  # noqa: PTH118
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = job["argv"]
    del __file__  # python -c has none
    sys.path[:1] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    exec(compile(job["code"], "<string>", "exec"))
