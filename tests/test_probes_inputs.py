"""What probes read: feature sets, label tables, patients' tiles, and how the two are matched."""

import unicodedata
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_store import SETTINGS, make, values

from tiaft_plugin import TiaftError, hookimpl
from tiaft_plugin.engine import store
from tiaft_plugin.files import refuse_unwritable
from tiaft_plugin.plugins import plugin_manager
from tiaft_plugin.probes import aggregate, matching
from tiaft_plugin.probes.features import (
    parse_feature_argument,
    parse_feature_arguments,
    read_patients,
    read_tiles,
    write_features,
)
from tiaft_plugin.probes.interface import FeatureTable, Targets
from tiaft_plugin.probes.labels import labels_of, read_labels
from tiaft_plugin.probes.matching import match

MODEL = {"name": "ftx2048", "sha256": "a" * 64}
WORDS = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="\r\n"), min_size=1
).map(
    lambda text: unicodedata.normalize("NFC", text)  # as names are read
)


def table(name="ftx", count=6, width=3, seed=0, **more):
    keys = np.array([f"t{number:03}" for number in range(count)])
    features = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return FeatureTable(name, keys, features, **{"source": {"models": [MODEL]}, **more})


def tissue(count=6, **more):
    keys = np.array([f"t{number:03}" for number in range(count)])
    labels = np.array(["NORM", "TUM"])[np.arange(count) % 2]
    return Targets("classes", keys, labels, ("NORM", "TUM"), **more)


def genes(values, names=None, kind="numbers", **more):
    values = np.asarray(values, dtype=float)
    keys = np.array([f"t{number:03}" for number in range(len(values))])
    names = names or tuple(f"G{number}" for number in range(values.shape[1]))
    return Targets(kind, keys, values, tuple(names), **more)


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def refused(text):
    return pytest.raises(TiaftError, match=text)


# --- feature sets of tiles


@given(
    keys=st.lists(WORDS, min_size=1, max_size=8, unique_by=str.strip),
    width=st.integers(1, 5),
    seed=st.integers(0, 99),
    known=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, keys, width, seed, known):
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    rng = np.random.default_rng(seed)
    made = FeatureTable(
        "x",
        np.array(keys),
        rng.normal(size=(len(keys), width)),
        np.array(["slide"] * len(keys)) if known else None,
        np.array(["TUM"] * len(keys)) if known else None,
        rng.random((len(keys), 54)) if known else None,
        {"models": [MODEL]},
    )
    found = read_tiles(write_features(path, made), "x")
    order = np.argsort(made.keys, kind="stable")
    np.testing.assert_array_equal(found.keys, made.keys[order])
    np.testing.assert_array_equal(found.values, made.values[order].astype(np.float32))
    assert found.values.dtype == np.float32
    assert (found.groups is None, found.labels is None, found.colour is None) == (not known,) * 3
    assert found.source["models"] == [MODEL] and found.source["format"] == "npz"


def test_the_same_table_is_the_same_bytes_and_nothing_is_overwritten(tmp_path):
    one = write_features(tmp_path / "1.npz", table())
    other = write_features(tmp_path / "2.npz", table())
    assert one.read_bytes() == other.read_bytes()
    with refused("1.npz exists already: choose another name, or pass --overwrite"):
        write_features(one, table())
    write_features(one, table(seed=1), overwrite=True)
    assert one.read_bytes() != other.read_bytes()


