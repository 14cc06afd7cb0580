"""The store: written chunk by chunk, whole or refused."""

import json
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tiaft_plugin import TiaftError
from tiaft_plugin.engine import store

SETTINGS = {
    "kind": "features",
    "slide": {"name": "s.svs", "fingerprint": "f" * 64, "size": [1000, 800], "mpp": [0.5, 0.5]},
    "model": {"name": "m", "sha256": "a" * 64},
    "classes": [],
    "grid": {"tile_size": [10, 10], "stride": [10, 10], "resolution": 1.0, "units": "mpp"},
    "scale_to_baseline": [2.0, 2.0],
    "precision": "float32",
    "stain_normalisation": None,
}


def make(
    path, count=1200, *, written=None, overwrite=False, patient=None, how=None, beside=(), **changes
):
    """Write a store of `count` tiles with 4 features; `written` chunks of it, or all."""
    how = {"batch_size": 8, "threads": 1, "device": "cpu", "versions": {}, **(how or {})}
    facts = store.describe({**SETTINGS, **changes}, patient=patient, **how)
    x = np.arange(count) * 10
    coordinates = np.stack([x, x * 0, x + 10, x * 0 + 10], 1)
    group = store.open_for_writing(
        path, facts, coordinates, np.ones(count), width=4, beside=beside, overwrite=overwrite
    )
    chunks = range(group["chunk_crc32"].shape[0]) if written is None else written
    for number in chunks:
        rows = store.chunk_slice(number, store.CHUNK_ROWS)
        store.write_chunk(
            group, number, values(count)[rows], {k: v[rows] for k, v in extra(count).items()}
        )
    return group


def extra(count):
    rng = np.random.default_rng(2)
    return {"colour": rng.random((count, 54), np.float32), "normalised": rng.random(count) > 0.3}


def downgrade(path):
    """Make of a store what version 1 wrote: it knew nothing of `beside`."""
    meta = json.loads((path / "zarr.json").read_text())
    facts = meta["attributes"]["tiaft"]
    facts["version"] = 1
    del facts["beside"]
    (path / "zarr.json").write_text(json.dumps(meta))


def values(count):
    return np.random.default_rng(1).normal(size=(count, 4)).astype(np.float32)


@given(count=st.integers(1, 1600))
@settings(max_examples=12, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, count):
    path = tmp_path_factory.mktemp("s") / "s.zarr"
    make(path, count)
    found = store.read_store(path, verify=True)
    assert len(found) == count
    blocks = list(found.blocks())
    np.testing.assert_array_equal(np.concatenate([v for _, v in blocks]), values(count))
    bounds = np.concatenate([b for b, _ in blocks])
    np.testing.assert_array_equal(bounds, np.asarray(found.coordinates[:]) * 2.0)


def test_tiatoolbox_s_readers_find_its_names(tmp_path):
    make(tmp_path / "s.zarr", 5)
    group = zarr.open(tmp_path / "s.zarr", mode="r")
    assert group["features"].shape == (5, 4) and group["coordinates"].shape == (5, 4)


def test_an_incomplete_store_is_refused_and_goes_on(tmp_path):
    path = tmp_path / "s.zarr"
    make(path, written=[0, 2])
    with pytest.raises(TiaftError, match=r"s.zarr is incomplete \(2 of 3 chunks\): run the same"):
        store.read_store(path)
    group = make(path, written=[])
    assert [store.is_written(group, n) for n in range(3)] == [True, False, True]
    store.write_chunk(group, 1, values(1200)[512:1024])
    assert len(store.read_store(path, verify=True)) == 1200


def test_other_settings_do_not_mix(tmp_path):
    path = tmp_path / "s.zarr"
    make(path)
    model = {"name": "other", "sha256": "b" * 64}
    text = r"made with other settings \(model: m \(aaaaaaaa…\) → other \(bbbbbbbb…\)\): .*--over"
    with pytest.raises(TiaftError, match=text):
        make(path, model=model)
    make(path, model=model, overwrite=True)
    assert store.read_store(path).facts["model"] == model


