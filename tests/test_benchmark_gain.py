"""The benchmark of what fine-tuning gains: fair halves, the probes' own protocol, paired slides."""

import importlib.util
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tiaft_plugin.probes.features import feature_table
from tiaft_plugin.probes.labels import labels_of
from tiaft_plugin.probes.run import run_probe
from tiaft_plugin.tiles.tileset import TileSet

SLIDES = [f"{number:02}" for number in range(1, 11)]


@pytest.fixture(scope="module")
def gain():
    path = Path(__file__).parents[1] / "benchmarks" / "finetuning_gain.py"
    spec = importlib.util.spec_from_file_location("finetuning_gain", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kather2016(gain, data):
    return gain.read_tileset(data / "kather2016", mpp=gain.MPP)


def made_up(slides, each=12):
    """Return a tile set without files, three classes, and features that tell them apart a little"""
    count = each * len(slides)
    labels = [f"c{row % 3}" for row in range(count)]
    groups = [f"slide-{slides[row // each]}" for row in range(count)]
    files = [Path(f"/t/{row:04}.png") for row in range(count)]
    tiles = TileSet(
        Path("/t"), tuple(files), tuple(labels), tuple(groups), ("c0", "c1", "c2"), 32, 0.5
    )
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8))
    features = 0.7 * centres[tiles.targets] + rng.normal(size=(count, 8))
    return tiles, features.astype(np.float32)


def test_of_all_halves_that_hold_every_class_the_most_even_are_taken(gain, kather2016):
    of_slide = np.array([group[-2:] for group in kather2016.groups])
    targets = np.array(kather2016.targets)
    counts = np.array([np.bincount(targets[of_slide == slide], minlength=8) for slide in SLIDES])
    uneven = {}
    for chosen in combinations(range(10), 5):
        one, other = counts[list(chosen)].sum(0), np.delete(counts, chosen, axis=0).sum(0)
        if one.all() and other.all():
            uneven[chosen] = abs(one - other).sum()
    best = {
        tuple(SLIDES[i] for i in chosen)
        for chosen in uneven
        if uneven[chosen] == min(uneven.values())
    }
    assert best == set(gain.HALVES)
    halves = [gain.rows_of_half(kather2016, number) for number in (0, 1)]
    assert (halves[0] != halves[1]).all()


def test_the_probe_is_the_protocols_leaving_one_slide_out(gain):
    tiles, features = made_up(SLIDES[:5])
    keys = [file.name for file in tiles.files]
    table = feature_table(
        Path("t.npz"), "one", keys, features, groups=tiles.groups, labels=tiles.labels
    )
    result = run_probe(
        "tissue", [table], labels_of(table), folds=5, repeats=1, permutations=0, verbose=False
    )
    slides_of_fold = [
        set(result.predictions["groups"][result.predictions["folds/0"][0] == fold])
        for fold in range(5)
    ]
    assert [len(slides) for slides in slides_of_fold] == [1] * 5
    np.testing.assert_array_equal(
        gain.probe(features, tiles), result.predictions["average/one/0/0"]
    )


def test_seeds_are_averaged_and_slides_are_what_is_drawn(gain):
    """Of each slide's ten tiles five were right; afterwards a known number, in one of two seeds."""
    slides, place = np.repeat(SLIDES, 10), np.tile(np.arange(10), 10)
    before = np.stack([place < 5] * 2)
    after = np.stack([place < 5, place < np.repeat(np.arange(10), 10)])
    outcome = gain.Outcome({"a": before, "b": after}, slides, slides, np.ones(100, dtype=bool))
    pooled, of_slides = gain.difference(outcome, "a", "b", outcome.known)
    assert pooled.value == pytest.approx(of_slides.value) == pytest.approx(-0.025)
    assert pooled.low < pooled.value < pooled.high < 0.15
    same = gain.difference(outcome, "a", "a", outcome.known)
    assert [one.p for one in same] == [1, 1]


def test_a_class_of_one_slide_cannot_be_known_without_it(gain):
    half = {
        "classes": np.array(["EMPTY", "TUMOR"]),
        "labels": np.array(["TUMOR", "EMPTY", "TUMOR", "EMPTY"]),
        "slides": np.array(["01", "06", "06", "06"]),
    }
    scores = np.array([[0, 1], [0, 1], [1, 0], [1, 0]])
    outcome = gain.pool([[half | dict.fromkeys(gain.COLUMNS, scores)]])
    assert outcome.known.tolist() == [True, False, True, False]
    assert outcome.right[gain.FTX].tolist() == [[True, False, False, True]]
