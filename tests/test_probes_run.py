"""A run of a probe: the same bytes for any number of workers, resumable, honest, in plain words."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tiaft
from processes import Process

from tiaft_plugin import TiaftError
from tiaft_plugin.errors import Stopped
from tiaft_plugin.plugins import Registered
from tiaft_plugin.probes import baselines
from tiaft_plugin.probes.baselines import permute_by_group
from tiaft_plugin.probes.compare import compare_runs
from tiaft_plugin.probes.crossval import predict_repeat, problems_of
from tiaft_plugin.probes.features import write_features
from tiaft_plugin.probes.interface import FeatureTable, Targets, sound
from tiaft_plugin.probes.matching import match
from tiaft_plugin.probes.outputs import FILES, refuse_results
from tiaft_plugin.probes.reading import read_inputs
from tiaft_plugin.probes.run import run_probe, versions
from tiaft_plugin.probes.tissue import Tissue
from tiaft_plugin.probes.work import run_pieces

SAME = ("report.html", "results.csv", "predictions.npz", "summary.json")
QUICK = {"repeats": 2, "draws": 200, "verbose": False}


def tiles(name: str = "ftx", noise: float = 1.0, stain: float = 0.0, rows: int = 72):
    """Tiles of 3 tissues in 6 slides; each slide has a shade of its own in every feature."""
    rng, own = np.random.default_rng(0), np.random.default_rng(len(name))
    labels = np.resize(["NORM", "STR", "TUM"], rows)
    groups = np.array([f"slide {n // (rows // 6)}" for n in range(rows)])
    centre = {label: rng.normal(size=8) for label in ("NORM", "STR", "TUM")}
    shade = {group: stain * rng.normal(size=8) for group in sorted(set(groups.tolist()))}
    values = [
        centre[label] + shade[group] + noise * own.normal(size=8)
        for label, group in zip(labels, groups, strict=True)
    ]
    colour = rng.random((rows, 54)).astype(np.float32)
    keys = np.array([f"tile{n:03d}.png" for n in range(rows)])
    return FeatureTable(name, keys, np.array(values, np.float32), groups, labels, colour)


def targets_of(table: FeatureTable) -> Targets:
    assert table.labels is not None
    names = tuple(np.unique(table.labels).tolist())
    return Targets("classes", table.keys, table.labels, names, table.groups)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SAME}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A finished run of two sets."""
    out = tmp_path_factory.mktemp("probe") / "run"
    good, bad = tiles("ftx", noise=0.5), tiles("imgnet", noise=3)
    run_probe("tissue", [bad, good], targets_of(good), out, permutations=99, **QUICK)
    return out


