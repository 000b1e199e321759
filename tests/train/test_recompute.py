"""Less memory, the same numbers: what is not kept for the backward pass is computed again, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
from test_ranks import ranks
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from trainer import Trainer

from glassformer.errors import ConfigError
from glassformer.model.attention import Kernel
from glassformer.model.config import ModelConfig
from glassformer.model.count import Precision, activation_bytes, num_recomputed
from glassformer.model.stacks import build
from glassformer.model.transformer import Transformer
from glassformer.train.compiler import compiler_settings
from glassformer.train.config import EngineConfig
from glassformer.train.engine import Choice, choose, prepare_loss
from glassformer.train.recipe import load_recipe
from glassformer.train.recompute import recompute_blocks

SIZES: dict[str, Any] = {"vocab": 70, "width": 48, "layers": 3, "heads": 4, "context": 24}


def arrays(kind: str = "decoder", rows: int = 4) -> dict[str, Tensor]:
    ids = torch.randint(0, 70, (rows, 24), generator=torch.Generator().manual_seed(3))
    more = {
        "encoder": {"places": torch.arange(24).expand(rows, 24)},
        "encoder-decoder": {"source": ids.flip(1)},
    }
    return {"ids": ids, "targets": ids, **more.get(kind, {})}


def learned(choice: Choice, *, kind: str = "decoder", **options: Any) -> tuple[int, list[Tensor]]:
    """(Blocks computed again; loss, all gradients and torch's random numbers after one backward pass.)"""
    model = build(ModelConfig.model_validate({**SIZES, "kind": kind, **options}), seed=1)
    loss_of = prepare_loss(model, choice)
    torch.manual_seed(5)
    loss = loss_of(**arrays(kind))
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return recompute_blocks(model, choice), [loss.detach(), *grads, torch.get_rng_state()]


@pytest.mark.parametrize(
    ("kind", "attention", "precision"),
    [
        *(("decoder", kernel, "fp32") for kernel in get_args(Kernel)),
        ("decoder", "fused", "autocast"),
        ("encoder", "fused", "fp32"),
        ("encoder-decoder", "explicit", "fp32"),
        ("encoder-decoder", "fused", "autocast"),
    ],
)
def test_loss_and_gradients_are_the_same_to_the_bit_with_dropout_too(
    kind: str, attention: Kernel, precision: Precision
) -> None:
    whole = Choice("cpu", precision, False, attention)
    for dropout in (0.0, 0.2):
        _, expected = learned(whole, kind=kind, dropout=dropout)
        counts = []
        for share in (0.7, 0.0):
            less = Choice("cpu", precision, False, attention, activation_memory=share)
            count, found = learned(less, kind=kind, dropout=dropout)
            counts.append(count)
            assert all(map(torch.equal, expected, found))
        assert 0 < counts[0] < counts[1] == (6 if kind == "encoder-decoder" else 3)


class Alive(TorchDispatchMode):
    """The bytes of all tensors made under it that still exist, and are not the model's own."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.own = {y.untyped_storage()._cdata for y in [*model.parameters(), *model.buffers()]}  # type: ignore[attr-defined]
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = call(*args, **(kwargs or {}))
        for y in found if isinstance(found, tuple | list) else [found]:
            if isinstance(y, Tensor):
                storage = y.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[attr-defined]
        return found

    @property
    def bytes(self) -> int:
        made = self.made.items()
        return sum(size for key, (weak, size) in made if key not in self.own and not weak.expired())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"norm": "layernorm", "positions": "learned"}, {"norm_place": "post"}]
)
def test_the_bytes_that_are_kept_are_those_that_were_counted(options: dict[str, Any], fused: bool) -> None:
    config = ModelConfig.model_validate({**SIZES, **options})
    model = build(config)
    model.use_attention("fused" if fused else "explicit")
    for count in range(4):
        model.recompute(count)
        with Alive(model) as alive:
            hidden = model.hidden(arrays()["ids"])
            scores = torch.nn.functional.linear(hidden, model.head.weight)
        kept = alive.bytes - scores.untyped_storage().nbytes()
        counted = activation_bytes(config, batch=4, fused=fused, recomputed=count)
        assert kept == pytest.approx(counted, rel=0.05), count


def test_as_few_blocks_as_needed_are_computed_again() -> None:
    config = ModelConfig.model_validate(SIZES)
    whole = activation_bytes(config, batch=1)
    for share in (1.0, 0.9, 0.6, 0.4, 0.3):
        count = num_recomputed(config, share)
        assert activation_bytes(config, batch=1, recomputed=count) <= share * whole
        assert count == 0 or activation_bytes(config, batch=1, recomputed=count - 1) > share * whole
    assert num_recomputed(config, 0.0) == num_recomputed(config, 0.01) == config.layers  # no more can be done


def test_one_who_looks_sees_every_place_once() -> None:
    model = build(ModelConfig.model_validate(SIZES))
    model.recompute(3)
    seen: list[str] = []

    def see(name: str, y: Any, /) -> Any:
        seen.append(name)
        return y

    model(arrays()["ids"], see=see).sum().backward()
    assert len(seen) == len(set(seen)) > 30


# In a run


@pytest.fixture(scope="module")
def trained(module_trainer: Trainer) -> Trainer:
    """A trainer on whose folder a run that keeps everything has ended."""
    assert module_trainer("whole", "--model.layers", "2").exit == 0
    return module_trainer


def test_a_run_that_keeps_less_is_the_same_run_also_when_that_changes_on_its_way(trained: Trainer) -> None:
    two = ("--model.layers", "2")
    stop = ({"at": 'writes: "event": "step"+"step": 5,', "do": "SIGTERM"},)
    begun = trained("less", *two, "--engine.activation_memory", "0.6", plans=stop)
    assert begun.exit == 75
    assert begun.all("engine")[0]["choice"]["activation_memory"] == 0.6 if begun.all("engine") else True
    assert trained("less", *two, "--engine.activation_memory", "0").exit == 0
    assert trained.story("less") == trained.story("whole")
    run = trained.run("less")
    assert run.events.last("engine") and run.events.last("engine")["choice"]["activation_memory"] == 0.6  # type: ignore[index]
    assert not any("no longer uses" in e["message"] for e in run.events.read() if e["event"] == "warning")


def test_sharded_blocks_are_computed_again_with_the_weights_they_had(trained: Trainer) -> None:
    sharded = ("--model.layers", "2", "--parallel.shard", "all", "--train.batch", "8")
    for run, share in (("sharded", "1"), ("sharded-less", "0")):
        ended = ranks(trained, 2, run, *sharded, "--engine.activation_memory", share)
        assert [end.exit for end in ended] == [0, 0], ended[0].said
    assert trained.story("sharded-less") == trained.story("sharded")


# Where it is refused, and where the compiler chooses


def test_where_it_has_no_effect_or_a_wrong_one_it_is_refused_in_words() -> None:
    with pytest.raises(
        ConfigError, match=r"activation_memory 0.5 has no effect: a plain network has no blocks"
    ):
        load_recipe("demo-digits", {"engine.activation_memory": 0.5})
    wrong = {"engine.activation_memory": 0.5, "engine.compile": "on", "model.dropout": 0.1}
    with pytest.raises(ConfigError, match=r"draws other noise"):
        load_recipe("demo", wrong)
    assert load_recipe("demo", {**wrong, "model.dropout": 0}).recipe.engine.activation_memory == 0.5


def test_with_dropout_even_a_long_run_stays_eager() -> None:
    model = ModelConfig.model_validate({**SIZES, "dropout": 0.1})
    for share, compiled in ((0.5, set()), (1.0, {True})):
        settings = EngineConfig(device="cpu", precision="fp32", attention="fused", activation_memory=share)
        tried = choose(settings, no_work, model=model, batch=4, num_steps=10**9, seconds=0.0)
        assert {c.choice.compiled for c in tried} - {False} == compiled


def no_work(choice: Choice, rows: int) -> Callable[[], None]:
    return lambda: torch.ones(10**5).sum().item() and None


@contextmanager
def kept_by(model: Transformer) -> Iterator[dict[int, int]]:
    """The bytes that autograd keeps of what is computed in the block, without the model's own."""
    own = {y.untyped_storage().data_ptr() for y in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(y: Tensor) -> Tensor:
        if y.untyped_storage().data_ptr() not in own:
            kept[y.untyped_storage().data_ptr()] = y.untyped_storage().nbytes()
        return y

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y):
        yield kept


def partitioned(share: float | None, dropout: float) -> tuple[int, list[Tensor]]:
    """(Bytes kept, loss and gradients) as torch's compiler divides the work, computed without its code generator;
    eager without a share."""
    torch._dynamo.reset()
    model = build(ModelConfig.model_validate({**SIZES, "layers": 1, "dropout": dropout}), seed=1)
    loss_of = model.loss if share is None else torch.compile(model.loss, dynamic=False, backend="aot_eager")
    torch.manual_seed(5)
    with compiler_settings(share or 1.0), kept_by(model) as kept:
        loss = loss_of(**arrays())
    loss.backward()  # type: ignore[no-untyped-call]
    return sum(kept.values()), [loss.detach(), *(w.grad for w in model.parameters() if w.grad is not None)]


def test_the_compiler_keeps_little_more_than_the_share_it_is_given_and_the_gradient() -> None:
    whole, expected = partitioned(None, 0.0)
    half, found = partitioned(0.5, 0.0)
    assert half < 0.55 * whole
    assert all(map(torch.equal, expected, found))


def test_that_the_compiler_draws_other_noise_is_still_so() -> None:
    """The reason why dropout and the compiler's budget do not go together (pytorch/pytorch#190758). When this fails,
    torch is mended, and they may."""
    _, expected = partitioned(None, 0.2)
    _, found = partitioned(0.5, 0.2)
    assert torch.equal(expected[0], found[0])
    assert not all(torch.allclose(a, b, rtol=0.1) for a, b in zip(expected, found, strict=True))
