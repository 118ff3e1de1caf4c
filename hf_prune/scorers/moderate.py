"""Moderate: rows neither near the center of their class nor far from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np

from hf_prune.checks import check_choice
from hf_prune.data.batch import Batch
from hf_prune.data.identity import ContentSum
from hf_prune.data.labels import labelled_blocks, places_among
from hf_prune.data.reading import as_float32
from hf_prune.data.types import Rows
from hf_prune.scorer import Scorer
from hf_prune.scorers.supervised_prototypes import ClassesSummary, check_class_rows, class_sizes, mean_distance

Center: TypeAlias = Literal["median", "mean"]


def middle_rank(distance: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Minus how many ranks each distance is from the middle one of `ordered`; equal distances share their mean rank.

    Args:
        distance: (n,) distances.
        ordered: (m,) ascending distances among which they are ranked.

    Returns:
        (n,) float64, at most 0.

    >>> middle_rank(np.array([0.0, 2.0, 2.0, 9.0]), np.array([0.0, 2.0, 2.0, 9.0])).tolist()
    [-1.5, 0.0, 0.0, -1.5]
    """
    below, upto = (np.searchsorted(ordered, distance, side) for side in ("left", "right"))
    rank = (below + np.maximum(upto - 1, below)) / 2
    return np.asarray(0 - np.abs(rank - (len(ordered) - 1) / 2))


@dataclass(frozen=True, eq=False)
class Moderate(Scorer):
    """How near a row's distance to the center of its class is to the median distance, in ranks. High = moderate = keep.

    With c_y the center of class y, and rank(d) the rank of a distance among those of all n rows, from 0:

        score(x, y) = -|rank(||x - c_y||) - (n - 1) / 2|

    Far rows are often mislabelled, near ones say little new: both ends are dropped, so mislabelled rows go early. Ranks
    are over the whole dataset, as in the paper's code: a class whose vectors lie close together loses more rows;
    `group_by="label"` keeps its share. Distances are Euclidean, of the vectors as they are.

    Args:
        class_centers: (C, d) centers.
        classes: labels of the C classes, in the order of the centers.
        distances: (n,) distances of the rows it was fitted on to the centers of their classes, ascending.
        label: column of classes: ClassLabel, integers or strings.
        embedding: column of vectors.
        center: what a center is: "median" of each coordinate (the paper's code), or "mean" (its text).
        name: score column; `<name>_distance` is written as well.
        fitted_on: what the centers were learned on.

    Raises:
        ValueError: a label that was not there when fitting, is null or negative (no label); another width than the
            centers.

    Reference: Xia et al., Moderate coreset, ICLR 2023.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[0.0], [1.0], [2.0], [5.0], [9.0]], "label": [0] * 5})
    >>> scorer = Moderate.fit(ds)
    >>> scorer(ds[:])["moderate"].tolist()
    [0.0, -1.0, -2.0, -1.0, -2.0]
    >>> scorer.summary().rows
    5
    """

    paper: ClassVar[str] = "Xia et al., Moderate Coreset, ICLR 2023"
    meaning: ClassVar[str] = "at a middling distance from the center of its class; low rows are typical, or far out"

    class_centers: np.ndarray
    classes: tuple[Any, ...]
    distances: np.ndarray
    _: KW_ONLY
    label: str = "label"
    embedding: str = "embedding"
    center: Center = "median"
    name: str = "moderate"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        check_class_rows("class_centers", self.class_centers, self.classes)
        check_choice("center", self.center, get_args(Center))

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by center."""
        return (
            f"Euclidean distance to the {self.center} of the own class; the column is -|rank - (n - 1) / 2| of its "
            "rank among n rows"
        )

    @classmethod
    def fit(
        cls,
        ds: Rows,
        *,
        label: str = "label",
        embedding: str = "embedding",
        center: Center = "median",
        name: str = "moderate",
    ) -> Self:
        """Learn the centers and the distances of all rows; the same for any order of them.

        Memory: 8 bytes a number of the embedding column, and 8 a row.

        Args:
            ds: `Dataset` or `IterableDataset` with both columns.
            label: column of classes: ClassLabel, integers or strings.
            embedding: column of vectors.
            center: what a center is: "median" of each coordinate, or "mean".
            name: score column.

        Raises:
            ValueError: an empty dataset, a label that is null or negative (no label), non-finite rows.
        """
        check_choice("center", center, get_args(Center))
        parts: dict[Any, list[np.ndarray]] = {}
        content = ContentSum()
        for block in labelled_blocks(ds, embedding, label, f"{cls.__name__}.fit"):
            as_float32(block.x, embedding)  # refused where distances are none that float32 can tell
            encoded = block.labels.dictionary_encode()
            codes = encoded.indices.to_numpy()
            for code, value in enumerate(encoded.dictionary.to_pylist()):
                parts.setdefault(value, []).append(block.x[codes == code])
            content.add(block.keys)
        classes = sorted(parts)
        centers, distances = [], []
        for value in classes:
            x = np.concatenate(parts.pop(value)).astype(np.float64)
            # sums of sorted columns do not depend on the order of the rows
            centers.append(np.median(x, axis=0) if center == "median" else np.sort(x, axis=0).mean(0))
            distances.append(mean_distance(x, centers[-1][None], np.zeros(len(x), np.int64)))
        counts = {value: len(d) for value, d in zip(classes, distances, strict=True)}
        return cls(
            np.stack(centers),
            tuple(classes),
            np.sort(np.concatenate(distances)),
            label=label,
            embedding=embedding,
            center=center,
            name=name,
            fitted_on={"column": embedding, "label": label, **class_sizes(counts), "content": content.text},
        )

    def columns(self) -> dict[str, str]:
        return {self.name: "float32", f"{self.name}_distance": "float32"}

    def companions(self) -> dict[str, str]:
        return {f"{self.name}_distance": f"Euclidean distance to the {self.center} of the own class"}

    def cost(self, batch: Batch) -> float:
        return float(3 * self.class_centers.shape[1] * batch.n)

    def score(self, batch: Batch, rank: int | None) -> Any:
        x = batch.matrix(self.embedding, self.class_centers.shape[1], "the class centers")
        own = places_among(batch.arrow(self.label), self.classes, self.label)
        distance = mean_distance(x, self.class_centers, own)
        return {self.name: middle_rank(distance, self.distances), f"{self.name}_distance": distance}

    def summary(self) -> ClassesSummary:
        """Count the classes and their rows, as they were when fitting."""
        return ClassesSummary.of(self.classes, self.fitted_on)