def test_a_feature_table_without_its_keys(tmp_path):
    np.savez(tmp_path / "x.npz", X=np.zeros((2, 2)))
    with refused("x.npz: no array features and keys; a feature set has `features`.*here is X"):
        read_tiles(tmp_path / "x.npz", "x")
    np.save(tmp_path / "y.npy", np.zeros((2, 2)))
    (tmp_path / "y.npy").rename(tmp_path / "y.npz")
    with refused("y.npz is a single array: save it with np.savez, with its keys"):
        read_tiles(tmp_path / "y.npz", "y")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"keys": np.array(["a", "b"], dtype=object)}, "`keys` holds Python objects.*dtype=str"),
        ({"keys": ["a", "a"]}, r"1 names stand more than once: a"),
        ({"keys": ["a", " "]}, "rows without a name: 2"),
        ({"keys": ["a", "b\nc"]}, r"names hold line breaks or the like: 'b\\nc'"),
        ({"keys": ["a", "b", "c"]}, "2 rows of `features` for 3 keys"),
        ({"keys": [0.5, 1.5]}, "`keys` must be one line of texts.*float64"),
        ({"features": np.zeros(2)}, r"must be a table of numbers.*shape \(2,\)"),
        ({"features": np.zeros((2, 2, 2))}, r"must be a table of numbers.*shape \(2, 2, 2\)"),
        ({"features": np.array([["a"], ["b"]])}, "must be a table of numbers"),
        ({"features": np.zeros((2, 0))}, r"\(features x\) is empty: `features` has no columns"),
        ({"features": np.zeros((0, 2)), "keys": np.array([], dtype=str)}, "has no rows"),
        ({"features": [[1, np.nan], [0, 1]]}, "1 of 2 rows have features that are missing.*: a;"),
        ({"features": [[1, 1e300], [0, np.inf]]}, "2 of 2 rows have features .* infinite: a, b;"),
        ({"groups": ["s"]}, "1 groups for 2 keys"),
        ({"colour": np.zeros((3, 54))}, "3 rows of `colour` for 2 keys"),
        ({"about": np.array("{")}, '`about` must be JSON such as {"models"'),
        ({"about": np.array('{"models": ["ftx"]}')}, "`about` must be JSON"),
    ],
)
def test_arrays_that_are_no_feature_set(tmp_path, changes, text):
    arrays = {"features": np.ones((2, 2)), "keys": ["a", "b"], **changes}
    np.savez(tmp_path / "x.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    with refused(text):
        read_tiles(tmp_path / "x.npz", "x")


@pytest.mark.parametrize("kind", ["npz", "parquet", "csv"])
@given(keep=st.floats(0, 0.999))
@settings(max_examples=15, deadline=None)
def test_a_file_cut_short_is_refused_in_one_line(tmp_path_factory, kind, keep):
    folder = tmp_path_factory.mktemp("cut")
    path = folder / f"x.{kind}"
    if kind == "npz":
        write_features(path, table())
    else:
        frame = pd.DataFrame({"key": ["a", "b"], "f0": [1.0, 2.0], "f1": [3.25, 4.125]})
        frame.to_parquet(path) if kind == "parquet" else frame.to_csv(path, index=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    try:
        found = read_tiles(path, "x")
    except TiaftError as error:
        assert "x." in str(error) and "\n" not in str(error)
    else:  # a CSV that ends a digit or a line earlier is a table like any other
        assert kind == "csv" and found.values.shape[1] <= 2


def test_a_damaged_array_in_a_whole_zip_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", b"\x93NUMPY nonsense")
    with refused("x.npz cannot be read as .npz, it is cut short or something else"):
        read_tiles(path, "x")


def test_a_table_of_tiles(tmp_path):
    path = write(
        tmp_path / "x.csv",
        "\ufefffile,Slide,label,f0,f1\r\n"
        ".\\b\\2.png, s1 ,TUM,1,2e3\r\na/1.png,s2,NORM,3,4\r\n,,,,\r\n",
    )
    found = read_tiles(path, "x")
    assert found.keys.tolist() == ["a/1.png", "b/2.png"]
    assert found.values.tolist() == [[3, 4], [1, 2000]]
    assert found.groups.tolist() == ["s2", "s1"] and found.labels.tolist() == ["NORM", "TUM"]


def test_tables_of_texts_and_of_parquet_are_read_alike(tmp_path):
    frame = pd.DataFrame(
        {"key": ["007", "1e5"], "group": ["a", "b"], "f.0": [1.5, 2.5], "f1": [1, 2]}
    )
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_csv(tmp_path / "x.tsv", index=False, sep="\t")
    frame.astype({"group": "category"}).to_parquet(tmp_path / "x.parquet")
    tables = [read_tiles(tmp_path / f"x.{suffix}", "x") for suffix in ("csv", "tsv", "parquet")]
    for found in tables:
        assert found.keys.tolist() == ["007", "1e5"] and found.groups.tolist() == ["a", "b"]
        assert found.values.tolist() == [[1.5, 1], [2.5, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.csv is empty"),
        ("key,f0\n", "x.csv has no rows but its header"),
        ("key\na\n", r"is empty: `features` has no columns"),
        ("name,f0\na,1\n", "no column key or file or tile or id or patient; the columns are name"),
        ("key;f0\na;1,5\n", "separated by semicolons, as Excel .*: save it with commas, and"),
        ("key\tf0\na\t1\n", "columns are separated by tabs: call the file .tsv"),
        ("key,f0\na,1,2\n", "line 2: 3 cells, the header has 2"),
        ("key,f0\na\n", "line 2: 1 cells, the header has 2"),
        (",key,f0\n0,a,1\n", r"column 1 has no name: name or remove it \(pandas"),
        ("key,f0,f0\na,1,2\n", "columns stand more than once: f0"),
        ("key,site,f0\na,lung,1\nb,colon,2\n", "2 cells .* in site .line 2, column site: 'lung'"),
        ('key,f0\na,"1,5"\n', "1 cell that should be a number is none.*write decimal points"),
        ("key,f0\na,1_000\n", "1 cell that should be a number is none, in f0"),
        ("key,f0\na,\nb,NA\nc,1\n", "2 of 3 rows have features that are missing.*: a, b;"),
        ("key,f0\n,1\n", "rows without a name: 1"),
    ],
)
def test_a_table_that_is_no_feature_set(tmp_path, text, message):
    with refused(message):
        read_tiles(write(tmp_path / "x.csv", text), "x")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding(tmp_path, encoding):
    path = write(tmp_path / "x.csv", "key,f0\nMüller,1\n", encoding)
    with refused(r"x.csv is not in UTF-8: save it again as CSV UTF-8 \(Excel offers"):
        read_tiles(path, "x")


def test_parquet_that_is_no_feature_set(tmp_path):
    path = tmp_path / "x.parquet"
    pd.DataFrame({"key": ["a"], "f": [[1.0, 2.0]]}).to_parquet(path)
    with refused("column f holds list.*: give each number its own column"):
        read_tiles(path, "x")
    pd.DataFrame({"key": [7.5], "f": [1.0]}).to_parquet(path)
    with refused("column key holds double: names must be texts, so that 007 is no 7"):
        read_tiles(path, "x")
    pd.DataFrame({"key": ["a"], "f": ["high"]}).to_parquet(path)
    with refused("1 cell that should be a number is none, in f .row 1, column f: 'high'"):
        read_tiles(path, "x")
    pd.DataFrame({"key": ["a", "b"], "f": [1.0, 2.0]}, index=["x", "y"]).to_parquet(path)
    with refused(r"a column without a name \(pandas' index\): write it with index=False"):
        read_tiles(path, "x")


def test_what_is_no_feature_set_at_all(tmp_path):
    with refused(r"y.npz \(features x\): no such file or folder"):
        read_tiles(tmp_path / "y.npz", "x")
    with refused(r".xlsx is no feature set: .npz.*; save the sheet as CSV UTF-8"):
        read_tiles(write(tmp_path / "y.xlsx", "x"), "x")
    with refused("is a folder: tiles are read from .npz, .csv or .parquet; stores of slides are"):
        read_tiles(tmp_path, "x")


def test_a_group_is_the_coarsest_that_is_known(tmp_path):
    text = "tile,slide,patient,f0\na,s1,p,1\nb,s2,p,2\nc,s3,q,3\n"
    assert read_tiles(write(tmp_path / "x.csv", text), "x").groups.tolist() == ["p", "p", "q"]
    with refused("the columns patient and slide cross, neither lies within the other"):
        read_tiles(write(tmp_path / "x.csv", text + "d,s1,q,4\n"), "x")


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("ftx=a/b.npz", "ftx", "a/b.npz"),
        ("a/ftx.npz", "ftx", "a/ftx.npz"),
        ("a=b/c.npz", "a", "b/c.npz"),
        ("a/b=c.npz", "b=c", "a/b=c.npz"),
    ],
)
def test_a_feature_argument(text, name, path):
    found, at = parse_feature_argument(text)
    assert (found, at.as_posix()) == (name, path)


