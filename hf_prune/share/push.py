"""Scores on the Hub: `push_scored` puts them there with a card, `load_scores` joins them to the data again."""

from __future__ import annotations

import contextlib
import errno
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset, DatasetDict, DatasetInfo, Features

from hf_prune.checks import check_config_name, check_datasets
from hf_prune.columns import SIDECAR, parse_sidecar, sidecar_text
from hf_prune.data.files import FULL, making, put, read_text, reading, scratch, write_text
from hf_prune.share.card import Scores, merge_readme, published, with_features
from hf_prune.share.join import REMEDY, check_files, choose, described, find, join, pick, read_tables
from hf_prune.share.remote import README, Remote, data_at, other_reader, retry, undeclared
from hf_prune.share.tables import (
    balances_of,
    check_ids,
    dtype_of,
    feature_of,
    ids_digest,
    names_of,
    score_columns,
    sidecar_path,
    size_of,
    split_facts,
    split_of,
    splits_of,
    table_of,
    values_of,
    write_parquet,
)


@dataclass(frozen=True)
class Pushed:
    """What `push_scored` did.

    Args:
        url: the repo, or the pull request.
        oid: the commit that holds the push; an older one if there was nothing to change.
        changed: whether the call added a commit.
        columns: the score columns, companions included.
        rows: number of scored rows by split.
    """

    url: str
    oid: str
    changed: bool
    columns: tuple[str, ...] = ()
    rows: Mapping[str, int] | None = None


