"""Expression tables: sides, names, units, slides; what is left out, and what is refused."""

import gzip

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiaft_extensions.transcriptomics.expression import tidy
from tiaft_extensions.transcriptomics.expression.pairs import match_slides
from tiaft_extensions.transcriptomics.expression.scaling import scale_genes
from tiaft_extensions.transcriptomics.expression.tables import Expression, read_expression_table
from tiaft_extensions.transcriptomics.expression.units import log1p_tpm, recognise
from tiaft_plugin import TiaftError
from tiaft_plugin.reproduce.leftout import LeftOut

BARCODES = [f"TCGA-05-{person}-01A-01R-1107-07" for person in (4244, 4249, 4250)]
GENES = [f"ENSG{number:011d}" for number in range(1, 2001)]


@pytest.fixture(scope="module")
def tpm() -> np.ndarray:
    """TPM of 3 samples (rows) and 2,000 genes."""
    raw = np.random.default_rng(0).gamma(0.3, 100, (3, 2000))
    return raw / raw.sum(axis=1, keepdims=True) * 1e6


def write(path, values, rows, columns, corner="gene_id", sep=",", **more):
    frame = pd.DataFrame(values, index=rows, columns=columns)
    for place, (name, column) in enumerate(more.items()):
        frame.insert(place, name, column)
    frame.to_csv(path, sep=sep, index_label=corner or False)
    return path


def test_genes_are_found_on_either_side_whatever_the_file(tmp_path, tpm):
    tables = [
        write(tmp_path / "a.csv", tpm.T, GENES, BARCODES),
        write(tmp_path / "b.tsv.gz", tpm, BARCODES, GENES, "sample", "\t"),
        write(tmp_path / "xena.tsv", tpm.T, GENES, BARCODES, "sample", "\t"),
        write(tmp_path / "r.txt", tpm.T, [f"{g}.7" for g in GENES], BARCODES, "", "\t"),
        write(tmp_path / "semi.csv", tpm.T, GENES, BARCODES, sep=";"),
    ]
    pd.DataFrame(tpm.T, index=GENES, columns=BARCODES).to_parquet(tmp_path / "p.parquet")
    for path in (*tables, tmp_path / "p.parquet"):
        found = read_expression_table(path)
        assert found.samples == tuple(BARCODES) and found.genes == tuple(GENES), path.name
        assert found.unit == "tpm"
        assert np.allclose(found.values, np.log1p(tpm), rtol=1e-14, atol=0)


def test_gct_and_star_rows_and_symbols(tmp_path, tpm):
    path = tmp_path / "gtex.gct.gz"
    symbols = [f"GENE{n}" for n in range(2000)]
    body = pd.DataFrame(tpm.T, columns=BARCODES)
    body.insert(0, "Description", symbols)
    body.insert(0, "Name", GENES)
    with gzip.open(path, "wt") as file:
        file.write("#1.2\n2000\t3\n" + body.to_csv(sep="\t", index=False))
    found = read_expression_table(
        path, genes=["GENE7", "GENE3", "NOSUCH"], left=(left := LeftOut())
    )
    assert found.genes == ("GENE7", "GENE3")
    assert np.allclose(found.values, np.log1p(tpm[:, [7, 3]]))
    assert left.lines == [("gene", "NOSUCH", "not in the expression table")]

    counts = np.random.default_rng(1).poisson(50, (3, 4))
    star = write(tmp_path / "star.csv", counts.T, ["N_unmapped", "A", "B", "A"], BARCODES)
    found = read_expression_table(star, left=(left := LeftOut()))
    assert found.unit == "counts" and found.genes == ("A", "B")
    assert {(which, why.split(" ", 2)[1]) for _, which, why in left.lines} == {
        ("N_unmapped", "row"),
        ("A", "second"),
    }
    assert any("counts per million" in note for note in found.notes)


@pytest.mark.parametrize("sparse", ["csr", "csc", ""])
def test_anndata_dense_and_sparse_without_anndata(tmp_path, tpm, sparse):
    path = write_h5ad(tmp_path / "a.h5ad", tpm, sparse)
    found = read_expression_table(path, known=["p1", "p2", "p3"], genes=["S5"])
    assert found.samples == ("p1", "p2", "p3")
    assert np.allclose(found.values[:, 0], np.log1p(tpm[:, 5]))
    assert read_expression_table(path).samples == ("s1", "s2", "s3")
    with pytest.raises(TiaftError, match="has no layer 'raw': there is none"):
        read_expression_table(path, layer="raw")


