"""Tile sets: what is read, in which order, and how faults are named."""

import csv
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tiaft_plugin import TiaftError
from tiaft_plugin.kather100k import KATHER100K
from tiaft_plugin.tiles.fingerprint import content_hashes, fingerprint
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.known import nct_layout, recognise
from tiaft_plugin.tiles.listing import list_manifest
from tiaft_plugin.tiles.split import refuse_shared_groups, split_by_groups, split_share
from tiaft_plugin.tiles.tileset import TileSet, read_tileset

SIZE = 12


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (SIZE, SIZE), seed: int = 0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(0, 256, (*size[::-1], 3))
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)


def make_folders(root: Path, classes=("STR", "TUM"), each: int = 2) -> Path:
    for name in classes:
        for number in range(each):
            save(root / name / f"{number}.png")
    return root


def write_manifest(root: Path, rows, columns=("file", "label", "group", "mpp")) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return root / "manifest.csv"


def make_manifest(root: Path, mpps=("", "", "", ""), groups=("p1", "p1", "p2", "p2")) -> Path:
    rows = []
    for number, (mpp, group) in enumerate(zip(mpps, groups, strict=True)):
        save(root / f"t{number}.png")
        rows.append((f"t{number}.png", "AB"[number % 2], group, mpp))
    return write_manifest(root, rows)


def test_a_folder_per_class_is_read(tmp_path):
    tiles = read_tileset(make_folders(tmp_path, each=3))
    assert tiles.counts == {"TUM": 3, "STR": 3}  # TIAToolbox's order, not the alphabet's
    assert tiles.targets == [1, 1, 1, 0, 0, 0]
    assert (tiles.tile_size, tiles.mpp, tiles.known, set(tiles.groups)) == (
        SIZE,
        None,
        None,
        {None},
    )


def test_all_nine_classes_stand_in_tiatoolbox_order(tmp_path):
    assert read_tileset(make_folders(tmp_path, sorted(KATHER100K))).classes == KATHER100K


def test_one_foreign_class_makes_the_order_alphabetical(tmp_path):
    tiles = read_tileset(make_folders(tmp_path, ("TUM", "BACK", "NORM", "OTHER")))
    assert tiles.classes == ("BACK", "NORM", "OTHER", "TUM")


def test_a_manifest_is_read_with_further_columns_and_a_byte_order_mark(tmp_path):
    for name in ("a", "b", "c", "d"):
        save(tmp_path / "deep" / f"{name} é.png")
    text = "scanner,label,file,mpp\n" + "".join(
        f"x,{label},deep/{name} é.png,0.25\n" for name, label in zip("abcd", "XXYY", strict=True)
    )
    (tmp_path / "list.csv").write_text(text, encoding="utf-8-sig")
    tiles = read_tileset(tmp_path / "list.csv")
    assert tiles.counts == {"X": 2, "Y": 2}
    assert tiles.mpp == 0.25
    assert tiles.shown(tiles.files[0]) == "deep/a é.png"


def test_a_folder_with_a_manifest_is_read_by_it(tmp_path):
    make_manifest(tmp_path)
    save(tmp_path / "unlisted.png")
    assert len(read_tileset(tmp_path)) == 4


@pytest.mark.parametrize(
    ("given", "manifest", "expected"),
    [(0.3, "0.4", 0.3), (None, "0.4", 0.4), (None, "", None), (0.3, "", 0.3)],
)
def test_the_resolution_given_comes_first_then_the_manifests(tmp_path, given, manifest, expected):
    make_manifest(tmp_path, mpps=[manifest] * 4)
    assert read_tileset(tmp_path, mpp=given).mpp == expected


def test_a_manifests_resolution_comes_before_a_known_sets(tmp_path):
    names = [f"{label}-AAAAAA{a}{b}.tif" for label in ("TUM", "STR") for a, b in ("AB", "CD")]
    for name in names:
        save(tmp_path / name, size=(224, 224))
    write_manifest(tmp_path, [(name, name[:3], "", "") for name in names])
    assert read_tileset(tmp_path).mpp == 0.5
    write_manifest(tmp_path, [(name, name[:3], "", 0.4) for name in names])
    assert read_tileset(tmp_path).mpp == 0.4


