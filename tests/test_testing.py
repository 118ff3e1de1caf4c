"""Each broken scorer is refused, and for its own reason."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import hf_prune as hp
from hf_prune import Scorer
from hf_prune.testing import CHECKS, ConformanceError, check_scorer, forking_process


@dataclass(frozen=True, eq=False)
class Good(Scorer):
    """Share of a text that zlib leaves."""

    text: str = "text"
    level: int = 6
    weights: Any = None
    name: str = "ratio"

    def score(self, batch, rank):
        return [len(zlib.compress(t.encode(), self.level)) / len(t) for t in batch[self.text]]


def broken(cls):
    return dataclass(frozen=True, eq=False)(cls)


@broken
class KeepsState(Good):
    def score(self, batch, rank):
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
        return super().score(batch, rank)


@broken
class CountsCalls(Good):
    def score(self, batch, rank):
        SEEN.append(len(SEEN))
        return [len(SEEN)] * batch.n


SEEN: list[int] = []


@broken
class BatchStatistics(Good):
    def score(self, batch, rank):
        x = np.array(super().score(batch, rank))
        return x - x.mean()


@broken
class RowPosition(Good):
    def score(self, batch, rank):
        return [value + 0.01 * (batch.n > 90) * (i == 50) for i, value in enumerate(super().score(batch, rank))]


@broken
class HashChanges(Good):
    def score(self, batch, rank):
        object.__setattr__(self, "level", 7)
        return [1.0] * batch.n


@broken
class DropsRow(Good):
    def score(self, batch, rank):
        return super().score(batch, rank)[:-1]


@broken
class TooLong(Good):
    def score(self, batch, rank):
        return [*super().score(batch, rank), 0.0]


@broken
class WrongType(Good):
    def columns(self):
        return {self.name: "int32"}


@broken
class WrongTypeAround(Good):
    def __call__(self, batch, rank=None):
        return {k: v.astype(np.float64) for k, v in super().__call__(batch, rank).items()}


@broken
class Undeclared(Good):
    def score(self, batch, rank):
        return {self.name: super().score(batch, rank), "extra": np.zeros(batch.n)}


@broken
class NotANumber(Good):
    def score(self, batch, rank):
        return [np.nan if i == 5 else v for i, v in enumerate(super().score(batch, rank))]


@broken
class ScoresNulls(Good):
    def score(self, batch, rank):
        return [0.0 if t is None else len(t) for t in batch[self.text]]


@broken
class MutatesBatch(Good):
    def score(self, batch, rank):
        scores = super().score(batch, rank)
        batch[self.text][0] = "changed"
        return scores


@broken
class BlindToField(Good):
    def __reduce__(self):
        return BlindToField, (self.text,)


@broken
class BlindToVersion(Good):
    def __reduce__(self):
        return BlindToVersion, (self.text, self.level, self.weights, self.name)


@broken
class HashOfTheDay(Good):
    def __reduce__(self):
        head, (classes, text, blob) = super().__reduce__()
        return head, (classes, text + " " * random.randrange(1, 9999), blob)


@broken
class HashOfTheProcess(Good):
    def __reduce__(self):
        head, (classes, text, blob) = super().__reduce__()
        return head, (classes, text + " " * (os.getpid() % 9973), blob)


@broken
class NeedsRank(Good):
    def score(self, batch, rank):
        return [value + (rank is not None) for value in super().score(batch, rank)]


@broken
class ListsOnly(Good):
    def score(self, batch, rank):
        if not isinstance(batch[self.text], list):
            raise TypeError("no list")
        return super().score(batch, rank)


@broken
class NegativeCost(Good):
    def flops(self, batch: Mapping[str, Any]) -> float:
        return -1.0


@broken
class SilentCompanion(Good):
    def columns(self):
        return {self.name: "float32", f"{self.name}_level": "int32"}

    def score(self, batch, rank):
        return {self.name: super().score(batch, rank), f"{self.name}_level": np.full(batch.n, self.level)}


@broken
class HangsInWorkers(Good):
    def score(self, batch, rank):
        while rank is not None and rank >= 1:
            time.sleep(0.05)
        return super().score(batch, rank)


@broken
class Tolerant(Good):
    atol: ClassVar[float] = 10.0


@broken
class TinyScores(Good):
    def score(self, batch, rank):
        return [value * 1e-9 for value in super().score(batch, rank)]


@broken
class NothingScored(Good):
    nan_rows: ClassVar[bool] = True

    def score(self, batch, rank):
        return np.full(batch.n, np.nan)


@broken
class AllAlike(Good):
    def score(self, batch, rank):
        return np.ones(batch.n)


@broken
class AllAlikeButForRounding(Good):
    def score(self, batch, rank):
        return 0.1 + 1e-8 * np.array(super().score(batch, rank))


@broken
class FitsOnFirstBatch(Good):
    def score(self, batch, rank):
        x = np.array(super().score(batch, rank))
        return x - FIRST.setdefault(self.digest, x.mean())


FIRST: dict[str, float] = {}


@broken
class ReordersInputs(Good):
    def with_inputs(self, batch):
        order = np.argsort(self(batch)[self.name], kind="stable")
        return {k: np.asarray(v)[order] for k, v in {**batch, **self(batch)}.items()}


@broken
class ReordersScores(Good):
    def with_inputs(self, batch):
        return {**batch, **{k: v[::-1] for k, v in self(batch).items()}}


@broken
class PastTheView(Good):
    def score(self, batch, rank):
        return [0.5 if t is None else len(t) for t in batch.source[self.text]]


@broken
class ReadsForNothing(Good):
    def score(self, batch, rank):
        batch.source["label"]
        return super().score(batch, rank)


@broken
class LoudCompanion(Good):
    nan_rows: ClassVar[bool] = True

    def columns(self):
        return {self.name: "float32", f"{self.name}_length": "float32"}

    def companions(self):
        return {f"{self.name}_length": "characters"}

    def score(self, batch, rank):
        lengths = [0 if t is None else len(t) for t in batch[self.text]]
        return {self.name: [v or np.nan for v in lengths], f"{self.name}_length": lengths}


@broken
class HealsVectors(Good):
    nan_rows: ClassVar[bool] = True

    def score(self, batch, rank):
        rows = [[np.nan] if row is None else row for row in batch["embedding"]]
        return [np.nan if len(row) == 1 else float(np.nansum(np.array(row, float))) for row in rows]


@broken
class HigherRanksDiffer(Good):
    def score(self, batch, rank):
        return [value + 0.1 * ((rank or 0) > 2) for value in super().score(batch, rank)]


@broken
class SeedsTheWorld(Good):
    def score(self, batch, rank):
        np.random.seed(self.level)
        return super().score(batch, rank)


@broken
class NeedsRows(Good):
    def __call__(self, batch, rank=None):
        found = super().__call__(batch, rank)
        return {k: v + 0 * v.max() for k, v in found.items()}


CASES = [
    (KeepsState, "calls_independent", "beside its fields"),
    (CountsCalls, "calls_independent", "second call"),
    (BatchStatistics, "calls_independent|batch_size", "another 'ratio'"),
    (RowPosition, "batch_size", "batches of 1"),
    (HashChanges, "hash_stable", "changed with a call"),
    (DropsRow, "columns", "gave 95 values for 'ratio' but 96 rows"),
    (TooLong, "columns", "gave 97 values"),
    (WrongType, "columns", "declares int32"),
    (WrongTypeAround, "columns_declared", "came as float64"),
    (Undeclared, "columns", "wrote columns"),
    (NotANumber, "columns", "row 5 of this batch scored NaN"),
    (ScoresNulls, "bad_rows", "a null in 'text' scored 0.0"),
    (MutatesBatch, "batch_untouched", "changed its batch"),
    (BlindToField, "hash_complete", "blind to the field 'level'"),
    (BlindToVersion, "hash_complete", "blind to `version`"),
    (HashOfTheDay, "hash_stable", "hash"),
    (HashOfTheProcess, "second_process", "another in a second process"),
    (NeedsRank, "ranks", "rank 0"),
    (ListsOnly, "batch_untouched|numpy_batches", "no list"),
    (NegativeCost, "cost", "flops of 2 rows are -1.0"),
    (SilentCompanion, "columns_declared", "no line for"),
    (Tolerant, "scores_tell", "atol=10 hides differences: .* at most"),
    (TinyScores, "scores_tell", "atol=1e-06 hides differences"),
    (NothingScored, "scores_tell", "no row has a finite score"),
    (AllAlike, "scores_tell", "all 96 rows score 1.0"),
    (AllAlikeButForRounding, "scores_tell", "all 96 rows score 0.1"),
    (FitsOnFirstBatch, "second_process", "met other rows first"),
    (ReordersInputs, "numpy_batches", "other values of 'embedding', or in another order"),
    (ReordersScores, "numpy_batches", "with_inputs gave row 0 another 'ratio'"),
    (PastTheView, "bad_rows", "a null in 'text' scored 0.5"),
    (ReadsForNothing, "bad_rows", "a null in 'label' scored"),
    (LoudCompanion, "bad_rows", "beside it 'ratio_length' 0.0"),
    (HealsVectors, "bad_rows", "a NaN in the vector in 'embedding' scored"),
    (HigherRanksDiffer, "ranks", "rank 5"),
    (SeedsTheWorld, "calls_independent", "moves a global random generator"),
    (NeedsRows, "batch_size", "zero-size array"),
    (HangsInWorkers, "workers", "did not finish"),
]


@pytest.mark.parametrize(("cls", "check", "reason"), CASES, ids=[c[0].__name__ for c in CASES])
def test_broken_scorers_are_refused_for_their_own_reason(vectors, cls, check, reason):
    hangs = cls is HangsInWorkers
    skip = {name: "not what is tested" for name in CHECKS if hangs and name != "workers"}
    with pytest.raises(ConformanceError, match=reason) as caught:
        check_scorer(cls(), vectors, skip=skip, seconds=4 if hangs else 60)
    assert caught.value.check in check.split("|")


def test_a_good_scorer_passes_every_check(vectors):
    ran = check_scorer(Good(weights=np.ones(3)), vectors)
    assert ran == list(CHECKS)


def test_a_suite_may_share_one_second_process(vectors):
    with forking_process() as second:
        ran = check_scorer(Good(), vectors, second_process=second)
        assert ran == list(CHECKS)
        with pytest.raises(ConformanceError, match="met other rows first") as caught:
            check_scorer(FitsOnFirstBatch(level=5), vectors, second_process=second)
        assert caught.value.check == "second_process"
        with pytest.raises(RuntimeError, match="(?s)failed in a second process.*reads column 'text'"):
            second(Good(), [{"other": ["a"]}], 60)


def test_what_is_no_scorer_is_refused(vectors):
    with pytest.raises(ConformanceError, match="no Scorer"):
        check_scorer(lambda batch: batch, vectors)


def test_skipping_needs_a_reason_and_a_name(vectors):
    with pytest.raises(ValueError, match="give the name of a check"):
        check_scorer(Good(), vectors, skip={"workers": ""})
    with pytest.raises(ValueError, match="give the name of a check"):
        check_scorer(Good(), vectors, skip={"wrokers": "typo"})


def test_few_rows_are_refused(vectors):
    with pytest.raises(ValueError, match="give 8 or more"):
        check_scorer(Good(), vectors.select(range(3)))


def test_a_stream_or_splits_are_told():
    ds = Dataset.from_dict({"row_id": [str(i) for i in range(8)]})
    with pytest.raises(TypeError, match="check_scorer needs a Dataset, .* not a stream"):
        check_scorer(hp.Random(), ds.to_iterable_dataset())
    with pytest.raises(TypeError, match="check_scorer got a DatasetDict; choose a split"):
        check_scorer(hp.Random(), DatasetDict({"train": ds}))


SCRIPT = """
import zlib
from dataclasses import dataclass

from datasets import Dataset

import hf_prune as hp
from hf_prune.testing import check_scorer

LEVEL = 6


@dataclass(frozen=True, eq=False)
class CompressionRatio(hp.Scorer):
    text: str = "text"
    name: str = "compression_ratio"

    def score(self, batch, rank):
        raw = [text.encode() for text in batch.texts(self.text)]
        return [len(zlib.compress(r, LEVEL)) / max(len(r), 1) for r in raw]


if __name__ == "__main__":
    ds = Dataset.from_dict({"text": [f"row {i} " * (i % 7 + 1) for i in range(20)]})
    print(len(check_scorer(CompressionRatio(), ds)))
"""


def test_a_class_of_a_script_passes(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and int(done.stdout) == len(CHECKS), done.stderr[-2000:]
