"""DSIR: how much likelier a text's hashed n-grams are in a target corpus than in the raw one."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.reading import batches
from hf_prune.data.texts import columns_of
from hf_prune.data.words import RULES
from hf_prune.models import memo
from hf_prune.scorer import Scorer
from hf_prune.scorers._ngrams import HASHES, MOST_BUCKETS, MOST_ORDERS, Hashed, hash_texts, utf8
from hf_prune.values import Value

STEP = 1 << 11  # rows read at once: texts may be long
EPSILON = 1e-8  # added to both probabilities by the authors' code
NORMALIZE = ("sum", "per_ngram")
OPERATIONS = {"sha256": 500.0, "fast": 20.0}  # integer operations for each byte of text and order of n-grams, about


def log_ratio(target: NDArray[Any], raw: NDArray[Any], smoothing: float = 0.0) -> NDArray[np.float64]:
    """What one n-gram of each bucket adds to a log weight: ln(p + 1e-8) - ln(q + 1e-8), (m,) float64.

    Args:
        target: (m,) counts, or probabilities, of the target.
        raw: (m,) counts of the raw corpus.
        smoothing: pseudo-count s added to each bucket of the target, and of the target only.

    >>> log_ratio(np.array([4, 6]), np.array([5, 5])).round(6).tolist()
    [-0.223144, 0.182322]
    """
    p, q = target + np.float64(smoothing), np.asarray(raw, np.float64)
    return np.asarray(np.log(p / p.sum() + EPSILON) - np.log(q / q.sum() + EPSILON))


def kl_reduction(target: NDArray[Any], raw: NDArray[Any], selected: NDArray[Any]) -> float:
    """KL(target || raw) - KL(target || selected) in nats: how much closer to the target the selection is than all was.

    Args:
        target, raw, selected: (m,) counts or probabilities; the latter two are taken for 1e-8 where they are less.

    >>> round(kl_reduction(np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5]), np.array([0.4, 0.3, 0.3])), 11)
    0.24440846553
    """
    p, q, r = (np.asarray(x, np.float64) / np.sum(x) for x in (target, raw, selected))
    some = p > 0
    gain = np.log(np.maximum(r, EPSILON)) - np.log(np.maximum(q, EPSILON))
    return float(p[some] @ gain[some])


@dataclass(frozen=True, eq=False)
class NgramCounts(Value):
    """How often each bucket of hashed n-grams occurs in a corpus. Counts of shards are merged with `+`.

    Args:
        counts: (m,) int64.
        rows: number of rows counted.
        ngram: orders 1 to `ngram` were counted.
        hash: "sha256" or "fast".
        words: how texts were cut into tokens, as in `DSIR`.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"text": ["a b a", "b b b"]})
    >>> whole = NgramCounts.of(ds, buckets=8)
    >>> whole.counts.tolist()
    [0, 0, 0, 2, 1, 5, 2, 0]
    >>> NgramCounts.of(ds.select([1]), buckets=8) + NgramCounts.of(ds.select([0]), buckets=8) == whole
    True
    """

    version: ClassVar[int] = 2

    counts: np.ndarray
    rows: int
    ngram: int = 2
    hash: str = "sha256"
    words: str = "unicode"

    @classmethod
    def of(
        cls,
        ds: Any,
        text: str | Sequence[str] = "text",
        ngram: int = 2,
        buckets: int = 10_000,
        hash: str = "sha256",
        who: str = "NgramCounts",
        words: str = "unicode",
    ) -> Self:
        """Count the n-grams of a `Dataset` or an `IterableDataset`; null and empty texts have none.

        Args:
            ds: the corpus.
            text: column, columns, nested path or chat column.
            ngram, buckets, hash, words: as in `DSIR`.
            who: who reads, for the messages.

        Raises:
            ValueError: no rows; text that is no UTF-8; `ngram` or `buckets` out of range.
        """
        from hf_prune.scorers import _kernels

        check_features(ngram, buckets, hash, words)
        paths = columns_of(text)
        total, seen, lock = np.zeros(buckets, np.int64), 0, threading.Lock()

        def count(first: int, hashed: Hashed) -> None:
            with lock:
                _kernels.add_counts(hashed.ids, total)

        for batch in batches(ds, paths, f"{who}.fit", step=STEP, desc=f"{who}.fit"):
            texts, _ = utf8(batch, paths)
            hash_texts(texts, ngram, buckets, hash, count, f"{who}.fit, counting rows from {seen}", words)
            seen += len(texts)
        if not seen:
            raise ValueError(f"{who}.fit got an empty dataset; there is nothing to learn from")
        return cls(total, seen, ngram, hash, words)

    def __add__(self, other: NgramCounts) -> NgramCounts:
        if self.features != other.features:
            raise ValueError(f"counts of {self.features} and {other.features} do not add up; count both alike")
        return type(self)(self.counts + other.counts, self.rows + other.rows, self.ngram, self.hash, self.words)

    @property
    def features(self) -> dict[str, Any]:
        """What was counted: counts of the same features fit together."""
        return {"buckets": len(self.counts), "ngram": self.ngram, "hash": self.hash, "words": self.words}


@dataclass(frozen=True, eq=False)
class DSIR(Scorer):
    """Log importance weight of a text: its n-grams' log-likelihood in the target minus that in the raw corpus.

    High = like the target = keep. Texts are lower-cased and cut into words and runs of signs; n-grams of orders 1 to
    `ngram` are hashed into buckets; target and raw corpus are one multinomial over the buckets each. Sampling by the
    weights is `sample_by_score(ds, "dsir", method="gumbel")`: it matches the target's distribution, while the top of
    the column takes what is most like it.

    The weight is a sum over n-grams, so its size grows with length: cut texts into equal lengths first (`chunk_texts`,
    as the paper does), or take `normalize="per_ngram"`. A text without any token scores 0 (its weight is 1), a null one
    NaN. Copies have equal weights: deduplicate first. All rows are counted, whatever their order; the authors' code
    stops after 100 000 n-grams a bucket.

    Args:
        raw: n-gram counts of the corpus to choose from.
        targets: counts of one or more targets.
        target_names: of the targets; where there are several, `<name>_<target>` is written for each.
        text: column, columns, nested path or chat column that is scored.
        proportions: shares of several targets in the mixture that `<name>` compares with; in proportion to their
            n-grams if not given.
        smoothing: pseudo-count of each bucket of each target; 0 in the published package. A bucket that a small target
            lacks costs a text up to 17 each time it occurs: give 1 or so where the target has few texts.
        normalize: "sum" (the definition), or "per_ngram": divided by the number of n-grams.
        min_tokens: texts with fewer tokens weigh nothing (-inf), so that no sample takes them; the paper takes 100.
        tokens: write `<name>_tokens`, the number of tokens.
        key: a seed, for which `<name>_key` is written, the weight plus Gumbel noise of (seed, row id): its top k rows
            are the sample that `sample_by_score` draws with that seed. Needs ids (`with_row_id`).
        row_id: column of ids.
        name: column.
        fitted_on: what the counts were taken from.

    Raises:
        ValueError: counts that do not fit together; a target or raw corpus without any n-gram.

    Reference: Xie et al., 2023, arXiv 2302.03169. Buckets and weights are those of its package data-selection 1.0.3
        where texts are cut alike: any text with `words="regex"` under NLTK 3.10 and with "re" under NLTK before it;
        with "unicode" texts such as English, without combining marks, of scripts that put spaces between words.

    >>> from datasets import Dataset
    >>> raw = Dataset.from_dict({"text": ["a b a", "b b b", "c a b", "c c d"]})
    >>> target = Dataset.from_dict({"text": ["a b a b", "a a b"]})
    >>> DSIR.fit(raw, target, buckets=8, smoothing=1)(raw[:])["dsir"].round(6).tolist()
    [-0.226241, -3.61947, -1.430213, -4.163337]
    """

    paper: ClassVar[str] = "Xie et al., Data Selection for Language Models via Importance Resampling, NeurIPS 2023"
    meaning: ClassVar[str] = "its n-grams are likelier in the target than in the raw corpus"
    nan_rows: ClassVar[bool] = True
    version: ClassVar[int] = 2

    raw_counts: NgramCounts
    targets: tuple[NgramCounts, ...]
    target_names: tuple[str, ...] = ("target",)
    text: str | tuple[str, ...] = "text"
    proportions: tuple[float, ...] | None = None
    smoothing: float = 0.0
    normalize: str = "sum"
    min_tokens: int = 0
    tokens: bool = False
    key: int | None = None
    row_id: str = "row_id"
    name: str = "dsir"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        known = self.raw_counts
        check_features(known.ngram, len(known.counts), known.hash, known.words)
        if not self.targets or len(self.targets) != len(self.target_names):
            raise ValueError(f"{len(self.targets)} targets with the names {self.target_names}; give one name each")
        for name, counts in [("the raw corpus", known), *zip(self.target_names, self.targets, strict=True)]:
            if counts.features != known.features:
                raise ValueError(f"target {name!r} counts {counts.features}, the raw corpus {known.features}")
            if not counts.counts.any():
                raise ValueError(f"{name} has {counts.rows} rows but no n-gram; are its texts empty?")
        if self.proportions is not None:
            shares = np.asarray(self.proportions, np.float64)
            if shares.shape != (len(self.targets),) or not (shares >= 0).all() or not shares.sum() > 0:
                raise ValueError(
                    f"proportions={self.proportions} for {len(self.targets)} targets; give a share >= 0 each"
                )
        if not self.smoothing >= 0 or self.smoothing == np.inf:
            raise ValueError(f"smoothing={self.smoothing} is no pseudo-count; give a number >= 0")
        if self.normalize not in NORMALIZE:
            raise ValueError(f"normalize={self.normalize!r} is not one of {NORMALIZE}")
        if self.key is not None:
            identity.check_seed(self.key)

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by normalisation."""
        unit = "" if self.normalize == "sum" else ", divided by the number of n-grams"
        return (
            f"sum over n-grams of ln(p + 1e-8) - ln(q + 1e-8), p in the target, q in the raw corpus{unit}; the column "
            "is that; NaN for null texts" + (f", -inf under {self.min_tokens} tokens" if self.min_tokens else "")
        )

    @classmethod
    def fit(
        cls,
        ds: Any,
        target: Any,
        text: str | Sequence[str] = "text",
        ngram: int = 2,
        buckets: int = 10_000,
        *,
        target_text: str | Sequence[str] | None = None,
        hash: str = "sha256",
        words: str = "unicode",
        proportions: Sequence[float] | Mapping[str, float] | None = None,
        smoothing: float = 0.0,
        normalize: str = "sum",
        min_tokens: int = 0,
        tokens: bool = False,
        key: int | None = None,
        row_id: str = "row_id",
        name: str = "dsir",
    ) -> Self:
        """Count the n-grams of the raw corpus and of the target; the same for any order of the rows.

        Args:
            ds: raw corpus, a `Dataset` or an `IterableDataset`.
            target: the same kinds; or several, as {name: dataset}.
            text: column, columns, nested path or chat column.
            ngram: the highest order; all from 1 on are counted.
            buckets: their number.
            target_text: column(s) of the target, if named differently.
            hash: "sha256", the published package's buckets; or "fast", other buckets, about as good, sooner.
            words: "unicode", words of any script (`hf_prune.data.words`); or as the published package cuts texts:
                "regex" by the package of that name (under NLTK 3.10), "re" by Python's `re` (before it), which parts
                words at combining marks. Both make one token of a Chinese sentence.
            proportions: by target, in order or by name.
            smoothing, normalize, min_tokens, tokens, key, row_id, name: of the scorer.

        Raises:
            ValueError: an empty dataset, or one without any n-gram; `ngram` or `buckets` out of range.
        """
        several = dict(target) if isinstance(target, Mapping) and not hasattr(target, "column_names") else None
        targets = {"target": target} if several is None else several
        if not targets:
            raise ValueError("target={} names no target; give a dataset")
        if isinstance(proportions, Mapping):
            if set(proportions) != set(targets):
                raise ValueError(f"proportions for {sorted(proportions)}, but the targets are {sorted(targets)}")
            proportions = [proportions[t] for t in targets]
        there = target_text or text
        who = cls.__name__
        known = NgramCounts.of(ds, text, ngram, buckets, hash, who, words)
        counts = [NgramCounts.of(t, there, ngram, buckets, hash, f"{who} (target)", words) for t in targets.values()]
        column = text if isinstance(text, str) else tuple(text)
        facts: dict[str, Any] = {"rows": known.rows, "ngrams": int(known.counts.sum()), "column": column}
        facts["words"] = words
        facts["targets"] = {
            t: {"rows": c.rows, "ngrams": int(c.counts.sum())} for t, c in zip(targets, counts, strict=True)
        }
        scorer = cls(
            known,
            tuple(counts),
            tuple(targets),
            column,
            None if proportions is None else tuple(float(p) for p in proportions),
            float(smoothing),
            normalize,
            min_tokens,
            tokens,
            key,
            row_id,
            name,
            facts,
        )
        both = (known.counts > 0) & (np.sum([c.counts for c in counts], axis=0) > 0)
        if not both.any():
            warnings.warn(
                f"{cls.__name__}: target and raw corpus share no n-gram, so the weights only count n-grams; do the "
                f"columns {text!r} and {there!r} hold texts of one kind?",
                stacklevel=2,
            )
        return scorer

    def columns(self) -> dict[str, str]:
        several = {f"{self.name}_{t}": "float64" for t in self.target_names} if len(self.targets) > 1 else {}
        tokens = {f"{self.name}_tokens": "int32"} if self.tokens else {}
        return {self.name: "float64", **several, **tokens, **({} if self.key is None else {self._key: "float64"})}

    def companions(self) -> dict[str, str]:
        lines = {f"{self.name}_{t}": f"the same for the target {t} alone" for t in self.target_names}
        lines[f"{self.name}_tokens"] = "number of words and runs of signs"
        lines[self._key] = f"the log weight plus Gumbel noise of (seed {self.key}, row id): its top k is the sample"
        return {k: v for k, v in lines.items() if k in self.columns()}

    def cost(self, batch: Batch) -> float:
        """Integer operations of hashing, about: some for each byte and order."""
        texts, _ = utf8(Batch(batch, type(self).__name__), self._paths)
        return OPERATIONS[self.raw_counts.hash] * self.raw_counts.ngram * sum(map(len, texts.to_pylist()))

    @property
    def _key(self) -> str:
        return f"{self.name}_key"

    @property
    def _paths(self) -> tuple[str, ...]:
        return columns_of(self.text)

    def weights(self) -> NDArray[np.float64]:
        """Log weight of an n-gram by bucket, (1, m), or (1 + targets, m): of the mixture, then of each target."""
        return memo(self, "weights", self._weights)

    def _weights(self) -> NDArray[np.float64]:
        q = self.raw_counts.counts
        each = [log_ratio(t.counts, q, self.smoothing) for t in self.targets]
        if len(each) == 1:
            return np.stack(each)
        counts = np.stack([t.counts for t in self.targets])
        smooth = counts + self.smoothing
        shares = np.asarray(counts.sum(1) if self.proportions is None else self.proportions, np.float64)
        mixture = log_ratio(shares @ (smooth / smooth.sum(1, keepdims=True)), q)
        return np.stack([mixture, *each])

    def kl_reduction(self, selected: Any, text: str | Sequence[str] | None = None) -> float:
        """How much closer to the target a selection is than the raw corpus, in nats, the mean over targets.

        Args:
            selected: dataset of the rows kept.
            text: its column(s), if not those of the scorer.
        """
        known = self.raw_counts
        kept = NgramCounts.of(
            selected, text or self.text, known.ngram, len(known.counts), known.hash, words=known.words
        )
        if not kept.counts.any():
            raise ValueError(f"the selection has {kept.rows} rows but no n-gram")
        gains = [kl_reduction(t.counts + self.smoothing, known.counts, kept.counts) for t in self.targets]
        return float(np.mean(gains))

    def score(self, batch: Batch, rank: int | None) -> Any:
        from hf_prune.scorers import _kernels

        texts, null = utf8(batch, self._paths)
        weights, known = self.weights(), self.raw_counts
        out, grams, tokens = np.zeros((len(weights), batch.n)), np.zeros(batch.n), np.zeros(batch.n, np.int32)

        def add(first: int, hashed: Hashed) -> None:
            sums = np.empty((len(weights), len(hashed.stops)))
            _kernels.add_weights(hashed.ids, hashed.stops, weights, sums)
            here = slice(first, first + len(hashed.stops))
            out[:, here], tokens[here], grams[here] = sums, hashed.tokens, np.diff(hashed.stops, prepend=0)

        hash_texts(texts, known.ngram, len(known.counts), known.hash, add, batch.who, known.words)
        if self.normalize == "per_ngram":
            out /= np.maximum(grams, 1)
        out[:, tokens < self.min_tokens] = -np.inf
        out[:, null] = np.nan
        written: dict[str, Any] = dict(zip(self.columns(), out, strict=False))
        if self.tokens:
            written[f"{self.name}_tokens"] = tokens
        if self.key is not None:
            written[self._key] = out[0] - np.log(
                -np.log(identity.uniform(identity.digests(self._ids(batch)), self.key))
            )
        return written

    def _ids(self, batch: Batch) -> Any:
        if self.row_id not in batch:
            raise ValueError(
                f"{batch.who}: key={self.key} draws noise by the column {self.row_id!r}, which is not there; add ids "
                "with with_row_id(ds), or sample with sample_by_score(ds, ...) afterwards"
            )
        ids = batch.arrow(self.row_id)
        if ids.null_count:
            raise ValueError(
                f"{batch.who}: column {self.row_id!r} holds nulls, and every row needs an id: with_row_id(ds)"
            )
        return ids


def check_features(ngram: int, buckets: int, hash: str, words: str) -> None:
    """Raise a ValueError for n-grams, buckets, a hash or a rule for words that there are not."""
    if isinstance(ngram, bool) or not isinstance(ngram, (int, np.integer)) or not 1 <= ngram <= MOST_ORDERS:
        raise ValueError(
            f"ngram={ngram!r} is no order of n-grams; give an integer from 1 to {MOST_ORDERS}, 2 as a rule"
        )
    if isinstance(buckets, bool) or not isinstance(buckets, (int, np.integer)) or not 1 <= buckets <= MOST_BUCKETS:
        raise ValueError(f"buckets={buckets!r}; give an integer from 1 to {MOST_BUCKETS}, 10000 as a rule")
    if hash not in HASHES:
        raise ValueError(f"hash={hash!r} is not one of {HASHES}")
    if words not in RULES:
        raise ValueError(f"words={words!r} is not one of {RULES}")
