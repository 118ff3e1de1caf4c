import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.data.batch import Batch
from hf_prune.data.identity import digests
from hf_prune.data.lookup import find, find_rows

keys = st.lists(st.integers(0, 2**64 - 1), max_size=20)


@given(keys, keys)
def test_find_agrees_with_a_dict(known, wanted):
    known = np.unique(np.array(known, np.uint64))
    places = {int(k): i for i, k in enumerate(known)}
    assert find(known, np.array(wanted, np.uint64)).tolist() == [places.get(w, -1) for w in wanted]


def test_rows_are_found_by_content_in_any_container():
    known = np.sort(digests(["a", "b", "c"]))
    for values in (["c", "a"], np.array(["c", "a"]), pa.array(["c", "a"])):
        at = find_rows(Batch({"id": values}), "id", known, "the log")
        assert (known[at] == digests(["c", "a"])).all()


def test_fields_of_a_struct():
    known = np.sort(digests([1, 2]))
    assert (find_rows(Batch({"meta": [{"id": 2}, {"id": 1}]}), "meta.id", known, "the log") >= 0).all()


def test_unknown_rows_are_listed():
    batch = Batch({"id": [str(i) for i in range(9)]}, "AUM")
    with pytest.raises(ValueError, match=r"AUM: 8 of 9 rows are not in the log: id '1', '2', '3', '4', '5', \.\.\."):
        find_rows(batch, "id", digests(["0"]), "the log")


def test_a_null_is_not_an_id():
    with pytest.raises(ValueError, match=r"1 of 2 rows is not in the log: id None"):
        find_rows(Batch({"id": ["0", None]}), "id", digests(["0"]), "the log")


def test_nothing_known():
    with pytest.raises(ValueError, match="1 of 1 rows is not in the log"):
        find_rows(Batch({"id": ["0"]}), "id", np.empty(0, np.uint64), "the log")
