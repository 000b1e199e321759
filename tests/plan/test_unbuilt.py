"""What others have built and we have not (experts, windows, latent attention, adapters), against small torch models
written here, line by line, and torch's own counter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from glassformer.errors import UsageError
from glassformer.plan.adapters import Adapters, adapter_training, num_adapter_parameters
from glassformer.plan.architecture import Architecture, Latent
from glassformer.plan.flops import training

D, H, K, E, F_WIDTH, V, S, B = 24, 4, 2, 6, 40, 50, 8, 3


class Adapted(nn.Module):
    """A frozen matrix, and an adapter where there is one."""

    def __init__(self, inputs, outputs, rank):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs), requires_grad=rank is None)
        if rank:
            self.a = nn.Parameter(torch.randn(rank, inputs))
            self.b = nn.Parameter(torch.randn(outputs, rank))

    def forward(self, x):
        y = x @ self.weight.T
        return y + (x @ self.a.T) @ self.b.T if hasattr(self, "a") else y


class Layer(nn.Module):
    """Grouped attention, then a gated feed-forward part or experts. `ranks` of its adapters by name, or all trained."""

    def __init__(self, ranks=None, experts=0, active=0, shared=0, window=0):
        super().__init__()
        self.experts, self.active, self.window = experts, active, window
        self.norm1, self.norm2 = nn.RMSNorm(D), nn.RMSNorm(D)
        if ranks is not None:
            self.norm1.requires_grad_(False)
            self.norm2.requires_grad_(False)

        def linear(name, inputs, outputs):
            return Adapted(inputs, outputs, None if ranks is None else ranks.get(name, 0))

        self.q, self.k, self.v = linear("q", D, H * E), linear("k", D, K * E), linear("v", D, K * E)
        self.out = linear("out", H * E, D)
        count = experts + shared if experts else 1
        self.gate = nn.ModuleList(linear("gate", D, F_WIDTH) for _ in range(count))
        self.up = nn.ModuleList(linear("up", D, F_WIDTH) for _ in range(count))
        self.down = nn.ModuleList(linear("down", F_WIDTH, D) for _ in range(count))
        self.router = linear("router", D, experts) if experts else None

    def forward(self, x):
        y = self.norm1(x)
        q = self.q(y).view(B, S, H, E).transpose(1, 2)
        k, v = (m(y).view(B, S, K, E).transpose(1, 2).repeat_interleave(H // K, 1) for m in (self.k, self.v))
        z = self.windowed(q, k, v) if self.window else (q @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.out(z.transpose(1, 2).flatten(2))
        return x + self.fed(self.norm2(x))

    def windowed(self, q, k, v):
        """Each query by itself, with just the keys that it sees."""
        found = []
        for place in range(S):
            keys = slice(max(0, place - self.window + 1), place + 1)
            found.append(
                (q[:, :, place : place + 1] @ k[:, :, keys].transpose(-2, -1)).softmax(-1) @ v[:, :, keys]
            )
        return torch.cat(found, 2)

    def fed(self, y):
        def one(number, rows):
            return self.down[number](F.silu(self.gate[number](rows)) * self.up[number](rows))

        if self.router is None:
            return one(0, y)
        rows = y.flatten(0, 1)
        weights, chosen = self.router(rows).softmax(-1).topk(self.active)
        total = sum(one(number, rows) for number in range(self.experts, len(self.up)))
        for number in range(self.experts):
            mine, slot = (chosen == number).nonzero(as_tuple=True)
            total = total + torch.zeros_like(rows).index_add(
                0, mine, one(number, rows[mine]) * weights[mine, slot][:, None]
            )
        return total.view(B, S, D)


def flops_of(layers, *, frozen=False, backward=True):
    """torch's count for layers between an untied embedding and head; and all their numbers."""
    embed, head, norm = nn.Embedding(V, D), nn.Linear(D, V, bias=False), nn.RMSNorm(D)
    for part in (embed, head, norm):
        part.requires_grad_(not frozen)
    with FlopCounterMode(display=False) as counter:
        x = embed(torch.randint(V, (B, S)))
        for layer in layers:
            x = layer(x)
        loss = head(norm(x)).square().mean()
        if backward:
            loss.backward()
    numbers = sum(p.numel() for part in (embed, head, norm, *layers) for p in part.parameters())
    return counter.get_total_flops(), numbers


def architecture(**changes):
    values = {
        "layers": 2, "width": D, "heads": H, "kv_heads": K, "head_width": E, "ff_width": F_WIDTH, "ff_matrices": 3,
        "vocab": V, "tied": False,
    }  # fmt: skip
    return Architecture("small", **{**values, **changes})


