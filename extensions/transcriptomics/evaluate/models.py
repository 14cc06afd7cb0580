"""The models of an evaluation, and which of them is the base of which."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiaft_extensions.transcriptomics.tune.outputs import HEADS
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import sha256_of
from tiaft_plugin.tiles.words import some

TAKEN = ("colour", "union")  # words of the probes
SLIDES = "slides.csv"  # of a tune's folder: which patient is in which set


@dataclass(frozen=True)
class Candidate:
    """A model: `name` is what tables call it, `model` a registered name or a model file.

    `base` is the `name` of what it was made from, "" where that is not asked about. `identity` is
    its file's SHA-256, or, of what has no file, its name.
    """

    name: str
    model: str
    base: str
    identity: str

    @property
    def run(self) -> Path | None:
        """The folder of the `tune` that the model file lies in, where it does."""
        folder = Path(self.model).parent
        # A registered name lies nowhere; a table of slides beside a file may be anybody's.
        known = (Path(self.model), folder / HEADS, folder / SLIDES)
        return folder if all(file.is_file() for file in known) else None


def read_models(texts: Sequence[str]) -> list[Candidate]:
    """Return the models of ``NAME[=BASE]``; either may be a model file, called after itself.

    A file called model.safetensors is called after its folder. Raises TiaftError for a model that
    there is not, and a base that is none of the models.
    """
    pairs = [_divided(text) for text in texts]
    called = {model: name_of(model) for model, _ in pairs}
    names = [called[model] for model, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TiaftError(f"two models are called {some(twice)}: give files of other names")
    found = []
    for model, base in pairs:
        base = called.get(base, base)
        if base and base not in names:
            raise TiaftError(
                f"--model {model}={base}: {base} is the base, and none of the models: add "
                f"--model {base}"
            )
        if base == called[model]:
            raise TiaftError(f"--model {model}={base}: a model is not its own base")
        found.append(Candidate(called[model], model, base, identity_of(model)))
    return found


def name_of(model: str) -> str:
    """Return what tables call a model. Raises TiaftError for a name that probes take otherwise."""
    path = Path(model)
    name = model
    if path.suffix == ".safetensors":
        name = path.resolve().parent.name if path.stem == "model" else path.stem
    if name in TAKEN or not name or len(name) > 64 or {"/", "\\"} & set(name):
        raise TiaftError(f"no model is called {name!r} here: give its file another name")
    return name


def identity_of(model: str) -> str:
    """Return the SHA-256 of a model's file, or its name. Raises TiaftError where there is none."""
    if Path(model).suffix == ".safetensors":
        if not Path(model).is_file():
            raise TiaftError(f"{model}: no such model file")
        return sha256_of(model)
    from tiaft_plugin.zoo.names import find
    from tiaft_plugin.zoo.registry import owner_of

    named = find(model)
    if named is None and not owner_of(model):
        raise TiaftError(
            f"no model {model!r}: `tiaft models list` shows those there are, and a model file "
            "(.safetensors) will do, too"
        )
    return sha256_of(named.file) if named and named.file and named.file.is_file() else model


def _divided(text: str) -> tuple[str, str]:
    if Path(text).is_file():
        return text, ""
    model, _, base = text.rpartition("=") if "=" in text else (text, "", "")
    return model, base
