from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.text.packing import fit


@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=60), context=st.integers(1, 25))
@settings(deadline=None, max_examples=80)
def test_every_token_lies_in_exactly_one_place(sizes: list[int], context: int) -> None:
    starts = np.concatenate([[3], 3 + np.cumsum(sizes)]).astype(np.int64)
    rows = fit(starts, context)
    places = rows.places(np.arange(rows.num_rows))
    assert places.shape == (rows.num_rows, context)
    tokens = places[places >= 0]
    assert sorted(tokens.tolist()) == list(range(3, 3 + sum(sizes)))
    assert rows.num_padded == int((places < 0).sum())


def test_a_document_that_fits_a_row_is_never_cut() -> None:
    starts = np.array([0, 7, 12, 15, 25, 28], np.int64)
    rows = fit(starts, 10)
    places = rows.places(np.arange(rows.num_rows))
    for first, last in pairwise(starts.tolist()):
        row = next(row.tolist() for row in places if first in row)
        at = row.index(first)
        assert row[at : at + last - first] == list(range(first, last))


def test_best_fit_fills_rows_that_first_come_order_would_waste() -> None:
    # 7+3, 6+4, 5+5: three full rows.
    rows = fit(np.cumsum([0, 5, 6, 7, 3, 4, 5]).astype(np.int64), 10)
    assert (rows.num_rows, rows.num_padded) == (3, 0)


def test_a_long_document_fills_rows_of_its_own_and_the_rest_is_packed() -> None:
    rows = fit(np.array([0, 25, 30], np.int64), 10)
    assert (rows.num_rows, rows.num_padded) == (3, 0)


def test_rows_can_be_asked_for_in_any_order_and_again() -> None:
    rows = fit(np.array([0, 4, 9, 30], np.int64), 8)
    whole = rows.places(np.arange(rows.num_rows))
    assert (rows.places(np.array([2, 0, 2])) == whole[[2, 0, 2]]).all()