@pytest.mark.parametrize(
    ("mpps", "message"),
    [
        (["0.5", "0.5", "0.25", "0.5"], r"different µm/px \(0.25, 0.5\): make one set of each"),
        (["0.5", "", "0.5", "0.5"], "1 of 4 tiles have no mpp in the manifest"),
        (["0.5", "0,5", "0.5", "0.5"], "line 3: mpp is '0,5', not a positive µm/px"),
        (["-1", "1", "1", "1"], "line 2: mpp is '-1'"),
        (["nan", "1", "1", "1"], "line 2: mpp is 'nan'"),
    ],
)
def test_wrong_resolutions_are_refused(tmp_path, mpps, message):
    make_manifest(tmp_path, mpps=mpps)
    with pytest.raises(TiaftError, match=message):
        read_tileset(tmp_path)


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        ("L", "grey, not RGB"),
        ("P", "palette, not RGB"),
        ("RGBA", "RGBA, not RGB"),
        ("I;16", "16 bits a channel, not 8"),
        ("1", "black and white, not RGB"),
    ],
)
def test_images_that_are_not_rgb_are_named(tmp_path, mode, shown):
    make_folders(tmp_path)
    if mode == "I;16":
        Image.fromarray(np.zeros((SIZE, SIZE), np.uint16)).save(tmp_path / "TUM" / "odd.png")
    else:
        save(tmp_path / "TUM" / "odd.png", mode)
    with pytest.raises(TiaftError, match=rf"1 of 5 tiles cannot be used: TUM/odd.png \({shown}\)"):
        read_tileset(tmp_path)


def test_sixteen_bit_colour_which_pillow_halves_is_named(tmp_path):
    from tifffile import imwrite

    make_folders(tmp_path)
    colour = np.zeros((SIZE, SIZE, 3), np.uint16)
    imwrite(tmp_path / "TUM" / "deep.tif", colour, photometric="rgb")
    with pytest.raises(TiaftError, match=r"TUM/deep.tif \(16 bits a channel, not 8\)"):
        read_tileset(tmp_path)


def test_unreadable_and_odd_sized_images_are_named_together(tmp_path):
    make_folders(tmp_path, each=9)
    (tmp_path / "TUM" / "notes.txt").write_text("not a tile")
    (tmp_path / "TUM" / "empty.png").touch()
    for number in range(5):
        save(tmp_path / "STR" / f"odd{number}.png", size=(SIZE, SIZE + 1))
    with pytest.raises(TiaftError) as error:
        read_tileset(tmp_path)
    text = str(error.value)
    assert "7 of 25 tiles cannot be used" in text
    assert "STR/odd0.png (12×13 px, most are 12×12)" in text
    assert text.endswith("and 2 more: repair or remove them")


def test_tiles_that_are_not_square_are_refused(tmp_path):
    for number in range(4):
        save(tmp_path / "AB"[number % 2] / f"{number}.png", size=(12, 8))
    with pytest.raises(TiaftError, match="12×8 px, not square"):
        read_tileset(tmp_path)


def test_what_file_managers_leave_behind_is_no_tile(tmp_path):
    make_folders(tmp_path)
    for name in (".DS_Store", "STR/.DS_Store", "STR/Thumbs.db", "TUM/desktop.ini", "README.md"):
        (tmp_path / name).write_text("clutter")
    assert len(read_tileset(tmp_path)) == 4