def test_feature_arguments_that_cannot_be(tmp_path):
    for text in ("=x.npz", "a\nb=x.npz", f"{'a' * 65}=x.npz"):
        with refused("a feature set is given as NAME=PATH; a name has up to 64 characters"):
            parse_feature_argument(text)
    with refused("'ftx=': no path after the =; a feature set is given as NAME=PATH"):
        parse_feature_argument("ftx=")
    with refused("two feature sets are called x, a/x.npz and b/x.npz: name them apart, NAME=PATH"):
        parse_feature_arguments(["a/x.npz", "b/x.npz"])
    assert list(parse_feature_arguments(["b=a/x.npz", "a=b/x.npz"])) == ["b", "a"]


# --- patients


def stores(folder, **patients):
    """Write a store for each slide, 700 tiles and more; return their tiles."""
    found = {}
    for number, (slide, patient) in enumerate(patients.items()):
        about = {"name": f"{slide}.svs", "fingerprint": f"{number}" * 64}
        make(folder / f"{slide}.zarr", 700 + number, patient=patient, slide=about)
        found[slide] = values(700 + number)
    return found


def test_a_patient_is_the_mean_of_all_tiles_of_all_slides(tmp_path):
    tiles = stores(tmp_path, a="P1", b="P2", c="P1")
    found = read_patients(tmp_path, "ftx")
    assert found.keys.tolist() == ["P1", "P2"] and found.groups is None
    expected = np.concatenate([tiles["a"], tiles["c"]]).mean(axis=0, dtype=np.float64)
    np.testing.assert_array_equal(found.values[0], expected.astype(np.float32))
    assert found.source["slides"] == 3 and found.source["tiles"] == 2103
    assert found.source["models"] == [{"name": "m", "sha256": "a" * 64}]
    assert found.source["notes"] == []


def test_other_aggregators_get_all_tiles_and_their_slides(tmp_path):
    tiles = stores(tmp_path, a="P1", c="P1")

    def largest(features, slides):
        assert features.dtype == np.float32 and len(slides) == len(features)
        assert slides[[0, -1]].tolist() == ["a.svs", "c.svs"]
        return features.max(axis=0)

    found = read_patients(tmp_path, "ftx", aggregate=largest)
    expected = np.maximum(tiles["a"].max(axis=0), tiles["c"].max(axis=0))
    np.testing.assert_array_equal(found.values, expected[None])


