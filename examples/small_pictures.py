"""Small pictures with classes: from a Parquet file or the Hub, or scikit-learn's digits."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, load_dataset

import hf_prune as hp


def load(data: str | None, split: str, column: str, label: str, limit: int | None) -> Dataset:
    """The first rows of a dataset, with ids. Without a name they are the digits."""
    if data is None:
        from PIL import Image as Picture
        from sklearn.datasets import load_digits

        digits = load_digits()
        pictures = [Picture.fromarray((pixels * 15).astype(np.uint8)) for pixels in digits.images]
        features = Features({column: Image(), label: ClassLabel(names=[str(i) for i in range(10)])})
        ds = Dataset.from_dict({column: pictures, label: digits.target.tolist()}, features)
    elif data.endswith(".parquet"):
        ds = load_dataset("parquet", data_files=data, split="train")
    else:
        ds = load_dataset(data, split=split)
    return hp.with_row_id(ds.select(range(min(limit or len(ds), len(ds)))))
