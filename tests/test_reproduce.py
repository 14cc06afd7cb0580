"""Reproduction: cohorts out of GDC's files, the configuration, the chain and its miniature."""

import contextlib
import csv
import gzip
import json
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, tiaft, write_slide
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tiaft_plugin import TiaftError
from tiaft_plugin.errors import Stopped
from tiaft_plugin.network import create_network, save_model
from tiaft_plugin.reproduce import miniature
from tiaft_plugin.reproduce.bags import Planted, deal, plant
from tiaft_plugin.reproduce.barcodes import read_sample, read_slide_name
from tiaft_plugin.reproduce.cohort import CohortJob, make_cohort, write_cohort
from tiaft_plugin.reproduce.config import Config, read_config
from tiaft_plugin.reproduce.expression import read_expression
from tiaft_plugin.reproduce.ftx2048 import _extract, _find_slides
from tiaft_plugin.reproduce.genes import plain_name, read_genes
from tiaft_plugin.reproduce.leftout import LeftOut
from tiaft_plugin.reproduce.mutations import read_mutations
from tiaft_plugin.reproduce.steps import Steps
from tiaft_plugin.reproduce.table import compare_with_paper, write_table

UUID = "7c5d9b0e-2a34-4b0a-9a4f-9d2a3c1b7d52"
PATIENTS = [f"TCGA-05-{number}" for number in (4244, 4249, 4250, 4382)]


def write_manifest(path: Path, names: list[str]) -> Path:
    lines = [f"id-{n}\t{name}\tmd5\t123\treleased" for n, name in enumerate(names)]
    path.write_text("\n".join(["id\tfilename\tmd5\tsize\tstate", *lines]) + "\n")
    return path


def write_maf(path: Path, rows: list[tuple[str, str, str]], gz: bool = False) -> Path:
    lines = ["#version 2.4", "Hugo_Symbol\tEntrez\tVariant_Classification\tTumor_Sample_Barcode"]
    lines += [f"{gene}\t1\t{kind}\t{barcode}" for gene, barcode, kind in rows]
    (gzip.open if gz else open)(path, "wt").write("\n".join(lines) + "\n")
    return path


def expression_frame(genes=("ENSG00000000003.15", "ENSG00000000005.6", "ENSG00000000419.13")):
    rng = np.random.default_rng(0)
    barcodes = [f"{patient}-01A-01R-1107-07" for patient in PATIENTS[:3]]
    barcodes += [f"{PATIENTS[0]}-11A-01R-1107-07", f"{PATIENTS[1]}-01B-01R-1107-07"]
    return pd.DataFrame(rng.uniform(0, 900, (len(genes), 5)), index=list(genes), columns=barcodes)


@pytest.fixture
def job(tmp_path) -> CohortJob:
    """Four patients: two complete, one without mutations, one without expression."""
    names = [f"{patient}-01A-01-BS1.{UUID}.svs" for patient in PATIENTS]
    names += [f"{PATIENTS[0]}-01A-01-TS1.{UUID}.svs", f"{PATIENTS[0]}-01Z-00-DX1.{UUID}.svs"]
    names += [f"{PATIENTS[0]}-11A-01-TS1.{UUID}.svs", "notes.txt"]
    table = tmp_path / "expression.csv"
    expression_frame().to_csv(table)
    (tmp_path / "genes.txt").write_text("ENSG00000000003\nENSG00000000419\nENSG00000999999\n")
    rows = [
        ("KRAS", f"{PATIENTS[0]}-01A-01D-1105-08", "Missense_Mutation"),
        ("TP53", f"{PATIENTS[0]}-01A-01D-1105-08", "Silent"),
        ("EGFR", f"{PATIENTS[1]}-01A-01D-1105-08", "Frame_Shift_Del"),
        ("TTN", f"{PATIENTS[3]}-01A-01D-1105-08", "Nonsense_Mutation"),
        ("KRAS", f"{PATIENTS[3]}-11A-01D-1105-08", "Missense_Mutation"),
    ]
    return CohortJob(
        manifest=write_manifest(tmp_path / "gdc_manifest.txt", names),
        expression=(table,),
        mutations=(write_maf(tmp_path / "luad.maf.gz", rows, gz=True),),
        genes=tmp_path / "genes.txt",
    )


