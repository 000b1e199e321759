"""Pairs: read from every format, split by hash, packed into rows without loss, found again in the cache."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from glassformer.configs import build
from glassformer.errors import ConfigError, TextError
from glassformer.text.batches import NO_LOSS
from glassformer.text.config import PairConfig, TokenizerConfig
from glassformer.text.pair_batches import PairBatches, pack, pair_validation_batches
from glassformer.text.pairs import PreparedPairs, numbers_in_words, prepare_pairs, read_pairs, split_pairs

PAIRS = [(f"source text {n}", f"ziel {n} " * (1 + n % 4)) for n in range(60)]
WANTED = [(x.encode(), y.strip().encode()) for x, y in PAIRS]


def write(folder: Path, kind: str) -> tuple[str, ...]:
    lines = [f"{x}\t{y}" for x, y in PAIRS]
    match kind:
        case "tsv":
            (folder / "a.tsv").write_text("\n".join(lines) + "\n")
        case "tsv.gz":
            (folder / "a.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
        case "csv":
            rows = ["note,target,source", *(f'x,"{y}","{x}"' for x, y in PAIRS)]
            (folder / "a.csv").write_text("\n".join(rows))
        case "jsonl":
            rows = [f'{{"source": "{x}", "other": 1, "target": "{y}"}}' for x, y in PAIRS]
            (folder / "a.jsonl").write_text("\n".join(rows))
        case "parquet":
            table = {"target": [y for _, y in PAIRS], "source": [x for x, _ in PAIRS]}
            parquet.write_table(pyarrow.table(table), folder / "a.parquet")
        case _:
            (folder / "a.en").write_text("\n".join(x for x, _ in PAIRS) + "\n")
            (folder / "a.de.gz").write_bytes(gzip.compress("\n".join(y for _, y in PAIRS).encode() + b"\n"))
            return "a.en", "a.de.gz"
    return (f"a.{kind}",)


@pytest.mark.parametrize("kind", ["tsv", "tsv.gz", "csv", "jsonl", "parquet", "two files"])
def test_every_format_gives_the_same_pairs(tmp_path: Path, kind: str) -> None:
    paths = write(tmp_path, kind)
    assert list(read_pairs(PairConfig(paths=paths), paths, tmp_path)) == WANTED
    turned = PairConfig(paths=paths, reverse=True)
    assert list(read_pairs(turned, paths, tmp_path)) == [(y, x) for x, y in WANTED]


def test_a_faulty_pair_is_named_by_its_line(tmp_path: Path) -> None:
    def refused(content: bytes, says: str, name: str = "a.tsv") -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TextError, match=says):
            list(read_pairs(PairConfig(paths=(name,)), (name,), tmp_path))

    refused(b"a\tb\nonly one side\n", "Line 2 of .*a.tsv has 1 field")
    refused(b"a\tb\nc\t \n", "Pair 2 of a.tsv has an empty target")
    refused(b"a\tb\n\xff\tc\n", "a.tsv:2 is not valid UTF-8")
    refused(b"source,ziel\na,b\n", "no field 'target'.*ziel", "a.csv")
    refused(b'{"source": "a"}\n', "Line 1 .* has no field 'target'", "a.jsonl")
    refused(b"", "holds no pairs")
    (tmp_path / "b.de").write_text("a\nb\n")
    (tmp_path / "b.en").write_text("a\n")
    with pytest.raises(TextError, match=r"b.de has 2 lines, b.en has 1"):
        list(read_pairs(PairConfig(paths=("b.de", "b.en")), ("b.de", "b.en"), tmp_path))
    with pytest.raises(ConfigError, match=r"names one file, b.de, which holds one side"):
        build(PairConfig, {"paths": ["b.de"]}, origin="The recipe")


def test_a_pair_is_held_out_by_its_own_hash(tmp_path: Path) -> None:
    paths = write(tmp_path, "tsv")
    train, held_out = split_pairs(PairConfig(paths=paths, validation=0.3), tmp_path)
    assert sorted(train + held_out) == sorted(WANTED) and 5 < len(held_out) < 30
    with (tmp_path / "a.tsv").open("a") as file:
        file.write("one more\tnoch eins\n")
    more, held_out_then = split_pairs(PairConfig(paths=paths, validation=0.3), tmp_path)
    assert set(train) <= set(more) and set(held_out) <= set(held_out_then)


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedPairs:
    paths = write(tmp_path, "tsv")
    return prepare_pairs(
        PairConfig(paths=paths, validation=0.2), TokenizerConfig(kind="bytes"), base=tmp_path,
        cache=tmp_path / "cache",
    )  # fmt: skip


def test_the_cache_is_found_by_content(tmp_path: Path, prepared: PreparedPairs) -> None:
    said: list[str] = []
    again = prepare_pairs(
        PairConfig(paths=("a.tsv",), validation=0.2), TokenizerConfig(kind="bytes"), base=tmp_path,
        cache=tmp_path / "cache", progress=said.append,
    )  # fmt: skip
    assert again.digest == prepared.digest and said == ["reading the pairs"]
    (tmp_path / "a.tsv").write_text("x\ty\n" * 30 + "z\tw\nv\tu\n")
    changed = prepare_pairs(
        PairConfig(paths=("a.tsv",), validation=0.2), TokenizerConfig(kind="bytes"), base=tmp_path,
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert changed.digest != prepared.digest and "copies of others" in changed.warnings[0]


def test_a_damaged_cache_is_made_again_and_said(tmp_path: Path, prepared: PreparedPairs) -> None:
    for file in ("train/target/ids.npy", "report.json"):
        content = (prepared.path / file).read_bytes()
        (prepared.path / file).write_bytes(content[: len(content) // 2])
        said: list[str] = []
        again = prepare_pairs(
            PairConfig(paths=("a.tsv",), validation=0.2), TokenizerConfig(kind="bytes"), base=tmp_path,
            cache=tmp_path / "cache", progress=said.append,
        )  # fmt: skip
        assert any("made again" in line for line in said) and again.digest == prepared.digest
        assert (prepared.path / file).read_bytes() == content


def test_an_epoch_gives_every_pair_once_with_its_target_shifted(prepared: PreparedPairs) -> None:
    batches = PairBatches(prepared.train, batch=1, context=64, seed=3)
    end = prepared.tokenizer.end_of_text
    for epoch in range(2):
        found = []
        for step in range(epoch * batches.num_samples, (epoch + 1) * batches.num_samples):
            one = batches.batch(step)
            for segment in range(one.segments.max() + 1):
                source = one.source[one.source_segments == segment]
                here = one.segments == segment
                ids, targets = one.ids[here], one.targets[here]
                assert ids[0] == end and (ids[1:] == targets[:-1]).all() and targets[-1] == source[-1] == end
                found.append(tuple(map(prepared.tokenizer.decode_bytes, (source[:-1], targets[:-1]))))
            assert (one.targets[one.segments < 0] == NO_LOSS).all()
            assert one.num_targets == (one.segments >= 0).sum()
        assert sorted(found) == sorted(set(WANTED) - {(x.encode(), y.encode()) for x, y in prepared.texts})
    first, second = (batches.batch(n).source for n in (0, batches.num_samples))
    assert not np.array_equal(first, second)  # another order


def test_a_batch_depends_on_seed_and_step_alone(prepared: PreparedPairs) -> None:
    one = PairBatches(prepared.train, batch=4, context=64, seed=3)
    other = PairBatches(prepared.train, batch=4, context=64, seed=3)
    for step in (7, 0, 3):
        assert all(
            np.array_equal(a, b)
            for a, b in zip(
                one.batch(step).arrays().values(), other.batch(step).arrays().values(), strict=True
            )
        )
    assert not np.array_equal(
        one.batch(0).ids, PairBatches(prepared.train, batch=4, context=64, seed=4).batch(0).ids
    )


def test_validation_predicts_each_target_once(prepared: PreparedPairs) -> None:
    batches = list(pair_validation_batches(prepared.validation, batch=4, context=64))
    assert {len(batch.ids) for batch in batches} == {4}
    assert sum(batch.num_targets for batch in batches) == prepared.validation.target.num_tokens


class _Store:
    def __init__(self, lengths: list[int]) -> None:
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=80))
def test_packing_loses_no_pair_and_overfills_no_row(lengths: list[tuple[int, int]]) -> None:
    store = type(
        "Pair", (), {"source": _Store([m for m, _ in lengths]), "target": _Store([n for _, n in lengths])}
    )()
    rows, left_out = pack(store, 16)
    assert sorted(np.concatenate([*rows, []]).tolist()) == [
        n for n, pair in enumerate(lengths) if max(pair) <= 16
    ]
    assert left_out == sum(max(pair) > 16 for pair in lengths)
    assert all(sum(lengths[n][side] for n in row) <= 16 for row in rows for side in (0, 1))


def test_pairs_longer_than_the_context_are_counted_and_a_store_of_only_those_is_refused(
    prepared: PreparedPairs,
) -> None:
    short = PairBatches(prepared.train, batch=2, context=17, seed=0)
    assert "are left out" in short.warnings[0]
    with pytest.raises(TextError, match="No pair fits into a row of 8 tokens"):
        PairBatches(prepared.train, batch=2, context=8, seed=0)


def test_numbers_and_dates_in_words_are_right_and_the_same_for_everyone() -> None:
    pytest.importorskip("num2words")
    found = list(numbers_in_words(200, 50))
    assert found == list(numbers_in_words(200, 50)) and len(set(found)) == len(found) == 250
    known = dict(numbers_in_words(3000, 0))
    assert known[b"seven"] == b"sieben" and known[b"twenty-one"] == b"einundzwanzig"
    assert all(english[0:1].isupper() and german[0:1].islower() for english, german in found[200:])
