"""What a fine-tuning trains on and what it holds out; that no bad input gets as far as training."""

import csv
import inspect
import os
import re
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import tiaft
from PIL import Image

from tiaft_plugin import TiaftError, hookimpl
from tiaft_plugin.cli.finetune import finetune as command
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult
from tiaft_plugin.finetune.recipes import RECIPES
from tiaft_plugin.finetune.run import finetune_tiles
from tiaft_plugin.finetune.sets import read_tiles
from tiaft_plugin.plugins import plugin_manager

pytestmark = pytest.mark.usefixtures("no_figures")

SIZE = 12  # px


def make_set(root: Path, groups=("p1", "p2", "p3", "p4", "p5"), each: int = 2, labels="AB") -> Path:
    """Write `each` tiles of every label and group, with a manifest; all of them differ."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(list(root.name.encode()))
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "label", "group"))
        for group in groups:
            for label in labels:
                for number in range(each):
                    name = f"{group}-{label}{number}.png".replace(";", "+")
                    save(root / name, rng)
                    writer.writerow((name, label, group))
    return root


def make_folders(root: Path, classes="AB", each: int = 4) -> Path:
    rng = np.random.default_rng(list(root.name.encode()))
    for name in classes:
        for number in range(each):
            save(root / name / f"{number}.png", rng)
    return root


def save(path: Path, rng: np.random.Generator, size: int = SIZE, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def seen():
    """A finetuner, ``looking``, that only keeps the job it gets."""

    class Looking:
        inputs, targets, job = {"tiles"}, {"classes", "multilabel"}, None

        def __call__(self, job):
            self.job = job
            return FinetuneResult(job.out, job.out, job.out)

        @hookimpl
        def register_finetuners(self, register):
            register("looking", self)

    looking = Looking()
    plugin_manager().register(looking)
    yield looking
    plugin_manager().unregister(looking)


def sizes(chosen) -> dict[str, int]:
    return {name: len(tiles) for name, tiles in chosen.named().items()}


def test_a_fifth_is_held_out_by_slide_where_nothing_says_what(tmp_path):
    chosen = read_tiles(make_set(tmp_path / "set"))
    assert sizes(chosen) == {"train": 16, "val": 4}
    assert len(chosen.val.group_names) == 1
    assert not set(chosen.val.groups) & set(chosen.train.groups)
    assert chosen.notes == ()
    assert chosen.lines == (
        "val: 4 of 20 tiles are held out of training (--val-share 0 trains on all)",
        "2 classes; train 16 tiles of 4 slides or patients, val 4 tiles of 1 slide or patient",
    )
    assert sizes(read_tiles(tmp_path / "set", val_share=0.4)) == {"train": 12, "val": 8}
    everything = read_tiles(tmp_path / "set", val_share=0)
    assert sizes(everything) == {"train": 20}
    assert everything.lines == ("2 classes; train 20 tiles of 5 slides or patients",)


def test_where_slides_are_not_known_the_leak_is_told(tmp_path):
    chosen = read_tiles(make_folders(tmp_path / "set", each=10))
    assert sizes(chosen) == {"train": 16, "val": 4}
    [note] = chosen.notes
    assert "tiles of one slide or patient stand on both sides, and held-out accuracy is too" in note


def test_a_test_set_leaves_the_rest_to_train_unless_val_is_needed(tmp_path):
    path, other = make_set(tmp_path / "set"), make_set(tmp_path / "other", groups=("q",))
    assert sizes(read_tiles(path, test=other)) == {"train": 20, "test": 4}
    assert sizes(read_tiles(path, test_groups=("p2",))) == {"train": 16, "test": 4}
    assert sizes(read_tiles(path, test=other, val_share=0.2)) == {"train": 16, "val": 4, "test": 4}
    both = read_tiles(path, test_groups=("p2",), needs_val=True)
    assert sizes(both) == {"train": 12, "val": 4, "test": 4}
    assert both.test.group_names == ["p2"]
    three = read_tiles(path, val=other, test_groups=("p1", "p5"), needs_val=True)
    assert sizes(three) == {"train": 12, "val": 4, "test": 8}
    assert three.val.root == other


def test_the_split_is_the_seeds_alone(tmp_path):
    path = make_folders(tmp_path / "set", each=20)
    first, again = read_tiles(path, seed=1), read_tiles(path, seed=1)
    assert first.val.files == again.val.files
    assert first.val.files != read_tiles(path, seed=2).val.files


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"val": "other", "val_groups": ("p1",)}, "either another tile set or groups of this one"),
        ({"test": "other", "test_groups": ("p1",)}, "either another tile set or groups of this"),
        ({"val_groups": ("p1", "p2"), "test_groups": ("p2",)}, "p2: in --val-groups and in --test"),
        ({"val_groups": ("p1",), "val_share": 0.2}, "say what is held out: leave --val-share out"),
        ({"val_share": 1}, "val_share is 1: from 0 to less than 1"),
        ({"val_share": -0.1}, "val_share is -0.1: from 0 to less than 1"),
        ({"val_groups": ("p9",)}, "has no group p9; its groups are p1, p2, p3, p4, p5"),
        ({"val": "same"}, r"both sides of the split \(train and val\): p1: take them out of one"),
        ({"test": "same"}, r"both sides of the split \(train and test\): p1: take them out"),
        ({"val": "other", "test": "other"}, r"both sides of the split \(val and test\): q: take"),
        ({"val": "more"}, r"more has classes that the training tiles lack: C \(training has A, B"),
        ({"test": "more"}, "more has classes that the training tiles lack: C"),
    ],
)
def test_sets_that_do_not_fit_are_refused(tmp_path, how, message):
    make_set(tmp_path / "set")
    make_set(tmp_path / "other", groups=("q",))
    make_set(tmp_path / "same", groups=("p1", "q"))
    make_set(tmp_path / "more", groups=("q",), labels="ABC")
    given = {k: tmp_path / v if k in ("val", "test") else v for k, v in how.items()}
    with pytest.raises(TiaftError, match=message) as error:
        read_tiles(tmp_path / "set", **given)
    assert "\n" not in str(error.value)


def test_nct_crc_he_trains_on_the_one_folder_and_tests_on_the_other(tmp_path):
    make_folders(tmp_path / "NCT-CRC-HE-100K", each=10)
    alone = read_tiles(tmp_path)
    assert sizes(alone) == {"train": 16, "val": 4}
    test = make_folders(tmp_path / "CRC-VAL-HE-7K")
    chosen = read_tiles(tmp_path)
    assert sizes(chosen) == {"train": 20, "test": 8}
    assert chosen.train.root == tmp_path / "NCT-CRC-HE-100K"
    assert chosen.lines[0] == (f"{tmp_path}: training on NCT-CRC-HE-100K, testing on CRC-VAL-HE-7K")
    assert sizes(read_tiles(tmp_path, needs_val=True)) == {"train": 16, "val": 4, "test": 8}
    assert sizes(read_tiles(tmp_path, val=test)) == {"train": 20, "val": 8}  # not both at once
    other = make_folders(tmp_path / "other", each=2)
    assert read_tiles(tmp_path, test=other).test.root == other
    make_folders(tmp_path / "NCT-CRC-HE-100K-NONORM")
    with pytest.raises(TiaftError, match="give one of them to train on, and --test .*CRC-VAL-HE-7"):
        read_tiles(tmp_path)
    assert sizes(read_tiles(tmp_path / "NCT-CRC-HE-100K-NONORM", val_share=0)) == {"train": 8}


def test_the_real_sets_stand_in_nct_crc_hes_layout(data, tmp_path):
    (tmp_path / "NCT-CRC-HE-100K").symlink_to(data / "nct_crc_he")
    chosen = read_tiles(tmp_path, val_share=0.2)
    assert sizes(chosen) in ({"train": 79, "val": 20}, {"train": 80, "val": 19})
    assert chosen.train.mpp == 0.5
    (tmp_path / "CRC-VAL-HE-7K").symlink_to(data / "crc_val_he_7k")
    with pytest.raises(TiaftError, match="classes that the training tiles lack: ADI, DEB, LYM"):
        read_tiles(tmp_path)


def test_several_labels_a_tile_are_split_and_carried_on(tmp_path, seen):
    groups = ("p1", "p2", "p3", "p4", "p5")
    path = make_set(tmp_path / "set", groups, labels=("A", "A;B", "C"))
    other = make_set(tmp_path / "other", ("q",), labels=("C", "B;A"))
    chosen = read_tiles(path, val=other, multilabel=True)
    assert chosen.train.classes == chosen.val.classes == ("A", "B", "C")
    assert chosen.val.labels == ("C", "C", "A;B", "A;B")
    assert chosen.lines[-1].startswith("3 labels; train 30 tiles")
    finetune_tiles(path, multilabel=True, finetuner="looking", out=tmp_path / "run")
    assert seen.job.targets == "multilabel"
    assert (len(seen.job.train), len(seen.job.val)) == (24, 6)
    assert seen.job.train.multilabel


def test_recipes_that_choose_an_epoch_get_tiles_to_choose_by(tmp_path, seen):
    path, test = make_set(tmp_path / "set"), make_set(tmp_path / "test", groups=("q",))
    for how, val in (
        ({}, False),
        ({"recipe": "graziani"}, False),
        ({"recipe": "peng"}, True),
        ({"keep": "best"}, True),
        ({"options": {"schedule": "plateau"}}, True),
        ({"recipe": "peng", "keep": "last", "options": {"schedule": "constant"}}, False),
    ):
        finetune_tiles(path, test=test, finetuner="looking", out=tmp_path / "run", **how)
        assert (seen.job.val is not None) == val, how


def test_the_run_is_told_before_it_begins(tmp_path, seen):
    path, said = make_set(tmp_path / "set"), []
    with pytest.raises(TiaftError, match="recipe ftx2048 has 2 stages"):
        finetune_tiles(path, out=tmp_path / "run", epochs=(1,), say=said.append)
    assert said == []
    with pytest.raises(TiaftError, match="no device warp"):
        finetune_tiles(path, out=tmp_path / "run", device="warp", epochs=(3, 1), say=said.append)
    assert said[0] == (
        "recipe ftx2048: stage 1 trains Part B for 3 epochs, stage 2 trains Part A for 1 epoch"
    )
    assert said[-1].startswith("2 classes; train 16 tiles of 4 slides")
    finetune_tiles(path, finetuner="looking", out=tmp_path / "run", say=said.append)
    assert "finetuner looking" in said


def test_what_leaks_reaches_the_job(tmp_path, seen):
    path = make_folders(tmp_path / "set", each=10)
    finetune_tiles(path, finetuner="looking", out=tmp_path / "run")
    assert len(seen.job.notes) == 1
    assert "no tile has a group" in seen.job.notes[0]


# --- the command line


def test_every_field_of_a_job_is_an_option():
    options = {option.name for option in command.params}
    of_the_sets = {"train", "inputs", "targets", "notes"}
    assert {field.name for field in fields(FinetuneJob)} - options == of_the_sets
    reading = {"val", "val_groups", "val_share", "test", "test_groups", "multilabel"}
    assert reading | {"finetuner", "register"} == (
        set(inspect.signature(finetune_tiles).parameters) - {"path", "say", "job"}
    )
    # --truncate is a way to write --backbone
    assert reading | {"finetuner", "register", "tiles", "truncate"} == (
        options - {field.name for field in fields(FinetuneJob)} | {"val", "test"}
    )


def test_what_is_not_given_is_the_jobs_own_default(tmp_path, seen):
    """So that the command and a script do the same."""
    path = make_set(tmp_path / "set")
    done = tiaft("finetune", path, "--out", tmp_path / "run", "--finetuner", "looking")
    assert done.returncode == 0, done.stderr
    by_command = seen.job
    finetune_tiles(path, out=tmp_path / "run", finetuner="looking")
    assert by_command == seen.job


def test_options_reach_the_job(tmp_path, seen):
    path = make_set(tmp_path / "set")
    options = (
        *("--recipe", "peng", "--epochs", "3", "--lr", "1e-2", "--augment", "flips,hed"),
        *("--balance", "sampling", "--keep", "best", "--stain", "macenko", "--precision"),
        *("bfloat16", "--activation-checkpointing", "on", "--checkpoint-minutes", "0.5"),
        *("--checkpoint-steps", "7", "--resume-anyway", "--cache", tmp_path / "cache"),
        *("--devices", "2", "--nodes", "3", "--test-groups", "p1", "--val-groups", "p2,p3"),
    )
    done = tiaft("finetune", path, "--out", tmp_path / "run", "--finetuner", "looking", *options)
    assert done.returncode == 0, done.stderr
    job = seen.job
    assert (job.recipe, job.epochs, job.lrs, job.augment) == (
        "peng",
        (3,),
        (1e-2,),
        ("flips", "hed"),
    )
    assert (job.balance, job.keep, job.stain) == ("sampling", "best", "macenko")
    assert (job.precision, job.activation_checkpointing) == ("bfloat16", "on")
    assert (job.checkpoint_minutes, job.checkpoint_steps, job.resume_anyway) == (0.5, 7, True)
    assert (job.cache, job.devices, job.nodes) == (tmp_path / "cache", 2, 3)
    assert (job.test.group_names, job.val.group_names) == (["p1"], ["p2", "p3"])
    assert "val 8 tiles of 2 slides or patients, test 4 tiles of 1 slide" in done.stderr
    done = tiaft(
        "finetune", path, "--out", tmp_path / "run", "--finetuner", "looking", "--augment", "none"
    )
    assert done.returncode == 0, done.stderr
    assert seen.job.augment == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "2,1.5"), "'2,1.5' is not whole numbers, one for each stage"),
        (("--val-share", "1"), "0<=x<1"),
        (("--val-share", "nan"), "no number to work with"),
        (("--keep", "first"), "'first' is not one of 'last', 'best'"),
        (("--devices", "0"), "x>=1"),
        (("--checkpoint-minutes", "0"), "x>0"),
        (("--epochs", "20"), "epochs 20: recipe ftx2048 has 2 stages: give 2 numbers"),
        (("--recipe", "ftx"), "there is no recipe ftx: there is ftx2048, graziani, peng"),
        (("--augment", "flip"), "no augmentation flip: there is brightness, "),
        (("--recipe", "peng", "--val-share", "0"), "recipe peng watches validation tiles"),
    ],
)
def test_wrong_options_end_in_one_line_and_nothing_written(tmp_path, options, message):
    path = make_set(tmp_path / "set")
    done = tiaft("finetune", path, "--out", tmp_path / "run", "--init", "random", *options)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_the_help_names_every_recipe_and_has_headings():
    shown = tiaft("finetune", "--help").stdout
    assert all(name in shown for name in RECIPES)
    for heading in ("Data:", "Network:", "Training:", "Computer:", "Results:"):
        assert f"\n{heading}\n" in shown
    assert all(option.opts[0] in shown for option in command.params if option.name != "tiles")


# --- bad inputs: each is one line, before anything is trained or written


def spoil_tile(root: Path) -> None:
    file = root / "A" / "1.png"
    file.write_bytes(file.read_bytes()[:300])  # the header is whole


def leave_one_tile(root: Path) -> None:
    for number in (1, 2, 3):
        (root / "B" / f"{number}.png").unlink()


def add_lower_case(root: Path) -> None:
    rows = ["file,label"]
    for number, label in enumerate(("Tumor", "Tumor", "tumor", "tumor")):
        rows.append(f"{'AB'[number // 2]}/{number}.png,{label}")
    (root / "manifest.csv").write_text("\n".join(rows))


def add_grey(root: Path) -> None:
    save(root / "B" / "grey.png", np.random.default_rng(0), mode="L")


def add_large(root: Path) -> None:
    save(root / "B" / "large.png", np.random.default_rng(0), size=SIZE + 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_tile, r"1 of 8 tiles cannot be decoded: A/1.png \(.+\): copy them again, or remove"),
        (leave_one_tile, r"classes with fewer than two tiles to train on: B \(1\): add tiles, or"),
        (add_lower_case, "classes differ only in case: Tumor and tumor: give them one name"),
        (add_grey, r"1 of 9 tiles cannot be used: B/grey.png \(grey, not RGB\): repair or remove"),
        (add_large, r"tiles cannot be used: B/large.png \(14×14 px, most are 12×12\): repair or"),
    ],
)
def test_bad_tiles_are_named_before_training(tmp_path, spoil, message):
    path = make_folders(tmp_path / "set")
    spoil(path)
    done = run_tiny(path, tmp_path / "run", "--val-share", "0")
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr.splitlines()[-1])
    assert not (tmp_path / "run" / "model.safetensors").exists()


def run_tiny(path: Path, out: Path, *options: object):
    network = ("--backbone", "test_efficientnet", "--init", "random", "--hidden", "4")
    with warnings.catch_warnings():  # the command changes how they are shown
        warnings.simplefilter("always")
        return tiaft(
            *("finetune", path, "--out", out, *network, "--tile-size", 32, "--mpp", 1),
            *("--epochs", "1,0", "--batch-size", 4, "--device", "cpu", *options),
        )


def test_what_is_doubtful_about_held_out_tiles_is_said_and_reported(tmp_path):
    """A class that val lacks, and a test tile that was trained on."""
    path = make_set(tmp_path / "set", groups=("p1", "p2"), labels="ABC")
    val = make_set(tmp_path / "val", groups=("q",), labels="AB")
    test = make_set(tmp_path / "test", groups=("r",), labels="ABC")
    (test / "r-A0.png").write_bytes((path / "p1-A0.png").read_bytes())
    done = run_tiny(path, tmp_path / "run", "--val", val, "--test", test)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for text in (
        "no held-out tile is of class C: nothing is known of it",
        "1 of 6 test tiles are training tiles, too (same bytes)",
    ):
        assert done.stderr.count(f"Warning: {text}\n") == 1
        assert text in report


def test_a_share_held_out_by_tile_is_said_and_reported(tmp_path):
    path = make_folders(tmp_path / "set", each=6)
    done = run_tiny(path, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "val: 2 of 12 tiles are held out of training" in done.stderr
    told = "no tile has a group (slide or patient), so they were held out one by one"
    assert f"Warning: {told}" in done.stderr
    assert told in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_among_the_tiles_is_named_and_not_waited_for(tmp_path):
    root = make_folders(tmp_path / "tiles")
    os.mkfifo(root / "A" / "pipe.png")
    with pytest.raises(TiaftError, match=r"1 of 9 tiles cannot be used: A/pipe.png \(not a file\)"):
        read_tiles(root)
