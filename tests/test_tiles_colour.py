"""Colour beside features: counted, so that it is the same everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tiaft_plugin import TiaftError
from tiaft_plugin.tiles import colour
from tiaft_plugin.tiles.colour import colour_features

TILES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.just(3)).flatmap(
    lambda shape: arrays(np.uint8, shape)
)


@given(TILES)
@settings(max_examples=60, deadline=None)
def test_means_deviations_and_histograms(tiles):
    found = colour_features(tiles)
    scaled = tiles.reshape(len(tiles), -1, 3) / 255
    assert found.shape == (len(tiles), 54) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, :3], scaled.mean(1), atol=1e-6)
    np.testing.assert_allclose(found[:, 3:6], scaled.std(1), atol=1e-6)
    bins = found[:, 6:].reshape(-1, 3, 16)
    np.testing.assert_allclose(bins.sum(2), 1, rtol=1e-6)
    for tile, histogram in zip(tiles, bins, strict=True):
        for channel in range(3):
            counts = np.histogram(tile[..., channel], bins=16, range=(0, 256))[0]
            np.testing.assert_allclose(histogram[channel], counts / counts.sum(), rtol=1e-6)


def test_where_pixels_lie_and_how_the_array_does_changes_nothing():
    tile = np.random.default_rng(0).integers(0, 256, (1, 40, 24, 3), dtype=np.uint8)
    expected = colour_features(tile)
    views = (tile[:, ::-1, ::-1], tile.transpose(0, 2, 1, 3), np.asfortranarray(tile))
    for view in views:
        np.testing.assert_array_equal(colour_features(view), expected)
    shuffled = np.random.default_rng(1).permutation(tile.reshape(-1, 3)).reshape(tile.shape)
    np.testing.assert_array_equal(colour_features(shuffled), expected)


def test_tiles_too_large_to_count_in_float32():
    tile = np.zeros((1, 4100, 4100, 3), np.uint8)
    tile[0, 0, 0] = 255
    found = colour._counts(tile[0])
    assert found[:, 0].tolist() == [4100 * 4100 - 1] * 3 and found[:, 255].tolist() == [1] * 3
    tile[0, ::2] = 255  # n Σv² is then beyond int64
    np.testing.assert_allclose(colour_features(tile)[0, :6], 0.5, atol=1e-3)


@pytest.mark.parametrize(
    "tiles",
    [np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8),
     np.zeros((2, 4, 4, 4), np.uint8), np.zeros((2, 0, 4, 3), np.uint8)],
)  # fmt: skip
def test_other_arrays_are_refused(tiles):
    with pytest.raises(TiaftError, match=r"uint8 \(N, H, W, 3\) expected"):
        colour_features(tiles)