def test_faults_of_folders_are_named(tmp_path):
    root = make_folders(tmp_path / "set")
    (root / "NORM").mkdir()
    with pytest.raises(TiaftError, match="class folders without a tile: NORM"):
        read_tileset(root)
    save(root / "NORM" / "one.png")
    with pytest.raises(
        TiaftError, match=r"classes with fewer than two tiles to train on: NORM \(1\)"
    ):
        read_tileset(root)
    (root / "NORM" / "one.png").rename(root / "loose.png")
    (root / "NORM").rmdir()
    with pytest.raises(TiaftError, match=r"holds tiles of no class: loose.png"):
        read_tileset(root)
    (root / "TUM" / "more").mkdir()
    (root / "loose.png").unlink()
    with pytest.raises(TiaftError, match=r"TUM holds folders \(more\)"):
        read_tileset(root)
    with pytest.raises(TiaftError, match="holds no class folders"):
        read_tileset(_empty(tmp_path / "empty"))
    shutil.rmtree(root / "TUM")
    with pytest.raises(TiaftError, match=r"holds one class \(STR\): two or more"):
        read_tileset(root)


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_paths_that_are_no_tile_set_are_refused(tmp_path):
    with pytest.raises(TiaftError, match="nowhere: no such tile set"):
        read_tileset(tmp_path / "nowhere")
    save(tmp_path / "tile.png")
    with pytest.raises(TiaftError, match=r"tile.png is no tile set: give a folder per class, or"):
        read_tileset(tmp_path / "tile.png")


def test_class_names_may_be_odd_but_hold_no_line_breaks(tmp_path):
    odd = ("=1+1", 'say "so"', "<script>", "a, b")
    rows = [(f"{number}.png", label) for number, label in enumerate(odd * 2)]
    for name, _ in rows:
        save(tmp_path / name)
    assert read_tileset(write_manifest(tmp_path, rows, ("file", "label"))).classes == (
        '<script>', '=1+1', 'a, b', 'say "so"'
    )  # fmt: skip
    rows[0] = ("0.png", "two\nlines")
    write_manifest(tmp_path, rows, ("file", "label"))
    with pytest.raises(
        TiaftError, match=r"class names hold line breaks or the like: 'two\\nlines'"
    ):
        read_tileset(tmp_path)


def test_classes_that_differ_in_case_alone_are_refused(tmp_path):
    for number in range(4):
        save(tmp_path / f"{number}.png")
    labels = ("Tumor", "tumor", "Stroma", "Stroma")
    write_manifest(tmp_path, [(f"{n}.png", label, "", "") for n, label in enumerate(labels)])
    with pytest.raises(TiaftError, match="classes differ only in case: Tumor and tumor"):
        read_tileset(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column file and label; a manifest begins with .* this one with nothing"),
        ("path,label\na.png,A\n", "no column file; .* this one with path,label"),
        ("file;label\na.png;A\n", "this one with file;label"),
        ("file,label\n", "lists no tile"),
        ("file,label\na.png,\n", "line 2: file or label is empty"),
        ("file,label\na.png,A\n./a.png,B\n", "lists a file more than once: .*a.png"),
        ("file,label\na.png,A\n" + "".join(f"no{i}.png,B\n" for i in range(7)),
         "7 of 8 files are missing: .*no4.png and 2 more"),
        ('file,label\n"a.png,A\n', "line 2: file or label is empty"),
    ],
)  # fmt: skip
def test_faults_of_manifests_are_named(tmp_path, text, message):
    save(tmp_path / "a.png")
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(TiaftError, match=message):
        read_tileset(tmp_path)


def test_a_manifest_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_bytes("file,label\né.png,A\n".encode("utf-16"))
    with pytest.raises(TiaftError, match="cannot be read as CSV in UTF-8"):
        read_tileset(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.binary(max_size=200),
    head=st.sampled_from([b"", b"file,label\n", b"file,label,mpp\n"]),
)
def test_no_manifest_ends_in_anything_but_rows_or_one_line(tmp_path, content, head):
    path = tmp_path / "manifest.csv"
    path.write_bytes(head + content)
    try:
        assert list_manifest(path)
    except TiaftError as error:
        assert str(path) in str(error)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(data=st.data())
def test_no_damaged_image_gives_anything_but_pixels_or_one_line(tmp_path, data):
    path = tmp_path / f"tile.{data.draw(st.sampled_from(['png', 'jpg', 'tif', 'webp']))}"
    save(path)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_image(path, SIZE).shape == (SIZE, SIZE, 3)
    except TiaftError as error:
        assert str(path) in str(error)


