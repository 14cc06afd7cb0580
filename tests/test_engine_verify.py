"""A store is accepted only if it is what it says, and every tile is there."""

import json
import shutil

import numpy as np
import pytest
import zarr
from conftest import tiaft, write_slide
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_store import SETTINGS, downgrade, make

from tiaft_plugin.engine import store
from tiaft_plugin.engine.again import Source
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.run import make_engine
from tiaft_plugin.engine.verify import find_slide, verify_store
from tiaft_plugin.tiles.stain import make_stain

CHECKS = ["schema", "complete", "content", "settings", "timing", "shape", "grid"]
WITH_SLIDE = [*CHECKS, "slide", "coverage", "model", "tiles"]
CIRCUMSTANCES = {"batch_size": 8, "threads": 1, "device": "cpu", "versions": {}}
GRID = {**SETTINGS["grid"], "mask": "none", "min_tissue": 0.0}
ROW = {**SETTINGS, "grid": GRID, "slide": {**SETTINGS["slide"], "size": [40000, 20]}}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, tiny_model, slide):
    """A function that gives a fresh copy of the slide's store, of features or predictions."""
    out = tmp_path_factory.mktemp("extracted")

    def copy(path, kind="features", **options):
        key = f"{kind}-{'-'.join(options)}"
        if not (out / key).exists():
            engine = make_engine(kind, str(tiny_model), batch_size=64, **options)
            engine.verbose = False
            [result] = engine.process([SlideJob(slide)], out / key)
            assert result.status == "done", result.reason
        return shutil.copytree(next((out / key).glob("*.zarr")), path)

    return copy


def failed(findings):
    """Return what failed, by check; a check's text must not be lost."""
    assert all(finding.text for finding in findings)
    return {finding.check: finding.text for finding in findings if finding.status == "FAIL"}


def statuses(findings):
    return {finding.check: finding.status for finding in findings}


def rewritten(path, group, values):
    """Write other values over the first chunk, with a CRC-32 that fits."""
    beside = {name: group[name][:] for name in store.beside_of(store.facts_of(group))}
    store.write_chunk(zarr.open_group(path, mode="r+"), 0, values, beside)


def rebuilt(path, group, coordinates, tissue):
    """Make the store anew with other tiles, all hashes fitting: what a faulty writer would do."""
    facts, found = store.facts_of(group), np.asarray(group["features"][:])
    shutil.rmtree(path)
    group = store.open_for_writing(path, facts, coordinates, tissue, width=found.shape[1])
    store.write_chunk(group, 0, np.resize(found, (len(coordinates), found.shape[1])))


def test_a_sound_store_passes_without_its_slide(tmp_path):
    make(tmp_path / "s.zarr", **ROW)
    found = verify_store(tmp_path / "s.zarr")
    assert statuses(found) == {**dict.fromkeys(CHECKS, "PASS"), "timing": "SKIP", "tiles": "SKIP"}
    assert found[-1].text == "made again only with the slide, s.svs (--slide)"


@pytest.mark.parametrize("kind", ["features", "predictions"])
def test_a_sound_store_passes_with_its_slide(extracted, tiny_model, slide, tmp_path, kind):
    path = extracted(tmp_path / "s.zarr", kind)
    found = verify_store(path, Source(slide, str(tiny_model)), tiles=5, batch_size=2)
    assert statuses(found) == dict.fromkeys(WITH_SLIDE, "PASS")
    assert found[-1].text.startswith("5 of ")


def test_stain_normalised_tiles_are_made_again(extracted, tiny_model, slide, tmp_path):
    path = extracted(tmp_path / "s.zarr", stain=make_stain("macenko"))
    found = verify_store(path, Source(slide, str(tiny_model)), tiles=200)
    assert statuses(found) == dict.fromkeys(WITH_SLIDE, "PASS")
    group = zarr.open_group(path, mode="r+")
    beside = {"colour": group["colour"][:], "normalised": ~group["normalised"][:]}
    store.write_chunk(group, 0, group["features"][:], beside)
    found = verify_store(path, Source(slide, str(tiny_model)), tiles=2)
    assert "normalised of these tiles is not what the slide gives" in failed(found)["tiles"]


