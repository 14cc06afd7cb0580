"""Stores as files of other tools, read as those tools read them."""

import json

import h5py
import numpy as np
import pytest
import torch
from conftest import tiaft
from test_engine_store import SETTINGS, extra, make, values

from tiaft_plugin import TiaftError
from tiaft_plugin.engine import export
from tiaft_plugin.engine.store import read_store

COUNT = 1200  # three chunks, the last not full
PREDICTIONS = {"kind": "predictions", "classes": ["tumour", "a/b", "glass", "mucus"]}


def exported(tmp_path, to, **changes):
    """Export a store of tiles of 10 px at 1 µm/px, of a slide of 0.5 µm/px."""
    make(tmp_path / "s.zarr", COUNT, **changes)
    path = tmp_path / f"s{export.LAYOUTS[to][0]}"
    assert export.export_store(tmp_path / "s.zarr", to, path) == COUNT
    return path


def test_clam_reads_bags_and_coordinates(tmp_path):
    # as dataset_modules/dataset_generic.py does with use_h5
    with h5py.File(exported(tmp_path, "h5"), "r") as file:
        features, coords = file["features"][:], file["coords"][:]
        assert "patch_level" not in file["coords"].attrs  # 10 px of level 0 are not these tiles
    np.testing.assert_array_equal(torch.from_numpy(features), values(COUNT))
    assert coords.dtype == np.int64 and coords[3].tolist() == [60, 0]  # baseline pixels


def test_clam_reads_tiles_again_where_they_were_read_at_baseline(tmp_path):
    # as Whole_Slide_Bag_FP does: read_region(coord, patch_level, (patch_size, patch_size))
    with h5py.File(exported(tmp_path, "h5", scale_to_baseline=[1.0, 1.0]), "r") as file:
        coords = file["coords"]
        assert (coords.attrs["patch_level"], coords.attrs["patch_size"]) == (0, 10)


def test_trident_reads_what_its_slide_encoders_and_patcher_want(tmp_path):
    # as WSI.extract_slide_features and WSIPatcher do
    with h5py.File(exported(tmp_path, "h5"), "r") as file:
        attributes = dict(file["coords"].attrs)
        assert file["features"].attrs["encoder"] == "m" and file["features"].attrs["name"] == "s"
    assert int(attributes["patch_size_level0"]) == 20
    assert attributes["level0_magnification"] == 20 and attributes["target_magnification"] == 10
    downsample = (10 / attributes["target_magnification"]) / (
        10 / attributes["level0_magnification"]
    )
    assert round(attributes["patch_size"] * downsample) == attributes["patch_size_level0"]
    assert (attributes["level0_width"], attributes["level0_height"]) == (1000, 800)
    assert attributes["overlap"] == 0


@pytest.mark.parametrize(
    ("mpp", "magnification"), [(0.12, 80), (0.2527, 40), (0.5, 20), (1.0, 10), (4.0, 2.5)]
)
def test_magnifications_are_trident_s(tmp_path, mpp, magnification):
    slide = {**SETTINGS["slide"], "mpp": [mpp, mpp]}
    with h5py.File(exported(tmp_path, "h5", slide=slide), "r") as file:
        attributes = dict(file["coords"].attrs)
    assert attributes["level0_magnification"] == magnification
    assert attributes["target_magnification"] == pytest.approx(10 / (mpp * 2))


def test_stamp_reads_features_and_microns(tmp_path):
    # as BagDataset and get_coords do
    with h5py.File(exported(tmp_path, "stamp"), "r", swmr=True, libver="latest") as h5:
        assert h5.attrs.get("feat_type") == "tile" and h5.attrs.get("encoder") is None
        feats = torch.from_numpy(h5["feats"][()]).float()
        assert "tile_size" not in h5.attrs  # else its older format is meant
        tile_size_um, coords_um = float(h5.attrs["tile_size_um"]), h5["coords"][:]
        assert h5.attrs["unit"] == "um" and h5.attrs["extractor"] == "m"
        assert tile_size_um / int(h5.attrs["tile_size_px"]) == 1.0  # CoordsInfo.mpp
    assert feats.shape == (COUNT, 4)
    assert coords_um[3].tolist() == [30.0, 0.0] and tile_size_um == 10.0
    assert np.round(coords_um / 0.5).astype(int)[3].tolist() == [60, 0]  # "as used by OpenSlide"


def test_pt_is_a_tensor_that_loads_without_pickled_code(tmp_path):
    path = exported(tmp_path, "pt")
    features = torch.load(path, weights_only=True)
    assert features.dtype == torch.float32
    np.testing.assert_array_equal(features, values(COUNT))
    again = tmp_path / "again.pt"
    export.export_store(tmp_path / "s.zarr", "pt", again)
    assert again.read_bytes() == path.read_bytes()


def test_anndata_reads_features(tmp_path):
    anndata = pytest.importorskip("anndata")
    adata = anndata.read_h5ad(exported(tmp_path, "anndata", beside=("colour", "normalised")))
    store = read_store(tmp_path / "s.zarr")
    np.testing.assert_array_equal(adata.X, values(COUNT))
    np.testing.assert_array_equal(adata.obsm["colour"], extra(COUNT)["colour"])
    np.testing.assert_array_equal(adata.obs["normalised"], extra(COUNT)["normalised"])
    assert adata.obsm["spatial"][3].tolist() == [70.0, 10.0]  # centres
    bounds = next(store.blocks())[0]
    assert list(adata.obs_names[:512]) == list(map(str, store.tile_ids(bounds)))
    np.testing.assert_array_equal(adata.obs[["x0", "y0", "x1", "y1"]].to_numpy()[:512], bounds)
    assert set(adata.obs["library_id"]) == {"s"}
    assert adata.uns["spatial"]["s"]["scalefactors"]["spot_diameter_fullres"] == 20.0
    assert json.loads(adata.uns["tiaft"])["model"]["sha256"] == "a" * 64


