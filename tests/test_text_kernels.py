"""UTF-8 and mixing in kernels, by Python's own decoder and by integers."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.data import identity
from hf_prune.numerics.text_kernels import decode, decode_plain, mix, mix_plain

EDGES = [bytes.fromhex(raw) for raw in (
    "c1bf", "e09fbf", "ed9fbf", "eda080", "f08fbfbf", "f48fbfbf", "f4908080", "f5808080", "80", "efbfbd", "c2", "e282",
    "f09f98", "ff",
)]  # fmt: skip
RAW = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.text(min_size=1, max_size=4).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.sampled_from(EDGES),
)


@settings(deadline=None, max_examples=300)
@given(RAW, st.integers(0, 7))
def test_code_points_are_those_of_pythons_decoder(raw, at):
    at %= len(raw)
    assert decode(np.frombuffer(raw, np.uint8), at, len(raw)) == decode_plain(raw, at)


def test_every_character_and_every_edge():
    for point in [*range(0, 0x3000), *range(0xD700, 0x10400), 0x1F600, 0x10FFFF]:
        raw = chr(point).encode("utf-8", "surrogatepass")
        half = 0xD800 <= point < 0xE000
        assert decode(np.frombuffer(raw, np.uint8), 0, len(raw)) == ((-1, 0) if half else (point, len(raw)))
    for raw in EDGES:
        assert decode(np.frombuffer(raw, np.uint8), 0, len(raw)) == decode_plain(raw, 0)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**64 - 1))
def test_mixing_is_splitmix64(x):
    assert int(mix(np.uint64(x))) == mix_plain(x)


def test_mixing_is_that_of_row_ids():
    """`identity.seeded` mixes arrays in the same way; splitmix64 of the seed 0 begins with this number."""
    assert mix_plain(0) == 0xE220A8397B1DCDAF
    keys = np.array([0, 1, 2**63], np.uint64)
    first = mix_plain(7)
    expected = [mix_plain(mix_plain(int(k) ^ first) + mix_plain(first) & 2**64 - 1) for k in keys]
    assert identity.seeded(keys, 7).tolist() == expected