def test_what_is_no_store_and_what_is_incomplete(tmp_path):
    (tmp_path / "x.zarr").mkdir()
    assert "is no store of tiaft's" in failed(verify_store(tmp_path / "x.zarr"))["schema"]
    make(tmp_path / "half.zarr", written=[0, 2], **ROW)
    found = failed(verify_store(tmp_path / "half.zarr"))
    assert list(found) == ["complete"] and "(2 of 3 chunks)" in found["complete"]


def test_damaged_chunks_are_counted(tmp_path):
    make(tmp_path / "s.zarr", **ROW)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r+")
    group["features"][600, 1] = 7
    found = failed(verify_store(tmp_path / "s.zarr"))
    assert list(found) == ["content"] and "chunk 1 is not what was written" in found["content"]
    group["features"][5, 1] = 7
    assert "(2 of 3 chunks)" in failed(verify_store(tmp_path / "s.zarr"))["content"]


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_no_store_is_accepted_whose_arrays_are_not_what_was_written(tmp_path_factory, data):
    """One byte of one file is another, or one file ends early, or is gone."""
    path = tmp_path_factory.mktemp("s") / "s.zarr"
    made = make(path, 600, beside=("colour", "normalised"), **ROW)
    before = {name: made[name][:] for name in made.array_keys()}
    files = sorted(file for file in path.rglob("c/**/*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    fault = data.draw(st.sampled_from(["flip", "cut", "remove"]))
    if fault == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content if fault == "flip" else content[:place])
    if fault == "remove":
        file.unlink()
    if failed(verify_store(path)):
        return
    after = zarr.open_group(path, mode="r")
    for name, array in before.items():
        np.testing.assert_array_equal(after[name][:], array)


@pytest.mark.parametrize(
    ("field", "value"),
    [("precision", "bfloat16"), ("scale_to_baseline", [1.0, 1.0]), ("grid_id", "0" * 16)],
)
def test_attributes_are_those_it_was_made_with(tmp_path, field, value):
    make(tmp_path / "s.zarr", **ROW)
    file = tmp_path / "s.zarr/zarr.json"
    meta = json.loads(file.read_text())
    meta["attributes"]["tiaft"][field] = value
    file.write_text(json.dumps(meta))
    assert "the attributes were changed" in failed(verify_store(tmp_path / "s.zarr"))["settings"]


def test_arrays_of_another_shape_or_type(tmp_path):
    group = make(tmp_path / "s.zarr", **ROW)
    del group["tissue"]
    group.create_array("tissue", data=np.ones(7, dtype=np.float32))
    text = failed(verify_store(tmp_path / "s.zarr"))["shape"]
    assert text.endswith("tissue is float32 (7,), not float32 (1200,)")


def test_classes_that_are_not_the_most_probable_ones(tmp_path):
    changes = {**ROW, "kind": "predictions", "classes": list("abcd")}
    group = make(tmp_path / "s.zarr", **changes)
    assert not failed(verify_store(tmp_path / "s.zarr"))
    group["predictions"][600] = (group["predictions"][600] + 1) % 4
    text = failed(verify_store(tmp_path / "s.zarr"))["shape"]
    assert "predictions of chunk 1 are not those of the probabilities" in text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda places: places + np.array([1, 0, 1, 0]), r"tile 0 at \(1, 0\) is not on the grid"),
        (lambda places: places + np.array([0, 0, 1, 0]), "some tiles are not of 10×10 px"),
        (lambda places: places[[0, 1, 1, 2]], r"the tile at \(10, 0\) is there twice"),
        (lambda places: places + np.array([0, 10, 0, 10]), "some tiles lie beyond the slide"),
        (lambda places: places - np.array([20, 0, 20, 0]), "some tiles lie beyond the slide"),
    ],
)
def test_tiles_lie_on_the_grid_once(tmp_path, change, text):
    group = make(tmp_path / "s.zarr", 5, **ROW)
    places = change(group["coordinates"][:])
    rebuilt(tmp_path / "s.zarr", group, places, np.ones(len(places)))
    found = failed(verify_store(tmp_path / "s.zarr"))
    assert list(found) == ["grid"]
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(found["grid"])


