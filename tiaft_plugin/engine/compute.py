"""A model on a device, as fast as it goes with the same outputs.

BatchNorm folded, channels last, a fixed number of tiles at once; in float32 or by autocast in
bfloat16; compiled where that pays. What is kept of all that is what gives the model's own outputs.
"""

import copy
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tiatoolbox.models.architecture.vanilla import CNNBackbone, CNNModel, TimmBackbone, TimmModel
from torch import nn

from tiaft_plugin.engine.folding import fold_batchnorm
from tiaft_plugin.engine.preprocessing import on_device
from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.network.export import check_tiles
from tiaft_plugin.network.precision import PRECISIONS, exact_float32, memory_format
from tiaft_plugin.zoo.models import TileModel

TOLERANCE = 1e-5  # relative error of float32 outputs, to those of the model as it comes
LEAST_COSINE, LARGEST_ERROR = 0.9995, 0.01  # of bfloat16 outputs, to those in float32
# Of more tiles than that, what layers hand on no longer stays in a processor's caches.
TILES_ON_CPU = 8
_TOO_LITTLE = "memory does not suffice for one tile at a time: free some"
_THEIRS = (CNNModel, CNNBackbone, TimmModel, TimmBackbone)


class Compute:
    """Gives outputs (n, D) float32 of tiles, by a copy of a model.

    `model` is any TIAToolbox model, or a module that takes uint8 tiles (N, H, W, 3); `preprocess`
    is what TIAToolbox calls on each tile, the model's own if None. With `takes_uint8`, call it with
    tiles as they were read; without, with preprocessed ones. Tiles have `tile_shape` (height,
    width; px). Raises TiaftError for an unknown precision, and where even one tile at a time does
    not fit into memory.

    The network always gets the same number of tiles at once (`at_once`), the last ones padded:
    a tile's output depends neither on its neighbours nor on how many there are.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str,
        precision: str = "float32",
        *,
        batch_size: int,
        tile_shape: tuple[int, int],
        preprocess: Callable | None = None,
        compiled: bool = False,
    ):
        self.device = torch.device(device)
        self.at_once = min(batch_size, TILES_ON_CPU) if self.device.type == "cpu" else batch_size
        preprocess = preprocess or getattr(model, "preproc_func", None)
        self._preprocess = on_device(preprocess)
        self.takes_uint8 = self._preprocess is not None
        tiles = check_tiles(max(tile_shape))[:, : tile_shape[0], : tile_shape[1]]
        self._check = tiles if self.takes_uint8 else _one_by_one(preprocess, tiles)
        self.precision, self.compiled = _known(precision), False
        self._network: Any = model
        self._forward = forward_of(model)
        self.folded, self.channels_last = 0, False
        self.width: int | None = None  # D, where it is known before the first tile
        self._make_ready_in_memory(model)
        if self._forward is _by_infer_batch and self._network is not model:
            self._network.register_forward_hook(_in_float32)
        self.compile_seconds = 0.0
        self._compiled: dict[str, Any] = {}  # by precision; `at` shares it
        if compiled:
            self._compile()

    def __call__(self, tiles: np.ndarray | torch.Tensor) -> np.ndarray:
        """Return outputs (n, D) float32 of tiles (n, H, W, 3), n of any size."""
        return self._fetched(self._launched(tiles))

    def each(self, batches: Iterable[np.ndarray | torch.Tensor]) -> Iterator[np.ndarray]:
        """Give the outputs of each batch of tiles, in order.

        A GPU gets the next batch before the outputs of one are waited for.
        """
        waiting: list[torch.Tensor] | None = None
        for batch in batches:
            launched = self._launched(batch)
            if waiting is not None:
                yield self._fetched(waiting)
            waiting = launched
            if not self._runs_ahead:
                yield self._fetched(launched)
                waiting = None
        if waiting is not None:
            yield self._fetched(waiting)

    def at(self, precision: str, *, compiled: bool = False) -> "Compute":
        """Return this model at another precision; they share their weights."""
        other = copy.copy(self)
        other.__dict__.pop("_runs_ahead", None)
        other.precision, other.compiled = _known(precision), False
        other._network = getattr(self._network, "_orig_mod", self._network)
        if compiled:
            other._compile()
        return other

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the last bits of outputs, for the store's attributes."""
        return {
            "precision": self.precision,
            "folded_batchnorm": self.folded,
            "channels_last": self.channels_last,
            "compiled": self.compiled,
            "tiles_at_once": self.at_once,
        }

    @cached_property
    def _runs_ahead(self) -> bool:
        return self.device.type == "cuda"

    def _make_ready_in_memory(self, model: nn.Module) -> None:
        """Make the model ready; check it on fewer tiles where memory does not suffice for all."""
        while True:
            try:
                return self._make_ready(model)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._check = self._check[: len(self._check) // 2]
            self.at_once = min(self.at_once, max(len(self._check), 1))
            if not len(self._check):
                raise TiaftError(_TOO_LITTLE)

    def _make_ready(self, model: nn.Module) -> None:
        """Take the fastest form of a copy of the model that gives its outputs."""
        try:
            self._network = _copied(model, self.device)
        except Exception as error:  # a model may hold anything: an open file, a generator
            _warn("the model cannot be copied (%s): it is used as it comes", first_line(error))
            self._network = model.eval()
            return
        wanted = self._of_the_model(self._network)
        self.width = wanted.shape[1]
        for folding in (True, False):
            self._network = _copied(model, self.device)
            try:
                self.folded = self._fold() if folding else 0
                layout = memory_format(self._network)
                nn.Module.to(self._network, memory_format=layout)  # type: ignore[call-overload]
                far = relative_error(self.at("float32")(self._check), wanted)
            except Exception as problem:  # models do what they like: this one stays as it comes
                if is_out_of_memory(problem):
                    raise
                _log.info("the model stays as it comes: %s", first_line(problem))
                continue
            if far <= TOLERANCE:
                self.channels_last = layout == torch.channels_last
                return
        self.folded = 0
        self._network = _copied(model, self.device)

    def _fold(self) -> int:
        few = torch.from_numpy(self._check[:2])
        with torch.no_grad(), exact_float32():
            return fold_batchnorm(self._network, lambda model: self._step(model, few))

    def _of_the_model(self, model: Any) -> np.ndarray:
        """Return the check tiles' outputs (8, D) as the model itself gives them, in float32."""
        tiles = torch.from_numpy(self._check)
        with torch.inference_mode(), exact_float32():
            if not hasattr(model, "infer_batch"):
                return self._step(model, tiles).cpu().numpy()
            if self._preprocess is not None:
                tiles = self._preprocess(tiles)
            return _rows(model.infer_batch(model, tiles, device=str(self.device)), len(tiles))

    def _launched(self, tiles: np.ndarray | torch.Tensor) -> list[torch.Tensor]:
        """Return outputs on the device, perhaps not computed yet; halve what is done at once."""
        while True:
            try:
                return self._parts(tiles)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, where the error no longer holds what the failed try had.
            self._halve()

    def _parts(self, tiles: np.ndarray | torch.Tensor) -> list[torch.Tensor]:
        tiles = _tensor(tiles)
        if self.device.type == "cuda":
            tiles = tiles.pin_memory()
        with self._computing():
            return [
                self._step(self._network, _padded(part, self.at_once))[: len(part)]
                for part in tiles.split(self.at_once)
            ]

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.precision == "float32":
                stack.enter_context(exact_float32())
            else:
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            yield

    def _step(self, model: nn.Module, tiles: torch.Tensor) -> torch.Tensor:
        tiles = tiles.to(self.device, non_blocking=True)
        if self._preprocess is not None:
            tiles = self._preprocess(tiles)
        output = self._forward(model, tiles)
        if isinstance(output, torch.Tensor):
            # CUDA graphs write each output to the same place.
            output = output.clone() if self.compiled else output
        else:
            output = torch.from_numpy(_rows(output, len(tiles)))
        _refuse_odd(tuple(output.shape), len(tiles))
        return output.float()

    def _fetched(self, parts: list[torch.Tensor]) -> np.ndarray:
        return torch.cat(parts).cpu().numpy()

    def _halve(self) -> None:
        if self.at_once == 1:
            raise TiaftError(_TOO_LITTLE)
        self.at_once //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        _warn("out of memory: %d tiles at once from here on", self.at_once)

    def _compile(self) -> None:
        """Compile, and keep it where outputs are the same; there is a warning where not."""
        if self.precision in self._compiled:  # for a slide before
            self._network = self._compiled[self.precision]
            self.compiled = hasattr(self._network, "_orig_mod")
            return
        plain, wanted, started = self._network, self(self._check), time.perf_counter()
        limit = TOLERANCE if self.precision == "float32" else LARGEST_ERROR
        try:
            # TIAToolbox has torch swallow what goes wrong.
            with torch._dynamo.config.patch(suppress_errors=False):
                self._network = torch.compile(plain, dynamic=False, **_options(self.device))
                self.compiled = True
                found = self(self._check)
            problem = "" if relative_error(found, wanted) <= limit else "outputs differ"
        except Exception as error:  # no compiler, or one that fails
            problem = first_line(error)
        self.compile_seconds = time.perf_counter() - started
        if problem:
            self._network, self.compiled = plain, False
            _warn("the model is not compiled: %s", problem)
        self._compiled[self.precision] = self._network


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the norm of the difference by that of what is wanted; inf for what is not finite."""
    if found.shape != wanted.shape or not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return float("inf")
    difference = float(np.linalg.norm(found.astype(np.float64) - wanted))
    return difference / max(float(np.linalg.norm(wanted.astype(np.float64))), 1e-30)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up: torch's own on a CPU is any RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def forward_of(model: Any) -> Callable[[Any, torch.Tensor], Any]:
    """Return how a model is called with tiles (N, H, W, 3) on the device, in TIAToolbox's way."""
    infer = getattr(model, "infer_batch", None)
    if infer is None or infer is TileModel.infer_batch:
        return _with_tiles
    if any(infer is theirs.infer_batch for theirs in _THEIRS):
        return _with_channels_first
    return _by_infer_batch


def _copied(model: nn.Module, device: torch.device) -> nn.Module:
    # Not by the model's own to(), which in TIAToolbox also wraps it for several GPUs.
    return nn.Module.to(copy.deepcopy(model).eval(), device)


def _with_tiles(model: Any, tiles: torch.Tensor) -> Any:
    return model(tiles)


def _with_channels_first(model: Any, tiles: torch.Tensor) -> Any:
    # As TIAToolbox's `_infer_batch`, but not contiguous(): this way channels are last in memory.
    return model(tiles.to(torch.float32).permute(0, 3, 1, 2))


def _in_float32(model: Any, inputs: Any, output: Any) -> Any:
    """A hook: `infer_batch` makes arrays of outputs, and numpy has no bfloat16."""
    return output.float() if isinstance(output, torch.Tensor) else output


def _by_infer_batch(model: Any, tiles: torch.Tensor) -> Any:
    return model.infer_batch(model, tiles, device=str(tiles.device))


def _rows(output: Any, count: int) -> np.ndarray:
    """Return the output (count, D) float32 of an `infer_batch`, some of which give a list of it."""
    if isinstance(output, list | tuple) and len(output) == 1:
        output = output[0]
    if isinstance(output, torch.Tensor):
        output = output.float().cpu()
    rows = np.asarray(output)
    _refuse_odd(rows.shape, count)
    return rows.astype(np.float32, copy=False)


def _refuse_odd(shape: tuple[int, ...], count: int) -> None:
    if len(shape) != 2 or shape[0] != count:
        raise TiaftError(f"the model gives an output of shape {shape} for {count} tiles")


def _one_by_one(preprocess: Any, tiles: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(preprocess(tile)) for tile in tiles])


def _tensor(tiles: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(tiles, np.ndarray) and not tiles.flags.carray:
        tiles = tiles.copy()  # torch takes no flipped views, and warns of read-only arrays
    return torch.as_tensor(tiles)


def _padded(tiles: torch.Tensor, count: int) -> torch.Tensor:
    missing = count - len(tiles)
    if missing <= 0:
        return tiles
    return torch.cat([tiles, tiles[-1:].expand(missing, *tiles.shape[1:])])


def _options(device: torch.device) -> dict[str, Any]:
    """Return how to compile; nothing that picks code by the stopwatch, and so differs each run."""
    if device.type == "cuda":
        return {"mode": "reduce-overhead"}  # CUDA graphs
    return {"options": {"freezing": True}}  # weights laid out once, as oneDNN wants them


def _known(precision: str) -> str:
    if precision not in PRECISIONS:
        raise TiaftError(f"there is no precision {precision}: there is {', '.join(PRECISIONS)}")
    return precision


_log = logging.getLogger(__name__)
_warn = _log.warning
