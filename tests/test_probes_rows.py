"""Probes whose rows are no rows of numbers: they read them, and leave what they keep."""

import hashlib

import numpy as np
import pytest

from tiaft_plugin import plugins
from tiaft_plugin.probes.interface import FeatureTable, Targets
from tiaft_plugin.probes.reading import read_inputs
from tiaft_plugin.probes.run import run_probe

ROWS = 40


class Lines:
    """Rows that are lists of words."""

    def __init__(self, lines):
        self.lines = lines
        self.sha256 = hashlib.sha256(repr(lines).encode()).hexdigest()

    def __len__(self):
        return len(self.lines)

    def __getitem__(self, rows):
        return Lines([self.lines[row] for row in np.arange(len(self))[rows]])


class Words:
    """Tells lines with the word that all training lines of class b have."""

    kind, unit, settings = "classes", "patient", {}
    defaults = {"repeats": 2}  # noqa: RUF012

    def read(self, features, labels, patients):
        keys = np.array([f"{number:02d}" for number in range(ROWS)])
        classes = np.where(np.arange(ROWS) % 2, "b", "a")
        lines = [["yes"] if name == "b" else ["no", "no"] for name in classes]
        tables = [FeatureTable(name, keys, Lines(lines), unit="slide") for name in features]
        return tables, Targets("classes", keys, classes, ("a", "b"))

    def fit(self, features, targets, groups, seed):
        known = set(features[targets == "b"].lines[0])
        return lambda rows: np.array([[0.5, float(set(line) <= known)] for line in rows.lines])

    def leave(self, folder, experiment, problem, seed):
        (folder / "left").mkdir(exist_ok=True)
        (folder / "left" / "note.txt").write_text(f"{len(experiment.keys)} {seed}")


@pytest.fixture(autouse=True)
def words(monkeypatch):
    manager = plugins.Manager()
    manager.add_hookspecs(plugins.hookspecs)
    monkeypatch.setattr(plugins, "plugin_manager", lambda: manager)
    monkeypatch.setattr("tiaft_plugin.probes.run.plugin_manager", lambda: manager)
    manager.sources["mine"] = "built in"

    class Mine:
        @plugins.hookspecs.hookimpl
        def register_probes(self, register):
            register("words", Words())

    manager.register(Mine(), "mine")


def run(out, **options):
    tables, targets = read_inputs(Words(), ["one=x", "other=y"])
    how = {"repeats": 1, "permutations": 99, "draws": 100, "verbose": False, **options}
    return run_probe("words", tables, targets, out, **how)


def test_rows_of_any_kind_go_through_the_protocol(tmp_path):
    found = run(tmp_path / "out").summary
    assert {row["value"] for row in found["scores"] if row["metric"] == "accuracy"} == {1.0}
    permuted = [row for row in found["baselines"] if row["baseline"] == "labels permuted"]
    assert all(row["p"] == 0.01 and row["value"] < 0.7 for row in permuted)
    assert found["data"]["unit"] == "slide"


def test_what_a_probe_leaves_stands_beside_the_results(tmp_path):
    out = tmp_path / "out"
    run(out, seed=3, permutations=0)
    assert (out / "left" / "note.txt").read_text() == f"{ROWS} 3"
    (out / "left" / "old.txt").write_text("of before")
    run(out, seed=4, permutations=0, overwrite=True)
    assert [path.name for path in (out / "left").iterdir()] == ["note.txt"]
    assert not (out / ".unfinished").exists()


def test_workers_get_the_rows_and_change_no_byte(tmp_path):
    run(tmp_path / "one", permutations=0)
    run(tmp_path / "two", permutations=0, workers=2)
    for name in ("summary.json", "results.csv", "predictions.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_command_has_the_probes_own_defaults():
    from click.testing import CliRunner

    from tiaft_plugin.cli.probe import probe

    text = " ".join(CliRunner().invoke(probe, ["words", "--help"]).output.split())
    assert "default: 2; x>=1" in text and "--patients" in text and "--aggregate NAME" not in text