def test_a_cohort_is_who_has_slides_expression_and_mutations(job, tmp_path):
    cohort = write_cohort(job, tmp_path / "out")
    assert cohort.patients == PATIENTS[:2]
    assert [slide.file[:23] for slide in cohort.slides] == [
        f"{PATIENTS[0]}-01A-01-BS1",
        f"{PATIENTS[0]}-01A-01-TS1",
        f"{PATIENTS[1]}-01A-01-BS1",
    ]
    assert cohort.mutations == {
        PATIENTS[0]: {"EGFR": 0, "KRAS": 1},
        PATIENTS[1]: {"EGFR": 1, "KRAS": 0},
    }
    written = pd.read_csv(
        tmp_path / "out" / "expression.csv", index_col="patient", float_precision="round_trip"
    )
    raw = expression_frame().iloc[[0, 2], [0, 1]].T.to_numpy()
    assert np.array_equal(written.to_numpy(), raw)
    assert list(written.columns) == ["ENSG00000000003", "ENSG00000000419"]
    about = json.loads((tmp_path / "out" / "cohort.json").read_text())
    assert about["counts"] == {"patients": 2, "slides": 3, "genes": 2, "mutated genes": 2}
    assert about["paper"]["slides"] == 900
    from tiaft_plugin.engine.jobs import read_patients

    assert len(read_patients(tmp_path / "out" / "slides.csv")) == 3


def test_whatever_is_left_out_is_listed_with_its_reason(job, tmp_path):
    write_cohort(job, tmp_path / "out")
    with (tmp_path / "out" / "left_out.csv").open(newline="") as file:
        lines = {(r["what"], r["which"][:19]): r["why"] for r in csv.DictReader(file)}
    assert "no slide" in lines["slide", "notes.txt"]
    assert "diagnostic" in lines["slide", f"{PATIENTS[0]}-01Z-00"]
    assert "11 (normal tissue)" in lines["slide", f"{PATIENTS[0]}-11A-01"]
    assert "its patient" in lines["slide", f"{PATIENTS[3]}-01A-01"]
    assert "not in the expression table" in lines["patient", PATIENTS[3]]
    assert "sequenced or not is not known" in lines["patient", PATIENTS[2]]
    assert "earlier sample" in lines["sample", f"{PATIENTS[1]}-01B-01"]
    assert lines["gene", "ENSG00000999999"] == "not in the expression table"
    assert lines["variants", "Silent: 1 rows"] == "not counted as a mutation"
    assert lines["mutated gene", "TP53"] == "mutated in no patient"


def test_the_sequenced_without_mutations_count_as_not_mutated(job, tmp_path):
    (tmp_path / "sequenced.txt").write_text(f"{PATIENTS[2]}-01A-01D-1105-08\n")
    cohort = make_cohort(CohortJob(**vars(job) | {"sequenced": tmp_path / "sequenced.txt"}))
    assert cohort.mutations[PATIENTS[2]] == {"EGFR": 0, "KRAS": 0}


def test_slides_and_patients_can_be_excluded(job, tmp_path):
    listed = tmp_path / "bad.txt"
    listed.write_text(f"{PATIENTS[0]}-01A-01-TS1\n{PATIENTS[1]}\n")
    cohort = make_cohort(CohortJob(**vars(job) | {"exclude": listed}))
    assert [slide.file[:23] for slide in cohort.slides] == [f"{PATIENTS[0]}-01A-01-BS1"]
    listed.write_text("TCGA-99-9999\n")
    with pytest.raises(TiaftError, match="no slide or patient here: TCGA-99-9999"):
        make_cohort(CohortJob(**vars(job) | {"exclude": listed}))