def test_anndata_reads_predictions(tmp_path):
    anndata = pytest.importorskip("anndata")
    adata = anndata.read_h5ad(exported(tmp_path, "anndata", **PREDICTIONS))
    classes = PREDICTIONS["classes"]
    assert list(adata.var_names) == classes
    best = [classes[number] for number in values(COUNT).argmax(1)]
    assert list(adata.obs["prediction"]) == best


def test_anndata_keeps_tiles_without_a_label_unlabelled(tmp_path):
    path = exported(tmp_path, "anndata", **PREDICTIONS, task="multilabel")
    with h5py.File(path, "r") as file:
        codes = file["obs/prediction/codes"][:]
    np.testing.assert_array_equal(codes == -1, values(COUNT).max(1) < 0.5)


def test_h5ad_follows_the_published_format(tmp_path):
    """Every element says what it is, and each column of a dataframe is there."""
    path = exported(tmp_path, "anndata", beside=("colour", "normalised"), **PREDICTIONS)
    with h5py.File(path, "r") as file:
        elements = [file]
        file.visititems(lambda _, element: elements.append(element))
        lacking = [e.name for e in elements if "encoding-type" not in e.attrs]
        assert file.attrs["encoding-type"] == "anndata" and not lacking
        for frame in (file["obs"], file["var"]):
            columns = {*frame.attrs["column-order"], frame.attrs["_index"]}
            assert columns == set(frame)
        assert {len(file[f"obs/{name}"]) for name in ("_index", "tissue", "normalised")} == {COUNT}


def test_what_was_told_of_a_store_is_in_its_file(tmp_path):
    with h5py.File(exported(tmp_path, "h5"), "r") as file:
        facts = json.loads(file.attrs["tiaft"])
    found = read_store(tmp_path / "s.zarr").facts
    assert facts["settings_sha256"] == found["settings_sha256"] and "resumed" not in facts


def test_what_cannot_be_exported(tmp_path):
    make(tmp_path / "p.zarr", 5, **PREDICTIONS)
    with pytest.raises(TiaftError, match="p.zarr holds predictions: --to pt is for features"):
        export.export_store(tmp_path / "p.zarr", "pt", tmp_path / "p.pt")
    make(tmp_path / "half.zarr", written=[0])
    with pytest.raises(TiaftError, match=r"half.zarr is incomplete \(1 of 3 chunks\)"):
        export.export_store(tmp_path / "half.zarr", "h5", tmp_path / "half.h5")
    make(tmp_path / "d.zarr")["features"][600, 1] = 7
    with pytest.raises(TiaftError, match="d.zarr is damaged: chunk 1"):
        export.export_store(tmp_path / "d.zarr", "h5", tmp_path / "d.h5")
    make(tmp_path / "oblong.zarr", 5, grid={**SETTINGS["grid"], "tile_size": [10, 12]})
    with pytest.raises(TiaftError, match="tiles of 12×10 px: this layout knows square ones only"):
        export.export_store(tmp_path / "oblong.zarr", "h5", tmp_path / "oblong.h5")
    assert {path.suffix for path in tmp_path.iterdir()} <= {".zarr", ""}  # nothing was left behind


def test_a_person_s_file_is_not_overwritten(tmp_path):
    make(tmp_path / "s.zarr", 5)
    file = tmp_path / "s.h5"
    file.write_text("mine")
    with pytest.raises(TiaftError, match=r"s.h5 exists already: .*--overwrite"):
        export.export_store(tmp_path / "s.zarr", "h5", file)
    assert file.read_text() == "mine"
    export.export_store(tmp_path / "s.zarr", "h5", file, overwrite=True)
    assert h5py.is_hdf5(file)


def test_two_stores_of_one_name_are_not_mixed_up(tmp_path):
    stores = [tmp_path / "a/s.zarr", tmp_path / "b/s.zarr"]
    with pytest.raises(TiaftError, match="a/s.zarr and .*b/s.zarr would both become .*s.h5"):
        export.export_paths(stores, "h5", tmp_path)


def test_memory_does_not_grow_with_the_slide(tmp_path, monkeypatch):
    """No read of the values takes more than a chunk."""
    make(tmp_path / "s.zarr", COUNT)
    largest = []
    rows_of = export.rows_of

    def watched(store):
        for rows, bounds, found in rows_of(store):
            largest.append(len(found))
            yield rows, bounds, found

    monkeypatch.setattr(export, "rows_of", watched)
    for to in ("h5", "stamp", "pt"):
        export.export_store(tmp_path / "s.zarr", to, tmp_path / f"{to}{export.LAYOUTS[to][0]}")
    assert max(largest) == 512 and sum(largest) == 3 * COUNT


def test_the_command_takes_folders_and_says_what_failed(tmp_path):
    make(tmp_path / "in/a.zarr", 5)
    make(tmp_path / "in/b.zarr", written=[0])
    ran = tiaft("export", tmp_path / "in", "--to", "pt", "--out", tmp_path / "out")
    assert ran.returncode == 1
    assert "a.zarr: 5 tiles -> " in ran.stdout and "1 of 2 stores exported" in ran.stdout
    assert "FAILED" in ran.stderr and "b.zarr is incomplete" in ran.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.pt"]
    (tmp_path / "empty").mkdir()
    ran = tiaft("export", tmp_path / "empty", "--to", "pt", "--out", tmp_path / "out")
    assert ran.returncode == 2 and "holds no store (.zarr)" in ran.stderr
