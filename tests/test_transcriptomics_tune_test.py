"""What a fine-tuning on expression is tested on: three sets of patients, a base, intervals."""

import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import tiaft
from processes import Process
from scipy import stats
from test_histotransfer_mil import make_store
from test_transcriptomics_tune import TINY, job_of, planted, rows_of

from tiaft_extensions.transcriptomics.cli import transcriptomics as command
from tiaft_extensions.transcriptomics.tune.run import run_job
from tiaft_extensions.transcriptomics.tune.samples import split_patients
from tiaft_extensions.transcriptomics.tune.scores import (
    cosines_of,
    gene_scores,
    ranks_of,
    retrieval_scores,
)
from tiaft_plugin import TiaftError
from tiaft_plugin.cli.models import models
from tiaft_plugin.files import sha256_of
from tiaft_plugin.network import create_network, load_model, save_model
from tiaft_plugin.network.weights import sha256_of_weights

RESULTS = ("model.safetensors", "heads.safetensors", "metrics.csv", "genes.csv", "test.csv",
           "test.json", "test.npz", "left_out.csv", "slides.csv", "unmatched.csv",
           "report.html")  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    net = create_network(TINY, init="random", tile_size=32, mpp=1.0)
    return save_model(net, tmp_path_factory.mktemp("base") / "base.safetensors")


def found(scores, measure, way, against=""):
    return next(its for its in scores if its[:3] == (measure, way, against))


def test_patients_are_split_in_three_and_few_are_refused():
    patients = [f"p{n // 2}" for n in range(60)]
    sets = split_patients(patients, 0.15, 0.2, 0)
    of = {name: {p for p, its in zip(patients, sets, strict=True) if its == name}
          for name in ("train", "val", "test")}  # fmt: skip
    assert {name: len(its) for name, its in of.items()} == {"train": 20, "val": 4, "test": 6}
    assert not of["train"] & of["val"] and not of["test"] & (of["train"] | of["val"])
    assert split_patients(patients, 0.15, 0.2, 0).tolist() == sets.tolist()
    assert split_patients(patients, 0.15, 0.2, 1).tolist() != sets.tolist()
    assert set(split_patients(patients[:4], 0, 0, 0)) == {"train"}
    assert split_patients(list("abcdef"), 0.15, 0, 0).tolist().count("val") == 2
    with pytest.raises(TiaftError, match="5 patients are too few to learn from 2, choose by 2 and "
                       "test on 3: give --test-share 0, and perhaps --val-share 0"):  # fmt: skip
        split_patients(list("abcde"), 0.15, 0.2, 0)


def test_scores_of_genes_are_correlations_with_intervals_and_differences():
    rng = np.random.default_rng(1)
    observed = rng.normal(size=(60, 5))
    observed[:, 4] = 1
    good, poor = (observed + rng.normal(size=observed.shape) * sd for sd in (0.3, 2.0))
    good[:, 3] = rng.normal(size=60)
    scores, genes = gene_scores(observed, {"good": good, "base": poor}, ["base"], 0)
    r = [stats.pearsonr(good[:, g], observed[:, g]).statistic for g in range(4)]
    np.testing.assert_allclose(genes["r"][:4], r)
    assert np.isnan(genes["r"][4]) and np.isnan(genes["p"][4])
    mean, less = found(scores, "mean r", "good"), found(scores, "mean r", "good", "base")
    assert mean.value == pytest.approx(np.mean(r)) and mean.low < mean.value < mean.high
    assert less.value == pytest.approx(mean.value - found(scores, "mean r", "base").value)
    assert less.low > 0 and less.p < 0.05
    assert found(scores, "mean r", "chance").value == 0
    assert (genes["low"][:4] < r).all() and (r < genes["high"][:4]).all()
    # About what Fisher's transformation gives.
    z = np.arctanh(r[0]) + np.array([-1.96, 1.96]) / 57**0.5
    np.testing.assert_allclose([genes["low"][0], genes["high"][0]], np.tanh(z), atol=0.03)
    assert (genes["q"][:3] < 0.05).all() and genes["q"][3] > 0.05
    assert not [its for its in scores if its.way == "base" and its.against]


