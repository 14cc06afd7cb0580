"""Extraction killed with SIGKILL at random instants, and gone on with."""

import multiprocessing
import random
import time
from pathlib import Path

import numpy as np
import pytest

from tiaft_plugin.engine.store import read_store

KILLS = 10


def extract(model: Path, slide: Path, out: Path) -> None:
    """One run, in chunks so small that there are many instants to be killed at."""
    import torch

    from tiaft_plugin.engine import store
    from tiaft_plugin.engine.jobs import SlideJob
    from tiaft_plugin.engine.run import make_engine, run_slides
    from tiaft_plugin.tiles.stain import make_stain

    torch.set_num_threads(1)
    store.CHUNK_ROWS = 32
    engine = make_engine(
        "features", str(model), stride=24, batch_size=16, auto_mask=False, device="cpu",
        stain=make_stain("macenko"),
    )  # fmt: skip
    engine.verbose = False
    [result] = run_slides(engine, [SlideJob(slide)], out)
    assert result.status != "failed", result.reason


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_bits(tiny_model, slide, tmp_path):
    context = multiprocessing.get_context("forkserver")  # which imports everything once
    context.set_forkserver_preload(["tiaft_plugin.engine.run"])

    def started(out: str) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=extract, args=(tiny_model, slide, tmp_path / out))
        process.start()
        return process

    started("first").join()  # the server's own start is not a run's
    begun = time.monotonic()
    process = started("whole")
    process.join()
    took = time.monotonic() - begun
    assert process.exitcode == 0
    whole = read_store(tmp_path / "whole/colon.ome.zarr", verify=True)

    rng, killed, incomplete, round_ = random.Random(6), 0, 0, 0
    while killed < KILLS:
        process = started(f"killed-{round_}")
        process.join(timeout=took * rng.uniform(0.1, 0.9))
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
            incomplete += (tmp_path / f"killed-{round_}/colon.ome.zarr").exists()
        else:  # all was done before: another store is begun
            assert process.exitcode == 0
            round_ += 1
    assert incomplete, "no kill met the work itself"
    for number in range(round_ + 1):
        process = started(f"killed-{number}")
        process.join()
        assert process.exitcode == 0
        found = read_store(tmp_path / f"killed-{number}/colon.ome.zarr", verify=True)
        for name in ("values", "colour", "normalised", "coordinates", "tissue"):
            np.testing.assert_array_equal(getattr(found, name)[:], getattr(whole, name)[:])
        assert found.facts == whole.facts