def test_a_truncated_tile_is_named_when_it_is_read(tmp_path):
    save(tmp_path / "t.png", size=(64, 64))
    content = (tmp_path / "t.png").read_bytes()
    (tmp_path / "t.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        TiaftError, match=r"t.png cannot be decoded .*: copy it again, or remove it"
    ):
        read_image(tmp_path / "t.png")


def test_given_classes_stand_as_they_are(tmp_path):
    tiles = read_tileset(make_folders(tmp_path, each=1), classes=("STR", "LYM", "TUM"))
    assert tiles.counts == {"STR": 1, "LYM": 0, "TUM": 1}
    with pytest.raises(TiaftError, match="classes that the training tiles lack: STR"):
        read_tileset(tmp_path, classes=("LYM", "TUM"))


def test_groups_are_held_out_whole(tmp_path):
    for number in range(8):
        save(tmp_path / f"t{number}.png")
    groups = ("p1", "p1", "p2", "p2", "p1", "p3", "p3", "p1")
    rows = [(f"t{n}.png", "AB"[n % 2], group, "") for n, group in enumerate(groups)]
    write_manifest(tmp_path, rows)
    train, val = split_by_groups(read_tileset(tmp_path), ["p2", "p3"])
    assert (train.group_names, val.group_names) == (["p1"], ["p2", "p3"])
    assert [file.name for file in val.files] == ["t2.png", "t3.png", "t5.png", "t6.png"]
    assert (train.counts, train.classes) == ({"A": 2, "B": 2}, val.classes)


def test_wrong_groups_are_refused(tmp_path):
    make_manifest(tmp_path)
    tiles = read_tileset(tmp_path)
    with pytest.raises(TiaftError, match="has no group p3, p9; its groups are p1, p2"):
        split_by_groups(tiles, ["p1", "p9", "p3"])
    with pytest.raises(TiaftError, match=r"fewer than two tiles to train on: A \(1\), B \(1\)"):
        split_by_groups(tiles, ["p1"])
    make_manifest(tmp_path, groups=("p1", "", "p2", "p2"))
    with pytest.raises(
        TiaftError, match=r"1 of 4 tiles have no group \(slide or patient\).*t1.png"
    ):
        split_by_groups(read_tileset(tmp_path), ["p1"])


def test_the_fingerprint_is_of_names_labels_groups_and_content(tmp_path):
    make_manifest(tmp_path / "one")
    first = read_tileset(tmp_path / "one")
    shuffled = random.Random(1).sample(range(4), 4)
    assert fingerprint(first) == fingerprint(first.subset(shuffled))
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    os.utime(tmp_path / "moved" / "t0.png", (0, 0))
    assert fingerprint(read_tileset(tmp_path / "moved")) == fingerprint(first)
    seen = {fingerprint(first)}
    rows = [[f"t{n}.png", "AB"[n % 2], "p1" if n < 2 else "p2", ""] for n in range(4)]
    for row, column, value in ((0, 2, "p2"), (0, 1, "B"), (1, 1, "A")):
        rows[row][column] = value
        write_manifest(tmp_path / "moved", rows)
        seen.add(fingerprint(read_tileset(tmp_path / "moved", classes=("A", "B"))))
    save(tmp_path / "moved" / "t3.png", seed=9)
    seen.add(fingerprint(read_tileset(tmp_path / "moved", classes=("A", "B"))))
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("names", "size", "known"),
    [
        (["ADI-AAAMHQMK.tif", "TUM-AEQVIPKD.tif"], 224, "NCT-CRC-HE-100K"),
        (["ADI-TCGA-AAICEQFN.tif"], 224, "CRC-VAL-HE-7K"),
        (["10009_CRC-Prim-HE-03_009.tif_Row_301_Col_151.tif"], 150, "Kather 2016"),
        (["34_CRC-Prim-HE-10c_Row_451_Col_151.webp"], 150, "Kather 2016"),
        (["ADI-AAAMHQMK.tif"], 112, None),
        (["ADI-AAAMHQMK.tif", "ADI-TCGA-AAICEQFN.tif"], 224, None),
        (["ADI-AAAMHQMK.tif", "mine.tif"], 224, None),
    ],
)
def test_known_sets_are_known_by_all_their_names_and_their_size(names, size, known):
    found = recognise([Path(name) for name in names], size)
    assert (found is None) if known is None else found.name.startswith(known)


