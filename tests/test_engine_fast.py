"""Precision, the slide's own stains and the line about speed, as runs on slides have them."""

import numpy as np
import pytest
from conftest import tiaft

from tiaft_plugin import FeatureExtractor, TiaftError
from tiaft_plugin.engine import precision, store
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.run import make_engine, run_slides
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.tiles.stain import make_stain


def extract(model, slide, out, **options):
    engine = make_engine("features", str(model), device="cpu", auto_mask=False, **options)
    engine.verbose = False
    [result] = run_slides(engine, [SlideJob(slide)], out)
    assert result.status != "failed", result.reason
    return result, read_store(result.store, verify=True)


def interrupted(monkeypatch, after: int = 0):
    """Have a run stop once it has written so many chunks."""
    written, write = [], store.write_chunk

    def stopping(group, number, *values):
        if len(written) >= after:
            raise KeyboardInterrupt
        write(group, number, *values)
        written.append(number)

    monkeypatch.setattr(store, "write_chunk", stopping)


def test_auto_keeps_what_the_slide_allows(tiny_model, slide, tmp_path, monkeypatch):
    _, exact = extract(tiny_model, slide, tmp_path / "exact")
    assert exact.facts["precision"] == "float32" and "precision_trial" not in exact.facts
    for least, expected in ((2.0, "float32"), (-1.0, "bfloat16")):
        monkeypatch.setattr(precision, "LEAST_COSINE", least)
        monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
        _, found = extract(tiny_model, slide, tmp_path / expected, precision="auto")
        assert found.facts["precision"] == expected
        trial = found.facts["precision_trial"]
        assert trial["precision"] == expected and trial["tiles"] == 64
        error = np.abs(np.asarray(found.values) - exact.values[:]).max()
        assert (error > 0) == (expected == "bfloat16")


def test_what_was_begun_is_ended_in_the_same_precision(tiny_model, slide, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "LEAST_COSINE", -1.0)
    _, whole = extract(tiny_model, slide, tmp_path / "whole", precision="auto")
    with monkeypatch.context() as patch:
        interrupted(patch)
        with pytest.raises(KeyboardInterrupt):
            extract(tiny_model, slide, tmp_path / "out", precision="auto")
    monkeypatch.setattr(precision, "LEAST_COSINE", 2.0)  # it would not be earned any more
    _, found = extract(tiny_model, slide, tmp_path / "out", precision="auto")
    assert found.facts["precision"] == "bfloat16"
    np.testing.assert_array_equal(found.values[:], whole.values[:])


def test_another_precision_is_another_store(tiny_model, slide, tmp_path):
    options = ("--model", tiny_model, "--out", tmp_path, "--no-mask")
    assert tiaft("extract", slide, *options, "--precision", "float32").returncode == 0
    done = tiaft("extract", slide, *options, "--precision", "bfloat16")
    assert done.returncode == 1 and "made with other settings (precision)" in done.stderr
    with pytest.raises(TiaftError, match="there is no precision int8: there is auto, float32"):
        FeatureExtractor(tiny_model, precision="int8")


def test_a_slides_own_stains_are_kept_for_a_run_that_goes_on(
    tiny_model, slide, tmp_path, monkeypatch
):
    stain = {"stain": make_stain("macenko", scope="slide")}
    result, whole = extract(tiny_model, slide, tmp_path / "whole", **stain)
    assert whole.facts["stain_normalisation"]["scope"] == "slide" and whole.facts["seed"] == 0
    assert 0 < np.asarray(whole.normalised).sum() < len(whole)
    assert "tiles not stain-normalised" in result.note
    with monkeypatch.context() as patch:
        interrupted(patch)
        with pytest.raises(KeyboardInterrupt):
            extract(tiny_model, slide, tmp_path / "out", **stain)

    def fit(self, tiles):
        raise AssertionError("stains were found already")

    monkeypatch.setattr(type(stain["stain"]), "fit", fit)
    _, found = extract(tiny_model, slide, tmp_path / "out", **stain)
    np.testing.assert_array_equal(found.values[:], whole.values[:])
    done = tiaft("verify", found.path, "--slide", slide, "--model", tiny_model, "--device", "cpu")
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout


def test_tiles_alone_have_no_slide_to_find_stains_of(tiny_model):
    engine = FeatureExtractor(tiny_model, stain=make_stain("macenko", scope="slide"))
    with pytest.raises(TiaftError, match="tiles alone have no slide to find stains of"):
        engine.run(np.zeros((2, 32, 32, 3), np.uint8), patch_mode=True)
    done = tiaft("extract", "s.svs", "--model", "m", "--out", "o", "--stain-scope", "slide")
    assert done.returncode == 2 and "--stain-scope needs --stain" in done.stderr


def test_a_run_says_how_fast_it_was(tiny_model, slide, tmp_path):
    done = tiaft("extract", slide, "--model", tiny_model, "--out", tmp_path, "--no-mask")
    assert done.returncode == 0 and " tiles/s (waiting for tiles " in done.stdout
    again = tiaft("extract", slide, "--model", tiny_model, "--out", tmp_path, "--no-mask")
    assert "(was there already)" in again.stdout and "tiles/s" not in again.stdout


def test_a_slow_slide_is_named_as_what_bounds_a_run(tiny_model, slide, tmp_path, monkeypatch):
    import time

    from tiaft_plugin.engine.reading import TileReading

    read = TileReading._tiles

    def slow(self, rows, **options):
        time.sleep(0.05)
        return read(self, rows, **options)

    monkeypatch.setattr(TileReading, "_tiles", slow)
    result, _ = extract(tiny_model, slide, tmp_path)
    assert "; reader-bound: " in result.speed and result.speed.endswith(" more --workers")
