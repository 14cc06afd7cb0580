"""Cohorts: every slide accounted for, whatever happens to the workers."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tiaft, write_slide
from hypothesis import given
from hypothesis import strategies as st

from tiaft_plugin import TiaftError
from tiaft_plugin.engine import cluster, cohort_worker, parts
from tiaft_plugin.engine.cohort import TABLE, Cohort
from tiaft_plugin.engine.cohort_table import (
    CohortLine,
    CohortRow,
    read_cohort,
    read_lines,
    write_lines,
)
from tiaft_plugin.engine.cohort_worker import Plan
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.parts import Part, kept_from_others, opening, parts_of
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.errors import Stopped
from tiaft_plugin.files import locked
from tiaft_plugin.tiles.stain import Macenko, make_stain


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """17 small slides of real tissue, and 3 that are corrupt in different ways."""
    from skimage.data import immunohistochemistry

    folder = tmp_path_factory.mktemp("cohort")
    for number in range(17):
        pixels = np.roll(immunohistochemistry(), 20 * number, axis=1)[:256, :256]
        write_slide(folder / f"s{number:02d}.ome.tiff", np.ascontiguousarray(pixels))
    (folder / "empty.svs").touch()
    (folder / "text.svs").write_text("no slide")
    (folder / "cut.ome.tiff").write_bytes((folder / "s00.ome.tiff").read_bytes()[:2000])
    return folder


@pytest.fixture
def table(slides, tmp_path):
    lines = [
        f"{slides / name},P{n}" for n, name in enumerate(sorted(p.name for p in slides.iterdir()))
    ]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["slide,patient", *lines]))
    return path


@contextmanager
def inline():
    """A stand-in for dask: tasks run here, at once, and each future is done."""
    yield SimpleNamespace(
        scheduler=SimpleNamespace(address="here"),
        scheduler_info=lambda n_workers: {"workers": {"one": {}}},
    )


@pytest.fixture
def at_once(monkeypatch):
    """Work on tasks in this process, and note which slides they have."""
    tried = []

    def run(client, function, tasks, *, say):
        for number, task in enumerate(tasks):
            tried.extend(job.slide.name for job in task[1])
            yield number, function(*task)

    monkeypatch.setattr("tiaft_plugin.engine.cohort.run_tasks", run)
    monkeypatch.setattr(cohort_worker, "_device", lambda asked: asked)
    return tried


def made(table, out, model, kind="features", **options):
    """Run a cohort in this process; return its results by slide name."""
    jobs = [SlideJob(r.slide, r.mask, r.mpp, r.patient) for r in read_cohort(table)]
    plan = Plan(kind, str(model), **options)
    return {r.slide.name: r for r in Cohort(plan, jobs, out).run(inline, say=lambda text: None)}


def lines_of(out):
    with (out / TABLE).open(newline="") as file:
        return {Path(line["slide"]).name: line for line in csv.DictReader(file)}


# On real workers


@pytest.mark.slow
def test_twenty_slides_two_workers_one_killed(slides, table, tiny_model, tmp_path):
    """The run's workers are its own; in the second run they have three slides to try."""
    import psutil

    out, said = tmp_path / "out", []
    jobs = [SlideJob(r.slide, None, r.mpp, r.patient) for r in read_cohort(table)]
    plan = Plan("features", str(tiny_model), {"stride": 16}, threads=1)
    with cluster.local_cluster(2) as client:

        def kill_one():
            [pid, _] = client.run(os.getpid).values()
            psutil.Process(pid).kill()

        @contextmanager
        def workers():
            yield client

        results = {}
        for result in Cohort(plan, jobs, out).run(workers, say=said.append):
            results[result.slide.name] = result
            if len(results) == 1:
                kill_one()
        assert any("died: another one goes on with its slide" in text for text in said)
        check(results, out)
        again = list(Cohort(plan, jobs, out).run(workers, say=said.append))
    tried = [r.slide.name for r in again if r.status != "exists"]
    assert sorted(tried) == ["cut.ome.tiff", "empty.svs", "text.svs"] and len(again) == 20
    assert said[0].startswith("scheduler at tls://127.0.0.1:")


