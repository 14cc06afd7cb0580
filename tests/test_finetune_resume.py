"""Interrupted anywhere, a fine-tuning goes on and ends where it would have ended."""

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from processes import Process
from test_finetune import BACKBONE, job_on, make_tiles, rows_of

from tiaft_plugin import TiaftError, hookimpl
from tiaft_plugin.errors import Stopped
from tiaft_plugin.finetune import checkpoint, stage
from tiaft_plugin.finetune.stages import run_stages
from tiaft_plugin.plugins import plugin_manager
from tiaft_plugin.tiles.tileset import read_tileset

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    train, val = make_tiles(root / "train", 9), make_tiles(root / "val", 3, seed=1)
    return read_tileset(train, mpp=0.5), read_tileset(val, mpp=0.5)


@pytest.fixture
def job(sets, tmp_path):
    """Two epochs a stage, five steps each, a checkpoint after every step, dropout in Part A."""
    dropping = {"drop_rate": 0.3, "drop_path_rate": 0.3}
    return replace(
        job_on(sets, tmp_path / "run"),
        checkpoint_steps=1,
        backbone_args=dropping,
        balance="weights",
    )


def weights_of(result) -> list[bytes]:
    return [result.model.read_bytes(), result.stage1.read_bytes()]


class PulledPlug(BaseException):
    """Nobody catches it, as nobody catches a power cut."""


def interrupt_after(monkeypatch, steps: int):
    """Pull the plug in the middle of a training step, before its checkpoint."""
    made = stage._Loop._step

    def step(self, *arguments):
        nonlocal steps
        made(self, *arguments)
        steps -= 1
        if steps < 0:
            raise PulledPlug

    monkeypatch.setattr(stage._Loop, "_step", step)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_interrupted_after_any_step_it_ends_with_the_same_bits(job, monkeypatch, tmp_path, keep):
    job = replace(job, keep=keep)
    undisturbed = run_stages(replace(job, out=tmp_path / "undisturbed"))
    for steps in (0, 2, 4, 3, 1, 3):
        with monkeypatch.context() as patch, pytest.raises(PulledPlug):
            interrupt_after(patch, steps)
            run_stages(job)
    result = run_stages(job)
    assert weights_of(result) == weights_of(undisturbed)
    rows, expected = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(run.metrics)]
        for run in (result, undisturbed)
    )
    assert rows == expected
    assert result.last == undisturbed.last
    assert not (job.out / ".unfinished").exists()