@pytest.mark.parametrize("form", ["genes", "samples", "dots", "r", "tsv", "parquet", "star"])
def test_expression_is_read_as_r_and_the_gdc_write_it(tmp_path, form):
    frame = expression_frame()
    expected = frame.iloc[:, :3].T.to_numpy()
    path = tmp_path / "table.csv"
    if form == "genes":
        frame.to_csv(path)
    elif form == "samples":
        frame.T.to_csv(path, index_label="barcode")
    elif form == "dots":
        frame.rename(columns=lambda name: name.replace("-", ".")).to_csv(path)
    elif form == "r":  # write.table: no header over row names
        text = frame.to_csv(sep="\t").replace("\t", "", 1)
        path = tmp_path / "table.txt"
        path.write_text(text)
    elif form == "tsv":
        path = tmp_path / "table.tsv.gz"
        frame.to_csv(path, sep="\t")
    elif form == "parquet":
        path = tmp_path / "table.parquet"
        frame.to_parquet(path)
    else:
        frame.insert(0, "gene_name", ["TSPAN6", "TNMD", "DPM1"])
        frame.insert(1, "gene_type", "protein_coding")
        frame.to_csv(path, index_label="gene_id")
    genes = ["TSPAN6", "TNMD", "DPM1"] if form == "star" else None
    table = read_expression([path], genes, ["01"], LeftOut())
    assert list(table.index) == PATIENTS[:3]
    assert np.array_equal(table.to_numpy(), expected)
    assert list(table.columns) == (genes or [plain_name(name) for name in frame.index])


def test_expression_in_parts_is_joined(tmp_path):
    frame, left = expression_frame(), LeftOut()
    frame.iloc[:, :1].to_csv(tmp_path / "a.csv")
    frame.iloc[:2, 1:].to_csv(tmp_path / "b.csv")
    table = read_expression([tmp_path / "a.csv", tmp_path / "b.csv"], None, ["01"], left)
    assert table.shape == (3, 2)
    assert ("gene", "ENSG00000000419", "not in all expression tables") in left.lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.astype(str) + " TPM", "not all numbers in TCGA-05-4244"),
        (lambda frame: frame.rename(columns=lambda name: name[5:]), "has no TCGA barcode"),
        (lambda frame: frame.rename(index=lambda _: "TCGA-05-4244"), "on both sides"),
        (lambda frame: frame.iloc[:, 3:4], "no sample is of type 01"),
    ],
)
def test_expression_that_cannot_be_right_is_refused(tmp_path, change, message):
    change(expression_frame()).to_csv(tmp_path / "table.csv")
    with pytest.raises(TiaftError, match=message):
        read_expression([tmp_path / "table.csv"], None, ["01"], LeftOut())


def test_genes_of_another_naming_are_shown_beside_the_tables(tmp_path):
    expression_frame().to_csv(tmp_path / "table.csv")
    with pytest.raises(TiaftError, match="none of the 2 .* ENSG00000000003.*the list CD274, CD3G"):
        read_expression([tmp_path / "table.csv"], ["CD274", "CD3G"], ["01"], LeftOut())


@pytest.mark.parametrize(
    ("text", "genes"),
    [
        ("CD274\nCD3G\n\nCD274\n", ["CD274", "CD3G"]),
        ("gene\n# two\nCD274\nA1BG|1\n", ["CD274", "A1BG"]),
        ("InnateDB ID,Gene Symbol,Taxon\nIDBG-1,CD274,9606\nIDBG-2,CD3G,9606\n", ["CD274", "CD3G"]),
        ("ensembl\tname\nENSG00000000003.15\tx\n", ["ENSG00000000003"]),
    ],
)
def test_gene_lists_are_lists_or_tables(tmp_path, text, genes):
    (tmp_path / "genes.csv").write_text(text)
    assert read_genes(tmp_path / "genes.csv") == genes


def test_a_table_that_names_no_gene_is_no_gene_list(tmp_path):
    (tmp_path / "genes.csv").write_text("taxon,score\n9606,1\n")
    with pytest.raises(TiaftError, match="none of its columns .taxon, score. is called gene"):
        read_genes(tmp_path / "genes.csv")


def test_genes_are_drawn_with_a_seed(job):
    everything = {**vars(job), "genes": None}
    one = make_cohort(CohortJob(**everything | {"choose": 2, "seed": 1})).expression
    assert one.shape[1] == 2
    again = make_cohort(CohortJob(**everything | {"choose": 2, "seed": 1})).expression
    assert list(one.columns) == list(again.columns)
    with pytest.raises(TiaftError, match="9 genes are to be drawn, and 3 were found"):
        make_cohort(CohortJob(**everything | {"choose": 9}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no GDC manifest: it has no column id and filename"),
        ("id\tfilename\n", "lists no file"),
        ("id\tfilename\nx\t\n", "line 2: id or filename is empty"),
    ],
)
def test_what_is_no_manifest_is_refused(job, text, message):
    job.manifest.write_text(text)
    with pytest.raises(TiaftError, match=message):
        make_cohort(job)


