"""Bytes on an accelerator at the worst moment of a step, part by part, on the rank that takes most: `memory`.

    all the time    weights, gradients, masters, optimizer, what ZeRO-3 gathers (states.py)
    in flight       what each layer keeps (kept.py) x layers of the stage x micro-batches in flight (stages.py)
    for a moment    a layer: what it computes again, and the gradients that flow through it;
                    or the loss, on the last stage: logits x (a + 4 in float32 + 4 of gradient); the larger of both
    besides         buffers of communication, context, fragments

Without recomputation a model of ours on one device is counted by model/count.py, which is held against torch's own
tensors; a test holds both counts against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from glassformer.plan.hardware import Accelerator
from glassformer.plan.kept import kept_by_layer, layer_tokens, stored, transient
from glassformer.plan.layout import Job, Number, Recompute
from glassformer.plan.stages import Held, held, in_flight, layer_kinds, layers_of, worst_candidates
from glassformer.plan.states import gathered, states

CONTEXT = 0.6e9
"""Bytes of a CUDA context with its kernels and workspaces."""
PROGRAM = 0.387e9
"""Resident bytes of Python, torch and what a run loads besides, on a CPU (benchmarks/plan_memory.py --here)."""
COMMUNICATORS = 1.2e9
"""Of NCCL's buffers, for each kind of group that a rank belongs to (data, tensor, pipeline, context)."""
BUCKET = 5e8
"""Numbers in each of DeepSpeed's two buckets by default (`reduce_bucket_size`, `allgather_bucket_size`)."""
FRAGMENTATION, PAGES = 0.02, 0.1
"""Of what comes and goes in a step, that the allocator holds and cannot give: torch's on a GPU, glibc's on a CPU."""
HOLES = 2.0
"""Arrays of logits beside those that live, on a CPU: the hole that an array has left takes none of the same size
(glibc's posix_memalign asks for more), and logits are the largest arrays (benchmarks/plan_memory.py --here)."""
INTERVAL = (0.96, 1.06)
"""The middle 80 % of measured / computed over the measured rows, each group left out in turn
(benchmarks/plan_memory.py)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the worst moment of a step on the rank that holds most; arrays where the layout's numbers are."""

    weights: Number
    gradients: Number
    masters: Number
    optimizer: Number
    gathered: Number
    """What ZeRO-3 has gathered: weights, and gradients before they are sharded."""
    activations: Number
    """Kept by the forward pass for the backward one, of all micro-batches in flight."""
    working: Number
    """The layer being computed: what it computes again, and its gradients. 0 where the loss is the worst moment."""
    logits: Number
    """With their float32 copy and gradient. 0 where a layer is the worst moment."""
    buffers: Number
    """Of communication; on a CPU, the copies of the state that a run keeps beside."""
    context: Number
    """CUDA and NCCL; on a CPU, the program itself."""
    fragmentation: Number
    stage: Number = 0
    """The pipeline stage, from 0, that takes most."""
    of_stages: Number = 1

    @property
    def states(self) -> Number:
        return self.weights + self.gradients + self.masters + self.optimizer

    @property
    def overhead(self) -> Number:
        return self.context + self.fragmentation

    @property
    def allocated(self) -> Number:
        """What the program's tensors take: `torch.cuda.max_memory_allocated`."""
        moving = self.activations + self.working + self.logits
        return self.states + self.gathered + self.buffers + moving

    @property
    def reserved(self) -> Number:
        """What its allocator takes from the accelerator: `torch.cuda.max_memory_reserved`."""
        return self.allocated + self.fragmentation

    @property
    def total(self) -> Number:
        """What the accelerator must have: `nvidia-smi`."""
        return self.reserved + self.context

    @property
    def where(self) -> str:
        """The worst rank, in words."""
        i, p = int(np.ravel(self.stage)[0]), int(np.ravel(self.of_stages)[0])
        if p == 1:
            return "every rank"
        ends = " with the embedding" if i == 0 else " with the head" if i == p - 1 else ""
        return f"stage {i + 1} of {p}{ends}"

    def rows(self) -> list[dict[str, Any]]:
        """One a part: its name, bytes and formula."""
        parts = [
            {"name": field.name, "bytes": getattr(self, field.name), "formula": FORMULAS[field.name]}
            for field in fields(self)
            if field.name in FORMULAS
        ]
        return [*parts, {"name": "total", "bytes": self.total, "formula": "their sum"}]


