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
import pyarrow as pa

from hf_prune.data.batch import Batch
from hf_prune.data.texts import read_column
from hf_prune.models import Model, cached, device_for
from hf_prune.networks.plan import config_of, read_json

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

NULL = "is null"


def has_image_processor(folder: Path) -> bool:
    """Whether the folder can read pictures."""
    together = folder / "processor_config.json"
    return (folder / "preprocessor_config.json").exists() or ("image_processor" in read_json(together))


def read_pictures(batch: Batch, path: str) -> list[Any]:
    """A column of pictures (or a field, `column.field`) row by row, as `decode_image` takes them."""
    if path in batch:
        return batch.pictures(path)
    values = read_column(batch, path)
    return values.to_pylist() if isinstance(values, pa.Array) else list(values)


def decode_image(value: Any) -> Image:
    """Open one picture as RGB: the only way in which this package does.

    Stored bytes, a path, a PIL image, or pixels: an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of bytes or of
    uint16, or a torch tensor of the like with the channels first, as `with_format("torch")` gives it. Turned upright
    where its EXIF data says so, as `datasets` does. Of 16 bits a channel the upper 8 are read, as PIL does where there
    are three channels; an alpha channel is left out.

    Raises:
        ValueError: the picture is damaged, or no picture at all; numbers without a range that is known (32-bit integers
            beyond 255, floats).
    """
    return upright(value).convert("RGB")


def upright(value: Any) -> Image:
    """As `decode_image`, with the alpha channel if there is one: mode L, LA, RGB or RGBA of 8 bits a channel."""
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
        turned = image.getexif().get(PIL.ExifTags.Base.Orientation) is not None
        image = _bytes_a_pixel(image)
        return PIL.ImageOps.exif_transpose(image) if turned else image
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

        from hf_prune.networks.torch_passes import forward

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

        from hf_prune.networks.torch_passes import count_flops

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
        from hf_prune.networks.torch_passes import first_tensor, flat

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
    from hf_prune.networks import torch_passes

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
    """Groups of images of one shape, stacked, in the order of their first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, item in enumerate(pixels):
        groups.setdefault(item.shape, []).append(place)
    return [np.array(places) for places in groups.values()]


def _bytes_a_pixel(image: Image) -> Image:
    """The picture in a mode of 8 bits a channel: L, LA, RGB or RGBA.

    Raises:
        ValueError: its numbers have no range that is known.
    """
    import PIL.Image

    mode = image.mode
    if mode.startswith("I;16"):
        return PIL.Image.fromarray(_upper(np.asarray(image)))
    if mode == "I":
        array = np.asarray(image)
        if image.format in ("PNG", "PPM"):  # PIL opens 16 bits so
            return PIL.Image.fromarray(_upper(array))
        if array.min(initial=0) < 0 or array.max(initial=0) > 255:
            raise ValueError("whole numbers of 32 bits a pixel, not from 0 to 255: save it with 8 or 16 bits")
        return PIL.Image.fromarray(array.astype(np.uint8))
    if mode == "F":
        raise ValueError("floats, which have no range that is known: save it with 8 or 16 bits")
    if mode == "PA" or (mode == "P" and "transparency" in image.info):  # PIL warns about the direct way
        return image.convert("RGBA")
    return image if mode in ("L", "LA", "RGB", "RGBA") else image.convert("RGB")


def _pixels(value: Any) -> np.ndarray:
    channels_first = hasattr(value, "detach")
    array = value.detach().cpu().numpy() if channels_first else np.asarray(value)
    if channels_first and array.ndim == 3 and array.shape[0] in (1, 2, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise ValueError(f"an array of shape {array.shape}, not (height, width, 3)")
    if array.dtype == bool:
        array = array * np.uint8(255)
    if array.dtype == np.uint16:
        if 0 < array.max(initial=0) <= 255:
            raise ValueError("an array of uint16 with no number above 255: is it 8 bits or 16? give uint8, or the file")
        array = _upper(array)
    if array.dtype != np.uint8:
        if array.dtype.kind not in "iu" or array.min(initial=0) < 0 or array.max(initial=0) > 255:
            raise ValueError(f"an array of {array.dtype}, not of whole numbers from 0 to 255")
        array = array.astype(np.uint8)
    array = np.ascontiguousarray(array)
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _upper(array: np.ndarray) -> np.ndarray:
    """The upper byte of 16 bits: right for numbers that were made of bytes by times 256 or by times 257."""
    return (array >> 8).astype(np.uint8)


def _remote(path: str) -> bytes:
    """A path inside an archive or on the web (`zip://a.png::b.zip`), as `datasets` reads it."""
    from datasets.download.streaming_download_manager import xopen

    with xopen(path, "rb") as stream:
        return bytes(stream.read())