def test_the_hash_of_stores_is_of_what_they_hold_not_of_their_names(tmp_path):
    stores(tmp_path / "1", a="P1", b="P2")
    stores(tmp_path / "2", a="P1", b="P2")
    (tmp_path / "2/a.zarr").rename(tmp_path / "2/z.zarr")
    hashes = [read_patients(tmp_path / name, "x").source["sha256"] for name in "12"]
    assert hashes[0] == hashes[1]
    make(tmp_path / "2/b.zarr", 300, overwrite=True, slide={"name": "b.svs", "fingerprint": "1"})
    assert read_patients(tmp_path / "2", "x").source["sha256"] != hashes[0]


def test_a_table_names_patients_and_slides_without_one_are_said(tmp_path):
    stores(tmp_path, a=None, b=None, c="P1")
    found = read_patients(tmp_path, "x", patients={"a.svs": "P1", "c": "P1", "d.svs": "P3"})
    assert found.keys.tolist() == ["P1", "b"]
    assert found.source["notes"] == [
        "1 slide has no patient and counts as a patient of its own: b; several slides of one "
        "patient would stand on both sides of a fold",
        "1 of 3 slides of the table have no store: d.svs",
    ]
    with refused("slide c.svs is of patient P1 in its store, but of P2 in the table of patients"):
        read_patients(tmp_path, "x", patients={"c": "P2"})
    with refused("slides without a patient have the name of another slide or patient: a"):
        read_patients(tmp_path, "x", patients={"b": "a"})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"model": {"name": "o", "sha256": "b" * 64}},
            "different models .*SHA-256 aaaaaaaaaaaaaaaa: a.zarr; SHA-256 bbbbbbbbbbbbbbbb: z.zarr",
        ),
        ({"stain_normalisation": "macenko"}, 'different stain normalisations.*null.*"macenko"'),
        (
            {
                "grid": {
                    "tile_size": [20, 20],
                    "stride": [20, 20],
                    "resolution": 0.5,
                    "units": "mpp",
                }
            },
            "stores of different grids .*20×20 px every 20×20 px at 0.5 mpp: z.zarr",
        ),
        ({"slide": {"name": "z.svs", "fingerprint": "0" * 64}}, "very same slide: a.zarr and z"),
        (
            {"kind": "predictions", "classes": list("abcd")},
            "z.zarr holds predictions, not features",
        ),
    ],
)
def test_stores_that_make_no_set(tmp_path, changes, text):
    stores(tmp_path, a="P1")
    make(tmp_path / "z.zarr", 5, **{"slide": {"name": "z.svs", "fingerprint": "z"}, **changes})
    with refused(text):
        read_patients(tmp_path, "x")


def test_stores_that_cannot_be_used(tmp_path):
    with refused(r"holds no feature store \(.zarr\): `tiaft extract` writes them"):
        read_patients(tmp_path, "x")
    stores(tmp_path, a="P1")
    make(tmp_path / "b.zarr", written=[0, 2], slide={"name": "b.svs", "fingerprint": "1"})
    with refused(r"1 of 2 stores cannot be used: .*b.zarr is incomplete \(2 of 3 chunks\)"):
        read_patients(tmp_path, "x")
    (tmp_path / "a.zarr/features/c/1/0").write_bytes(b"\0" * 188 * 4 * 4)
    with refused(
        "a.zarr is damaged: chunk 1 is not what was written; run the same `tiaft extract`"
    ):
        read_patients(tmp_path / "a.zarr", "x")


def test_colours_of_stores_are_averaged(tmp_path):
    shades = np.random.default_rng(0).random((5, 54)).astype(np.float32)
    about = store.describe(SETTINGS, patient="P", batch_size=1, threads=1, device="", versions={})
    coordinates = np.zeros((5, 4), dtype=np.int64)
    group = store.open_for_writing(
        tmp_path / "a.zarr", about, coordinates, np.ones(5), width=4, beside=["colour"]
    )
    store.write_chunk(group, 0, values(5), {"colour": shades})
    found = read_patients(tmp_path, "x")
    np.testing.assert_allclose(found.colour, shades.mean(axis=0)[None], rtol=1e-6)
    make(tmp_path / "b.zarr", 5, slide={"name": "b.svs", "fingerprint": "1"})
    found = read_patients(tmp_path, "x")
    assert found.colour is None
    assert found.source["notes"][-1].startswith(
        "1 of 2 stores have no colour, so that none is used"
    )


def test_rows_of_patients_stay_as_they_are(tmp_path):
    path = write(tmp_path / "x.csv", "patient,group,f0\n007,H1,1\n006,H2,2\n")
    found = read_patients(path, "x")
    assert found.keys.tolist() == ["006", "007"] and found.groups.tolist() == ["H2", "H1"]
    again = read_patients(write_features(tmp_path / "x.npz", found, unit="patient"), "x")
    np.testing.assert_array_equal(again.values, found.values)
    assert again.groups.tolist() == ["H2", "H1"]


