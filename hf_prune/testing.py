"""`check_scorer`: the conformance suite, public so that other people's scorers can use it too.

Each check has a name; a scorer that fails one is refused with a `ConformanceError` that says which and why.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import math
import pickle
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hf_prune.checks import check_dataset
from hf_prune.data.batch import Batch
from hf_prune.scorer import Scorer
from hf_prune.second_process import SecondProcess, forking_process, fresh_process

__all__ = ["CHECKS", "ConformanceError", "check_scorer", "forking_process"]

Columns = dict[str, Any]


class ConformanceError(AssertionError):
    """A scorer broke the contract.

    Attributes:
        check: name of the check, as in `CHECKS`.
    """

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(f"[{check}] {reason}")
        self.check = check


@dataclass(frozen=True)
class Case:
    """What a check gets: the scorer, the data twice, the scores of its first call, its hash before that, a limit."""

    scorer: Scorer
    ds: Any
    rows: Columns
    scores: Columns
    hash: str
    seconds: float
    second: SecondProcess


def check_scorer(
    scorer: Scorer,
    ds: Any,
    *,
    skip: Mapping[str, str] | None = None,
    seconds: float = 60,
    second_process: SecondProcess | None = None,
) -> list[str]:
    """Run every check on a scorer.

    Args:
        scorer: a finished scorer.
        ds: `Dataset` of 8 to a few hundred valid rows with the columns it reads, on which its scores differ.
        skip: checks that cannot hold for this scorer, each with its reason.
        seconds: limit for what could hang (workers, a second process).
        second_process: computes in another process; a fresh interpreter by default. A suite of many scorers gives all
            of them one `forking_process()`, which imports once.

    Returns:
        Names of the checks that ran.

    Raises:
        ConformanceError: the first check that failed.
        TypeError: a stream, a `DatasetDict`, or no dataset.
        ValueError: fewer than 8 rows, or `skip` names no check or gives no reason.

    >>> import hf_prune, datasets
    >>> ds = datasets.Dataset.from_dict({"row_id": [str(i) for i in range(8)]})
    >>> len(check_scorer(hf_prune.Random(), ds)) == len(CHECKS)
    True
    """
    skip = dict(skip or {})
    for name, reason in skip.items():
        if name not in CHECKS or not reason:
            raise ValueError(f"skip={{{name!r}: {reason!r}}}: give the name of a check ({sorted(CHECKS)}) and a reason")
    check_dataset(ds, "check_scorer")
    if len(ds) < 8:
        raise ValueError(f"{len(ds)} rows tell little about a scorer; give 8 or more")
    ran = []
    with _guard("value"):
        _check_value(scorer)
    rows, before = _rows(ds), _hash(scorer)
    with _guard("columns"):
        scores = scorer(copy.deepcopy(rows))
    case = Case(scorer, ds, rows, scores, before, seconds, second_process or fresh_process)
    for name, check in CHECKS.items():
        if name not in skip:
            with _guard(name):
                check(case)
            ran.append(name)
    return ran


def _check_value(scorer: Any) -> None:
    _need(isinstance(scorer, Scorer), f"{scorer!r} is no Scorer; derive its class from hf_prune.Scorer")
    names = {f.name for f in fields(scorer)}
    _need("name" in names, f"{type(scorer).__name__} has no field `name` for its column")
    extra = sorted(set(vars(scorer)) - names)
    _need(not extra, f"it keeps {extra} beside its fields, where the hash does not see them")


def columns_declared(case: Case) -> None:
    """What is written is what `columns` declares: names, lengths, types; `features` and `describe` agree."""
    declared = case.scorer.columns()
    _need(set(case.scores) == set(declared), f"it wrote {sorted(case.scores)}, but declares {sorted(declared)}")
    _need(case.scorer.name in declared, f"its own column {case.scorer.name!r} is not declared")
    for name, values in case.scores.items():
        _need(len(values) == len(case.ds), f"{name!r} has {len(values)} values for {len(case.ds)} rows")
        kind = declared[name].partition("[")[0]
        found = np.asarray(values[0] if declared[name].endswith("[]") else values).dtype
        _need(kind == "string" or found == np.dtype(kind), f"{name!r} came as {found}, but {kind} is declared")
    described = case.scorer.describe()
    described.to_json()
    _need(described.name == case.scorer.name, f"describe() speaks of {described.name!r}")
    unknown = sorted(set(declared) - {case.scorer.name} - set(described.companions))
    _need(not unknown, f"companions() has no line for {unknown}")


def batch_untouched(case: Case) -> None:
    """The caller's batch is as it was: nothing added, removed or changed in place."""
    for kind, given in (("lists", copy.deepcopy(case.rows)), ("arrays", _as_arrays(case.rows))):
        before = pickle.dumps({k: _plain(v) for k, v in given.items()})
        case.scorer(given)
        _need(pickle.dumps({k: _plain(v) for k, v in given.items()}) == before, f"it changed its batch of {kind}")