@pytest.mark.parametrize(
    "targets",
    [
        ("q", "k", "v", "out", "gate", "up", "down"), ("q", "v"), ("k",), ("v",), ("out",), ("up", "down"), ("down",),
        ("gate",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_adapters_alone_are_counted_as_autograd_computes_them(targets):
    adapters = Adapters(rank=3, targets=targets)
    layers = [Layer(ranks=dict.fromkeys(targets, 3)) for _ in range(2)]
    found, _ = flops_of(layers, frozen=True)
    assert B * S * adapter_training(architecture(), adapters, S, fused=False) == found
    trained = sum(p.numel() for layer in layers for p in layer.parameters() if p.requires_grad)
    assert trained == num_adapter_parameters(architecture(), adapters)


def test_the_short_count_of_adapters_is_near_the_long_one():
    a = Architecture("7B", layers=32, width=4096, heads=32, kv_heads=32, head_width=128, ff_width=11008, ff_matrices=3,
                     vocab=32000, tied=False)  # fmt: skip
    for targets in (("q", "v"), Adapters().targets):
        adapters = Adapters(16, targets)
        short = training(a, 4096, trained=num_adapter_parameters(a, adapters))
        assert short == pytest.approx(adapter_training(a, adapters, 4096), rel=1e-3)
        assert 0.6 < short / training(a, 4096) < 0.75


def test_a_window_is_counted_key_by_key():
    for window in (1, 3, 8, 20):
        found, numbers = flops_of([Layer(window=window), Layer(window=window)])
        a = architecture(window=window, window_layers=2)
        assert B * S * training(a, S, convention="causal") == found
        assert a.parameters.total == numbers


def test_windows_in_some_layers_only():
    found, _ = flops_of([Layer(window=S), Layer(window=3)])
    assert B * S * training(architecture(window=3, window_layers=1), S, convention="causal") == found


@pytest.mark.parametrize("shared", [0, 1])
def test_experts_are_held_and_used_as_often_as_torch_says(shared):
    layers = [Layer(), Layer(experts=5, active=2, shared=shared)]
    found, numbers = flops_of(layers)
    a = architecture(experts=5, active=2, shared_experts=shared, expert_width=F_WIDTH, dense_layers=1)
    assert a.parameters.total == numbers
    assert B * S * training(a, S) == pytest.approx(found, rel=1e-3)
    assert numbers - a.active_parameters == 3 * 3 * D * F_WIDTH


def test_latent_attention_is_counted_matrix_by_matrix():
    """DeepSeek-V2's: q and kv through latent vectors of 10 and 8, 2 rotary entries, values of 4 entries a head."""
    q_rank, kv_rank, rotary, plain, value = 10, 8, 2, 6, 4
    w = {
        "q_down": (D, q_rank), "q_up": (q_rank, H * (plain + rotary)), "kv_down": (D, kv_rank + rotary),
        "kv_up": (kv_rank, H * (plain + value)), "out": (H * value, D), "up": (D, 2 * F_WIDTH), "down": (F_WIDTH, D),
        "head": (D, V),
    }  # fmt: skip
    w = {name: torch.randn(shape, requires_grad=True) for name, shape in w.items()}
    x = torch.randn(B, S, D, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        q = (x @ w["q_down"] @ w["q_up"]).view(B, S, H, -1).transpose(1, 2)
        low = x @ w["kv_down"]
        kv = (low[..., :kv_rank] @ w["kv_up"]).view(B, S, H, -1).transpose(1, 2)
        k = torch.cat([kv[..., :plain], low[..., kv_rank:][:, None].expand(B, H, S, rotary)], -1)
        z = (q @ k.transpose(-2, -1)).softmax(-1) @ kv[..., plain:]
        y = z.transpose(1, 2).flatten(2) @ w["out"]
        gate, up = (y @ w["up"]).chunk(2, -1)
        ((gate * up) @ w["down"] @ w["head"]).sum().backward()
    a = Architecture(
        "latent", layers=1, width=D, heads=H, kv_heads=H, head_width=plain + rotary, ff_width=F_WIDTH, ff_matrices=3,
        vocab=V, tied=False, latent=Latent(q_rank, kv_rank, rotary, value),
    )  # fmt: skip
    assert B * S * training(a, S) == counter.get_total_flops()
    norms = 3 * D + q_rank + kv_rank
    assert a.parameters.total == sum(m.numel() for m in w.values()) + V * D + norms


def test_adapters_that_change_nothing_are_refused():
    with pytest.raises(UsageError, match="No matrix is named 'query'"):
        Adapters(8, ("query",))
    with pytest.raises(UsageError, match="rank 0"):
        Adapters(0)
    with pytest.raises(UsageError, match="without experts"):
        adapter_training(architecture(experts=4, active=1, expert_width=8), Adapters(), 8)
