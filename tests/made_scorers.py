"""Fitted scorers of each kind of state, and those that an earlier version saved."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_prune as hp
from hf_prune.values import find_class

V1 = Path(__file__).parent / "data" / "saved_v1"  # as version 0.1.0 wrote them in format 1, with their scores
EXPECTED: dict[str, Any] = json.loads((V1 / "expected.json").read_text(encoding="utf-8"))

# those whose fields have changed since, or may soon
FRESH: dict[str, Callable[[Any], Any]] = {
    "dsir": lambda ds: hp.DSIR.fit(ds, {"a": ds.select(range(8)), "b": ds.select([9])}, buckets=50, tokens=True),
    "exact": lambda ds: hp.ExactDedup.fit(ds),
    "minhash": lambda ds: hp.MinHashDedup.fit(ds, ngram=2, threshold=0.5),
    "minhash_reference": lambda ds: hp.MinHashDedup.fit(ds, ngram=2, reference=ds.select(range(5))),
    "quality": lambda ds: hp.QualityClassifier.fit(ds),
    "substring": lambda ds: hp.SubstringDedup.fit(ds, min_tokens=4, spans=True),
    "substring_reference": lambda ds: hp.SubstringDedup.fit(ds, min_tokens=3, reference=ds.select(range(5))),
    "text_rules": lambda ds: hp.TextStatistics(),
}


def rows(cache: Path) -> Any:
    """The 24 rows that they were fitted on."""
    import datasets

    return datasets.Dataset.from_parquet(str(V1 / "rows.parquet"), cache_dir=str(cache))


def made(name: str, ds: Any = None) -> Any:
    """The scorer of that name, fitted now, or read as if it had been saved by today's versions."""
    if name in FRESH:
        return FRESH[name](rows(Path(tempfile.mkdtemp())) if ds is None else ds)
    document = json.loads((V1 / name / "scorer.json").read_text(encoding="utf-8"))

    def renew(item: Any) -> None:
        if isinstance(item, dict) and "\0value" in item:
            item["version"] = find_class(document["classes"][item["\0value"]]).version
        for part in item.values() if isinstance(item, dict) else item if isinstance(item, list) else ():
            renew(part)

    renew(document["value"])
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(V1 / name, Path(folder) / "s")
        (Path(folder) / "s" / "scorer.json").write_text(json.dumps(document), encoding="utf-8")
        return hp.Scorer.load(Path(folder) / "s", trust_code=True)