def test_what_is_no_maf_is_refused(tmp_path):
    path = tmp_path / "x.maf"
    path.write_text("Hugo_Symbol\tStart\nKRAS\t1\n")
    with pytest.raises(TiaftError, match="no column Tumor_Sample_Barcode, Variant_Classification"):
        read_mutations([path], ["KRAS"], ["01"], LeftOut())
    write_maf(path, [("KRAS", "sample 1", "Silent")])
    with pytest.raises(TiaftError, match="'sample 1' is no TCGA barcode"):
        read_mutations([path], ["KRAS"], ["01"], LeftOut())


def test_nobody_in_all_tables_says_why(job):
    write_manifest(job.manifest, [f"TCGA-99-0001-01A-01-TS1.{UUID}.svs"])
    with pytest.raises(TiaftError, match="no patient is in all tables of the cohort"):
        make_cohort(job)


@given(st.text(max_size=40))
def test_any_text_is_a_barcode_or_none(text):
    for told in (read_sample(text), read_slide_name(text), read_sample(f"TCGA-05-4244-{text}")):
        assert told is None or told.patient.startswith("TCGA-")


def test_cohort_from_the_command_line(job, tmp_path):
    arguments = ["--manifest", job.manifest, "--expression", *job.expression, "--mutations",
                 *job.mutations, "--genes", job.genes, "--out", tmp_path / "c"]  # fmt: skip
    done = tiaft("reproduce", "cohort", *arguments)
    assert done.returncode == 0, done.stderr
    assert "patients              2     344" in done.stdout
    assert "slide: diagnostic (DX), not frozen" in done.stdout
    again = tiaft("reproduce", "cohort", *arguments)
    assert again.returncode == 2
    assert "slides.csv exists already" in again.stderr


def write_config(folder: Path, text: str = "") -> Path:
    """A configuration whose data are there, as empty files and folders; `text` comes first."""
    for name in ("nct", "crc", "slides"):
        (folder / name).mkdir(exist_ok=True)
    for name in ("slides.csv", "expression.csv", "mutations.csv"):
        (folder / name).touch()
    path = folder / "config.toml"
    path.write_text(
        text + '\n[data]\nfinetune = "nct"\ntissue = "crc"\nslides = "slides"\n'
        'slide_table = "slides.csv"\nexpression = "expression.csv"\nmutations = "mutations.csv"\n'
    )
    return path


def test_the_example_configuration_is_complete_and_holds_the_defaults(tmp_path):
    example = Path(__file__).parents[1] / "examples" / "ftx2048.toml"
    text = example.read_text(encoding="utf-8").partition("[data]")
    rest = text[2].partition("[finetune]")
    path = write_config(tmp_path)
    path.write_text(text[0] + path.read_text() + rest[1] + rest[2])
    config = read_config(path)
    assert config == Config(data=config.data)
    assert config.finetune.epochs == (20, 10)
    written = tomllib.loads(example.read_text(encoding="utf-8"))
    for section in ("data", "finetune", "extract", "probe"):
        optional = {"stride", "slide_mpp"}  # None has no TOML
        kind = Config.__dataclass_fields__[section].type
        assert set(written[section]) == set(kind.__dataclass_fields__) - optional


def test_paths_are_relative_to_the_configuration(tmp_path):
    (tmp_path / "weights.pth").touch()
    config = read_config(write_config(tmp_path, 'finetune.init = "weights.pth"'))
    assert config.data.finetune == tmp_path / "nct"
    assert config.finetune.init == str(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune.epoch = [1, 1]", "no key finetune.epoch: did you mean epochs"),
        ("sead = 1", "no key sead: did you mean seed"),
        ("finetune.epochs = [20]", "finetune.epochs: two numbers expected"),
        ("finetune.epochs = 20", "finetune.epochs is 20, not a list"),
        ('finetune.batch_size = "many"', "finetune.batch_size is 'many', not a whole number"),
        ("probe.grouped = 1", "probe.grouped is 1, not true or false"),
        ("seed = -1", "seed is -1, not a whole number"),
        ("extract.resolution = inf", "extract.resolution is inf, not a number"),
        ('extract.stain = "reinhard"', "extract.stain is reinhard: of macenko, none"),
        ("extract.resolution = 0", "extract.resolution is 0: more, please"),
        ('experiments = ["survival"]', "experiments is survival: of tissue, expression, mutation"),
        ("experiments = []", "experiments is empty"),
        ("finetune = 3", r"finetune is 3, not a list, or a table \[finetune\]"),
        ("seed = = 1", "cannot be read as TOML"),
    ],
)
def test_every_key_is_checked(tmp_path, text, message):
    with pytest.raises(TiaftError, match=f"config.toml.*{message}"):
        read_config(write_config(tmp_path, text))


