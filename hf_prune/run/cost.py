"""The ledger: FLOPs of scoring beside FLOPs of training. Selecting data must be cheaper than training on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_prune.data.files import parse_json, reading
from hf_prune.fields import check_types


def training_flops(params: float, tokens: float, epochs: float = 1.0) -> float:
    """FLOPs of training a dense network: 6 x parameters x tokens x epochs (2 forward, 4 backward).

    Args:
        params: parameters that take part in every token (of a mixture of experts: the active ones).
        tokens: in the data, once. For images: patches, or rows times the tokens of one.

    Raises:
        ValueError: a negative number.
    Reference: Kaplan et al., 2020, section 2.1, without attention's own term.

    >>> f"{training_flops(params=124e6, tokens=1e9):.2e}"
    '7.44e+17'
    """
    for name, value in (("params", params), ("tokens", tokens), ("epochs", epochs)):
        if not value >= 0:
            raise ValueError(f"{name}={value} is not a count; give zero or more")
    return 6.0 * params * tokens * epochs


@dataclass(frozen=True)
class Ledger:
    """What scoring cost, and what training on all rows would.

    Args:
        rows: that were scored.
        scoring: FLOPs.
        seconds: of scoring, summed over processes.
        training: FLOPs of training on all rows, if known: `training_flops`.

    >>> ledger = Ledger(rows=1000, scoring=1.2e12, seconds=4.0, training=4e14)
    >>> print(ledger)
    scoring 1,000 rows: 1.2 TFLOP in 4.0 s = 0.3 % of training (400 TFLOP); it pays once more than 0.3 % of the
    training is saved
    """

    rows: int
    scoring: float
    seconds: float = 0.0
    training: float | None = None

    @property
    def fraction(self) -> float | None:
        """Scoring over training: what pruning must save to pay. None where training is unknown."""
        return self.scoring / self.training if self.training else None

    @classmethod
    def read(cls, folder: str | Path, training: float | None = None) -> Ledger:
        """The ledger of a folder that `score` wrote.

        Raises:
            FileNotFoundError: no run was finished there.
        """
        from hf_prune.columns import SIDECAR, read_sidecar

        path = Path(folder) / SIDECAR
        if not path.exists():
            raise FileNotFoundError(f"{folder} has no {SIDECAR}: no score(...) with this output_dir was finished")
        _, facts = read_sidecar(path)
        with reading(path, "sidecar", "score the data again"):
            return cls(int(facts["rows"]), float(facts["flops"]), float(facts.get("seconds", 0.0)), training)
        raise AssertionError  # `reading` raises

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        facts: dict[str, Any] = asdict(self)
        return json.dumps({**facts, "fraction": self.fraction}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is no such thing.
        """
        where, what, remedy = "that was given", "ledger", "give what to_json wrote"
        facts = parse_json(text, where, what, remedy)
        with reading(where, what, remedy):
            found = cls(facts["rows"], facts["scoring"], facts["seconds"], facts["training"])
            check_types(found)
            return found
        raise AssertionError  # `reading` raises

    def __str__(self) -> str:
        text = f"scoring {self.rows:,} rows: {flop_text(self.scoring)} in {self.seconds:.1f} s"
        share = self.fraction
        if self.training is None or share is None:
            return text
        text += f" = {100 * share:.2g} % of training ({flop_text(self.training)}); "
        if share >= 1:
            return text + "train on all of it: that is cheaper"
        return text + f"it pays once more than {100 * share:.2g} % of the training is saved"


def flop_text(count: float) -> str:
    """Write a number of operations for people.

    >>> flop_text(1.234e13)
    '12.3 TFLOP'
    """
    for exponent, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if count >= 10**exponent:
            return f"{count / 10**exponent:.3g} {prefix}FLOP"
    return f"{count:.3g} FLOP"
