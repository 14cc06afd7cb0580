"""The models of an evaluation, and which of them is the base of which."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tiaft_extensions.transcriptomics.tune.outputs import HEADS, MODEL
from tiaft_extensions.transcriptomics.tune.samples import SLIDES
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import sha256_of
from tiaft_plugin.network.card import read_card
from tiaft_plugin.tiles.words import some

TAKEN = ("colour", "union")  # words of the probes
_LIBRARIES = ("tiatoolbox", "timm", "torchvision")  # whose models have names, and no files here


@dataclass(frozen=True)
class Candidate:
    """A model: `name` is what tables call it, `model` a registered name or a model file.

    `base` is the `name` of what it was made from, "" where that is not asked about. `identity` is
    what stores know it by (`identity_of`). `runs` are folders of `tune` that may have made it.
    """

    name: str
    model: str
    base: str
    identity: str
    runs: tuple[Path, ...] = ()

    @property
    def run(self) -> Path | None:
        """The folder of the `tune` that made the model, where the file lies in it or `runs` tell.

        A registered model is a copy that does not know where it is from.
        """
        folder = Path(self.model).parent
        # A table of slides beside a file may be anybody's.
        known = (Path(self.model), folder / HEADS, folder / SLIDES)
        if all(file.is_file() for file in known):
            return folder
        made = (run for run in self.runs if (run / MODEL).is_file())
        return next((run for run in made if sha256_of(run / MODEL) == self.identity), None)

    @property
    def on_expression(self) -> bool:
        """Whether its card says that it was fine-tuned on expression."""
        file = _file_of(self.model)
        card = read_card(file) if file is not None else None
        return bool(card and str(card.training.get("finetuner")).startswith("expression-"))


def read_models(texts: Sequence[str], runs: Sequence[Path] = ()) -> list[Candidate]:
    """Return the models of ``NAME[=BASE]``; either may be a model file, called after itself.

    A file called model.safetensors is called after its folder. Raises TiaftError for a model that
    there is not, and a base that is none of the models. `runs` are folders of `tune`.
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
        found.append(Candidate(called[model], model, base, identity_of(model), tuple(runs)))
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
    """Return what tells a model from others: the SHA-256 of its file, or what stores have as that.

    Of a model of TIAToolbox's, timm's or torchvision's it is its name and their versions. Raises
    TiaftError where there is no such model.
    """
    file = _file_of(model)
    if file is not None:
        return sha256_of(file)
    from tiaft_plugin.zoo.load import identity, load_named
    from tiaft_plugin.zoo.names import find
    from tiaft_plugin.zoo.registry import owner_of

    named = find(model)
    if named is not None:  # without a file: a plug-in's, or one whose weights are not there
        return model if named.load is None else identity(named, load_named(named))
    if not owner_of(model):
        raise TiaftError(
            f"no model {model!r}: `tiaft models list` shows those there are, and a model file "
            "(.safetensors) will do, too"
        )
    return ", ".join([model, *(f"{name} {version(name)}" for name in _LIBRARIES)])


def _file_of(model: str) -> Path | None:
    """Return the file of a model, by its path or its name. Raises TiaftError for a wrong path."""
    if Path(model).suffix == ".safetensors":
        if not Path(model).is_file():
            raise TiaftError(f"{model}: no such model file")
        return Path(model)
    from tiaft_plugin.zoo.names import find

    named = find(model)
    return named.file if named and named.file and named.file.is_file() else None


def _divided(text: str) -> tuple[str, str]:
    if Path(text).is_file():
        return text, ""
    model, _, base = text.rpartition("=") if "=" in text else (text, "", "")
    return model, base