def test_rows_of_tiles_are_averaged(tmp_path):
    text = "tile,slide,patient,group,f0\nc,s3,q,H,3\na,s1,p,H,1\nb,s2,p,H,2\n"
    found = read_patients(write(tmp_path / "x.csv", text), "x")
    assert found.keys.tolist() == ["p", "q"] and found.values.tolist() == [[1.5], [3.0]]
    assert found.groups.tolist() == ["H", "H"]
    assert found.source["notes"] == ["3 rows were aggregated to 2 patients by their patient"]
    with refused("slide s1 is of patient p, but of q in the table of patients: correct one"):
        read_patients(tmp_path / "x.csv", "x", patients={"s1": "q"})
    write(tmp_path / "x.csv", text.replace("c,s3,q", "c,s3,"))
    with refused("1 of 3 rows have no patient: c; name it"):
        read_patients(tmp_path / "x.csv", "x")


def test_groups_of_tiles_are_patients_or_slides_of_the_table(tmp_path):
    groups = np.array(["s1", "s2", "s2", "s3", "s3", "s3"])
    colour = np.eye(6, 54, dtype=np.float32)
    made = table(groups=groups, colour=colour)
    path = write_features(tmp_path / "x.npz", made)
    found = read_patients(path, "x")
    assert found.keys.tolist() == ["s1", "s2", "s3"] and found.labels is None
    np.testing.assert_allclose(found.values[1], made.values[1:3].mean(axis=0), rtol=1e-6)
    found = read_patients(path, "x", patients={"s1.svs": "p", "s1": "p", "s2": "p"})
    assert found.keys.tolist() == ["p", "s3"]
    np.testing.assert_allclose(found.colour[0], colour[:3].mean(axis=0))
    assert found.source["notes"][0].startswith("1 slide has no patient and counts as a patient of")


def test_rows_of_slides_are_averaged_by_the_table(tmp_path):
    path = write(tmp_path / "x.csv", "id,f0\ns1,1\ns2,3\ns3,5\n")
    assert read_patients(path, "x").keys.tolist() == ["s1", "s2", "s3"]
    found = read_patients(path, "x", patients={"s1": "p", "s2": "p", "s3": "q"})
    assert found.keys.tolist() == ["p", "q"] and found.values.tolist() == [[2], [5]]


@pytest.mark.parametrize(
    ("give", "text"),
    [
        (
            lambda f, s: f,
            r"gives shape \(2, 4\) and type float32 for patient P1: one line of numbers",
        ),
        (lambda f, s: f[0] * np.nan, "the aggregator gives NaN or infinity for patient P1"),
        (lambda f, s: f[:, 0], "gives 2 numbers for patient P1 and 3 for P2: all rows must be of"),
        (lambda f, s: f[9], "the aggregator fails on patient P1: IndexError: index 9 is out of"),
    ],
)
def test_aggregators_that_give_no_row(tmp_path, give, text):
    make(tmp_path / "a.zarr", 2, patient="P1", slide={"name": "a", "fingerprint": "1"})
    make(tmp_path / "b.zarr", 3, patient="P2", slide={"name": "b", "fingerprint": "2"})
    with refused(text):
        read_patients(tmp_path, "x", aggregate=give)


def test_an_aggregator_has_a_name():
    class Largest:
        @hookimpl
        def register_aggregators(self, register):
            register("largest", lambda features, slides: features.max(axis=0))

    manager = plugin_manager()
    plugin = Largest()
    manager.register(plugin, name="largest")
    try:
        found = aggregate.find_aggregator("largest")
        assert found(np.eye(2), np.array(["s", "s"])).tolist() == [1, 1]
        with refused("no aggregator is called 'lagest': did you mean largest?"):
            aggregate.find_aggregator("lagest")
    finally:
        manager.unregister(plugin)
    assert aggregate.find_aggregator("mean") is aggregate.mean_of_tiles
    with refused("no aggregator is called 'x': there are: .*mean"):
        aggregate.find_aggregator("x")


# --- labels


def test_a_manifest_is_a_table_of_labels(tmp_path):
    text = "file,label,group,mpp\n./TUM/2.png,TUM,s2,0.5\nNORM/1.png, NORM ,s1,0.5\n"
    found = read_labels(write(tmp_path / "manifest.csv", text), "classes")
    assert found.keys.tolist() == ["NORM/1.png", "TUM/2.png"]
    assert found.values.tolist() == ["NORM", "TUM"] == list(found.names)
    assert found.groups.tolist() == ["s1", "s2"] and found.source["format"] == "csv"


def test_expression_is_log_transformed(tmp_path):
    path = write(tmp_path / "x.tsv", "Patient\tEGFR\tKRAS\tTP53\n007\t3\t\t1\n006\t1023\t0\t7\n")
    found = read_labels(path, "numbers")
    assert found.keys.tolist() == ["006", "007"] and found.names == ("EGFR", "KRAS", "TP53")
    np.testing.assert_array_equal(found.values, [[10, 0, 3], [2, np.nan, 1]])
    assert found.source["transform"] == "log2p1" and found.source["notes"] == []
    some = read_labels(path, "numbers", names=["TP53", "EGFR"], transform="none")
    assert some.names == ("TP53", "EGFR") and some.values.tolist() == [[7, 1023], [1, 3]]
    natural = read_labels(path, "numbers", names=["TP53"], transform="log1p")
    np.testing.assert_array_equal(natural.values, np.log1p([[7], [1]]))


