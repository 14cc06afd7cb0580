"""A network in the formats of others (TorchScript, torch.export, ONNX), checked against it.

All of them take what the network takes, uint8 tiles (N, H, W, 3), any N: normalisation is inside,
so that nobody can forget it or do it otherwise.
"""

import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tiaft_plugin.errors import Stopped, TiaftError, first_line
from tiaft_plugin.files import write_atomically
from tiaft_plugin.network.card import METADATA_KEY
from tiaft_plugin.network.net import Network, PartB
from tiaft_plugin.network.outputs import probabilities_of

TOLERANCE = 1e-4  # largest difference from the network's outputs, relative to the largest of them
_ONNX = ("onnx", "onnxscript", "onnxruntime")


class Exported(nn.Module):
    """What is exported of a network: from uint8 tiles (N, H, W, 3) to its probabilities (N, C).

    With `features`, to its features (N, D).
    """

    def __init__(self, net: Network, *, features: bool):
        super().__init__()
        self.net, self.gives_features = net, features

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return what the network's `probabilities` or `features` does, without looking at tiles.

        Checks are Python's, and would stand in the way of tracing.
        """
        outputs, part_b = self.net.part_a(self.net.scaled(tiles)), self.net.part_b
        if not self.gives_features:
            return probabilities_of(part_b(outputs), multilabel=self.net.card.multilabel)
        return part_b.hidden(outputs) if isinstance(part_b, PartB) else outputs


def export_network(
    net: Network, path: Path, to: str, *, features: bool = False, overwrite: bool = False
) -> float:
    """Write a network, in eval mode on the CPU, to a file of the format `to`.

    ``torchscript``, ``pt2`` (torch.export's) or ``onnx``. Returns how far the file's outputs are
    from the network's, relative to the largest. Raises TiaftError, and leaves no file, where
    packages are missing, the backbone cannot be exported, or the outputs differ by more than 1e-4.
    """
    write, read = _FORMATS[to]
    refuse_without_packages(to)
    exported = Exported(net, features=features).eval()
    example = torch.from_numpy(check_tiles(net.card.tile_size)[:2])
    with write_atomically(path, overwrite=overwrite) as temporary:
        try:
            with _quietly(), torch.no_grad():
                write(exported, example, temporary)
                run = read(temporary)
        except Exception as error:  # tracing meets whatever a backbone's authors have written
            raise Stopped(
                f"{net.card.backbone} cannot be exported to {to}: {first_line(_cause(error))}"
            ) from error
        return _difference(run, exported, net, to)


def refuse_without_packages(to: str) -> None:
    """Raise TiaftError where what a format needs is not installed."""
    missing = [name for name in _ONNX if find_spec(name) is None] if to == "onnx" else []
    if missing:
        raise TiaftError(
            f"--to onnx needs {', '.join(missing)}: pip install 'tiaft_plugin[export]'"
        )


def check_tiles(size: int) -> np.ndarray:
    """Return tiles (8, size, size, 3) uint8 to compare outputs on, noise and structure."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((size, size)) / size
    blots = np.kron(rng.uniform(size=(8, 8, 3)), np.ones((-(-size // 8), -(-size // 8), 1)))
    pink = np.array([0.85, 0.55, 0.75])
    tiles = [
        rng.uniform(size=(size, size, 3)),
        pink + rng.normal(0, 0.08, (size, size, 3)),
        np.stack([rows, columns, 1 - rows], axis=-1),
        pink + 0.3 * np.sin(rows * columns * 60)[..., None],
        blots[:size, :size],
        np.where(np.indices((size, size)).sum(axis=0)[..., None] // 4 % 2, 0.2, pink),
        np.zeros((size, size, 3)),
        np.ones((size, size, 3)),
    ]
    return (np.stack(tiles) * 255).round().clip(0, 255).astype(np.uint8)


def _difference(
    run: Callable[[np.ndarray], np.ndarray], exported: Exported, net: Network, to: str
) -> float:
    """Return how far a file's outputs are from the network's. Raises Stopped where too far.

    In batches of other sizes than the one that was traced, too.
    """
    tiles = check_tiles(net.card.tile_size)
    with torch.inference_mode():
        of = net.features if exported.gives_features else net.probabilities
        wanted = of(tiles).numpy()
    largest = 0.0
    for rows in (slice(0, 8), slice(3, 4), slice(4, 7)):
        try:
            found = run(tiles[rows])
        except Exception as error:
            raise Stopped(
                f"{net.card.backbone} exported to {to} fails on {len(tiles[rows])} tiles "
                f"({first_line(error)}): nothing is written"
            ) from error
        largest = max(largest, relative_difference(found, wanted[rows]))
    if not largest <= TOLERANCE:
        raise Stopped(
            f"{net.card.backbone} exported to {to} gives other outputs than the network (relative "
            f"difference {largest:.1e}, {TOLERANCE:g} is allowed): nothing is written"
        )
    return largest


def relative_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference of outputs, relative to the largest of them; inf for others."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    scale = max(float(np.abs(wanted).max()), 1e-12)
    return float(np.abs(found.astype(np.float64) - wanted).max()) / scale


def _about(exported: Exported) -> dict[str, str]:
    """Return what stands in the file besides the network."""
    return {
        METADATA_KEY: exported.net.card.to_json(),
        "tiaft_output": "features" if exported.gives_features else "probabilities",
    }


def _write_torchscript(exported: Exported, example: torch.Tensor, path: Path) -> None:
    traced = torch.jit.trace(exported, example, check_trace=False)  # `_difference` looks closer
    whole = io.BytesIO()  # a path's name would stand in the file
    torch.jit.save(traced, whole, _extra_files=_about(exported))
    with zipfile.ZipFile(whole) as given, zipfile.ZipFile(path, "w") as kept:
        for entry in given.infolist():
            if not entry.filename.endswith(".debug_pkl"):  # in whose folders it was traced
                kept.writestr(entry, given.read(entry))


def _read_torchscript(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    return _runner(torch.jit.load(path, map_location="cpu"))


def _traced(exported: Exported, example: torch.Tensor) -> Any:
    batch = {0: torch.export.Dim("N")}
    return torch.export.export(exported, (example,), dynamic_shapes=(batch,))


def _write_pt2(exported: Exported, example: torch.Tensor, path: Path) -> None:
    traced, whole = _traced(exported, example), io.BytesIO()
    for node in traced.graph.nodes:
        node.meta.pop("stack_trace", None)  # in whose folders it was traced
    torch.export.save(traced, whole, extra_files=_about(exported))
    path.write_bytes(whole.getvalue())


def _read_pt2(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    return _runner(torch.export.load(path).module())


def _runner(module: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    def run(tiles: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(tiles)).numpy()

    return run


def _write_onnx(exported: Exported, example: torch.Tensor, path: Path) -> None:
    program = torch.onnx.export(
        _traced(exported, example),
        dynamo=True,
        input_names=["tiles"],
        output_names=[_about(exported)["tiaft_output"]],
        verbose=False,
    )
    assert program is not None
    for graph in program.model.graphs():
        for node in graph:
            node.metadata_props.clear()  # in whose folders it was traced
    program.model.metadata_props.update(_about(exported))
    program.save(str(path), external_data=False)


def _read_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda tiles: session.run(None, {"tiles": tiles})[0]


_FORMATS: dict[str, tuple[Callable[..., None], Callable[[Path], Callable]]] = {
    "torchscript": (_write_torchscript, _read_torchscript),
    "pt2": (_write_pt2, _read_pt2),
    "onnx": (_write_onnx, _read_onnx),
}


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep to ourselves what tracers warn of: it is checked, and TorchScript is to go some day."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
