"""K-means for prototypes and semantic deduplication: seeded, independent of row order, on the unit sphere.

Lloyd's loop is ours, so that initial rows, empty clusters and the stop are the same whoever computes the
nearest centroids: faiss (CPU or GPU), or torch where faiss is missing or where torch has something that faiss has
not: a GPU, or a processor with bfloat16 tiles.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from hf_prune.numerics.search import SCREENED, Directions, nearest_directions, power_of_two, tiles

Engine: TypeAlias = Literal["faiss", "torch"]

BLOCK = 1 << 12
STEP = 1 << 11
NARROW = 1e-3  # share of the rows' squared lengths that tells them apart, below which what they share is taken off
POINTS_PER_CENTROID = 256  # faiss's own default: more points move the centroids little


class FewRowsError(ValueError):
    """More clusters were asked for than there are distinct rows: `distinct` of them."""

    def __init__(self, k: int, distinct: int) -> None:
        super().__init__(f"k={k} clusters, but only {distinct} distinct rows; use k={distinct} or less")
        self.distinct = distinct


@dataclass(frozen=True)
class Clustering:
    """What k-means gives.

    Attributes:
        centroids: (k, d) float32.
        labels: (n,) int64 index of the centroid of each row.
        objective: sum over the rows of `1 - cos` to their centroids, or of the squared distances.
        iterations: number of Lloyd iterations.
        engine: what computed the nearest centroids, as "faiss-cpu".
    """

    centroids: np.ndarray
    labels: np.ndarray
    objective: float
    iterations: int
    engine: str

    @property
    def sizes(self) -> np.ndarray:
        """Number of rows (k,) of each cluster."""
        return np.bincount(self.labels, minlength=len(self.centroids))

    def facts(self) -> dict[str, Any]:
        """How the centroids were learned, for `fitted_on`."""
        return {
            "k": len(self.centroids),
            "engine": self.engine,
            "iterations": self.iterations,
            "objective": round(self.objective, 6),
        }


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Scale rows to length 1 (float32 in, float32 out; float16 too); zero rows stay zero."""
    x = x.astype(np.float32) if x.dtype == np.float16 else x
    norms = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    if len(x) and x.dtype.kind == "f":
        odd = ~((norms > 1e-30) & (norms < 1e30))
        if odd.any():  # lengths that are no float32, or whose squares are no float64
            scaled = np.array(x)
            wide = x[odd].astype(np.float64)
            largest = np.abs(wide).max(axis=1, keepdims=True, initial=0)
            wide /= np.where(largest == 0, 1, largest)
            lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
            scaled[odd] = wide / np.where(lengths == 0, 1, lengths)[:, None]
            scaled[~odd] = unit_rows(x[~odd])
            return scaled
    norms[norms == 0] = 1
    return np.asarray(x / norms[:, None].astype(x.dtype))


def kmeans(
    x: np.ndarray,
    k: int,
    *,
    seed: int = 0,
    spherical: bool = True,
    max_iter: int = 100,
    tolerance: float = 1e-4,
    start: np.ndarray | None = None,
    engine: Engine | None = None,
    split_narrow: bool = True,
) -> Clustering:
    """Cluster rows by Lloyd's algorithm.

    With c(x) the centroid of the row x, the mean of its cluster (scaled to length 1 on the sphere), it lowers

        sum_x 1 - <x, c(x)>    on the sphere,        sum_x ||x - c(x)||^2    else

    The result depends on the order of the rows: hand them over in a canonical one (`sample.canonical_sample`).

    Args:
        x: (n, d) float32 rows, of length 1 if `spherical`.
        k: number of clusters, at most the number of distinct rows.
        seed: seed of the k-means++ start.
        spherical: whether centroids are scaled to length 1 and rows go to the largest cosine; else Euclidean.
        max_iter: number of iterations, at most.
        tolerance: share of the rows below which those that changed cluster end the iteration.
        start: (k, d) centroids to start from; None: k-means++.
        engine: library that computes the nearest centroids, "faiss" or "torch". None: faiss; but torch where faiss is
            not installed, where torch alone has a GPU, and for 64 spherical clusters or more on a processor with
            bfloat16 tiles.
        split_narrow: whether rows that share nearly their whole length (a large constant coordinate) are clustered by
            what is left; False: such rows are copies.

    Returns:
        The clustering; the same for the same rows, options and engine.

    Raises:
        FewRowsError: k is larger than the number of distinct rows.
        ModuleNotFoundError: faiss was asked for and is not installed.

    >>> rows = unit_rows(np.array([[1, 0.1], [1, 0], [0, 1], [0.1, 1]], np.float32))
    >>> kmeans(rows, 2).sizes.tolist()
    [2, 2]
    """
    how: dict[str, Any] = {"k": k, "seed": seed, "max_iter": max_iter, "tolerance": tolerance, "engine": engine}
    frame = _Frame.of(x, spherical) if split_narrow else None
    if frame is None:
        return _lloyd(x, spherical=spherical, start=start, **how)
    begin = None if start is None else frame.into(np.asarray(start))
    # on the sphere too: the largest cosine is the smallest distance
    moved = _lloyd(frame.into(x), spherical=False, start=begin, frame=frame, **how)
    objective = moved.objective * frame.scale**-2.0 * (0.5 if spherical else 1.0)
    return replace(moved, centroids=frame.out(moved.centroids), objective=objective)


