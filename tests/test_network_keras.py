"""Keras files, against Keras itself: built, run and saved there, imported and run here."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network import load_model, save_model
from tiaft_plugin.network.backbone import create_backbone
from tiaft_plugin.network.keras import read_keras
from tiaft_plugin.network.keras_config import check_config
from tiaft_plugin.network.keras_file import _role

CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")

# Random weights whose BatchNorm statistics first follow from tiles and are then shaken, so that
# nothing is at its default, and activations neither vanish nor explode through the depth.
IN_KERAS = """
import os, sys
import numpy as np
import keras
from keras import layers, ops

folder = sys.argv[1]
random = np.random.default_rng(5)

def tiles(size):
    coarse = random.integers(0, 256, (2, size // 8 + 1, size // 8 + 1, 3))
    fine = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]
    fine = fine * np.array([1.0, 0.3]).reshape(2, 1, 1, 1)
    return np.clip(fine + random.normal(0, 20, fine.shape), 0, 255).astype(np.uint8)

def scaled(pixels):
    return (pixels / 127.5 - 1).astype(np.float32)

def xception():
    return keras.applications.Xception(
        weights=None, include_top=False, pooling="avg", input_shape=(None, None, 3)
    )

xception()  # moves the numbers in the second one's layer names
base = xception()
norms = [layer for layer in base.layers if isinstance(layer, layers.BatchNormalization)]
for norm in norms:
    norm.gamma.assign(random.uniform(0.5, 1.5, norm.gamma.shape))
    norm.beta.assign(random.normal(0, 0.3, norm.beta.shape))
    norm.momentum = 0.0
base(scaled(tiles(224)), training=True)
for norm in norms:
    norm.momentum = 0.99
    mean, variance = (ops.convert_to_numpy(v) for v in (norm.moving_mean, norm.moving_variance))
    norm.moving_mean.assign(mean + random.normal(0, 0.2, mean.shape) * variance**0.5)
    norm.moving_variance.assign(variance * random.uniform(0.7, 1.4, mean.shape) + 1e-3)

def dense(units, activation):
    bias = keras.initializers.RandomNormal(stddev=0.1, seed=int(random.integers(1000)))
    return layers.Dense(units, activation=activation, bias_initializer=bias)

def part_b(x, hidden):
    for _ in range(hidden):
        x = dense(2048, "relu")(x)
    return keras.Model(base.input, dense(9, "softmax")(x)), x

def note(name, model, features=None, sizes=(96,)):
    if features is not None:
        model = keras.Model(base.input, [model.output, features])
    results = {}
    for size in sizes:
        results[f"tiles{size}"] = pixels = tiles(size)
        values = model(scaled(pixels), training=False)
        for key, value in zip(("out", "features"), values if features is not None else [values]):
            results[f"{key}{size}"] = ops.convert_to_numpy(value)
    np.savez(os.path.join(folder, name + ".npz"), **results)

flat, features = part_b(base.output, 1)
note("flat", flat, features, (224, 299))
flat.save(os.path.join(folder, "flat.h5"))
flat.save_weights(os.path.join(folder, "flat.weights.h5"))

two, features = part_b(base.output, 2)
note("two", two, features)
two.save_weights(os.path.join(folder, "two.weights.h5"))

nested = keras.Sequential([base, dense(2048, "relu"), layers.Dropout(0.5), dense(9, "softmax")])
nested.compile(optimizer="adam", loss="categorical_crossentropy")
nested.optimizer.build([nested.layers[-1].kernel])
note("nested", nested)
nested.save(os.path.join(folder, "nested.h5"))
nested.save(os.path.join(folder, "nested.keras"))
nested.save_weights(os.path.join(folder, "nested.weights.h5"))

note("base", base)
base.save(os.path.join(folder, "base.h5"))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder of Keras files, with tiles and what Keras made of them in .npz beside them."""
    if find_spec("keras") is None:
        pytest.skip("keras is not installed: there is nothing to compare the import with")
    folder = tmp_path_factory.mktemp("keras")
    settings = {
        "KERAS_BACKEND": "torch",
        "KERAS_HOME": str(folder / "home"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-c", IN_KERAS, str(folder)]
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    yield folder
    shutil.rmtree(folder)  # some 800 MB, which pytest would keep


@pytest.fixture
def changed(saved, tmp_path):
    """Give a changed copy of a Keras file: ``changed(name, function of the open HDF5 file)``."""
    copies = []

    def change(name, function):
        copy = shutil.copy(saved / name, tmp_path / f"changed-{name}")
        copies.append(Path(copy))
        with h5py.File(copy, "r+") as file:
            function(file)
        return copies[-1]

    yield change
    for copy in copies:
        copy.unlink()


def difference(found, wanted) -> float:
    """The norm of the difference, relative to that of what is wanted."""
    return float(np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted))


def run(path, classes, size) -> dict[str, np.ndarray]:
    net = read_keras(path, classes, tile_size=size)
    stem = path.name.removeprefix("changed-").split(".")[0]
    results = np.load(path.with_name(f"{stem}.npz"))
    with torch.inference_mode():
        found = {"features": net.features(results[f"tiles{size}"]).numpy()}
        if classes:
            found["out"] = net(results[f"tiles{size}"]).softmax(dim=1).numpy()
    return {
        name: difference(value, results[f"{name}{size}"])
        for name, value in found.items()
        if f"{name}{size}" in results
    }


@pytest.mark.slow
def test_what_keras_computes_is_worth_comparing(saved):
    flat = np.load(saved / "flat.npz")
    for size in (224, 299):
        probabilities, features = flat[f"out{size}"], flat[f"features{size}"]
        assert probabilities.max() < 0.9
        assert 0.2 < (features > 0).mean() < 0.8
        assert 0.01 < features.std() < 10
        assert difference(features[0], features[1]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("flat.h5", 224),
        ("flat.h5", 299),
        ("flat.weights.h5", 224),
        ("two.weights.h5", 96),
    ],
)
def test_flat_files_give_what_keras_gives(saved, name, size):
    found = run(saved / name, CLASSES, size)
    assert found.keys() == {"features", "out"}
    assert max(found.values()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested.h5", "nested.weights.h5", "nested.keras"])
def test_xception_as_a_layer_of_another_model_gives_what_keras_gives(saved, name):
    assert run(saved / name, CLASSES, 96)["out"] < 1e-5


@pytest.mark.slow
def test_a_file_without_dense_layers_gives_its_pooled_features(saved):
    net = read_keras(saved / "base.h5", tile_size=96)
    results = np.load(saved / "base.npz")
    with torch.inference_mode():
        assert difference(net.features(results["tiles96"]), results["out96"]) < 1e-5
    assert (net.card.classes, net.card.hidden, net.feature_width) == ((), (), 2048)
    with pytest.raises(TiaftError, match=r"without dense layers, so none for the 9 classes given"):
        read_keras(saved / "base.h5", CLASSES)


@pytest.mark.slow
def test_timms_xception_without_the_corrections_differs(saved):
    net = read_keras(saved / "flat.h5", CLASSES)
    flat = np.load(saved / "flat.npz")

    def gives_what_keras_gives(part_a, epsilon) -> bool:
        for module in part_a.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = epsilon
        net.part_a = part_a.eval()
        with torch.inference_mode():
            return difference(net.features(flat["tiles224"]), flat["features224"]) < 1e-4

    ours, timms = net.part_a, create_backbone("legacy_xception", 224)
    timms.load_state_dict(ours.state_dict())
    assert not gives_what_keras_gives(timms, epsilon=1e-5)
    assert not gives_what_keras_gives(timms, epsilon=1e-3)  # its padding is wrong still
    assert not gives_what_keras_gives(ours, epsilon=1e-5)
    assert gives_what_keras_gives(ours, epsilon=1e-3)


@pytest.mark.slow
def test_an_imported_model_is_saved_as_any_other(saved, tmp_path):
    net = read_keras(saved / "two.weights.h5", CLASSES, tile_size=96, mpp=0.5)
    assert net.card.hidden == (2048, 2048)
    assert (net.card.backbone, net.card.mean, net.card.std) == (
        "keras_xception", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5),
    )  # fmt: skip
    assert (net.card.classes, net.card.mpp, net.card.source) == (
        CLASSES,
        0.5,
        "Keras, two.weights.h5",
    )
    path = save_model(net, tmp_path / "two.safetensors")
    again = load_model(path)
    tiles = np.load(saved / "two.npz")["tiles96"][:1]
    with torch.inference_mode():
        assert torch.equal(net(tiles), again(tiles))
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("classes", [CLASSES[:8], ()])
def test_wrong_number_of_classes_is_refused(saved, classes):
    with pytest.raises(TiaftError, match=r"flat\.h5: its last dense layer .* has 9 outputs, and "):
        read_keras(saved / "flat.h5", classes)


def without_names(group):
    """Make of Keras 3's newer weights file an older one, which knows layers by class and turn."""
    for item in group.values():
        if isinstance(item, h5py.Group):
            item.attrs.pop("name", None)
            without_names(item)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flat.weights.h5", "nested.weights.h5"])
def test_older_keras_3_files_are_matched_by_order(saved, changed, name):
    unnamed = changed(name, without_names)
    new, old = read_keras(saved / name, CLASSES), read_keras(unnamed, CLASSES)
    for (key, value), other in zip(
        new.state_dict().items(), old.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), key


def as_keras_2(file):
    """Make weights-only Keras 2 of a whole Keras 3 model: at the root, with TensorFlow's names."""
    for name in ("backend", "keras_version", "model_config"):
        file.attrs.pop(name, None)
    for name, group in file["model_weights"].items():
        for inner in list(group.values()):
            for array in list(inner):
                inner.move(array, f"{array}:0")
            if name.startswith("block14"):  # a second model in one TensorFlow 1 session
                group.move(name, f"{name}_1")
        group.attrs["weight_names"] = [
            f"{inner}/{array}".encode() for inner in group for array in group[inner]
        ]
        file.move(f"model_weights/{name}", name)
    names = file["model_weights"].attrs["layer_names"]
    del file["model_weights"]
    half = len(names) // 2  # long lists stand in several attributes
    file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:half], names[half:]


