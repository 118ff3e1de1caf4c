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
    "DUAL": "dynamics.dual",
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
    "RemoveRepeats": "dedup.repeats",
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
    "alignment_coefficient": "diversity.coefficients",
    "alignment_matrix": "diversity.coefficients",
    "chunk_texts": "data.chunk",
    "crop_and_flip": "dynamics.feed",
    "cross_diversity_coefficient": "diversity.coefficients",
    "d4": "recipes.d4",
    "data_quality": "diversity.coefficients",
    "diversity_bounds": "diversity.coefficients",
    "diversity_coefficient": "diversity.coefficients",
    "diversity_matrix": "diversity.coefficients",
    "duplicate_pairs": "dedup.pairs",
    "evaluate_model": "dynamics.evaluate",
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
    "Neighbors": "dedup.neighbors",
    "Passages": "dedup.passages",
    "Reference": "dedup.neighbors",
    "Sketch": "dedup.bands",
    "Spans": "dedup.passages",
}

# what a file may name: it must not choose what is imported
VALUES = frozenset(name for name in {**PUBLIC, **PARTS} if name[0].isupper()) - {
    "Batch",
    "Ledger",
    "RecordingMixin",
    "RecordingTrainer",
    "RemoveRepeats",
    "ScoreColumn",
    "Scorer",
    "TrainingLog",
}


class Former(NamedTuple):
    """How a value was written in files of version 0.1.0.

    Attributes:
        module: that its name held, and so the digests in score folders.
        fields: today's name of a field: its name then.
        values: today's name of a field: what its values were, by what they are.
        added: fields that were not there.
        gone: fields that are no more, and what they held by default.
        refused: fields that are no more: values with which nothing loads, and why.
        name: what the class was called, if otherwise.
    """

    module: str
    fields: Mapping[str, str] = {}
    values: Mapping[str, Mapping[str, Any]] = {}
    added: tuple[str, ...] = ()
    gone: Mapping[str, Any] = {}
    refused: Mapping[str, Mapping[Any, str]] = {}
    name: str | None = None


FORMER = {
    "AUM": Former(
        "hf_prune.dynamics.aum",
        gone={"mode": "noise"},
        refused={"mode": {"prune": "make AUM anew, and keep hard rows by prefer='low'"}},
    ),
    "AskLLM": Former("hf_prune.scorers.ask_llm"),
    "Cartography": Former("hf_prune.dynamics.cartography"),
    "DSIR": Former("hf_prune.scorers.dsir"),
    "DynamicUncertainty": Former("hf_prune.dynamics.dynamic_uncertainty"),
    "EL2N": Former("hf_prune.dynamics.el2n", {"modality": "kind"}),
    "Embedder": Former("hf_prune.embed"),
    "ExactDedup": Former("hf_prune.dedup.exact", {"ignore": "normalize"}, added=("on_bad",)),
    "Forgetting": Former("hf_prune.dynamics.forgetting"),
    "GraNd": Former("hf_prune.dynamics.grand", {"modality": "kind"}),
    "Herding": Former("hf_prune.scorers.herding", {"keys": "known"}),
    "KCenter": Former("hf_prune.scorers.k_center", {"keys": "known"}),
    "KenLM": Former("hf_prune.scorers.kenlm"),
    "LoggedValues": Former("hf_prune.dynamics.from_log"),
    "MinHashDedup": Former("hf_prune.dedup.minhash", {"neighbors": "found"}, added=("on_bad",)),
    "Model": Former("hf_prune.models"),
    "Moderate": Former("hf_prune.scorers.moderate", {"center": "centre", "class_centers": "class_centres"}),
    "Neighbors": Former("hf_prune.dedup.minhash", {"n_texts": "texts", "n_rows": "rows"}, name="Neighbours"),
    "NgramCounts": Former("hf_prune.scorers.dsir"),
    "Passages": Former("hf_prune.dedup.substring"),
    "Perplexity": Former("hf_prune.scorers.perplexity"),
    "Probe": Former("hf_prune.fisher.probe", fields={"modality": "kind"}, added=("truncate",)),
    "QualityClassifier": Former("hf_prune.scorers.quality", {"regression": "head"}),
    "Random": Former("hf_prune.scorers.random"),
    "Reference": Former("hf_prune.dedup.minhash"),
    "SSLPrototypes": Former("hf_prune.scorers.ssl_prototypes"),
    "SemDeDup": Former("hf_prune.dedup.semdedup", {"keys": "known"}),
    "Sketch": Former("hf_prune.dedup.minhash", {"band_rows": "rows"}),
    "Spans": Former("hf_prune.dedup.substring"),
    "SubstringDedup": Former("hf_prune.dedup.substring", {"passages": "found"}, added=("on_bad",)),
    "SupervisedPrototypes": Former("hf_prune.scorers.supervised_prototypes", {"normalize": "normalize_before_mean"}),
    "TDDS": Former("hf_prune.dynamics.tdds"),
    "Task2VecAlignment": Former("hf_prune.fisher.scorers"),
    "Task2VecComplexity": Former("hf_prune.fisher.scorers"),
    "TextStatistics": Former("hf_prune.scorers.heuristics"),
    "Uncertainty": Former(
        "hf_prune.dynamics.uncertainty", {"modality": "kind", "statistic": "measure"}, gone={"label": "label"}
    ),
    "VendiContribution": Former("hf_prune.diversity.vendi_contribution", {"n_rows": "rows"}),
}
