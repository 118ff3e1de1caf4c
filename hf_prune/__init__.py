"""Score, prune and share datasets: data selection for Hugging Face `datasets`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_prune.homes import PUBLIC
from hf_prune.numerics import fork  # noqa: F401  (registers the hook that makes forked workers safe)

__version__ = "0.1.0"

__all__ = sorted([*PUBLIC, "__version__"])  # noqa: PLE0605


if not TYPE_CHECKING:  # a type checker that saw `__getattr__` would take any name

    def __getattr__(name: str) -> Any:
        if name not in PUBLIC:
            from difflib import get_close_matches

            near = get_close_matches(name, PUBLIC, 1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise AttributeError(f"module 'hf_prune' has no attribute {name!r}{guess}", name=name, obj=None)
        return getattr(importlib.import_module(f".{PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from hf_prune.columns import ScoreColumn as ScoreColumn
    from hf_prune.data.batch import Batch as Batch
    from hf_prune.data.chunk import chunk_texts as chunk_texts
    from hf_prune.data.identity import with_row_id as with_row_id
    from hf_prune.dedup.exact import ExactDedup as ExactDedup
    from hf_prune.dedup.minhash import MinHashDedup as MinHashDedup
    from hf_prune.dedup.pairs import duplicate_pairs as duplicate_pairs
    from hf_prune.dedup.repeats import RemoveRepeats as RemoveRepeats
    from hf_prune.dedup.semdedup import SemDeDup as SemDeDup
    from hf_prune.dedup.substring import SubstringDedup as SubstringDedup
    from hf_prune.diversity.coefficients import alignment_coefficient as alignment_coefficient
    from hf_prune.diversity.coefficients import alignment_matrix as alignment_matrix
    from hf_prune.diversity.coefficients import cross_diversity_coefficient as cross_diversity_coefficient
    from hf_prune.diversity.coefficients import data_quality as data_quality
    from hf_prune.diversity.coefficients import diversity_bounds as diversity_bounds
    from hf_prune.diversity.coefficients import diversity_coefficient as diversity_coefficient
    from hf_prune.diversity.coefficients import diversity_matrix as diversity_matrix
    from hf_prune.diversity.vendi import vendi_score as vendi_score
    from hf_prune.diversity.vendi_contribution import VendiContribution as VendiContribution
    from hf_prune.dynamics.aum import AUM as AUM
    from hf_prune.dynamics.aum import with_threshold_samples as with_threshold_samples
    from hf_prune.dynamics.cartography import Cartography as Cartography
    from hf_prune.dynamics.dual import DUAL as DUAL
    from hf_prune.dynamics.dynamic_uncertainty import DynamicUncertainty as DynamicUncertainty
    from hf_prune.dynamics.el2n import EL2N as EL2N
    from hf_prune.dynamics.evaluate import evaluate_model as evaluate_model
    from hf_prune.dynamics.feed import crop_and_flip as crop_and_flip
    from hf_prune.dynamics.forgetting import Forgetting as Forgetting
    from hf_prune.dynamics.grand import GraNd as GraNd
    from hf_prune.dynamics.log import TrainingLog as TrainingLog
    from hf_prune.dynamics.loop import train_with_log as train_with_log
    from hf_prune.dynamics.tdds import TDDS as TDDS
    from hf_prune.dynamics.trainer import RecordingMixin as RecordingMixin
    from hf_prune.dynamics.trainer import RecordingTrainer as RecordingTrainer
    from hf_prune.dynamics.uncertainty import Uncertainty as Uncertainty
    from hf_prune.fisher.distance import task2vec_distance as task2vec_distance
    from hf_prune.fisher.probe import Probe as Probe
    from hf_prune.fisher.scorers import Task2VecAlignment as Task2VecAlignment
    from hf_prune.fisher.scorers import Task2VecComplexity as Task2VecComplexity
    from hf_prune.fisher.task2vec import task2vec as task2vec
    from hf_prune.models import Model as Model
    from hf_prune.networks.embedder import Embedder as Embedder
    from hf_prune.prune.diverse import select_diverse as select_diverse
    from hf_prune.prune.filter import filter_by_score as filter_by_score
    from hf_prune.prune.filter import keep_mask as keep_mask
    from hf_prune.prune.filter import split_by_score as split_by_score
    from hf_prune.prune.sample import sample_by_score as sample_by_score
    from hf_prune.prune.targets import sample_by_targets as sample_by_targets
    from hf_prune.recipes.d4 import d4 as d4
    from hf_prune.run.cost import Ledger as Ledger
    from hf_prune.run.cost import training_flops as training_flops
    from hf_prune.run.score import score as score
    from hf_prune.scorer import Scorer as Scorer
    from hf_prune.scorers.ask_llm import AskLLM as AskLLM
    from hf_prune.scorers.dsir import DSIR as DSIR
    from hf_prune.scorers.dsir import NgramCounts as NgramCounts
    from hf_prune.scorers.herding import Herding as Herding
    from hf_prune.scorers.heuristics import TextStatistics as TextStatistics
    from hf_prune.scorers.k_center import KCenter as KCenter
    from hf_prune.scorers.kenlm import KenLM as KenLM
    from hf_prune.scorers.moderate import Moderate as Moderate
    from hf_prune.scorers.perplexity import Perplexity as Perplexity
    from hf_prune.scorers.quality import QualityClassifier as QualityClassifier
    from hf_prune.scorers.random import Random as Random
    from hf_prune.scorers.ssl_prototypes import SSLPrototypes as SSLPrototypes
    from hf_prune.scorers.supervised_prototypes import SupervisedPrototypes as SupervisedPrototypes
    from hf_prune.share.push import load_scores as load_scores
    from hf_prune.share.push import push_scored as push_scored
    from hf_prune.share.push import save_scored as save_scored
    from hf_prune.share.released import read_released_scores as read_released_scores