def test_a_missing_tile_and_one_too_many_are_found(extracted, tiny_model, slide, tmp_path):
    path = extracted(tmp_path / "s.zarr")
    group = zarr.open_group(path, mode="r")
    places, tissue = group["coordinates"][:], group["tissue"][:]
    source = Source(slide, str(tiny_model))
    rebuilt(path, group, np.delete(places, 3, axis=0), np.delete(tissue, 3))
    x, y = places[3, :2]
    text = failed(verify_store(path, source, tiles=0))["coverage"]
    assert text.endswith(f"1 tiles are missing, such as at ({x}, {y})")
    glass = np.array([[384, 128, 416, 160]])
    rebuilt(path, group_of(path), np.concatenate([places, glass]), np.append(tissue, 1.0))
    text = failed(verify_store(path, source, tiles=0))["coverage"]
    assert text.endswith("1 tiles are too many, such as at (384, 128)")
    rebuilt(path, group_of(path), places[::-1], tissue[::-1])
    assert "not in the order" in failed(verify_store(path, source, tiles=0))["coverage"]
    rebuilt(path, group_of(path), places, np.ones(len(places)))
    assert "tissue fractions" in failed(verify_store(path, source, tiles=0))["coverage"]


def group_of(path):
    return zarr.open_group(path, mode="r")


def test_values_of_other_tiles_are_found(extracted, tiny_model, slide, tmp_path):
    """All hashes fit, and two tiles have each other's features."""
    path = extracted(tmp_path / "s.zarr")
    values = group_of(path)["features"][:]
    values[[10, 20]] = values[[20, 10]]
    rewritten(path, group_of(path), values)
    found = failed(verify_store(path, Source(slide, str(tiny_model)), tiles=1000))
    assert list(found) == ["tiles"]
    assert "2 of 165 tiles are not what the slide gives" in found["tiles"]


def test_how_much_may_differ_depends_on_the_precision(extracted, tiny_model, slide, tmp_path):
    path = extracted(tmp_path / "s.zarr")
    values = group_of(path)["features"][:]
    rewritten(path, group_of(path), values * 1.002)
    source = Source(slide, str(tiny_model))
    text = failed(verify_store(path, source))["tiles"]
    assert "differs by 0.002 (relative), more than 0.0001" in text
    facts = store.facts_of(group_of(path))
    group = zarr.open_group(path, mode="r+")
    kept = {key: facts[key] for key in (*SETTINGS, "precision") if key in facts}
    circumstances = {**CIRCUMSTANCES, "patient": None, "seed": None}
    again = store.describe({**kept, "precision": "bfloat16"}, **circumstances)
    group.attrs["tiaft"] = {**facts, **again}
    assert not failed(verify_store(path, source))


def test_nan_is_no_small_difference(extracted, tiny_model, slide, tmp_path, monkeypatch):
    path = extracted(tmp_path / "s.zarr")
    engine = make_engine("features", str(tiny_model))
    monkeypatch.setattr(engine, "outputs_of", lambda tiles: np.full((len(tiles), 16), np.nan))
    text = failed(verify_store(path, Source(slide, engine), tiles=3))["tiles"]
    assert "3 of 3 tiles are not what the slide gives" in text


def test_another_slide_and_another_model(extracted, tiny_model, slide, tmp_path):
    path = extracted(tmp_path / "s.zarr")
    other = write_slide(tmp_path / slide.name, np.full((256, 256, 3), 200, np.uint8))
    found = verify_store(path, Source(other, str(tiny_model)))
    assert "the fingerprints differ" in failed(found)["slide"]
    assert [finding.check for finding in found] == [*CHECKS, "slide"]

    from tiaft_plugin.network import create_network, save_model

    how = {"init": "random", "tile_size": 32, "mpp": 1.0, "hidden": (16,), "seed": 1}
    net = create_network("test_resnet", "abc", **how)
    model = save_model(net, tmp_path / "other.safetensors")
    found = failed(verify_store(path, Source(slide, str(model))))
    assert "was made with another tiny" in found["model"]


def test_what_is_lacking_is_no_fault(extracted, slide, tmp_path):
    path = extracted(tmp_path / "s.zarr")
    found = verify_store(path, Source(slide))  # the model has no name here
    assert statuses(found)["model"] == "SKIP" and not failed(found)
    assert found[-1].text.endswith("is not here under its name: pass --model")


