"""Pictures to vectors: decoding of what is stored, and the encoders for folders and for networks of your own."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_prune._embed.plan import config_of, read_json
from hf_prune.models import Model, cached, device_for

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

NULL = "is null"


def has_image_processor(folder: Path) -> bool:
    """Whether the folder can read pictures."""
    together = folder / "processor_config.json"
    return (folder / "preprocessor_config.json").exists() or ("image_processor" in read_json(together))


def decode_image(value: Any) -> Image:
    """Open one picture as RGB: stored bytes, a path, a PIL image, or an array of (h, w) or (h, w, 3) bytes.

    Turned upright where its EXIF data says so, as `datasets` does.

    Raises:
        ValueError: the picture is damaged, or no picture at all.
    """
    import PIL.ExifTags
    import PIL.Image
    import PIL.ImageOps

    image: Image
    try:
        if isinstance(value, Mapping):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, (str, os.PathLike)):
            value = Path(value).read_bytes() if os.path.exists(value) else _remote(str(value))
        if isinstance(value, (bytes, bytearray, memoryview)):
            image = PIL.Image.open(io.BytesIO(value))
            image.load()
        elif isinstance(value, PIL.Image.Image):
            image = value
        else:
            image = PIL.Image.fromarray(_pixels(value))
        if image.getexif().get(PIL.ExifTags.Base.Orientation) is not None:
            image = PIL.ImageOps.exif_transpose(image)
        if image.mode == "P" and "transparency" in image.info:  # PIL warns about the direct way
            image = image.convert("RGBA")
        return image.convert("RGB")
    except Exception as error:  # PIL raises SyntaxError, OSError, struct.error and its own
        reason = str(error).split(" <_io.BytesIO")[0] or type(error).__name__
        raise ValueError(f"is no readable picture ({reason})") from error


class ImageEncoder:
    """An image model of transformers: its image processor, its network, and a pooled output."""

    head = "AutoModel"  # class of transformers that loads it

    def __init__(
        self, model: Model, pooling: str, normalize: bool | None, rank: int | None = None, budget: int | None = None
    ) -> None:
        self.model, self.pooling, self.normalize, self.rank, self.budget = model, pooling, normalize, rank, budget

    @property
    def width(self) -> int:
        """Numbers a row, found by running the network's code without weights."""
        return image_plan(self.model, self.pooling)[0]

    @property
    def mode(self) -> str:
        """How the network's output is pooled."""
        return image_plan(self.model, self.pooling)[1]

    def encode(self, values: list[Any], bad: dict[int, str]) -> np.ndarray:
        """Give (n, width) float32; rows that are no pictures are left NaN and put in `bad`."""
        import torch

        from hf_prune._embed.torch_passes import forward

        device = device_for(self.rank)
        network = self.model.load(self.rank)
        dtype = getattr(torch, self.model.dtype)
        out = np.full((len(values), self.width), np.nan, np.float32)
        for rows, pixels in self.prepared(values, bad, self.budget or (16 if device.type == "cpu" else 128)):
            for group in same_shape(pixels):

                def run(places: np.ndarray, pixels: list[np.ndarray] = pixels) -> torch.Tensor:
                    block = torch.from_numpy(np.stack([pixels[p] for p in places])).to(device, dtype)
                    return self._vectors(network, block)

                out[rows[group]] = forward(run, group)
        return out

    def flops(self, values: list[Any]) -> float:
        """What `encode` costs: counted on the first readable picture, times the number of pictures."""
        import torch

        from hf_prune._embed.torch_passes import count_flops

        network = without_weights(self.model, self.head)
        for value in values:
            try:
                pixels = self._pixels([decode_image(value)])[0]
            except ValueError:
                continue
            block = torch.empty((1, *pixels.shape), device="meta")
            run = partial(self._vectors, network, block) if self.head == "AutoModel" else partial(network, block)
            key = ("flops", self.model.digest, self.head, pixels.shape)
            return len(values) * cached(key, partial(count_flops, run), light=True)
        return 0.0

    def prepared(
        self, values: list[Any], bad: dict[int, str], size: int
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Decode and resize the next few pictures in threads while the network is busy with these."""

        def prepare(start: int) -> tuple[np.ndarray, list[np.ndarray]]:
            images, rows = [], []
            for row in range(start, min(start + size, len(values))):
                if values[row] is None:
                    bad[row] = NULL
                    continue
                try:
                    images.append(decode_image(values[row]))
                    rows.append(row)
                except ValueError as error:
                    bad[row] = str(error)
            return np.array(rows, np.int64), self._pixels(images) if images else []

        ahead = min(4, max(1, (os.cpu_count() or 1) // 2))
        starts = iter(range(0, len(values), size))
        with ThreadPoolExecutor(ahead) as threads:
            waiting: list[Future[tuple[np.ndarray, list[np.ndarray]]]] = []
            for start in starts:
                waiting.append(threads.submit(prepare, start))
                if len(waiting) > ahead:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

    def _pixels(self, images: list[Any]) -> list[np.ndarray]:
        found = self.model.processor("AutoImageProcessor")(images=images, return_tensors=None)["pixel_values"]
        return [np.asarray(p) for p in found]

    def _vectors(self, network: Any, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        vectors, _ = self._pooled(network, pixels)
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def _pooled(self, network: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, str]:
        """Vectors, and how they were pooled."""
        from hf_prune._embed.torch_passes import first_tensor, flat

        if hasattr(network, "get_image_features") and self.pooling == "auto":
            output = network.get_image_features(pixel_values=pixels)
            return first_tensor(output, "pooler_output").float(), "projection"
        output = network(pixel_values=pixels)
        pooler = output.get("pooler_output") if hasattr(output, "get") else None
        trained = pooler is not None and not network.has_random_pooler
        if self.pooling == "pooler" and not trained:
            raise ValueError(f"{self.model.label} has no trained pooler; use pooling='mean' or 'cls'")
        if self.pooling in ("auto", "pooler") and trained and pooler is not None:
            return pooler.float().flatten(1), "pooler"
        states = first_tensor(output, "last_hidden_state")
        mode = "mean" if states.ndim == 4 else "cls" if self.pooling == "auto" else self.pooling
        return flat(states, mode), mode


def image_plan(model: Model, pooling: str) -> tuple[int, str]:
    """Numbers that the network gives a picture, and their pooling, once per process."""

    def probe() -> tuple[int, str]:
        import PIL.Image
        import torch

        encoder = ImageEncoder(model, pooling, None)
        network = without_weights(model)
        pixels = encoder._pixels([PIL.Image.new("RGB", (64, 64))])[0]
        with torch.inference_mode():
            vectors, mode = encoder._pooled(network, torch.empty((1, *pixels.shape), device="meta"))
        return int(vectors.shape[1]), mode

    return cached(("image plan", model.digest, pooling), probe, light=True)


def without_weights(model: Model, head: str = "AutoModel") -> Any:
    """The network's code on torch's meta device: shapes and operations, no memory."""
    from hf_prune._embed import torch_passes

    if not has_image_processor(model.folder()):
        raise ValueError(
            f"{model.label} has no image processor (preprocessor_config.json): it is no image model; name one, or a "
            "text column"
        )

    def build() -> Any:
        network = torch_passes.without_weights(config_of(model), model.trust_remote_code, head)
        needed = any("pooler" in name.split(".") for name, _ in network.named_parameters())
        network.has_random_pooler = needed and not _has_pooler(model.folder())
        return network

    return cached(("meta", model.digest, head), build, light=True)


def _has_pooler(folder: Path) -> bool:
    """Whether one of the weight files holds a pooler."""
    from safetensors import safe_open

    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as weights:
            if any("pooler" in name.split(".") for name in weights.keys()):  # noqa: SIM118
                return True
    return False


def same_shape(pixels: list[np.ndarray]) -> list[np.ndarray]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, item in enumerate(pixels):
        groups.setdefault(item.shape, []).append(place)
    return [np.array(places) for places in groups.values()]


def _pixels(value: Any) -> np.ndarray:
    array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"an array of shape {array.shape}, not (height, width, 3)")
    if array.dtype != np.uint8:
        if array.dtype.kind not in "iu" or array.min(initial=0) < 0 or array.max(initial=0) > 255:
            raise ValueError(f"an array of {array.dtype}, not of whole numbers from 0 to 255")
        array = array.astype(np.uint8)
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _remote(path: str) -> bytes:
    """A path inside an archive or on the web (`zip://a.png::b.zip`), as `datasets` reads it."""
    from datasets.download.streaming_download_manager import xopen

    with xopen(path, "rb") as stream:
        return bytes(stream.read())
