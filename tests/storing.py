"""An array and a live network go into the store, in processes that are killed while they do."""

from __future__ import annotations

from pathlib import Path

import dill  # noqa: F401  (imported once, not in each process)
import numpy as np
import torch

from hf_prune import models, store


def store_array(folder: Path) -> None:
    """For `kills`: an array and a live network go into the store."""
    store.put_array(np.arange(5000))
    torch.manual_seed(0)
    models.Model.of(torch.nn.Linear(3, 2))


def what_the_store_gives(folder: Path) -> list[bool]:
    """For `kills`: what is found is whole; then what is stored again."""
    array, digest = np.arange(5000), store.array_digest(np.arange(5000))
    try:
        before = np.array_equal(store.get_array(digest), array)
    except FileNotFoundError:
        before = True
    store_array(folder)
    torch.manual_seed(0)
    model = models.Model.of(network := torch.nn.Linear(3, 2))
    same = torch.equal(model.load(device="cpu").weight, network.weight)
    left = [p for p in folder.rglob("*") if "tmp" in p.name or "old" in p.name]
    return [before, np.array_equal(store.get_array(digest), array), same, not left]
