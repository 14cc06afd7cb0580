"""The benchmarks that can be interrupted, and that they still measure the engine there is."""

import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
kept_module = importlib.import_module("kept")


def rows_of(folder, **settings):
    kept = kept_module.Kept(folder, "result", settings)
    return [kept.once(lambda way=way: {"seconds": 1.5}, way=way) for way in ("one", "other")]


def test_what_was_measured_is_not_measured_again(tmp_path):
    first = rows_of(tmp_path, side=1)
    kept = kept_module.Kept(tmp_path, "result", {"side": 1})
    assert kept.once(lambda: pytest.fail("measured again"), way="other") == first[1]
    assert kept.once(lambda: {"seconds": 2.0}, way="third")["seconds"] == 2.0
    assert (tmp_path / "result.csv").read_text().splitlines()[3].startswith("third,2.0,")


def test_one_interrupted_measurement_leaves_the_others(tmp_path):
    kept = kept_module.Kept(tmp_path, "result", {})
    kept.once(lambda: {"seconds": 1.0}, way="one")
    with pytest.raises(KeyboardInterrupt):
        kept.once(lambda: (_ for _ in ()).throw(KeyboardInterrupt), way="other")
    assert [row["way"] for row in kept_module.Kept(tmp_path, "result", {}).rows] == ["one"]


def test_other_settings_and_other_code_are_not_mixed_with_what_is_there(tmp_path, monkeypatch):
    rows_of(tmp_path, side=1)
    with pytest.raises(SystemExit, match=r"other settings: .*1.*, now .*2.*; give another folder"):
        rows_of(tmp_path, side=2)
    monkeypatch.setattr(kept_module, "_code", lambda: "changed")
    with pytest.raises(SystemExit, match="begun with other code"):
        rows_of(tmp_path, side=1)


def test_the_engine_is_measured_and_drawn(tmp_path, data, monkeypatch, capsys):
    engine = importlib.import_module("engine")
    monkeypatch.setattr("logging.disable", lambda level: None)  # other tests look at warnings
    monkeypatch.setenv("TIAFT_DATA", str(data))
    picture = tmp_path / "engine.png"
    command = f"engine.py {tmp_path} --backbone test_resnet --side 448 --runs 1 --format svs"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--plot", str(picture)])
    engine.main()
    rows = json.loads((tmp_path / "engine.json").read_text())["rows"]
    assert [row["way"] for row in rows] == list(engine.WAYS)
    assert all(row["tiles"] == 4 and row["rate"] > 0 for row in rows)
    assert rows[1]["error"] < 1e-5
    assert rows[4]["precision"] == rows[3]["precision"]
    assert picture.exists()
    assert "network alone, float32" in capsys.readouterr().out