@pytest.mark.slow
def test_weights_of_keras_2_are_read(saved, changed):
    old, new = (
        read_keras(changed("flat.h5", as_keras_2), CLASSES),
        read_keras(saved / "flat.h5", CLASSES),
    )
    for (key, value), other in zip(
        new.state_dict().items(), old.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), key


def remove(name):
    return lambda file: file.__delitem__(name)


def config_with(**values):
    """Change the settings of the first dense layer."""

    def change(file):
        config = json.loads(file.attrs["model_config"])
        layers = config["config"]["layers"]
        next(x for x in layers if x["class_name"] == "Dense")["config"].update(values)
        file.attrs["model_config"] = json.dumps(config)

    return change


def square_dense_without_order(file):
    file.move("layers/dense", "layers/top/layers/dense")


def external(file):
    del file["model_weights/conv2d_4"]
    file["model_weights/conv2d_4"] = h5py.ExternalLink("/etc/hostname", "/")


def first_bn(file):
    return file["layers/batch_normalization/vars"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("flat.h5", remove("model_weights/block5_sepconv2"), "lacks block5_sepconv2 of Xception"),
        ("flat.h5", remove("model_weights/conv2d_6"), "lacks block4_shortcut of Xception"),
        ("flat.h5", remove("model_weights/dense"), "2 dense layers, and holds weights of 1"),
        ("flat.weights.h5", remove("layers/dense/vars/1"), "no place for layers/dense/vars"),
        ("two.weights.h5", remove("layers/dense_2"), "last dense layer .* has 2048 outputs"),
        (
            "flat.weights.h5",
            lambda f: (without_names(f), f.__delitem__("layers/separable_conv2d_33")),
            "lacks block14_sepconv2 of Xception",
        ),
        (
            "flat.weights.h5",
            lambda f: f.copy("layers/conv2d", "layers/conv2d_6"),
            r"holds block1_conv1 twice",
        ),
        (
            "flat.h5",
            lambda f: f.copy("model_weights/conv2d_4/conv2d_4", "model_weights/extra/extra"),
            r"no place for extra/extra \(convolution\)",
        ),
        (
            "flat.h5",
            lambda f: f.create_dataset("model_weights/prelu/prelu/alpha", data=np.ones(3)),
            "alpha is none of the arrays",
        ),
        (
            "flat.weights.h5",
            lambda f: f["layers/conv2d"].create_dataset("vars/1", data=np.ones(32)),
            r"has shapes \[\(3, 3, 3, 32\), \(32,\)\], and block1_conv1",
        ),
        (
            "flat.weights.h5",
            lambda f: first_bn(f)["1"].__setitem__(3, np.nan),
            r"NaN or infinity \(part_a\.bn1\.bias\)",
        ),
        ("flat.h5", config_with(activation="linear"), "is followed by no activation, not by ReLU"),
        ("flat.h5", config_with(activation="elu"), "is followed by elu, not by ReLU"),
        ("flat.h5", external, "conv2d_4 is a link, maybe to another file"),
        ("two.weights.h5", square_dense_without_order, "do not make one chain from"),
    ],
)  # fmt: skip
def test_files_of_another_network_are_refused(changed, name, change, text):
    path = changed(name, change)
    with pytest.raises(TiaftError, match=text) as caught:
        read_keras(path, CLASSES)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_imagenets_thousand_classes_are_named_as_such(saved, changed):
    def imagenet(file):
        for name in ("dense", "dense_1"):
            del file[f"layers/{name}"]
        top = file.create_group("layers/dense/vars")
        top.attrs["name"] = "predictions"
        top["0"], top["1"] = np.zeros((2048, 1000), "f4"), np.zeros(1000, "f4")

    path = changed("flat.weights.h5", imagenet)
    with pytest.raises(
        TiaftError,
        match=r"layer \(predictions\) has 1000 outputs, and 9 class names .*file without top",
    ):
        read_keras(path, CLASSES)
    net = read_keras(path, [f"class {number}" for number in range(1000)])
    assert (net.card.hidden, net.part_b.classifier.out_features) == ((), 1000)


