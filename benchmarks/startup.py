"""What `import tiaft_plugin` adds to `import tiatoolbox`, and how soon `tiaft --help` answers.

    python benchmarks/startup.py [REPEATS]

Each time is the median over fresh processes, after one that fills the disk cache.
"""

import statistics
import subprocess
import sys
import time

CASES = {
    "python": "pass",
    "import tiatoolbox": "import tiatoolbox",
    "import tiatoolbox, tiaft_plugin": "import tiatoolbox, tiaft_plugin",
    "tiaft --help": "from tiaft_plugin.cli import main; main(['--help'])",
}


def seconds(code: str, repeats: int) -> float:
    """Return the median time of a fresh process that runs `code`."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    """Print each case, and what the import adds."""
    repeats = int(sys.argv[1]) if sys.argv[1:] else 9
    found = {name: seconds(code, repeats) for name, code in CASES.items()}
    for name, value in found.items():
        print(f"{name:35}{value:8.3f} s")
    alone, ours = found["import tiatoolbox"], found["import tiatoolbox, tiaft_plugin"]
    print(f"import tiaft_plugin adds {ours - alone:.3f} s, a ratio of {ours / alone:.2f}")


if __name__ == "__main__":
    main()
