"""AUM, the area under the margin: the logit margin of a row's label, averaged over training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.checks import check_dataset
from hf_prune.data import identity
from hf_prune.dynamics.from_log import Column, LoggedScorer, Run, mean_of_epochs, open_logs, read_runs

if TYPE_CHECKING:
    from hf_prune.dynamics.log import TrainingLog

MODES = ("noise", "prune")
PERCENTILE = 99.0


def threshold_rows(keys: NDArray[np.uint64], classes: int, run: int = 0, seed: int = 0) -> NDArray[np.bool_]:
    """Which rows (n,) are threshold samples of a run: `floor(n / (classes + 1))`, others in every run.

    Args:
        keys: (n,) digests of the row ids, in any order.
        classes: real ones, C.
        run: 0, 1, ..., up to C: run r has the r-th lot of rows in the order of their seeded hashes.
        seed: of the hash.

    Raises:
        ValueError: so few rows that there is none, or a run beyond the last lot.

    >>> lots = [threshold_rows(np.arange(30, dtype=np.uint64), 2, run) for run in (0, 1)]
    >>> [int(lot.sum()) for lot in lots], bool((lots[0] & lots[1]).any())
    ([10, 10], False)
    """
    size = len(keys) // (classes + 1)
    if size == 0:
        raise ValueError(
            f"{len(keys)} rows are fewer than {classes} classes and one: no row is left as a threshold sample"
        )
    if not 0 <= run <= classes:
        raise ValueError(f"run={run}: there are {classes + 1} disjoint sets of threshold samples, counted from 0")
    order = np.argsort(identity.seeded(keys, seed), kind="stable")
    chosen = np.zeros(len(keys), bool)
    chosen[order[run * size : (run + 1) * size]] = True
    return chosen


def with_threshold_samples(
    ds: Any, label: str = "label", *, classes: int | None = None, run: int = 0, seed: int = 0, row_id: str = "row_id"
) -> Any:
    """`ds` with some rows relabelled to a class that does not exist, to show what a wrong label's AUM looks like.

    Train a network with C + 1 outputs on it, twice, with `run=0` and `run=1`, and hand both logs to
    `AUM.from_log([...], threshold_seed=seed)`.

    Args:
        ds: a `Dataset` with integer classes 0 to C - 1.
        label: their column; it comes back as a ClassLabel (or int64) with one class more.
        classes: C; read off a ClassLabel, else counted.
        run: which of the disjoint sets of rows.
        seed: chooses them, by row id.
        row_id: column of ids.

    Raises:
        KeyError: no such column.
        ValueError: a label that is no class, or too few rows.

    >>> from datasets import Dataset
    >>> ds = Dataset.from_dict({"row_id": list("abcdef"), "label": [0, 1] * 3})
    >>> sorted(with_threshold_samples(ds)["label"])[-2:]
    [2, 2]
    """
    from datasets import ClassLabel, Value
    from datasets.fingerprint import Hasher

    from hf_prune.checks import check_column
    from hf_prune.data.arrow import column_array, numbers
    from hf_prune.data.layout import with_column

    check_dataset(ds, "with_threshold_samples")
    for column in (label, row_id):
        check_column(ds, column, "with_threshold_samples")
    feature = ds.features[label]
    values, null = numbers(column_array(ds, label), label)
    if null.any() or values.dtype.kind not in "iu" or (len(values) and values.min() < 0):
        raise ValueError(
            f"column {label!r} holds {feature}; threshold samples need integer classes from 0, without nulls"
        )
    known = classes or (feature.num_classes if isinstance(feature, ClassLabel) else int(values.max(initial=0)) + 1)
    if len(values) and values.max() >= known:
        raise ValueError(f"column {label!r} has class {int(values.max())}, but classes={known}")
    chosen = threshold_rows(identity.row_keys(ds, row_id), known, run, seed)
    names = [*feature.names, "threshold sample"] if isinstance(feature, ClassLabel) else None
    print_name = Hasher.hash([ds._fingerprint, "hf_prune.threshold_samples", 1, label, known, run, seed, row_id])
    order = ds.column_names
    changed = with_column(
        ds.remove_columns(label), label, pa.array(np.where(chosen, known, values).astype(np.int64)), print_name
    )
    changed = changed.select_columns(order)
    return changed.cast_column(label, ClassLabel(names=names) if names else Value("int64"))


def flagged(
    areas: Sequence[NDArray[Any]], threshold: Sequence[NDArray[np.bool_]], percentile: float = PERCENTILE
) -> NDArray[np.bool_]:
    """Rows (n,) that look mislabelled in every run in which they were no threshold sample.

    A row is flagged in a run if more than `100 - percentile` percent of the run's threshold samples have a larger AUM.

    Args:
        areas: (n,) AUM of each run.
        threshold: (n,) the threshold samples of each run, disjoint between runs.
        percentile: of the threshold samples' AUM, 99 in the paper.

    >>> areas = [np.array([5.0, -3.0, 1.0, 0.0]), np.array([4.0, -2.0, 0.5, 1.0])]
    >>> flagged(areas, [np.array([0, 0, 1, 0], bool), np.array([0, 0, 0, 1], bool)]).tolist()
    [False, True, True, True]
    """
    result, judged = np.ones(areas[0].shape, bool), np.zeros(areas[0].shape, bool)
    for area, samples in zip(areas, threshold, strict=True):
        of_samples = np.sort(area[samples & ~np.isnan(area)])
        larger = len(of_samples) - np.searchsorted(of_samples, area, side="right")
        low = larger / max(len(of_samples), 1) > (100 - percentile) / 100 + 1e-12
        result &= low | samples
        judged |= ~samples
    return result & judged


@dataclass(frozen=True, eq=False)
class AUM(LoggedScorer):
    """Logit of the label minus the largest other logit, averaged over epochs. High = clean and easy = keep.

    Mislabelled rows get the lowest scores: the network, taught by their neighbours, pulls them to another class. This
    is the score that drops them; with `mode="prune"` the sign is turned, and they are kept like every hard row.

    Train for it with a constant learning rate, and stop before the network has memorised the wrong labels.

    Args:
        logged: what `from_log` computed.
        mode: "noise": the column is the area. "prune": its negative, so that hard rows are kept.
        name: column.
        fitted_on: facts about the logs.

    With `threshold_seed`, writes `<name>_flagged`: whether it looks mislabelled in every run in which it was no
    threshold sample (see `with_threshold_samples`). A row's area leaves out the runs in which it was one.

    Reference: Pleiss et al., 2020, arXiv 2001.10528: logits of the training passes. A log of clean passes gives
    another, smoother number.

    >>> import tempfile
    >>> from hf_prune import TrainingLog
    >>> z = np.array([[[2.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 1.0]]])   # 2 epochs, 2 rows, 2 classes
    >>> log = TrainingLog.from_logits(tempfile.mkdtemp(), ["a", "b"], z, labels=[0, 0])
    >>> AUM.from_log(log)({"row_id": ["b", "a"]})
    {'aum': array([-1.5,  2.5], dtype=float32)}
    """

    paper: ClassVar[str] = "Pleiss et al., Area Under the Margin Ranking, NeurIPS 2020, arXiv 2001.10528"

    mode: str = "noise"
    name: str = "aum"
    fitted_on: Mapping[str, Any] | None = None

    def check_fields(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is not one of {', '.join(MODES)}")

    @property
    def meaning(self) -> str:  # type: ignore[override]
        """What a high value says, by mode."""
        if self.mode == "noise":
            return "clean and easy; mislabelled rows are the lowest, and are dropped"
        return "small margin in training: hard, or mislabelled (such rows are kept)"

    @property
    def raw(self) -> str:  # type: ignore[override]
        """The raw quantity, by mode."""
        sign = "it" if self.mode == "noise" else "its negative"
        return (
            "logit of the label minus the largest other logit, mean over epochs (and runs); "
            f"the column is {sign}; NaN where a loss was not finite"
        )

    @classmethod
    def from_log(
        cls,
        log: Any,
        *,
        mode: str = "noise",
        threshold_seed: int | None = None,
        percentile: float = PERCENTILE,
        epochs: int | Iterable[int] | None = None,
        row_id: str | None = None,
        name: str = "aum",
    ) -> Self:
        """Average the margins of one log, or of several independent runs.

        Args:
            log: a `TrainingLog`, its folder, or a list of them.
            mode, name: of the scorer.
            threshold_seed: the runs had threshold samples, drawn by `with_threshold_samples(run=0, 1, ..., seed=this)`
                in the order of the list, and networks with one output more than there are classes. Compared with the
                labels of the logs.
            percentile: of the threshold samples' areas, below which a row is flagged.
            epochs: those that count, as in `range(60)` before the learning rate drops; all by default.
            row_id: column of ids in the dataset to be scored; the log's own by default.

        Raises:
            ValueError: logs of other rows or kind; one run with threshold samples (their own areas would be unknown);
                logs whose labels say that they are of other runs, or in another order (the message has the right one).
        """
        logs = open_logs(log, cls.__name__)
        samples: list[NDArray[np.bool_]] = []
        if threshold_seed is not None:
            if len(logs) < 2:
                raise ValueError(
                    "threshold samples need two runs or more: in one, their own labels are never seen; train another "
                    "with with_threshold_samples(run=1) and pass both logs"
                )
            real = (logs[0].classes or 1) - 1  # the last output is the threshold samples' own
            samples = [threshold_rows(each.keys, real, run, threshold_seed) for run, each in enumerate(logs)]
            _check_samples(logs, samples, real, threshold_seed, cls.__name__)

        def area(run: Run) -> dict[str, Column]:
            return {"score": mean_of_epochs(margin for (margin,) in run.each("margin"))}

        def combine(parts: Sequence[Mapping[str, Column]]) -> dict[str, Column]:
            areas = [np.asarray(part["score"]) for part in parts]
            if not samples:
                return {"score": np.mean(areas, axis=0)}
            counted = ~np.stack(samples)
            score = (np.stack(areas) * counted).sum(0) / counted.sum(0)
            return {"score": score, "flagged": flagged(areas, samples, percentile)}

        logged, facts = read_runs(logs, epochs, cls.__name__, area, ["margin"], row_id, combine)
        if mode == "prune":
            logged = replace(logged, values={**logged.values, "score": -logged.values["score"]})
        if samples:
            facts |= {"threshold_seed": threshold_seed, "percentile": percentile}
        return cls(logged.typed(score="float32"), mode, name, facts)

    def companions(self) -> dict[str, str]:
        line = "looks mislabelled: below the threshold samples' percentile in every run in which it was none of them"
        return {f"{self.name}_flagged": line} if "flagged" in self.logged.values else {}


def _check_samples(
    logs: Sequence[TrainingLog], samples: Sequence[NDArray[np.bool_]], classes: int, seed: int, who: str
) -> None:
    """Compare the threshold samples that the logs should have with the labels that they were trained on.

    Raises:
        ValueError: a log has others; the message has the order of the logs that is right, where there is one.
    """
    labels = [log.labels for log in logs]
    silent = [number for number, known in enumerate(labels) if known is None]
    if silent:
        warnings.warn(
            f"{who}: log {silent[0]} does not know the labels it was trained on, so whether threshold_seed={seed} and "
            "the order of the logs are right cannot be checked; give TrainingLog.create(labels=...) to be sure",
            stacklevel=4,
        )
    known = [found for found in labels if found is not None]
    top = max((int(found.max()) for found in known), default=classes)
    if top != classes:
        more = " or these are no runs with threshold samples" if top < classes else ""
        raise ValueError(
            f"{who}: the networks have {classes + 1} outputs, the last of which, {classes}, is the class of the "
            f"threshold samples, but the labels go to {top}: either the network is too wide{more}; train with "
            f"{top + 1} outputs on what with_threshold_samples gave, or leave threshold_seed out"
        )
    runs = [None if found is None else _run_of(logs[0].keys, found == classes, classes, seed) for found in labels]
    wrong = [n for n, found in enumerate(labels) if found is not None and ((found == classes) != samples[n]).any()]
    if wrong:
        told = ", ".join(
            f"log {n} has {'none of them' if runs[n] is None else f'those of run {runs[n]}'}"
            for n in range(len(logs)) if labels[n] is not None
        )  # fmt: skip
        if sorted(-1 if run is None else run for run in runs) == list(range(len(logs))):
            order = ", ".join(f"logs[{n}]" for n in np.argsort(np.array(runs, int)))
            remedy = f"give them in the order of their runs: [{order}]"
        else:
            remedy = f"give the logs of runs 0 to {len(logs) - 1}, in this order, and the seed they were drawn with"
        raise ValueError(f"{who}: of the threshold samples drawn with seed {seed}, {told}; {remedy}")
    for number, found in enumerate(labels):
        if found is not None and labels[0] is not None:
            other = np.flatnonzero((found != labels[0]) & ~samples[number] & ~samples[0])
            if len(other):
                raise ValueError(
                    f"{who}: log {number} has other labels than log 0 in {len(other)} of {len(found)} rows that are no "
                    f"threshold samples, first {logs[0].ids[int(other[0])].as_py()!r}; give runs of one dataset"
                )


def _run_of(keys: NDArray[np.uint64], chosen: NDArray[np.bool_], classes: int, seed: int) -> int | None:
    """The run whose threshold samples these rows (n,) are, or None."""
    order = np.argsort(identity.seeded(keys, seed), kind="stable")
    size = len(keys) // (classes + 1)
    run = int(np.argmax(chosen[order])) // size
    same = run <= classes and np.array_equal(np.flatnonzero(chosen[order]), np.arange(run * size, (run + 1) * size))
    return run if same else None