def scores_tell(case: Case) -> None:
    """The scores tell rows apart, and `atol` is small beside what tells them apart: else no check below means much."""
    scores = _numbers(case.scores[case.scorer.name])
    if scores is None:
        return
    finite = scores[np.isfinite(scores)]
    _need(len(finite) > 0, "no row has a finite score; check it on rows that it can score")
    rows = [pickle.dumps([_plain(v[i]) for v in case.rows.values()]) for i in range(len(case.ds))]
    if len(set(rows)) < 2:
        return
    level = 64 * float(np.finfo(np.float32 if scores.dtype.itemsize < 8 else np.float64).eps) * np.abs(finite).max()
    values = np.unique(finite.astype(np.float64))
    gaps = np.diff(values)
    gaps = gaps[gaps > level]
    _need(
        len(gaps) > 0,
        f"all {len(case.ds)} rows score {_short(values[0])}, though they differ; check it on rows that it tells "
        "apart, or skip this check with a reason",
    )
    spread = float(np.median(gaps)) * len(gaps)
    _need(
        case.scorer.atol <= max(spread / 100, level),
        f"atol={case.scorer.atol:g} hides differences: the scores here spread over {spread:.2g}, and their type rounds "
        f"at {level:.1g}; at most {max(spread / 100, level):.1g} is justified",
    )


def calls_independent(case: Case) -> None:
    """A second call, and one after other rows, gives the same: nothing is kept between calls, no generator moves."""
    with _watched_generators():
        case.scorer(_take(case.rows, range(3)))
    _same(case, case.scorer(copy.deepcopy(case.rows)), "a second call")
    _check_value(case.scorer)


def batch_size(case: Case) -> None:
    """Batches of 1, 7 and all rows give the same scores: a row is scored alone. One of no rows gives no scores."""
    n = len(case.ds)
    none = case.scorer(_take(case.rows, ()))
    _need({name: len(none[name]) for name in none} == dict.fromkeys(case.scores, 0), f"no rows gave {none}")
    for size in (1, 7):
        parts = [case.scorer(_take(case.rows, range(i, min(i + size, n)))) for i in range(0, n, size)]
        _same(case, _together(parts), f"batches of {size}")


def row_order(case: Case) -> None:
    """Permuted rows get the scores they had."""
    order = np.random.default_rng(0).permutation(len(case.ds))
    found = case.scorer(_take(case.rows, order))
    _same(case, {k: _pick(v, np.argsort(order)) for k, v in found.items()}, "permuted rows")


def shards(case: Case) -> None:
    """Three shards put together give the scores of the whole."""
    parts = np.array_split(np.arange(len(case.ds)), 3)
    _same(case, _together([case.scorer(_take(case.rows, part)) for part in parts]), "three shards")


def ranks(case: Case) -> None:
    """With any rank and without one the scores are the same."""
    for rank in (0, 1, 5):
        _same(case, case.scorer(copy.deepcopy(case.rows), rank), f"rank {rank}")
    _same(case, case.scorer(copy.deepcopy(case.rows), rank=None), "rank None")


def numpy_batches(case: Case) -> None:
    """Batches of arrays, as Ray Data gives them, score the same; `with_inputs` keeps them."""
    given = _as_arrays(case.rows)
    _same(case, case.scorer(given), "a batch of arrays")
    kept = case.scorer.with_inputs(given)
    _need(set(kept) == set(given) | set(case.scores), f"with_inputs gave columns {sorted(kept)}")
    for name, values in _as_arrays(case.rows).items():
        _need(
            pickle.dumps(_plain(kept[name])) == pickle.dumps(_plain(values)),
            f"with_inputs gave other values of {name!r}, or in another order",
        )
    _same(case, {name: kept[name] for name in case.scores}, "with_inputs")


def dataset_map(case: Case) -> None:
    """`Dataset.map`, with and without `features=`: the same scores, every row, the declared types."""
    fresh = _uncached(case.ds)
    _same(case, _columns(case, fresh.map(case.scorer, batched=True, batch_size=5)), "Dataset.map")
    features = case.scorer.features(fresh)
    typed = fresh.map(case.scorer, batched=True, batch_size=5, features=features)
    _need(typed.features == features, f"map(features=...) gave {typed.features}")
    _same(case, _columns(case, typed), "Dataset.map with features")
    bare = fresh.map(case.scorer, batched=True, batch_size=5, remove_columns=fresh.column_names)
    _need(len(bare) == len(fresh), f"{len(fresh) - len(bare)} rows vanished when the old columns were removed")