def test_the_real_sets_are_recognised(data):
    kather = read_tileset(data / "kather2016")
    assert (kather.mpp, kather.tile_size, len(kather)) == (0.495, 150, 960)
    assert kather.known.doi == "10.5281/zenodo.53169"
    named = [kather.known.group_of(file) for file in kather.files]
    assert named == list(kather.groups)  # the names tell the slide that the manifest tells
    val = read_tileset(data / "crc_val_he_7k")
    assert (val.name, val.mpp, val.tile_size) == ("CRC-VAL-HE-7K", 0.5, 224)
    assert val.classes == tuple(name for name in KATHER100K if name != "BACK")


def make_multilabel(root: Path, labels=("B;A", "", " A ", "B; C", "C"), groups=None) -> Path:
    """Write a tile for each of `labels`, and their manifest."""
    rows = []
    for number, label in enumerate(labels):
        save(root / f"t{number}.png")
        rows.append((f"t{number}.png", label, groups[number] if groups else "", ""))
    return write_manifest(root, rows)


def test_tiles_of_several_labels_are_read(tmp_path):
    tiles = read_tileset(make_multilabel(tmp_path), multilabel=True)
    assert tiles.multilabel
    assert tiles.classes == ("A", "B", "C")
    assert tiles.labels == ("A;B", "", "A", "B;C", "C")  # in the order of the classes
    assert tiles.targets == [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert tiles.counts == {"A": 2, "B": 2, "C": 2}
    other = tiles.with_classes(("C", "B", "X", "A"))
    assert other.labels == ("B;A", "", "A", "C;B", "C")
    assert other.targets[3] == [1, 1, 0, 0]
    assert fingerprint(other) == fingerprint(tiles)
    with pytest.raises(TiaftError, match="classes that the training tiles lack: B, C"):
        tiles.with_classes(("A",))


def test_the_fingerprint_of_single_labels_is_what_it_was(tmp_path):
    make_manifest(tmp_path)
    tiles = read_tileset(tmp_path)
    several = read_tileset(tmp_path, multilabel=True)
    assert several.labels == tiles.labels
    assert fingerprint(several) == fingerprint(tiles)
    assert fingerprint(read_tileset(tmp_path, classes=("B", "A"))) == fingerprint(tiles)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("A;;B", "A", "B"), "line 2: label is 'A;;B': a name is missing between ;"),
        (("A", "B;", "B"), "line 3: label is 'B;': a name is missing between ;"),
        (("A", "B; A;B", "B"), "line 3: label is 'B; A;B': B stands twice"),
        (("A", "a;B", "B"), "classes differ only in case: A and a"),
        (
            ("A;B", "A", "C"),
            r"labels with fewer than two tiles .*: B \(1\), C \(1\): add tiles, or",
        ),
        (("A;B", "A;B", "A"), "labels that every tile to train on has: A: add tiles without, or"),
        (("", "", ""), "no tile has a label"),
    ],
)
def test_odd_labels_are_refused(tmp_path, labels, message):
    with pytest.raises(TiaftError, match=message):
        read_tileset(make_multilabel(tmp_path, labels), multilabel=True)


def test_one_label_is_enough_where_tiles_may_have_none(tmp_path):
    tiles = read_tileset(make_multilabel(tmp_path, ("A", "A", "")), multilabel=True)
    assert tiles.targets == [[1], [1], [0]]


def test_several_labels_are_neither_of_folders_nor_classes_by_accident(tmp_path):
    make_folders(tmp_path / "folders")
    with pytest.raises(TiaftError, match="folders holds no manifest.csv: tiles of several labels"):
        read_tileset(tmp_path / "folders", multilabel=True)
    make_multilabel(tmp_path / "set", ("A;B", "A;B", "C", "C"))
    with pytest.raises(TiaftError, match="class names hold ';': 'A;B': pass --multilabel if these"):
        read_tileset(tmp_path / "set")


