"""Rows of a dataset as a training loop takes them: batches of inputs and labels, each process its share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_prune.checks import check_column, check_dataset
from hf_prune.data import arrow
from hf_prune.data.formats import unformatted
from hf_prune.data.labels import check_class_names, model_classes

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

Inputs: TypeAlias = str | Callable[[dict[str, Any]], Any]


class Feed:
    """Batches of inputs, labels and rows of a log; what a worker of a `DataLoader` gets.

    Args:
        ds: dataset of n rows.
        inputs: column of images or numbers, or a function of the dict of a batch's columns.
        label: column of integer classes.
        rows: rows of the log, (n,); None where there is none.
        who: public function that reads, for messages.
        row_id: column of ids; None where there is none.

    Raises:
        MissingColumnError: no such column.
        TypeError: labels that are no classes, or no dataset.
        ValueError: no rows, or rows without a class.
    """

    def __init__(
        self,
        ds: Dataset,
        *,
        inputs: Inputs,
        label: str,
        who: str,
        row_id: str | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        check_dataset(ds, who)
        self.ds, self.label, self.row_id = ds, label, row_id or ""
        self.labels = _labels(ds, label, who, row_id)
        self.make = inputs if callable(inputs) else Columns(ds, inputs, who)
        self.shown = self.make.read(ds) if isinstance(self.make, Columns) else ds
        self.rows = np.arange(len(ds)) if rows is None else rows
        self._fits = False  # whether the model was seen to fit the labels

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, where the column of labels has them."""
        names = getattr(self.ds.features[self.label], "names", None)
        return [str(name) for name in names] if names else None

    def __len__(self) -> int:
        return len(self.ds)

    def __getitem__(self, share: tuple[NDArray[np.int64], int]) -> tuple[Any, Any, Any, int]:
        import torch

        where, whole = share
        some = where if len(where) else np.zeros(1, np.int64)  # for the collectives of an empty share
        x = self.make(self.shown[some])
        return x, torch.from_numpy(self.labels[some]), torch.from_numpy(self.rows[where]), whole

    def shares(self, batches: list[NDArray[np.int64]], world: Any, workers: int) -> Iterator[Any]:
        """(inputs, labels, rows of the log, rows of the global batch) of this process, for each global batch."""
        import torch

        mine = [(batch[world.index :: world.size], len(batch)) for batch in batches]
        options: dict[str, Any] = {"sampler": mine, "batch_size": None, "collate_fn": _as_it_is}
        options["generator"] = torch.Generator()  # a loader without one draws from that of the training
        options["pin_memory"] = torch.cuda.is_available()
        yield from torch.utils.data.DataLoader(self, num_workers=workers, **options)  # type: ignore[arg-type]

    def in_order(self, batch_size: int) -> list[NDArray[np.int64]]:
        """Global batches of all rows, in their order."""
        return [np.arange(i, min(i + batch_size, len(self))) for i in range(0, len(self), batch_size)]

    def logits(self, model: Any, x: Any) -> torch.Tensor:
        """Logits (b, C) of a batch.

        Raises:
            ValueError: they have another shape or too few classes, or the network does not take these inputs.
        """
        try:
            out = model(**x) if isinstance(x, Mapping) else model(x)
        except RuntimeError as error:
            shape = any(words in str(error) for words in ("channels", "cannot be multiplied"))
            if not shape or getattr(x, "ndim", 0) != 4 or not isinstance(self.make, Columns):
                raise
            raise ValueError(
                "the network does not take images as they are fed, (b, 3, h, w) from -1 to 1, here "
                f"{tuple(x.shape)}: {str(error).splitlines()[0]}. Give a function of a batch's columns as inputs= that "
                "makes what it wants; for one channel: lambda batch: torch.stack([pil_to_tensor(image.convert('L')) "
                f"for image in batch[{self.make.column!r}]]) / 255"
            ) from error
        logits: torch.Tensor = getattr(out, "logits", out)
        if not self._fits:
            _check_width(self.labels, logits, self.label)
            self._fits = True
        return logits

    def check_names(self, model: Any, who: str) -> None:
        """Compare the names of the dataset's classes with those in the configuration of the model, if it has one."""
        check_class_names(self.class_names, model_classes(getattr(model, "config", None)), self.label, who)


def to_device(x: Any, device: Any) -> Any:
    """Inputs on a device: a tensor, or a mapping of tensors."""
    if isinstance(x, Mapping):
        return {name: to_device(value, device) for name, value in x.items()}
    return x.to(device, non_blocking=True)


