"""Fine-tuning on expression: losses, exact gradients in chunks, resuming, what it ends in."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tiaft_extensions.transcriptomics.tune.bags import FeatureBags, cache_stores, read_chunk
from tiaft_extensions.transcriptomics.tune.cached import Cache
from tiaft_extensions.transcriptomics.tune.finetuner import OnExpression
from tiaft_extensions.transcriptomics.tune.losses import (
    Contrastive,
    Direct,
    clip_loss,
    pearson,
    recall,
)
from tiaft_extensions.transcriptomics.tune.run import run_job
from tiaft_extensions.transcriptomics.tune.settings import TuneSettings
from tiaft_extensions.transcriptomics.tune.towers import ImageTower, trained_modules
from tiaft_plugin import TiaftError
from tiaft_plugin.finetune.encoder import Encoder
from tiaft_plugin.finetune.gradcache import backward_whole
from tiaft_plugin.finetune.interface import FinetuneJob, Samples
from tiaft_plugin.network import create_network, load_model, save_model

TINY = "test_resnet"  # timm's own backbone for tests


def gradients(*modules):
    return [p.grad.clone() for module in modules for p in module.parameters()]


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("kind", ["direct", "contrastive"])
def test_the_gradient_in_chunks_is_that_of_the_whole_batch(kind, pooling):
    torch.manual_seed(0)
    settings = TuneSettings(pooling=pooling, head="mlp", width=8)
    tower = ImageTower(12, settings).double().eval()
    objective = Direct(8, 20) if kind == "direct" else Contrastive(8, 20, 16)
    objective.double().eval()
    tiles, there = torch.randn(10, 5, 12).double(), torch.rand(10, 5) > 0.3
    there[:, 0] = True
    expression, patients = torch.randn(10, 20).double(), torch.arange(10) // 2
    loss = objective(tower(tiles, there), expression, patients)
    loss.backward()
    wanted = gradients(tower, objective)
    for size in (1, 3, 10):
        tower.zero_grad(), objective.zero_grad()
        chunks = [slice(start, start + size) for start in range(0, 10, size)]
        found = backward_whole(
            lambda part: tower(tiles[part], there[part]),
            chunks,
            lambda every: objective(every, expression, patients),
        )
        assert found.item() == pytest.approx(loss.item(), rel=1e-12)
        for one, other in zip(gradients(tower, objective), wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)


def test_the_contrastive_loss_is_clips_without_a_patients_own_slides():
    torch.manual_seed(0)
    logits = torch.randn(4, 4).double()
    apart = torch.arange(4)
    by_hand = -0.5 * sum(
        torch.log_softmax(logits, dim)[i, i] for dim in (0, 1) for i in range(4)
    ) / 4  # fmt: skip
    assert torch.allclose(clip_loss(logits, apart), by_hand)
    same = torch.tensor([0, 0, 1, 2])
    changed = logits.clone()
    changed[0, 1] = changed[1, 0] = 1e3
    assert torch.allclose(clip_loss(changed, same), clip_loss(logits, same))
    assert not torch.allclose(clip_loss(changed, apart), clip_loss(logits, apart))
    objective = Contrastive(8, 5, 5)
    assert objective.scale.item() == pytest.approx(1 / 0.07)
    objective.log_scale.data.fill_(9.0)
    assert objective.scale.item() == 100


def test_measures():
    cosines = torch.eye(3)[[0, 0, 1, 2]]
    patients = torch.tensor([7, 7, 8, 9])
    assert recall(cosines, patients, 1) == 1
    assert (
        recall(torch.zeros(4, 3), patients, 1) == 0
        and recall(cosines[[3, 3, 3, 3]], patients, 1) == 0.25
    )
    values = torch.randn(30, 3)
    values[:, 2] = 1
    found = pearson(values * 3 + 1, values)
    assert torch.allclose(found[:2], torch.ones(2).double()) and found[2].isnan()


def planted(folder, slides=24, tiles=6, genes=8, seed=0) -> Samples:
    """Slides of red and blue tiles: half of the genes go with the share of red, half with none."""
    rng = np.random.default_rng(seed)
    files, shares = [], []
    for slide in range(slides):
        red = rng.integers(0, tiles + 1)
        its = []
        for tile in range(tiles):
            pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
            pixels[..., 0 if tile < red else 2] += 150
            its.append(folder / f"{slide}-{tile}.png")
            Image.fromarray(pixels).save(its[-1])
        files.append(tuple(its))
        shares.append(red / tiles)
    values = rng.normal(0, 0.1, (slides, genes)) + 2
    values[:, : genes // 2] += np.array(shares)[:, None]
    names = tuple(f"GENE{n}" for n in range(genes))
    groups = tuple(f"{seed}-patient{n // 2}" for n in range(slides))
    return Samples(folder, tuple(files), tuple(map(tuple, values)), names, groups, 32, 1.0)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    train = planted(tmp_path_factory.mktemp("train"))
    return train, planted(tmp_path_factory.mktemp("val"), 12, seed=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    net = create_network(TINY, init="random", tile_size=32, mpp=1.0)
    return save_model(net, tmp_path_factory.mktemp("base") / "base.safetensors")


def job_of(cohort, base, out, **options) -> FinetuneJob:
    train, val = cohort
    settings = {"slides": 8, "chunk": 4, "tiles": 4, "epochs": 3, "width": 8, "lr": 0.01, **options}
    return FinetuneJob(
        out=out,
        train=train,
        val=val,
        inputs="bags",
        targets="regression",
        init=str(base),
        device="cpu",
        checkpoint_steps=1,
        options=settings,
    )


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_patient_that_is_told_from_nobody_chooses_no_epoch(slides, base, tmp_path):
    val = replace(slides[1], groups=("alone",) * len(slides[1].files))
    job = job_of((slides[0], val), base, tmp_path / "out", epochs=1)
    with pytest.raises(TiaftError, match="1 patient to choose the epoch by is told from no other"):
        run_job(job, "contrastive")
    assert not (tmp_path / "out").exists()
    assert run_job(job, "direct").last["val loss"] > 0


def test_kept_features_are_of_the_pixels_that_the_encoder_takes(slides, base, tmp_path):
    job, samples = job_of(slides, base, tmp_path), {"val": slides[1]}
    cache = Cache(job, samples, {"val": "its"}, tmp_path, torch.device("cpu"))
    net = load_model(base)
    before = cache.features("val", net, 2).read(0, np.arange(2))
    net.card = replace(net.card, tile_size=64)
    assert not np.array_equal(cache.features("val", net, 2).read(0, np.arange(2)), before)
    assert len(list(tmp_path.glob("features-val-*"))) == 2


@pytest.mark.parametrize("objective", ["direct", "contrastive"])
@pytest.mark.parametrize("train", ["head", "last", "whole"])
def test_a_run_ends_in_a_model_that_gives_features(slides, base, tmp_path, objective, train):
    result = OnExpression(objective)(job_of(slides, base, tmp_path / "out", train=train))
    net, before = load_model(result.model), load_model(base)
    tiles = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    found, old = net.features(tiles), before.features(tiles)
    if train == "head":
        assert net.card.backbone == f"{TINY}:projected" and found.shape == (2, 8)
        assert torch.equal(net.part_a.body(before.normalise(tiles)), old)
    else:
        assert net.card.backbone == TINY and found.shape == old.shape
        assert not torch.allclose(found, old)
    changed = {
        name.split(".")[1]
        for name, value in before.state_dict().items()
        if train != "head" and not torch.equal(value, net.state_dict()[name])
    }
    assert {"head": not changed, "last": "conv1" not in changed, "whole": "conv1" in changed}[train]
    for name, value in net.named_buffers():  # BatchNorm's statistics stay
        if train != "head" and "running" in name:
            assert torch.equal(value, before.state_dict()[name])
    rows = rows_of(result.metrics)
    assert [row["split"] for row in rows] == ["train", "val"] * 3
    measure = "pearson" if objective == "direct" else "recall@1"
    assert rows[1][measure] and f"val {measure}" in result.last
    assert net.card.training["finetuner"] == f"expression-{objective}"
    assert not (tmp_path / "out" / ".unfinished").exists()
    assert "Fine-tuning on expression" in result.report.read_text(encoding="utf-8")


class Killed(Exception):
    pass


@pytest.mark.parametrize("objective, train", [("contrastive", "head"), ("direct", "last")])
def test_interrupted_at_any_save_and_gone_on_with_it_ends_the_same(
    slides, base, tmp_path, monkeypatch, objective, train
):
    from tiaft_plugin.finetune import checkpoint

    options = {"train": train, "pooling": "attention"}
    whole = OnExpression(objective)(job_of(slides, base, tmp_path / "whole", **options))
    save, left = checkpoint.save, [0]

    def save_and_die(path, content):
        save(path, content)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    job = job_of(slides, base, tmp_path / "killed", **options)
    for saves in (1, 2, 4):
        left[0] = saves
        with pytest.raises(Killed):
            OnExpression(objective)(job)
    with pytest.raises(TiaftError, match="unfinished run with other settings: lr"):
        OnExpression(objective)(job_of(slides, base, tmp_path / "killed", **options, lr=0.02))
    left[0] = -1
    again = OnExpression(objective)(job)
    for name in ("model.safetensors", "heads.safetensors", "metrics.csv"):
        assert (again.model.parent / name).read_bytes() == (whole.model.parent / name).read_bytes()


def test_what_cannot_be_learnt_from_is_refused(slides, base, tmp_path):
    train, val = slides
    job = job_of(slides, base, tmp_path / "out")
    nan = (*train.targets[:-1], (np.nan, *train.targets[-1][1:]))
    constant = tuple((1.0,) * 8 for _ in train.targets)
    refused = {
        "1 values of .* the first of gene GENE0 in slide 0-patient11": replace(
            job, train=replace(train, targets=nan)
        ),
        "all 8 genes are constant": replace(job, train=replace(train, targets=constant)),
        "slides without a tile: number 3": replace(
            job, train=replace(train, files=(*train.files[:3], (), *train.files[4:]))
        ),
        "12 patients stand in train and val": replace(job, val=train),
        "the val slides have other genes": replace(
            job, val=replace(val, target_names=tuple("abcdefgh"))
        ),
        "1 patients to learn from": replace(job, train=replace(train, groups=("p",) * 24)),
        "no setting is called speed": replace(job, options={"speed": 1}),
        "setting train is 'all': head or last or whole": replace(job, options={"train": "all"}),
        "setting slides is 1": replace(job, options={"slides": 1}),
        "setting blocks is 99: the encoder has": replace(
            job, options={"train": "last", "blocks": 99}
        ),
        "only heads learn": replace(job, inputs="slides", options={"train": "whole"}),
    }  # fmt: skip
    for message, wrong in refused.items():
        with pytest.raises(TiaftError, match=message):
            OnExpression("direct")(wrong)
    assert not (tmp_path / "out").exists()


def test_tiles_are_drawn_by_seed_epoch_and_slide(tmp_path):
    files = []
    for number, size in enumerate((9, 2)):
        np.save(tmp_path / f"{number}.npy", np.arange(size * 3, dtype=np.float32).reshape(size, 3))
        files.append(tmp_path / f"{number}.npy")
    bags = FeatureBags(files)
    one, same, other = (read_chunk(bags, [0, 1], 4, 0, number) for number in (1, 1, 2))
    assert one.tiles.shape == (2, 4, 3) and one.there.tolist() == [
        [True] * 4,
        [True, True] + [False] * 2,
    ]
    assert torch.equal(one.tiles, same.tiles) and not torch.equal(one.tiles, other.tiles)
    with pytest.raises(TiaftError):
        cache_stores([[tmp_path / "none.zarr"]], tmp_path / "cache", 4, 0)


def test_a_frozen_encoder_stays_in_eval_mode(base):
    net = load_model(base)
    encoder = Encoder(net, trained_modules(net.part_a, TuneSettings(train="whole")))
    encoder.train()
    assert not any(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.part_a.parameters())


def test_the_command_goes_from_tiles_and_a_table_to_a_model(slides, base, tmp_path, monkeypatch):
    import pandas as pd
    from click.testing import CliRunner

    from tiaft_extensions.transcriptomics.cli import transcriptomics as command
    from tiaft_extensions.transcriptomics.tune import outputs
    from tiaft_plugin.zoo.folder import names as registered

    train, _ = slides
    lines = ["file,label,group"]
    for number, files in enumerate(train.files):
        lines += [f"{file.name},tissue,slide{number}" for file in files]
    (train.root / "manifest.csv").write_text("\n".join(lines))
    patients = pd.DataFrame({"slide": [f"slide{n}" for n in range(24)], "patient": train.groups})
    patients.to_csv(tmp_path / "patients.csv", index=False)
    names = [*sorted(set(train.groups))[:-1], "nobody"]
    values = np.exp(np.array(train.targets)[: len(names)])
    table = pd.DataFrame(values.T, index=train.target_names, columns=names)
    table.to_csv(tmp_path / "expression.tsv.gz", sep="\t", index_label="gene")
    out = tmp_path / "out"
    arguments = [
        "tune", train.root, "--expression", tmp_path / "expression.tsv.gz", "--out", out,
        "--patients", tmp_path / "patients.csv", "--unit", "tpm", "--init", base, "--epochs", 2,
        "--slides", 8, "--set", "width=8", "--mpp", 1, "--register", "tuned", "--test-share", 0,
    ]  # fmt: skip
    out.mkdir()
    (out / "slides.csv").touch()  # somebody's own, which the run would write over
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    assert "slides.csv exists already" in str(result.exception)
    (out / "slides.csv").unlink()

    def killed(*given):
        save_model(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # at the instant when the last file is there
        patch.setattr(outputs, "save_model", killed)
        CliRunner().invoke(command, [str(a) for a in arguments])
    written = {name: (out / name).read_bytes() for name in ("slides.csv", "unmatched.csv")}
    assert (out / "model.safetensors").exists() and registered() == []
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "22 of 24 slides have a sample, of 11 patients" in result.output
    assert "No test: no slides were held out for one (--test-share)" in result.output
    assert not (out / "test.csv").exists()
    assert load_model(out / "model.safetensors").card.backbone == f"{TINY}:projected"
    unmatched = {(row["what"], row["which"]) for row in rows_of(out / "unmatched.csv")}
    assert {("sample", "nobody"), ("slide", "slide18"), ("slide", "slide19")} == unmatched
    assert len(rows_of(out / "slides.csv")) == 22
    assert written == {name: (out / name).read_bytes() for name in written}
    assert registered() == ["tuned"]

    tidy = tmp_path / "tidy"
    arguments = ["expression", tmp_path / "expression.tsv.gz", "--unit", "tpm", "--out", tidy]
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert "12 samples and 8 genes, in rows" in result.output
    assert len(rows_of(tidy / "expression.csv")) == 12