def tiles_of(labels, groups=None, classes=None, multilabel=False) -> TileSet:
    """Return a tile set of no files, for what looks at labels and groups alone."""
    names = {name for label in labels for name in (label.split(";") if multilabel else [label])}
    return TileSet(
        root=Path("set"),
        files=tuple(Path(f"set/{number}.png") for number in range(len(labels))),
        labels=tuple(labels),
        groups=tuple(groups or [None] * len(labels)),
        classes=tuple(classes or sorted(names - {""})),
        tile_size=SIZE,
        mpp=None,
        multilabel=multilabel,
    )


def test_a_share_of_single_tiles_is_a_share_of_each_class_and_what_leaks_is_told():
    tiles = tiles_of("A" * 20 + "B" * 40 + "C" * 3)
    train, held_out, warnings = split_share(tiles, 0.2, seed=0)
    assert held_out.counts == {"A": 4, "B": 8, "C": 1}
    assert train.counts == {"A": 16, "B": 32, "C": 2}
    assert warnings == [
        "no tile has a group (slide or patient), so they were held out one by one: tiles of one "
        "slide or patient stand on both sides, and held-out accuracy is too good: name groups in "
        "manifest.csv, or hold out other slides with --val"
    ]
    assert split_share(tiles, 0.2, seed=0)[1].files == held_out.files
    assert split_share(tiles, 0.2, seed=1)[1].files != held_out.files


def test_a_share_of_groups_is_even_where_the_groups_allow():
    """Twelve patients; the rare class is in two of them only."""
    labels, groups = [], []
    for patient in range(12):
        for label in "A" * 5 + "B" * 5 + ("R" * 4 if patient in (3, 8) else ""):
            labels.append(label)
            groups.append(f"p{patient}")
    train, held_out, warnings = split_share(tiles_of(labels, groups), 0.25, seed=3)
    assert not set(train.groups) & set(held_out.groups)
    assert train.counts["R"] == held_out.counts["R"] == 4
    assert held_out.counts["A"] == held_out.counts["B"] == 15
    assert warnings == []


def test_what_groups_do_not_allow_is_warned_of_or_refused():
    tiles = tiles_of("AABB" * 2 + "RRRR", ["p1"] * 4 + ["p2"] * 4 + ["p1"] * 4)
    train, held_out, warnings = split_share(tiles, 0.2, seed=0)
    assert (train.group_names, held_out.group_names) == (["p1"], ["p2"])
    assert warnings == [
        "33% of the tiles are held out, not 20%: slides, patients and rare classes cannot be "
        "parted finer",
        "no held-out tile is of class R: nothing is known of it",
    ]
    one_slide, a_slide_a_class = ["p1"] * 12, ["p1"] * 8 + ["p2"] * 4
    for groups in (one_slide, a_slide_a_class):
        with pytest.raises(TiaftError, match="no slide or patient can be held out .*val-share 0"):
            split_share(tiles_of("A" * 8 + "B" * 4, groups), 0.2, seed=0)
    with pytest.raises(TiaftError, match="no tile can be held out and leave each class two tiles"):
        split_share(tiles_of("AABB"), 0.2, seed=0)
    for share in (0, 1, -0.5, float("nan")):
        with pytest.raises(TiaftError, match="is no share to hold out: more than 0 and less"):
            split_share(tiles_of("AAABBB"), share, seed=0)


def test_tiles_without_a_group_are_held_out_one_by_one_beside_whole_groups():
    groups = ["p1", "p2", "p3", None] * 10
    train, held_out, warnings = split_share(tiles_of("AABB" * 10, groups), 0.3, seed=0)
    assert not (set(train.groups) & set(held_out.groups)) - {None}
    assert warnings[0].startswith("10 of 40 tiles have no group (slide or patient), so they were")