def test_a_finished_stage_is_not_done_again(job, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(PulledPlug):
        interrupt_after(patch, 10)
        run_stages(job)
    begun = []

    class Watching:
        @hookimpl
        def stage_started(self, stage):
            begun.append(stage)

    plugin_manager().register(Watching(), "watching")
    try:
        run_stages(job)
    finally:
        plugin_manager().unregister(name="watching")
    assert begun == [2]


def test_part_a_is_computed_once_and_goes_on_inside(job, monkeypatch, sets):
    from tiaft_plugin.finetune import pooled

    monkeypatch.setattr(pooled, "_FLUSH_SECONDS", 0.0)
    seen = []
    made = pooled._outputs

    def outputs(net, batches, device, most=2):
        for number, found in enumerate(made(net, batches, device)):
            if len(seen) >= most:
                raise PulledPlug
            seen.append(number)
            yield found

    with monkeypatch.context() as patch, pytest.raises(PulledPlug):
        patch.setattr(pooled, "_outputs", outputs)
        run_stages(job)
    seen.clear()
    monkeypatch.setattr(pooled, "_outputs", lambda *all: outputs(*all, most=99))
    result = run_stages(replace(job, cache=None))
    assert len(seen) == (5 - 2) + 2  # batches of training tiles, and of validation tiles
    undisturbed = run_stages(replace(job, out=job.out.parent / "undisturbed"))
    assert weights_of(result) == weights_of(undisturbed)


def test_part_as_outputs_are_shared_by_runs_and_known_by_weights_and_tiles(job, tmp_path):
    def run(name, **changes):
        run_stages(replace(job, out=tmp_path / name, cache=tmp_path / "cache", **changes))
        return len(list((tmp_path / "cache").glob("*.f32")))

    assert run("a") == 2  # training and validation tiles
    assert run("b", lrs=(1e-3, 1e-3)) == 2
    assert run("c", seed=3) == 4  # random weights
    assert run("d", mean=(0.1, 0.1, 0.1)) == 6


@pytest.mark.parametrize("damage", ["flip", "cut", "journal"])
def test_damaged_outputs_of_part_a_are_computed_again(job, tmp_path, damage):
    job = replace(job, cache=tmp_path / "cache")
    expected = weights_of(run_stages(job))
    for rows in job.cache.glob("*.f32"):
        content = bytearray(rows.read_bytes())
        content[50] ^= 1
        if damage == "flip":
            rows.write_bytes(content)
        elif damage == "cut":
            rows.write_bytes(content[:-8])
        else:
            rows.with_suffix(".json").write_text('{"rows": 3')
    assert weights_of(run_stages(replace(job, out=tmp_path / "again"))) == expected


def interrupted(job, monkeypatch, steps=7):
    with monkeypatch.context() as patch, pytest.raises(PulledPlug):
        interrupt_after(patch, steps)
        run_stages(job)


def test_other_settings_are_refused_or_begin_anew(job, monkeypatch, tmp_path):
    interrupted(job, monkeypatch)
    other = replace(job, seed=1)
    with pytest.raises(
        TiaftError, match="holds an unfinished run with other settings: seed 1, was"
    ):
        run_stages(other)
    with pytest.raises(TiaftError, match="--overwrite to begin anew"):
        run_stages(replace(job, batch_size=6))
    with pytest.raises(TiaftError, match="stage 2's lr 0.5, was"):
        run_stages(replace(job, lrs=(job.lrs[0], 0.5)))
    result = run_stages(replace(other, overwrite=True))
    undisturbed = run_stages(replace(other, out=tmp_path / "undisturbed"))
    assert weights_of(result) == weights_of(undisturbed)


@pytest.mark.parametrize("text", ["", "[]", '{"settings": "x", "environment": 3}'])
def test_unreadable_settings_are_refused(job, monkeypatch, text):
    interrupted(job, monkeypatch)
    (job.out / ".unfinished" / "settings.json").write_text(text)
    with pytest.raises(TiaftError, match="settings cannot be read: .*--overwrite to begin anew"):
        run_stages(job)


def test_changed_tiles_are_refused(job, monkeypatch, tmp_path):
    train = read_tileset(make_tiles(tmp_path / "train", 9), mpp=0.5)
    job = replace(job, train=train)
    interrupted(job, monkeypatch)
    train.files[0].write_bytes(train.files[1].read_bytes())
    with pytest.raises(TiaftError, match="other settings: training tiles "):
        run_stages(job)


def test_workers_and_checkpoints_may_change(job, monkeypatch, tmp_path):
    undisturbed = run_stages(replace(job, out=tmp_path / "undisturbed"))
    interrupted(job, monkeypatch)
    result = run_stages(replace(job, workers=1, checkpoint_steps=None, overwrite=True))
    assert weights_of(result) == weights_of(undisturbed)


def test_another_machine_is_refused_or_warned_of(job, monkeypatch):
    interrupted(job, monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        message = rf"begun elsewhere: threads {threads + 1}, was {threads}: .*--resume-anyway"
        with pytest.raises(TiaftError, match=message):
            run_stages(job)
        with pytest.warns(UserWarning, match="this run was begun elsewhere"):
            result = run_stages(replace(job, resume_anyway=True))
    finally:
        torch.set_num_threads(threads)
    assert any("begun elsewhere" in text for text in result.warnings)


def test_a_damaged_checkpoint_is_named(job, monkeypatch):
    interrupted(job, monkeypatch)
    file = job.out / ".unfinished" / "stage1-progress.pt"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:-100], flipped):
        file.write_bytes(damaged)
        message = r"stage1-progress.pt cannot be read .*: remove it to repeat"
        with pytest.raises(TiaftError, match=message):
            run_stages(job)
    file.unlink()
    run_stages(job)


