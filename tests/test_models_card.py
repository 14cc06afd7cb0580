"""Model cards in Hugging Face's format: what a model file records, and nothing else."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from conftest import TINY, tiaft
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network import Card, create_network, read_card, save_model
from tiaft_plugin.network.card import card_from_json
from tiaft_plugin.zoo import folder
from tiaft_plugin.zoo.modelcard import _sections, card_data, model_card

DATA = {
    "name": "Our tiles",
    "fingerprint": "f" * 64,
    "tiles": {"a": 10, "b": 20, "c": 30},
    "groups": 5,
    "held_out": {"name": "Our tiles", "tiles": {"a": 4, "b": 5, "c": 0}, "groups": 2},
    "test": {"name": "Their tiles", "tiles": {"a": 7, "b": 8, "c": 9}, "groups": 3},
}


def training(**metrics):
    stages = [
        {"trains": "part_b", "epochs": 2, "lr": 1e-3, "metrics": {"val": {"accuracy": 0.1}}},
        {"trains": "part_a", "epochs": 1, "lr": 1e-4, "optimizer": "Adam", "metrics": metrics},
    ]
    return {"recipe": "ftx2048", "seed": 7, "stages": stages, "versions": {"torch": "2.99"}}


def saved(folder, name="model", classes="abc", **card):
    settings = {"init": "random", "tile_size": 32, "mpp": 0.5, "hidden": (16,), **card}
    net = create_network(TINY, classes, **settings)
    return save_model(net, folder / f"{name}.safetensors")


def parts(text):
    """The metadata as YAML reads it, and the sections of Markdown by heading."""
    assert text.startswith("---\n")
    _, front, body = text.split("---\n", 2)
    sections = re.split(r"^## (.*)\n\n", body, flags=re.M)
    return yaml.safe_load(front), dict(zip(sections[1::2], sections[2::2], strict=True))


def test_what_was_measured_on_test_tiles_stands_first_in_the_metadata_and_in_the_text(tmp_path):
    found = training(val={"accuracy": 0.9, "loss": 0.3}, test={"accuracy": 0.75, "macro_f1": 0.7})
    path = saved(tmp_path, data=DATA, training=found, licence="apache-2.0")
    text = model_card(str(path))
    front, sections = parts(text)
    assert front["license"] == "apache-2.0" and front["pipeline_tag"] == "image-classification"
    assert front["metrics"] == ["accuracy", "f1", "loss"]
    first, second = front["model-index"][0]["results"]
    assert first["dataset"] == {"name": "Their tiles", "type": "their-tiles", "split": "test"}
    assert first["metrics"][0] == {"type": "accuracy", "value": 0.75, "name": "Accuracy"}
    assert second["dataset"]["split"] == "validation"
    results = sections["Results on held-out tiles"]
    assert results.index("Their tiles (test)") < results.index("Our tiles (validation)")
    assert "| Accuracy | 0.75 |" in results and "| Macro F1 | 0.7 |" in results
    assert "0.1" not in results, "stage 1's accuracy is not this model's"
    assert "No validation tile shows c" in sections["Limitations"]
    assert "test tile shows" not in sections["Limitations"]
    assert ModelCard(text).data.to_dict() == front, "Hugging Face reads something else than YAML"


def test_what_is_not_recorded_is_said_to_be_unknown(tmp_path):
    front, sections = parts(model_card(str(saved(tmp_path, source="", mpp=None))))
    assert front["license"] == "unknown"
    assert not {"model-index", "metrics", "datasets", "base_model"} & set(front)
    assert sections["Training data"].strip() == "The tiles are not recorded."
    assert sections["Training"].strip() == "How it was trained is not recorded."
    assert sections["Licences"].strip() == "The licence of the weights is not recorded."
    assert sections["Results on held-out tiles"].startswith("None are recorded")
    assert "µm/px not recorded" in sections["Input and output"]
    assert "The µm/px of its tiles is not recorded" in sections["Limitations"]


def test_classes_stand_in_the_order_of_the_outputs(tmp_path):
    _, sections = parts(model_card(str(saved(tmp_path, classes=("z_z", "a|b", "_m_")))))
    lines = sections["Input and output"].splitlines()
    assert [line for line in lines if line.startswith("- Class")] == [
        "- Class 0: z_z",
        r"- Class 1: a\|b",
        r"- Class 2: \_m\_",
    ]


@pytest.mark.parametrize(
    ("keep", "said"),
    [("best", "the results are optimistic"), ("last", "There was no test set beside the tiles")],
)
def test_results_on_tiles_that_chose_the_epoch_are_called_optimistic(tmp_path, keep, said):
    found = {**training(val={"accuracy": 0.9}), "keep": keep}
    path = saved(tmp_path, data={k: v for k, v in DATA.items() if k != "test"}, training=found)
    limitations = parts(model_card(str(path)))[1]["Limitations"]
    assert said in limitations and ("optimistic" in limitations) == (keep == "best")


def test_unknown_groups_are_a_limitation(tmp_path):
    data = {**DATA, "groups": 0}
    path = saved(tmp_path, data=data, training=training(test={"accuracy": 0.9}))
    _, sections = parts(model_card(str(path)))
    assert "Groups (slides or patients): not known" in sections["Training data"]
    assert "shares slides or patients with the training tiles" in sections["Limitations"]


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("weights: apache-2.0", {"license": "apache-2.0"}),
        ("CC BY 4.0", {"license": "cc-by-4.0"}),
        ("", {"license": "unknown"}),
        (
            "weights: apache-2.0; training tiles: CC BY 4.0, 10.5281/zenodo.53169",
            {
                "license": "other",
                "license_name": "weights-apache-2.0-training-tiles-cc-by-4.0-10.5281-zenodo.53169",
            },
        ),
    ],
)
def test_the_licence_is_one_of_hugging_face_s_only_where_it_is_just_that(licence, fields):
    data = card_data(Card(TINY, 32, 0.5, (), (), licence=licence), "m").to_dict()
    assert {name: data.get(name) for name in fields} == fields


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("Part A from timm resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("Part A from timm resnet50.a1_in1k; fine-tuned on x", "timm/resnet50.a1_in1k"),
        ("Part A from timm legacy_xception.tf_in1k", None),  # not on Hugging Face
        ("Part A from timm nothing.such", None),
        ("Part A from weights.safetensors", None),
    ],
)
def test_the_base_model_is_named_where_timm_knows_its_address(source, base):
    assert card_data(Card(TINY, 32, 0.5, (), (), source=source), "m").base_model == base


def test_labels_of_which_a_tile_has_any_number(tmp_path):
    path = saved(tmp_path, classes=("tumour",), task="multilabel")
    front, sections = parts(model_card(str(path)))
    assert "multi-label" in front["tags"]
    assert "- Label 0: tumour" in sections["Input and output"]
    assert "unclassified" in sections["Limitations"]


def test_the_script_on_the_card_runs(tmp_path, slide, monkeypatch):
    folder.add_model("lab", saved(tmp_path, mpp=1.0))
    code = re.search(r"```python\n(.*?)```", model_card("lab"), re.S)[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slide.svs").symlink_to(slide)
    exec(code.replace("slide.svs", str(slide)), {})
    assert (tmp_path / "out").is_dir()


def test_the_commands_on_the_card_are_commands(tmp_path, slide, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, mpp=1.0)
    block = re.search(r"```sh\n(.*?)```", model_card("model.safetensors"), re.S)[1]
    for line in block.replace("slide.svs", str(slide)).splitlines():
        done = tiaft(*line.split()[1:])
        assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").glob("*.geojson"))


def test_the_command(tmp_path, tiny_model):
    folder.add_model("tiny", tiny_model)
    shown = tiaft("models", "card", "tiny")
    assert shown.returncode == 0 and shown.stdout == model_card("tiny")
    path = tmp_path / "README.md"
    assert tiaft("models", "card", "tiny", "--out", path).stdout == f"wrote {path}\n"
    assert path.read_text(encoding="utf-8") == shown.stdout
    again = tiaft("models", "card", "tiny", "--out", path)
    assert again.returncode == 2 and "exists already" in again.stderr


def test_a_name_without_weights_says_how_to_get_some():
    with pytest.raises(TiaftError, match="xception-kather100k has no weights"):
        model_card("ftx2048")


def test_a_real_fine_tuning_has_all_that_a_reader_asks(tmp_path, data):
    from tiaft_plugin.finetune.run import finetune_tiles

    run = finetune_tiles(
        data / "crc_val_he_7k", out=tmp_path / "run", backbone=TINY, init="random", tile_size=32,
        epochs=(1, 1), hidden=(8,), val=data / "nct_crc_he", batch_size=64,
    )  # fmt: skip
    front, sections = parts(model_card(str(run.model)))
    assert front["model-index"][0]["results"][0]["metrics"]
    assert read_card(run.model).data["fingerprint"] in sections["Training data"]
    assert "- Stage 2: trains Part A (Part B frozen)" in sections["Training"]
    measured = read_card(run.model).training["stages"][-1]["metrics"]["val"]["loss"]
    assert f"| Loss | {measured:.4g} |" in sections["Results on held-out tiles"]
    assert "MUS 4" in sections["Training data"]


# A stranger's card may hold anything

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
KEYS = st.sampled_from([
    "stages", "metrics", "val", "test", "versions", "tiles", "held_out", "name", "groups", "stain",
    "accuracy", "environment", "licence", "doi",
])  # fmt: skip
OBJECT = st.dictionaries(KEYS, JSON, max_size=3)
STAGES = st.lists(st.dictionaries(KEYS, st.dictionaries(KEYS, OBJECT), max_size=3), max_size=2)
NESTED = st.dictionaries(KEYS, STAGES | OBJECT | JSON, max_size=4)


@settings(max_examples=50)
@given(training=NESTED, data=NESTED, source=st.text(), licence=st.text(), name=st.text(min_size=1))
def test_any_card_gives_valid_metadata(training, data, source, licence, name):
    card = Card(TINY, 32, None, ("a", "b"), (), training=training, data=data, source=source)
    card = card_from_json(replace(card, licence=licence).to_json())
    metadata = card_data(card, name)
    text = f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(_sections(card, name, "0" * 64))
    assert ModelCard(text).data.to_dict() == metadata.to_dict()
    assert json.dumps(yaml.safe_load(metadata.to_yaml()), default=str)


def test_no_text_of_a_card_becomes_a_heading_a_link_or_html(tmp_path):
    wild = "# big [x](http://evil) <script>alert(1)</script> | `code`\n## Results"
    path = saved(tmp_path, source=wild, licence=wild, data={"name": wild, "tiles": {wild: 1}})
    text = model_card(str(path)).split("---\n", 2)[2]
    assert not re.search(r"(?<!\\)<script", text) and not re.search(r"(?<!\\)\]\(", text)
    assert text.count("\n## Results") == 1
