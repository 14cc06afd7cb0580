"""What decides a store's content: fingerprinted, and compared where a store is there already."""

from collections.abc import Mapping
from typing import Any

SETTINGS = (
    *("kind", "slide", "model", "classes", "task", "grid", "scale_to_baseline", "precision"),
    "stain_normalisation",
)
_LONGEST = 60  # characters of a value that is shown
_DIGEST = 8  # characters of a hash


def without_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a file happens to be called: a renamed slide or model is the same one.

    A slide's bounds come with its fingerprint; stores of before they were noted lack them.
    """
    return {
        **settings,
        "slide": {k: v for k, v in settings["slide"].items() if k not in ("name", "bounds")},
        "model": {k: v for k, v in settings["model"].items() if k != "name"},
    }


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return what differs between a store's attributes and those wanted, each as old → new."""
    old, new = ({k: v for k, v in facts.items() if k in SETTINGS} for facts in (found, wanted))
    before, after = _flat(without_names(old)), _flat(without_names(new))
    names = [name for name in before | after if before.get(name) != after.get(name)]
    shown = []
    for name in names:
        if name == "model sha256":
            name, pair = "model", [_model(facts["model"]) for facts in (old, new)]
        else:
            pair = [_short(name, values.get(name)) for values in (before, after)]
        shown.append(f"{name}: {pair[0]} → {pair[1]}")
    return "; ".join(shown)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, those inside others under both names, but for grid, whose names suffice."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if not isinstance(value, Mapping):
            flat[name.replace("_", " ")] = value
            continue
        for inner, its in value.items():
            both = inner if name == "grid" else f"{name} {inner}"
            flat[both.replace("_", " ")] = its
    return flat


def _model(facts: Mapping[str, Any]) -> str:
    return f"{facts.get('name')} ({_short('sha256', facts.get('sha256'))})"


def _short(name: str, value: Any) -> str:
    """Return a value as people write it."""
    if value is None:
        return "none"
    if name in ("tile size", "stride", "slide size"):
        return "×".join(f"{side:g}" for side in value)
    if isinstance(value, list | tuple):
        value = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in value)
    elif isinstance(value, float):
        value = f"{value:.6g}"
    text = str(value)
    if name.endswith(("sha256", "fingerprint")):
        return text[:_DIGEST] + "…"
    head, colon, digest = text.partition("sha256:")
    if colon:
        return f"{head}{colon}{digest[:_DIGEST]}…"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
