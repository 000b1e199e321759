"""Folders in Hugging Face's layout: opened, written and opened by transformers; what is wrong is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

import glassformer as gf
from glassformer.errors import CheckpointError, ModelError, TokenizerError, UsageError
from glassformer.model import hub
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded, weights_digest
from glassformer.use.pretrained import from_pretrained, save_pretrained

Make = Callable[..., Loaded]
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True},
    "llama": {"gated": True, "activation": "silu", "kv_heads": 2, "tied": False},
    "qwen2": {"gated": True, "activation": "silu", "qkv_bias": True},
    "qwen3": {"gated": True, "activation": "silu", "qk_norm": True, "head_size": 16},
    "arcee": {"tied": True},  # the demo's settings
    "gpt_neox": {
        "norm": "layernorm", "activation": "gelu", "bias": True, "parallel": True, "rotary_fraction": 0.25,
        "tied": False,
    },
}  # fmt: skip


@pytest.fixture
def folder(make: Make, tmp_path: Path) -> Path:
    """A Llama of two files, without our manifest, as others write it."""
    return elsewhere(save_pretrained(make(**FAMILIES["llama"]), tmp_path / "hf", shard_bytes=30_000))


def elsewhere(folder: Path) -> Path:
    (folder / "manifest.json").unlink()
    return folder


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("shard_bytes", [None, 20_000])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_we_write_transformers_opens_with_equal_logits_and_so_do_we(
    make: Make, tmp_path: Path, name: str, shard_bytes: int | None
) -> None:
    made = make(**FAMILIES[name])
    folder = save_pretrained(made, tmp_path / "hf", shard_bytes=shard_bytes)
    assert (folder / "model.safetensors.index.json").exists() == (shard_bytes is not None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert theirs.config.model_type == name
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, made.model(ids), rtol=0, atol=5e-5)
    opened = gf.load(folder)
    assert weights_digest(opened.model) == weights_digest(made.model)
    assert opened.tokenizer.digest == made.tokenizer.digest


@pytest.mark.parametrize("name", FAMILIES)
def test_what_transformers_writes_we_open_score_and_continue(make: Make, tmp_path: Path, name: str) -> None:
    made = make(**FAMILIES[name])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(save_pretrained(made, tmp_path / "a"))
    theirs.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    made.tokenizer.save(tmp_path / "b" / "tokenizer.json")
    opened = from_pretrained(tmp_path / "b")
    assert weights_digest(opened.model) == weights_digest(made.model)
    assert gf.score(opened, "a text").bits_per_byte > 0
    assert gf.generate(opened, "a", max_tokens=3).text == gf.generate(made, "a", max_tokens=3).text


POST = {"norm": "layernorm", "norm_place": "post", "bias": True, "activation": "gelu", "dropout": 0.0}
BERT = {**POST, "kind": "encoder", "positions": "learned", "embed_norm": True, "token_types": 2}
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bare": (transformers.AutoModel, {**BERT, "head": "none", "pooler": True}),
    "bare without pooler": (transformers.AutoModel, {**BERT, "head": "none"}),
    "masked": (transformers.AutoModelForMaskedLM, {**BERT, "head_bias": True, "head_transform": True}),
    "classes": (
        transformers.AutoModelForSequenceClassification,
        {**BERT, "head": "classes", "classes": 3, "pooler": True},
    ),
    "marian": (
        transformers.AutoModelForSeq2SeqLM,
        {
            **POST,
            "kind": "encoder-decoder",
            "positions": "sinusoidal_halves",
            "head_bias": True,
            "encoder_layers": 3,
        },
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_encoders_and_translators_go_to_transformers_and_come_back(
    make: Make, tmp_path: Path, name: str
) -> None:
    auto, settings = OTHERS[name]
    made = make(**settings)
    theirs = auto.from_pretrained(save_pretrained(made, tmp_path / "a", shard_bytes=20_000)).eval()
    ids = torch.arange(1, 31)[None]
    given = {"decoder_input_ids": ids} if name == "marian" else {}
    with torch.no_grad():
        expected = made.model(ids, ids) if name == "marian" else made.model(ids)
        torch.testing.assert_close(theirs(ids, **given)[0], expected, rtol=0, atol=5e-5)
    theirs.save_pretrained(tmp_path / "b")
    made.tokenizer.save(tmp_path / "b" / "tokenizer.json")
    for folder in (tmp_path / "a", tmp_path / "b"):
        opened = from_pretrained(folder)
        mine = dict(made.model.named_parameters())
        for weight, value in opened.model.named_parameters():
            if not (name == "bare without pooler" and weight.startswith("pooler")):  # theirs always has one
                assert torch.equal(value, mine[weight])


def test_a_translator_that_begins_with_another_token_is_refused(make: Make, tmp_path: Path) -> None:
    folder = elsewhere(save_pretrained(make(**OTHERS["marian"][1]), tmp_path / "hf"))
    change(folder / "config.json", decoder_start_token_id=7)
    with pytest.raises(ModelError, match="begins what it writes with token 7"):
        from_pretrained(folder)


def test_the_tokenizer_round_trips_through_auto_tokenizer(make: Make, tmp_path: Path) -> None:
    made = make(**FAMILIES["gpt2"])
    theirs = transformers.AutoTokenizer.from_pretrained(save_pretrained(made, tmp_path / "hf"))
    for text in ("Straße, 你好", "  two  spaces\n"):
        ids = made.tokenizer.encode(text).tolist()
        assert theirs.encode(text, add_special_tokens=False) == ids and theirs.decode(ids) == text


def test_a_bare_gpt2s_names_without_prefix_and_its_masks_are_understood(make: Make, tmp_path: Path) -> None:
    made = make(**FAMILIES["gpt2"])
    file = elsewhere(save_pretrained(made, tmp_path / "hf")) / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file({**bare, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, file)
    assert weights_digest(from_pretrained(tmp_path / "hf").model) == weights_digest(made.model)


def test_bf16_and_a_wrong_precision(folder: Path) -> None:
    assert from_pretrained(folder, precision="bf16").dtype == torch.bfloat16
    with pytest.raises(UsageError, match="fp32"):
        from_pretrained(folder, precision="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "..", "a\\b.safetensors", "C:x.safetensors"]
)
def test_an_index_that_points_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    index = folder / "model.safetensors.index.json"
    placed = json.loads(index.read_text())["weight_map"]
    change(index, weight_map={**placed, "lm_head.weight": name})
    with pytest.raises(ModelError, match="outside the folder"):
        from_pretrained(folder)


def test_a_shard_that_is_missing_or_a_pickle_is_named(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    change(index, weight_map={"a": "gone.safetensors", "b": "code.bin"})
    with pytest.raises(ModelError, match=r"(?s)'code\.bin' is not.*'gone\.safetensors' is missing"):
        from_pretrained(folder)
    change(index, weight_map=[1])
    with pytest.raises(ModelError, match="no weight_map"):
        from_pretrained(folder)


def test_tensors_missing_too_many_or_of_another_shape_are_named_in_their_words(
    make: Make, tmp_path: Path
) -> None:
    file = elsewhere(save_pretrained(make(**FAMILIES["llama"]), tmp_path / "hf")) / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 5)
    tensors["model.layers.9.extra"] = torch.zeros(1)
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(ModelError) as caught:
        gf.load(tmp_path / "hf")
    for says in ("layers.1.self_attn.k_proj.weight is missing", "layers.9.extra is not expected",
                 "layers.0.mlp.up_proj.weight has shape [3, 5], expected [128, 32]"):  # fmt: skip
        assert says in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 10**12}, {"hidden_size": 2**40}, {"max_position_embeddings": 2**60}]
)
def test_absurd_sizes_are_refused_before_memory_is_taken(folder: Path, changes: dict[str, int]) -> None:
    change(folder / "config.json", **changes)
    with pytest.raises(ModelError, match="does not fit its config"):
        from_pretrained(folder)


def test_a_pickle_or_a_missing_tokenizer_is_said(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"lacks tokenizer\.json"):
        from_pretrained(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="pickle"):
        from_pretrained(folder)


def test_a_damaged_file_or_config_is_named(folder: Path) -> None:
    next(iter(folder.glob("*.safetensors"))).write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        from_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError):
        from_pretrained(folder)
    for text, says in (("{", "not JSON"), ("[1]", "not a JSON object")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError, match=says):
            from_pretrained(folder)


def test_a_folder_that_is_no_model_is_never_replaced(make: Make, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="no model folder"):
        save_pretrained(make(**FAMILIES["llama"]), tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="shard_bytes"):
        save_pretrained(make(**FAMILIES["llama"]), tmp_path / "x", shard_bytes=0)


def test_our_own_folder_opens_here_too_and_can_be_written_the_other_way(make: Make, tmp_path: Path) -> None:
    made = make(**FAMILIES["qwen3"])
    folder = gf.save_model(tmp_path / "own", made.model, made.tokenizer)
    assert weights_digest(from_pretrained(folder).model) == weights_digest(made.model)
    assert (save_pretrained(folder, tmp_path / "hf") / "config.json").exists()
    assert isinstance(gf.from_pretrained(tmp_path / "hf").tokenizer, Tokenizer)


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    assert all(f"| `{name}` |" in page for name in hub.FAMILIES)
