"""What a `RecordingTrainer` is given: refused where no log can be made of it; its labels and logits found."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hf_prune.data.arrow import column_array, numbers


def check(trainer: Any) -> None:
    """Refuse datasets and settings that cannot be recorded."""
    from datasets import Dataset

    ds = trainer.train_dataset
    if not isinstance(ds, Dataset):
        raise TypeError(
            f"train_dataset is a {type(ds).__name__}; recording needs a datasets.Dataset, whose rows are known before "
            "training: load it without streaming"
        )
    for rows in (ds, *([] if trainer.clean_dataset is None else [trainer.clean_dataset])):
        if trainer.id_column not in rows.column_names:
            raise KeyError(
                f"no column {trainer.id_column!r} in the dataset; its columns are {rows.column_names}: add ids with "
                "with_row_id(ds), or name yours as id_column"
            )
    if trainer.clean_dataset is not None:
        ids = [column_array(rows, trainer.id_column).to_pylist() for rows in (ds, trainer.clean_dataset)]
        if ids[0] != ids[1]:
            raise ValueError("clean_dataset has other ids than train_dataset, or another order; give the same rows")
    if trainer.args.dataloader_drop_last:
        raise ValueError("dataloader_drop_last=True leaves rows out of each epoch; set it to False to record all")
    if {"label", "labels"} <= set(ds.column_names) and _is_classifier(trainer.model):
        warnings.warn(
            "the dataset has columns 'label' and 'labels', and the collators of transformers train on 'label'; rename "
            "or drop the one that is not meant",
            stacklevel=3,
        )
    _check_labels(trainer, ds)


def _is_classifier(model: Any) -> bool:
    return type(model).__name__.endswith(("ForSequenceClassification", "ForImageClassification"))


def _check_labels(trainer: Any, ds: Any) -> None:
    """Refuse what a network for one class a row cannot be recorded with, before it is trained."""
    config = getattr(trainer.model, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem in ("multi_label_classification", "regression"):
        raise ValueError(
            f"the model's problem_type is {problem!r}; a log is of hard labels, one class a row: set it to "
            "'single_label_classification' or None, if that is what the labels are"
        )
    name = next((n for n in ("label", "labels") if n in ds.column_names), None)
    if name is None or not _is_classifier(trainer.model):
        return
    column, width = column_array(ds, name), getattr(config, "num_labels", 0)
    stored = ds.format["type"] != "custom"  # or a transform may change the labels
    if stored and pa.types.is_nested(column.type):
        raise TypeError(
            f"column {name!r} holds several values a row ({ds.features[name]}), as multi-label data has; a log is of "
            "hard labels, one class a row"
        )
    if stored and pa.types.is_floating(column.type):
        raise TypeError(f"column {name!r} holds {column.type}; a log is of hard labels, given as integers")
    if width == 1:
        raise ValueError(
            "the model has one output (num_labels=1), which is regression; a log is of classes: give it num_labels=2 "
            "or more"
        )
    if not pa.types.is_integer(column.type):
        return
    values, null = numbers(column, name)
    for wrong, words, remedy in (
        (null | (values < 0), "rows without a class (null or negative: -1 and -100 mean none)", "drop such rows first"),
        (values >= (width or np.inf), f"labels that are not in 0..{width - 1}",
         f"give the model num_labels={int(values.max(initial=0)) + 1}, or drop such rows"),
    ):  # fmt: skip
        at = np.flatnonzero(wrong)
        if len(at):
            shown = column_array(ds, trainer.id_column).take(pa.array(at[:5])).to_pylist()
            labels = column.take(pa.array(at[:5])).to_pylist()
            raise ValueError(f"column {name!r} has {len(at)} {words}: {labels} of {shown}; {remedy}")


def stored_labels(trainer: Any) -> np.ndarray | None:
    """The classes (n,) in the dataset's column of labels; None of a language model, or without such a column."""
    ds = trainer.train_dataset
    names = [n for n in ("label", *(trainer.label_names or ()), "labels") if n in ds.column_names]
    column = column_array(ds, names[0]) if names and not trainer._shifts() else None
    if column is None or column.null_count or not pa.types.is_integer(column.type):
        return None
    values: np.ndarray = column.to_numpy()
    return values


def labels_of(inputs: Mapping[str, Any], names: Any) -> torch.Tensor:
    """The labels in a batch."""
    name = next((n for n in (*(names or ()), "labels", "label") if inputs.get(n) is not None), None)
    if name is None:
        raise ValueError(f"the batch has no labels, only {sorted(inputs)}; a log is of rows with labels")
    labels: torch.Tensor = inputs[name]
    return labels


def logits_of(outputs: Any) -> torch.Tensor:
    """The logits in what a model gives while it trains."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if logits is None and isinstance(outputs, tuple):
        logits = next((x for x in outputs if isinstance(x, torch.Tensor) and x.ndim > 1), None)
    if not isinstance(logits, torch.Tensor):
        raise ValueError(
            f"the model gives no logits while it trains (a {type(outputs).__name__}); turn fused losses off "
            "(use_liger_kernel=False), or record with a model that returns them"
        )
    return logits
