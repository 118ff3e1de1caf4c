"""Scores of single rows by their own Task2Vec embedding: alignment to a target, and complexity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from hf_prune.checks import check_choice, check_count
from hf_prune.columns import ScoreColumn
from hf_prune.data.batch import Batch
from hf_prune.data.reading import decoded
from hf_prune.data.types import Rows
from hf_prune.fisher.embedding import as_vector
from hf_prune.fisher.probe import Probe
from hf_prune.fisher.task2vec import embed
from hf_prune.models import memo
from hf_prune.scorer import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from hf_prune.fisher.passes import Part, Runner

Prototype: TypeAlias = Literal["batch", "centroids"]


def row_probe(probe: Any) -> Probe:
    """The probe for single rows: of a language model that is given as such, positions of the last block."""
    if isinstance(probe, Probe):
        return probe
    made = Probe(probe)
    return replace(made, estimator="position") if made.reader().task == "language_model" else made


def squared(probe: Probe) -> str:
    """Which gradients are squared, and where: the two estimators give other numbers.

    >>> import torch
    >>> squared(Probe(torch.nn.Linear(3, 2), modality="vector"))
    "a row's gradient is squared whole, in all layers"
    """
    alone = probe.estimator == "position"
    where = "the layers after the last mixing of positions" if alone else "all layers"
    if probe.layers is not None:
        where = ", ".join(probe.layers)
    what = "each position's gradient is squared by itself" if alone else "a row's gradient is squared whole"
    return f"{what}, in {where}"


@dataclass(frozen=True, eq=False)
class _ProbeScorer(Scorer):
    """Base of both: a probe with its head, loaded once in each process."""

    paper: ClassVar[str] = "Achille et al., Task2Vec, ICCV 2019, arXiv 1902.03545"
    atol: ClassVar[float] = 1e-5

    probe: Probe

    def cost(self, batch: Batch) -> float:
        """Operations of the forward pass, and of backward passes and squares through the layers that count."""
        if not batch.n:
            return 0.0
        runner = self._runner(None)
        if not runner.ready:
            next(runner.parts(batch.first(1), [self.probe.seed]))
        return runner.reader.flops(batch) * (1 + 2 * runner.backward_share() * runner.passes())

    def describe(self) -> ScoreColumn:
        column, probe = super().describe(), self.probe
        facts = {
            "fisher": (getattr(self, "fitted_on", None) or {}).get("fisher", probe.labels),
            "draws": probe.draws,
            "seed": probe.seed,
            "estimator": probe.estimator,
            "layers": probe.layers,
            "max_length": probe.max_length,
            "truncate": probe.truncate,
            "column": probe.column,
        }
        params = {name: value for name, value in column.params.items() if name != "probe"}
        raw = f"{column.raw}; {squared(probe)}"
        return replace(column, raw=raw, model=probe.model.provenance(), params={**params, **facts})

    def _runner(self, rank: int | None) -> Runner:
        from hf_prune.fisher.passes import Runner

        return memo(self, f"runner {rank}", lambda: Runner(self.probe, rank))

    def _parts(self, batch: Batch, rank: int | None) -> Iterator[Part]:
        """Squares of the rows of a batch; the first texts that are cut are said, in each process once."""
        from hf_prune.fisher.passes import warn_of_cuts

        runner = self._runner(rank)
        said = runner.reader.counts.cut
        yield from runner.parts(batch, [self.probe.seed])
        if not said:
            warn_of_cuts(runner.reader.counts, runner.reader)


@dataclass(frozen=True, eq=False)
class Task2VecAlignment(_ProbeScorer):
    """1 minus the Task2Vec distance between a row and a target. High = like the target = keep.

        score(x) = max over prototypes t of 1 - d(f(x), t),    d(f, t) = 1 - cos(f / (f + t), t / (f + t))

    where f(x) is the row's own embedding, see `task2vec`. It costs about as much as an epoch of training the probe:
    take a probe far smaller than the model that will be trained, or count its last block only. Look at the column's
    correlation with length and with the complexity before you trust it, and at its agreement between two label seeds.

    Of a language model given by name or folder only the last block's positions count, which is cheaper and much less
    noisy; a `Probe` is taken as it is. So the numbers of the first two differ, those of the last two do not:

        Task2VecAlignment.fit(target, Probe("gpt2"))                            # whole texts, all layers
        Task2VecAlignment.fit(target, "gpt2")                                   # positions, last block
        Task2VecAlignment.fit(target, Probe("gpt2", estimator="position"))

    The card ("Raw quantity"), `describe()` and the repr say which was used.

    Args:
        probe: a `Probe` with its head.
        prototypes: (k, D) embeddings of the target; the nearest one counts.
        complexity: whether to write `<name>_complexity`, the row's L1 norm, as well; False by default.
        name: name of the score column.
        fitted_on: what the target was, for the card.

    Raises:
        ValueError: an empty text, a row with nothing to predict.

    Reference: Achille et al., 2019, arXiv 1902.03545; Miranda's alignment coefficient.

    >>> import datasets, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    >>> for layer in net:
    ...     layer.weight = torch.nn.Parameter(torch.eye(2))
    >>> ds = datasets.Dataset.from_dict({"embedding": [[1.0, 0.0], [0.0, 2.0]]})
    >>> scorer = Task2VecAlignment.fit(ds, Probe(net, head="keep"))
    >>> scorer(ds[:])["t2v_alignment"].round(3)
    array([1., 1.], dtype=float32)
    """

    meaning: ClassVar[str] = "asks the same of the probe's weights as the target does"
    raw: ClassVar[str] = (
        "symmetric Task2Vec distance to the nearest prototype of the target; the column is 1 - distance"
    )

    prototypes: np.ndarray
    _: KW_ONLY
    complexity: bool = False
    name: str = "t2v_alignment"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        if np.ndim(self.prototypes) != 2 or not len(self.prototypes):
            raise ValueError(f"prototypes of shape {np.shape(self.prototypes)} are no embeddings (k, D); fit anew")
        for prototype in self.prototypes:
            as_vector(prototype)

    @classmethod
    def fit(
        cls,
        target: Rows,
        probe: Any,
        *,
        prototype: Prototype = "batch",
        k: int = 16,
        sample_rows: int = 4096,
        seed: int = 0,
        complexity: bool = False,
        name: str = "t2v_alignment",
    ) -> Self:
        """Embed the target.

        Args:
            target: dataset or stream of rows as they should be: a validation set, say.
            probe: a `Probe`, or a model, folder or Hub name. A head that must be fitted is fitted to the target, and
                kept for all rows.
            prototype: "batch", the default: one embedding of all of the target; "centroids": those of `k` clusters of
                its rows.
            k: number of clusters; 16 by default.
            sample_rows: number of rows of the target that may be clustered, whose embeddings are all held; 4096 by
                default.
            seed: seed of the clusters; 0 by default.
            complexity: whether to write `<name>_complexity` as well; False by default.
            name: name of the score column.

        Raises:
            MissingColumnError: the target lacks a column that the probe reads.
            ValueError: an empty target, more clusters than rows, and what `task2vec` refuses.
        """
        from hf_prune.fisher.passes import Runner, warn_of_cuts

        check_choice("prototype", prototype, get_args(Prototype))
        check_count("k", k)
        check_count("sample_rows", sample_rows)
        probe = row_probe(probe).fitted(target)
        runner = Runner(probe)
        if prototype == "centroids":
            vectors, rows = centroids(runner, target, k=k, sample_rows=sample_rows, seed=seed)
        else:
            embedding = embed(runner, target, f"{cls.__name__}.fit")
            vectors, rows = embedding.vector[None], embedding.rows
        warn_of_cuts(runner.reader.counts, runner.reader)
        facts = {"rows": rows, "prototype": prototype, "prototypes": len(vectors), "width": vectors.shape[1]}
        facts["fisher"] = runner.fisher
        return cls(probe=probe, prototypes=vectors, complexity=complexity, name=name, fitted_on=facts)

    def columns(self) -> dict[str, str]:
        return {self.name: "float32"} | ({f"{self.name}_complexity": "float32"} if self.complexity else {})

    def companions(self) -> dict[str, str]:
        return {f"{self.name}_complexity": "L1 norm of the row's embedding"} if self.complexity else {}

    def score(self, batch: Batch, rank: int | None) -> Any:
        import torch

        score, norm = np.empty(batch.n), np.empty(batch.n)
        for part in self._parts(batch, rank):
            f = row_embeddings(self._runner(rank), part)
            if f.shape[1] != self.prototypes.shape[1]:
                raise ValueError(f"the prototypes have {self.prototypes.shape[1]} numbers, rows {f.shape[1]}: fit anew")
            near = [alignment(f, torch.tensor(t, dtype=f.dtype, device=f.device)) for t in self.prototypes]
            score[part.rows] = torch.stack(near).amax(0).cpu().numpy()
            norm[part.rows] = f.sum(1, dtype=torch.float64).cpu().numpy()
        return {self.name: score} | ({f"{self.name}_complexity": norm} if self.complexity else {})


@dataclass(frozen=True, eq=False)
class Task2VecComplexity(_ProbeScorer):
    """L1 norm of the row's Task2Vec embedding. High = asks much of the probe's weights = hard = keep.

        score(x) = sum_o f_o(x),    f_o(x) = mean over i in o, t, y ~ p_w(. | x) of (d log p_w(y | x_t) / d w_i)^2

    Of a language model `<name>_bits_per_byte` stands beside it: if the norm measures how much there is to be said,
    in Kolmogorov's sense, it should go with how far the text can be compressed.

    Args:
        probe: a `Probe` whose head is kept or fitted, or a model, folder or Hub name: then, of a language model, with
            `estimator="position"`, as for `Task2VecAlignment`.
        name: name of the score column.

    Raises:
        ValueError: a head that must be fitted first; an empty text.

    Reference: Achille et al., 2019, arXiv 1902.03545.

    >>> import datasets, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    >>> for layer in net:
    ...     layer.weight = torch.nn.Parameter(torch.eye(2))
    >>> ds = datasets.Dataset.from_dict({"embedding": [[1.0, 0.0], [0.0, 2.0]]})
    >>> Task2VecComplexity(Probe(net, head="keep"))(ds[:])["t2v_complexity"].round(3)
    array([0.197, 0.42 ], dtype=float32)
    """

    meaning: ClassVar[str] = "asks much of the probe's weights: hard, or noise"
    raw: ClassVar[str] = "L1 norm of the filter-wise Fisher diagonal of the row, mean over its tokens; the column is it"

    _: KW_ONLY
    name: str = "t2v_complexity"

    def __post_init__(self) -> None:
        object.__setattr__(self, "probe", row_probe(self.probe))
        if self.probe.fits:
            raise ValueError("the probe has no head yet; pass probe.fitted(ds), or a Probe with head='keep'")

    def columns(self) -> dict[str, str]:
        return dict.fromkeys([self.name, *self.companions()], "float32")

    def companions(self) -> dict[str, str]:
        if not self._by_bytes():
            return {}
        return {f"{self.name}_bits_per_byte": "bits that the probe needs for a byte of the text"}

    def score(self, batch: Batch, rank: int | None) -> Any:
        import torch

        from hf_prune.scorers.perplexity import bits_per_byte

        runner, score, loss, terms = self._runner(rank), np.empty(batch.n), np.empty(batch.n), np.empty(batch.n, int)
        for part in self._parts(batch, rank):
            score[part.rows] = row_embeddings(runner, part).sum(1, dtype=torch.float64).cpu().numpy()
            loss[part.rows], terms[part.rows] = part.loss, part.terms
        if not self._by_bytes():
            return {self.name: score}
        n_bytes = text_bytes(runner, batch, terms)
        return {self.name: score, f"{self.name}_bits_per_byte": bits_per_byte(-loss, n_bytes)}

    def _by_bytes(self) -> bool:
        reader = self.probe.reader()
        return reader.task == "language_model" and not reader.own


def row_embeddings(runner: Runner, part: Part) -> Tensor:
    """Embeddings (m, D) of the rows of a pass."""
    import torch

    fan_in = runner.squares.fan_in.to(part.squares)
    terms = torch.as_tensor(part.terms, dtype=part.squares.dtype, device=part.squares.device)
    return part.squares / fan_in / terms[:, None]


def alignment(f: Tensor, t: Tensor) -> Tensor:
    """1 minus the symmetric distance of (m, D) embeddings to one of (D,), as (m,) in their dtype.

    >>> import torch
    >>> alignment(torch.tensor([[1, 4, 2.2], [4, 1, 2], [2, 2, 2]]), torch.tensor([1.0, 4, 2])).numpy().round(6)
    array([0.998992, 0.612903, 0.862069], dtype=float32)
    """
    inverse = (f + t).reciprocal_()
    inverse.masked_fill_(inverse.isinf(), 0)
    u, v = f * inverse, t * inverse
    length = (u.square().sum(1) * v.square().sum(1)).sqrt_()
    return ((u * v).sum(1) / length.clamp_(min=1e-30)).clamp_(max=1)


def centroids(runner: Runner, target: Any, *, k: int, sample_rows: int, seed: int) -> tuple[NDArray[np.float64], int]:
    """Embeddings (k, D) of the clusters of a target's rows, each as if its rows were a dataset, and the rows read.

    Clusters are of logarithms: the symmetric distance looks at ratios, coordinate by coordinate.

    Raises:
        ValueError: more rows than `sample_rows`, or fewer than `k`.
    """
    from hf_prune.data.identity import digests, seeded
    from hf_prune.numerics import kmeans

    squares, terms, rows = [], [], 0
    for batch in decoded(target, "task2vec", "Squared gradients"):
        rows += batch.n
        for part in runner.parts(batch, [runner.probe.seed]):
            squares.append(
                (part.squares.double() / runner.squares.fan_in.to(part.squares.device)).float().cpu().numpy()
            )
            terms.append(part.terms)
        if rows > sample_rows:
            raise ValueError(
                f"the target has more than sample_rows={sample_rows} rows to cluster; take a sample of it, or raise "
                "sample_rows"
            )
    if rows < k:
        raise ValueError(f"k={k} centroids, but {rows} rows in the target; use k={rows} or less")
    x, n = np.concatenate(squares), np.concatenate(terms)
    # an order that is the rows' own; rounded, since last digits depend on who shares a pass with whom
    order = np.argsort(seeded(digests(np.round(np.log(x.sum(1)), 4)), seed), kind="stable")
    x, n = x[order], n[order]
    mean = x / n[:, None]
    logs = np.log(mean + 1e-6 * mean.mean(0) + 1e-30).astype(np.float32)
    labels = kmeans.kmeans(logs, k, seed=seed, spherical=False, engine="torch").labels
    sums = [x[labels == c].sum(0, dtype=np.float64) / n[labels == c].sum() for c in np.unique(labels)]
    return np.stack(sums), rows


def text_bytes(runner: Runner, batch: Batch, terms: NDArray[np.int64]) -> NDArray[np.int64]:
    """UTF-8 bytes (n,) of the part of each text that was predicted, of which `terms` tokens are known."""
    from hf_prune.networks.text import tokenizer_of
    from hf_prune.scorers.perplexity import predicted_bytes

    reader = runner.reader
    encoder, texts, rendered = reader.read_texts(batch, reader.reads(batch)[0])
    tokenizer: Any = tokenizer_of(encoder.model, encoder.plan, encoder.truncate)
    starts = 0 if rendered or encoder.ids else tokenizer.num_special_tokens_to_add()  # of a BOS the first is predicted
    unpredicted = 0 if starts else 1
    out = np.empty(len(texts), np.int64)
    for row, (text, count) in enumerate(zip(texts, terms.tolist(), strict=True)):
        if encoder.ids:
            context, every = (tokenizer.decode(ids).encode() for ids in (text[:1], text))
            out[row] = len(every) - len(context)
            continue
        whole = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        kept = min(whole, count + unpredicted)
        if kept < whole and tokenizer.truncation_side == "left":
            spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            out[row] = len(text[spans["offset_mapping"][whole - kept][unpredicted] :].encode())
        else:
            out[row] = predicted_bytes(tokenizer, text, kept, whole, unpredicted)
    return out
