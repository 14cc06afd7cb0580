"""What there is to say of models: the list, one model's card, and whether it is sound."""

import json
from pathlib import Path

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.files import sha256_of
from tiaft_plugin.network.card import is_file, is_safetensors, read_card
from tiaft_plugin.zoo import folder
from tiaft_plugin.zoo.load import known, load_named, unknown
from tiaft_plugin.zoo.names import NamedModel, check_registered, find, models_of_plugins, of_file
from tiaft_plugin.zoo.promises import ALIASES, FEATURES, PROMISES


def model_rows() -> list[tuple[str, str, str, str]]:
    """Return (name, what it gives, its tiles, where it comes from) of each model by name."""
    registered = models_of_plugins()
    names = dict.fromkeys([*PROMISES, *folder.names(), *registered])
    rows = []
    for name in names:
        try:
            if name in registered:
                check_registered(registered[name])
            model = find(name)
        except TiaftError as error:
            rows.append((name, "damaged", "", str(error)))
            continue
        if model is None:
            continue
        tiles = f"{model.tile_size} px at {model.mpp:g} µm/px"
        rows.append((name, _gives(model), tiles, _origin(model)))
        if model.classes:
            aliases = [a for a, target in ALIASES.items() if target == name + FEATURES]
            view = aliases[0] if aliases else name + FEATURES
            rows.append((view, "features", tiles, f"= {name}"))
    return rows


def describe_model(name: str) -> str:
    """Return a model's card and origin as text. Raises TiaftError."""
    model = _named_or_file(name)
    if model.file is None:
        return f"{model.base}: registered by plug-in {model.plugin}"
    card = read_card(model.file)
    lines = [f"file    {model.file}", f"sha256  {sha256_of(model.file)}"]
    note = folder.note_of(model.base) if model.file == folder.file_of(model.base) else None
    if note is not None:
        lines.append(f"added   {note.added}, from {note.source}")
    lines.append(json.dumps(json.loads(card.to_json()), indent=2, ensure_ascii=False))
    return "\n".join(lines)


def verify_model(name: str) -> str:
    """Check a model's hash, card, weights and behaviour. Raises Stopped with what is wrong.

    Raises TiaftError where there is no such model or file.
    """
    path = Path(name)
    if is_safetensors(path) and not is_file(path):
        raise TiaftError(f"{path}: no such model file")
    try:
        model = of_file(path, "features") if is_safetensors(path) else find(name)
        if model is not None:
            return f"{name}: sound{_checked(model)}"
    except TiaftError as error:
        raise Stopped(str(error)) from error
    raise unknown(name)


def _checked(model: NamedModel) -> str:
    """Check a model; return what is known of its file's hash. Raises TiaftError."""
    from tiaft_plugin.zoo.checks import check_model

    net = load_named(model)
    said = ""
    if model.file is not None:
        found = sha256_of(model.file)
        note = folder.note_of(model.base) if model.file == folder.file_of(model.base) else None
        if note is not None and note.sha256 != found:
            raise TiaftError(
                f"{model.file} is not the file that was added: its SHA-256 is {found}, "
                f"{note.sha256} was noted"
            )
        said = f", SHA-256 {found}" + ("" if note else " (none was noted when it was put there)")
    check_model(net, tile_size=model.tile_size, classes=model.classes, multilabel=model.multilabel)
    return said


def _named_or_file(name: str) -> NamedModel:
    if is_safetensors(Path(name)):
        return of_file(Path(name), "features")
    return known(name)


def _gives(model: NamedModel) -> str:
    if model.multilabel:
        return f"{len(model.classes)} labels, any number a tile"
    return f"{len(model.classes)} classes" if model.classes else "features"


def _origin(model: NamedModel) -> str:
    if model.file is None:
        return f"plug-in {model.plugin}"
    if not model.file.is_file():
        return "no weights yet"
    card = read_card(model.file)
    data = card.data.get("name")
    return f"{card.backbone}, {f'trained on {data}' if data else card.source}"
