"""Score, prune and share datasets: data selection for Hugging Face `datasets`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_prune import _fork  # noqa: F401  (registers the hook that makes forked workers safe)

__version__ = "0.1.0"

# where each public name lives: imported at first use, so that `import hf_prune` stays light
_HOMES = {
    "Batch": "batch",
    "Embedder": "embed",
    "ExactDedup": "dedup.exact",
    "Ledger": "cost",
    "MinHashDedup": "dedup.minhash",
    "Model": "models",
    "Random": "scorers.random",
    "RemoveRepeats": "dedup.substring",
    "SSLPrototypes": "scorers.ssl_prototypes",
    "ScoreColumn": "columns",
    "Scorer": "scorer",
    "SubstringDedup": "dedup.substring",
    "SupervisedPrototypes": "scorers.supervised_prototypes",
    "duplicate_pairs": "dedup.pairs",
    "filter_by_score": "prune",
    "keep_mask": "prune",
    "load_scores": "hub",
    "push_scored": "hub",
    "read_released_scores": "released",
    "sample_by_score": "prune",
    "save_scored": "hub",
    "score": "run",
    "split_by_score": "prune",
    "training_flops": "cost",
    "with_row_id": "rows",
}

__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_prune' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


if TYPE_CHECKING:
    from hf_prune.batch import Batch as Batch
    from hf_prune.columns import ScoreColumn as ScoreColumn
    from hf_prune.cost import Ledger as Ledger
    from hf_prune.cost import training_flops as training_flops
    from hf_prune.dedup.exact import ExactDedup as ExactDedup
    from hf_prune.dedup.minhash import MinHashDedup as MinHashDedup
    from hf_prune.dedup.pairs import duplicate_pairs as duplicate_pairs
    from hf_prune.dedup.substring import RemoveRepeats as RemoveRepeats
    from hf_prune.dedup.substring import SubstringDedup as SubstringDedup
    from hf_prune.embed import Embedder as Embedder
    from hf_prune.hub import load_scores as load_scores
    from hf_prune.hub import push_scored as push_scored
    from hf_prune.hub import save_scored as save_scored
    from hf_prune.models import Model as Model
    from hf_prune.prune import filter_by_score as filter_by_score
    from hf_prune.prune import keep_mask as keep_mask
    from hf_prune.prune import sample_by_score as sample_by_score
    from hf_prune.prune import split_by_score as split_by_score
    from hf_prune.released import read_released_scores as read_released_scores
    from hf_prune.rows import with_row_id as with_row_id
    from hf_prune.run import score as score
    from hf_prune.scorer import Scorer as Scorer
    from hf_prune.scorers.random import Random as Random
    from hf_prune.scorers.ssl_prototypes import SSLPrototypes as SSLPrototypes
    from hf_prune.scorers.supervised_prototypes import SupervisedPrototypes as SupervisedPrototypes
