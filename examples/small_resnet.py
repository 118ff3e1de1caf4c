"""A residual network for small pictures that a CPU trains in minutes, and what turns pictures into its input."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn


class Block(nn.Module):
    """Two convolutions with batch norm, and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = stride == 1 and before == after
        self.around = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.around(x))


def small_resnet(classes: int, width: int = 16) -> nn.Module:
    """ResNet-8: 3 stages of one block, 78 000 parameters at width 16 and 10 classes."""
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    stages = [Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)]
    return nn.Sequential(*stem, *stages, *head).to(memory_format=torch.channels_last)


def to_input(pictures: list[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as (n, 3, h, w) from -1 to 1, as `train_with_log` reads them."""
    pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
