"""The files of a run: the encoder, its head, metrics by epoch, held-out bags, a page, a summary."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiaft_extensions.histotransfer.attention import AttentionNet, save_head
from tiaft_extensions.histotransfer.topk.held_out import (
    FROZEN,
    OF_K,
    TUNED,
    Compared,
    HeldOut,
    compare,
    signed,
    verdict,
    write_held_out,
)
from tiaft_extensions.histotransfer.topk.report import Fold, build_report
from tiaft_plugin.files import write_atomically, write_csv
from tiaft_plugin.finetune.epochs import Progress
from tiaft_plugin.finetune.interface import FinetuneResult
from tiaft_plugin.network.file import save_model
from tiaft_plugin.network.net import Network

if TYPE_CHECKING:
    from tiaft_extensions.histotransfer.topk.prepare import Prepared

MODEL, HEAD, METRICS = "model.safetensors", "head.safetensors", "metrics.csv"
HELD_OUT, REPORT, SUMMARY = "held_out.csv", "report.html", "summary.json"
FILES = (MODEL, HEAD, METRICS, HELD_OUT, REPORT, SUMMARY)
_MEASURES = ("loss", "accuracy")


def write_run(
    ready: "Prepared",
    net: Network,
    head: AttentionNet,
    progress: Progress,
    held_out: HeldOut | None,
    notes: tuple[str, ...],
) -> FinetuneResult:
    """Write all files, each atomically, the summary last; return where they lie."""
    out = ready.job.out
    clear(out)
    compared = None if held_out is None else compare(held_out, ready.job.seed)
    if held_out is not None:
        write_held_out(out / HELD_OUT, held_out)
    rows = ((r["epoch"], r["split"], *(f"{r[n]:.6g}" for n in _MEASURES)) for r in progress.rows)
    write_csv(out / METRICS, ("epoch", "split", *_MEASURES), rows)
    training = net.card.training
    about = {"encoder_kept_epoch": training["kept_epoch"], "head_sha256": training["head_sha256"]}
    if training["kept_epoch"]:  # else the head is as it was, and learnt from all tiles
        about["k"] = training["k"]
    save_head(out / HEAD, head, ready.head.classes, {**ready.head.about, **about})
    fold = Fold("", training["kept_epoch"], progress.rows, net.card.data, notes)
    settings = {**ready.settings.numbers, "seed": ready.job.seed, "precision": ready.precision}
    text = build_report([fold], held_out, compared, settings)
    with write_atomically(out / REPORT) as part:
        part.write_text(text, encoding="utf-8")
    save_model(net, out / MODEL, overwrite=True)
    summary = {
        "decides": ready.identity,
        "kept_epoch": training["kept_epoch"],
        "epochs": ready.settings.epochs,
        "data": net.card.data,
        "settings": settings,
        "rows": progress.rows,
        "notes": list(notes),
        "compared": numbers(compared),
        "told": told(training["kept_epoch"], ready.settings.epochs, compared),
    }
    write_summary(out / SUMMARY, summary)
    return _result(out, summary)


def clear(out: Path, names: Sequence[str] = FILES) -> None:
    """Remove an earlier run's files from a folder, and halves of files that a killed one left."""
    for name in map(Path, names):
        (out / name).unlink(missing_ok=True)
        for half in out.glob(f".{name.stem}-*{name.suffix}"):
            half.unlink()


def read_result(out: Path) -> tuple[str, FinetuneResult] | None:
    """Return what decided a finished run in a folder, and its result; None where there is none."""
    try:
        summary = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        wanted = [name for name in FILES if name != HELD_OUT or summary["compared"]]
        there = all((out / name).is_file() for name in wanted)
        return (summary["decides"], _result(out, summary)) if there else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write a summary as JSON, atomically."""
    with write_atomically(path) as part:
        part.write_text(
            json.dumps(summary, indent=1, ensure_ascii=False, sort_keys=True) + "\n",
            encoding="utf-8",
        )


def numbers(compared: Compared | None) -> dict[str, Any] | None:
    """Return a comparison as plain values; NaN as None."""
    if compared is None:
        return None
    names = ("AUROC", "low", "high", "balanced_accuracy")
    found: dict[str, Any] = {
        name: dict(zip(names, map(_finite, values), strict=True))
        for name, values in compared.models.items()
    }
    differences = {
        name: {
            **{what: _finite(v) for what, v in its._asdict().items()},
            "verdict": verdict(its),
        }
        for name, its in compared.differences.items()
    }
    return {**found, "differences": differences, "bags": compared.bags, "groups": compared.groups}


def told(epoch: int, epochs: int, compared: Compared | None) -> str:
    """Return a run in a line, for people."""
    text = f"epoch {epoch} of {epochs}"
    if compared is None:
        return text
    frozen, tuned = (compared.models[name][0] for name in (FROZEN, TUNED))
    change = signed(compared.difference.value)
    return f"{text}; AUROC of {compared.bags} held-out bags {frozen:.3f} -> {tuned:.3f} ({change})"


def _result(out: Path, summary: dict[str, Any]) -> FinetuneResult:
    compared = summary["compared"] or {}
    last = {
        f"{name} AUROC": compared[name]["AUROC"]
        for name in (FROZEN, TUNED, OF_K)
        if name in compared and compared[name]["AUROC"] is not None
    }
    return FinetuneResult(
        model=out / MODEL,
        metrics=out / METRICS,
        report=out / REPORT,
        last=last,
        summary=summary["told"],
        warnings=tuple(summary["notes"]),
    )


def _finite(value: float) -> float | None:
    return float(value) if value == value else None
