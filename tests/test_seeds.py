"""Streams of randomness: a pure function of a seed and names."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from glassformer.seeds import derive, generator

names = st.lists(st.text(max_size=5) | st.integers(), max_size=3)


@given(st.integers(0, 2**63 - 1), names)
def test_the_same_names_give_the_same_numbers(seed, path):
    assert np.array_equal(generator(seed, *path).random(5), generator(seed, *path).random(5))
    assert 0 <= derive(seed, *path) < 2**63


def test_a_seed_is_the_first_63_bits_of_sha256():
    digest = hashlib.sha256(b"7\x1finit\x1fembed.weight").digest()
    assert derive(7, "init", "embed.weight") == int.from_bytes(digest[:8], "big") // 2


def test_recorded_numbers_stay_as_they_were():
    """Runs started by earlier versions resume on the same samples only while this holds."""
    assert derive(0, "batches", "train", 0) == 5868884762874409750
    assert generator(0, "batches").integers(0, 1000, 4).tolist() == [277, 24, 698, 86]


def test_other_seeds_names_and_orders_give_other_numbers():
    streams = [(0,), (1,), (0, "a"), (0, "a", "b"), (0, "b", "a"), (0, "ab"), (0, 1), (0, "a", 1), (2,)]
    assert len({derive(*stream) for stream in streams}) == len(streams)


def test_streams_are_uniform_and_unrelated():
    first, second = (generator(0, "stream", n).random(20_000) for n in (1, 2))
    assert abs(first.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
