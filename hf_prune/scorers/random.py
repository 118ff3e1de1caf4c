"""Random scores: the baseline that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.scorer import Scorer


@dataclass(frozen=True, eq=False)
class Random(Scorer):
    """Independent uniform numbers, a pure function of (seed, row id): order and sharding do not matter.

    Args:
        seed: of the draw; the released ImageNet baselines are called random-100 to random-104.
        row_id: column of ids, such as `with_row_id(ds)` adds. Copies of a row have ids of their own there and do
            not share their luck, as they would if their content were hashed.
        name: column, `random_<seed>` by default.

    Raises:
        KeyError: no such column; use `ds = with_row_id(ds)` first.
        ValueError: a row without an id.

    >>> Random(seed=100)({"row_id": ["a", "b"]})
    {'random_100': array([0.16750219, 0.08804865])}
    """

    paper: ClassVar[str] = "baseline of Sorscher et al., 2022, arXiv 2206.14486"
    meaning: ClassVar[str] = "nothing: a uniform draw, kept as the baseline that every method has to beat"
    raw: ClassVar[str] = "uniform in (0, 1)"

    seed: int = 100
    row_id: str = "row_id"
    name: str = ""

    def __post_init__(self) -> None:
        self.check_fields()
        if not self.name:
            object.__setattr__(self, "name", f"random_{self.seed}")

    def check_fields(self) -> None:
        identity.check_seed(self.seed)

    def columns(self) -> dict[str, str]:
        return {self.name: "float64"}  # 2**24 float32 values would tie among a few thousand rows already

    def score(self, batch: Batch, rank: int | None) -> Any:
        if self.row_id not in batch:
            raise KeyError(
                f"Random needs an id column, {self.row_id!r} is not among {sorted(batch)}; "
                "use ds = with_row_id(ds), or Random(row_id='your_id')"
            )
        ids = batch.arrow(self.row_id)
        if ids.null_count:
            raise ValueError(f"column {self.row_id!r} has {ids.null_count} nulls in this batch; every row needs an id")
        return identity.uniform(identity.digests(ids), self.seed)
