"""What coefficients look like."""

from __future__ import annotations

import numpy as np

from hf_prune.diversity.results import Coefficient, combine


def coefficient(value: float, **more: object) -> Coefficient:
    options = {"noise_floor": 0.0125, "error": 0.02, "distances": np.zeros((8, 8)), "batches": 8, "batch_rows": 64}
    return Coefficient(value, (value - 0.05, value + 0.05), **options | more)


def test_one_line_each():
    alignment, diversity = coefficient(0.75, sign=-1, fisher="exact"), coefficient(0.25, noise_floor=None)
    assert str(alignment) == "0.7500 [0.7000, 0.8000], noise floor 0.0125; exact Fisher of 8 batches of 64 rows"
    assert str(diversity) == "0.2500 [0.2000, 0.3000]; 8 batches of 64 rows"
    quality = combine(alignment, diversity, 0.5)
    text = "alignment 0.7500 [0.7000, 0.8000], diversity 0.2500 [0.2000, 0.3000]; 8 batches of 64 rows"
    assert str(quality) == f"0.5000 [0.5000, 0.5000]: {text}"
    assert [repr(x) for x in (alignment, diversity, quality)] == [str(x) for x in (alignment, diversity, quality)]