@dataclass(frozen=True)
class _Frame:
    """The frame in which float32 can tell rows apart: moved to their mean, scaled to numbers near 1.

    Attributes:
        mean: (d,) what is taken off.
        scale: power of two by which rows are multiplied then.
        spherical: whether centroids have length 1 outside of the frame.
        unit: whether rows have length 1 outside of the frame.
    """

    mean: np.ndarray
    scale: float
    spherical: bool
    unit: bool

    @classmethod
    def of(cls, x: np.ndarray, spherical: bool) -> _Frame | None:
        """The frame of rows; None where they need none, having little in common, and numbers of an ordinary size."""
        mean = x.mean(axis=0, dtype=np.float64)
        whole = float(np.einsum("nd,nd->", x, x, dtype=np.float64)) / max(1, len(x))
        narrow = whole - float(mean @ mean) < NARROW * whole
        largest = float(np.abs(x).max(initial=0))
        if not narrow and (spherical or largest == 0 or 2.0**-40 < largest < 2.0**40):
            return None
        mean = mean if narrow else np.zeros_like(mean)
        parts = range(0, len(x), BLOCK)
        furthest = max((float(np.abs(x[i : i + BLOCK] - mean).max(initial=0)) for i in parts), default=0.0)
        unit = spherical or bool(np.abs(np.einsum("nd,nd->n", x, x, dtype=np.float64) - 1).max(initial=0) < 1e-6)
        return cls(mean=mean, scale=power_of_two(np.array([furthest])), spherical=spherical, unit=unit)

    @property
    def rounding(self) -> float:
        """Distance in the frame up to which rows may be one: those of one direction differ once scaled to length 1."""
        return 2.0**-22 * self.scale if self.unit else 0.0

    def into(self, x: np.ndarray) -> np.ndarray:
        """Rows in the frame, (n, d) float32."""
        moved = np.empty(x.shape, np.float32)
        for i in range(0, len(x), BLOCK):
            moved[i : i + BLOCK] = (x[i : i + BLOCK] - self.mean) * self.scale
        return moved

    def out(self, x: np.ndarray) -> np.ndarray:
        """Rows of the frame back where they came from, (n, d) float32."""
        rows: np.ndarray = (x / self.scale + self.mean).astype(np.float32)
        return rows

    def centers(self, means: np.ndarray) -> np.ndarray:
        """Means of clusters in the frame as centers: on the sphere, put back on it."""
        if not self.spherical:
            return means.astype(np.float32)
        rows: np.ndarray = ((unit_rows(means / self.scale + self.mean) - self.mean) * self.scale).astype(np.float32)
        return rows


def _lloyd(
    x: np.ndarray,
    *,
    k: int,
    seed: int,
    spherical: bool,
    max_iter: int,
    tolerance: float,
    start: np.ndarray | None,
    engine: Engine | None,
    frame: _Frame | None = None,
) -> Clustering:
    name, assign = _engine(engine, k, spherical)
    centroids = (
        _plus_plus(x, k, seed, frame.rounding if frame else 0.0) if start is None else np.asarray(start, np.float32)
    )
    labels = np.full(len(x), -1, np.int64)
    similarity: np.ndarray | None = None
    sums, counts = np.zeros((k, x.shape[1])), np.zeros(k, np.int64)
    iterations = 0
    for _ in range(max_iter):
        iterations += 1
        new, similarity = assign(x, centroids, spherical)
        moved = np.flatnonzero(new != labels)
        _move(sums, counts, x, labels, new, moved)
        labels = new
        if (counts == 0).any():
            _reseed(sums, counts, x, labels, _similarity(x, centroids, labels) if similarity is None else similarity)
        elif len(moved) <= tolerance * len(x):
            break
        centroids = _centers(sums, counts, spherical) if frame is None else frame.centers(_means(sums, counts))
    if similarity is None:
        similarity = _similarity(x, centroids, labels)
    distance = 1 - similarity if spherical else -similarity
    return Clustering(
        centroids=centroids,
        labels=labels,
        objective=float(distance.sum(dtype=np.float64)),
        iterations=iterations,
        engine=name,
    )