OTHERS = {
    "precision: float32 → bfloat16": {"precision": "bfloat16"},
    "stride: 10×10 → 5×5": {"grid": {**SETTINGS["grid"], "stride": [5, 5]}},
    "mask: none → sha256:cccccccc…": {"grid": {**SETTINGS["grid"], "mask": "sha256:" + "c" * 64}},
    "stain normalisation name: none → macenko; stain normalisation target: none → reference": {
        "stain_normalisation": {"name": "macenko", "target": "reference"}
    },
    "slide fingerprint: ffffffff… → eeeeeeee…; slide mpp: 0.5, 0.5 → 0.25, 0.25": {
        "slide": {**SETTINGS["slide"], "name": "t.svs", "fingerprint": "e" * 64, "mpp": [0.25] * 2}
    },
    "scale to baseline: 2, 2 → 4, 4": {"scale_to_baseline": [4.0, 4.0]},
    "task: none → multilabel": {"task": "multilabel"},
}


@pytest.mark.parametrize("text", OTHERS)
def test_what_differs_is_shown_old_and_new(tmp_path, text):
    make(tmp_path / "s.zarr", 5)
    with pytest.raises(TiaftError) as refused:
        make(tmp_path / "s.zarr", 5, **OTHERS[text])
    assert f"s.zarr was made with other settings ({text}): choose" in str(refused.value)


def test_long_lists_of_classes_are_cut(tmp_path):
    classes = [f"class {number}" for number in range(30)]
    make(tmp_path / "s.zarr", 5, kind="predictions", classes=list("abcd"))
    with pytest.raises(TiaftError, match=r"\(classes: a, b, c, d → class 0, .{50}…\): choose"):
        make(tmp_path / "s.zarr", 5, kind="predictions", classes=classes)


def test_other_tiles_of_the_same_settings_are_no_damage(tmp_path):
    make(tmp_path / "s.zarr", 5)
    with pytest.raises(TiaftError, match="has other tiles than grid and mask give now"):
        make(tmp_path / "s.zarr", 6)


def test_a_new_name_for_the_same_slide_or_model_is_the_same_store(tmp_path):
    path = tmp_path / "s.zarr"
    make(path)
    make(path, model={"name": "renamed", "sha256": "a" * 64}, written=[])
    assert len(store.read_store(path)) == 1200


def test_damage_is_found(tmp_path):
    path = tmp_path / "s.zarr"
    make(path)
    group = zarr.open_group(path, mode="r+")
    group["features"][600, 1] = 7
    store.read_store(path)
    with pytest.raises(TiaftError, match="s.zarr is damaged: chunk 1 is not what was written"):
        store.read_store(path, verify=True)
    assert not store.is_written(group, 1)  # so that a run writes it again


@pytest.mark.parametrize("cut", [b"", b"cut", None])
def test_a_damaged_chunk_is_not_read_as_blocks(tmp_path, cut):
    make(tmp_path / "s.zarr")
    chunk = tmp_path / "s.zarr" / "features" / "c" / "1" / "0"
    chunk.unlink() if cut is None else chunk.write_bytes(cut)  # without it, zarr reads zeros
    with pytest.raises(TiaftError, match="s.zarr is damaged: chunk 1 is not what was written"):
        list(store.read_store(tmp_path / "s.zarr").blocks())


@pytest.mark.parametrize("cut", [b"cut", None])
def test_damaged_places_are_not_read(tmp_path, cut):
    make(tmp_path / "s.zarr")
    chunk = next(path for path in (tmp_path / "s.zarr/coordinates/c").rglob("*") if path.is_file())
    chunk.unlink() if cut is None else chunk.write_bytes(cut)
    with pytest.raises(TiaftError, match=r"s.zarr is damaged \(coordinates\): --overwrite makes"):
        store.read_store(tmp_path / "s.zarr").bounds()