@given(
    patients=st.lists(WORDS, min_size=1, max_size=6, unique_by=lambda word: word.strip()),
    seed=st.integers(0, 99),
    suffix=st.sampled_from(["csv", "tsv", "parquet"]),
)
@settings(max_examples=40, deadline=None)
def test_numbers_come_back_to_the_last_bit(tmp_path_factory, patients, seed, suffix):
    path = tmp_path_factory.mktemp("labels") / f"x.{suffix}"
    numbers = np.random.default_rng(seed).normal(size=(len(patients), 3)) * 10.0**seed
    frame = pd.DataFrame(numbers, columns=["A", "B", "C"])
    frame.insert(0, "patient", patients)
    if suffix == "parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    found = read_labels(path, "numbers", transform="none")
    order = np.argsort(np.array(patients), kind="stable")
    assert found.keys.tolist() == np.array(patients)[order].tolist()
    np.testing.assert_array_equal(found.values, numbers[order])


def test_what_looks_odd_in_expression_is_said(tmp_path):
    path = write(tmp_path / "x.csv", "patient,1-Mar,EGFR\na,3,12.5\nb,4,11\n")
    assert read_labels(path, "numbers").source["notes"] == [
        "columns look like genes that Excel made dates of (MARCH1, SEPT2): 1-Mar",
        "the largest value is 12.5 before log2p1: if the table is log-transformed already, pass "
        "--transform none",
    ]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("classes", "file,class\na,TUM\n", "no column label, which names the class of each file"),
        ("classes", "file,label\na,\n", "the column label is empty"),
        ("classes", "file,label\na,TUM\nb,Tum\n", "labels differ only in case: TUM and Tum: give"),
        ("classes", "file,label\na,TUM\na,TUM\n", "1 names stand more than once: a"),
        (
            "classes",
            "file,label,group\na,TUM,s1\na,TUM,s2\n",
            r"1 stand in two groups, and would on both sides of a fold: a \(s1 and s2\)",
        ),
        (
            "binary",
            "patient,group,TP53\np,H1,1\np,H2,1\nq,H1,0\n",
            r"1 stand in two groups, and would on both sides of a fold: p \(H1 and H2\)",
        ),
        ("numbers", "patient\na\n", "no column is a gene, beside patient"),
        ("numbers", "patient,A,A\na,1,2\n", "columns stand more than once: A"),
        ("numbers", "patient,A\na,1\na,2\n", "1 names stand more than once: a"),
        (
            "numbers",
            "patient,A\na,-1.5\nb,2\n",
            r"1 values are negative \(a, A: -1.5\).*--transform",
        ),
        ("numbers", "patient,A\na,high\nb,2\n", "1 cell .* in A .line 2, column A: 'high'"),
        ("numbers", "patient,A\na,inf\nb,2\n", "1 values are infinite: a, A: inf"),
        ("numbers", "patient,A\na,1e308\nb,2\n", r"1 values are beyond 1e\+100: a, A: 1e\+308"),
        ("numbers", "sep=,\npatient,A\na,1\n", "the first line, sep=, is for Excel alone: remove"),
        ("numbers", "Hugo_Symbol,TCGA-1\nEGFR,3\n", "genes stand in rows here, turn the table"),
        ("binary", "patient,A\na,2\nb,1\n", "1 values are neither 0 nor 1: a, A: 2; write 1 where"),
        ("binary", "patient,A\na,wt\nb,1\n", "column A: 'wt'"),
    ],
)
def test_a_table_that_holds_no_labels(tmp_path, kind, text, message):
    with refused(message):
        read_labels(write(tmp_path / "x.csv", text), kind)


def test_a_name_is_one_name_however_its_letters_are_coded(tmp_path):
    mac = unicodedata.normalize("NFD", "José")
    made = FeatureTable("x", np.array([mac, "b"]), np.eye(2, dtype=np.float32))
    found = read_patients(write_features(tmp_path / "x.npz", made), "x")
    labels = read_labels(write(tmp_path / "y.csv", "patient,A\nJosé,1\nb,2\n"), "numbers")
    assert match([found], labels, unit="patient").keys.tolist() == ["José", "b"]


def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path):
    refuse_unwritable(tmp_path / "new" / "x.npz")
    write(tmp_path / "file", "")
    with refused("x.npz cannot be written: .*file: File exists: choose another folder"):
        refuse_unwritable(tmp_path / "file" / "x.npz")


def test_what_is_no_npz_is_not_said_to_be_read_unsafely(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"\x80junk" * 99)
    with refused("cut short or something else: no zip file"):
        read_tiles(tmp_path / "x.npz", "x")


