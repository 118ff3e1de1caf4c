"""Networks and preprocessing that tests name as `embed_modules:...`; workers import them by that name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def letters(texts: list[str]) -> torch.Tensor:
    """(n, 26) counts of letters."""
    counts = np.array([[t.count(chr(97 + i)) for i in range(26)] for t in texts], np.float32)
    return torch.from_numpy(counts)


def pixels(images: list[Any]) -> torch.Tensor:
    """(n, 3, 8, 8) from 0 to 1."""
    return torch.stack(
        [torch.from_numpy(np.asarray(i.resize((8, 8)), np.float32) / 255).permute(2, 0, 1) for i in images]
    )


def linear() -> torch.nn.Module:
    """The same weights at each call."""
    torch.manual_seed(7)
    return torch.nn.Linear(26, 5)


def unsteady() -> torch.nn.Module:
    """Other weights at each call."""
    return torch.nn.Linear(26, 5)


def conv() -> torch.nn.Module:
    """A map of features, to be averaged over places."""
    torch.manual_seed(8)
    return torch.nn.Conv2d(3, 6, 3)


def no_module() -> int:
    """No network."""
    return 3