def test_a_mask_is_needed_and_has_to_be_the_one(tiny_model, slide, tmp_path):
    import imageio.v3

    mask = np.zeros((512, 512, 3), np.uint8)
    mask[:, :200] = 255
    imageio.v3.imwrite(tmp_path / "mask.png", mask)
    imageio.v3.imwrite(tmp_path / "other.png", 255 - mask)
    engine = make_engine("features", str(tiny_model), min_tissue=0.5)
    engine.verbose = False
    [result] = engine.process([SlideJob(slide, tmp_path / "mask.png")], tmp_path)
    checked = {
        name: verify_store(result.store, Source(slide, engine, mask), tiles=2)
        for name, mask in (
            ("none", None),
            ("right", tmp_path / "mask.png"),
            ("wrong", tmp_path / "other.png"),
        )
    }
    assert statuses(checked["none"])["coverage"] == "SKIP"
    assert statuses(checked["right"]) == dict.fromkeys(WITH_SLIDE, "PASS")
    assert "not the one that the store was made with" in failed(checked["wrong"])["coverage"]


def test_the_same_seed_draws_the_same_tiles(extracted, tiny_model, slide, tmp_path):
    path = extracted(tmp_path / "s.zarr")
    wrong = group_of(path)["features"][:]
    wrong[::2] *= 2
    rewritten(path, group_of(path), wrong)
    source = Source(slide, str(tiny_model))
    texts = [failed(verify_store(path, source, tiles=20, seed=s))["tiles"] for s in (0, 0, 1, 2)]
    assert texts[0] == texts[1] and len(set(texts)) > 1


def test_stores_of_version_1_are_verified(extracted, tiny_model, slide, tmp_path):
    path = extracted(tmp_path / "s.zarr")
    downgrade(path)
    found = verify_store(path, Source(slide, str(tiny_model)), tiles=2)
    # Its chunks' CRC-32 are of version 2, which had more in them.
    assert list(failed(found)) == ["content"]
    rewritten(path, group_of(path), group_of(path)["features"][:])
    assert not failed(verify_store(path, Source(slide, str(tiny_model)), tiles=2))


def test_the_slide_is_found_by_its_name(tmp_path):
    make(tmp_path / "s.zarr", 5, **ROW)
    slides = tmp_path / "slides"
    slides.mkdir()
    assert find_slide(tmp_path / "s.zarr", [slides, tmp_path / "t.svs"]) is None
    (slides / "s.svs").touch()
    assert find_slide(tmp_path / "s.zarr", [slides]) == slides / "s.svs"
    (tmp_path / "t.svs").touch()
    assert find_slide(tmp_path / "s.zarr", [tmp_path / "t.svs"]) == tmp_path / "t.svs"
    assert find_slide(tmp_path / "none.zarr", [slides]) is None


@pytest.mark.parametrize(
    ("name", "mpp"), [("CMU-1-Small-Region.svs", None), ("TCGA-CR-7395-01A-01-TS1.svs", 0.25)]
)
def test_real_slides(data, tiny_model, tmp_path, name, mpp):
    slide = data / "slides" / name
    engine = make_engine("features", str(tiny_model), resolution=4.0, stride=24)
    engine.verbose = False
    [result] = engine.process([SlideJob(slide, mpp=mpp)], tmp_path)
    found = verify_store(result.store, Source(slide, str(tiny_model)), tiles=4)
    assert statuses(found) == dict.fromkeys(WITH_SLIDE, "PASS"), found


def test_the_command(extracted, tiny_model, slide, tmp_path):
    (tmp_path / "out").mkdir()
    extracted(tmp_path / "out/a.zarr")
    path = extracted(tmp_path / "out/b.zarr")
    with_slide = ("--slide", slide.parent, "--model", tiny_model, "--tiles", 3)
    ran = tiaft("verify", tmp_path / "out", *with_slide)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("PASS") == 2 * len(WITH_SLIDE) and "2 of 2 stores pass" in ran.stdout
    zarr.open_group(path, mode="r+")["features"][3, 1] = 7
    ran = tiaft("verify", tmp_path / "out/a.zarr", path)
    assert ran.returncode == 1 and "FAIL  content: " in ran.stdout
    assert ran.stdout.count("SKIP") == 2 and "1 of 2 stores pass" in ran.stdout
    ran = tiaft("verify", path, "--mask-class", "Tumor")
    assert ran.returncode == 2 and "--mask-class needs --mask" in ran.stderr