def crop_and_flip(x: torch.Tensor, generator: torch.Generator, pad: int = 4) -> torch.Tensor:
    """Augment images: a crop of the reflected image, moved by up to `pad` pixels, and a flip for half of them.

    Args:
        x: images (b, c, h, w).
        generator: source of the random numbers, on the device of the images.
        pad: largest number of pixels by which an image is moved.

    Returns:
        Images of the same shape.

    >>> import torch
    >>> crop_and_flip(torch.zeros(2, 3, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """
    import torch

    b, _, h, w = x.shape
    padded = torch.nn.functional.pad(x, (pad,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * pad + 1, (2, b, 1), generator=generator, device=x.device)
    flip = torch.rand(b, 1, generator=generator, device=x.device) < 0.5
    down = top + torch.arange(h, device=x.device)
    across = torch.arange(w, device=x.device).expand(b, w)
    across = left + torch.where(flip, w - 1 - across, across)
    row = torch.arange(b, device=x.device)[:, None, None]
    return padded[row, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _as_it_is(item: Any) -> Any:
    return item


class Columns:
    """A column of images or numbers as tensors; a class, for workers that are spawned."""

    def __init__(self, ds: Any, column: str, who: str) -> None:
        check_column(ds, column, who)
        self.column = column

    def read(self, ds: Any) -> Any:
        """The column as it is read, whatever the format; a transform of the user's own is kept."""
        shown = unformatted(ds)
        return shown.select_columns([self.column]) if shown.format["type"] is None else shown

    def __call__(self, batch: dict[str, Any]) -> Any:
        import torch

        from hf_prune.networks.image import decode_image

        values = batch[self.column]
        if isinstance(values, torch.Tensor):
            return values
        if any(value is None for value in values):
            raise ValueError(f"column {self.column!r} has null rows, which are no input; drop them first")
        if hasattr(values[0], "convert"):
            values = [decode_image(image) for image in values]
            sizes = {image.size for image in values}
            if len(sizes) > 1:
                raise ValueError(
                    f"column {self.column!r} has images of sizes {sorted(sizes)[:5]} in one batch; give a function as "
                    "inputs= that makes them one size"
                )
            pixels = np.stack([np.asarray(image) for image in values])
            return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        try:
            numbers = np.asarray(values)
        except ValueError as error:  # NumPy makes no array of rows of unequal lengths
            raise ValueError(
                f"column {self.column!r} has rows of unequal lengths in one batch; give a function as inputs= that "
                "makes them one size"
            ) from error
        if numbers.dtype.kind not in "biuf":  # strings would be read as numbers, and nulls as NaN
            raise TypeError(
                f"column {self.column!r} holds something else than numbers (texts, nulls within rows); name a column "
                "of images or numbers, or give a function of the batch as inputs="
            )
        return torch.from_numpy(numbers.astype(np.float32, copy=False))


def _labels(ds: Any, label: str, who: str, row_id: str | None) -> NDArray[np.int64]:
    if not len(ds):
        raise ValueError("the dataset has no rows; there is nothing to read")
    for column in (label, *([row_id] if row_id else [])):
        check_column(ds, column, who)
    if pa.types.is_nested(ds.data.schema.field(label).type):
        raise TypeError(
            f"column {label!r} holds several values a row ({ds.features[label]}), as multi-label data has; a log is of "
            "hard labels, one class a row"
        )
    values, null = arrow.numeric_column(ds, label)
    if values.dtype.kind not in "iu":
        raise TypeError(
            f"column {label!r} holds {values.dtype}, not classes; a log is of hard labels, given as integers"
        )
    wrong = np.flatnonzero(null | (values < 0))
    if len(wrong):
        first = ds.with_format(None).select_columns([label, *([row_id] if row_id else [])])[int(wrong[0])]
        which = f"{row_id} {first[row_id]!r}" if row_id else f"row {int(wrong[0])}"
        raise ValueError(
            f"column {label!r} has {len(wrong)} rows without a class (null or negative), first {which}: "
            f"{first[label]}; drop such rows first"
        )
    return values.astype(np.int64)


def _check_width(labels: NDArray[np.int64], logits: Any, label: str) -> None:
    if logits.ndim != 2:
        raise ValueError(f"the model gives logits of shape {tuple(logits.shape)}; this is for classes: (b, C)")
    if labels.max() >= logits.shape[1]:
        outside = int((labels >= logits.shape[1]).sum())
        raise ValueError(
            f"column {label!r} has {outside} labels that are not in 0..{logits.shape[1] - 1}, up to {labels.max()}; "
            f"give the network {labels.max() + 1} outputs, or drop such rows"
        )