@given(
    rows=st.lists(
        st.tuples(st.sets(st.sampled_from("ABC")), st.sampled_from(["p1", "p2", "p3", "p4", None])),
        min_size=2,
        max_size=40,
    ),
    several=st.booleans(),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 3),
)
def test_every_split_keeps_each_tile_once_groups_whole_and_enough_to_train(
    rows, several, share, seed
):
    if several:
        labels = [";".join(sorted(names)) for names, _ in rows]
    else:
        labels = [min(names, default="A") for names, _ in rows]
    tiles = tiles_of(labels, [group for _, group in rows], multilabel=several)
    try:
        train, held_out, _ = split_share(tiles, share, seed)
    except TiaftError:
        return
    assert sorted(train.files + held_out.files) == sorted(tiles.files)
    assert not (set(train.groups) & set(held_out.groups)) - {None}
    assert len(held_out)
    assert min(train.counts.values()) >= 2
    if several:
        assert max(train.counts.values()) < len(train)
    assert train.classes == held_out.classes == tiles.classes


def test_labels_are_spread_by_their_combinations():
    labels = ["A;B"] * 20 + ["A"] * 10 + [""] * 30 + ["B;C"] * 5
    _, held_out, _ = split_share(tiles_of(labels, multilabel=True), 0.2, seed=1)
    assert [held_out.labels.count(name) for name in ("A;B", "A", "", "B;C")] == [4, 2, 6, 1]


def test_real_slides_are_parted_more_evenly_than_by_folds(data):
    tiles = read_tileset(data / "kather2016")
    train, held_out, warnings = split_share(tiles, 0.2, seed=0)
    assert not set(train.groups) & set(held_out.groups)
    assert all(10 <= count <= 40 for count in held_out.counts.values())  # of 120 each
    assert warnings == []


def test_a_group_in_two_of_three_sets_is_refused():
    sets = {
        "train": tiles_of("AABB", ["p1"] * 4),
        "val": tiles_of("AB", ["p2", None]),
        "test": tiles_of("AB", ["p2", None]),
    }
    with pytest.raises(TiaftError, match=r"both sides of the split \(val and test\): p2: take"):
        refuse_shared_groups(sets)
    del sets["val"]
    refuse_shared_groups(sets)


def test_tiles_that_cannot_be_decoded_are_all_named_on_the_way_to_their_hashes(tmp_path):
    make_folders(tmp_path, each=4)
    tiles = read_tileset(tmp_path)
    assert content_hashes(tiles) == content_hashes(tiles, decode=False)
    for name in ("STR/1.png", "TUM/3.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    assert len(read_tileset(tmp_path)) == 8  # the headers are whole
    (tmp_path / "TUM" / "0.png").write_bytes(b"a download that broke off")
    with pytest.raises(TiaftError) as error:
        content_hashes(tiles)
    text = str(error.value)
    assert f"{tmp_path}: 3 of 8 tiles cannot be decoded: STR/1.png (" in text
    assert "TUM/0.png (not an image that can be read)" in text
    assert text.endswith("copy them again, or remove them")
    assert "0x" not in text
    assert len(fingerprint(tiles)) == 64  # which only says what the files are
    (tmp_path / "TUM" / "3.png").unlink()
    with pytest.raises(TiaftError, match=r"3.png cannot be read: No such file"):
        content_hashes(tiles)


def test_the_layout_of_nct_crc_he_is_known(tmp_path):
    assert nct_layout(tmp_path) is None
    (tmp_path / "NCT-CRC-HE-100K-NONORM").mkdir()
    assert nct_layout(tmp_path) == (tmp_path / "NCT-CRC-HE-100K-NONORM", None)
    (tmp_path / "CRC-VAL-HE-7K").mkdir()
    assert nct_layout(tmp_path)[1] == tmp_path / "CRC-VAL-HE-7K"
    (tmp_path / "NCT-CRC-HE-100K").mkdir()
    with pytest.raises(TiaftError, match="holds both NCT-CRC-HE-100K and .*give one of them"):
        nct_layout(tmp_path)
