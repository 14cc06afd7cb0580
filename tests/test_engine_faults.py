"""Faults of the whole engine, injected for real: no store looks complete that is not."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from conftest import tiaft

from tiaft_plugin import TiaftError
from tiaft_plugin.engine import store
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.reading import TileReading
from tiaft_plugin.engine.run import make_engine, run_slides
from tiaft_plugin.engine.store import read_store

STRIDE = 12


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(store, "CHUNK_ROWS", 64)


@pytest.fixture
def copy(slide, tmp_path):
    """A slide that can be spoilt."""
    return Path(shutil.copy(slide, tmp_path / slide.name))


@pytest.fixture(scope="module")
def whole(slide, tiny_model, tmp_path_factory):
    """The features of an undisturbed run, with chunks as they are by default."""
    out = tmp_path_factory.mktemp("whole")
    [result] = extract(tiny_model, slide, out)
    return read_store(result.store)


def extract(model, slide, out, **options):
    engine = make_engine(
        "features", str(model), stride=STRIDE, auto_mask=False, device="cpu", **options
    )
    engine.verbose = False
    return list(run_slides(engine, [SlideJob(slide)], out))


def after_chunks(monkeypatch, count, fault):
    """Have `fault` happen once so many chunks are written."""
    write, written = store.write_chunk, []

    def then(group, number, *values):
        write(group, number, *values)
        written.append(number)
        if len(written) == count:
            fault()

    monkeypatch.setattr(store, "write_chunk", then)
    return written


# A slide on a share


def test_a_share_that_vanishes_and_returns(tiny_model, copy, whole, tmp_path, monkeypatch, caplog):
    content = copy.read_bytes()

    def come_back():
        deadline = time.monotonic() + 60
        while "trying again" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        copy.write_bytes(content)

    def vanish():
        copy.write_bytes(b"")  # whoever has it open cannot read it either
        Thread(target=come_back).start()

    after_chunks(monkeypatch, 2, vanish)
    [result] = extract(tiny_model, copy, tmp_path / "out")
    assert result.status == "done", result.reason
    assert "trying again" in caplog.text
    found = read_store(result.store, verify=True)
    np.testing.assert_array_equal(found.values[:], whole.values[:])


def test_a_share_that_stays_away_is_reported_and_the_next_run_goes_on(
    tiny_model, copy, whole, tmp_path, monkeypatch
):
    content = copy.read_bytes()
    monkeypatch.setitem(TileReading.__init__.__kwdefaults__, "pauses", (0.0, 0.01))
    after_chunks(monkeypatch, 2, lambda: copy.write_bytes(b""))
    [result] = extract(tiny_model, copy, tmp_path / "out")
    assert result.status == "failed"
    assert "colon.ome.tiff is not to be reached any more: run the same command" in result.reason
    with pytest.raises(TiaftError, match="is incomplete"):
        read_store(tmp_path / "out" / "colon.ome.zarr")
    copy.write_bytes(content)
    written = after_chunks(monkeypatch, -1, lambda: None)
    [result] = extract(tiny_model, copy, tmp_path / "out")
    assert result.status == "done" and min(written) >= 2
    found = read_store(result.store, verify=True)
    np.testing.assert_array_equal(found.values[:], whole.values[:])


# Two processes, and threads


def test_of_two_runs_told_to_do_a_slide_one_does_it(tiny_model, slide, tmp_path, monkeypatch):
    command = ["extract", slide, "--model", tiny_model, "--out", tmp_path / "out", "--no-mask"]
    others = []

    def other():
        others.extend(tiaft(*command, "--stride", STRIDE, *more) for more in ([], ["--overwrite"]))

    after_chunks(monkeypatch, 2, other)
    [result] = extract(tiny_model, slide, tmp_path / "out")
    assert result.status == "done", result.reason
    for run in others:
        assert run.returncode == 1 and "0 of 1 slides done" in run.stdout
        assert "colon.ome.zarr: another run is working on it" in run.stderr
    read_store(result.store, verify=True)


@pytest.mark.parametrize("fault", [MemoryError(), SystemExit(1)])
def test_a_reader_that_dies_ends_no_run_unseen(tiny_model, slide, tmp_path, monkeypatch, fault):
    tiles, asked = TileReading._tiles, []

    def dying(reading, rows, **options):
        asked.append(rows)
        if len(asked) == 6:
            raise fault
        return tiles(reading, rows, **options)

    monkeypatch.setattr(TileReading, "_tiles", dying)
    if isinstance(fault, SystemExit):
        with pytest.raises(SystemExit):
            extract(tiny_model, slide, tmp_path / "out", workers=3)
    else:
        [result] = extract(tiny_model, slide, tmp_path / "out", workers=3)
        assert result.status == "failed" and "MemoryError" in result.reason
    with pytest.raises(TiaftError, match="is incomplete"):
        read_store(tmp_path / "out" / "colon.ome.zarr")
    [result] = extract(tiny_model, slide, tmp_path / "out", workers=3)
    assert result.status == "done"


@pytest.mark.parametrize("most", [2, 0])
def test_too_little_memory_from_the_start(most):
    import torch

    from tiaft_plugin.engine.compute import Compute

    class Hungry(torch.nn.Module):
        def forward(self, tiles):
            if len(tiles) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return tiles.float().mean(dim=(1, 2))

    def ready():
        return Compute(Hungry(), "cpu", batch_size=8, tile_shape=(8, 8), preprocess=lambda x: x)

    if most == 0:
        with pytest.raises(TiaftError, match="memory does not suffice for one tile at a time"):
            ready()
        return
    tiles = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.float32)
    compute = ready()
    np.testing.assert_allclose(compute(tiles), tiles.mean(axis=(1, 2)), rtol=1e-5)
    assert compute.at_once == 2


# Disk and memory, in processes of their own

FULL = """
import os, shutil, subprocess, sys
from tiaft_plugin.cli import main