def check(results, out):
    failed = {name: r.reason for name, r in results.items() if r.status == "failed"}
    assert len(results) == 20 and set(failed) == {"cut.ome.tiff", "empty.svs", "text.svs"}
    assert failed["empty.svs"] == "is empty" and "cannot be opened" in failed["text.svs"]
    lines = lines_of(out)
    assert len(lines) == 20 and {line["patient"] for line in lines.values()} >= {"P0", "P19"}
    for name, line in lines.items():
        assert line["status"] == results[name].status and line["reason"] == results[name].reason
        if name not in failed:
            found = read_store(out / line["store"], verify=True)
            assert len(found) == int(line["tiles"]) > 0
            assert found.facts["patient"] == line["patient"]


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_the_next_run_goes_on(slide, tiny_model, tmp_path):
    import psutil

    (tmp_path / "t.csv").write_text(f"slide\n{slide}\n")
    out = tmp_path / "out"
    command = ["cohort", "extract", tmp_path / "t.csv", "--out", out, "--model", tiny_model]
    command += ["--stride", "3", "--threads", "1"]
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    start = [sys.executable, "-c", f"{code} from tiaft_plugin.cli import main; main()"]
    process = subprocess.Popen(
        [*start, *map(str, command)],
        start_new_session=True,  # as a terminal does it: Ctrl-C goes to all of a group
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        chunk = out / "colon.ome.zarr" / "features" / "c" / "0" / "0"
        deadline = time.monotonic() + 240
        while not chunk.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        other = tiaft(*command)
        assert other.returncode == 2 and "another run is working on it" in other.stderr
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Interrupted." in errors and "Traceback" not in errors
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert lines_of(out)["colon.ome.tiff"]["status"] == "waiting"
    with pytest.raises(TiaftError, match="is incomplete"):
        read_store(out / "colon.ome.zarr")


class Dies:
    """A task that ends its worker, however often it is tried."""

    def __call__(self, number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number


@pytest.mark.slow
def test_only_the_slide_that_kills_its_workers_is_blamed():
    pytest.importorskip("distributed")
    with cluster.local_cluster(2) as client:
        tasks = [(number,) for number in range(6)]
        ends = dict(cluster.run_tasks(client, Dies(), tasks, say=lambda text: None))
    assert type(ends.pop(1)).__name__ == "KilledWorker"
    assert ends == {number: number for number in (0, 2, 3, 4, 5)}


def counted(number, path):
    """A task that notes each time it is run."""
    with path.open("a") as file:
        file.write(f"{number}\n")
    return os.getpid()


@pytest.mark.slow
def test_what_was_given_back_is_not_run_again_when_its_worker_dies(tmp_path):
    import psutil

    with cluster.local_cluster(1) as client:
        tasks = [(number, tmp_path / "runs") for number in range(3)]
        for number, pid in cluster.run_tasks(client, counted, tasks, say=lambda text: None):
            if number == 2:
                psutil.Process(pid).kill()
                tasks.append((3, tmp_path / "runs"))  # while it is run, the dead one's would be too
    assert sorted((tmp_path / "runs").read_text().split()) == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_a_worker_killed_in_a_part_loses_nothing(slide, tiny_model, tmp_path):
    import psutil

    jobs, said = [SlideJob(slide)], []
    settings = {"stride": 9, "auto_mask": False, "precision": "auto"}
    plan = Plan("features", str(tiny_model), settings, threads=1, prepare=small_chunks)
    whole, out = tmp_path / "whole", tmp_path / "parts"
    with cluster.local_cluster(2) as client:

        @contextmanager
        def workers():
            yield client

        [result] = Cohort(plan, jobs, whole).run(workers, say=said.append)
        assert result.status == "done", result.reason
        run = Cohort(replace(plan, split=500), jobs, out).run(workers, say=said.append)
        victim = psutil.Process(min(client.run(os.getpid).values()))
        killed = Thread(target=kill_while_it_writes, args=(victim, out / "colon.ome.zarr"))
        killed.start()
        [result] = run
        killed.join()
    assert result.status == "done" and "7 parts" in result.speed, result
    assert any("died: another one goes on" in text for text in said)
    assert files_of(out / "colon.ome.zarr") == files_of(whole / "colon.ome.zarr")


def kill_while_it_writes(worker, path):
    """Kill a worker once two parts are being written."""
    deadline = time.monotonic() + 240
    while len(list(path.glob("features/c/*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(path.parent.glob(".*.part-*.lock"))) == 2
    worker.kill()


# Large slides, in parts


TINY_STRIDE = {"stride": 18, "auto_mask": False, "stain": make_stain("macenko", scope="slide")}


def small_chunks():
    """Let tiny slides have many chunks, in the workers too."""
    from tiaft_plugin.engine import store

    store.CHUNK_ROWS, store.MARKS = 16, 2


@pytest.fixture
def chunks(monkeypatch):
    from tiaft_plugin.engine import store

    monkeypatch.setattr(store, "CHUNK_ROWS", 16)
    monkeypatch.setattr(store, "MARKS", 2)


def files_of(path):
    """Return all that a store holds, but for the times, which no two runs have alike."""
    files = {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}
    attributes = json.loads(files.pop("zarr.json"))
    attributes["attributes"].pop("tiaft_timing")
    return files | {"zarr.json": attributes}


@pytest.fixture
def one(slides, tmp_path):
    path = tmp_path / "one.csv"
    path.write_text(f"slide\n{slides / 's00.ome.tiff'}\n")
    return path


def test_a_slide_in_parts_has_the_bits_of_a_whole_one(one, tiny_model, tmp_path, at_once, chunks):
    made(one, tmp_path / "whole", tiny_model, engine=TINY_STRIDE)
    at_once.clear()
    out = tmp_path / "parts"
    result = made(one, out, tiny_model, engine=TINY_STRIDE, split=50)["s00.ome.tiff"]
    assert len(at_once) == 1 + 5 + 1  # 225 tiles: begun, made in parts, ended
    assert result.status == "done" and result.tiles == 225
    assert "5 parts, their times added up" in result.speed
    assert files_of(out / "s00.ome.zarr") == files_of(tmp_path / "whole" / "s00.ome.zarr")
    found = read_store(out / "s00.ome.zarr", verify=True)
    assert found.timing["tiles"] == 225 and found.facts["stain_found"]
    assert sorted(path.name for path in out.iterdir()) == [
        TABLE, "s00.ome.zarr", "summary.csv"
    ]  # fmt: skip
    at_once.clear()
    assert made(one, out, tiny_model, engine=TINY_STRIDE)["s00.ome.tiff"].status == "exists"
    assert not at_once


def test_overwriting_begins_a_slide_anew_and_not_each_of_its_parts(
    one, tiny_model, tmp_path, at_once, chunks
):
    settings = {"engine": TINY_STRIDE, "sinks": ("geojson",), "overwrite": True, "split": 50}
    for _ in range(2):
        result = made(one, tmp_path / "out", tiny_model, "predictions", **settings)["s00.ome.tiff"]
        assert result.status == "done", result.reason
        read_store(result.store, verify=True)
        assert (tmp_path / "out" / "s00.ome.geojson").exists()


def test_what_is_there_of_a_slide_is_not_made_again(
    one, tiny_model, tmp_path, at_once, chunks, monkeypatch
):
    from tiaft_plugin.engine import store

    out, written, write = tmp_path / "out", [], store.write_chunk

    def failing(group, number, *values):
        if number == 5 and 5 not in written:
            written.append(5)
            raise ValueError("a fault in one part")
        write(group, number, *values)
        written.append(number)

    monkeypatch.setattr(store, "write_chunk", failing)
    first = made(one, out, tiny_model, engine=TINY_STRIDE, split=50)["s00.ome.tiff"]
    assert first.status == "failed" and "a fault in one part" in first.reason
    with pytest.raises(TiaftError, match=r"is incomplete \(14 of 15 chunks\)"):
        read_store(out / "s00.ome.zarr")
    at_once.clear()
    written[:] = [5]
    assert made(one, out, tiny_model, engine=TINY_STRIDE, split=50)["s00.ome.tiff"].status == "done"
    assert written == [5, 5] and len(at_once) == 1  # one chunk is left: no parts of that


@pytest.mark.parametrize("chunks_of", [range(0, 4), None])
def test_a_part_and_the_whole_keep_each_other_off(tmp_path, monkeypatch, chunks_of):
    monkeypatch.setattr(parts, "_PATIENCE", 0.1)
    path, busy = tmp_path / "s*[1].zarr", "another run is working on it"
    part, other = Part(path, range(0, 4)), Part(path, range(4, 8))
    with kept_from_others(path, Part(path, chunks_of) if chunks_of else None):
        if chunks_of:
            with kept_from_others(path, other):
                pass
            with pytest.raises(TiaftError, match=busy), kept_from_others(path, None):
                pass
            with pytest.raises(TiaftError, match=busy), kept_from_others(path, part):
                pass
        else:
            with (
                kept_from_others(path, part),
                pytest.raises(TiaftError, match=busy),
                opening(path, part),
            ):
                pass
    with kept_from_others(path, None), kept_from_others(tmp_path / "s1.zarr", part):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_part_never_makes_a_store(slide, tiny_model, tmp_path):
    from tiaft_plugin.engine.run import make_engine

    engine = make_engine("features", str(tiny_model), **TINY_STRIDE)
    job = SlideJob(slide, part=Part(tmp_path / "gone.zarr", range(0, 2)))
    [result] = engine.process([job], tmp_path, overwrite=True)
    assert result.status == "failed" and "gone.zarr is not there any more" in result.reason
    assert not (tmp_path / "gone.zarr").exists()


@given(st.sets(st.integers(0, 300), min_size=1).map(sorted), st.integers(1, 9), st.integers(1, 99))
def test_parts_hold_what_is_missing_once_and_share_no_file(missing, block, most):
    parts = parts_of(missing, block=block, most=most)
    assert sum(number in part for part in parts for number in missing) == len(missing)
    assert all(any(number in part for number in missing) for part in parts)
    assert all(part.start % block == part.stop % block == 0 for part in parts)
    assert all(one.stop <= other.start for one, other in pairwise(parts))
    assert len(parts) <= -(-len(missing) // most)


# What is left to do


def test_again_only_what_failed_is_tried(slides, tiny_model, tmp_path, at_once):
    table, out = tmp_path / "t.csv", tmp_path / "out"
    names = ["empty.svs", "s03.ome.tiff", "s04.ome.tiff", "text.svs"]
    table.write_text("\n".join(["slide", *(str(slides / name) for name in names)]))
    first = made(table, out, tiny_model)
    assert at_once == ["s03.ome.tiff", "s04.ome.tiff", "text.svs", "empty.svs"]  # largest first
    assert list(lines_of(out)) == names  # as in the table
    at_once.clear()
    again = made(table, out, tiny_model)
    assert at_once == ["text.svs", "empty.svs"] and len(again) == 4
    done = lines_of(out)["s03.ome.tiff"]
    assert again["s03.ome.tiff"].status == done["status"] == "exists"
    assert float(done["seconds"]) == pytest.approx(first["s03.ome.tiff"].seconds, abs=0.06)


@pytest.fixture
def two(slides, tmp_path):
    path = tmp_path / "two.csv"
    path.write_text(f"slide\n{slides / 's00.ome.tiff'}\n{slides / 's01.ome.tiff'}\n")
    return path


def _incomplete(out):
    import zarr

    zarr.open_group(out / "s01.ome.zarr", mode="r+")["chunk_crc32"][0] = -1


def _gone(out):
    (out / "s01.ome.zarr").rename(out / "elsewhere")


@pytest.mark.parametrize("fault", [_incomplete, _gone])
def test_a_store_that_is_not_whole_is_done_again(two, tiny_model, tmp_path, at_once, fault):
    out = tmp_path / "out"
    made(two, out, tiny_model)
    fault(out)
    at_once.clear()
    again = made(two, out, tiny_model)
    assert at_once == ["s01.ome.tiff"] and again["s01.ome.tiff"].status == "done"
    read_store(out / "s01.ome.zarr", verify=True)


def test_other_settings_are_refused_slide_by_slide(two, tiny_model, tmp_path, at_once):
    out = tmp_path / "out"
    made(two, out, tiny_model, engine={"batch_size": 8})
    at_once.clear()
    assert made(two, out, tiny_model, engine={"batch_size": 4})["s00.ome.tiff"].status == "exists"
    assert at_once == []  # the size of batches decides nothing
    refused = made(two, out, tiny_model, engine={"stride": 16})
    assert len(at_once) == 2
    assert "was made with other settings (stride: 32×32 → 16×16)" in refused["s00.ome.tiff"].reason
    anew = made(two, out, tiny_model, engine={"stride": 16}, overwrite=True)
    assert {result.status for result in anew.values()} == {"done"}


def test_slides_of_one_name_have_a_store_each(slides, tiny_model, tmp_path, at_once):
    lines = []
    for folder, source in (("a", "s00"), ("b", "s01"), ("c", "s00")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.ome.tiff").write_bytes((slides / f"{source}.ome.tiff").read_bytes())
        lines.append(f"{folder}/s.ome.tiff,{folder}")
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["slide,patient", *lines]))
    for status in ("done", "exists"):
        made(path, tmp_path / "out", tiny_model)
        found = read_lines(tmp_path / "out" / TABLE).values()
        assert {line.status for line in found} == {status}
        stores = {line.patient: line.store for line in found}
        assert len(set(stores.values())) == 3
        for patient, name in stores.items():
            assert read_store(tmp_path / "out" / name).facts["patient"] == patient


def test_predictions_go_to_their_sinks_and_a_lost_file_is_made_again(
    two, tiny_model, tmp_path, at_once
):
    out = tmp_path / "out"
    made(two, out, tiny_model, "predictions", sinks=("geojson",))
    (out / "s00.ome.geojson").unlink()
    at_once.clear()
    again = made(two, out, tiny_model, "predictions", sinks=("geojson",))
    assert at_once == ["s00.ome.tiff"] and again["s00.ome.tiff"].status == "exists"
    assert (out / "s00.ome.geojson").exists()


def test_one_place_for_all_slides_is_written_by_the_run_alone(two, tiny_model, tmp_path, at_once):
    from tiaft_plugin import hookimpl
    from tiaft_plugin.plugins import plugin_manager

    class Place:
        @hookimpl
        def register_sinks(self, register):
            register("place", lambda predictions, path: written.append(path.name), target="PLACE")

    written: list[str] = []
    place = Place()
    plugin_manager().register(place, "place")
    try:
        made(two, tmp_path / "out", tiny_model, "predictions", sinks=("place=here",))
        assert written == ["here", "here"]
        made(two, tmp_path / "out", tiny_model, "predictions", sinks=("place=here",))
        assert len(at_once) == 2 and written == ["here"] * 4
    finally:
        plugin_manager().unregister(place)


def test_stains_are_the_stores_and_known_again(two, tiny_model, tmp_path, at_once):
    for tried in (2, 2, 4):
        stain = Macenko() if tried == 2 else None
        made(two, tmp_path / "out", tiny_model, engine={"stain": stain})
        assert len(at_once) == tried
    assert read_store(tmp_path / "out" / "s00.ome.zarr").facts["stain_normalisation"]


# What stops a run


def test_a_folder_is_one_runs_at_a_time(two, tiny_model, tmp_path, at_once):
    with (
        locked(tmp_path / "out" / TABLE, wait=False),
        pytest.raises(TiaftError, match="cohort.csv: another run is working on it"),
    ):
        made(two, tmp_path / "out", tiny_model)


def test_a_killed_workers_readers_may_keep_its_lock_for_a_moment(
    two, tiny_model, tmp_path, at_once, monkeypatch
):
    lock = locked(tmp_path / "out" / "s00.ome.zarr", wait=False)
    lock.__enter__()
    monkeypatch.setattr(time, "sleep", lambda seconds: lock.__exit__(None, None, None))
    assert made(two, tmp_path / "out", tiny_model)["s00.ome.tiff"].status == "done"


def test_a_full_disk_stops_everything(two, tiny_model, tmp_path, at_once, monkeypatch):
    import errno

    from tiaft_plugin.engine import store

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_chunk", full)
    with pytest.raises(Stopped, match="No space left on device"):
        made(two, tmp_path / "out", tiny_model)
    assert len(at_once) == 1
    assert {line["status"] for line in lines_of(tmp_path / "out").values()} == {"waiting"}


def test_a_worker_with_another_model_or_version_is_refused(two, tiny_model, tmp_path, at_once):
    with pytest.raises(TiaftError, match="no such model file"):
        made(two, tmp_path / "out", tmp_path / "gone.safetensors")
    plan = Plan("features", str(tiny_model), model_sha256="0" * 64, version="0.0.0")
    end = cohort_worker.work_on(plan, [], tmp_path)
    assert "has tiaft_plugin" in str(end.stop) and "not 0.0.0" in str(end.stop)
    from tiaft_plugin import __version__

    plan = Plan("features", str(tiny_model), model_sha256="0" * 64, version=__version__)
    end = cohort_worker.work_on(plan, [], tmp_path)
    assert "a worker has another" in str(end.stop) and "00000000…" in str(end.stop)


def test_each_local_worker_has_a_gpu_of_its_own(monkeypatch):
    import distributed
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, device in ((0, "cuda:0"), (3, "cuda:1"), ("slurm-7", "auto")):
        worker = SimpleNamespace(name=name)
        monkeypatch.setattr(distributed, "get_worker", lambda worker=worker: worker)
        assert cohort_worker._device("auto") == device
    assert cohort_worker._device("cpu") == "cpu"


def test_what_is_no_scheduler(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    for address in (tmp_path / "none.json", "tcp://127.0.0.1:1"):
        with (
            pytest.raises(TiaftError, match="no dask scheduler at tcp|and no scheduler file"),
            cluster.remote_cluster(str(address)),
        ):
            pass


@pytest.fixture
def scheduler():
    """A dask scheduler of somebody else's; its worker is a thread of this process."""
    distributed = pytest.importorskip("distributed")

    def start(threads):
        return distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=threads,
            processes=False,
            protocol="tcp",
            dashboard_address=None,
        )

    return start


def test_a_cohort_on_somebody_elses_cluster(two, tiny_model, tmp_path, scheduler):
    command = ["cohort", "extract", two, "--model", tiny_model, "--out", tmp_path / "out"]
    with scheduler(threads=1) as there:
        done = tiaft(*command, "--cluster", there.scheduler_address)
        assert f"scheduler at {there.scheduler_address}" in done.stdout
    assert done.returncode == 0, done.stderr
    for name in ("s00", "s01"):
        read_store(tmp_path / "out" / f"{name}.ome.zarr", verify=True)


def test_workers_that_take_several_slides_at_once_are_refused(scheduler):
    with (
        scheduler(threads=2) as there,
        pytest.raises(TiaftError, match="takes 2 slides at once: start it with --nthreads 1"),
        cluster.remote_cluster(there.scheduler_address),
    ):
        pass


def test_a_scheduler_that_goes_away(scheduler):
    there = scheduler(threads=1)
    with (
        pytest.raises(Stopped, match="the scheduler is gone"),
        cluster.remote_cluster(there.scheduler_address) as client,
    ):
        ends = cluster.run_tasks(client, time.sleep, [(0,), (3,)], say=print)
        assert next(ends) == (0, None)
        there.scheduler.loop.add_callback(there.scheduler.close)
        next(ends)


# Tables


def test_a_table_with_everything(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "\ufeff slide ,patient,mask,mpp,site\na.svs,P1,m/a.png,0.25,x\n/b.svs,P2,,,y\n", "utf-8"
    )
    assert read_cohort(path) == [
        CohortRow(tmp_path / "a.svs", "P1", tmp_path / "m" / "a.png", 0.25),
        CohortRow(Path("/b.svs"), "P2"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a column slide expected, not one with nothing"),
        ("slide;patient\na;b\n", "not one with slide;patient"),
        ("slide\n", "lists no slide"),
        ("slide,patient\na.svs,\n", "line 2: a.svs has no patient"),
        ("slide,patient\na.svs,P\n,Q\n", "line 3 names no slide"),
        ("slide,mpp\na.svs,0\n", "line 2: mpp '0' is no number of µm/px"),
        ("slide,mpp\na.svs,nan\n", "mpp 'nan' is no number"),
        ("slide,mpp\na.svs,x\n", "mpp 'x' is no number"),
        ("slide,mpp\na.svs,1\na.svs,2\n", "a.svs stands there twice, differently"),
        ("slide,slide\na,b\n", "two columns of one name"),
    ],
)
def test_tables_that_no_run_could_use(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(TiaftError, match=message):
        read_cohort(path)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
def test_whatever_is_given_as_a_table(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "wild.csv"
    for start in (b"", b"slide,mpp\n"):
        path.write_bytes(start + content)
        try:
            assert read_cohort(path)
        except TiaftError as error:
            assert str(path) in str(error)
        if content:
            with pytest.raises(TiaftError, match="no cohort table of tiaft's"):
                read_lines(path)


wild = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"))


@given(st.lists(st.builds(CohortLine, wild, wild, wild, reason=wild), unique_by=lambda x: x.slide))
def test_what_is_written_of_slides_is_read_again(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "lines.csv"
    write_lines(path, lines)
    assert list(read_lines(path).values()) == lines


# The command


def test_the_command_reports_and_fails_with_1(slides, tiny_model, tmp_path, at_once, monkeypatch):
    monkeypatch.setattr(cluster, "local_cluster", lambda workers: inline())
    table = tmp_path / "t.csv"
    table.write_text(f"slide\n{slides / 's00.ome.tiff'}\n{slides / 'empty.svs'}\nnowhere.svs\n")
    command = ["cohort", "extract", table, "--model", tiny_model, "--out", tmp_path / "out"]
    done = tiaft(*command)
    assert done.returncode == 1, done.stderr
    assert "scheduler at here" in done.stdout and "s00.ome.tiff: 64 tiles -> " in done.stdout
    assert f"FAILED {slides / 'empty.svs'}: is empty" in done.stderr
    assert f"FAILED {tmp_path / 'nowhere.svs'}: no such file" in done.stderr
    assert "1 slides done, 0 were there already, 2 failed" in done.stdout
    table.write_text(f"slide\n{slides / 's00.ome.tiff'}\n")
    done = tiaft(*command)
    assert done.returncode == 0 and "scheduler" not in done.stdout
    assert list(lines_of(tmp_path / "out")) == ["s00.ome.tiff"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--workers", 2, "--cluster", "tcp://x:1"), "--workers and --cluster exclude each other"),
        (("--mask-class", "Tumor"), "--mask-class needs masks in the table"),
        (("--slides", "x"), "No such option"),
    ],
)
def test_wrong_usage(tiny_model, tmp_path, more, message):
    (tmp_path / "t.csv").write_text("slide\na.svs\n")
    command = ["cohort", "extract", tmp_path / "t.csv", "--model", tiny_model]
    done = tiaft(*command, "--out", tmp_path / "out", *more)
    assert done.returncode == 2 and message in done.stderr


def test_a_run_does_not_write_over_its_table(tiny_model, tmp_path):
    (tmp_path / TABLE).write_text("slide\na.svs\n")
    command = ["cohort", "predict", tmp_path / TABLE, "--model", tiny_model, "--out", tmp_path]
    done = tiaft(*command)
    assert done.returncode == 2 and "is what this run writes" in done.stderr