def test_a_run_writes_its_files_and_nothing_else(done):
    assert sorted(path.name for path in done.iterdir()) == sorted(FILES)
    summary = json.loads((done / "summary.json").read_text())
    values = {
        row["features"]: row["value"]
        for row in summary["scores"]
        if row["metric"] == "accuracy" and not row["target"]
    }
    assert values["ftx"] > values["imgnet"] > 1 / 3
    assert "ftx is better than imgnet by" in summary["answer"]
    rows = (done / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 4 * 2 * 5  # sets (colour too), targets, repeats, folds


def test_every_baseline_stands_beside_the_result(done):
    baselines = json.loads((done / "summary.json").read_text())["baselines"]
    assert {row["baseline"] for row in baselines} == {"colour", "labels permuted", "leak control"}
    permuted = {row["features"]: row for row in baselines if row["baseline"] == "labels permuted"}
    assert permuted["ftx"]["p"] == pytest.approx(0.01) and permuted["ftx"]["draws"] == 99


def test_workers_and_repetition_change_no_byte(done, tmp_path):
    good, bad = tiles("ftx", noise=0.5), tiles("imgnet", noise=3)
    out = tmp_path / "again"
    run_probe("tissue", [bad, good], targets_of(good), out, permutations=99, workers=2, **QUICK)
    assert bytes_of(out) == bytes_of(done)
    assert json.loads((out / "run.json").read_text())["workers"] == 2


def test_the_order_of_rows_changes_no_byte(done, tmp_path):
    def shuffled(table):
        order = np.random.default_rng(1).permutation(len(table.keys))
        return FeatureTable(
            table.name,
            *(array[order] for array in (table.keys, table.values)),
            *(array[order] for array in (table.groups, table.labels, table.colour)),
        )

    good, bad = shuffled(tiles("ftx", noise=0.5)), shuffled(tiles("imgnet", noise=3))
    out = tmp_path / "again"
    run_probe("tissue", [bad, good], targets_of(good), out, permutations=99, **QUICK)
    assert bytes_of(out) == bytes_of(done)


def test_runs_compared_later_say_the_same_as_one_run_of_both(done, tmp_path):
    good, bad = tiles("ftx", noise=0.5), tiles("imgnet", noise=3)
    for table in (bad, good):
        run_probe(
            "tissue", [table], targets_of(table), tmp_path / table.name, permutations=99, **QUICK
        )
    compare_runs([tmp_path / "imgnet", tmp_path / "ftx"], tmp_path / "both")
    both = json.loads((tmp_path / "both" / "summary.json").read_text())
    one = json.loads((done / "summary.json").read_text())
    for name in ("scores", "comparisons", "confusion", "answer", "protocol"):
        assert both[name] == one[name], name
    assert (tmp_path / "both/results.csv").read_bytes() == (done / "results.csv").read_bytes()


def test_runs_that_were_split_otherwise_are_not_compared(done, tmp_path):
    good = tiles("ftx", noise=0.5)
    run_probe("tissue", [good], targets_of(good), tmp_path / "b", seed=1, permutations=0, **QUICK)
    with pytest.raises(TiaftError, match="cannot be compared: they differ in the folds"):
        compare_runs([done, tmp_path / "b"], tmp_path / "c")
    with pytest.raises(TiaftError, match="holds no result of a probe"):
        compare_runs([done, tmp_path / "nothing"])
    with pytest.raises(TiaftError, match="two runs or more"):
        compare_runs([done])


def test_a_leak_shows_in_folds_of_rows_and_not_in_folds_of_groups():
    """The features hardly know tissue, but every slide by its shade."""
    table = tiles("shaded", noise=0.3, stain=5.0)
    result = run_probe("tissue", [table], targets_of(table), permutations=0, **QUICK)
    leak = {
        row["folds"]: row["value"]
        for row in result.summary["baselines"]
        if row["baseline"] == "leak control"
    }
    assert leak["ungrouped"] > 0.95 and leak["grouped"] < 0.6


def test_ungrouped_folds_are_named_as_what_they_are():
    table = tiles()
    result = run_probe("tissue", [table], targets_of(table), permutations=0, grouped=False, **QUICK)
    assert any("results are too good" in text for text in result.summary["warnings"])


def test_a_leak_control_that_is_left_out_is_named_where_there_could_be_one(tmp_path):
    table = tiles()
    given = {**QUICK, "permutations": 0, "leak_control": False}
    result = run_probe("tissue", [table], targets_of(table), tmp_path / "o", **given)
    assert {row["baseline"] for row in result.summary["baselines"]} == {"colour"}
    assert "The leak control was left out" in (tmp_path / "o/report.html").read_text()
    alone = replace(table, groups=table.keys)
    result = run_probe("tissue", [alone], targets_of(alone), **given)
    assert not any("leak control" in text for text in result.summary["warnings"])


def test_a_library_of_a_probe_is_recorded_or_named():
    probe = SimpleNamespace(libraries=("pluggy",))
    assert versions(Registered("x", probe, {}, "mine"))["pluggy"]
    probe.libraries = ("no-such-library",)
    with pytest.raises(TiaftError, match="probe x names a library that is not installed, no-such"):
        versions(Registered("x", probe, {}, "mine"))


def test_rows_of_one_slide_have_no_interval_and_no_leak_control():
    one = replace(tiles(), groups=np.full(72, "slide"))
    result = run_probe("tissue", [one], targets_of(one), permutations=0, grouped=False, **QUICK)
    assert {row["baseline"] for row in result.summary["baselines"]} == {"colour"}
    assert "(95 % interval none)" in result.summary["answer"]
    assert any("All rows are of one patient or slide" in w for w in result.summary["warnings"])


def test_baselines_of_a_sample_keep_the_smallest_groups(monkeypatch):
    monkeypatch.setattr(baselines, "SAMPLED_ROWS", 20)
    groups = np.array(["large"] * 60 + ["small"] * 10 + ["one"] + ["other"])
    table = replace(tiles(), groups=groups)
    result = run_probe("tissue", [table], targets_of(table), permutations=99, folds=4, **QUICK)
    assert {row["baseline"] for row in result.summary["baselines"]} == {
        "colour",
        "labels permuted",
        "leak control",
    }


def test_a_class_of_one_slide_is_handled_by_the_stated_rule():
    table = tiles(noise=0.2)
    labels = table.labels.astype(object)
    labels[(table.groups == "slide 5") & (labels == "TUM")] = "EMPTY"
    lone = FeatureTable(
        "lone", table.keys, table.values, table.groups, labels.astype(str), table.colour
    )
    result = run_probe("tissue", [lone], targets_of(lone), permutations=0, **QUICK)
    warnings = " ".join(result.summary["warnings"])
    assert "Missing from the training part of some folds: EMPTY (2 of 10)" in warnings
    assert "Missing from the test part of some folds: EMPTY (8 of 10)" in warnings
    accuracy = {
        row["target"]: row["value"]
        for row in result.summary["scores"]
        if row["metric"] == "accuracy"
    }
    assert accuracy["EMPTY"] == 0.0 and accuracy["NORM"] > 0.9


def test_labels_are_permuted_by_group():
    groups = np.repeat(["a", "b", "c"], [4, 4, 4])
    constant = np.repeat([0, 1, 2], 4)
    for seed in range(5):
        moved = permute_by_group(constant, groups, np.random.default_rng(seed))
        assert sorted(moved) == sorted(constant)
        assert all(len(set(moved[groups == group])) == 1 for group in "abc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"permutations": 10}, "99 are the least"),
        ({"reference": "nobody"}, "--reference nobody: no feature set has this name"),
        ({"select": "nobody"}, "--select nobody"),
        ({"folds": 7}, "6 groups .* cannot be split into 7 folds: pass --folds 6"),
    ],
)
def test_wrong_settings_are_said_before_anything_is_computed(change, message, tmp_path):
    table = tiles()
    with pytest.raises(TiaftError, match=message):
        run_probe("tissue", [table], targets_of(table), tmp_path / "out", **QUICK | change)
    assert not (tmp_path / "out").exists()