def test_missing_data_are_named_all_at_once(tmp_path):
    path = write_config(tmp_path)
    (tmp_path / "crc").rmdir()
    path.write_text(path.read_text().replace('mutations = "mutations.csv"\n', ""))
    message = r"data.tissue is not there \(.*crc\).*|data.mutations is not given"
    with pytest.raises(TiaftError, match=message) as error:
        read_config(path)
    assert "data.mutations is not given" in str(error.value)
    path.write_text('experiments = ["expression"]\n' + path.read_text())
    assert read_config(path).data.mutations is None


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=5), max_size=3))
def test_any_values_make_a_configuration_or_an_error(tmp_path_factory, values):
    path = write_config(tmp_path_factory.mktemp("any"))
    extra = "\n".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in values.items())
    path.write_text(extra + path.read_text(), encoding="utf-8", errors="replace")
    with contextlib.suppress(TiaftError):
        assert isinstance(read_config(path), Config)


def test_a_step_is_done_once_and_not_mixed_with_other_settings(tmp_path):
    steps, made = Steps(tmp_path, lambda text: None), tmp_path / "made"

    def run(seed=0):
        steps.run(
            "draw", {"seed": seed, "path": Path("x")}, [made], lambda: made.open("a").write(".")
        )

    run()
    run()
    assert made.read_text() == "."
    with pytest.raises(TiaftError, match=r"with another seed \(step draw\): choose another --out"):
        run(seed=1)
    made.unlink()
    run()
    assert made.read_text() == "."


