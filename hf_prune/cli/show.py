"""What the command line says: the cost before the work, the result after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_prune.data.arrow import floats_column
from hf_prune.shown import printable

BARS = 24


def cost_line(ds: Any, scorers: Sequence[Any], sample: int) -> str:
    """Rows, shards and FLOPs of what is about to be done, from `flops` on the first rows."""
    from hf_prune.run.cost import flop_text
    from hf_prune.run.parts import default_shard_rows
    from hf_prune.run.shard import Reader, Rows

    n = len(ds)
    first = min(sample, n)
    written = {name: dtype for s in scorers for name, dtype in s.columns().items()}
    counts = []
    for one in scorers:
        try:
            counts.append(one.flops(Rows(Reader(ds, written), 0, first)) * n / first)
        except KeyError:  # it reads what another scorer is about to write
            counts.append(float("nan"))
    total = float(np.nansum(counts))
    cost = f"about {flop_text(total)}" if total else "no arithmetic to speak of"
    cost += "" if np.isfinite(counts).all() else " (without those that read what another one writes)"
    shards = -(-n // default_shard_rows(n))
    return f"{', '.join(printable(s.name) for s in scorers)}: {n:,} rows, {shards:,} shard{'s' * (shards > 1)}, {cost}"


def score_summary(ds: Any, scorers: Sequence[Any]) -> str:
    """Quantiles and a histogram of each score column."""
    from hf_prune.share.card import histogram, strange

    lines = []
    for one in scorers:
        name = printable(one.name)
        if "[" in one.columns()[one.name]:
            lines.append(f"{name}: {one.columns()[one.name]} in every row")
            continue
        values = floats_column(ds, one.name)
        odd = strange(values)
        lines.append(f"{name}: {one.meaning}" + (f"; {odd}" if odd else ""))
        lines += [f"  {line}" for line in histogram(values, width=BARS)]
    return "\n".join(lines)


def filter_summary(ds: Any, kept: np.ndarray, by: str, groups: Sequence[str]) -> str:
    """How many rows stay and go, their scores, and the sizes of the groups."""
    from hf_prune.share.card import histogram

    count = int(kept.sum())
    lines = [f"{printable(by)}: {count:,} rows kept ({count / len(ds):.1%}), {len(ds) - count:,} dropped"]
    values = floats_column(ds, by)
    for name, half in (("kept", kept), ("dropped", ~kept)):
        if np.isfinite(values[half]).any():
            lines += [f"  {name}:", *(f"    {line}" for line in histogram(values[half], bins=6, width=BARS))]
    for group in groups:
        lines += [f"  {printable(group)}:", *(f"    {line}" for line in _group_lines(ds, kept, group))]
    return "\n".join(lines)


def _group_lines(ds: Any, kept: np.ndarray, group: str) -> list[str]:
    from hf_prune.share.report import class_balance

    found = class_balance(ds, group, {"kept": kept})
    lines = [f"{printable(name)}: {after} of {before}" for name, before, after in found.table()]
    return [*lines, f"and {found.left_out} more"] if found.left_out else lines
