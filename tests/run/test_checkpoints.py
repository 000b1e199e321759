"""Saving and loading give back exactly what was given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from glassformer.errors import CheckpointError
from glassformer.files import sha256
from glassformer.run import checkpoints
from glassformer.run.exports import save_model, verify_model
from glassformer.run.tensors import read_parts, read_tensors, write_tensors

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.builds(
        lambda dtype, shape: (torch.randn(shape) * 3).to(dtype),
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 3), max_size=3),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(tensors=TENSORS)
def test_our_files_are_what_the_library_reads_and_the_record_is_true(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor]
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "a.safetensors"
    record = write_tensors(path, tensors, {"step": "3"})
    assert (record["bytes"], record["sha256"]) == (path.stat().st_size, sha256(path))
    back = read_tensors(path)
    assert back.keys() == tensors.keys() == record["tensors"].keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)


def test_our_files_are_byte_for_byte_those_of_the_library(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 2),
        "a": torch.randn(5),
        "half": torch.randn(3).bfloat16(),
        "n": torch.arange(4),
    }
    write_tensors(tmp_path / "ours", tensors, {})
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_numbers_that_are_not_finite_and_views_come_back_to_the_bit(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    view = torch.arange(12.0).reshape(3, 4).T
    checkpoints.save(
        tmp_path, 7, {"model": {"odd": odd, "view": view}}, {"best": float("inf"), "names": ["é"]}
    )
    loaded = checkpoints.load_newest(tmp_path)
    assert loaded is not None and loaded.state == {"best": float("inf"), "names": ["é"]}
    assert loaded.tensors["model"]["odd"].view(torch.int32).tolist() == odd.view(torch.int32).tolist()
    assert torch.equal(loaded.tensors["model"]["view"], view)


def test_parts_in_several_files_are_put_together_and_one_that_is_not_there_is_missed(tmp_path: Path) -> None:
    whole = {"a": torch.randn(5, 4), "s": torch.tensor(3.0), "v": torch.randn(1)}
    places: list[dict[str, tuple[int, ...]]] = [
        {"a": (0, 0), "s": ()},
        {"a": (0, 1)},
        {"a": (3, 1), "v": (0,)},
    ]
    parts = [
        {"a": whole["a"][:, :1].contiguous(), "s": whole["s"]},
        {"a": whole["a"][:3, 1:].contiguous()},
        {"a": whole["a"][3:, 1:].contiguous(), "v": whole["v"]},
    ]
    files = [tmp_path / f"model-rank-0000{rank}.safetensors" for rank in range(3)]
    for file, part, at in zip(files, parts, places, strict=True):
        about = json.dumps({name: {"saved_offsets": place} for name, place in at.items()})
        save_file(part, file, metadata={"DCP_SHARDING_INFO": about})
    back = read_parts(reversed(files))
    assert back.keys() == whole.keys() and all(torch.equal(back[name], whole[name]) for name in whole)
    with pytest.raises(CheckpointError, match="Of the tensor a a part is missing"):
        read_parts([files[0], files[2]])


def test_only_the_files_asked_for_are_read(tmp_path: Path) -> None:
    path = checkpoints.save(
        tmp_path, 7, {"model": {"a": torch.ones(1)}, "optimizer": {"m": torch.ones(1)}}, {}
    )
    assert set(checkpoints.load(path, only=["model"]).tensors) == {"model"}


def test_one_checkpoint_is_loaded_by_its_folder_or_refused(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 7, {"model": {"a": torch.ones(1)}}, {"x": 1})
    assert checkpoints.load(path).step == 7
    (path / "state.json").write_text('{"x": 2}')
    with pytest.raises(CheckpointError, match=r"step-00000007 is not whole:\n.*state\.json"):
        checkpoints.load(path)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoints.load(tmp_path)


def test_a_list_tells_size_and_digests(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 7, {"model": {"a": torch.ones(1)}}, {})
    (listed,) = checkpoints.list_checkpoints(tmp_path)
    assert (listed.step, listed.name, listed.kind) == (7, "step-00000007", "checkpoint")
    assert listed.digests["model.safetensors"] == sha256(path / "model.safetensors")
    assert listed.num_bytes == sum(file.stat().st_size for file in path.iterdir())


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        checkpoints.save(tmp_path, 7, {"model": {"a": torch.tensor(value)}}, {})
    loaded = checkpoints.load_newest(tmp_path)
    assert loaded is not None and loaded.tensors["model"]["a"] == 2.0
    assert len(list(tmp_path.iterdir())) == 1


def test_steps_beyond_eight_digits_still_come_in_order(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        checkpoints.save(tmp_path, step, {"model": {"a": torch.tensor(step)}}, {})
    loaded = checkpoints.load_newest(tmp_path)
    assert loaded is not None and loaded.step == 100_000_000


def test_an_exported_model_is_what_others_expect_and_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for value in (1.0, 2.0):
        save_model(folder, config={"v": value}, tensors={"w": torch.tensor([value])}, tokenizer=b'{"t": 1}')
        assert verify_model(folder) == []
        assert load_file(folder / "model.safetensors")["w"].tolist() == [value]
        assert json.loads((folder / "config.json").read_text()) == {"v": value}
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    content = bytearray((folder / "tokenizer.json").read_bytes())
    content[3] ^= 1
    (folder / "tokenizer.json").write_bytes(content)
    (found,) = verify_model(folder)
    assert found.file == "tokenizer.json" and "SHA-256" in found.problem


def test_a_model_from_elsewhere_has_nothing_to_be_held_against(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    assert verify_model(tmp_path) == []


@pytest.mark.parametrize(("saves", "keep"), [(7, 3), (7, 7), (7, 10), (7, 1), (12, 9)])
def test_as_many_of_the_newest_stay_as_are_to_be_kept_and_no_fewer(
    tmp_path: Path, saves: int, keep: int
) -> None:
    for step in range(1, saves + 1):
        checkpoints.save(tmp_path, step, {"model": {"w": torch.ones(2)}}, {}, keep=keep)
        found = [one.step for one in checkpoints.list_checkpoints(tmp_path)]
        assert found == list(range(max(1, step - keep + 1), step + 1))