def test_unknown_probes_and_wrong_labels_are_named():
    table = tiles()
    with pytest.raises(TiaftError, match="there is no probe 'tisue'; there are: .*tissue"):
        run_probe("tisue", [table], targets_of(table))


def test_results_are_not_overwritten_unless_asked(done):
    table = tiles()
    with pytest.raises(TiaftError, match="holds results already .* pass --overwrite"):
        run_probe("tissue", [table], targets_of(table), done, **QUICK)


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
sys.path.insert(0, sys.argv[1])
from test_probes_run import QUICK, run_probe, targets_of, tiles
good, bad = tiles("ftx", noise=0.5), tiles("imgnet", noise=3)
options = QUICK | {"permutations": 99}
run_probe("tissue", [bad, good], targets_of(good), sys.argv[2], **options)
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9 and Ctrl-C are of Unix")
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(done, tmp_path, with_signal):
    out = tmp_path / "out"
    run = Process(SCRIPT, Path(__file__).parent, out, out=tmp_path)
    while not (kept := list(out.glob(".unfinished/*/*.npy"))) or len(kept) < 20:
        assert run.wait(timeout=0) is None, "it ended before it could be interrupted"
        time.sleep(0.02)
    os.kill(run.pid, with_signal)
    assert run.wait() != 0
    assert not (out / "summary.json").exists()
    kept = sorted(out.glob(".unfinished/*/[!.]*.npy"))
    before = {path.name: path.stat().st_mtime_ns for path in kept}
    kept[0].write_bytes(b"half a file")
    good, bad = tiles("ftx", noise=0.5), tiles("imgnet", noise=3)
    computed = []
    from tiaft_plugin.probes import work

    original = work._keep
    work._keep = lambda folder, piece, array: (
        computed.append(piece),
        original(folder, piece, array),
    )
    try:
        run_probe("tissue", [bad, good], targets_of(good), out, permutations=99, **QUICK)
    finally:
        work._keep = original
    assert len(computed) <= 2 * (2 + 100 + 20) + 2 - len(before) + 1
    assert bytes_of(out) == bytes_of(done)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


