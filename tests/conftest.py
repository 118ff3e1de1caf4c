from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of the client: a test that needs the network is a mistake

import datasets
import numpy as np
import pytest
from tiny_models import (  # noqa: F401
    tiny_bert_folder,
    tiny_gpt2_folder,
    tiny_resnet_folder,
    tiny_text_classifier_folder,
)


@pytest.fixture(scope="session", autouse=True)
def homes(tmp_path_factory):
    """Caches of this run apart from the user's."""
    os.environ["HF_PRUNE_HOME"] = str(tmp_path_factory.mktemp("home"))
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def vectors():
    """96 rows around 4 centres in 16 dimensions, with labels, strings and ids."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 4
    x = (rng.normal(size=(4, 16))[labels] + 0.3 * rng.normal(size=(96, 16))).astype(np.float32)
    features = datasets.Features(
        {
            "embedding": datasets.List(datasets.Value("float32"), length=16),
            "label": datasets.ClassLabel(names=["ant", "bee", "cat", "dog"]),
            "text": datasets.Value("string"),
            "row_id": datasets.Value("string"),
        }
    )
    table = {
        "embedding": list(x),
        "label": labels.tolist(),
        "text": [f"text number {i} " * (i % 5 + 1) for i in range(96)],
        "row_id": [f"{i:032x}-0" for i in range(96)],
    }
    return datasets.Dataset.from_dict(table, features=features)


@pytest.fixture(scope="session")
def small_log(vectors, tmp_path_factory):
    """Six epochs of the rows of `vectors`, four classes learned at different times."""
    from hf_prune.dynamics.log import TrainingLog

    rng = np.random.default_rng(0)
    labels = np.array(vectors["label"][:])
    logits = rng.normal(size=(6, len(labels), 4))
    logits[:, np.arange(len(labels)), labels] += np.linspace(0, 2, 6)[:, None] * rng.normal(1, 1, len(labels))
    folder = tmp_path_factory.mktemp("log")
    return TrainingLog.from_logits(folder, vectors["row_id"][:], logits, labels, divergence=True)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The tests run beside each other: a thread pool each would fight for the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def nothing_old_is_searched_for_garbage():
    """A `gc.collect()`, which every run of a Trainer makes, takes a quarter of a second over all modules of torch."""
    gc.collect()
    gc.freeze()
