"""GGUF files as models: round trips, what transformers computes from them, and files that are wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer.errors import GlassformerError, ModelError, TokenizerError, UsageError
from glassformer.model.gguf_names import ARCHITECTURES
from glassformer.use.gguf import GgufType, open_gguf, save_gguf
from glassformer.use.gguf_file import GgufFile, Written, write_gguf
from glassformer.use.load import Loaded, weights_digest
from glassformer.use.quantised import FORMATS

Make = Callable[..., Loaded]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"gated": True, "activation": "silu", "kv_heads": 2, "tied": False, "rope_base": 5e5},
    "llama-bias": {"gated": True, "activation": "silu", "kv_heads": 2, "bias": True, "head_size": 12},
    "qwen2": {"gated": True, "activation": "silu", "qkv_bias": True, "kv_heads": 2},
    "qwen3": {"gated": True, "activation": "silu", "qk_norm": True, "head_size": 16, "kv_heads": 1},
    "arcee": {"tied": True},  # the demo's settings
    "gpt2": {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True},
    "gptneox": {
        "norm": "layernorm", "activation": "gelu", "bias": True, "parallel": True, "rotary_fraction": 0.25,
        "tied": False,
    },
}  # fmt: skip
ERRORS: dict[GgufType, Callable[[torch.Tensor], torch.Tensor]] = {
    "f32": lambda x: torch.zeros_like(x),
    "f16": lambda x: x.abs() * 2**-11 + 2.0**-25,
    "bf16": lambda x: x.abs() * 2**-8,
    "q8_0": lambda x: (x.abs().max() / 127) * (0.5 + 127 * 2**-11) + 127 * 2.0**-25,
}
"""Above which no weight may be off; for q8_0 by the largest of the tensor, which is more than a block's."""


@pytest.fixture(scope="module")
def varied(make: Make) -> Make:
    """Models all of whose weights matter: norms and biases are not ones and noughts."""

    def varied(**changes: Any) -> Loaded:
        made = make(**changes)
        for weight in made.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
        return made

    return varied


def edited(path: Path, *, drop: str = "", add: dict[str, Any] | None = None, **values: Any) -> Path:
    """The same file with other values (`llama__block_count=3`) and tensors."""
    with GgufFile(path) as file:
        tensors = {name: file.read(name) for name in file.tensors if name != drop} | (add or {})
        metadata = {**file.metadata, **{key.replace("__", "."): value for key, value in values.items()}}
    listed = [Written(name, x.shape, FORMATS["F32"], lambda x=x: x) for name, x in tensors.items()]
    return write_gguf(path, {key: one for key, one in metadata.items() if one is not None}, listed)


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_comes_back_from_every_format(
    varied: Make, tmp_path: Path, name: str, dtype: GgufType
) -> None:
    made = varied(**FAMILIES[name])
    path = save_gguf(made, tmp_path / "model.gguf", dtype=dtype)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
    again = gf.load(path)
    sizes = {"heads", "kv_heads", "head_size", "feedforward", "init"}
    assert again.config.model_dump(exclude=sizes) == made.config.model_dump(exclude=sizes)
    assert again.tokenizer.digest == made.tokenizer.digest and not again.warnings and again.path == path
    if dtype == "f32":
        assert weights_digest(again.model) == weights_digest(made.model)
    for key, weight in made.model.named_parameters():
        off = (again.model.get_parameter(key).double() - weight.double()).abs()
        assert (off <= ERRORS[dtype](weight.double())).all(), key


def test_vectors_and_positions_stay_f32_and_rows_that_make_no_blocks_are_f16(
    varied: Make, tmp_path: Path
) -> None:
    made = varied(**FAMILIES["gpt2"], width=40, feedforward=96)
    with GgufFile(save_gguf(made, tmp_path / "model.gguf", dtype="q8_0")) as file:
        forms = {name: tensor.form.name for name, tensor in file.tensors.items()}
    assert (
        forms["position_embd.weight"]
        == forms["blk.0.attn_norm.weight"]
        == forms["blk.1.ffn_up.bias"]
        == "F32"
    )
    assert forms["token_embd.weight"] == forms["blk.0.attn_qkv.weight"] == "F16"
    assert forms["blk.0.ffn_down.weight"] == "Q8_0" and "output.weight" not in forms


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_transformers_opens_what_we_write_with_equal_logits(
    varied: Make, tmp_path: Path, name: str, dtype: GgufType
) -> None:
    longer = {"context": 1024} if name == "gpt2" else {}  # transformers does not read GPT-2's from the file
    path = save_gguf(varied(**FAMILIES[name], **longer), tmp_path / "model.gguf", dtype=dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).eval()
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(gf.load(path).model(ids), theirs(ids).logits, rtol=0, atol=5e-5)