def test_a_set_called_union_would_be_another_set_to_select():
    table = tiles("union")
    genes = Targets("numbers", table.keys, table.values[:, :1].astype(float), ("G0",))
    with pytest.raises(TiaftError, match="--select union means all sets"):
        run_probe("expression", [table], genes, **QUICK)


@pytest.mark.parametrize("whole", [False, True])
def test_a_run_killed_while_it_wrote_goes_on(done, tmp_path, whole):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    (out / ".unfinished").mkdir()
    if not whole:
        (out / "summary.json").unlink()
    refuse = pytest.raises(TiaftError, match="holds results already")
    with refuse if whole else nullcontext():
        refuse_results(out)


ORPHAN = """
import subprocess, sys
child = (
    "import os, time; from tiaft_plugin.probes.work import _one;"
    "_one(lambda context, piece: piece, None, (), os.getppid()); print(1, flush=True);"
    "time.sleep(60)"
)
subprocess.Popen([sys.executable, "-c", child])
sys.stdin.readline()
"""


@pytest.mark.skipif(os.name == "nt", reason="there nobody inherits orphans")
def test_no_worker_outlives_a_killed_run():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    run = subprocess.Popen([sys.executable, "-c", ORPHAN], **pipes)
    assert run.stdout is not None and run.stdout.readline()
    run.kill()
    began = time.monotonic()
    assert run.stdout.read() == b""  # which ends when the last that could write to it has ended
    assert time.monotonic() - began < 30
    run.communicate()


def test_an_interruption_within_numba_is_one():
    class Interrupted(Tissue):
        def fit(self, *_):
            raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    table = tiles()
    problem = problems_of(
        match([table], targets_of(table), unit="tile"), folds=2, repeats=1, seed=0, grouped=True
    )[0]
    with pytest.raises(KeyboardInterrupt):
        predict_repeat(Interrupted(), table.values, problem, problem.folds[0], 0)


def dies(context, piece):
    os._exit(9)


def test_a_worker_that_is_killed_is_told_from_a_fault(tmp_path):
    with pytest.raises(Stopped, match="lack of memory: pass fewer --workers; the same command"):
        run_pieces(dies, None, [(1,), (2,)], kept=None, workers=2, wanted=False)


@pytest.mark.parametrize(
    ("lacks", "message"),
    [({"kind": "tissues"}, "kind of probe odd must be classes or"), ({"settings": None}, "no set")],
)
def test_a_plug_in_whose_probe_does_not_say_what_it_is(lacks, message):
    odd = Tissue()
    for name, value in lacks.items():
        setattr(odd, name, value)
    with pytest.raises(TiaftError, match=message):
        sound(Registered("odd", odd, {}, "stranger"))