def test_scores_of_finding_are_those_of_ranks_and_of_chance():
    cosines = np.eye(12)
    cosines[1] = cosines[1, ::-1]  # finds another, and its own among ten ties
    assert ranks_of(cosines).tolist() == [1, 12, *[1] * 10]
    scores = retrieval_scores({"way": cosines, "base": np.zeros((12, 12))}, ["base"], 0)
    one = found(scores, "recall@1 image to expression", "way")
    assert one.value == pytest.approx(11 / 12) and one.low < one.value <= one.high
    assert found(scores, "recall@5 image to expression", "chance").value == pytest.approx(5 / 12)
    assert found(scores, "recall@10 expression to image", "base").value == 0
    less = found(scores, "recall@1 image to expression", "way", "base")
    assert less.value == one.value and less.low > 0
    assert found(scores, "median rank image to expression", "way").value == 1
    assert found(scores, "median rank image to expression", "chance").value == 6.5
    back = found(scores, "recall@1 expression to image", "way").value
    assert back == (ranks_of(cosines.T) == 1).mean() < 1
    few = retrieval_scores({"way": np.eye(5), "base": np.eye(5)}, ["base"], 0)
    assert {its.measure.split()[0] for its in few} == {"recall@1", "median"}
    rows = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_allclose(np.diagonal(cosines_of(rows, rows * 2)), 1)
    assert not cosines_of(rows * 0, rows).any()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    sizes = {"train": 24, "val": 12, "test": 20}
    return {name: planted(tmp_path_factory.mktemp(name), count, seed=seed)
            for seed, (name, count) in enumerate(sizes.items())}  # fmt: skip


@pytest.mark.parametrize("objective", ["direct", "contrastive"])
def test_planted_genes_are_told_and_found_and_null_genes_are_not(cohort, base, tmp_path, objective):
    job = job_of((cohort["train"], cohort["val"]), base, tmp_path / "out", epochs=40, tiles=6,
                 slides=24, lr=0.03)  # fmt: skip
    result = run_job(replace(job, test=cohort["test"], checkpoint_steps=None), objective)
    out = tmp_path / "out"
    genes = rows_of(out / "genes.csv")
    r, base_r = (np.array([float(row[name]) for row in genes]) for name in ("r", "base_r"))
    assert r[:4].min() > 0.7 and base_r[:4].min() > 0.7  # a linear matter, of ten patients
    assert abs(r[4:].mean()) < 0.5
    about = json.loads((out / "test.json").read_text())
    assert (about["slides"], about["patients"], about["genes"]) == (20, 10, 8)
    named = {(its["measure"], its["way"], its["against"]): its for its in about["scores"]}
    own = {"direct": "tuned head", "contrastive": "joint space"}[objective]
    assert named["recall@5 image to expression", own, ""]["value"] > 0.5  # which is chance
    for against in ("base + ridge", "base + SVR"):
        less = named["recall@5 expression to image", own, against]
        assert less["low"] <= less["value"] <= less["high"]
        assert named["mean r", "tuned + ridge", against]["low"] is not None
    assert len(rows_of(out / "test.csv")) == len(about["scores"])
    with np.load(out / "test.npz") as arrays:
        patients = arrays["patients"].tolist()
        assert patients == sorted(set(cohort["test"].groups))
        means = [np.mean([t[0] for t, g in zip(cohort["test"].targets, cohort["test"].groups,
                 strict=True) if g == p]) for p in patients]  # fmt: skip
        assert np.corrcoef(means, arrays["observed"][:, 0])[0, 1] == pytest.approx(1)
        ridge = arrays["tuned + ridge"]
    assert np.corrcoef(ridge[:, 0], means)[0, 1] > 0.7
    assert "Test: 20 slides of 10 patients that nothing was learnt from or chosen by" in (
        result.summary
    )
    assert "− base + ridge" in result.summary and "chance" in result.summary
    assert f"test {about['scores'][0]['measure']}" in result.last
    assert "Difference to base + SVR" in result.report.read_text(encoding="utf-8")
    trained = load_model(result.model).card.training["metrics"]
    assert trained["test"]["mean r"] == pytest.approx(
        named["mean r", about["genes_by"], ""]["value"]
    )
    # Nothing of the test decides: with other test slides, the same weights.
    if objective == "direct":
        fewer = replace(cohort["test"], **{name: getattr(cohort["test"], name)[:6]
                                           for name in ("files", "targets", "groups")})  # fmt: skip
        other = replace(job, test=fewer, out=tmp_path / "other", checkpoint_steps=None)
        again = run_job(other, objective)
        heads = (its.model.with_name("heads.safetensors") for its in (result, again))
        assert len({head.read_bytes() for head in heads}) == 1


