"""What a `[model]` table may say, and what it is told when it says something else (fault 41)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.configs import build
from glassformer.errors import ConfigError
from glassformer.model.config import ModelConfig


def problems(**values):
    with pytest.raises(ConfigError) as caught:
        build(ModelConfig, values, origin="recipe.toml")
    return caught.value.problems


def test_sizes_left_out_follow_by_the_rule_beside_them():
    config = ModelConfig(width=384, heads=6)
    assert (config.num_kv_heads, config.head_width, config.ff_width) == (6, 64, 1536)
    assert ModelConfig(width=384, heads=6, gated=True).ff_width == 1024
    assert ModelConfig(width=256, gated=True).ff_width == 704  # 682.7 rounded up to 64


def test_heads_that_do_not_divide_the_width_are_told_the_nearest_number_that_does():
    assert problems(width=384, heads=7) == [
        "recipe: width 384 does not divide into 7 heads; heads = 6 would fit"
    ]


@given(width=st.integers(1, 500), heads=st.integers(1, 500))
def test_the_number_of_heads_proposed_does_fit(width, heads):
    if width % heads:
        proposed = int(
            problems(width=width, heads=heads, positions="none")[0].split("heads = ")[1].split()[0]
        )
        assert width % proposed == 0
        assert all(width % h for h in range(heads + 1, 2 * heads - proposed))


def test_all_impossible_combinations_are_listed_at_once():
    found = problems(width=30, heads=4, kv_heads=3, positions="alibi", rope_base=5000.0)
    assert len(found) == 3
    assert "width 30 does not divide into 4 heads" in found[0]
    assert "heads 4 is not a multiple of kv_heads 3" in found[1]
    assert "rope_base 5000 has no effect with positions 'alibi'" in found[2]


def test_rope_needs_pairs():
    assert problems(width=15, heads=3) == [
        "recipe: rope rotates pairs, so the head size must be even; it is 5"
    ]
    assert ModelConfig(width=15, heads=3, positions="alibi").head_width == 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", 0),
        ("layers", -1),
        ("heads", 0),
        ("dropout", 1.0),
        ("norm_epsilon", 0),
        ("vocab", 1),
        ("context", 0),
    ],
)
def test_numbers_out_of_range_are_refused(key, value):
    (problem,) = problems(**{key: value})
    assert problem.startswith(f"{key}: input should be")
    assert str(value) in problem


def test_a_config_survives_being_written_and_read():
    config = ModelConfig(width=96, heads=3, gated=True, positions="learned")
    assert build(ModelConfig, config.model_dump(exclude_none=True), origin="recipe.toml") == config


@pytest.mark.parametrize(
    ("given", "heads"),
    [
        ({"width": 256}, 4),
        ({"width": 192}, 3),
        ({"width": 32}, 1),
        ({"width": 100}, 2),
        ({"width": 128, "head_size": 32}, 4),
        ({"width": 128, "heads": 8}, 8),
    ],
)
def test_heads_left_out_follow_from_the_width(given, heads):
    assert ModelConfig(**given).num_heads == heads


def test_settings_of_other_peoples_models_that_have_no_effect_are_refused():
    found = problems(
        norm_place="post", positions="none", rotary_fraction=0.5, bias=True, qkv_bias=True, parallel=True
    )
    assert [problem.split()[1] for problem in found] == ["rotary_fraction", "qkv_bias", "parallel"]
    assert "must be even; it is 3" in problems(width=24, heads=4, rotary_fraction=0.5)[0]
