"""Where the names of the package live: what users type, and what saved scorers are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# public names, each in the module below the package that defines it; imported at first use
PUBLIC = {
    "AUM": "dynamics.aum",
    "AskLLM": "scorers.ask_llm",
    "Batch": "data.batch",
    "Cartography": "dynamics.cartography",
    "DSIR": "scorers.dsir",
    "DynamicUncertainty": "dynamics.dynamic_uncertainty",
    "EL2N": "dynamics.el2n",
    "Embedder": "networks.embedder",
    "ExactDedup": "dedup.exact",
    "Forgetting": "dynamics.forgetting",
    "GraNd": "dynamics.grand",
    "Herding": "scorers.herding",
    "KCenter": "scorers.k_center",
    "KenLM": "scorers.kenlm",
    "Ledger": "run.cost",
    "MinHashDedup": "dedup.minhash",
    "Model": "models",
    "Moderate": "scorers.moderate",
    "NgramCounts": "scorers.dsir",
    "Perplexity": "scorers.perplexity",
    "Probe": "fisher.probe",
    "QualityClassifier": "scorers.quality",
    "Random": "scorers.random",
    "RecordingMixin": "dynamics.trainer",
    "RecordingTrainer": "dynamics.trainer",
    "RemoveRepeats": "dedup.substring",
    "SSLPrototypes": "scorers.ssl_prototypes",
    "ScoreColumn": "columns",
    "Scorer": "scorer",
    "SemDeDup": "dedup.semdedup",
    "SubstringDedup": "dedup.substring",
    "SupervisedPrototypes": "scorers.supervised_prototypes",
    "TDDS": "dynamics.tdds",
    "Task2VecAlignment": "fisher.scorers",
    "Task2VecComplexity": "fisher.scorers",
    "TextStatistics": "scorers.heuristics",
    "TrainingLog": "dynamics.log",
    "Uncertainty": "dynamics.uncertainty",
    "VendiContribution": "diversity.vendi_contribution",
    "alignment_coefficient": "fisher.coefficients",
    "alignment_matrix": "fisher.coefficients",
    "chunk_texts": "data.chunk",
    "crop_and_flip": "dynamics.loop",
    "cross_diversity_coefficient": "fisher.coefficients",
    "d4": "recipes.d4",
    "data_quality": "fisher.coefficients",
    "diversity_bounds": "fisher.coefficients",
    "diversity_coefficient": "fisher.coefficients",
    "diversity_matrix": "fisher.coefficients",
    "duplicate_pairs": "dedup.pairs",
    "filter_by_score": "prune.filter",
    "keep_mask": "prune.filter",
    "load_scores": "share.push",
    "push_scored": "share.push",
    "read_released_scores": "share.released",
    "sample_by_score": "prune.sample",
    "sample_by_targets": "prune.targets",
    "save_scored": "share.push",
    "score": "run.score",
    "select_diverse": "prune.diverse",
    "split_by_score": "prune.filter",
    "task2vec": "fisher.task2vec",
    "task2vec_distance": "fisher.distance",
    "train_with_log": "dynamics.loop",
    "training_flops": "run.cost",
    "vendi_score": "diversity.vendi",
    "with_row_id": "data.identity",
    "with_threshold_samples": "dynamics.aum",
}

# values that stand inside of scorers
PARTS = {
    "LoggedValues": "dynamics.from_log",
    "Neighbours": "dedup.minhash",
    "Passages": "dedup.substring",
    "Reference": "dedup.minhash",
    "Sketch": "dedup.minhash",
    "Spans": "dedup.substring",
}

# what a file may name: it must not choose what is imported
VALUES = frozenset(
    {
        "AUM",
        "AskLLM",
        "Cartography",
        "DSIR",
        "DynamicUncertainty",
        "EL2N",
        "Embedder",
        "ExactDedup",
        "Forgetting",
        "GraNd",
        "Herding",
        "KCenter",
        "KenLM",
        "LoggedValues",
        "MinHashDedup",
        "Model",
        "Moderate",
        "Neighbours",
        "NgramCounts",
        "Passages",
        "Perplexity",
        "Probe",
        "QualityClassifier",
        "Random",
        "Reference",
        "SSLPrototypes",
        "SemDeDup",
        "Sketch",
        "Spans",
        "SubstringDedup",
        "SupervisedPrototypes",
        "TDDS",
        "Task2VecAlignment",
        "Task2VecComplexity",
        "TextStatistics",
        "Uncertainty",
        "VendiContribution",
    }
)


class Former(NamedTuple):
    """How a value was written in files of version 0.1.0.

    Attributes:
        module: that its name held, and so the digests in score folders.
        fields: today's name of a field: its name then.
        values: today's name of a field: what its values were, by what they are.
        added: fields that were not there.
    """

    module: str
    fields: Mapping[str, str] = {}
    values: Mapping[str, Mapping[str, Any]] = {}
    added: tuple[str, ...] = ()


FORMER = {
    "AUM": Former("hf_prune.dynamics.aum"),
    "AskLLM": Former("hf_prune.scorers.ask_llm"),
    "Cartography": Former("hf_prune.dynamics.cartography"),
    "DSIR": Former("hf_prune.scorers.dsir"),
    "DynamicUncertainty": Former("hf_prune.dynamics.dynamic_uncertainty"),
    "EL2N": Former("hf_prune.dynamics.el2n"),
    "Embedder": Former("hf_prune.embed"),
    "ExactDedup": Former("hf_prune.dedup.exact"),
    "Forgetting": Former("hf_prune.dynamics.forgetting"),
    "GraNd": Former("hf_prune.dynamics.grand"),
    "Herding": Former("hf_prune.scorers.herding"),
    "KCenter": Former("hf_prune.scorers.k_center"),
    "KenLM": Former("hf_prune.scorers.kenlm"),
    "LoggedValues": Former("hf_prune.dynamics.from_log"),
    "MinHashDedup": Former("hf_prune.dedup.minhash"),
    "Model": Former("hf_prune.models"),
    "Moderate": Former("hf_prune.scorers.moderate"),
    "Neighbours": Former("hf_prune.dedup.minhash"),
    "NgramCounts": Former("hf_prune.scorers.dsir"),
    "Passages": Former("hf_prune.dedup.substring"),
    "Perplexity": Former("hf_prune.scorers.perplexity"),
    "Probe": Former("hf_prune.fisher.probe"),
    "QualityClassifier": Former("hf_prune.scorers.quality"),
    "Random": Former("hf_prune.scorers.random"),
    "Reference": Former("hf_prune.dedup.minhash"),
    "SSLPrototypes": Former("hf_prune.scorers.ssl_prototypes"),
    "SemDeDup": Former("hf_prune.dedup.semdedup"),
    "Sketch": Former("hf_prune.dedup.minhash"),
    "Spans": Former("hf_prune.dedup.substring"),
    "SubstringDedup": Former("hf_prune.dedup.substring"),
    "SupervisedPrototypes": Former("hf_prune.scorers.supervised_prototypes"),
    "TDDS": Former("hf_prune.dynamics.tdds"),
    "Task2VecAlignment": Former("hf_prune.fisher.scorers"),
    "Task2VecComplexity": Former("hf_prune.fisher.scorers"),
    "TextStatistics": Former("hf_prune.scorers.heuristics"),
    "Uncertainty": Former("hf_prune.dynamics.uncertainty"),
    "VendiContribution": Former("hf_prune.diversity.vendi_contribution"),
}