@pytest.mark.parametrize("lost", ["coordinates", "tissue", "chunk_crc32", "features"])
def test_a_store_that_lost_an_array(tmp_path, lost):
    make(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / lost)
    with pytest.raises(TiaftError, match=rf"is damaged \({lost} missing\): --overwrite makes"):
        store.read_store(tmp_path / "s.zarr")
    with pytest.raises(TiaftError, match="is damaged"):
        make(tmp_path / "s.zarr")
    make(tmp_path / "s.zarr", overwrite=True)
    assert len(store.read_store(tmp_path / "s.zarr", verify=True)) == 1200


def test_a_chunk_cut_short_is_written_again(tmp_path):
    group = make(tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "features" / "c" / "1" / "0").write_bytes(b"cut")
    assert [store.is_written(group, number) for number in range(3)] == [True, False, True]
    (tmp_path / "s.zarr" / "chunk_crc32" / "c" / "0").write_bytes(b"")
    with pytest.raises(TiaftError, match="the list of what is written missing.*--overwrite"):
        make(tmp_path / "s.zarr")


@pytest.mark.parametrize("array", ["coordinates", "tissue"])
def test_lost_coordinates_are_found(tmp_path, array):
    make(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / array / "c")  # zarr then reads zeros
    with pytest.raises(TiaftError, match=r"is damaged \(coordinates\): --overwrite makes it anew"):
        store.read_store(tmp_path / "s.zarr", verify=True)
    with pytest.raises(TiaftError, match=r"is damaged \(coordinates\)"):
        make(tmp_path / "s.zarr")


def test_going_on_in_other_circumstances_is_noted(tmp_path):
    path = tmp_path / "s.zarr"
    make(path, written=[0])
    make(path, written=[1], how={"batch_size": 16})
    make(path, written=[2], how={"batch_size": 16})
    facts = store.read_store(path).facts
    assert facts["batch_size"] == 8 and [r["batch_size"] for r in facts["resumed"]] == [16]
    make(path, written=[])
    assert len(store.read_store(path).facts["resumed"]) == 1  # nothing was left to do


def test_a_patient_is_added_and_never_exchanged(tmp_path):
    path = tmp_path / "s.zarr"
    make(path)
    make(path, written=[], patient="P1")
    make(path, written=[])
    assert store.read_store(path).facts["patient"] == "P1"
    with pytest.raises(TiaftError, match="is of patient P1, not P2: correct the table"):
        make(path, written=[], patient="P2")


def test_tiatoolbox_s_converters_read_predictions(tmp_path):
    from tiatoolbox.utils.misc import dict_to_store_patch_predictions

    make(tmp_path / "p.zarr", 5, kind="predictions", classes=list("abcd"))
    found = store.read_store(tmp_path / "p.zarr")
    labels = values(5).argmax(1)
    group = zarr.open(tmp_path / "p.zarr", mode="r")
    features = dict_to_store_patch_predictions(
        group, tuple(found.scale), dict(enumerate(found.classes)), output_type="qupath"
    )["features"]
    assert [feature["class_value"] for feature in features] == labels.tolist()


