"""The walks of ``examples/``: what they plant, what they type, and, if asked for, all of their way.

TIAFT_WALKS=1 python -m pytest tests/test_examples_walks.py     # takes minutes
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from test_docs import FENCED, check_command, words_of

from tiaft_extensions.transcriptomics.expression.tables import read_expression_table
from tiaft_plugin.reproduce.leftout import LeftOut

EXAMPLES = Path(__file__).parents[1] / "examples"
WALKS = ("histotransfer", "transcriptomics")
STEP = re.compile(r"^step (\S+) '\n(.*?)'$", re.M | re.S)


def steps_of(walk):
    """Return (result, command) of each step, as it stands in walk.sh."""
    return STEP.findall((EXAMPLES / walk / "walk.sh").read_text(encoding="utf-8"))


def planting(walk, name):
    """Import a file of an example, which is no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / walk / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def bash(script, *arguments, **env):
    """Run bash in a folder of its own; return its returncode, stdout and stderr."""
    return subprocess.run(
        ["bash", *script, *map(str, arguments)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


# What is typed


@pytest.mark.parametrize("walk", WALKS)
def test_each_step_is_a_command_that_there_is(walk):
    steps = steps_of(walk)
    assert len(steps) > 8
    for _, command in steps:
        line = re.sub(r"\\\n\s*", "", command)
        if (words := words_of(line, "tiaft")) is not None:
            check_command(words, whole=True)
        else:
            script = re.match(r'(?:python|cp) "\$EXAMPLE/(\S+)"', line)
            assert script and (EXAMPLES / walk / script[1]).is_file(), line


def test_a_wrong_option_would_be_seen():
    with pytest.raises(click.UsageError, match="No such option"):
        check_command(
            [
                "histotransfer",
                "tune",
                "f",
                "--attention",
                "m",
                "--slides",
                "s",
                "--out",
                "o",
                "--k",
                "6",
            ],
            True,
        )


@pytest.mark.parametrize("walk", WALKS)
def test_its_page_shows_the_commands_that_it_runs(walk):
    text = (EXAMPLES / walk / "README.md").read_text(encoding="utf-8")
    shown = [block.strip() for block in FENCED.findall(text)]
    typed = [command for _, command in steps_of(walk)]
    assert [command for command in typed if command not in shown] == []
    known = {"tiaft", "python"}
    extra = [block for block in shown if block.split()[0] in known and block not in typed]
    assert extra == []


@pytest.mark.parametrize("walk", WALKS)
def test_what_is_done_can_be_told_from_what_is_not(walk):
    results = [result for result, _ in steps_of(walk) if result != "always"]
    assert len(set(results)) == len(results)
    # So that a model is registered before the next steps, which name it.
    named = {r.removeprefix("models/") for r in results if r.startswith("models/")}
    typed = " ".join(command for _, command in steps_of(walk))
    registered = set(re.findall(r"(?:--register|models add) (\S+)", typed))
    assert named == {f"{name}.safetensors" for name in registered}


# How it runs


def test_a_walk_without_data_says_so_and_leaves_nothing(tmp_path):
    for walk in WALKS:
        out = tmp_path / "out"
        done = bash([EXAMPLES / walk / "walk.sh"], tmp_path / "none", out)
        assert done.returncode == 2 and not out.exists()
        assert done.stderr == (
            f"no kather2016/manifest.csv in {tmp_path / 'none'}: name the folder of the data, "
            "walk.sh DATA [OUT]\n"
        )


def test_a_step_is_printed_run_and_not_run_twice(tmp_path):
    script = f". {EXAMPLES}/steps.sh; cd {tmp_path}; step made 'echo one >> made'\n" + (
        "step always '\necho $((1 + 1))'\nstep never 'test -e ready'\nstep last 'touch last'"
    )
    first = bash(["-c", script])
    assert first.returncode == 1 and not (tmp_path / "last").exists()
    assert first.stdout == ("\n$ echo one >> made\n\n$ echo $((1 + 1))\n2\n\n$ test -e ready\n")
    assert first.stderr == "this step failed; run again, the walk goes on with it\n"
    (tmp_path / "ready").touch()
    again = bash(["-c", script])
    assert again.returncode == 0 and (tmp_path / "last").exists()
    assert "done before: made" in again.stdout
    assert (tmp_path / "made").read_text() == "one\n"


def test_a_step_that_failed_for_some_of_its_inputs_is_not_done(tmp_path):
    script = f". {EXAMPLES}/steps.sh; cd {tmp_path}; step report 'touch report; test -e ready'"
    assert bash(["-c", script]).returncode == 1 and (tmp_path / "report").exists()
    assert bash(["-c", script]).returncode == 1
    (tmp_path / "ready").touch()
    assert "done before" not in bash(["-c", script]).stdout
    assert "done before: report" in bash(["-c", script]).stdout


# What is planted


def test_slides_are_positive_with_three_tumour_tiles():
    plant = planting("histotransfer", "plant_bags")
    rng = np.random.default_rng(0)
    sources, tumour = rng.choice(["01", "02"], 200), rng.random(200) < 0.2
    bags = list(plant.draw_bags(sources, tumour, 10, 20, 0))
    assert len(bags) == 20 and sum(bag.positive for bag in bags) == 10
    for bag in bags:
        assert (sources[bag.rows] == bag.patient).all()
        assert bag.positive == (tumour[bag.rows].sum() >= 3)
        assert len(np.unique(bag.rows[tumour[bag.rows]])) == tumour[bag.rows].sum()
    again = list(plant.draw_bags(sources, tumour, 10, 20, 0))
    assert all((a.rows == b.rows).all() for a, b in zip(bags, again, strict=True))


def test_genes_follow_the_mix_or_nothing():
    plant = planting("transcriptomics", "plant_genes")
    rng = np.random.default_rng(0)
    pools = np.split(np.arange(120), 6)
    bags, mixes = plant.draw_bags(pools, 300, 12, rng)
    assert all(len(np.unique(bag)) == 12 for bag in bags)
    assert np.allclose(mixes[0], np.bincount(bags[0] // 20, minlength=6) / 12)
    signal = plant.signal_of(mixes, rng.normal(size=(6, plant.LINEAR)))
    values = plant.express(signal, (signal.mean(axis=0), signal.std(axis=0)), rng)
    r = np.corrcoef(values.T, signal.T)[: values.shape[1], values.shape[1] :]
    assert (np.diag(r) > 0.8).all()
    assert (np.abs(r[plant.SIGNAL :]) < 0.3).all()
    assert len(plant.gene_names()) == values.shape[1]


def test_its_table_is_read_as_tcga_s_are(tmp_path):
    plant = planting("transcriptomics", "plant_genes")
    planted = {"TCGA-ZZ-0001": np.full(64, 5.0), "TCGA-ZZ-0002": np.linspace(-1, 8, 64)}
    path, left = tmp_path / "expression.tsv.gz", LeftOut()
    plant._write_expression(path, planted, np.random.default_rng(0))
    first = path.read_bytes()
    found = read_expression_table(path, genes=plant.gene_names(), left=left)
    assert found.unit == "tpm" and found.source["genes in"] == "rows"
    assert found.samples == (
        "TCGA-ZZ-0001-01A", "TCGA-ZZ-0002-01A", "TCGA-ZZ-0001-11A", "TCGA-ZZ-9999-01A",
    )  # fmt: skip
    assert np.allclose(found.values[1], np.maximum(planted["TCGA-ZZ-0002"], 0), atol=1e-4)
    assert "N_unmapped" in str(left.lines)
    plant._write_expression(path, planted, np.random.default_rng(0))
    assert path.read_bytes() == first


# All of it


@pytest.mark.slow
@pytest.mark.skipif("TIAFT_WALKS" not in os.environ, reason="takes minutes: set TIAFT_WALKS=1")
@pytest.mark.parametrize("walk", WALKS)
def test_the_whole_walk(walk, data, tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = [EXAMPLES / walk / "walk.sh"]
    done = bash(script, data, tmp_path / "out", PATH=path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for result, command in steps_of(walk):
        assert f"\n$ {command}\n" in done.stdout
        assert result == "always" or (tmp_path / "out" / result).exists()
    again = bash(script, data, tmp_path / "out", PATH=path)
    assert again.returncode == 0
    made = sum(result != "always" for result, _ in steps_of(walk))
    assert again.stdout.count("done before: ") == made