def test_bf16_in_memory_and_a_wrong_precision_dtype_or_name(varied: Make, tmp_path: Path) -> None:
    made = varied()
    path = save_gguf(made, tmp_path / "model.gguf")
    assert gf.from_pretrained(path, precision="bf16").dtype == torch.bfloat16
    with pytest.raises(UsageError, match="fp32"):
        open_gguf(path, precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="q8_0"):
        save_gguf(made, tmp_path / "x.gguf", dtype="q4_0")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"ends in \.gguf"):
        save_gguf(made, tmp_path / "x.bin")
    with pytest.raises(UsageError, match="no folder"):
        save_gguf(made, tmp_path / "gone" / "x.gguf")
    with pytest.raises(ModelError, match="There is no file"):
        gf.load(tmp_path / "gone.gguf")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"activation": "gelu"}, "arcee, which cannot say activation = 'gelu', needs 'relu_squared'"),
        ({**FAMILIES["gptneox"], "tied": True}, "gptneox, which cannot say tied = True, needs False"),
        ({"positions": "alibi"}, "No family"),
    ],
)
def test_what_a_file_cannot_say_is_not_written(
    make: Make, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        save_gguf(make(**changes), tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_tensors_missing_too_many_or_of_another_shape_are_named(make: Make, tmp_path: Path) -> None:
    path = save_gguf(make(**FAMILIES["llama"]), tmp_path / "x.gguf", dtype="f32")
    wrong = {"blk.0.ffn_up.weight": np.zeros((3, 5), np.float32), "blk.9.extra": np.zeros(1, np.float32)}
    edited(path, drop="blk.1.attn_k.weight", add=wrong)
    with pytest.raises(ModelError) as caught:
        gf.load(path)
    for says in ("blk.1.attn_k.weight is missing", "blk.9.extra is not expected",
                 "blk.0.ffn_up.weight has shape [3, 5], expected [128, 32]"):  # fmt: skip
        assert says in str(caught.value)


def test_all_that_would_change_the_sums_is_refused_at_once(make: Make, tmp_path: Path) -> None:
    path = save_gguf(make(**FAMILIES["llama"]), tmp_path / "x.gguf")
    values: dict[str, Any] = {
        "llama__rope__scaling__type": "yarn", "llama__expert_count": 8, "llama__attention__sliding_window": 4,
        "llama__attn_logit_softcapping": 30.0, "llama__logit_scale": 0.5, "llama__rope__dimension_count": 4,
        "llama__attention__value_length": 6, "llama__attention__head_count": "four",
    }  # fmt: skip
    edited(path, add={"rope_freqs.weight": np.ones(4, np.float32)}, **values)
    with pytest.raises(ModelError) as caught:
        gf.load(path)
    for says in ("llama.rope.scaling.type = 'yarn'", "num_experts = 8", "sliding_window = 4", "softcapping = 30.0",
                 "llama.logit_scale = 0.5", "rope.dimension_count is 4, the heads' size 8", "value_length and",
                 "head_count is 'four', expected a whole number", "rope_freqs.weight"):  # fmt: skip
        assert says in str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"llama__block_count": 2**31}, "layers is 2,147,483,648"),
        ({"llama__context_length": 2**31}, "context is 2,147,483,648"),
        ({"llama__vocab_size": 2**31}, "vocab_size is 2,147,483,648"),
        ({"llama__vocab_size": 100}, "the tokenizer has 257 tokens, the model only 100"),
        ({"llama__attention__head_count": 0}, "heads"),
        ({"llama__block_count": None}, r"llama\.block_count is missing"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon is nan"),
        ({"general__architecture": "mamba"}, "architecture 'mamba'"),
        ({"general__architecture": None}, "architecture None"),
        ({"tokenizer__ggml__model": "llama"}, "kind 'llama'"),
        ({"tokenizer__ggml__tokens": "no list"}, "no list"),
    ],
)
def test_absurd_missing_or_foreign_values_are_refused_by_name(
    make: Make, tmp_path: Path, values: dict[str, Any], says: str
) -> None:
    path = edited(save_gguf(make(**FAMILIES["llama"]), tmp_path / "x.gguf", dtype="f32"), **values)
    with pytest.raises(GlassformerError, match=says):
        gf.load(path)


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, str]:
    """A place, a file's bytes, and the digest of its weights."""
    made = make(layers=1, width=16, heads=2, **FAMILIES["llama"])
    path = save_gguf(made, tmp_path_factory.mktemp("hostile") / "x.gguf", dtype="f32")
    return path, path.read_bytes(), weights_digest(made.model)


@given(data=st.data())
def test_a_truncated_file_gives_an_error_of_ours_or_the_right_weights(
    whole: tuple[Path, bytes, str], data: st.DataObject
) -> None:
    path, content, digest = whole
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert weights_digest(gf.load(path).model) == digest
    except (ModelError, TokenizerError):
        assert path.stat().st_size < len(content)


@given(data=st.data())
def test_flipped_bytes_in_the_header_give_an_error_of_ours_or_a_model_of_finite_size(
    whole: tuple[Path, bytes, str], data: st.DataObject
) -> None:
    path, content, _ = whole
    with_flips = bytearray(content)
    header = content.rindex(b"blk.0") + 80
    for place, mask in data.draw(
        st.lists(st.tuples(st.integers(0, header), st.integers(1, 255)), min_size=1)
    ):
        with_flips[place] ^= mask
    path.write_bytes(with_flips)
    try:
        opened = gf.load(path)
    except GlassformerError:
        return
    assert sum(weight.nbytes for weight in opened.model.parameters()) <= 4 * len(content)
    assert opened.model(torch.arange(4)[None]).shape == (1, 4, opened.config.vocab_size)


def test_the_page_names_every_architecture_and_format() -> None:
    page = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text(encoding="utf-8")
    section = re.search(r"^## GGUF\n(.*?)^## ", page, re.M | re.S)
    assert section and all(f"`{name}`" in section[1] for name in ARCHITECTURES)
    assert all(name in section[1] for name in FORMATS)
