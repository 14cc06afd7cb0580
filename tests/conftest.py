"""What every room's tests share."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

# Of tiny models two threads make no more than one; with `make test` each core has its own process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

DATA = Path(os.environ.get("TIAFT_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
TINY = "test_resnet"  # timm's own backbone for tests

# The same examples each time, so that a change is judged by itself; to look for new ones:
# pytest --hypothesis-profile=wild
settings.register_profile("tests", derandomize=True, database=None)
settings.register_profile("wild", max_examples=1000)
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long: none of them is left to one process at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def data() -> Path:
    """The folder of real tiles, slides and weights; tests that need it skip without it."""
    if not (DATA / "README.md").is_file():
        pytest.skip(f"no real data at {DATA} (set TIAFT_DATA)")
    return DATA


@pytest.fixture(scope="session")
def qupath() -> None:
    """Tests that need a QuPath skip without one; which it is, PAQUO_QUPATH_DIR says.

    They run it in processes of their own: Java starts once a process, and stays.
    """
    try:
        from paquo._config import settings as paquo_settings
        from paquo._config import to_kwargs
        from paquo.jpype_backend import find_qupath
    except ImportError:
        pytest.skip('no paquo (pip install "tiaft_plugin[qupath]")')
    try:
        find_qupath(**to_kwargs(paquo_settings))
    except (ValueError, OSError):
        pytest.skip("no QuPath that paquo finds (set PAQUO_QUPATH_DIR)")


@pytest.fixture(autouse=True)
def model_folder(tmp_path, monkeypatch) -> Path:
    """An empty model folder for each test, so that none sees or changes the user's own."""
    folder = tmp_path / "model-folder"
    monkeypatch.setenv("TIAFT_MODELS", str(folder))
    return folder


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Leave out the figures of fine-tunings' reports, which take longer than tiny trainings."""
    from tiaft_plugin.finetune import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curves", lambda rows, kept: [])
        patch.setattr(report, "draw_calibration", lambda found: "")
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model file: three classes, 16 features, tiles of 32 px at 1 µm/px."""
    from tiaft_plugin.network import create_network, save_model

    net = create_network(TINY, "abc", init="random", tile_size=32, mpp=1.0, hidden=(16,))
    return save_model(net, tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="session")
def slide(tmp_path_factory) -> Path:
    """An OME-TIFF of real tissue, 512×512 px, said to have 1 µm/px; its right third is glass."""
    from skimage.data import immunohistochemistry

    pixels = immunohistochemistry().copy()
    pixels[:, 340:] = 245
    return write_slide(tmp_path_factory.mktemp("slides") / "colon.ome.tiff", pixels)


def write_slide(path: Path, pixels: np.ndarray, mpp: float | None = 1.0) -> Path:
    """Write RGB pixels as a tiled OME-TIFF, with or without a resolution."""
    import tifffile

    size = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp} if mpp else {}
    units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"} if mpp else {}
    tifffile.imwrite(
        path, pixels, tile=(128, 128), photometric="rgb", metadata={"axes": "YXS", **size, **units}
    )
    return path


def tiaft(*arguments: object) -> SimpleNamespace:
    """Run the command line in this process; return its returncode, stdout and stderr."""
    from tiaft_plugin.cli import main

    out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    finally:
        root.handlers[:], root.level = handlers, level
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    """Run code in a fresh process, as a script of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