def extract(folder, *command):
    os.chdir(folder)
    try:
        main(["extract", *command])
    except SystemExit as stop:
        return stop.code

disk = sys.argv[1]
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk]).returncode:
    sys.exit(77)
print("whole:", extract(".", *sys.argv[2:]), flush=True)
print("full:", extract(disk, *sys.argv[2:]), flush=True)
subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
print("again:", extract(disk, *sys.argv[2:]), flush=True)
shutil.copytree("out", "../kept")
"""


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle(tiny_model, slide, tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("no unshare: a small disk cannot be made here")
    (tmp_path / "disk").mkdir()
    command = [slide, "--out", "out", "--model", tiny_model, "--no-mask", "--stride", STRIDE]
    command += ["--precision", "float32"]
    run = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", FULL, *map(str, (tmp_path / "disk", *command))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if run.returncode in (1, 77) and "whole:" not in run.stdout:
        pytest.skip("no mount in a namespace of one's own: a small disk cannot be made here")
    said = [line for line in run.stdout.splitlines() if line.startswith(("whole", "full", "again"))]
    assert said == ["whole: 0", "full: 1", "again: 0"], run.stderr
    whole = read_store(tmp_path / "out" / "colon.ome.zarr")
    assert "out: No space left on device; put that right and run the same command" in run.stderr
    found = read_store(tmp_path / "kept" / "colon.ome.zarr", verify=True)
    np.testing.assert_array_equal(found.values[:], whole.values[:])
    assert found.facts == whole.facts


# What is freed is given back, so that a limit above what is in use is one for what comes.
FRUGAL = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
LITTLE_MEMORY = """
import os, sys
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_AS, setrlimit
import numpy as np, psutil, torch
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.run import make_engine, run_slides
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.network import create_network, save_model

torch.set_num_threads(1)
slide, out = Path(sys.argv[1]), Path(sys.argv[2])
net = create_network("test_resnet", "abc", init="random", tile_size=512, mpp=1.0, hidden=(16,))
model = save_model(net, out / "model.safetensors")
engine = make_engine("features", str(model), auto_mask=False, device="cpu", stride=96)
engine.verbose = False

def extract(name):
    print(name, file=sys.stderr, flush=True)
    [result] = run_slides(engine, [SlideJob(slide)], out / name)
    print(result.status, result.reason)
    return result.store and read_store(result.store, verify=True).values[:]

plenty = extract("plenty")
for name, mib in (("same", 100), ("anew", 160)):
    sys.stdout.flush()
    if not os.fork():  # both have what is in use now
        limit = psutil.Process().memory_info().vms + mib * 2**20
        setrlimit(RLIMIT_AS, (limit, RLIM_INFINITY))
        if name == "anew":  # the model is not ready
            engine._computes.clear()
        little = extract(name)
        if little is not None:
            print("error", np.linalg.norm(little - plenty) / np.linalg.norm(plenty))
        break
    os.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by Linux' RLIMIT_AS")
def test_with_too_little_memory_fewer_tiles_are_done_at_once(slide, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(slide), str(tmp_path)],
        env={**os.environ, **FRUGAL},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = run.stderr.partition("same\n")[2].partition("anew\n")
    assert all("out of memory: 4 tiles at once" in said[part] for part in (0, 2)), run.stderr
    lines = [line.strip() for line in run.stdout.splitlines()]
    assert [line for line in lines if not line.startswith("error")] == ["done"] * 3
    errors = [float(line.removeprefix("error ")) for line in lines if line.startswith("error")]
    assert len(errors) == 2 and max(errors) <= 1e-5
