"""Score, prune and share datasets: data selection for Hugging Face `datasets`."""

from __future__ import annotations
