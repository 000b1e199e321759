import pytest

from glassformer.configs import build
from glassformer.errors import ConfigError
from glassformer.text.config import DataConfig


def test_plain_paths_and_tables_become_sources_with_the_common_field() -> None:
    data = build(
        DataConfig,
        {
            "paths": [{"path": "a.jsonl", "weight": 3, "field": "body"}, {"path": "b.csv", "weight": 1}],
            "field": "t",
        },
        origin="recipe",
    )
    assert [(s.path, s.weight, s.field) for s in data.sources] == [("a.jsonl", 3, "body"), ("b.csv", 1, "t")]
    assert data.weights == (3, 1)
    assert DataConfig(paths=("a", "b")).weights is None
    assert build(DataConfig, {"paths": "a"}, origin="recipe").sources[0].path == "a"


def test_sources_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="gives some sources a weight, but not b"):
        build(DataConfig, {"paths": [{"path": "a", "weight": 2}, "b"]}, origin="recipe")
    with pytest.raises(ConfigError, match="paths names a more than once"):
        build(DataConfig, {"paths": ["a", "b", "a"]}, origin="recipe")
    with pytest.raises(ConfigError, match="at least 1 item"):
        build(DataConfig, {"paths": []}, origin="recipe")