def _plus_plus(x: np.ndarray, k: int, seed: int, rounding: float = 0.0) -> np.ndarray:
    """Choose k rows far from each other (k-means++), among a prefix: canonical order is a random one.

    Rows are drawn a batch at a time, with probabilities as they were before the batch; a row is then taken with the
    share of its squared distance that the rows taken since have left. That is the distribution of one by one.
    """
    rng = np.random.default_rng(seed)
    pool = x[: _pool(k)]
    chosen = [int(rng.integers(len(pool)))]
    closest = _squared(pool, pool[chosen], rounding)[:, 0]
    while len(chosen) < k:
        mass = np.cumsum(closest, dtype=np.float64)
        if mass[-1] <= 0 and len(pool) < len(x):  # a prefix of copies: look at everything
            pool = x
            closest = _squared(pool, x[chosen], rounding).min(1)
            continue
        if mass[-1] <= 0:
            raise FewRowsError(k, len(chosen))
        picks = np.searchsorted(mass, rng.random(min(64, k)) * mass[-1], side="right").clip(max=len(pool) - 1)
        before, chances = closest[picks], rng.random(len(picks))
        distances = _squared(pool, pool[picks], rounding)
        for pick, was, chance, distance in zip(picks, before, chances, distances.T, strict=True):
            if len(chosen) < k and closest[pick] > chance * was:
                chosen.append(int(pick))
                np.minimum(closest, distance, out=closest)
    return pool[chosen].copy()


def _squared(x: np.ndarray, others: np.ndarray, rounding: float = 0.0) -> np.ndarray:
    """Squared distances of (n, d) rows to (m, d) others, (n, m) float32; zero for copies, up to `rounding` apart."""
    lengths, theirs = np.einsum("nd,nd->n", x, x), np.einsum("md,md->m", others, others)
    squares = lengths[:, None] + theirs - 2 * (x @ others.T)
    # what cannot be told from rounding is taken for a copy, or k-means++ would find "distinct" rows without end
    squares[squares < np.maximum(1e-6 * (lengths[:, None] + theirs), rounding**2)] = 0
    return np.asarray(squares)


def _move(
    sums: np.ndarray, counts: np.ndarray, x: np.ndarray, old: np.ndarray, new: np.ndarray, moved: np.ndarray
) -> None:
    """Bring sums and counts up to date for the rows that changed cluster (in place)."""
    if 2 * len(moved) > len(x):  # less to add up anew than to move
        sums[:], counts[:] = 0, 0
        _add(sums, counts, x, new, np.arange(len(x)), 1)
    else:
        _add(sums, counts, x, old, moved, -1)
        _add(sums, counts, x, new, moved, 1)


