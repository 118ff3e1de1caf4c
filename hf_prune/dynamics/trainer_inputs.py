"""What a `RecordingTrainer` is given: refused where no log can be made of it; its labels and logits found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hf_prune.checks import MissingColumnError, warn
from hf_prune.data.arrow import column_array, numbers
from hf_prune.data.labels import check_class_names, model_classes

LOOKED_AT = 100  # rows looked at
SHORTEST_PACK = 64  # tokens: shorter rows of one length are as likely prompts


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
        if trainer.row_id not in rows.column_names:
            lost = "packing=True joined the documents and dropped their ids; " if _packs(trainer) else ""
            raise MissingColumnError(
                f"{lost}no column {trainer.row_id!r} in the dataset; its columns are {rows.column_names}: add ids with "
                "with_row_id(ds), or name yours as row_id"
            )
    if trainer.clean_dataset is not None:
        ids = [column_array(rows, trainer.row_id).to_pylist() for rows in (ds, trainer.clean_dataset)]
        if ids[0] != ids[1]:
            raise ValueError("clean_dataset has other ids than train_dataset, or another order; give the same rows")
    if trainer.args.dataloader_drop_last:
        raise ValueError("dataloader_drop_last=True leaves rows out of each epoch; set it to False to record all")
    if {"label", "labels"} <= set(ds.column_names) and _is_classifier(trainer.model):
        warn(
            "the dataset has columns 'label' and 'labels', and the collators of transformers train on 'label'; rename "
            "or drop the one that is not meant"
        )
    _check_labels(trainer, ds)
    _check_packing(trainer, ds)


def _packs(trainer: Any) -> bool:
    """Whether the settings of TRL ask for packed rows."""
    return bool(getattr(trainer.args, "packing", False))


def _check_packing(trainer: Any, ds: Any) -> None:
    """Refuse collators that join the rows of a batch, and warn of rows that look packed.

    Raises:
        ValueError: a padding-free collator.
    """
    collator = trainer.data_collator
    if type(collator).__name__ == "DataCollatorWithFlattening" or getattr(collator, "padding_free", False):
        raise ValueError(
            f"{type(collator).__name__} joins the rows of a batch to one (padding-free), so that no row has logits of "
            "its own; record with a collator that pads (padding_free=False)"
        )
    why = "packing=True" if _packs(trainer) else _looks_packed(ds) if trainer._shifts() else ""
    if why:
        warn(
            f"the rows look packed ({why}): scores will be those of packed sequences, not of documents; to score "
            "documents, record a run in which each is a row"
        )


def _looks_packed(ds: Any) -> str:
    """Why the first rows look like several documents each; empty if they do not."""
    if ds.format["type"] == "custom":  # a transform makes the rows
        return ""
    if "seq_lengths" in ds.column_names:
        return "column 'seq_lengths'"
    first = ds.with_format(None).select(range(min(len(ds), LOOKED_AT)))
    if "position_ids" in ds.column_names and any(0 in row[1:] for row in first["position_ids"]):
        return "column 'position_ids' begins anew within a row"
    if "input_ids" not in ds.column_names or len(first) < 8:
        return ""
    lengths = {len(row) for row in first["input_ids"]}
    padded = "attention_mask" in ds.column_names and any(0 in row for row in first["attention_mask"])
    if len(lengths) == 1 and min(lengths) >= SHORTEST_PACK and not padded:
        return f"all are {min(lengths)} tokens long, without padding"
    return ""


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
    name = label_column(ds)
    if name is None or not _is_classifier(trainer.model):
        return
    check_class_names(class_names(ds), model_classes(config), name, f"the model {type(trainer.model).__name__}")
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
            shown = column_array(ds, trainer.row_id).take(pa.array(at[:5])).to_pylist()
            labels = column.take(pa.array(at[:5])).to_pylist()
            raise ValueError(f"column {name!r} has {len(at)} {words}: {labels} of {shown}; {remedy}")


def label_column(ds: Any) -> str | None:
    """The column of labels that the collators of transformers read."""
    return next((n for n in ("label", "labels") if n in ds.column_names), None)


def class_names(ds: Any) -> list[str] | None:
    """Names of the classes, where the column of labels has them."""
    names = getattr(ds.features.get(label_column(ds)), "names", None)
    return [str(name) for name in names] if names else None


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
