"""Models of several labels a tile: from the card to what a pathologist sees."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import torch
from conftest import TINY, tiaft
from tiatoolbox.models import PatchPredictor

from tiaft_plugin.engine.annotation_store import write_annotation_store
from tiaft_plugin.engine.picture import _TileLayer
from tiaft_plugin.engine.predictions import NO_COLOUR, TileBlock, TilePredictions
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network import Card, create_network, load_model, read_card, save_model
from tiaft_plugin.network.card import card_from_json
from tiaft_plugin.network.outputs import labels_of
from tiaft_plugin.qupath.geojson import write_geojson
from tiaft_plugin.testing import check_model
from tiaft_plugin.zoo import folder
from tiaft_plugin.zoo.table import describe_model, model_rows, verify_model

LABELS = ("tumour", "necrosis", "mucin")


def network(classes=LABELS, **card):
    settings = {"init": "random", "tile_size": 32, "mpp": 1.0, "hidden": (8,), **card}
    return create_network(TINY, classes, task="multilabel", **settings)


def tuned():
    """A network some of whose tiles have a label, and some have none."""
    net = network()
    with torch.no_grad():
        net.part_b.classifier.weight.mul_(200)
        logits = net(tiles(64))
        net.part_b.classifier.bias.sub_(logits.median(dim=0).values + logits.std(dim=0) / 2)
    return net


def tiles(count, size=32):
    shape = (count, size, size, 3)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def named(tmp_path):
    """A model of three labels, named `labels`; its network."""
    net = tuned()
    folder.add_model("labels", save_model(net, tmp_path / "labels.safetensors"))
    return net


@pytest.fixture
def store_class(monkeypatch):
    """TIAToolbox's store, on Pythons without loadable SQLite extensions, too."""
    from tiatoolbox.annotation.storage import SQLiteStore

    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        options = ["ENABLE_RTREE", "ENABLE_MATH_FUNCTIONS"]
        monkeypatch.setattr(SQLiteStore, "compile_options", staticmethod(lambda: options))
    return SQLiteStore


# The card


def test_a_card_keeps_its_task(tmp_path):
    path = save_model(network(), tmp_path / "m.safetensors")
    assert read_card(path).multilabel and load_model(path).card.task == "multilabel"


def test_a_card_without_task_gives_one_class_a_tile():
    values = json.loads(Card(TINY, 32, 0.5, ("a", "b"), ()).to_json())
    del values["task"]  # as older files have it
    assert card_from_json(json.dumps(values)).multilabel is False


def test_one_label_is_a_choice_and_one_class_is_none():
    assert Card(TINY, 32, 0.5, ("tumour",), (), task="multilabel").classes == ("tumour",)
    assert network(("tumour",)).card.classes == ("tumour",)
    with pytest.raises(TiaftError, match="one class is no choice"):
        Card(TINY, 32, 0.5, ("tumour",), ())


@pytest.mark.parametrize("classes", [(), ("a", "unclassified")])
def test_labels_that_a_card_refuses(classes):
    with pytest.raises(TiaftError, match="needs labels, none of which is called 'unclassified'"):
        Card(TINY, 32, 0.5, classes, (), task="multilabel")


# The network and its classes


def test_probabilities_are_sigmoids_and_need_not_sum_to_one():
    net = tuned()
    with torch.inference_mode():
        found, logits = net.probabilities(tiles(5)), net(tiles(5))
    torch.testing.assert_close(found, 1 / (1 + torch.exp(-logits)))
    assert not torch.allclose(found.sum(dim=1), torch.ones(5), atol=0.1)


def test_the_class_of_a_tile():
    probabilities = np.array([[0.9, 0.8], [0.2, 0.5], [0.4, 0.49], [0.0, 0.0]], dtype=np.float32)
    assert labels_of(probabilities, multilabel=True).tolist() == [0, 1, 2, 2]
    assert labels_of(probabilities, multilabel=False).tolist() == [0, 1, 1, 0]


