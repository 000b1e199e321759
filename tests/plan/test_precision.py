"""Bytes of a parameter's states, and precisions by name."""

import pytest

from glassformer.errors import UsageError
from glassformer.plan.precision import PRECISIONS, precision


@pytest.mark.parametrize(
    ("name", "bytes_per_parameter"),
    [
        ("fp32", 16),
        ("autocast", 16),
        ("bf16", 18),
        ("bf16-grads16", 16),
        ("fp16", 16),
        ("fp8", 18),
        ("bf16-pure", 8),
    ],
)
def test_adamw_keeps_the_known_bytes(name, bytes_per_parameter):
    """Mixed precision: 16 in ZeRO (1910.02054), 18 in Megatron-LM, which adds gradients up in float32."""
    one = PRECISIONS[name]
    assert one.weight + one.gradient + one.master + 2 * one.moment == bytes_per_parameter


def test_precisions_are_found_by_their_other_names():
    assert precision("BF16") is precision("bfloat16") is PRECISIONS["bf16"]
    assert precision("MXFP8").peak == "fp8"
    assert precision("nvfp4").peak == "fp4"
    with pytest.raises(UsageError, match=r"no precision 'bf17'.*bf16"):
        precision("bf17")