@pytest.mark.slow
def test_truncated_files_are_refused(saved, tmp_path):
    whole = (saved / "flat.weights.h5").read_bytes()
    cut = tmp_path / "cut.weights.h5"
    for share in (0.99, 0.5, 0.1, 1e-4):
        cut.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(TiaftError, match=r"cut\.weights\.h5 is not a whole Keras HDF5 file"):
            read_keras(cut, CLASSES)
    archive = (saved / "nested.keras").read_bytes()
    cut.write_bytes(archive[: len(archive) // 2])
    with pytest.raises(TiaftError, match="is not a whole Keras HDF5 file"):
        read_keras(cut, CLASSES)
    cut.unlink()


@pytest.mark.parametrize(
    "content", [b"", b"no weights here", b"\x89HDF\r\n\x1a\n", b"PK\x05\x06" + bytes(18)]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.h5"
    path.write_bytes(content)
    with pytest.raises(TiaftError, match=r"x\.h5.*(not a whole Keras HDF5 file|no \.keras file)"):
        read_keras(path, CLASSES)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.h5"):
        with pytest.raises(TiaftError, match="no such Keras file"):
            read_keras(path)


def test_a_configuration_that_is_too_long_is_refused(tmp_path):
    path = tmp_path / "long.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("model.weights.h5", b"small")
        archive.writestr("config.json", b" " * (2**24 + 1))
    with pytest.raises(TiaftError, match=r"config\.json in this archive is too big"):
        read_keras(path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("model.weights.h5", b"small")
    content = path.read_bytes()
    size = (5).to_bytes(4, "little")
    at = content.rindex(b"PK\x01\x02") + 24
    assert content[at : at + 4] == size
    path.write_bytes(content[:at] + (2**31).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(TiaftError, match="too big for Xception"):
        read_keras(path)


def test_a_damaged_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "x.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(range(256)) * 50)
    content = path.read_bytes()
    at = content.index(b"model.weights.h5") + len("model.weights.h5")
    path.write_bytes(content[:at] + b"\xff" * 20 + content[at + 20 :])
    with pytest.raises(TiaftError, match=r"x\.keras is not a whole Keras HDF5 file \(Error"):
        read_keras(path)


def soft(file):
    file["layers/a"] = h5py.SoftLink("/layers")


def cycle(file):
    file["layers/a"] = file["layers"]


def virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(3,))
    file["layers"].create_virtual_dataset("vars/0", layout)


def outside(file):
    file.create_dataset("layers/vars/0", (3,), "f4", external=[("/etc/hostname", 0, 12)])


def huge(file):
    file.create_dataset("layers/dense/vars/0", (2048, 2**40), "f4", chunks=(1, 1024))


def whole_numbers(file):
    file["layers/dense/vars/0"] = np.ones(3, int)


def fifo(file):
    file["model_weights"] = h5py.ExternalLink(Path(file.filename).with_name("pipe"), "/")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (soft, "a is a link"),
        (fifo, "model_weights is a link"),
        (cycle, "stands in the file twice"),
        (virtual, "not an array that stands in this file"),
        (outside, "not an array that stands in this file"), (huge, "too big for Xception"),
        (whole_numbers, "not the floats of weights"), (lambda file: None, "holds no Xception"),
    ],
)  # fmt: skip
def test_hdf5_that_points_elsewhere_or_promises_too_much_is_refused(tmp_path, change, text):
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_group("layers")
        change(file)
    with pytest.raises(TiaftError, match=text):
        read_keras(path)


@pytest.mark.parametrize(
    ("leaf", "role"),
    [
        ("0", 0), ("3", 3), ("kernel", 0), ("bias:0", 1), ("moving_variance:0", 3),
        ("pointwise_kernel:0", 1), ("block1_conv1_W_1:0", 0), ("dense_2_b:0", 1),
        ("block2_sepconv1_pointwise_kernel:0", 1), ("block2_sepconv1_depthwise_kernel:0", 0),
        ("batchnormalization_1_running_std:0", 3), ("batchnormalization_1_running_mean:0", 2),
    ],
)  # fmt: skip
def test_names_of_every_keras_lead_to_the_place_in_the_layer(leaf, role):
    assert _role(leaf) == role


def dense(activation):
    return ("Dense", {"name": "d", "activation": activation})


BASE = [("BatchNormalization", {"epsilon": 1e-3}), ("GlobalAveragePooling2D", {})]


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([*BASE, dense("relu"), dense("softmax")], None),
        ([*BASE, dense("linear"), ("ReLU", {}), ("Dropout", {}), dense("linear")], None),
        ([*BASE, dense({"config": "relu"}), dense("linear"), ("Softmax", {})], None),
        ([("Rescaling", {"scale": 1 / 127.5, "offset": -1}), *BASE], None),
        ([("Rescaling", {"scale": 1 / 255, "offset": 0}), *BASE], "Rescaling layer does not scale"),
        ([("GlobalMaxPooling2D", {})], "its pooling is GlobalMaxPooling2D"),
        ([("BatchNormalization", {"epsilon": 1e-5})], "epsilon is 1e-05, not Xception's"),
        ([dense("linear"), dense("softmax")], "followed by no activation, not by ReLU"),
        (
            [dense("linear"), ("ReLU", {"max_value": 6}), dense("softmax")],
            "by a bounded or leaky ReLU, not",
        ),
        ([dense("relu"), ("Lambda", {}), dense("softmax")], "relu and Lambda, not by ReLU"),
        ([dense("relu"), dense("sigmoid")], "followed by sigmoid, not by softmax"),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_configurations_that_compute_something_else_are_refused(layers, text, nested):
    listed = [{"class_name": kind, "config": values} for kind, values in layers]
    if nested:
        listed = [{"class_name": "Functional", "config": {"layers": listed}}]
    config = {"class_name": "Sequential", "config": {"layers": listed}}
    count = sum(kind == "Dense" for kind, _ in layers)
    if text is None:
        check_config(config, count)
    else:
        with pytest.raises(TiaftError, match=text):
            check_config(config, count)
