"""One dataset repo on the Hub: read at a commit, write in one commit, and try again where that may help."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from hf_prune.checks import check_inside
from hf_prune.columns import SIDECAR, parse_sidecar
from hf_prune.data.files import DamagedFileError, reading
from hf_prune.share.tables import sidecar_path

logger = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 7
README = "README.md"
OURS = (README, SIDECAR)
LISTED = 200  # files of undeclared data that a card may name one by one
PAUSE = 1.0  # seconds before the second attempt; doubled each time
LONGEST = 60.0
AGAIN = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})  # 409, 412: somebody else has committed

# httpx in huggingface_hub 1, httpx2 in 2: the library whose errors the client's own are made of
_http: Any = sys.modules[
    next(c.__module__ for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError").partition(".")[0]
]
_DROPPED: tuple[type[BaseException], ...] = (
    _http.TransportError,
    ConnectionError,
    TimeoutError,
    LocalEntryNotFoundError,
)


def retry(action: Callable[[], T], what: str) -> T:
    """Call `action` until it works; errors that waiting cannot mend are raised at once.

    `action` must be safe to repeat after it has done its work and the answer was lost.
    """
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except Exception as error:
            cause = _transient(error)
            if cause is None:
                raise
            if attempt == ATTEMPTS - 1:
                error.add_note(f"{what}: gave up after {ATTEMPTS} attempts; it is safe to run the same call again")
                raise
            wait = _wait(cause, attempt)
            status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else type(cause).__name__
            logger.warning("%s: %s; trying again in %.1f s", what, status, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _transient(error: BaseException | None) -> BaseException | None:
    """The error in the chain of causes that waiting may mend; the client wraps some in plain RuntimeErrors."""
    chain: list[BaseException] = []
    while error is not None and not any(error is seen for seen in chain):
        chain.append(error)
        error = error.__cause__ or error.__context__
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain):  # a ConnectionError, but wanted by the user
        return None
    for link in chain:
        if isinstance(link, HfHubHTTPError) and not isinstance(link, LocalEntryNotFoundError):
            return link if link.response.status_code in AGAIN else None
        if isinstance(link, (*_DROPPED, json.JSONDecodeError)):  # a gateway's error page is no JSON
            return link
    return None


def _wait(error: BaseException, attempt: int) -> float:
    pause = PAUSE * 2.0**attempt * (1 + random.random() / 2)
    if isinstance(error, HfHubHTTPError):
        asked = error.response.headers.get("Retry-After", "")
        if asked.isdigit():
            pause = max(pause, float(asked))
    return min(pause, LONGEST)


class Remote:
    """A dataset repo. Methods talk to the Hub once and raise what the client raises: wrap them in `retry`."""

    def __init__(self, repo_id: str, revision: str | None = None, token: str | bool | None = None) -> None:
        self.api = HfApi(token=token, library_name="hf_prune")
        self.repo_id, self.revision = repo_id, revision

    def ensure(self, private: bool | None) -> None:
        """Make the repo and the branch where they are missing."""
        try:
            self.repo_id = self.api.repo_info(self.repo_id, repo_type="dataset").id
        except RepositoryNotFoundError:
            made = self.api.create_repo(self.repo_id, repo_type="dataset", private=private, exist_ok=True)
            self.repo_id = made.repo_id
        if self.revision not in (None, "main") and not str(self.revision).startswith("refs/"):
            self.api.create_branch(self.repo_id, branch=str(self.revision), repo_type="dataset", exist_ok=True)

    def head(self) -> str:
        """The commit that the revision stands for now."""
        sha = self.api.repo_info(self.repo_id, repo_type="dataset", revision=self.revision).sha
        assert sha is not None
        return sha

    def listing(self, folder: str, commit: str) -> dict[str, str]:
        """Digest of each file in and below a folder (git's, or the sha256 of a large file); empty if there is none."""
        try:
            tree = list(
                self.api.list_repo_tree(
                    self.repo_id, folder or None, recursive=True, revision=commit, repo_type="dataset"
                )
            )
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return {}
        return _digests(tree)

    def digests(self, paths: list[str], commit: str) -> dict[str, str]:
        """Digest of each of the files that exists."""
        return _digests(self.api.get_paths_info(self.repo_id, paths, revision=commit, repo_type="dataset"))

    def download(self, path: str, commit: str) -> Path:
        """A file of the repo, in the Hub's cache on this machine."""
        return Path(self.api.hf_hub_download(self.repo_id, path, repo_type="dataset", revision=commit))

    def text(self, path: str, commit: str) -> str | None:
        """A file's text with its line ends as they are; None if there is no such file.

        That there is none is believed of the listing only: a failed download must not look like an absent README.
        """
        if not self.digests([path], commit):
            return None
        data = self.download(path, commit).read_bytes()
        with reading(f"{self.repo_id}/{path}", "file", "mend it on the Hub"):
            return data.decode("utf-8")
        raise AssertionError  # `reading` raises

    def put(
        self,
        files: Mapping[str, Path | bytes],
        remove: list[str],
        parent: str,
        message: str,
        create_pr: bool,
    ) -> CommitInfo | None:
        """Add and remove files in one commit on top of `parent`; None if it has them all already."""
        there = self.digests(sorted(files), parent)
        changed = {path: content for path, content in files.items() if not _same(content, there.get(path))}
        if not changed and not remove:
            return None
        operations = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in changed.items()
        ]
        return self.api.create_commit(
            self.repo_id,
            [*operations, *(CommitOperationDelete(path) for path in remove)],
            commit_message=message,
            repo_type="dataset",
            revision=self.revision,
            parent_commit=parent,
            create_pr=create_pr,
        )