# The zoo


def test_tiatoolbox_s_engine_gives_sigmoids_and_knows_unclassified_tiles(named):
    images = tiles(40)
    with torch.inference_mode():
        wanted = named(images).sigmoid().numpy()
    predictor = PatchPredictor("labels", verbose=False, batch_size=16)
    assert predictor.model.class_dict == {0: "tumour", 1: "necrosis", 2: "mucin", 3: "unclassified"}
    found = predictor.run(images, patch_mode=True, return_probabilities=True)
    np.testing.assert_allclose(found["probabilities"], wanted, rtol=1e-3, atol=1e-5)
    given = np.asarray(found["predictions"])
    assert 3 in given and len(set(given.tolist())) > 1
    np.testing.assert_array_equal(given == 3, wanted.max(axis=1) < 0.5)
    labelled = given < 3
    np.testing.assert_array_equal(given[labelled], wanted.argmax(axis=1)[labelled])


def test_tiatoolbox_s_engine_on_a_slide(named, slide, tmp_path, store_class):
    predictor = PatchPredictor("labels", verbose=False)
    out = predictor.run(
        [slide], patch_mode=False, save_dir=tmp_path / "out", output_type="annotationstore"
    )
    store = store_class.open(next(iter(out.values())))
    kinds = {annotation.properties["type"] for annotation in store.values()}
    assert kinds <= {*LABELS, "unclassified"} and kinds
    store.close()


def test_list_show_and_verify_tell_of_labels(named):
    row = next(row for row in model_rows() if row[0] == "labels")
    assert row[1] == "3 labels, any number a tile"
    assert '"task": "multilabel"' in describe_model("labels")
    assert verify_model("labels").startswith("labels: sound")


def test_weights_of_another_task_are_refused(named, tmp_path):
    card = {"init": "random", "tile_size": 32, "mpp": 1.0, "hidden": (8,)}
    other = save_model(create_network(TINY, LABELS, **card), tmp_path / "o.safetensors")
    with pytest.raises(TiaftError, match="other classes"):
        PatchPredictor("labels", weights=other)


def test_the_paper_s_name_is_not_for_labels(tmp_path):
    from tiaft_plugin.kather100k import KATHER100K
    from tiaft_plugin.zoo.promises import PROMISES

    card = Card("legacy_xception", 224, 0.5, KATHER100K, (2048,), task="multilabel")
    with pytest.raises(TiaftError, match="task multilabel, not classes"):
        PROMISES["xception-kather100k"].check(card)


# check_model


class Stranger(torch.nn.Module):
    """Three logits a tile from its mean colours."""

    def __init__(self, sigmoid=False):
        super().__init__()
        self.sigmoid = sigmoid
        self.eval()

    def forward(self, tiles):
        logits = tiles.float().mean(dim=(1, 2)) / 64 - 2
        return logits.sigmoid() if self.sigmoid else logits


def test_check_model_knows_labels():
    check_model(network())
    check_model(network(("tumour",)))
    check_model(Stranger(), tile_size=32, classes=LABELS, multilabel=True)
    with pytest.raises(TiaftError, match="return the logits, what goes into the sigmoid"):
        check_model(Stranger(sigmoid=True), tile_size=32, classes=LABELS, multilabel=True)
    with pytest.raises(TiaftError, match="multilabel needs classes"):
        check_model(Stranger(), tile_size=32, multilabel=True)


def test_a_plugin_s_labels():
    from tiaft_plugin import hookimpl
    from tiaft_plugin.plugins import plugin_manager
    from tiaft_plugin.zoo.names import find

    class Plugin:
        @hookimpl
        def register_models(self, register):
            register("theirs", Stranger, tile_size=32, mpp=1.0, classes=LABELS, multilabel=True)

    plugin = Plugin()
    plugin_manager().register(plugin, name="stranger")
    try:
        assert find("theirs").multilabel
        found = PatchPredictor("theirs", verbose=False).model(torch.from_numpy(tiles(2)))
        torch.testing.assert_close(found, Stranger()(torch.from_numpy(tiles(2))).sigmoid())
    finally:
        plugin_manager().unregister(plugin)


