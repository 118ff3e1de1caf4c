"""Any `nn.Module` as an encoder: your preprocessing function, the network, and its output made flat."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_prune.models import Model, cached, device_for
from hf_prune.networks.image import NULL, decode_image

if TYPE_CHECKING:
    import torch

_NAMES = ("pooler_output", "embedding", "embeddings", "sentence_embedding", "last_hidden_state", "features", "logits")


class ModuleEncoder:
    """A factory or a live module. `preprocess` gets a list of texts or of RGB PIL images."""

    def __init__(
        self, model: Model, kind: str, pooling: str, normalize: bool | None, rank: int | None, budget: int | None
    ) -> None:
        self.model, self.kind, self.pooling, self.normalize = model, kind, pooling, normalize
        self.rank, self.budget = rank, budget

    @property
    def width(self) -> int:
        """Numbers a row, found with one made-up row."""

        def probe() -> int:
            import PIL.Image

            row = "text" if self.kind == "text" else PIL.Image.new("RGB", (64, 64))
            try:
                return int(self._vectors([row], "cpu").shape[1])
            except Exception as error:
                raise ValueError(
                    f"{self.model.label} cannot embed a trial row of kind {self.kind!r} ({error}); say kind='text' or "
                    "kind='image', and look at its preprocess function"
                ) from error

        return cached(("module width", self.model.digest, self.kind, self.pooling), probe, light=True)

    def encode(self, values: list[Any], bad: dict[int, str]) -> np.ndarray:
        """Give (n, width) float32; rows in `bad` are left NaN, and unreadable pictures are put there."""
        from hf_prune.networks.torch_passes import forward

        size = self.budget or (32 if device_for(self.rank).type == "cpu" else 128)
        out = np.full((len(values), self.width), np.nan, np.float32)
        for start in range(0, len(values), size):
            rows, items = [], []
            for row in range(start, min(start + size, len(values))):
                if row in bad:
                    continue
                try:
                    items.append(self._item(values[row]))
                    rows.append(row)
                except ValueError as error:
                    bad[row] = str(error)
            if items:
                out[rows] = forward(partial(self._chosen, items), np.arange(len(items)))
        return out

    def flops(self, values: list[Any]) -> float:
        """What `encode` costs: counted on the middle row by size, times the number of rows."""
        from hf_prune.networks.torch_passes import count_flops

        good = [v for v in values if v is not None]
        if self.kind == "text":
            good.sort(key=len)
        if not good:
            return 0.0
        item = self._item(good[len(good) // 2])
        return len(good) * count_flops(lambda: self._vectors([item]))

    def _item(self, value: Any) -> Any:
        if value is None:
            raise ValueError(NULL)
        return decode_image(value) if self.kind == "image" else value

    def _chosen(self, items: list[Any], places: np.ndarray) -> torch.Tensor:
        return self._vectors([items[place] for place in places])

    def _vectors(self, items: list[Any], where: str | None = None) -> torch.Tensor:
        import torch

        from hf_prune.networks.torch_passes import first_tensor, flat, moved

        device = device_for(self.rank) if where is None else torch.device(where)
        network, dtype = self.model.load(device=device), getattr(torch, self.model.dtype)
        inputs = moved(self.model.prepare()(items), device, dtype)
        with torch.inference_mode():
            if hasattr(inputs, "items"):
                output = network(**inputs)
                mask = inputs.get("attention_mask")
            else:
                output, mask = network(inputs), None
            vectors = flat(first_tensor(output, *_NAMES), self.pooling, mask)
            if len(vectors) != len(items):
                raise ValueError(f"{self.model.label} gave {len(vectors)} vectors for {len(items)} rows")
            return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors
