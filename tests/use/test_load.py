"""Loading: to the bit what was saved, and nothing that does not fit, is damaged, or would run code."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from glassformer.errors import CheckpointError, ConfigError, ModelError, TokenizerError, UsageError
from glassformer.run import checkpoints
from glassformer.run.folder import Run
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded, empty, load, save_model, weights_digest

Make = Callable[..., Loaded]


@pytest.fixture
def folder(make: Make, tmp_path: Path) -> Path:
    made = make(tied=False)
    return save_model(tmp_path / "model", made.model, made.tokenizer)


def unsealed(folder: Path) -> Path:
    """The folder as if it came from elsewhere, without a manifest to hold it against."""
    (folder / "manifest.json").unlink()
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": False, "bias": True, "norm": "layernorm", "positions": "learned"},
        {"positions": "sinusoidal", "norm_place": "post", "kv_heads": 2},
        {"positions": "alibi", "qk_norm": True, "gated": True, "activation": "silu", "head_size": 6},
        {"layers": 0, "positions": "none"},
    ],
)
def test_saved_and_loaded_a_model_is_the_same_to_the_bit(
    make: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = make(**changes)
    opened = load(save_model(tmp_path / "m", made.model, made.tokenizer))
    assert weights_digest(opened.model) == weights_digest(made.model)
    assert opened.config == made.config and opened.tokenizer.digest == made.tokenizer.digest
    ids = torch.arange(30)[None]
    torch.testing.assert_close(opened.model(ids), made.model(ids), rtol=0, atol=1e-5)  # laid out for speed
    assert not opened.model.training and not any(p.requires_grad for p in opened.model.parameters())
    again = save_model(tmp_path / "again", opened.model, opened.tokenizer)
    for file in (tmp_path / "m").iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_bf16_halves_the_weights_and_keeps_the_predictions_close(make: Make, tmp_path: Path) -> None:
    made = make()
    folder = save_model(tmp_path / "m", made.model, made.tokenizer)
    half = load(str(folder), precision="bf16")
    assert half.dtype == torch.bfloat16 and "bfloat16" in repr(half)
    ids = torch.arange(30)[None]
    torch.testing.assert_close(half.model(ids).float(), made.model(ids), rtol=0.05, atol=0.1)
    with pytest.raises(UsageError, match="'fp32' or 'bf16'"):
        load(folder, precision="fp8")  # type: ignore[arg-type] # what is tested


def test_a_model_in_use_does_not_change_with_its_file(folder: Path) -> None:
    opened = load(folder)
    before = weights_digest(opened.model)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(bytes(1000))
    assert weights_digest(opened.model) == before


def test_opening_a_model_does_not_load_torchs_compiler_and_takes_no_memory_before_weights(
    make: Make, folder: Path
) -> None:
    made = make()
    shapes = {name: weight.shape for name, weight in made.model.named_parameters()}
    model = empty(made.config, made.tokenizer, shapes, origin="x")
    assert all(weight.is_meta for weight in model.parameters() if weight.ndim > 1)
    code = "import sys, glassformer as gf; gf.load(sys.argv[1]); print('torch._dynamo' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\n", done.stderr


def test_one_flipped_byte_is_refused_and_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model.safetensors, tensor \S+: its CRC-32"):
        load(folder)


def test_a_file_put_beside_a_model_does_no_harm(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    load(folder)


def test_every_tensor_that_does_not_fit_is_named_at_once(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["blocks.7.attn.qkv.weight"] = tensors.pop("blocks.1.attn.qkv.weight")
        tensors["head.weight"] = tensors["head.weight"].T.contiguous()
        del tensors["norm.weight"]

    change_tensors(unsealed(folder), change)
    with pytest.raises(ModelError) as caught:
        load(folder)
    for problem in (
        "blocks.1.attn.qkv.weight is missing",
        "norm.weight is missing",
        "blocks.7.attn.qkv.weight is not expected",
        "head.weight has shape [32, 257], expected [257, 32]",
    ):
        assert problem in str(caught.value)


def test_numbers_that_are_no_weights_are_refused(folder: Path) -> None:
    change_tensors(
        unsealed(folder), lambda tensors: tensors.update({"norm.weight": torch.ones(32, dtype=torch.int8)})
    )
    with pytest.raises(ModelError, match=r"norm.weight holds torch.int8"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": 60_000}, "layers is 60,000, but there are only"),
        ({"layers": 10**9}, "layers is 1,000,000,000; at most"),
        ({"width": 2**40}, "width is 1,099,511,627,776; at most"),
        ({"context": 2**26}, "needs a table of"),
        ({"context": 2**60}, "context is 1,152,921,504,606,846,976; at most"),
        ({"vocab": 2**27}, "has shape [257, 32], expected [134217728, 32]"),
        ({"width": 2**20, "feedforward": 2**24}, "expected [16777216, 1048576]"),
        ({"vocab": 100}, "the tokenizer has 257 tokens, the model only 100"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(
    folder: Path, changes: dict[str, int], says: str
) -> None:
    change_config(unsealed(folder), **changes)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert says in str(caught.value)


def test_a_header_that_lies_about_its_tensors_is_refused(folder: Path) -> None:
    file = unsealed(folder) / "model.safetensors"
    header = {"norm.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt"])
def test_a_pickle_is_refused_with_a_sentence_and_never_run(folder: Path, name: str) -> None:
    (unsealed(folder) / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    for path in [folder, *([] if name == "model.safetensors" else [folder / name])]:
        with pytest.raises(CheckpointError, match="is a pickle, and reading a pickle runs"):
            load(path)


def test_a_model_split_over_files_is_refused_without_following_its_index(folder: Path) -> None:
    (unsealed(folder) / "model.safetensors").unlink()
    index = {"weight_map": {"norm.weight": "../../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="join them into one file"):
        load(folder)


def test_what_is_missing_is_listed_together(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no .*absent"):
        load(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"lacks config.json, model.safetensors, tokenizer.json"):
        load(tmp_path)
    with pytest.raises(ModelError, match="is a file"):
        load(folder / "model.safetensors")


def test_a_config_that_is_not_ours_or_not_json_is_refused(folder: Path) -> None:
    change_config(unsealed(folder), model_type="mamba")
    with pytest.raises(ModelError, match=r"type 'mamba'.*Expected model_type 'glassformer'"):
        load(folder)
    change_config(folder, model_type="glassformer", width="wide", colour="red")
    with pytest.raises(ConfigError) as caught:
        load(folder)
    assert "width" in str(caught.value) and "colour" in str(caught.value)
    for content in ("{", "[]"):
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelError, match="not a JSON object"):
            load(folder)


def test_a_tokenizer_that_cannot_be_read_is_refused(folder: Path) -> None:
    (unsealed(folder) / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError):
        load(folder)


@pytest.fixture
def run(make: Make, tmp_path: Path) -> Run:
    """A run that has saved at steps 10 and 20 and is not finished."""
    made = make()
    recipe = made.config.model_dump(mode="json")
    del recipe["vocab"]  # comes from the tokenizer
    run = Run.create(tmp_path / "run", {"model": recipe}, {})
    made.tokenizer.save(run.path / "tokenizer.json")
    for step in (10, 20):
        checkpoints.save(
            run.checkpoints, step, {"model": dict(make().model.named_parameters())}, {"step": step}
        )
    return run


def test_an_unfinished_run_gives_its_newest_checkpoint_and_says_so(make: Make, run: Run) -> None:
    opened = load(run.path)
    assert weights_digest(opened.model) == weights_digest(make().model)
    assert opened.warnings == ("This run has no finished model yet; these are its weights at step 20.",)


def test_a_damaged_checkpoint_is_passed_over_said_and_left_alone(run: Run) -> None:
    file = run.checkpoints / "step-00000020" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.write_bytes(data)
    opened = load(run.path)
    assert "at step 10" in opened.warnings[0] and "step-00000020/model.safetensors" in opened.warnings[1]
    assert file.read_bytes() == data


def test_a_finished_run_gives_its_model(make: Make, run: Run, tokenizer: Tokenizer) -> None:
    other = make(layers=1)
    save_model(run.model, other.model, tokenizer)
    shutil.rmtree(run.checkpoints)
    opened = load(run.path)
    assert opened.config.layers == 1 and opened.warnings == () and opened.path == run.path


def test_a_run_that_has_saved_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model yet.*Train until the first checkpoint"):
        load(Run.create(tmp_path / "new", {"model": {}}, {}).path)
