from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glassformer.errors import TextError
from glassformer.text.batches import NO_LOSS, PERIOD, Batches, validation_batches
from glassformer.text.store import TokenStore

MakeStore = Callable[..., TokenStore]

END = 256
DOCUMENTS = [bytes([number]) * (3 + 5 * number % 17) for number in range(1, 30)]


@given(context=st.integers(1, 40), batch=st.integers(1, 9), epoch=st.integers(0, 3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_epoch_of_the_stream_predicts_every_place_at_most_once_and_leaves_out_less_than_a_row(
    make_store: MakeStore, context: int, batch: int, epoch: int, seed: int
) -> None:
    store = make_store(DOCUMENTS)
    batches = Batches(store, batch=1, context=context, seed=seed)
    first = epoch * batches.num_samples
    places: Counter[int] = Counter()
    for step in range(first, first + batches.num_samples):
        places.update(batches._sources[0].places(np.array([step]))[0].tolist())
    assert max(places.values()) == 1
    assert store.num_tokens - context < len(places) <= store.num_tokens


def test_each_target_is_the_token_after_its_input(make_store: MakeStore) -> None:
    store = make_store(DOCUMENTS)
    ring = np.append(store.ids, store.ids[0]).astype(np.int64)
    pairs = set(zip(ring[:-1].tolist(), ring[1:].tolist(), strict=True))
    batches = Batches(store, batch=4, context=16, seed=1)
    for step in range(30):
        batch = batches.batch(step)
        assert (batch.ids[:, 1:] == batch.targets[:, :-1]).all()
        assert set(zip(batch.ids.ravel().tolist(), batch.targets.ravel().tolist(), strict=True)) <= pairs


@pytest.mark.parametrize("packing", ["stream", "fit"])
def test_a_batch_depends_on_nothing_but_store_seed_and_step(make_store: MakeStore, packing: str) -> None:
    store = make_store(DOCUMENTS)
    settings = {"batch": 5, "context": 12, "packing": packing, "mask_documents": True}
    straight = Batches(store, seed=7, **settings)
    batches = [straight.batch(step) for step in range(40)]
    again = Batches(store, seed=7, **settings)
    for step in (39, 0, 17, 17, 3):
        for name in ("ids", "targets", "segments", "sample_ids"):
            assert (getattr(again.batch(step), name) == getattr(batches[step], name)).all()
    other = Batches(store, seed=8, **settings)
    assert any((other.batch(step).ids != batches[step].ids).any() for step in range(3))


def test_splitting_a_batch_over_ranks_gives_the_same_samples(make_store: MakeStore) -> None:
    store = make_store(DOCUMENTS)
    whole = Batches(store, batch=8, context=12, seed=7)
    half = Batches(store, batch=4, context=12, seed=7)
    for step in range(9):
        halves = [half.batch(2 * step).ids, half.batch(2 * step + 1).ids]
        assert (whole.batch(step).ids == np.concatenate(halves)).all()


def test_fit_predicts_every_token_once_in_an_epoch_and_counts_its_waste(make_store: MakeStore) -> None:
    store = make_store(DOCUMENTS)
    batches = Batches(store, batch=1, context=13, seed=2, packing="fit")
    epoch = [batches.batch(step) for step in range(batches.num_samples)]
    targets = np.concatenate([b.targets.ravel() for b in epoch])
    assert Counter(targets[targets >= 0].tolist()) == Counter(store.ids.tolist())
    assert batches.waste == pytest.approx((targets == NO_LOSS).mean())
    assert {int(b.sample_ids[0]) for b in epoch} == set(range(batches.num_samples))


@pytest.mark.parametrize("packing", ["stream", "fit"])
def test_segments_separate_documents_and_the_end_of_text_opens_the_next(
    make_store: MakeStore, packing: str
) -> None:
    store = make_store(DOCUMENTS)  # the bytes of document d are all d
    batches = Batches(store, batch=3, context=24, seed=2, packing=packing, mask_documents=True)
    for step in range(20):
        batch = batches.batch(step)
        assert batch.segments is not None
        for ids, targets, segments in zip(batch.ids, batch.targets, batch.segments, strict=True):
            assert ((segments == -1) == (targets == NO_LOSS)).all()
            for segment in set(segments.tolist()) - {-1}:
                inside = segments == segment
                texts = set(ids[inside].tolist()) - {END}
                assert len(texts) <= 1
                assert set(targets[inside].tolist()) <= texts | {END} or not texts
                assert not (ids[inside][1:] == END).any()


def test_without_masking_there_are_no_segments(make_store: MakeStore) -> None:
    assert Batches(make_store(DOCUMENTS), batch=2, context=8, seed=0).batch(0).segments is None


def test_weights_share_the_samples_exactly_in_every_period(make_store: MakeStore) -> None:
    store = make_store([b"a" * 500, b"b" * 40, b"c" * 90], sources=[0, 1, 2])
    batches = Batches(store, batch=PERIOD, context=8, seed=3, weights=(1.0, 2.0, 4.0))
    for step in range(3):
        source = batches.batch(step).sample_ids >> 48
        assert Counter(source.tolist()) == {0: 143, 1: 286, 2: 571}
        for letter, number in ((ord("a"), 0), (ord("b"), 1), (ord("c"), 2)):
            assert set(batches.batch(step).targets[source == number].ravel().tolist()) <= {letter, END}


def test_a_weighted_source_serves_its_samples_in_sequence(make_store: MakeStore) -> None:
    store = make_store([b"a" * 500, b"b" * 400], sources=[0, 1])
    batches = Batches(store, batch=7, context=8, seed=3, weights=(3.0, 1.0))
    ids = np.concatenate([batches.batch(step).sample_ids for step in range(400)])
    for number in (0, 1):
        samples = ids[ids >> 48 == number] & (2**48 - 1)
        assert samples.tolist() == list(range(len(samples)))


def test_sample_ids_lead_back_to_the_documents(make_store: MakeStore) -> None:
    store = make_store(DOCUMENTS)
    for packing in ("stream", "fit"):
        batches = Batches(store, batch=6, context=20, seed=5, packing=packing)
        batch = batches.batch(11)
        for row, sample_id in enumerate(batch.sample_ids.tolist()):
            place = batches.locate(sample_id)
            assert place["epoch"] == (11 * 6 + row) // batches.num_samples
            texts = [DOCUMENTS[d["document"]] + bytes([0]) for d in place["documents"]]
            found = Counter[int]()
            for document, text in zip(place["documents"], texts, strict=True):
                first, last = document["tokens"]
                found.update(text[first:last])
                assert document["name"] == f"doc-{document['document']}"
            wanted = Counter(t if t != END else 0 for t in batch.targets[row].tolist() if t != NO_LOSS)
            assert found == wanted


@given(context=st.integers(1, 50), batch=st.integers(1, 7))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_validation_predicts_each_token_once_in_order(
    make_store: MakeStore, context: int, batch: int
) -> None:
    store = make_store(DOCUMENTS[:7])
    found = list(validation_batches(store, batch=batch, context=context))
    assert {b.ids.shape for b in found} == {(batch, context)}
    targets = np.concatenate([b.targets.ravel() for b in found])
    assert targets[targets != NO_LOSS].tolist() == store.ids.tolist()
    inputs = np.concatenate([b.ids.ravel() for b in found])[targets != NO_LOSS]
    assert inputs.tolist() == [END, *store.ids[:-1].tolist()]


def test_less_text_than_a_context_is_refused_with_numbers(make_store: MakeStore) -> None:
    with pytest.raises(TextError, match=r"has 4 tokens, fewer than one context of 8.*lower model.context"):
        Batches(make_store([b"abc"]), batch=1, context=8, seed=0)
    store = make_store([b"abc" * 9, b"d"], sources=[0, 1])
    with pytest.raises(TextError, match=r"Source 2 of 2 has 2 tokens"):
        Batches(store, batch=1, context=8, seed=0, weights=(1.0, 1.0))


def test_less_text_than_a_batch_works_and_warns_with_numbers(make_store: MakeStore) -> None:
    batches = Batches(make_store([b"abcdefgh" * 3]), batch=12, context=8, seed=0)
    assert batches.batch(0).ids.shape == (12, 8)
    assert batches.warnings == [
        "The training text gives 3 rows of 8 tokens, less than a batch of 12: "
        "each batch repeats it 4.0 times."
    ]
    assert batches.steps_per_epoch == 1