def write_h5ad(path, tpm, sparse):
    from scipy.sparse import csc_matrix, csr_matrix

    def frame(file, name, index, **columns):
        group = file.create_group(name)
        group.attrs["_index"], group.attrs["column-order"] = "_index", list(columns)
        for key, texts in {"_index": index, **columns}.items():
            group.create_dataset(key, data=texts, dtype=h5py.string_dtype())
            group[key].attrs["encoding-type"] = "string-array"
        return group

    with h5py.File(path, "w") as file:
        obs = frame(file, "obs", ["s1", "s2", "s3"])
        obs.attrs["column-order"] = ["patient"]
        patient = obs.create_group("patient")
        patient.attrs["encoding-type"] = "categorical"
        patient.create_dataset("categories", data=["p3", "p2", "p1"], dtype=h5py.string_dtype())
        patient["categories"].attrs["encoding-type"] = "string-array"
        patient.create_dataset("codes", data=np.array([2, 1, 0], np.int8))
        frame(file, "var", GENES, symbol=[f"S{n}" for n in range(2000)])
        if not sparse:
            file.create_dataset("X", data=tpm)
            return path
        matrix = csr_matrix(tpm) if sparse == "csr" else csc_matrix(tpm)
        group = file.create_group("X")
        group.attrs["encoding-type"], group.attrs["shape"] = f"{sparse}_matrix", matrix.shape
        for part in ("data", "indices", "indptr"):
            group.create_dataset(part, data=getattr(matrix, part))
    return path


def test_every_unit_ends_in_the_same_numbers(tmp_path, tpm):
    wanted = np.log1p(tpm)
    forms = {
        "tpm": tpm,
        "log2(tpm+1)": np.log2(tpm + 1),
        "ln(tpm+1)": wanted,
        "log2(tpm+0.001)": np.log2(np.where(tpm < 1e-4, 0, tpm) + 0.001),
    }
    for unit, values in forms.items():
        values = values.copy()
        if unit == "log2(tpm+0.001)":
            values[0, 0] = np.log2(0.001)
        assert recognise(values) == unit
        found, _ = log1p_tpm(tmp_path, values, GENES, unit)
        assert np.allclose(found[:, 1:], wanted[:, 1:], atol=2e-4), unit
    assert recognise(tpm * [[0.3], [0.5], [0.7]]) == ""  # FPKM
    assert np.allclose(log1p_tpm(tmp_path, tpm * 0.3, GENES, "fpkm")[0], wanted)
    counts = np.rint(tpm)
    assert recognise(counts[:, :50]) == "counts"
    assert recognise(np.log2(counts[:, :50] + 1)) == "log2(counts+1)"


def test_what_a_table_does_not_show_is_asked_for(tmp_path, tpm):
    path = write(tmp_path / "t.csv", tpm[:, :5] * 0.3, ["1", "2", "3"], list("ABCDE"), "row")
    with pytest.raises(TiaftError, match="does not show whether genes stand in rows or columns"):
        read_expression_table(path)
    with pytest.raises(TiaftError, match="does not show whether it holds TPM"):
        read_expression_table(path, genes_in="columns")
    found = read_expression_table(path, genes_in="columns", unit="fpkm")
    assert found.samples == ("1", "2", "3") and any("5 genes only" in n for n in found.notes)
    assert read_expression_table(path, unit="tpm", known=["1", "2", "3"]).genes == tuple("ABCDE")
    with pytest.raises(TiaftError, match="no unit is called 'rpkm'"):
        read_expression_table(path, genes_in="columns", unit="rpkm")


def test_faulty_tables_are_refused_by_name(tmp_path):
    def table(text):
        (tmp_path / "t.csv").write_text(text)
        return tmp_path / "t.csv"

    for text, message in {
        "": "has no rows but its header",
        "gene,a,b\n": "has no rows but its header",
        "gene,a,a\nX,1,2\n": "names stand more than once in the header: a",
        "gene,a,b\nX,1,2\nY,3\nZ,oops,4\n": "1 cells of column a are no numbers, the first 'oops'",
        "gene,a,b\nX,1,2,3\n": "the first row has 4 cells, the header 3",
        "gene,a,b\nX,1,2\nY,1,2,3\n": "cannot be read as a table",
        "gene,a,b\nX,,2\nY,1,inf\n": "every gene has missing or infinite values",
        "sample,X\na,1\na,2\n": r"samples stand more than once \(column sample\): a",
        "sample,X\na,1\n,2\n": "1 samples have no name",
        "gene,a,b\nX,-1,200\n": "tpm are never negative, and 1 genes have such values",
    }.items():
        with pytest.raises(TiaftError, match=message):
            read_expression_table(table(text), unit="tpm")
    with pytest.raises(TiaftError, match="no such file"):
        read_expression_table(tmp_path / "none.csv")
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(TiaftError, match="save the sheet as CSV"):
        read_expression_table(tmp_path / "t.xlsx")
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(b"gene\ta\nX\t1\n" * 99)[:-9])
    with pytest.raises(TiaftError, match="cannot be read as a table"):
        read_expression_table(tmp_path / "t.tsv.gz")
    (tmp_path / "t.h5ad").write_bytes(b"not HDF5")
    with pytest.raises(TiaftError, match="cannot be read as AnnData"):
        read_expression_table(tmp_path / "t.h5ad")


def table_of(samples) -> Expression:
    return Expression(tuple(samples), ("A",), np.zeros((len(samples), 1)), "tpm")