def test_a_step_that_failed_is_done_again(tmp_path):
    steps = Steps(tmp_path, lambda text: None)
    with pytest.raises(ZeroDivisionError):
        steps.run("divide", {}, [], lambda: 1 // 0)
    done = []
    steps.run("divide", {}, [], lambda: done.append(1))
    assert done


@given(st.integers(0, 1000), st.integers(2, 30))
def test_no_tile_is_in_two_patients_and_all_have_the_same_number(seed, patients):
    labels = np.array(["a"] * 40 + ["b"] * 30 + ["glass"] * 9)
    owner = deal(labels, ["a", "b"], patients, seed)
    names, counts = np.unique(owner[owner != ""], return_counts=True)
    assert len(names) == patients and set(counts) == {70 // patients}
    assert (owner[labels == "glass"] == "").all()


def test_too_few_tiles_for_the_patients_are_refused():
    with pytest.raises(TiaftError, match="5 tiles are too few for 3 patients"):
        deal(np.array(["a"] * 5), ["a"], 3, 0)


def test_planted_values_follow_the_share_and_controls_do_not():
    labels = np.array(["a"] * 400 + ["b"] * 400)
    owner = deal(labels, ["a", "b"], 100, 0)
    planted = Planted({"G": "a"}, ("N",), {"M": "a"}, ("C",))
    numbers, binary = plant(labels, owner, planted, 0)
    share = np.array([(labels[owner == patient] == "a").mean() for patient in numbers.keys])
    r = np.corrcoef(np.column_stack([numbers.values, binary.values, share]).T)[-1]
    assert r[0] > 0.7 and r[2] > 0.5
    assert abs(r[1]) < 0.3 and abs(r[3]) < 0.3
    assert binary.values.mean(axis=0) == pytest.approx([0.4, 0.4])


def score(features, target, value, **more):
    return {"features": features, "target": target, "variant": "", "metric": "accuracy",
            "value": value, "low": value - 0.01, "high": value + 0.01, **more}  # fmt: skip


def test_the_table_stands_beside_the_paper(tmp_path):
    sets = ["IMGNET-2048", "FTX-2048"]
    gap = {"a": sets[0], "b": sets[1], "difference": 0.02, "low": 0.01, "high": 0.03}
    tissue = {
        "data": {"names": ["STR", "TUM"]},
        "scores": [
            score(name, t, 0.9 + n / 50) for n, name in enumerate(sets) for t in ("", "STR")
        ],
        "comparisons": [{**gap, "target": "", "metric": "accuracy"}],
    }
    expression = {
        "genes": {"alpha": 0.05, "tested": 907, "selected": 100, "better": {"FTX-2048": 70},
                  "significant": {"IMGNET-2048": 60, "FTX-2048": 90}},
        "comparisons": [{**gap, "target": "", "metric": "median_r"}],
    }  # fmt: skip
    mutation = {
        "data": {"names": ["STK11", "TTN"]},
        "scores": [score(name, "STK11", 0.6, metric="AUROC") for name in sets],
        "comparisons": [{**gap, "target": "STK11", "metric": "AUROC"}],
    }
    said: list[str] = []
    summaries = {"tissue": tissue, "expression": expression, "mutation": mutation}
    path = write_table(compare_with_paper(summaries, sets), tmp_path / "table.csv", said.append)
    lines = [" ".join(line.split()) for line in said]
    assert "tissue accuracy, all tissues FTX-2048 0.984 0.920 (0.910 to 0.930)" in lines
    assert "tissue accuracy, STR IMGNET-2048 0.870 0.900 (0.890 to 0.910)" in lines
    assert "tissue accuracy, TUM FTX-2048 0.990 not known" in lines
    assert any("139 of 171 (81 %) 70 of 100 (70 %)" in line for line in lines)
    assert any("STK11: difference FTX-2048 − IMGNET-2048 better +0.020" in line for line in lines)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(said) - 2 and rows[1]["expected"] == "0.984"


def test_the_miniature_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.delenv("TIAFT_DATA", raising=False)
    nowhere = tiaft("reproduce", "ftx2048", "--miniature", "--out", tmp_path / "out")
    assert nowhere.returncode == 2 and "--data or TIAFT_DATA" in nowhere.stderr
    (tmp_path / "kather2016").mkdir()
    (tmp_path / "kather2016" / "manifest.csv").touch()
    arguments = ("--miniature", "--data", tmp_path, "--out", tmp_path / "out")
    lacking = tiaft("reproduce", "ftx2048", *arguments)
    assert lacking.returncode == 2
    assert "lacks weights/mobilenetv2_100.imagenet.safetensors" in lacking.stderr
    neither = tiaft("reproduce", "ftx2048", "--out", tmp_path / "out")
    assert neither.returncode == 2 and "either a CONFIG file or --miniature" in neither.stderr


PEOPLE = [f"TCGA-05-{number}" for number in range(4000, 4006)]


@pytest.fixture
def small(tmp_path) -> Path:
    """A configuration of the whole chain on very little data."""
    from skimage.data import immunohistochemistry

    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    for name in ("nct", "crc", "slides"):
        (folder / name).mkdir(parents=True)
    for name, shade in (("STR", 210), ("TUM", 120)):
        for part in ("nct", "crc"):
            (folder / part / name).mkdir()
            for number in range(6):
                pixels = rng.integers(shade - 60, shade + 40, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    pixels = immunohistochemistry()
    for number, patient in enumerate(PEOPLE):
        part = pixels[number * 40 : number * 40 + 192, :192].copy()
        part[:, 150:] = 245
        write_slide(folder / "slides" / f"{patient}-01A-01-BS1.ome.tiff", part)
    table = {"slide": [f"{p}-01A-01-BS1.ome.tiff" for p in PEOPLE], "patient": PEOPLE}
    pd.DataFrame(table).to_csv(folder / "slides.csv", index=False)
    values = pd.DataFrame(rng.uniform(0, 500, (6, 2)), PEOPLE, ["CD274", "CD3G"])
    values.to_csv(folder / "expression.csv", index_label="patient")
    mutated = pd.DataFrame({"patient": PEOPLE, "KRAS": [0, 1] * 3})
    mutated.to_csv(folder / "mutations.csv", index=False)
    text = f"""
        [finetune]
        backbone = "{TINY}"
        init = "random"
        hidden = [8]
        epochs = [1, 1]
        mpp = 1.0
        imgnet = ["pooled", "stage1"]
        [extract]
        resolution = 1.0
        stain = "none"
        min_tissue = 0.0
        [probe]
        folds = 2
        repeats = 1
        permutations = 0
        draws = 100
        """
    path = write_config(folder, "device = 'cpu'")
    path.write_text(path.read_text() + text)
    return path


@pytest.mark.slow
def test_the_chain_goes_from_tiles_to_the_table_and_goes_on(small, tmp_path):
    out = tmp_path / "out"
    done = tiaft("reproduce", "ftx2048", small, "--out", out, "--workers", 1)
    assert done.returncode == 0, done.stderr
    with (out / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["experiment"] for row in rows} == {"tissue", "expression", "mutation"}
    sets = {row["features"] for row in rows}
    assert {"IMGNET-2048", "IMGNET-2048-stage1", "FTX-2048"} <= sets
    assert all((out / name / "report.html").is_file() for name in ("tissue", "mutation"))

    (out / "expression" / "summary.json").unlink()  # as if it had been stopped there
    again = tiaft("reproduce", "ftx2048", small, "--out", out, "--workers", 1)
    assert again.returncode == 0, again.stderr
    before = [line for line in again.stdout.splitlines() if line.endswith(": done before")]
    assert "finetune: done before" in before and "slides-FTX-2048: done before" in before
    assert "probe-expression: done before" not in before

    small.write_text(small.read_text().replace("epochs = [1, 1]", "epochs = [2, 1]"))
    other = tiaft("reproduce", "ftx2048", small, "--out", out)
    assert other.returncode == 2
    assert "was made with another epochs (step finetune)" in other.stderr


def test_slides_that_are_not_there_stop_the_chain_before_it_begins(small, tmp_path):
    (small.parent / "slides" / f"{PEOPLE[3]}-01A-01-BS1.ome.tiff").unlink()
    done = tiaft("reproduce", "ftx2048", small, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"lacks 1 of the 6 slides in {small.parent / 'slides.csv'}: {PEOPLE[3]}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_slide_that_fails_is_named_and_the_others_are_kept(small, tmp_path):
    (small.parent / "slides" / f"{PEOPLE[0]}-01A-01-BS1.ome.tiff").write_bytes(b"no slide")
    config = read_config(small)
    model = create_network(TINY, "ab", init="random", tile_size=32, mpp=1.0, hidden=(8,))
    path = save_model(model, tmp_path / "m.safetensors")
    slides = _find_slides(config)
    with pytest.raises(Stopped, match=f"1 of 6 slides failed .{PEOPLE[0]}.*take them out of"):
        _extract(config, path, slides, tmp_path / "stores", lambda text: None)
    assert len(list((tmp_path / "stores").glob("*.zarr"))) == 5


@pytest.mark.slow
def test_the_miniature_finds_what_is_planted_and_no_controls(data, tmp_path, monkeypatch):
    """With one epoch, and fewer repeats still: what it says must not hang on its numbers."""
    for name, value in (("epochs", (1, 0)), ("tile_size", 96), ("hidden", (256,))):
        monkeypatch.setitem(miniature.JOB, name, value)
    monkeypatch.setattr(miniature, "REPEATS", dict.fromkeys(miniature.REPEATS, 2))
    monkeypatch.setattr(miniature, "PERMUTATIONS", dict.fromkeys(miniature.PERMUTATIONS, 0))
    monkeypatch.setattr("tiaft_plugin.probes.baselines.LEAK_DRAWS", 1)
    said: list[str] = []
    path = miniature.run_miniature(data, tmp_path / "mini", workers=1, say=said.append)
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["features"] == "IMGNET"]
    found = {row["what"]: row["here"] for row in rows}
    assert int(found["planted genes found (q < 0.05)"].split()[0]) >= 6
    assert int(found["controls found (q < 0.05)"].split()[0]) <= 2
    assert float(found["accuracy, all tissues"]) > 0.5
    assert float(found["AUROC LYMPHO"]) > 0.6
    assert any("429 tiles of 5 slides that were not trained on" in text for text in said)