def push_scored(
    ds: Dataset | DatasetDict,
    repo_id: str,
    *,
    scorers: Any = (),
    columns: str | Sequence[str] | None = None,
    what: Literal["both", "scores", "data"] = "both",
    row_id: str = "row_id",
    config_name: str = "scores",
    data_config: str = "default",
    label: str | None = None,
    keep: float = 0.7,
    license: str | None = None,
    source: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> Pushed:
    """Push a scored dataset: its data, its scores as a config of their own, their provenance and a card.

    The data config holds the dataset's own columns, the scores config the row ids and the scores; `load_scores` joins
    the two. Scores, sidecar and card go in one commit. Running the same push again changes nothing, and a push that
    died half way is finished by running it again. Text, tags, licence and other configs of an existing card stay.
    Memory: the score columns once. With `create_pr`, an attempt whose answer was lost may leave a second pull request.

    Args:
        ds: the scored data, with a column of unique ids; of a `DatasetDict`, the splits that have the score columns.
        repo_id: "user/name"; made if it is missing.
        scorers: scorers, `ScoreColumn`s, or score folders: which columns are scores, and where they come from. An
            `Embedder` among them tells the card which model is behind the scores of its embeddings.
        columns: more score columns, whose provenance is marked unknown.
        what: "scores" leaves the data alone, "data" pushes nothing but the data and the ids.
        row_id: the column of ids.
        config_name: name of the scores config.
        data_config: name of the data config.
        label: column for the card's class balance; the `ClassLabel` column if there is one.
        keep: fraction for the card's class balance.
        license: licence id for the card, if it has none; else the dataset's own. None is invented.
        source: "user/name" or "user/name@revision" of the data, for `what="scores"`.
        token: passed on to the Hub's client, stored nowhere.
        private: for a repo that is made here.
        revision: branch; made if it is missing.
        create_pr: open a pull request instead of committing.
        commit_message: for the commit of the scores.

    Raises:
        KeyError: a column that is not there; the message has those that are.
        ValueError: no score columns named, ids missing or repeated, splits on the Hub that this push would drop.
    """
    if what not in ("both", "scores", "data"):
        raise ValueError(f"what={what!r} is unknown; choose 'both', 'scores' or 'data'")
    told = _told(ds, repo_id, scorers, columns, what != "data", row_id, config_name, data_config, label, keep, source)
    tables, names = told.tables, told.names
    remote = Remote(repo_id, revision, token)
    retry(lambda: remote.ensure(private), f"looking for {repo_id}")
    before = retry(remote.head, f"reading {repo_id}")
    request: str | None = None
    if what != "scores":
        bare = {k: d.remove_columns([c for c in names if c in d.column_names]) for k, d in told.splits.items()}
        options: dict[str, Any] = {"private": private, "token": token, "create_pr": create_pr}
        if isinstance(ds, Dataset):
            options["split"] = next(iter(bare))
        whole = next(iter(bare.values())) if isinstance(ds, Dataset) else DatasetDict(bare)
        info = retry(
            lambda: whole.push_to_hub(repo_id, data_config, revision=remote.revision, **options),
            f"pushing the data to {repo_id}",
        )
        if create_pr and info.pr_revision:
            remote.revision, create_pr, request = info.pr_revision, False, info.pr_url
        oid = retry(
            lambda: _right_features(remote, data_config, next(iter(bare.values())).features) or info.oid,
            f"reading {repo_id}",
        )
        if what == "data":
            return Pushed(request or str(info.repo_url), oid, oid != before)
    with scratch() as folder:
        files = dict(write_parquet(tables, config_name, folder))

        def commit() -> Pushed:
            head = remote.head()
            facts = replace(told.scores, repo_id=remote.repo_id)
            if what == "both":
                facts = replace(facts, data=data_at(remote, head, data_config, config_name))
            sidecar, readme, stale = _documents(remote, head, facts, tables, files, license or told.license, what)
            add: dict[str, Path | bytes] = {
                **files,
                sidecar_path(config_name): sidecar.encode(),
                README: readme.encode(),
            }
            message = commit_message or f"Scores: {', '.join(c.name for c in facts.columns)}"
            made = remote.put(add, stale, head, message, create_pr)
            url = f"{remote.api.endpoint}/datasets/{remote.repo_id}"
            oid = made.oid if made else head
            return Pushed(
                (made.pr_url if made else None) or request or url, oid, oid != before, tuple(names), facts.rows
            )

        return retry(commit, f"pushing scores to {repo_id}")


def save_scored(
    ds: Dataset | DatasetDict,
    folder: str | Path,
    *,
    scorers: Any = (),
    columns: str | Sequence[str] | None = None,
    row_id: str = "row_id",
    config_name: str = "scores",
    label: str | None = None,
    keep: float = 0.7,
    license: str | None = None,
    source: str | None = None,
) -> Path:
    """Write what `push_scored(what="scores")` would commit into a folder: scores, sidecar and card.

    `load_scores(folder)` reads it, `load_dataset(folder)` too. The text of a README that is there stays. Files are
    written under temporary names and renamed. A call that is killed between them leaves what `load_scores` refuses, or
    reads as it was before or will be; the same call again finishes it.

    Args:
        ds, scorers, columns, row_id, config_name, label, keep, license, source: as for `push_scored`.
        folder: made if it is missing.

    Raises:
        KeyError, ValueError: as `push_scored`.
        OSError: the folder cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    told = _told(ds, folder.name, scorers, columns, True, row_id, config_name, "default", label, keep, source)
    with _explained(folder), making(folder), scratch(folder) as temporary:
        files = dict(write_parquet(told.tables, config_name, temporary))
        readme = folder / README
        old = read_text(readme, "README", "mend it, or name another folder") if readme.exists() else None
        text = _readme(old, told.scores, told.tables, files, license or told.license, ())
        with making(folder / config_name):
            # the sidecar names the files by their digests: what is cut off from here on is refused when it is read
            write_text(folder / sidecar_path(config_name), _sidecar(told.scores, told.tables, files))
            for path, file in files.items():
                put(file, folder / path)
            for stale in set((folder / config_name).glob("*.parquet")) - {folder / path for path in files}:
                stale.unlink()
            write_text(readme, text)
    return folder


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Give errors of the disk the folder's name and the next step."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            reason = "no space left; free some"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "it is not writable; make it so"
        else:
            raise
        message = f"scores cannot be saved in {folder}: {reason}, or name another folder, and call again"
        raise type(error)(error.errno, message) from error


@dataclass(frozen=True)
class _Told:
    """What a scored dataset has to tell: its splits, the scores as tables and as facts for the card."""

    splits: Mapping[str, Dataset]
    tables: Mapping[str, pa.Table]
    names: Sequence[str]
    scores: Scores
    license: str | None


def _told(
    ds: Any,
    repo_id: str,
    scorers: Any,
    columns: str | Sequence[str] | None,
    needed: bool,
    row_id: str,
    config_name: str,
    data_config: str,
    label: str | None,
    keep: float,
    source: str | None,
) -> _Told:
    """Read a scored dataset; whatever may be wrong with it is found here, before anything is written."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} is not a fraction; use 0 < keep <= 1")
    check_config_name(data_config, argument="data_config")
    check_config_name(config_name, taken=("data", data_config))
    splits = splits_of(ds)
    mains = score_columns(splits, scorers, columns, needed=needed)
    names = names_of(mains)
    scored = {k: d for k, d in splits.items() if set(mains) & set(d.column_names)}
    tables = {split: table_of(d, split, row_id, names) for split, d in scored.items()}
    scores = Scores(
        repo_id=repo_id,
        config_name=config_name,
        row_id=row_id,
        columns=[published(replace(c, dtype=dtype_of(feature_of(scored, n)[n]))) for n, c in mains.items()],
        rows={split: table.num_rows for split, table in tables.items()},
        values=values_of(tables, names),
        balances=balances_of(scored, tables, list(mains), row_id, label, keep),
        data=_source(source),
        keep=keep,
    )
    return _Told(splits, tables, names, scores, next((d.info.license for d in scored.values()), None))