def test_genes_and_transforms_that_there_are_not(tmp_path):
    path = write(tmp_path / "x.csv", "patient,A,note\na,1,good\n")
    with refused("no column for 2 of 3: B, C"):
        read_labels(path, "numbers", names=["A", "B", "C"])
    assert read_labels(path, "numbers", names=["A"]).names == ("A",)
    with refused("no transform is called 'log10': log2p1, log1p, none"):
        read_labels(path, "numbers", transform="log10")
    with refused("y.xlsx is no table: .csv, .tsv and .parquet are read: save the sheet as CSV"):
        read_labels(write(tmp_path / "y.xlsx", "x"), "numbers")
    with refused("y.csv: no such file"):
        read_labels(tmp_path / "y.csv", "numbers")


def test_features_bring_labels(tmp_path):
    found = labels_of(table(labels=np.array(["TUM", "", "NORM"] * 2)))
    assert found.names == ("NORM", "TUM") and found.values[1] == ""
    with refused("features ftx bring no labels: give a table of labels"):
        labels_of(table())


# --- matching


@given(order=st.permutations(range(6)), other=st.permutations(range(6)))
@settings(max_examples=25, deadline=None)
def test_rows_meet_by_name_whatever_their_order(order, other):
    made, targets = table(), tissue()
    shuffled = FeatureTable("b", made.keys[order], made.values[order])
    turned = Targets("classes", targets.keys[other], targets.values[other], targets.names)
    found = match([made, shuffled], turned, unit="tile")
    assert found.keys.tolist() == made.keys.tolist()
    np.testing.assert_array_equal(found.features["ftx"], found.features["b"])
    np.testing.assert_array_equal(found.values, targets.values)


def test_what_does_not_match_is_refused_or_left_out_and_said():
    sets, targets = [table(count=5), table("img", count=7, seed=1)], tissue(6)
    told = (
        "features ftx: 1 label has no row: t005; features img: 1 row has no label: t006. Correct "
        "them, or go on with the 5 that all have: --unmatched drop"
    )
    with refused(told):
        match(sets, targets, unit="tile")
    found = match(sets, targets, unit="tile", unmatched="drop")
    assert len(found.keys) == 5 and found.features["img"].shape == (5, 3)
    assert "left out: features ftx: 1 label has no row: t005" in found.notes
    assert "left out: features img: 1 row has no label: t006" in found.notes
    strange = FeatureTable("x", np.array(["a.png"]), np.ones((1, 2), np.float32))
    with refused("no name in common: features x are of 'a.png' and the like, labels of 't000'"):
        match([strange], targets, unit="tile", unmatched="drop")


def test_sets_need_names_of_their_own():
    with refused("feature sets of one name: ftx: name them apart, NAME=PATH"):
        match([table(), table()], tissue(), unit="tile")
    with refused("no feature set is given"):
        match([], tissue(), unit="tile")


def test_groups_come_from_either_and_must_agree():
    groups = np.array(["s1", "s1", "s2", "s2", "s3", "s3"])
    for found in (
        match([table(groups=groups)], tissue(), unit="tile"),
        match([table()], tissue(groups=groups), unit="tile"),
        match([table(groups=groups)], tissue(groups=groups), unit="tile"),
    ):
        assert found.grouped and found.groups.tolist() == groups.tolist()
    other = groups.copy()
    other[2] = "s1"
    with refused(r"1 rows stand in two groups.*: t002 \(s2 in features ftx, s1 in labels\)"):
        match([table(groups=groups)], tissue(groups=other), unit="tile")
    groups[4:] = ""
    with refused("2 of 6 rows have no group: t004, t005: name the slide or patient of all rows"):
        match([table(groups=groups)], tissue(), unit="tile")
    groups[4:] = "s3"
    half = np.where(groups == "s3", "", groups)
    assert match([table(groups=groups)], tissue(groups=half), unit="tile").grouped


def test_the_set_that_has_no_name_in_common_is_named():
    odd = table("odd", count=2)
    odd = replace(odd, keys=np.array(["x0", "x1"]))
    with refused("features odd are of 'x0' and the like, labels of 't000'"):
        match([table(), odd], tissue(), unit="tile")
    halves = [table(count=2), replace(table("b", count=2), keys=np.array(["t002", "t003"]))]
    with refused("no name is in all sets and the labels: features ftx: 4 labels have no row"):
        match(halves, tissue(), unit="tile")


def test_rows_of_nobody_are_their_own_group():
    found = match([table()], tissue(), unit="tile")
    assert not found.grouped and found.groups.tolist() == found.keys.tolist()
    assert any("tiles of one slide may stand on both sides of a fold" in n for n in found.notes)
    found = match([table()], genes(np.arange(6)[:, None]), unit="patient")
    assert found.grouped and found.groups.tolist() == found.keys.tolist() and not found.notes


