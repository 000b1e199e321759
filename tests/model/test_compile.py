"""The decoder stays one graph for torch.compile, so that compiling it pays."""

import shutil

import pytest
import torch

from glassformer.model.stacks import Decoder, build

OPTIONS = [
    {},
    {"positions": "alibi", "gated": True, "qk_norm": True},
    {"positions": "learned", "norm_place": "post"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_is_one_graph(tiny, options):
    """No graph break: dynamo's trace, whatever then compiles it."""
    model, ids = build(tiny(**options)), torch.randint(0, 29, (2, 16))
    torch._dynamo.reset()
    traced = torch.compile(model.loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(ids, ids), model.loss(ids, ids))


if shutil.which("g++") or shutil.which("clang++"):  # without a compiler there is nothing to test

    @pytest.mark.slow
    @pytest.mark.filterwarnings("default")  # inductor's own
    def test_a_compiled_loss_and_its_gradients_equal_the_eager_ones(tiny):
        ids = torch.randint(0, 29, (2, 16))
        results = []
        for compiled in (False, True):
            model = Decoder(tiny())
            loss = (torch.compile(model.loss) if compiled else model.loss)(ids, ids)
            loss.backward()
            results.append([loss.detach(), *(p.grad for p in model.parameters())])
        for eager, compiled in zip(*results, strict=True):
            torch.testing.assert_close(eager, compiled, atol=1e-6, rtol=1e-4)
