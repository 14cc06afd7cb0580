"""Files that are written whole or not at all, and what is said where they cannot be."""

import errno
import re

import pytest

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.files import (
    refuse_among_tiles,
    write_atomically,
    write_csv,
    write_folder_atomically,
)


def test_a_disk_that_is_full_for_numpy_names_the_file(tmp_path):
    with (
        pytest.raises(Stopped, match=r"a.npy cannot be written \(9 requested and 2 written\): is"),
        write_atomically(tmp_path / "a.npy"),
    ):
        raise OSError("9 requested and 2 written")  # without a number, as numpy does
    assert not list(tmp_path.iterdir())


def test_a_file_of_a_folder_is_named_where_people_look_for_it(tmp_path):
    def full():
        yield [1]
        raise OSError(errno.ENOSPC, "No space left on device")

    named = re.escape(f"{tmp_path / 'out' / 'a.csv'} cannot be written: No space left")
    with (
        pytest.raises(Stopped, match=f"^{named}"),
        write_folder_atomically(tmp_path / "out") as folder,
    ):
        write_csv(folder / "a.csv", ["n"], full())
    assert not list(tmp_path.iterdir())


def test_results_lie_among_no_tiles_but_beside_stores(tmp_path):
    with pytest.raises(TiaftError, match="a lies among the tiles of .*: choose another --out"):
        refuse_among_tiles(tmp_path / "x" / "a", tmp_path)
    refuse_among_tiles(tmp_path, tmp_path / "x")
    (tmp_path / "slide.zarr").mkdir()
    refuse_among_tiles(tmp_path / "a", tmp_path)
