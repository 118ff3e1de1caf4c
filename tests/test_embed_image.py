"""Pictures: against one at a time through transformers, in every form that datasets hold them."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from tiny_models import save_image_processor

from hf_prune import Embedder, vendi_score
from hf_prune.diversity.kernels import pixel_rows
from hf_prune.networks.image import decode_image, upright
from hf_prune.share.report import picture_uri


def pictures(n: int = 5, mode: str = "RGB") -> list[PIL.Image.Image]:
    rng = np.random.default_rng(0)
    return [PIL.Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), np.uint8)).convert(mode) for i in range(n)]


def png(image: PIL.Image.Image, **save: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **save)
    return stream.getvalue()


def plain_loop(folder: Path, images: list[PIL.Image.Image]) -> np.ndarray:
    from transformers import AutoImageProcessor, AutoModel

    processor, network = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    with torch.no_grad():
        for image in images:
            pixels = processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"]
            rows.append(network(pixel_values=pixels).pooler_output.flatten().numpy())
    return np.stack(rows)


def test_every_form_gives_the_same(tiny_resnet_folder: Path, tmp_path: Path) -> None:
    images = pictures()
    expected = plain_loop(tiny_resnet_folder, images)
    embedder = Embedder(tiny_resnet_folder, "image", micro_batch=2)
    assert embedder.columns() == {"embedding": "float32[16]"}
    paths = []
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    forms = {
        "pil": images,
        "bytes": [png(i) for i in images],
        "dict": [{"bytes": png(i), "path": None} for i in images],
        "names": paths,
        "path": [{"bytes": None, "path": p} for p in paths],
        "array": [np.asarray(i) for i in images],
        "lists": [np.asarray(i).tolist() for i in images],
    }
    for form, column in forms.items():
        found = embedder({"image": column})["embedding"]
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=form)
    alone = np.concatenate([embedder({"image": [i]})["embedding"] for i in images])
    np.testing.assert_allclose(alone, expected, atol=1e-5)


def test_map_reads_stored_bytes(tiny_resnet_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures()
    ds = Dataset.from_dict({"image": images, "n": [1, 2, 3, 4, 5]}, Features({"image": Image(), "n": Value("int64")}))
    embedder = Embedder(tiny_resnet_folder, "image")
    expected = plain_loop(tiny_resnet_folder, images)
    streamed = list(ds.to_iterable_dataset().map(embedder, batched=True, batch_size=2))
    np.testing.assert_allclose([row["embedding"] for row in streamed], expected, atol=1e-5)
    monkeypatch.setattr(Image, "decode_example", None)  # datasets must not decode: we read what is stored
    out = ds.map(embedder, batched=True, batch_size=2, features=embedder.features(ds))
    assert out.features["embedding"] == List(Value("float32"), length=16)
    np.testing.assert_allclose(out["embedding"], expected, atol=1e-5)


def test_modes_and_orientation() -> None:
    image = pictures(1)[0]
    for mode in ("L", "RGBA", "P", "CMYK", "LA", "1"):
        assert decode_image(image.convert(mode)).mode == "RGB"
    palette = image.convert("P")
    assert decode_image(png(palette, transparency=b"\x00" * 9)).mode == "RGB"  # PIL would warn
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    stored = png(image, exif=exif)
    ours = decode_image(stored)
    theirs = Image().decode_example({"bytes": stored, "path": None})
    assert ours.size == (image.height, image.width)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs.convert("RGB")))


def test_sixteen_bits_are_read_by_their_upper_byte(tmp_path: Path) -> None:
    """Whatever the file, the mode and the way in, 16 bits give the picture that 8 bits give."""
    eight = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)
    sixteen = eight.astype(np.uint16) * 257 + np.arange(8, dtype=np.uint16)
    expected = np.repeat(eight[:, :, None], 3, 2)
    gray = PIL.Image.fromarray(sixteen)
    assert gray.mode == "I;16"
    pgm = b"P5 8 6 65535\n" + sixteen.astype(">u2").tobytes()
    big = PIL.Image.frombytes("I;16B", (8, 6), sixteen.astype(">u2").tobytes())
    tiff = io.BytesIO()
    big.save(tiff, "TIFF")
    file = tmp_path / "a.png"
    file.write_bytes(png(gray))
    colour = _png_of_rgb16(np.repeat(sixteen[:, :, None], 3, 2))
    tensor = torch.from_numpy(sixteen.astype(np.int32)).to(torch.uint16)
    for way in (gray, png(gray), {"bytes": png(gray), "path": None}, str(file), pgm, big, tiff.getvalue(), colour,
                sixteen, sixteen[:, :, None], tensor, tensor[None]):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(decode_image(way)), expected)
    pixels = vendi_score(
        Dataset.from_dict({"image": [png(gray), png(gray.rotate(180))]}, Features({"image": Image()})), kernel="pixel"
    )
    small = PIL.Image.fromarray(eight)
    same = [png(small), png(small.rotate(180))]
    assert pixels == vendi_score(Dataset.from_dict({"image": same}, Features({"image": Image()})), kernel="pixel")
    assert picture_uri({"bytes": png(gray)}) == picture_uri({"bytes": png(small.convert("RGB"))})


def _png_of_rgb16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which PIL cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_numbers_without_a_range_are_refused(tiny_resnet_folder: Path) -> None:
    tiff = io.BytesIO()
    PIL.Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tiff, "TIFF")
    for bad, message in (
        (PIL.Image.fromarray(np.full((4, 4), 0.5, np.float32)), "floats, which have no range"),
        (tiff.getvalue(), "floats, which have no range"),
        (PIL.Image.fromarray(np.full((4, 4), 300, np.int32)), "whole numbers of 32 bits"),
        (PIL.Image.fromarray(np.full((4, 4), -1, np.int32)), "whole numbers of 32 bits"),
        (np.full((4, 4), 200, np.uint16), "is it 8 bits or 16"),
    ):
        for read in (Embedder(tiny_resnet_folder, "image"), lambda b: pixel_rows(b["image"])):
            with pytest.raises(ValueError, match=rf"row 0 .*no readable picture \(.*{message}"):
                read({"image": [bad]})
    assert np.asarray(decode_image(PIL.Image.fromarray(np.full((4, 4), 200, np.int32)))).max() == 200
    assert np.asarray(decode_image(torch.ones(1, 4, 6, dtype=torch.bool))).shape == (4, 6, 3)
    with pytest.raises(ValueError, match="row 1 is null; kernel='pixel' compares images"):
        pixel_rows([np.zeros((2, 2), np.uint8), None])


def test_modes_with_alpha_and_palettes() -> None:
    """Colours are those that PIL shows, whatever the mode they are stored in."""
    image = pictures(1)[0].quantize(16)
    colours = np.asarray(image.convert("RGB"))
    seen = image.copy()
    seen.info["transparency"] = 3
    for stored in (png(image), png(image, transparency=3), seen, image.convert("PA"), image.convert("RGBA")):
        np.testing.assert_array_equal(np.asarray(decode_image(stored)), colours)
    gray = pictures(1)[0].convert("L")
    faint = gray.convert("LA")
    faint.putalpha(7)
    for stored in (gray, png(faint), faint):
        np.testing.assert_array_equal(np.asarray(decode_image(stored))[:, :, 0], np.asarray(gray))
    assert upright(png(faint)).mode == "LA" and upright(image.convert("RGBA")).mode == "RGBA"


def test_bad_pictures(tiny_resnet_folder: Path, tiny_bert_folder: Path) -> None:
    good = png(pictures(1)[0])
    embedder = Embedder(tiny_resnet_folder, "image")
    for bad, message in (
        (b"not a picture", r"row 1 of this batch is no readable picture \(cannot identify image file\)"),
        (good[: len(good) // 2], "row 1 of this batch is no readable picture"),
        (None, "row 1 of this batch is null"),
        ({"bytes": None, "path": None}, "row 1 of this batch is no readable picture"),
    ):
        with pytest.raises(ValueError, match=message):
            embedder({"image": [good, bad, good]})
        found = Embedder(tiny_resnet_folder, "image", on_bad="nan")({"image": [good, bad, good]})["embedding"]
        assert np.isnan(found).all(1).tolist() == [False, True, False]
        np.testing.assert_allclose(found[0], found[2])
    with pytest.raises(ValueError, match="an array of float64, not of whole numbers from 0 to 255"):
        embedder({"image": [np.ones((4, 4, 3))]})
    with pytest.raises(ValueError, match=r"shape \(3, 4, 9\), not \(height, width, 3\)"):
        embedder({"image": [np.ones((3, 4, 9), np.uint8)]})
    with pytest.raises(TypeError, match="holds texts, but .* embeds pictures"):
        embedder({"image": ["cat"]})
    with pytest.raises(ValueError, match="has no image processor .* it is no image model"):
        Embedder(tiny_bert_folder, "image", kind="image").columns()
    assert embedder({"image": []})["embedding"].shape == (0, 16)


def test_vit_without_its_pooler_gives_the_class_token(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    for name, network in (("head", ViTForImageClassification(config)), ("pooled", ViTModel(config))):
        network.save_pretrained(tmp_path / name)
        save_image_processor(tmp_path / name, 16)
    head, pooled = Embedder(tmp_path / "head", "image"), Embedder(tmp_path / "pooled", "image", dtype="float32")
    assert head.describe().params["pooling"] == "cls" and pooled.describe().params["pooling"] == "pooler"
    images = pictures(3)
    np.testing.assert_allclose(
        pooled({"image": images})["embedding"], plain_loop(tmp_path / "pooled", images), atol=1e-5
    )
    first = head({"image": images})["embedding"]
    assert first.shape == (3, 16) and not np.allclose(first[0], first[1])
    np.testing.assert_array_equal(
        first, Embedder(tmp_path / "head", "image", pooling="cls")({"image": images})["embedding"]
    )
    with pytest.raises(ValueError, match="has no trained pooler"):
        Embedder(tmp_path / "head", "image", pooling="pooler").columns()
    unit = Embedder(tmp_path / "head", "image", normalize=True)({"image": images})["embedding"]
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)


def test_clip_reads_both(tmp_path: Path, tiny_bert_folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 64, "max_position_embeddings": 20, "eos_token_id": 3},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    network = CLIPModel(config).eval()
    network.save_pretrained(tmp_path / "clip")
    save_image_processor(tmp_path / "clip", 16)
    for file in tiny_bert_folder.glob("token*"):
        shutil.copy(file, tmp_path / "clip")
    embedder = Embedder(tmp_path / "clip", "x")
    assert embedder.columns() == {"embedding": "float32[12]"}
    both = embedder({"x": pictures(2)})["embedding"], embedder({"x": ["the cat", "a dog on the mat"]})["embedding"]
    assert both[0].shape == both[1].shape == (2, 12)
    ids = torch.tensor([[2, *([7] * 3), 3]])
    assert np.isfinite(both[1]).all() and network.get_text_features(ids) is not None
    np.testing.assert_allclose(embedder({"x": ["the cat"]})["embedding"][0], both[1][0], atol=1e-6)


def test_flops(tiny_resnet_folder: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    embedder = Embedder(tiny_resnet_folder, "image")
    batch = {"image": pictures()}
    embedder(batch)
    counter = FlopCounterMode(display=False)
    with counter:
        embedder(batch)
    assert embedder.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_networks_of_ones_own() -> None:
    from embed_modules import conv, pixels

    images = pictures()
    embedder = Embedder(conv(), "image", preprocess="embed_modules:pixels", micro_batch=2)
    with torch.no_grad():
        expected = conv()(pixels(images)).mean((2, 3)).numpy()
    assert embedder.columns() == {"embedding": "float32[6]"}
    np.testing.assert_allclose(embedder({"image": images})["embedding"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="row 1 of this batch is no readable picture"):
        embedder({"image": [images[0], b"?"]})
