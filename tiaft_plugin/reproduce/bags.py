"""Patients made of real tiles, whose tissue mix drives some genes and mutations and not others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.interface import FeatureTable, Targets

SIGNAL = 0.8  # correlation of a planted gene with the share that drives it
LIABILITY = 0.95  # of what a mutation goes by: yes or no says less than a number
MUTATED = 0.4  # share of patients in whom a gene is mutated


@dataclass(frozen=True)
class Planted:
    """What drives what: each planted gene's tissue; the controls are driven by nothing."""

    genes: dict[str, str]
    null_genes: tuple[str, ...]
    mutations: dict[str, str]
    null_mutations: tuple[str, ...]


def deal(labels: np.ndarray, tissues: Sequence[str], patients: int, seed: int) -> np.ndarray:
    """Return the patient of each tile (N,), "" for tiles of nobody.

    Each patient gets the same number of tiles of `tissues`, and no tile goes to two: a tile on
    both sides of a fold would give its patients away. The mix of each is drawn from a Dirichlet
    distribution, as far as the tiles go. Raises TiaftError where there are too few.
    """
    rng = np.random.default_rng(seed)
    stock = {name: rng.permutation(np.flatnonzero(labels == name)).tolist() for name in tissues}
    each = sum(map(len, stock.values())) // patients
    if each < 2:
        raise TiaftError(
            f"{sum(map(len, stock.values()))} tiles are too few for {patients} patients"
        )
    owner = np.full(len(labels), "", dtype="<U16")
    mixes = rng.dirichlet(np.full(len(tissues), 0.5), patients)
    for number, mix in enumerate(mixes):
        for _ in range(each):
            left = np.array([len(stock[name]) for name in tissues])
            weights = (mix + 1e-6) * (left > 0)
            tissue = tissues[rng.choice(len(tissues), p=weights / weights.sum())]
            owner[stock[tissue].pop()] = f"patient-{number:02d}"
    return owner


def as_bags(table: FeatureTable, owner: np.ndarray) -> FeatureTable:
    """Return the tiles that have an owner, with their patient as group."""
    rows = owner != ""
    return replace(
        table,
        keys=table.keys[rows],
        values=table.values[rows],
        groups=owner[rows],
        labels=None if table.labels is None else table.labels[rows],
        colour=None if table.colour is None else table.colour[rows],
    )


def plant(
    labels: np.ndarray, owner: np.ndarray, planted: Planted, seed: int
) -> tuple[Targets, Targets]:
    """Return expression and mutations of the patients, driven by their share of a tissue.

    A planted gene correlates `SIGNAL` with the share; a planted mutation is there in the `MUTATED`
    patients in whom what correlates `LIABILITY` with the share is largest. Controls are noise.
    """
    rng = np.random.default_rng(seed)
    patients = np.unique(owner[owner != ""])
    noise = {
        name: rng.standard_normal(len(patients))
        for name in (
            *planted.genes,
            *planted.null_genes,
            *planted.mutations,
            *planted.null_mutations,
        )
    }
    driven = planted.genes | planted.mutations
    for name, tissue in driven.items():
        share = np.array([(labels[owner == patient] == tissue).mean() for patient in patients])
        z = (share - share.mean()) / share.std()
        r = SIGNAL if name in planted.genes else LIABILITY
        noise[name] = r * z + np.sqrt(1 - r**2) * noise[name]
    genes = (*planted.genes, *planted.null_genes)
    mutations = (*planted.mutations, *planted.null_mutations)
    cut = 1 - MUTATED
    return (
        Targets("numbers", patients, np.column_stack([noise[g] for g in genes]), genes),
        Targets(
            "binary",
            patients,
            np.column_stack([noise[g] > np.quantile(noise[g], cut) for g in mutations]).astype(
                float
            ),
            mutations,
        ),
    )