@pytest.fixture(scope="module")
def stores(tmp_path_factory, base):
    """Feature stores of twenty slides and a table of their expression; one gene is constant."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    width, shares = load_model(base).feature_width, rng.random(20)
    for number, share in enumerate(shares):
        features = rng.normal(size=(9 + number % 3, width)).astype(np.float32)
        features[: round(share * len(features)), :5] += 3
        make_store(folder / "stores" / f"slide-{number:02d}.zarr", features,
                   patient=f"patient-{number:02d}", model=sha256_of(base))  # fmt: skip
    values = rng.normal(3, 0.1, size=(20, 6))
    values[:, :3] += shares[:, None]
    values[:, 5] = 2
    names = [f"patient-{number:02d}" for number in range(19)] + ["patient-99"]
    rows = [",".join(["patient", *"ABCDEF"])]
    rows += [",".join([name, *map(str, its)]) for name, its in zip(names, values, strict=True)]
    (folder / "expression.csv").write_text("\n".join(rows))
    return folder


def arguments(stores: Path, base: Path, out: Path, *more: object) -> list[str]:
    return [str(given) for given in (
        "transcriptomics", "tune", stores / "stores", "--expression", stores / "expression.csv",
        "--unit", "ln(tpm+1)", "--genes-in", "columns", "--init", base, "--out", out, "--device",
        "cpu", "--slides", 8, "--chunk", 3, "--lr", 0.01, "--set", "width=8", *more,
    )]  # fmt: skip


SCRIPT = "from tiaft_plugin.cli import main; main()"


def test_killed_three_times_it_ends_with_the_same_bytes(stores, base, tmp_path):
    """SIGKILL at random moments; from feature stores to a model and its test, no tile is read."""
    kill_at_random(stores, base, tmp_path, 3)
    out = tmp_path / "whole"
    assert load_model(out / "model.safetensors").card.backbone == f"{TINY}:projected"
    assert "constant" in (out / "left_out.csv").read_text()
    sets = {row["slide"]: row["set"] for row in rows_of(out / "slides.csv")}
    assert len(sets) == 19 and "slide-19.svs" not in sets
    unmatched = {(row["what"], row["which"]) for row in rows_of(out / "unmatched.csv")}
    assert unmatched == {("slide", "slide-19.svs"), ("sample", "patient-99")}
    genes = {row["gene"]: float(row["r"]) for row in rows_of(out / "genes.csv")}
    assert list(genes) == list("ABCDE")


def kill_at_random(stores: Path, base: Path, folder: Path, kills: int) -> int:
    """Kill a run as often, and hold what it ends with against an undisturbed one's.

    Returns how many kills met the training.
    """
    more = ("--epochs", 20, "--objective", "contrastive", "--pooling", "attention")
    out, log = folder / "killed", folder / "stderr.txt"

    def started(out: Path) -> Process:
        process = Process(SCRIPT, *arguments(stores, base, out, *more), out=folder)
        while process.wait(0.005) is None and not (out / ".unfinished").exists():
            pass
        return process

    def saved() -> int:
        try:
            return sum(path.stat().st_mtime_ns for path in (out / ".unfinished").glob("[!.]*.pt"))
        except FileNotFoundError:  # it is done
            return 0

    def compare() -> None:
        for name in RESULTS:
            assert (out / name).read_bytes() == (folder / "whole" / name).read_bytes(), name

    process, begun = started(folder / "whole"), time.monotonic()
    assert process.wait() == 0, log.read_text()
    took, rng, killed, met = time.monotonic() - begun, random.Random(6), 0, 0
    while killed < kills:
        process = started(out)
        for _ in range(killed % 3):  # during the start, or after so many checkpoints
            before = saved()
            while process.wait(0.002) is None and saved() == before:
                pass
        code = process.wait(took * rng.uniform(0, 0.1))
        assert code in (None, 0), log.read_text()
        process.kill()
        killed += code is None
        met += any((out / ".unfinished").glob("*.pt"))
        if not (out / ".unfinished").exists() and out.exists():  # all was done: another run, then
            compare()
            shutil.rmtree(out)
    assert met, "no kill met the training"
    assert started(out).wait() == 0, log.read_text()
    compare()
    return met


@pytest.mark.slow
def test_two_processes_learn_what_one_does(stores, base, tmp_path):
    script = tmp_path / "tiaft.py"  # Lightning starts it again for each process
    script.write_text(SCRIPT)
    done = {}
    for devices in (1, 2):
        more = ("--epochs", 5, "--devices", devices, "--test-share", 0.3)
        given = arguments(stores, base, tmp_path / f"{devices}", *more)
        command = [sys.executable, str(script), *given]
        done[devices] = subprocess.run(command, capture_output=True, text=True)
        assert done[devices].returncode == 0, done[devices].stderr
    one, two = (rows_of(tmp_path / name / "metrics.csv") for name in "12")
    for single, double in zip(one, two, strict=True):
        for name in ("loss", "recall@1"):
            if single[name]:
                assert float(single[name]) == pytest.approx(float(double[name]), rel=3e-5)
    weights = [load_model(tmp_path / n / "model.safetensors").state_dict() for n in "12"]
    assert max((weights[0][k] - weights[1][k]).abs().max() for k in weights[0]) < 1e-4
    assert done[2].stdout == done[1].stdout.replace("/1/", "/2/")  # said once
    assert done[2].stderr.count("slides have a sample") == 1


def test_stores_that_cannot_be_learnt_from_are_named(stores, base, tmp_path):
    out, width = tmp_path / "out", load_model(base).feature_width
    folder = tmp_path / "cohort"
    folder.mkdir()
    shutil.copytree(stores / "stores", folder / "stores")
    shutil.copy(stores / "expression.csv", folder)

    def refused(*more):
        done = tiaft(*arguments(folder, base, out, *more))
        assert done.returncode == 2 and not (out / "model.safetensors").exists()
        return done.stderr.splitlines()[-1]

    def another(features, model=""):
        shutil.rmtree(folder / "stores" / "slide-03.zarr")
        make_store(folder / "stores" / "slide-03.zarr", features.astype(np.float32),
                   patient="patient-03", model=model or sha256_of(base))  # fmt: skip

    assert "features were computed once, so that only heads learn from them; give tiles" in (
        refused("--train", "last")
    )
    assert "20 processes need 20 slides in a step, one each: there are 12 to learn from" in refused(
        "--devices", 20, "--slides", 64
    )
    assert "19 patients are too few to learn from 2, choose by 3 and test on 17" in refused(
        "--test-share", 0.9
    )
    text = (folder / "expression.csv").read_text()
    (folder / "expression.csv").write_text(text.replace("patient-", "case-"))
    assert "no slide has a sample in the expression table: slides are called slide-00.svs" in (
        refused()
    )
    (folder / "expression.csv").write_text(text)
    another(np.ones((5, width + 1)))
    assert "stores of different widths make no feature set" in refused()
    another(np.ones((5, width)), model="b" * 64)
    assert "stores of different models make no feature set" in refused()
    another(np.ones((0, width)))
    assert "stores without a tile: slide-03.svs: remove them" in refused()
    another(np.ones((5, width)))
    chunk = next((folder / "stores" / "slide-03.zarr" / "features" / "c").glob("*/0"))
    chunk.write_bytes(chunk.read_bytes()[::-1])
    assert "slide-03.zarr is damaged: chunk 0 is not what was written" in refused()
    net = create_network(TINY, init="random", seed=5, tile_size=32, mpp=1.0)
    other = save_model(net, tmp_path / "other.safetensors")
    another(np.ones((5, width)))
    assert "has features of model m, not of" in refused("--init", other)


def test_features_after_hidden_layers_are_refused_and_the_way_out_is_one(stores, base, tmp_path):
    """As wide as the encoder's own: by their width alone they would pass for these."""
    width = load_model(base).feature_width
    net = create_network(TINY, "ab", init=str(base), tile_size=32, mpp=0.5, hidden=(width,))
    hidden = save_model(net, tmp_path / "hidden.safetensors")
    for number in range(20):
        make_store(tmp_path / "stores" / f"slide-{number:02d}.zarr", np.ones((2, width), "float32"),
                   patient=f"patient-{number:02d}", model=sha256_of(hidden))  # fmt: skip
    shutil.copy(stores / "expression.csv", tmp_path)
    refused = CliRunner().invoke(command, arguments(tmp_path, hidden, tmp_path / "out")[1:])
    assert str(refused.exception).partition(".zarr has ")[2] == (
        f"features after the hidden layers of {hidden}, which a tuned model has no more: give "
        "tiles, or features by the encoder alone (`tiaft models create FILE --init "
        f"{hidden} --tile-size 32 --mpp 0.5` makes it)"
    )
    encoder = tmp_path / "encoder.safetensors"
    told = ["create", encoder, "--init", hidden, "--tile-size", 32, "--mpp", 0.5]
    assert CliRunner().invoke(models, [str(each) for each in told]).exit_code == 0
    assert sha256_of_weights(load_model(encoder).part_a) == sha256_of_weights(net.part_a)