def data_at(remote: Remote, head: str, data_config: str, config_name: str) -> dict[str, Any]:
    """Where the data lie: repo, config, and the commit at which their files came to be what they are at `head`."""
    folder = "data" if data_config == "default" else data_config
    data = {"repo": remote.repo_id, "config": data_config, "revision": head}
    known = None
    with contextlib.suppress(DamagedFileError):  # it is written anew
        text = remote.text(sidecar_path(config_name), head)
        known = parse_sidecar(text)[1].get("data") if text else None
    if isinstance(known, Mapping) and known.get("repo") == remote.repo_id and known.get("config") == data_config:
        then = remote.listing(folder, str(known.get("revision")))
        if then and then == remote.listing(folder, head):
            return dict(known)
    return data


def undeclared(remote: Remote, commit: str, config_name: str) -> Iterable[Mapping[str, Any]]:
    """The default config of a repo whose card declares none.

    With the first entry under `configs:`, `load_dataset` stops looking for data by file names; so what it finds now is
    written down.
    """
    from datasets import DownloadConfig
    from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern
    from datasets.packaged_modules import _EXTENSION_TO_MODULE as READERS

    base = f"hf://datasets/{remote.repo_id}@{commit}"
    download = DownloadConfig(token=remote.api.token)
    try:
        patterns = get_data_patterns(base, download_config=download)
    except EmptyDatasetError:
        return []

    def reader(path: str) -> str:
        return str((READERS.get(Path(path).suffix.lower()) or ("",))[0])

    splits: dict[str, list[str]] = {}
    for split, several in patterns.items():
        paths = {p.removeprefix(base + "/") for one in several for p in _resolved(resolve_pattern, one, base, download)}
        splits[str(split)] = sorted(p for p in paths if not p.startswith(f"{config_name}/") and p not in OURS)
    count = Counter(filter(None, (reader(p) for paths in splits.values() for p in paths)))
    if not count:
        return []
    main = count.most_common(1)[0][0]
    data = {s: [p for p in ps if reader(p) == main or Path(p).stem == "metadata"] for s, ps in splits.items()}
    if sum(map(len, data.values())) > LISTED:
        raise ValueError(
            f"the card of {remote.repo_id} has no configs:, so load_dataset finds its {count[main]:,} data files by"
            " name, which it would no longer do beside a scores config; declare them in the card first (configs:,"
            " data_files:), or push the scores to a repo of their own"
        )
    return [{"config_name": "default", "data_files": [{"split": s, "path": ps} for s, ps in data.items() if ps]}]


def other_reader(remote: Remote, commit: str, readme: str, config_name: str) -> str | None:
    """Extension of the first file of the first other config in the README; None if there is no such file."""
    from datasets import DownloadConfig
    from datasets.data_files import resolve_pattern

    declared = [c for c in DatasetCard(readme).data.get("configs") or () if isinstance(c, Mapping)]
    configs = [c for c in declared if c.get("config_name") != config_name]
    base = f"hf://datasets/{remote.repo_id}@{commit}"
    for config in configs[:1]:
        listed = config.get("data_files") or ()
        entries = listed if isinstance(listed, list) else [listed]
        for entry in entries:
            paths = entry.get("path") if isinstance(entry, dict) else entry
            for path in paths if isinstance(paths, list) else [paths]:
                try:
                    check_inside(Path(), path)
                except ValueError:  # not of this repo
                    continue
                for found in _resolved(resolve_pattern, str(path), base, DownloadConfig(token=remote.api.token)):
                    return found.rpartition(".")[2].lower()
    return None


def _resolved(resolve: Any, pattern: str, base: str, download: Any) -> list[str]:
    try:
        return [str(p) for p in resolve(pattern, base, download_config=download)]
    except FileNotFoundError:
        return []


def _digests(entries: list[Any]) -> dict[str, str]:
    return {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in entries if hasattr(e, "blob_id")}


def _same(content: Path | bytes, digest: str | None) -> bool:
    if digest is None:
        return False
    data = content if isinstance(content, bytes) else content.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return digest in (git, hashlib.sha256(data).hexdigest())