def test_what_was_computed_serves_a_run_with_more_repeats(tmp_path, monkeypatch):
    """An interrupted run may be given again with another number of repeats."""
    from tiaft_plugin.probes import run

    table, computed = tiles(), []
    original = run._compute

    def counted(context, piece):
        computed.append(piece)
        return original(context, piece)

    monkeypatch.setattr(run, "_compute", counted)
    monkeypatch.setattr(run, "write_result", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    more = QUICK | {"permutations": 0}
    with pytest.raises(KeyboardInterrupt):
        run_probe("tissue", [table], targets_of(table), tmp_path / "out", **more)
    first = len(computed)
    monkeypatch.undo()
    monkeypatch.setattr(run, "_compute", counted)
    run_probe("tissue", [table], targets_of(table), tmp_path / "out", **more | {"repeats": 3})
    assert first == 2 * 2 + 20 and len(computed) == first + 2  # a third repeat of set and colour
    run_probe("tissue", [table], targets_of(table), tmp_path / "whole", **more | {"repeats": 3})
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


# On the command line


@pytest.fixture
def files(tmp_path) -> Path:
    for table in (tiles("ftx", noise=0.5), tiles("imgnet", noise=3)):
        write_features(tmp_path / f"{table.name}.npz", table)
    return tmp_path


FAST = ("--repeats", "2", "--permutations", "0", "--draws", "100")


def test_the_command_line_prints_the_answer_and_the_report(files):
    run = tiaft(
        "probe",
        "tissue",
        files / "imgnet.npz",
        f"FTX={files / 'ftx.npz'}",
        "--out",
        files / "o",
        *FAST,
    )
    assert run.returncode == 0, run.stderr
    assert "FTX is better than imgnet by" in run.stdout
    assert "colour" in run.stdout and "leak control" in run.stdout
    assert "AUPRC (prevalence 0.33)" in run.stdout
    assert "prevalence" in (files / "o/results.csv").read_text().splitlines()[0]
    assert (files / "o/report.html").is_file()
    again = tiaft("probe", "tissue", files / "ftx.npz", "--out", files / "o", *FAST)
    assert again.returncode == 2 and "--overwrite" in again.stderr
    compared = tiaft("probe", "compare", files / "o", files / "o", "--out", files / "c")
    assert compared.returncode == 2 and "rename" in compared.stderr


def test_help_names_every_probe():
    text = tiaft("probe", "--help").stdout
    for name in ("tissue", "expression", "mutation", "compare"):
        assert f"  {name} " in text
    assert "--transform" in tiaft("probe", "expression", "--help").stdout
    assert "--transform" not in tiaft("probe", "tissue", "--help").stdout


def test_sets_that_bring_different_labels_are_refused(files):
    table = tiles("other")
    labels = np.where(table.labels == "TUM", "STR", table.labels)
    write_features(files / "other.npz", replace(table, labels=labels))
    with pytest.raises(TiaftError, match="features ftx and other bring different labels of 24 row"):
        read_inputs(Tissue(), [str(files / "ftx.npz"), str(files / "other.npz")])


def test_a_table_of_labels_that_does_not_match_is_told_in_one_line(files):
    labels = files / "labels.csv"
    labels.write_text("file,label\ntile000.png,TUM\nother.png,STR\n")
    run = tiaft(
        "probe", "tissue", files / "ftx.npz", "--labels", labels, "--out", files / "o", *FAST
    )
    assert run.returncode == 2 and len(run.stderr.strip().splitlines()) == 1
    assert "71" in run.stderr and "other.png" in run.stderr and "--unmatched drop" in run.stderr
    assert not (files / "o" / "summary.json").exists()


def test_a_cluster_that_does_not_answer_is_named(files):
    run = tiaft(
        "probe",
        "tissue",
        files / "ftx.npz",
        "--out",
        files / "o",
        *FAST,
        "--cluster",
        "tcp://127.0.0.1:9",
    )
    assert run.returncode == 2 and "no Dask scheduler answers at tcp://127.0.0.1:9" in run.stderr


@pytest.mark.slow
def test_a_dask_cluster_changes_no_byte(done, tmp_path):
    distributed = pytest.importorskip("distributed")
    good, bad = tiles("ftx", noise=0.5), tiles("imgnet", noise=3)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as one:
        run_probe(
            "tissue",
            [bad, good],
            targets_of(good),
            tmp_path / "out",
            permutations=99,
            cluster=one.scheduler_address,
            **QUICK,
        )
    assert bytes_of(tmp_path / "out") == bytes_of(done)
