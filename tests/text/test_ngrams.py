import numpy as np

from glassformer.text import ngrams
from glassformer.text.ngrams import LENGTH, Seen, stretches


def random_text(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).integers(97, 123, size, np.uint8).tobytes()


def test_equal_stretches_have_equal_hashes_wherever_they_are() -> None:
    text = random_text(300, 0)
    moved = random_text(1234, 1) + text
    (here,) = stretches(text)
    (there,) = stretches(moved)
    assert (here == there[1234:]).all()
    assert len(np.unique(there)) == len(moved) - LENGTH + 1


def test_blocks_join_without_a_gap() -> None:
    text = random_text(ngrams.BLOCK + 1000, 2)
    hashes = np.concatenate(list(stretches(text)))
    assert len(hashes) == len(text) - LENGTH + 1
    (tail,) = stretches(text[ngrams.BLOCK - 300 :])
    assert (hashes[ngrams.BLOCK - 300 :] == tail).all()


def test_overlap_and_copies_are_measured() -> None:
    seen = Seen()
    train, other = random_text(5000, 3), random_text(5000, 4)
    assert seen.add(train, validation=False)[0] == 0
    known, repeated, judged = seen.add(train[:2000] + other[:2000], validation=True)
    assert (judged, repeated) == (4000 - LENGTH + 1, 0)
    assert abs(known - 0.5) < 0.03
    assert abs(seen.overlap() - 0.5) < 0.03
    assert seen.add(other * 2, validation=False)[1] > 0.45


def test_memory_stays_bounded_and_the_estimate_close() -> None:
    seen = Seen(most_kept=2000)
    train = [random_text(3000, seed) for seed in range(30)]
    for text in train:
        seen.add(text, validation=False)
    for text in train[:10]:
        seen.add(text[:1500] + random_text(1500, len(text) + text[0]), validation=True)
    assert seen.level >= 5
    assert len(seen._in_train) <= 2000
    assert abs(seen.overlap() - 0.5) < 0.06


def test_text_shorter_than_a_stretch_is_not_judged() -> None:
    seen = Seen()
    assert seen.add(b"short", validation=True) == (0.0, 0.0, 0)
    assert np.isnan(seen.overlap())
