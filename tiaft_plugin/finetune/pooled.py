"""A frozen Part A's outputs: computed once, kept on disk, memory-mapped.

Without augmentation a stage that freezes Part A sees the same tiles in every epoch, so that Part A
need look at each but once. A file of rows grows batch by batch; beside it stands how many of them
are safely on the disk, with their CRC-32, so that an interrupted run goes on there.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

from tiaft_plugin.errors import Stopped
from tiaft_plugin.files import DISK_ERRORS, locked, write_atomically
from tiaft_plugin.finetune.data import Batches, Order, Tiles
from tiaft_plugin.network.backbone import pooled_width
from tiaft_plugin.network.net import Network
from tiaft_plugin.network.precision import exact_float32
from tiaft_plugin.network.weights import sha256_of_weights
from tiaft_plugin.progress import progress

_FLUSH_SECONDS = 20.0


def pooled_outputs(
    net: Network,
    tiles: Tiles,
    folder: Path,
    *,
    hashes: list[str],
    batch_size: int,
    device: torch.device,
    workers: int = 0,
) -> np.ndarray:
    """Return Part A's pooled outputs, float32 (N, width), in eval mode, from disk where they are.

    `hashes` are those of the tiles' files. They are kept in `folder` under what decides them:
    Part A's weights, the normalisation and the tiles. Processes that want the same wait for each
    other. Raises Stopped where the disk is full.
    """
    key = _key(net, tiles, hashes, batch_size, device)
    rows = folder / f"{key}.f32"
    shape = (len(tiles), pooled_width(net.part_a))
    with locked(rows, wait=True):
        done = _safe_rows(rows, shape)
        if done < len(tiles):
            try:
                _compute(net, tiles, rows, done, batch_size, device, workers)
            except OSError as error:
                if error.errno in DISK_ERRORS:
                    raise Stopped(
                        f"{rows} cannot be written: {error.strerror}: the same command goes on "
                        "there once there is room"
                    ) from error
                raise
    return np.memmap(rows, np.float32, "r", shape=shape)


def _key(
    net: Network, tiles: Tiles, hashes: list[str], batch_size: int, device: torch.device
) -> str:
    card = net.card
    decides: dict[str, Any] = {
        "weights": sha256_of_weights(net.part_a),
        "backbone": [card.backbone, card.backbone_args],
        "pixels": [card.mean, card.std, card.tile_size, repr(tiles.normalise)],
        "tiles": hashes,
        # Who decodes tiles, and builds the backbone.
        "versions": [version(name) for name in ("pillow", "timm", "torch")],
        # These decide the last bits only.
        "computed": [batch_size, device.type, torch.get_num_threads()],
    }
    text = json.dumps(decides, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _journal(rows: Path) -> Path:
    return rows.with_suffix(".json")


def _safe_rows(rows: Path, shape: tuple[int, int]) -> int:
    """Return how many rows are on the disk as they were written; the file is cut after them."""
    try:
        noted = json.loads(_journal(rows).read_bytes())
        size = noted["rows"] * shape[1] * 4
        if noted["width"] == shape[1] and _crc(rows, size) == noted["crc32"]:
            os.truncate(rows, size)
            return noted["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing there, or damaged: begin anew
    return 0


def _crc(file: Path, size: int) -> int | None:
    """Return the CRC-32 of a file's first bytes, or None where there are fewer."""
    value = 0
    with file.open("rb") as opened:
        while size > 0:
            block = opened.read(min(size, 1 << 24))
            if not block:
                return None
            value, size = zlib.crc32(block, value), size - len(block)
    return value


def _compute(
    net: Network,
    tiles: Tiles,
    rows: Path,
    done: int,
    batch_size: int,
    device: torch.device,
    workers: int,
) -> None:
    order = Order(len(tiles), batch_size)
    order.start = next((i for i, (start, _) in enumerate(order.bounds) if start >= done), 0)
    done = order.bounds[order.start][0]  # a last batch may have been joined to the one before
    crc = _crc(rows, done * pooled_width(net.part_a) * 4) if done else 0
    batches = Batches(tiles, order, workers=workers, pin_memory=device.type == "cuda")
    with (
        rows.open("r+b" if done else "wb") as file,
        closing(batches),
        progress(len(tiles), "Part A, frozen") as bar,
    ):
        file.truncate(done * pooled_width(net.part_a) * 4)
        file.seek(0, os.SEEK_END)
        bar.update(done)
        saved = monotonic()
        for outputs in _outputs(net, batches, device):
            content = outputs.tobytes()
            file.write(content)
            crc, done = zlib.crc32(content, crc or 0), done + len(outputs)
            bar.update(len(outputs))
            if done == len(tiles) or monotonic() - saved > _FLUSH_SECONDS:
                file.flush()
                os.fsync(file.fileno())
                with write_atomically(_journal(rows)) as temporary:
                    noted = {"rows": done, "width": pooled_width(net.part_a), "crc32": crc}
                    temporary.write_text(json.dumps(noted))
                saved = monotonic()


@torch.no_grad()  # inference mode would leave weights that can train no more
def _outputs(net: Network, batches: Batches, device: torch.device) -> Iterator[np.ndarray]:
    """Yield each batch's outputs; in float32, whatever Part A trains in later."""
    net.to(device).eval()
    net.part_a.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        for tiles, _, _ in batches:
            with exact_float32():
                outputs = net.pooled(tiles).float().cpu().numpy()
            yield outputs
    finally:
        net.cpu()
