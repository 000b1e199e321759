import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.text.order import mix, permute, round_keys


def order(size: int, epoch: int, seed: int) -> list[int]:
    index = np.arange(size, dtype=np.uint64)
    return permute(index, size, np.full(size, epoch, np.uint64), round_keys(seed, "test")).tolist()


@given(size=st.integers(1, 3000), epoch=st.integers(0, 2**40), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=60)
def test_every_index_comes_exactly_once(size: int, epoch: int, seed: int) -> None:
    assert sorted(order(size, epoch, seed)) == list(range(size))


def test_an_index_has_the_same_place_alone_and_among_others() -> None:
    keys = round_keys(3, "test")
    whole = order(1001, 5, 3)
    alone = [
        int(permute(np.array([i], np.uint64), 1001, np.array([5], np.uint64), keys)[0]) for i in range(50)
    ]
    assert alone == whole[:50]


def test_epochs_and_seeds_give_unrelated_orders() -> None:
    # Two random orders of n agree in about one place on average (variance 1).
    first = order(2000, 0, 1)
    for other in (order(2000, 1, 1), order(2000, 0, 2), list(range(2000))):
        assert sum(a == b for a, b in zip(first, other, strict=True)) < 8


def test_places_are_spread_evenly_over_epochs() -> None:
    # Chi-squared with 30 degrees of freedom: mean 30, standard deviation 7.7.
    epochs = np.arange(6200, dtype=np.uint64)
    places = permute(np.full(6200, 7, np.uint64), 31, epochs, round_keys(1, "spread"))
    counts = np.bincount(places.astype(int), minlength=31)
    assert ((counts - 200.0) ** 2 / 200).sum() < 30 + 5 * 7.7


def test_neighbours_do_not_stay_neighbours() -> None:
    places = np.array(order(10_000, 3, 9))
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.05


def test_mix_is_the_finaliser_of_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 0, as in Vigna's reference implementation.
    golden = 0x9E3779B97F4A7C15
    state = np.array([golden, 2 * golden % 2**64], np.uint64)
    assert mix(state).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