def _documents(
    remote: Remote,
    head: str,
    scores: Scores,
    tables: Mapping[str, pa.Table],
    files: Mapping[str, Path],
    license: str | None,
    what: str,
) -> tuple[str, str, list[str]]:
    """Sidecar, README, and the files of an older push that must go."""
    name = scores.config_name
    old = sorted(p for p in remote.listing(name, head) if p.endswith(".parquet"))
    stale = [path for path in old if path not in files]
    lost = sorted({split_of(path) for path in stale} - set(tables))
    if lost:
        raise ValueError(
            f"{scores.repo_id} has scores for {lost} in config {name!r}, which this push of {sorted(tables)} would"
            " drop; push a DatasetDict with all splits, or choose another config_name="
        )
    text = remote.text(README, head)
    readme = _readme(text, scores, tables, files, license, lambda: undeclared(remote, head, name), what == "both")
    reader = None if what == "both" else other_reader(remote, head, readme, name)
    if reader not in (None, "parquet"):
        warnings.warn(
            f"{scores.repo_id} holds .{reader} files, and load_dataset reads all configs of a repo with one reader:"
            " take the scores off it with load_scores, or push them to a repo of their own",
            stacklevel=2,
        )
    return _sidecar(scores, tables, files), readme, stale


def _sidecar(scores: Scores, tables: Mapping[str, pa.Table], files: Mapping[str, Path]) -> str:
    facts = split_facts(tables, files, scores.row_id)
    return sidecar_text(scores.columns, splits=facts, row_id=scores.row_id, data=dict(scores.data))


def _right_features(remote: Remote, config: str, features: Features) -> str | None:
    """Say in the README which columns the data have; the commit, where they were others.

    `push_to_hub` keeps the columns of the only split when it replaces it: whoever loads the data then finds those that
    are gone, full of nulls.
    """
    head = remote.head()
    old = remote.text(README, head)
    text = with_features(old or "", remote.repo_id, config, DatasetInfo(features=features)._to_yaml_dict()["features"])
    if text == old:
        return None
    made = remote.put({README: text.encode()}, [], head, "Columns of the data", False)
    return made.oid if made else None


