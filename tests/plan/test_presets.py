"""The presets against the sizes that their sources print, and how they are found by name."""

import pytest

from glassformer.errors import UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.count import parameters
from glassformer.plan.presets import preset, presets


@pytest.mark.parametrize("one", presets().values(), ids=presets())
def test_parameters_are_the_published_ones(one):
    found = one.architecture.parameters.total
    assert abs(found - one.published) <= one.within * one.published
    assert one.source
    assert one.within or one.published == int(one.published)


def test_most_presets_are_right_to_the_last_parameter():
    exact = [one for one in presets().values() if not one.within]
    assert len(exact) >= 60
    assert len(presets()) >= 75


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("deepseek-v3", 37),
        ("deepseek-v2", 21),
        ("mixtral", 12.9),
        ("qwen3-30b-a3b", 3.3),
        ("qwen3-235b-a22b", 22),
    ],
)
def test_parameters_that_a_token_meets_are_the_published_ones(name, billions):
    """2412.19437, 2405.04434, 2401.04088, 2505.09388. DeepSeek leaves one table of the vocabulary out."""
    assert preset(name).architecture.active_parameters == pytest.approx(billions * 1e9, rel=0.03)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("Llama 3.1 405B", "llama3.1-405b"), ("LLAMA-3.1-405b", "llama3.1-405b"), ("llama3_1_405b", "llama3.1-405b"),
        ("gpt2", "gpt2-small"), ("GPT-2", "gpt2-small"), ("gpt3", "gpt3-175b"), ("T5 v1.1 XXL", "t5-v1.1-xxl"),
        ("mixtral", "mixtral-8x7b"), ("2017 base", "transformer-base"),
    ],
)  # fmt: skip
def test_names_are_found_in_any_spelling(given, found):
    assert preset(given).name == found


def test_no_two_presets_share_a_name():
    names = [name for one in presets().values() for name in {one.name, one.title, *one.also}]
    plain = ["".join(c for c in name.lower() if c.isalnum()) for name in names]
    own = {
        one.name: {"".join(c for c in n.lower() if c.isalnum()) for n in (one.name, one.title, *one.also)}
        for one in presets().values()
    }
    assert sum(map(len, own.values())) == len(set(plain))


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(UsageError, match=r"no preset 'llama3-405'.*llama3\.1-405b"):
        preset("llama3-405")
    with pytest.raises(UsageError, match="pythia-70m, pythia-160m"):
        preset("pythia")
    with pytest.raises(UsageError, match="no preset ''"):
        preset("")


def test_a_preset_is_what_the_recipe_of_the_same_shape_counts():
    config = ModelConfig(
        kind="encoder-decoder", vocab=37000, width=512, layers=6, heads=8, feedforward=2048, norm="layernorm",
        norm_place="post", bias=True, positions="sinusoidal", context=512,
    )  # fmt: skip
    assert preset("transformer-base").architecture.parameters.total == parameters(config).total
    bert = ModelConfig(
        kind="encoder", vocab=30522, width=768, layers=12, heads=12, context=512, positions="learned", token_types=2,
        norm="layernorm", norm_place="post", bias=True, embed_norm=True, pooler=True, head_transform=True,
        head_bias=True,
    )  # fmt: skip
    pairs_of_sentences = 2 * 768 + 2
    assert preset("bert").architecture.parameters.total == parameters(bert).total + pairs_of_sentences
