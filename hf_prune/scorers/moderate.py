"""Moderate: rows neither near the centre of their class nor far from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from hf_prune.data import identity
from hf_prune.data.batch import Batch
from hf_prune.data.labels import check_classes, places_among
from hf_prune.data.reading import as_float32, vector_blocks
from hf_prune.scorer import Scorer
from hf_prune.scorers.supervised_prototypes import mean_distance

CENTRES = ("median", "mean")


def middle_rank(distance: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Minus how many ranks each distance is from the middle one of `ordered`; equal distances share their mean rank.

    Args:
        distance: (n,) numbers.
        ordered: (m,) ascending ones among which they are ranked.

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
    """How near a row's distance to the centre of its class is to the median distance, in ranks. High = moderate = keep.

    Far rows are often mislabelled, near ones say little new: both ends are dropped, so mislabelled rows go early. Ranks
    are over the whole dataset, as in the paper's code: a class whose vectors lie close together loses more rows;
    `group_by="label"` keeps its share. Distances are Euclidean, of the vectors as they are.

    Args:
        class_centres: (C, d) centres.
        classes: the C labels, in the order of the centres.
        distances: (n,) of the rows it was fitted on to the centres of their classes, ascending.
        label: column with the rows' classes.
        embedding: column with the rows' vectors.
        centre: "median" of each coordinate (the paper's code), or "mean" (its text).
        name: column; `<name>_distance` is written as well.
        fitted_on: what it was fitted on.

    Raises:
        ValueError: a label that was not there when fitting, is null or negative (no label); another width than the
            centres.

    Reference: Xia et al., Moderate coreset, ICLR 2023.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"embedding": [[0.0], [1.0], [2.0], [5.0], [9.0]], "label": [0] * 5})
    >>> Moderate.fit(ds)(ds[:])["moderate"].tolist()
    [0.0, -1.0, -2.0, -1.0, -2.0]
    """

    paper: ClassVar[str] = "Xia et al., Moderate Coreset, ICLR 2023"
    meaning: ClassVar[str] = "at a middling distance from the centre of its class; low rows are typical, or far out"

    class_centres: np.ndarray
    classes: tuple[Any, ...]
    distances: np.ndarray
    label: str = "label"
    embedding: str = "embedding"
    centre: str = "median"
    name: str = "moderate"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        if np.ndim(self.class_centres) != 2 or len(self.class_centres) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes, but centres of shape {np.shape(self.class_centres)}")
        if self.centre not in CENTRES:
            raise ValueError(f"centre={self.centre!r} is not one of {CENTRES}")

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by centre."""
        return (
            f"Euclidean distance to the {self.centre} of the own class; the column is -|rank - (n - 1) / 2| of its "
            "rank among n rows"
        )

    @classmethod
    def fit(
        cls,
        ds: Any,
        label: str = "label",
        embedding: str = "embedding",
        *,
        centre: str = "median",
        name: str = "moderate",
    ) -> Self:
        """Learn the centres and the distances of all rows; the same for any order of them.

        Memory: 8 bytes a number of the embedding column, and 8 a row.

        Args:
            ds: `Dataset` or `IterableDataset` with both columns.
            label: column of classes.
            embedding: column of rows of floats.
            centre, name: of the scorer.

        Raises:
            ValueError: an empty dataset, a label that is null or negative (no label), non-finite rows.
        """
        if centre not in CENTRES:
            raise ValueError(f"centre={centre!r} is not one of {CENTRES}")
        parts: dict[Any, list[np.ndarray]] = {}
        content = identity.ContentSum()
        for block in vector_blocks(ds, embedding, f"{cls.__name__}.fit", label):
            as_float32(block.x, embedding)  # refused where distances are none that float32 can tell
            labels = check_classes(block.beside, label, block.start)
            encoded = labels.dictionary_encode()
            codes = encoded.indices.to_numpy()
            for code, value in enumerate(encoded.dictionary.to_pylist()):
                parts.setdefault(value, []).append(block.x[codes == code])
            both = identity.seeded(identity.digests(block.x), 0) ^ identity.seeded(identity.digests(labels), 1)
            content.add(both)
        classes = sorted(parts)
        centres, distances = [], []
        for value in classes:
            x = np.concatenate(parts.pop(value)).astype(np.float64)
            # sums of sorted columns do not depend on the order of the rows
            centres.append(np.median(x, axis=0) if centre == "median" else np.sort(x, axis=0).mean(0))
            distances.append(mean_distance(x, centres[-1][None], np.zeros(len(x), np.int64)))
        ordered = np.sort(np.concatenate(distances))
        facts = {"column": embedding, "label": label, "rows": len(ordered), "classes": len(classes)}
        facts["content"] = content.text
        return cls(np.stack(centres), tuple(classes), ordered, label, embedding, centre, name, facts)

    def columns(self) -> dict[str, str]:
        return {self.name: "float32", f"{self.name}_distance": "float32"}

    def companions(self) -> dict[str, str]:
        return {f"{self.name}_distance": f"Euclidean distance to the {self.centre} of the own class"}

    def cost(self, batch: Batch) -> float:
        return float(3 * self.class_centres.shape[1] * batch.n)

    def score(self, batch: Batch, rank: int | None) -> Any:
        x = batch.matrix(self.embedding)
        if batch.n and x.shape[1] != self.class_centres.shape[1]:
            raise ValueError(
                f"column {self.embedding!r} has width {x.shape[1]}, the class centres {self.class_centres.shape[1]}; "
                "fit on embeddings of the same model"
            )
        own = places_among(batch.arrow(self.label), self.classes, self.label)
        distance = mean_distance(x, self.class_centres, own)
        return {self.name: middle_rank(distance, self.distances), f"{self.name}_distance": distance}