# Stores and sinks


def predictions(probabilities, labels=LABELS):
    """Tiles of 64 px in a row."""
    values = np.asarray(probabilities, dtype=np.float32)
    x = np.arange(len(values)) * 64.0
    bounds = np.stack([x, x * 0, x + 64, x * 0 + 64], axis=1)
    block = TileBlock(bounds, values, [UUID(int=n) for n in range(len(x))], multilabel=True)
    return TilePredictions(
        Path("s.svs"), (64 * len(x), 64), labels, "m", "0" * 64, len(x), lambda: iter([block]), True
    )


SOME = predictions([[0.9, 0.8, 0.1], [0.2, 0.3, 0.4], [0.1, 0.2, 0.7]])


def test_names_and_colours_of_classes():
    assert [SOME.class_of(n) for n in range(4)] == [*LABELS, "unclassified"]
    assert SOME.colour(3) == NO_COLOUR != SOME.colour(2)
    with pytest.raises(IndexError):
        replace(SOME, multilabel=False).class_of(3)


def test_qupath_sees_unclassified_tiles_with_all_probabilities(tmp_path):
    write_geojson(SOME, tmp_path / "s.geojson")
    features = json.loads((tmp_path / "s.geojson").read_text())["features"]
    given = [f["properties"].get("classification", {}).get("name") for f in features]
    assert given == ["tumour", None, "mucin"]
    measured = features[1]["properties"]["measurements"]
    assert list(measured) == [f"Probability: {name}" for name in LABELS]
    assert measured["Probability: mucin"] == pytest.approx(0.4)


def test_the_annotation_store_says_unclassified(tmp_path, store_class):
    write_annotation_store(SOME, tmp_path / "s.db")
    store = store_class.open(tmp_path / "s.db")
    kinds = [store[str(UUID(int=n))].properties["type"] for n in range(3)]
    assert kinds == ["tumour", "unclassified", "mucin"]
    store.close()


def test_the_picture_leaves_unclassified_tissue_unpainted():
    layer = _TileLayer(SOME, 192, 64)
    layer.add(next(SOME.blocks()))
    grey = np.full((64, 192, 3), 200, dtype=np.uint8)
    drawn = np.asarray(layer.over(grey))
    assert (drawn[:, 64:128] == 200).all()
    assert (drawn[:, :64] != 200).any() and (drawn[:, 128:] != 200).any()
    assert layer.counts.tolist() == [1, 0, 1, 1]


def test_tiaft_predict_with_labels(named, slide, tmp_path):
    out, sinks = tmp_path / "out", "geojson,annotationstore,picture"
    done = tiaft("predict", slide, "--model", "labels", "--out", out, "--to", sinks)
    assert done.returncode == 0, done.stderr
    from tiaft_plugin.engine.store import read_store

    path = next(out.glob("*.zarr"))
    store = read_store(path, verify=True)
    assert store.multilabel and store.classes == LABELS and store.facts["task"] == "multilabel"
    import zarr

    given = np.asarray(zarr.open(path, mode="r")["predictions"])
    best = np.asarray(store.values).max(axis=1)
    np.testing.assert_array_equal(given == 3, best < 0.5)
    features = json.loads(next(out.glob("*.geojson")).read_text())["features"]
    unclassified = sum("classification" not in f["properties"] for f in features)
    assert unclassified == (best < 0.5).sum()


def test_stores_of_classes_are_as_they_were(tiny_model, slide, tmp_path):
    folder.add_model("tiny", tiny_model)
    assert tiaft("predict", slide, "--model", "tiny", "--out", tmp_path / "o").returncode == 0
    from tiaft_plugin.engine.store import read_store

    store = read_store(next((tmp_path / "o").glob("*.zarr")))
    assert "task" not in store.facts and not store.multilabel