FORMULAS = {
    "weights": "bytes of a weight x P, / n from ZeRO-3; none where ZeRO-3 gathers them from masters",
    "gradients": "bytes of a gradient x P, / n from ZeRO-2",
    "masters": "4 P in mixed precision, / n from ZeRO-1",
    "optimizer": "numbers of the optimiser x bytes of a moment x P, / n from ZeRO-1",
    "gathered": "ZeRO-3: 2 layers, embedding and head, and the gradient of a layer; in a pipeline the whole stage",
    "activations": "sum over layers of what each keeps x micro-batches in flight",
    "working": "one layer computed again, and the gradients that flow through it",
    "logits": "b s V / (t c) x (a + 4 + 4)",
    "buffers": "what tensor ranks gather, what stages hand on, buckets of gradients; on a CPU, copies of the state",
    "context": "CUDA and NCCL; on a CPU, Python and torch",
    "fragmentation": "a share of what comes and goes; on a CPU, room that a copy of the state took between steps",
}


def memory(job: Job) -> Memory:
    """Bytes on the rank that takes most; for each layout, where they are many."""
    if _is_ours(job):
        return _counted(job)
    stages = worst_candidates(job.architecture, job.layout)
    many = memory_of_stage(job, stages)
    shape = np.broadcast_shapes(np.shape(many.total), stages.shape)
    worst = np.argmax(np.broadcast_to(many.total, shape), axis=0)[None]
    parts = {}
    for field in fields(Memory):
        every = np.broadcast_to(getattr(many, field.name), shape)
        best = np.take_along_axis(every, worst, axis=0)[0]
        parts[field.name] = best if best.ndim else best.item()
    return Memory(**parts)


def total_bytes(job: Job) -> Number:
    """`memory(job).total` of many layouts, without its parts."""
    every = memory_of_stage(job, worst_candidates(job.architecture, job.layout))
    most: NDArray[np.float64] = np.asarray(every.total).max(0)
    return most


def _is_ours(job: Job) -> bool:
    """Whether model/count.py, which is held against torch itself, counts this job: a model of ours, on one device."""
    if job.architecture.config is None:
        return False
    from glassformer.model import count  # it loads pydantic, which no published model needs

    layout, named = job.layout, job.precision.name in get_args(count.Precision)
    alone = (
        all(np.ndim(getattr(layout, one.name)) == 0 for one in fields(layout)) and layout.accelerators == 1
    )
    countable = job.optimizer in get_args(count.Optimizer) and layout.recompute != Recompute.SELECTIVE
    mine = not job.software.fused_kernels and job.trained is None and not job.software.offload_optimizer
    return alone and named and countable and mine


def _counted(job: Job) -> Memory:
    from glassformer.model import count

    config = job.architecture.config
    assert config is not None
    layers = job.architecture.all_layers if job.layout.recompute == Recompute.FULL else 0
    found = count.memory(
        config, batch=int(job.layout.micro_batch), length=job.length, fused=job.fused_attention, recomputed=layers,
        precision=cast(count.Precision, job.precision.name), optimizer=cast(count.Optimizer, job.optimizer),
    )  # fmt: skip
    kind = layer_kinds(job.architecture)[-1]
    again = sum(one.bytes for one in kept_by_layer(job, kind)) if layers else 0.0
    working = float(again + transient(job, kind))
    entries = min(job.layout.micro_batch * job.length * config.vocab_size, count.LOGITS_AT_ONCE)
    logits = found.logits + 4.0 * entries  # for a moment, two steps of the loss's gradient
    cast_weights, masters = (found.copies, 0) if job.precision.name == "autocast" else (0, found.copies)
    is_cpu = runs_on_cpu(job.accelerator)
    state = (masters or found.weights) + found.optimizer
    moving = found.activations + max(working, logits)
    holes = is_cpu * HOLES * 4.0 * entries
    return Memory(
        weights=found.weights, gradients=found.gradients, masters=masters, optimizer=found.optimizer,
        gathered=cast_weights, activations=found.activations, working=working if working >= logits else 0.0,
        logits=logits if working < logits else 0.0, buffers=is_cpu * job.software.copies * state,
        context=PROGRAM if is_cpu else CONTEXT, fragmentation=_fragments(job, moving, state) + holes,
    )  # fmt: skip


def _fragments(job: Job, moving: Number, state: Number) -> Number:
    """Held and not to be given. On a CPU, a copy of the state is made between steps, where they had their room."""
    if not runs_on_cpu(job.accelerator):
        return FRAGMENTATION * moving
    return PAGES * moving + (np.minimum(moving, state) if job.software.copies else 0.0)


