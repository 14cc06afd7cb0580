"""A store's tiles read once more: the same pixels, at the same places, with the same stains."""

import numpy as np
import pytest
from conftest import tiaft

from tiaft_plugin import hookimpl
from tiaft_plugin.engine.predictions import predictions_of
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.engine.store_tiles import read_store_tiles, stain_of_store
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network import load_model
from tiaft_plugin.plugins import plugin_manager


@pytest.fixture(params=[(), ("--stain", "macenko")], ids=["plain", "macenko"])
def store(request, tmp_path, slide, tiny_model):
    done = tiaft(
        "predict", slide, "--model", tiny_model, "--out", tmp_path, "--to", "geojson",
        "--precision", "float32", *request.param,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return read_store(tmp_path / "colon.ome.zarr")


def test_the_network_gives_the_stores_probabilities_again(store, slide, tiny_model):
    net = load_model(tiny_model)
    rows = [7, 0, 3, len(store) - 1]
    seen: list[int] = []
    for some, tiles in read_store_tiles(store, slide, rows):
        found = net.probabilities(tiles).detach().numpy()
        np.testing.assert_allclose(found, store.values.oindex[list(some)], atol=1e-5)
        seen += some
    assert seen == rows
    assert sum(len(tiles) for _, tiles in read_store_tiles(store, slide)) == len(store)


def test_another_slide_or_stain_is_refused(store, tmp_path):
    (tmp_path / "colon.ome.tiff").write_bytes(b"another")
    with pytest.raises(TiaftError, match="is of another colon.ome.tiff than .*: the fingerprints"):
        next(read_store_tiles(store, tmp_path / "colon.ome.tiff"))
    with pytest.raises(TiaftError, match=r"gone\.tiff: no such file"):
        next(read_store_tiles(store, tmp_path / "gone.tiff"))
    facts = {"stain_normalisation": {"name": "macenko", "target": "another's"}}
    with pytest.raises(TiaftError, match="cannot be made here: pass its image with --stain-target"):
        stain_of_store(facts)


def test_measure_tiles_hears_of_the_store(store, slide):
    heard = []

    class Plugin:
        @hookimpl
        def measure_tiles(self, store, tiles):
            heard.append((store, len(tiles.ids)))

    plugin = Plugin()
    plugin_manager().register(plugin)
    try:
        list(predictions_of(store, slide).blocks())
    finally:
        plugin_manager().unregister(plugin)
    assert heard == [(store.path, len(store))]
