"""Score, prune and share datasets: data selection for Hugging Face `datasets`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _fork  # noqa: F401  (registers the hook that makes forked workers safe)

__version__ = "0.1.0"

# where each public name lives: imported at first use, so that `import hf_prune` stays light
_HOMES = {
    "Batch": "batch",
    "filter_by_score": "prune",
    "keep_mask": "prune",
    "sample_by_score": "prune",
    "split_by_score": "prune",
    "with_row_id": "rows",
    "Embedder": "embed",
    "Ledger": "cost",
    "Model": "models",
    "Random": "scorers.random",
    "SSLPrototypes": "scorers.ssl_prototypes",
    "ScoreColumn": "columns",
    "Scorer": "scorer",
    "SupervisedPrototypes": "scorers.supervised_prototypes",
    "load_scores": "hub",
    "push_scored": "hub",
    "read_released_scores": "released",
    "save_scored": "hub",
    "score": "run",
    "training_flops": "cost",
}

__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_prune' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


if TYPE_CHECKING:
    from .batch import Batch as Batch
    from .columns import ScoreColumn as ScoreColumn
    from .cost import Ledger as Ledger
    from .cost import training_flops as training_flops
    from .embed import Embedder as Embedder
    from .hub import load_scores as load_scores
    from .hub import push_scored as push_scored
    from .hub import save_scored as save_scored
    from .models import Model as Model
    from .prune import filter_by_score as filter_by_score
    from .prune import keep_mask as keep_mask
    from .prune import sample_by_score as sample_by_score
    from .prune import split_by_score as split_by_score
    from .released import read_released_scores as read_released_scores
    from .rows import with_row_id as with_row_id
    from .run import score as score
    from .scorer import Scorer as Scorer
    from .scorers.random import Random as Random
    from .scorers.ssl_prototypes import SSLPrototypes as SSLPrototypes
    from .scorers.supervised_prototypes import SupervisedPrototypes as SupervisedPrototypes
