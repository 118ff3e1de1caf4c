"""KenLM: how likely a text is to an n-gram language model, as CCNet filters the web."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hf_prune.checks import check_choice, check_digest
from hf_prune.data.batch import Batch
from hf_prune.data.texts import check_bad, read_texts
from hf_prune.models import cached, file_sha256, point, pointer
from hf_prune.scorer import Scorer
from hf_prune.values import names_code

ON_BAD = ("raise", "nan")


def kenlm_log_likelihood(lines: Iterable[str], score: Callable[[str], float]) -> float:
    """Log10-probability a word of a text's lines; the end of a line counts as a word, blank lines do not count.

    Args:
        lines: words separated by spaces.
        score: log10-probability of a line with its begin and end.

    >>> 10 ** -kenlm_log_likelihood(["five words in a line"], lambda line: -12.0)
    100.0
    """
    total, words = 0.0, 0
    for line in lines:
        if count := len(line.split()):
            total, words = total + score(line), words + count + 1
    return total / words if words else float("nan")


@dataclass(frozen=True, eq=False)
class KenLM(Scorer):
    """Log10-probability a word under an n-gram model: `-log10` of its perplexity. High = likely = keep.

    The text is split into lines, each scored by itself with its begin and end; the logs of the lines are summed and
    divided by the number of words and line ends. Unknown words count as the model's `<unk>`. Prepare texts as the
    model's training text was (lower case, digits, SentencePiece): name a function, or prepare a column.

    Args:
        model: an ARPA or binary file of KenLM. It is identified by its content: moving it changes nothing.
        text: column of texts or chats, several columns, or a field as `column.field`.
        preprocess: `package.module:function` from a text to the text with words between spaces; None for as it is.
        perplexity: write `<name>_perplexity`.
        join: between several columns.
        on_bad: "raise", or "nan" for NaN where a text is null or has no words.
        name: column.
        revision: digest of the file, filled in here.

    Raises:
        ImportError: the package is not installed.
        FileNotFoundError: the file is not there.
        ValueError: a text without words, or a file that is no model.

    Reference: Wenzek et al., 2020, arXiv 1911.00359; Heafield, 2011, *KenLM*. That blank lines do not count is ours.

    >>> KenLM("no-such-file.arpa")
    Traceback (most recent call last):
    ...
    FileNotFoundError: no file 'no-such-file.arpa'; give the ARPA or binary file of a KenLM model
    """

    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Wenzek et al., CCNet, LREC 2020, arXiv 1911.00359; Heafield, KenLM, WMT 2011"
    meaning: ClassVar[str] = "likely to the n-gram model: close to the text it was trained on"
    raw: ClassVar[str] = (
        "sum over lines of log10 p(line) / sum over lines of (words + 1); perplexity is 10 ** -column; NaN, where "
        "asked for, marks texts without words"
    )

    model: str
    text: str | Sequence[str] = "text"
    _: KW_ONLY
    preprocess: str | None = field(default=None, metadata=names_code())
    perplexity: bool = False
    join: str = " "
    on_bad: str = "raise"
    name: str = "kenlm"
    revision: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            object.__setattr__(self, "text", tuple(self.text))
        if self.preprocess is not None:
            self.named("preprocess")
        if self.revision is None:  # else a copy: workers know the file by its digest
            path = Path(self.model).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"no file {self.model!r}; give the ARPA or binary file of a KenLM model")
            digest = file_sha256(path)
            point(digest, path.resolve(), path.name)
            object.__setattr__(self, "model", path.name)
            object.__setattr__(self, "revision", digest)
        self.check_fields()

    def check_fields(self) -> None:
        check_choice("on_bad", self.on_bad, ON_BAD)
        check_digest(self.revision, 64)

    @property
    def nan_rows(self) -> bool:  # type: ignore[override]
        """Whether rows without words get NaN."""
        return self.on_bad == "nan"

    def columns(self) -> dict[str, str]:
        return {self.name: "float32"} | ({f"{self.name}_perplexity": "float32"} if self.perplexity else {})

    def companions(self) -> dict[str, str]:
        return {f"{self.name}_perplexity": "10 to the power of minus the score"} if self.perplexity else {}

    def score(self, batch: Batch, rank: int | None) -> Any:
        network = self._load()
        columns = [self.text] if isinstance(self.text, str) else list(self.text)
        texts, bad, _ = read_texts(batch, columns, self.join)
        prepare: Callable[[str], str] = self.named("preprocess") if self.preprocess else str
        found = np.array(
            [kenlm_log_likelihood(prepare(text).splitlines() if text else (), network.score) for text in texts]
        )
        bad.update({int(row): "has no words" for row in np.flatnonzero(np.isnan(found)) if int(row) not in bad})
        check_bad(bad, self.text, self.on_bad)
        return {self.name: found} | ({f"{self.name}_perplexity": 10.0**-found} if self.perplexity else {})

    def _load(self) -> Any:
        path = Path(pointer(str(self.revision)).get("path", ""))
        if not path.is_file() or file_sha256(path) != self.revision:
            raise FileNotFoundError(
                f"the KenLM file {self.model} ({str(self.revision)[:12]}) is not on this machine (looked at {path}); "
                "make the scorer anew from the file's new place, or share HF_PRUNE_HOME between the machines"
            )
        try:
            import kenlm
        except ImportError as error:
            raise ImportError(
                "KenLM models are read by the package kenlm (a C++ compiler builds it); pip install 'hf_prune[kenlm]'"
            ) from error

        def load() -> Any:
            try:
                return kenlm.Model(str(path))
            except (OSError, RuntimeError) as error:
                raise ValueError(f"{self.model} is no KenLM model: {error}") from error

        return cached(("kenlm", self.revision), load)
