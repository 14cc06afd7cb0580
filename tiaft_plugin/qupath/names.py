"""How classes and their probabilities are called in QuPath."""

from collections.abc import Sequence

from tiaft_plugin.errors import TiaftError


def measurement_name(class_name: str) -> str:
    """Return the measurement that holds a class's probability.

    With a prefix and a colon as QuPath's own ("Nucleus: Area"): the probabilities stand together
    in its tables, and a class called "Area" hides no measurement of that name.
    """
    return f"Probability: {class_name}"


def as_written(class_name: str) -> str:
    """Return a class's name as QuPath writes it: "Tumor:Positive" is "Tumor: Positive"."""
    return ": ".join(part.strip() for part in class_name.split(":"))


def path_class(class_name: str) -> tuple[str, ...]:
    """Return a class name as QuPath takes it apart: "Tumor: Positive" is Positive under Tumor.

    Raises TiaftError for names that QuPath refuses, and with them the whole file: line breaks,
    and nothing before, between or after colons.
    """
    parts = tuple(part.strip() for part in class_name.split(":"))
    if "\n" in class_name or "\r" in class_name or not all(parts):
        raise TiaftError(
            f"QuPath takes no class called {class_name!r} (a line break, or nothing beside a "
            "colon): rename it in the model's card"
        )
    return parts


def path_classes(class_names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return `path_class` of each name; raise TiaftError where QuPath would take two for one."""
    taken: dict[tuple[str, ...], str] = {}
    for name in class_names:
        parts = path_class(name)
        if parts in taken:
            raise TiaftError(
                f"QuPath cannot tell the classes {taken[parts]!r} and {name!r} apart: rename one "
                "in the model's card"
            )
        taken[parts] = name
    return list(taken)