def test_a_run_killed_while_it_writes_its_results_writes_them_again(job, monkeypatch, tmp_path):
    from tiaft_plugin.finetune import outputs

    undisturbed = run_stages(replace(job, out=tmp_path / "undisturbed"))
    save = outputs.save_model

    def pull(net, path, **options):
        if path.name == "model.safetensors":
            raise PulledPlug
        return save(net, path, **options)

    with monkeypatch.context() as patch, pytest.raises(PulledPlug):
        patch.setattr(outputs, "save_model", pull)
        run_stages(job)
    assert (job.out / "stage1.safetensors").exists()
    assert weights_of(run_stages(job)) == weights_of(undisturbed)


def test_two_runs_in_one_folder_are_refused(job):
    class Intruding:
        @hookimpl
        def stage_started(self):
            with pytest.raises(TiaftError, match="another run is working on it"):
                run_stages(job)

    plugin_manager().register(Intruding(), "intruding")
    try:
        run_stages(job)
    finally:
        plugin_manager().unregister(name="intruding")


def test_a_checkpoint_holds_nothing_that_runs(tmp_path):
    torch.save({"weights": os.system}, tmp_path / "evil.pt")
    with pytest.raises(TiaftError, match=r"evil.pt cannot be read"):
        checkpoint.load(tmp_path / "evil.pt")


def test_a_full_disk_stops_a_run_which_then_goes_on(job, monkeypatch, tmp_path):
    """The limit of a process on the size of files is as real as a disk's."""
    import resource

    undisturbed = run_stages(replace(job, out=tmp_path / "undisturbed"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(Stopped, match=r"stage\d.*\.pt cannot be written .*is the disk full\?"):
            run_stages(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert weights_of(run_stages(job)) == weights_of(undisturbed)


def started(folder: Path, out: str) -> Process:
    """Start the command line in a process of its own."""
    return Process(
        "from tiaft_plugin.cli import main; main()", "finetune", folder / "train", "--val",
        folder / "val", "--mpp", 0.5, "--out", folder / out, "--backbone", BACKBONE, "--init",
        "random", "--hidden", 8, "--epochs", "60,12", "--batch-size", 4, "--device", "cpu",
        "--checkpoint-steps", 2, out=folder,
    )  # fmt: skip


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_bits(tmp_path):
    """SIGKILL at random moments, start-up and both stages included."""
    make_tiles(tmp_path / "train", 12)
    make_tiles(tmp_path / "val", 3, seed=1)
    processes.run("")  # the server's own start is not a run's
    begun = time.monotonic()
    assert started(tmp_path, "undisturbed").wait() == 0
    whole = time.monotonic() - begun
    rng, killed, met, begun_anew, out = random.Random(4), 0, 0, 0, tmp_path / "killed"
    while killed < 10:
        process = started(tmp_path, out.name)
        code = process.wait(timeout=whole * rng.uniform(0.3, 0.9))
        if code is None:
            process.kill()
            killed += 1
            met += any((out / ".unfinished").glob("*.pt"))
        assert code in (None, 0)
        written = (out / "model.safetensors").exists()
        if written and not (out / ".unfinished" / "writing").exists():  # all is done
            if met:
                break
            begun_anew += 1  # before a kill met it: another run is begun
            out = tmp_path / f"killed-{begun_anew}"
    else:
        assert started(tmp_path, out.name).wait() == 0
    assert met, "no kill met the training"
    for name in ("model.safetensors", "stage1.safetensors"):
        one, other = ((folder / name).read_bytes() for folder in (out, tmp_path / "undisturbed"))
        assert one == other


def test_settings_are_kept_as_text_that_people_can_read(job, monkeypatch):
    interrupted(job, monkeypatch)
    found = json.loads((job.out / ".unfinished" / "settings.json").read_text())
    assert found["settings"]["seed"] == 0
    assert found["environment"]["threads"] == torch.get_num_threads()
    assert np.isclose(found["settings"]["stages"][0]["lr"], 1e-2)


def test_a_disk_without_room_is_refused_before_training(job, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**5, 10**5))
    with pytest.raises(
        TiaftError, match=r"run needs .* GiB, and 9.3e-05 are free there: make room"
    ):
        run_stages(job)
    assert not job.out.exists()