def test_slides_find_the_sample_of_their_own_kind():
    person = "TCGA-05-4244"
    table = table_of([f"{person}-11A-01R", f"{person}-01B-01R", f"{person}-01A-01R",
                      "TCGA.05.4249.01A", "TCGA-05-4250", "lone", "idle"])  # fmt: skip
    slides = [f"{person}-01Z-00-DX1.svs", f"{person}-11A-01-TS1.svs", f"{person}-06A-01-TS1.svs",
              "TCGA-05-4249-01Z-00-DX1.svs", "TCGA-05-4250-01Z-00-DX1.svs", "lone.svs", "b.svs",
              "other.svs", "TCGA-99-0000-01Z-00-DX1.svs"]  # fmt: skip
    pairs = match_slides(slides, table, patients={"b.svs": "lone"}, left=(left := LeftOut()))
    found = {
        slide: table.samples[row]
        for slide, row in zip(pairs.slides.tolist(), pairs.rows.tolist(), strict=True)
    }
    assert found == {
        slides[0]: f"{person}-01A-01R",
        slides[1]: f"{person}-11A-01R",
        slides[3]: "TCGA.05.4249.01A",
        slides[4]: "TCGA-05-4250",
        "lone.svs": "lone",
        "b.svs": "lone",
    }
    assert pairs.patients.tolist()[:2] == [person, person]
    why = {which: reason for _, which, reason in left.lines}
    assert why[slides[2]].endswith("01 (primary tumour), 11 (normal tissue) only, "
                                   "not of 06 (metastasis)")  # fmt: skip
    assert why["other.svs"] == "no sample of its name, and its patient is not known"
    assert "(TCGA-99-0000) has no sample" in why[slides[8]]
    assert why["idle"] == "no slide that is used has this sample"
    with pytest.raises(TiaftError, match="no slide has a sample in the expression table"):
        match_slides(["x.svs"], table_of(["y"]))


def test_killed_between_its_files_it_goes_on_and_other_files_stay(tmp_path, monkeypatch):
    table = tmp_path / "t.csv"
    table.write_text("patient,A,B\na,1,2\nb,3,4\nc,5,6\n")
    (tmp_path / "slides.txt").write_text("a\nb\nd\n")
    out, write, write_csv = tmp_path / "out", tidy.write_atomically, tidy.write_csv
    told = {"slides": tmp_path / "slides.txt", "unit": "tpm", "genes_in": "columns"}
    files = ("left_out.csv", "slides.csv", "expression.csv")
    for killed_at in files:

        def killed(path, *more, at=killed_at):
            if path.name == at:
                raise KeyboardInterrupt
            return (write_csv if more else write)(path, *more)

        for name in ("write_atomically", "write_csv"):
            monkeypatch.setattr(tidy, name, killed)
        with pytest.raises(KeyboardInterrupt):
            tidy.write_tidy(table, out, **told)
        assert not (out / "expression.csv").exists()
    monkeypatch.setattr(tidy, "write_atomically", write)
    monkeypatch.setattr(tidy, "write_csv", write_csv)
    assert "2 of 3 slides have a sample" in tidy.write_tidy(table, out, **told)
    assert sorted(path.name for path in out.iterdir()) == sorted(files)
    again = "exists already: choose another folder for --out, or remove it"
    with pytest.raises(TiaftError, match=f"expression.csv {again}"):
        tidy.write_tidy(table, out, **told)
    (out / "expression.csv").unlink()
    (out / "slides.csv").write_text("slide,mpp\n")  # somebody's own
    for more in (told, told | {"slides": None}):
        with pytest.raises(TiaftError, match=f"slides.csv {again}"):
            tidy.write_tidy(table, out, **more)
    assert (out / "slides.csv").read_text() == "slide,mpp\n"
    assert not (out / "expression.csv").exists()


def test_scaling_learns_from_training_rows_and_drops_constants():
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.normal(5, 2, 20), np.full(20, 0.1), rng.normal(0, 9, 20)])
    scale = scale_genes(values[:15], "ABC", left=(left := LeftOut()))
    assert scale.names == ("A", "C") and left.lines == [
        ("gene", "B", "constant in training samples")
    ]
    scaled = scale(values)
    assert scaled.dtype == np.float32 and np.allclose(scaled[:15].mean(axis=0), 0, atol=1e-6)
    assert np.allclose(scaled[:15].std(axis=0, ddof=1), 1, atol=1e-6)
    assert scale_genes(values, "ABC", most=1).names == ("C",)
    with pytest.raises(TiaftError, match="all 3 genes are constant"):
        scale_genes(np.ones((4, 3)), "ABC")
    with pytest.raises(TiaftError, match="1 training samples"):
        scale_genes(np.ones((1, 3)), "ABC")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.text(
        st.sampled_from("gene,sample\tTCGA-05-4244.01A;#\n\r\"'0123456789.eE-NA xé"), max_size=200
    )
)
def test_any_text_gives_a_table_or_one_line(tmp_path, text):
    path = tmp_path / "wild.csv"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        found = read_expression_table(path)
    except TiaftError as error:
        assert "\n" not in str(error)
    else:
        assert found.values.shape == (len(found.samples), len(found.genes))
        assert np.isfinite(found.values).all()