def stream_map(case: Case) -> None:
    """`IterableDataset.map` gives the same scores."""
    rows = list(case.ds.to_iterable_dataset().map(case.scorer, batched=True, batch_size=5))
    _need(len(rows) == len(case.ds), f"a stream of {len(case.ds)} rows came back with {len(rows)}")
    _same(case, {k: [row[k] for row in rows] for k in case.scores}, "IterableDataset.map")


def workers(case: Case) -> None:
    """`map(num_proc=2)` finishes, after this process has computed with threads, and gives the same."""
    _use_threads()
    with _limit(case.seconds, "map(num_proc=2) did not finish: it waits for threads that the fork did not copy"):
        scored = _uncached(case.ds).map(case.scorer, batched=True, num_proc=2, with_rank=True)
    _same(case, _columns(case, scored), "two workers")


def pickles(case: Case) -> None:
    """Copies through pickle, dill and deepcopy are equal, with the same bytes, and score the same.

    A class of a script or a notebook travels as its code: its copies are of another class, and alike from then on.
    """
    import dill

    for how, dumps, loads in (("pickle", pickle.dumps, pickle.loads), ("dill", dill.dumps, dill.loads)):
        if how == "pickle" and not _importable(case.scorer):
            continue
        again = loads(dumps(case.scorer))
        first = case.scorer if _importable(case.scorer) else loads(dumps(again))
        _need(dumps(again) == dumps(first), f"another {how} after a round trip")
        _need(_hash(again) == case.hash, f"another hash after a {how} round trip")
        _same(case, again(copy.deepcopy(case.rows)), f"a {how} round trip")
    _need(copy.deepcopy(case.scorer) == case.scorer, "a deep copy is not equal to it")


def hash_stable(case: Case) -> None:
    """The hash that names cached results is the same before and after a call and for an equal copy."""
    _need(_hash(case.scorer) == case.hash, "its hash changed with a call: something was written to it")
    _need(_hash(copy.deepcopy(case.scorer)) == case.hash, "an equal copy has another hash")


def hash_complete(case: Case) -> None:
    """The hash changes with every field, and with `version`."""
    for field in fields(case.scorer):
        other = copy.copy(case.scorer)
        object.__setattr__(other, field.name, _changed(getattr(case.scorer, field.name)))
        _need(_hash(other) != case.hash, f"its hash is blind to the field {field.name!r}")
    cls = type(case.scorer)
    own = cls.__dict__.get("version")
    try:
        cls.version = case.scorer.version + 1
        _need(_hash(case.scorer) != case.hash, "its hash is blind to `version`")
    finally:
        if own is None:
            del cls.version
        else:
            cls.version = own


