"""Which texts the rules of C4 and FineWeb keep: ours, and datatrove's filters with the same limits, if installed.

python tests/benchmarks/real_text_rules.py texts.parquet --column text
"""

from __future__ import annotations

import argparse
import time

from datasets import load_dataset

import hf_prune as hp
from hf_prune.scorers.heuristics import RULES


def peers():
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter

    return {
        "c4": C4QualityFilter(min_words_per_line=5, min_num_sentences=3),
        "c4-paper": C4QualityFilter(),
        "fineweb": FineWebQualityFilter(),
        # the paper's limits; the code of today keeps what lies on a limit
        "fineweb-paper": FineWebQualityFilter(char_duplicates_ratio=0.1, new_line_ratio=float("inf")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a Parquet file")
    parser.add_argument("--column", default="text")
    options = parser.parse_args()
    texts = load_dataset("parquet", data_files=options.data, split="train")[options.column][:]
    try:
        from datatrove.data import Document

        others = peers()
    except ImportError as error:
        print(f"no peer to compare with: {error}")
        others = {}
    print(f"{len(texts)} texts")
    for rules in RULES:
        start = time.perf_counter()
        ours = hp.TextStatistics(text="text", rules=rules, statistics=())({"text": texts})["text_rules"] == 1
        seconds = time.perf_counter() - start
        words = f"{rules}: kept {int(ours.sum())}"
        if rules in others:
            start = time.perf_counter()
            theirs = [others[rules].filter(Document(text=text, id="0")) is True for text in texts]
            words += (
                f", datatrove {sum(theirs)}, decided otherwise {sum(a != b for a, b in zip(ours, theirs, strict=True))}"
            )
            words += f", {(time.perf_counter() - start) / seconds:.1f} times its speed"
        print(words)


if __name__ == "__main__":
    main()
