from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from glassformer.errors import ModelError
from glassformer.model.attention import Kernel
from glassformer.model.config import ModelConfig
from glassformer.model.count import cache_bytes_per_token
from glassformer.use.cache import Cache
from glassformer.use.load import Loaded

SHAPES = [
    {"positions": "rope"},
    {"positions": "learned", "norm": "layernorm", "bias": True, "activation": "gelu"},
    {"positions": "sinusoidal", "norm_place": "post", "scale_embeddings": True},
    {"positions": "alibi", "kv_heads": 2},
    {"positions": "none", "kv_heads": 1, "qk_norm": True, "gated": True, "tied": False},
    {"positions": "learned", "layers": 0},
]


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("kernel", ["fused", "explicit"])
def test_reading_in_parts_with_a_cache_gives_the_logits_of_reading_at_once(
    make: Callable[..., Loaded], changes: dict[str, object], kernel: Kernel
) -> None:
    model = make(**changes).model.double()
    model.use_attention(kernel)
    ids = torch.randint(0, 257, (3, 32), generator=torch.Generator().manual_seed(0))
    cache = Cache(model.config, batch=3, dtype=torch.float64)
    parts, end = [], 0
    for size in (5, 1, 1, 10, 1, 14):
        parts.append(model(ids[:, end : end + size], cache=cache))
        end += size
        cache.length = end
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=0, atol=1e-12)


def test_its_bytes_are_those_of_the_formula_and_never_change() -> None:
    config = ModelConfig(vocab=257, width=32, layers=3, heads=4, kv_heads=2, context=32)
    cache = Cache(config, batch=5, dtype=torch.bfloat16)
    assert cache.num_bytes == 2 * 3 * 5 * 2 * 32 * 8 * 2
    assert Cache(config, positions=7).num_bytes == 2 * 3 * 2 * 7 * 8 * 4
    assert Cache(config, positions=7).num_bytes == 7 * cache_bytes_per_token(config)
    assert Cache(config, positions=7000).positions == 32


def test_what_does_not_fit_is_refused(make: Callable[..., Loaded]) -> None:
    loaded = make()
    cache = Cache(loaded.config, positions=8)
    loaded.model(torch.zeros(1, 8, dtype=torch.long), cache=cache)
    assert cache.length == 8
    with pytest.raises(ModelError, match="room for 8 tokens of 1 texts; 9 tokens"):
        loaded.model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
    cache.length = 0
    with pytest.raises(ModelError, match="8 tokens of 1 texts; 1 tokens of 2 were given"):
        loaded.model(torch.zeros(2, 1, dtype=torch.long), cache=cache)