def test_missing_values_are_refused_or_left_out_and_said():
    numbers = np.arange(12.0).reshape(6, 2)
    numbers[1, 0] = numbers[2, 0] = np.nan
    with refused(r"1 gene has missing values: G0 \(2\); fill them in, or leave out the genes"):
        match([table()], genes(numbers), unit="patient")
    found = match([table()], genes(numbers), unit="patient", missing="drop-genes")
    assert found.names == ("G1",) and found.values.shape == (6, 1)
    assert "left out: 1 gene has missing values: G0 (2)" in found.notes
    found = match([table()], genes(numbers), unit="patient", missing="drop-rows")
    assert found.names == ("G0", "G1") and len(found.keys) == 4 == len(found.features["ftx"])
    assert "left out: 2 rows have missing values: t001, t002" in found.notes
    numbers[:, 0] = np.nan
    with refused("every row has a missing value, none is left: 1 gene has missing"):
        match([table()], genes(numbers), unit="patient", missing="drop-rows")
    with refused("no gene is left to predict: 1 gene has missing values"):
        match([table()], genes(numbers[:, :1]), unit="patient", missing="drop-genes")


def test_missing_labels_are_refused_or_left_out():
    labels = Targets("classes", tissue().keys, np.array(["TUM", "", "NORM"] * 2), ("NORM", "TUM"))
    with refused(r"2 rows have an empty label: t001, t004; .* leave out the 2 rows \(--missing dr"):
        match([table()], labels, unit="tile")
    found = match([table()], labels, unit="tile", missing="drop-rows")
    assert found.names == ("NORM", "TUM") and len(found.keys) == 4


def test_a_mutation_may_be_unknown_in_some():
    values = np.array([[0, 1], [0, 1], [1, np.nan], [1, 1], [0, 0], [1, 0]])
    found = match([table()], genes(values, kind="binary"), unit="patient")
    assert np.isnan(found.values[2, 1]) and len(found.keys) == 6
    assert found.notes == (
        "1 gene has missing values: G1 (1); those rows are left out for that gene",
    )


def test_genes_that_tell_nothing_are_left_out_and_said():
    values = np.ones((6, 3))
    values[:, 1] = np.arange(6)
    found = match([table()], genes(values), unit="patient")
    assert found.names == ("G1",)
    assert found.notes == ("left out: 2 genes have the same value in every row: G0, G2",)
    with refused("no gene is left to predict: 1 gene has the same value in every row: G0"):
        match([table()], genes(values[:, :1]), unit="patient")
    rare = np.array([[0, 1], [0, 1], [0, 1], [0, 0], [0, 0], [1, 0]])
    found = match([table()], genes(rare, kind="binary"), unit="patient")
    assert found.names == ("G1",)
    assert found.notes == ("left out: 1 gene has fewer than 2 rows of 0 or of 1: G0",)


def test_one_class_is_nothing_to_learn():
    targets = tissue()
    targets.values[:] = "TUM"
    with refused("all 6 rows are of one class, TUM: nothing to learn"):
        match([table()], targets, unit="tile")


def test_what_is_odd_is_said():
    made = table(count=30, width=4)
    made.values[:, 0], made.values[:, 1] = 0, 7
    targets = tissue(30)
    targets.values[:] = np.where(np.arange(30) < 5, "TUM", "NORM")
    groups = np.where(np.arange(30) < 20, "s1", np.where(np.arange(30) < 25, "s2", "s3"))
    found = match([made], Targets(**{**vars(targets), "groups": groups}), unit="tile")
    assert found.notes == (
        "ftx: 1 of 4 features are zero in every row",
        "ftx: 1 of 4 features have one value in every row",
        "group s1 holds 20 of 30 rows: folds are of very different sizes",
        "classes with fewer than 10 rows: TUM (5)",
        "classes in one group only: TUM (s1): folds of groups never have them in training and test "
        "at once",
    )
    made.values[:] = 7
    with refused("features ftx: all 4 are the same in every row"):
        match([made], targets, unit="tile")


def test_colours_and_sources_go_along(tmp_path):
    colour = np.random.default_rng(0).random((6, 54)).astype(np.float32)
    path = write_features(tmp_path / "x.npz", table(colour=colour))
    read = read_tiles(path, "x")
    found = match([table(), read], tissue(source={"format": "csv", "notes": ["odd"]}), unit="tile")
    np.testing.assert_array_equal(found.colour, colour)
    assert found.sources["features"]["x"]["sha256"] == read.source["sha256"]
    assert found.sources["labels"] == {"format": "csv"}
    assert "labels: odd" in found.notes
    other = replace(read, name="y", colour=1 - colour)
    assert not any("different colours" in note for note in found.notes)
    assert any(
        "bring different colours" in n for n in match([read, other], tissue(), unit="tile").notes
    )
    assert matching.match([table()], tissue(), unit="tile").colour is None


def test_real_tiles_meet_their_manifest(data):
    labels = read_labels(data / "kather2016/manifest.csv", "classes")
    assert len(labels.keys) == 960 and len(labels.names) == 8
    rng = np.random.default_rng(0)
    made = FeatureTable("x", labels.keys, rng.normal(size=(960, 3)).astype(np.float32))
    found = match([made], labels, unit="tile")
    assert found.grouped and len(np.unique(found.groups)) == 10