def _add(sums: np.ndarray, counts: np.ndarray, x: np.ndarray, labels: np.ndarray, rows: np.ndarray, sign: int) -> None:
    """Add rows to the sums of their clusters; each thread has some of the columns, so the order is that of the rows."""
    from hf_prune.numerics import _kernels
    from hf_prune.numerics.compiled import in_threads, thread_count

    edges = np.linspace(0, x.shape[1], 1 + min(thread_count(), -(-x.shape[1] // 64))).astype(int)
    in_threads(
        lambda part: _kernels.add_rows(sums, x, labels, rows, float(sign), *part), zip(edges, edges[1:], strict=False)
    )
    counts += sign * np.bincount(labels[rows], minlength=len(counts))


def _reseed(sums: np.ndarray, counts: np.ndarray, x: np.ndarray, labels: np.ndarray, similarity: np.ndarray) -> None:
    """Give each empty cluster the row that is farthest from its centroid."""
    worst = np.argsort(similarity, kind="stable")
    free = iter(worst[counts[labels[worst]] > 1])
    for empty in np.flatnonzero(counts == 0):
        row = next(free, None)
        while row is not None and counts[labels[row]] < 2:
            row = next(free, None)
        if row is None:
            return
        sums[labels[row]] -= x[row]
        counts[labels[row]] -= 1
        sums[empty], counts[empty] = x[row], 1
        labels[row] = empty


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    means: np.ndarray = sums / np.maximum(counts, 1)[:, None]
    return means


def _centers(sums: np.ndarray, counts: np.ndarray, spherical: bool) -> np.ndarray:
    means = _means(sums, counts)
    return unit_rows(means).astype(np.float32) if spherical else means.astype(np.float32)


# labels, and the similarity of each row to its centroid if that comes for nothing
Assign = Callable[[np.ndarray, np.ndarray, bool], tuple[np.ndarray, np.ndarray | None]]


def _engine(name: Engine | None, k: int, spherical: bool) -> tuple[str, Assign]:
    if name is not None and name not in get_args(Engine):  # numerics stands below checks
        raise ValueError(f"engine={name!r} is neither 'faiss' nor 'torch'")
    installed = importlib.util.find_spec("faiss") is not None
    if name == "faiss" and not installed:
        raise ModuleNotFoundError("engine='faiss' needs faiss: pip install 'hf_prune[cpu]' (or [gpu])")
    if name != "torch" and installed:
        import faiss

        if faiss.get_num_gpus() > 0:
            return "faiss-gpu", _assign_faiss_gpu
        if name == "faiss" or not (_torch_accelerator() or (spherical and k >= SCREENED and tiles())):
            return "faiss-cpu", _assign_faiss
    if _torch_accelerator() is None and spherical:
        import torch  # noqa: F401  (the search takes its fast path where torch is in use)

        return "torch-cpu", _assign_search
    return f"torch-{_torch_accelerator() or 'cpu'}", _assign_torch


def _torch_accelerator() -> str | None:
    import torch

    return "cuda" if torch.cuda.is_available() else None


def _assign_faiss(x: np.ndarray, centroids: np.ndarray, spherical: bool, to_gpu: Any = None) -> tuple[Any, Any]:
    import faiss

    index = faiss.IndexFlatIP(x.shape[1]) if spherical else faiss.IndexFlatL2(x.shape[1])
    if to_gpu is not None:
        index = to_gpu(index)
    index.add(centroids)
    value, label = index.search(x, 1)
    return label[:, 0], value[:, 0] if spherical else -value[:, 0]


def _assign_faiss_gpu(x: np.ndarray, centroids: np.ndarray, spherical: bool) -> tuple[Any, Any]:
    import faiss

    return _assign_faiss(x, centroids, spherical, faiss.index_cpu_to_all_gpus)


def _assign_search(x: np.ndarray, centroids: np.ndarray, spherical: bool) -> tuple[np.ndarray, np.ndarray | None]:
    return nearest_directions(x, Directions(centroids)), None


def _similarity(x: np.ndarray, centroids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cosine of unit rows to their centroids, (n,), where the engine gave none."""
    similarity = np.empty(len(x), np.float32)
    for start in range(0, len(x), STEP):
        part = slice(start, start + STEP)
        similarity[part] = np.einsum("nd,nd->n", x[part], centroids[labels[part]])
    return similarity


def _assign_torch(x: np.ndarray, centroids: np.ndarray, spherical: bool) -> tuple[np.ndarray, np.ndarray]:
    import torch

    device = _torch_accelerator() or "cpu"
    across = torch.from_numpy(centroids).to(device).T.contiguous()
    lengths = 0 if spherical else (across * across).sum(0)
    labels, values = [], []
    for start in range(0, len(x), BLOCK):
        rows = torch.from_numpy(x[start : start + BLOCK]).to(device)
        product = rows @ across
        if not spherical:  # minus the squared distance, as the faiss path gives it
            product = 2 * product - lengths - (rows * rows).sum(1, keepdim=True)
        if device == "cpu":  # NumPy's argmax is several times as fast as torch's
            table = product.numpy()
            label = table.argmax(1)
            value = table[np.arange(len(table)), label]
        else:
            value, label = (part.cpu().numpy() for part in product.max(1))
        labels.append(label)
        values.append(value)
    return np.concatenate(labels), np.concatenate(values)


def fit_flops(k: int, width: int, sampled: int, iterations: int) -> float:
    """Operations of `kmeans`: products with all centroids, in every iteration and for the k-means++ start."""
    return 2.0 * k * width * (sampled * iterations + min(sampled, _pool(k)))


def _pool(k: int) -> int:
    """Rows among which k-means++ chooses."""
    return max(4096, 8 * k)