def _readme(
    old: str | None,
    scores: Scores,
    tables: Mapping[str, pa.Table],
    files: Mapping[str, Path],
    license: str | None,
    others: Any,
    parquet: bool = False,
) -> str:
    name, source = scores.config_name, scores.data.get("repo")
    features = Features.from_arrow_schema(next(iter(tables.values())).schema)
    sizes = [{"name": s, "num_bytes": size_of(t), "num_examples": t.num_rows} for s, t in tables.items()]
    return merge_readme(
        old,
        scores,
        config={
            "config_name": name,
            "data_files": [{"split": s, "path": f"{name}/{s}-*"} for s in tables],
        },
        info={
            "config_name": name,
            "features": DatasetInfo(features=features)._to_yaml_dict()["features"],
            "splits": sizes,
            "download_size": sum(path.stat().st_size for path in files.values()),
            "dataset_size": sum(s["num_bytes"] for s in sizes),
        },
        license=license if license and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license) else None,
        source=source if source != scores.repo_id else None,
        others=others if callable(others) else lambda: others,
        parquet=parquet,
    )


def load_scores(
    source: str | Path,
    ds: Dataset | DatasetDict | None = None,
    *,
    config_name: str = "scores",
    split: str | None = None,
    row_id: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    columns: str | Sequence[str] | None = None,
    verify: bool = False,
) -> Any:
    """Take scores off the Hub or a folder, and join them to `ds` by row id if it is given.

    The rows of `ds` may be in any order and may be some of those that were scored; each must have a score. The scores
    are put beside its table: nothing of it is rewritten, and an indices mapping stays as it is.

    Args:
        source: "user/name", or a folder with a `score_columns.json`.
        ds: the scored data; of a `DatasetDict`, the splits that have scores are joined.
        config_name: name of the scores config.
        split: which split of the scores; for a `ds` without a split name.
        row_id: the column of ids; by default that of the push.
        revision: branch, tag or commit.
        token: passed on to the Hub's client, stored nowhere.
        columns: which score columns; by default all.
        verify: also check the ids of `with_row_id` against the content of the rows. `ds` must then have the columns
            that it had when they were made, in any order, and the ids.

    Returns:
        Without `ds` the scores: a `Dataset` if `split` is given, else a `DatasetDict`. With `ds` the same kind of
        thing as `ds`.

    Raises:
        FileNotFoundError: there are no scores in the folder or repo.
        KeyError: no such split or column.
        DamagedFileError: files that are not those that the sidecar describes, or no scores.
        ValueError: rows without score (the data have changed), repeated ids, a column that `ds` has already.
    """
    if ds is not None:
        check_datasets(ds, "load_scores")
    if isinstance(columns, str):
        columns = [columns]
    files, sidecar = find(source, config_name, revision, token)
    facts = parse_sidecar(sidecar, f"{SIDECAR} of {source}")[1] if sidecar is not None else {}
    key = row_id or str(facts.get("row_id") or "row_id")
    wanted = files
    if split is not None or isinstance(ds, Dataset):
        one = choose(split, ds, files, source)
        wanted = {one: files[one]}
    elif ds is not None:
        wanted = {s: f for s, f in files.items() if s in ds}
        if not wanted:
            raise KeyError(f"{source} has scores for {sorted(files)}, the data have {sorted(ds)}; rename the splits")
    splits = described(facts, source)
    check_files(files, wanted, splits, source)
    loaded = read_tables(wanted, source)
    scores = {s: pick(loaded[s], key, columns, source) for s in wanted}
    for s, d in scores.items():
        with reading(source, "scores", REMEDY) if row_id is None else nullcontext():
            check_ids(d, s, key)
        digest = splits.get(s, {}).get("ids")
        if digest and ids_digest(d.data[key]) != digest:
            raise ValueError(f"{source}: the scores of {s!r} are not those that its {SIDECAR} describes; push again")
    if ds is None:
        return DatasetDict(scores) if split is None else scores[split]
    if isinstance(ds, Dataset):
        one = next(iter(scores))
        return join(ds, scores[one], one, key, source, verify)
    return DatasetDict({s: join(d, scores[s], s, key, source, verify) if s in scores else d for s, d in ds.items()})


def _source(source: str | None) -> dict[str, Any]:
    if source is None:
        return {}
    repo, _, revision = source.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise ValueError(f"source={source!r} is no name on the Hub; use 'user/name' or 'user/name@revision'")
    return {"repo": repo, **({"revision": revision} if revision else {})}