def memory_of_stage(job: Job, stage: NDArray[Any]) -> Memory:
    """Bytes on a rank of these stages."""
    a, layout, software = job.architecture, job.layout, job.software
    mine = held(a, layout, stage)
    state = states(job, mine, stage)
    kinds, numbers = layer_kinds(a), layers_of(a, layout, stage)
    flying = in_flight(layout, job.micro_batches, stage, software.schedule)
    kept = [kept_by_layer(job, kind) for kind in kinds]
    activations = sum(n * stored(job, one) for n, one in zip(numbers, kept, strict=True)) * flying
    layer = np.zeros_like(activations)  # the largest of this stage, while its gradient is computed
    for kind, n, each in zip(kinds, numbers, kept, strict=True):
        again = sum(one.bytes for one in each) - stored(job, each)
        layer = np.maximum(layer, np.where(n > 0, again + transient(job, kind), 0))
    last = stage == np.asarray(layout.pipeline) - 1
    head, logits = _loss(job)
    activations = activations + last * head
    if software.engine == "deepspeed":
        handed = job.precision.activation * a.width * layer_tokens(job, kinds[-1])
        activations = activations + flying * handed * (np.asarray(layout.pipeline) > 1)
    loss = last * logits
    whole = gathered(job, mine)
    buffers = _buffers(job, mine)
    moving = whole + buffers + (activations + np.maximum(layer, loss))
    whole_state = (state["weights"] if job.precision.master == 0 else state["masters"]) + state["optimizer"]
    if runs_on_cpu(job.accelerator):
        buffers = buffers + software.copies * whole_state
    return Memory(
        **state, gathered=whole, activations=activations, working=np.where(loss > layer, 0, layer),
        logits=np.where(loss > layer, loss, 0), buffers=buffers, context=_context(job),
        fragmentation=_fragments(job, moving, whole_state), stage=stage, of_stages=layout.pipeline,
    )  # fmt: skip


def runs_on_cpu(accelerator: Accelerator) -> bool:
    """Whether it is a processor, whose memory is the machine's."""
    return "cpu" in f"{accelerator.vendor} {accelerator.name}".lower()


def _loss(job: Job) -> tuple[Any, Any]:
    """(what the last stage keeps of norm and head, logits at the worst moment)."""
    a, of, layout, software = job.architecture, job.precision, job.layout, job.software
    if a.kind == "network":
        n = layout.micro_batch * job.length
        return 0.0, n * a.widths[-1] * 8.0
    n = layer_tokens(job, layer_kinds(a)[-1])
    t = np.asarray(layout.tensor)
    streams = np.where(layout.sequence_parallel, t, 1)
    head = n / streams * a.width * 2 * of.activation
    ways: dict[str, Any] = {"in_place": 8.0, "torch": np.where(t > 1, 16.0, 12.0), "fused": of.activation}
    copies = ways[software.loss]
    entries = np.minimum(n * a.vocab, 2**24) if job.chunked_loss else n * a.vocab
    float32 = 4.0 if of.activation == 4 and software.loss != "fused" else 0.0  # needs no copy
    return head, entries / t * (of.activation + copies - float32)


def _buffers(job: Job, mine: Held) -> Any:
    """What tensor ranks gather of a divided stream, keys of other context ranks, what stages hand on."""
    a, layout, of = job.architecture, job.layout, job.precision
    if a.kind == "network":
        return 0.0
    n = layer_tokens(job, layer_kinds(a)[-1])
    t, c = np.asarray(layout.tensor), np.asarray(layout.context)
    streams = np.where(layout.sequence_parallel, t, 1)
    whole = np.where((t > 1) & (streams > 1), 2 * of.activation * a.width * n, 0)
    keys = np.where(c > 1, 2 * of.activation * a.kv_width * n * c / np.minimum(t, a.kv_heads), 0)
    handed = np.where(np.asarray(layout.pipeline) > 1, 2 * of.activation * a.width * n / streams, 0)
    ranks = layout.data * c
    if job.software.engine == "deepspeed":
        flat = 4 * mine.total / ranks if not job.software.offload_optimizer else 0
        buckets = 2 * of.weight * np.minimum(BUCKET, mine.total) + flat
        whole = whole + np.where(np.asarray(layout.sharding) > 0, buckets, 0)
    return whole + keys + handed


def _context(job: Job) -> Any:
    if runs_on_cpu(job.accelerator):
        return PROGRAM
    groups = [job.layout.data, job.layout.tensor, job.layout.pipeline, job.layout.context]
    return CONTEXT + COMMUNICATORS * sum((np.asarray(one) > 1).astype(float) for one in groups)


@dataclass(frozen=True, slots=True)
class Fits:
    """Bytes with their interval, against what the accelerator has."""

    low: Number
    value: Number
    high: Number
    capacity: float
    """The accelerator's memory."""

    @property
    def fits(self) -> Any:
        """Whether it does for certain: the upper end of the interval is less than there is."""
        return self.high <= self.capacity

    @property
    def hopeless(self) -> Any:
        """Whether even the lower end is more than there is."""
        return self.low > self.capacity

    @property
    def free(self) -> Number:
        """Bytes left at the upper end; negative: missing."""
        return self.capacity - self.high


def fits(job: Job) -> Fits:
    """Whether the step fits into the accelerator's memory, with the middle 80 % of what was measured as margin."""
    value = memory(job).total
    return Fits(value * INTERVAL[0], value, value * INTERVAL[1], job.accelerator.memory)