def test_two_runs_do_not_make_one_store(tmp_path):
    from tiaft_plugin.files import write_folder_atomically

    made = pytest.raises(TiaftError, match="another run may just have made it")
    with made, write_folder_atomically(tmp_path / "s.zarr"):
        make(tmp_path / "s.zarr", 5)
    assert len(store.read_store(tmp_path / "s.zarr")) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "s.zarr"
    make(path)
    meta = json.loads((path / "zarr.json").read_text())
    meta["attributes"]["tiaft"]["version"] = 3
    (path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(TiaftError, match="has version 3 of the store.*upgrade tiaft_plugin"):
        store.read_store(path)


def test_what_is_no_store_is_left_alone(tmp_path):
    file, folder, other = tmp_path / "file.zarr", tmp_path / "folder.zarr", tmp_path / "z.zarr"
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    zarr.open_group(other, mode="w").attrs["mine"] = 1
    for path in (file, folder, other):
        with pytest.raises(TiaftError, match="is no store of tiaft's: it is left alone"):
            make(path, overwrite=True)
    assert file.read_text() == "mine" and (folder / "mine.txt").read_text() == "mine"


BOTH = ("colour", "normalised")


@given(count=st.integers(1, 1100), beside=st.sets(st.sampled_from(BOTH)), killed=st.integers(0, 2))
@settings(max_examples=12, deadline=None)
def test_what_stands_beside_goes_with_its_chunk(tmp_path_factory, count, beside, killed):
    path = tmp_path_factory.mktemp("s") / "s.zarr"
    group = make(path, count, written=[], beside=beside)
    chunks = group["chunk_crc32"].shape[0]
    make(path, count, written=range(min(killed, chunks)), beside=beside)
    make(path, count, written=range(min(killed, chunks), chunks), beside=beside)
    found = store.read_store(path, verify=True)
    assert found.facts["beside"] == sorted(beside) and found.facts["version"] == 2
    for name in BOTH:
        array = getattr(found, name)
        assert (array is not None) == (name in beside)
        if array is not None:
            np.testing.assert_array_equal(array[:], extra(count)[name])


@pytest.mark.parametrize("name", BOTH)
def test_damage_beside_is_found(tmp_path, name):
    path = tmp_path / "s.zarr"
    make(path, beside=BOTH)
    group = zarr.open_group(path, mode="r+")
    group[name][600] = 1 - group[name][600] if name == "colour" else ~group[name][600]
    with pytest.raises(TiaftError, match="s.zarr is damaged: chunk 1 is not what was written"):
        store.read_store(path, verify=True)
    group = make(path, written=[], beside=BOTH)
    assert [store.is_written(group, number) for number in range(3)] == [True, False, True]
    shutil.rmtree(path / name)
    with pytest.raises(TiaftError, match=rf"is damaged \({name} missing\): --overwrite makes"):
        store.read_store(path)


def test_stores_of_version_1_are_read_and_gone_on_with(tmp_path):
    path = tmp_path / "s.zarr"
    make(path, written=[0])
    downgrade(path)
    make(path, written=[1, 2], beside=["colour"])
    found = store.read_store(path, verify=True)
    assert len(found) == 1200 and found.colour is None and found.facts["version"] == 1
    make(path, beside=["colour"], overwrite=True)
    assert store.read_store(path, verify=True).colour.shape == (1200, 54)


def test_nan_is_never_written(tmp_path):
    group = make(tmp_path / "s.zarr", 5, written=[])
    with pytest.raises(TiaftError, match="NaN or infinity"):
        store.write_chunk(group, 0, np.full((5, 4), np.nan))
    assert store.count_missing(group) == 1


def test_tile_ids_depend_on_slide_grid_model_and_place_only(tmp_path):
    make(tmp_path / "a.zarr")
    make(tmp_path / "b.zarr", slide={**SETTINGS["slide"], "name": "renamed.svs"})
    make(tmp_path / "c.zarr", model={"name": "m", "sha256": "b" * 64})
    make(tmp_path / "d.zarr", grid={**SETTINGS["grid"], "stride": [5, 5]})
    ids = []
    for name in "abcd":
        found = store.read_store(tmp_path / f"{name}.zarr")
        ids.append([i for bounds, _ in found.blocks() for i in found.tile_ids(bounds)])
    assert len(set(ids[0])) == 1200 and ids[0] == ids[1]
    assert not set(ids[0]) & set(ids[2]) and not set(ids[0]) & set(ids[3])
    assert str(ids[0][0]) == "bc626778-4dd6-56cc-b89e-26ece1712a13"
