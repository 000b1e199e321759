"""GGUF's number formats, each held to ggml's own Python package bit by bit; the errors of those we write."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from glassformer.errors import ModelError
from glassformer.use.quantised import BYTES_AT_ONCE, FORMATS, OTHERS, Floats, dequantise, quantise

ROWS = arrays(
    np.float32, (2, 32), elements=st.floats(-300, 300, width=32) | st.floats(-(2.0**-10), 2.0**-10, width=32)
)


def again(values: Floats, name: str) -> Floats:
    """Written and read."""
    return dequantise(quantise(values, FORMATS[name], name="x"), FORMATS[name]).reshape(values.shape)


@pytest.mark.parametrize("name", ["BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_random_blocks_give_the_numbers_of_ggmls_package_to_the_bit(name: str) -> None:
    form = FORMATS[name]
    blocks = np.random.default_rng(0).integers(0, 256, (300, form.block_bytes), np.uint8)
    with np.errstate(invalid="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(-1)
    np.testing.assert_array_equal(
        dequantise(blocks.reshape(-1), form).view(np.uint32), expected.view(np.uint32)
    )


@pytest.mark.parametrize("name", ["BF16", "Q8_0"])
def test_what_is_written_are_the_bytes_of_ggmls_package(name: str) -> None:
    values = np.random.default_rng(0).normal(0, 0.02, (100, 64)).astype(np.float32)
    values[3, :32] = 0
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name]).view(np.uint8)
    np.testing.assert_array_equal(quantise(values, FORMATS[name], name="x"), expected.reshape(-1))


def test_every_format_of_ggml_has_its_number_and_size_here_or_is_known_as_another() -> None:
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name in FORMATS:
            form = FORMATS[kind.name]
            assert (form.number, form.block, form.block_bytes) == (kind.value, block, size)
        elif kind.value in OTHERS:
            assert OTHERS[kind.value] == kind.name


@given(ROWS)
def test_f32_keeps_every_bit_and_the_halves_stay_within_their_stated_error(values: Floats) -> None:
    assert np.array_equal(again(values, "F32").view(np.uint32), values.view(np.uint32))
    size = np.abs(values.astype(np.float64))
    assert (np.abs(again(values, "F16") - values.astype(np.float64)) <= size * 2**-11 + 2.0**-25).all()
    assert (np.abs(again(values, "BF16") - values.astype(np.float64)) <= size * 2**-8 + 2.0**-134).all()


@given(ROWS)
def test_q8_0_stays_within_its_stated_error(values: Floats) -> None:
    d = np.abs(values.astype(np.float64)).max(axis=1, keepdims=True) / 127
    off = np.abs(again(values, "Q8_0") - values.astype(np.float64))
    assert (off <= (d / 2 + 127 * (d * 2**-11 + 2.0**-25)) * (1 + 1e-6)).all()


def test_more_bytes_than_are_taken_at_once_come_in_order() -> None:
    values = np.arange(BYTES_AT_ONCE // 4 + 1000, dtype=np.float32)
    assert np.array_equal(again(values, "F32"), values)


@pytest.mark.parametrize(("name", "value"), [("F16", 65520.0), ("Q8_0", 1e7), ("BF16", 3.4e38), ("F32", np.nan),
                                            ("Q8_0", np.nan), ("F16", -np.inf)])  # fmt: skip
def test_a_number_that_a_format_cannot_hold_is_refused_by_the_tensors_name(name: str, value: float) -> None:
    values = np.zeros(64, np.float32)
    values[40] = value
    with pytest.raises(ModelError, match=rf"output\.weight holds .*, which {name} cannot"):
        quantise(values, FORMATS[name], name="output.weight")
    values[40] = 65000.0
    assert np.isfinite(again(values, name)).all()