def second_process(case: Case) -> None:
    """A fresh process with another hash seed, which meets other rows first, finds the same hash and the same scores.

    Of a class that travels as its code the hash is that of a second run of its script, which is not this process.
    """
    parts = np.roll(np.arange(len(case.ds)), len(case.ds) // 3), np.arange(len(case.ds) // 3)
    order = [parts[0][: len(parts[1])], parts[0][len(parts[1]) :]]
    batches = [_take(case.rows, part) for part in order]
    found, scores = case.second(case.scorer, batches, case.seconds)
    _need(found == case.hash or not _importable(case.scorer), "its hash is another in a second process")
    back = np.argsort(np.concatenate(order))
    _same(
        case, {k: _pick(v, back) for k, v in _together(scores).items()}, "a second process, which met other rows first,"
    )


def save_load(case: Case) -> None:
    """What `save` wrote, `load` reads: an equal scorer, without pickle; another version is refused."""
    if not _importable(case.scorer):
        return  # save() says so itself: a class inside a function cannot be found again
    cls = type(case.scorer)
    with tempfile.TemporaryDirectory() as folder:
        case.scorer.save(folder)
        again = cls.load(folder, trust_code=True)
        _need(again == case.scorer, "load() gave another scorer than was saved")
        _same(case, again(copy.deepcopy(case.rows)), "save and load")


def bad_rows(case: Case) -> None:
    """A null, or a NaN in a vector, is an error or that row's NaN: never a finite number, never another row's."""
    read = _columns_read(case)
    for name, values in case.rows.items():
        for what, value in _bad_values(values[2]):
            broken = copy.deepcopy(case.rows)
            broken[name] = [*broken[name][:2], value, *broken[name][3:]]
            try:
                found = case.scorer(broken)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            _check_bad_row(case, found, f"{what} in {name!r}", name in read)


def _check_bad_row(case: Case, found: Columns, what: str, read: bool) -> None:
    main = np.asarray(found[case.scorer.name][2], np.float64)
    if np.isnan(main).all():
        for name, values in found.items():
            beside = _numbers(values)
            finite = beside is not None and beside.dtype.kind == "f" and np.isfinite(beside[2]).any()
            _need(not finite, f"{what} gave a NaN, and beside it {name!r} {_short(values[2])}; give NaN there too")
    else:
        untouched = not read and _equal(main, case.scores[case.scorer.name][2], case.scorer.atol)
        _need(untouched, f"{what} scored {_short(main)}; give NaN (nan_rows) or raise ValueError")
    rest = np.delete(np.arange(len(case.ds)), 2)
    expected = {k: _pick(v, rest) for k, v in case.scores.items()}
    _compare({k: _pick(v, rest) for k, v in found.items()}, expected, case.scorer.atol, what)


def _columns_read(case: Case) -> set[str]:
    """Columns that the scorer reads, through the view it is given or past it."""
    view = Batch(copy.deepcopy(case.rows), "a spy")
    view.source = source = _Spied(view.source)
    case.scorer(view)
    return view.read | source.read


class _Spied(Mapping[str, Any]):
    """Columns that note which of them were looked at."""

    def __init__(self, columns: Columns) -> None:
        self.columns, self.read = columns, set[str]()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return self.columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


def _bad_values(value: Any) -> Iterator[tuple[str, Any]]:
    """What cannot be scored in the place of a value, in words and as it is."""
    yield "a null", None
    if isinstance(value, float):
        yield "a NaN", math.nan
    if isinstance(value, list) and value and all(isinstance(v, float) for v in value):
        yield "a NaN in the vector", [*value[:-1], math.nan]
        yield "a null in the vector", [None, *value[1:]]


def cost(case: Case) -> None:
    """`flops` is finite, not negative, and does not fall with more rows."""
    few, many = (case.scorer.flops(_take(case.rows, range(n))) for n in (2, len(case.ds)))
    _need(math.isfinite(many) and 0 <= few <= many, f"flops of 2 rows are {few}, of {len(case.ds)} rows {many}")


CHECKS: dict[str, Callable[[Case], None]] = {
    f.__name__: f
    for f in (
        columns_declared,
        calls_independent,
        batch_untouched,
        numpy_batches,
        batch_size,
        row_order,
        shards,
        ranks,
        hash_stable,
        hash_complete,
        scores_tell,
        pickles,
        bad_rows,
        cost,
        dataset_map,
        stream_map,
        save_load,
        workers,
        second_process,
    )
}


@contextlib.contextmanager
def _guard(name: str) -> Iterator[None]:
    try:
        yield
    except ConformanceError as error:
        if error.check:
            raise
        raise ConformanceError(name, str(error).partition("] ")[2]) from error.__cause__
    except Exception as error:
        raise ConformanceError(name, f"{type(error).__name__}: {error}") from error


def _need(holds: bool, reason: str) -> None:
    if not holds:
        raise ConformanceError("", reason)


def _same(case: Case, found: Mapping[str, Any], how: str) -> None:
    """Scores equal to atol, and the upper half the same but for rows within atol of the cut."""
    _compare(found, case.scores, case.scorer.atol, how)
    main, other = (np.asarray(s[case.scorer.name]) for s in (case.scores, found))
    if main.ndim != 1 or main.dtype.kind not in "biuf":
        return
    main, other = main.astype(np.float64), other.astype(np.float64)
    half = len(main) // 2
    cut = np.sort(main)[-half]
    kept, again = (np.isin(np.arange(len(v)), np.argsort(-v, kind="stable")[:half]) for v in (main, other))
    lost = np.flatnonzero((kept != again) & ~(np.abs(main - cut) <= 2 * case.scorer.atol) & ~np.isnan(main))
    _need(not len(lost), f"{how}: rows {lost[:5].tolist()} changed sides of the cut at {cut}")


def _compare(found: Mapping[str, Any], expected: Mapping[str, Any], atol: float, how: str) -> None:
    _need(set(found) == set(expected), f"{how} gave columns {sorted(found)}")
    for name, want in expected.items():
        got = found[name]
        _need(len(got) == len(want), f"{how} gave {len(got)} values of {name!r} for {len(want)} rows")
        for row, (a, b) in enumerate(zip(got, want, strict=True)):
            _need(_equal(a, b, atol), f"{how} gave row {row} another {name!r}: {_short(a)}, not {_short(b)}")


def _equal(a: Any, b: Any, atol: float) -> bool:
    if isinstance(b, str):
        return bool(a == b)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return a.shape == b.shape and bool(np.isclose(a, b, rtol=0, atol=atol, equal_nan=True).all())


def _numbers(values: Any) -> np.ndarray | None:
    """A column as an array of numbers; None where it holds something else, or lists of several lengths."""
    try:
        array = np.asarray(values)
    except ValueError:
        return None
    return array if array.dtype.kind in "biuf" else None


@contextlib.contextmanager
def _watched_generators() -> Iterator[None]:
    """Refuse what draws from the global random generators of Python, NumPy or torch, or seeds them."""
    import torch

    def state() -> tuple[Any, Any, Any]:
        return random.getstate(), np.random.get_state(), torch.default_generator.get_state()

    was = state()
    try:
        seed = 0x5EED
        random.seed(seed), np.random.seed(seed), torch.default_generator.manual_seed(seed)
        before = [repr(s) for s in state()[:2]], state()[2].tolist()
        yield
        after = [repr(s) for s in state()[:2]], state()[2].tolist()
        _need(after == before, "it moves a global random generator; draw from one of its own")
    finally:
        random.setstate(was[0]), np.random.set_state(was[1]), torch.default_generator.set_state(was[2])


def _short(value: Any) -> str:
    return str(value) if np.ndim(value) == 0 else f"{np.asarray(value).ravel()[:3]}..."


def _rows(ds: Any) -> Columns:
    return {name: ds.with_format(None)[name][:] for name in ds.column_names}


def _take(rows: Columns, which: Any) -> Columns:
    return {k: [copy.deepcopy(v[int(i)]) for i in which] for k, v in rows.items()}


def _pick(values: Any, which: Any) -> Any:
    return values[which] if isinstance(values, np.ndarray) else [values[int(i)] for i in which]


def _together(parts: list[Columns]) -> Columns:
    return {k: [value for part in parts for value in part[k]] for k in parts[0]}


def _as_arrays(rows: Columns) -> Columns:
    """Columns as Ray Data hands them over: numbers and rows of numbers as arrays, anything else as objects."""
    arrays = {}
    for name, values in rows.items():
        with contextlib.suppress(ValueError):
            arrays[name] = np.asarray(values)
        if name not in arrays or arrays[name].dtype.kind not in "biuf":
            arrays[name] = np.empty(len(values), object)
            arrays[name][:] = values
    return copy.deepcopy(arrays)


def _plain(values: Any) -> Any:
    return values.tolist() if isinstance(values, np.ndarray) else values


def _columns(case: Case, scored: Any) -> Columns:
    return {name: scored.with_format(None)[name][:] for name in case.scores}


def _uncached(ds: Any) -> Any:
    """The same rows under another fingerprint: a check must compute, not find what an earlier one left."""
    fresh = copy.copy(ds.with_format(None))
    fresh._fingerprint = f"{time.time_ns():016x}"
    return fresh


def _hash(scorer: Scorer) -> str:
    from datasets.fingerprint import Hasher

    return str(Hasher.hash(scorer))


def _changed(value: Any) -> Any:
    """Another value of the same kind, as close as can be."""
    if isinstance(value, np.ndarray):
        other = value.copy()
        other.reshape(-1)[-1] += 1
        return other
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, Mapping):
        return {**value, "another": 1}
    if isinstance(value, (list, tuple)):
        return (*value, "another")
    return "another"


def _importable(scorer: Scorer) -> bool:
    cls = type(scorer)
    return cls.__module__ != "__main__" and "<locals>" not in cls.__qualname__


def _use_threads() -> None:
    """Start the thread pools that a fit or a forward pass would have started."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.ones(256, 256) @ torch.ones(256, 256)
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        index = faiss.IndexFlatL2(8)
        index.add(np.ones((4096, 8), np.float32))
        index.search(np.ones((4096, 8), np.float32), 1)


@contextlib.contextmanager
def _limit(seconds: float, reason: str) -> Iterator[None]:
    """Raise after some seconds; only the main thread can be woken from a wait."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    rang = False

    def late(*_: Any) -> None:
        nonlocal rang
        rang = True
        raise TimeoutError(reason)

    before = signal.signal(signal.SIGALRM, late)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        if rang:  # what `map` raises while it gives up its workers may be another error
            raise ConformanceError("", reason) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)
