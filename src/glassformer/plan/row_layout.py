"""The layout of a measured row: what its source printed, and for the rest what one would choose.

tensor and pipeline ranks   the fewest that hold weights and states
micro-batch                 up to 4 rows, where activations leave room and a pipeline keeps 4 a stage
interleaving                about two layers a part, in programs that know how to
ZeRO                        stage 1
"""

from __future__ import annotations

from collections.abc import Mapping

from glassformer.plan.architecture import Architecture
from glassformer.plan.hardware import Accelerator
from glassformer.plan.layout import Layout, Recompute

_RECOMPUTE = {"none": Recompute.NONE, "full": Recompute.FULL, "unknown": Recompute.NONE, "": Recompute.NONE}


def layout_of(
    line: Mapping[str, str], a: Architecture, accelerator: Accelerator, batch: int, tuned: bool
) -> Layout:
    """As published, or as one would choose it."""
    ranks = int(float(line["n_accel"]))
    if line["tp"]:
        tensor, pipeline, context = (_int(line, name, 1) for name in ("tp", "pp", "cp"))
    else:
        tensor, pipeline, context = layouts_like(a, accelerator, ranks, batch, tuned)
    data = max(1, ranks // (tensor * pipeline * context))
    alone = max(1, batch // data)
    interleave = _int(line, "vp", 0) or _interleave(line, a, pipeline)
    mode = _RECOMPUTE.get(line["recompute"], Recompute.SELECTIVE)
    length = int(float(line["seq_len"]))
    likely = 1 if tuned else micro_like(a, accelerator, alone, length, (tensor, pipeline, context), mode)
    micro = min(alone, _int(line, "micro_batch", likely))
    return Layout(
        data=data, tensor=tensor, pipeline=pipeline, interleave=interleave, context=context,
        expert=_int(line, "ep", 1), sharding=_int(line, "zero_stage", 1), micro_batch=micro,
        recompute=mode,
    )  # fmt: skip


def layouts_like(
    a: Architecture, accelerator: Accelerator, ranks: int, batch: int, tuned: bool
) -> tuple[int, int, int]:
    """Tensor, pipeline and context ranks that one would choose: the fewest that hold weights and states."""
    bytes_each = 2.3 if tuned else 6.0
    needed = a.parameters.total * bytes_each / (0.55 * accelerator.memory)
    most = min(8, max(1, accelerator.domain), ranks)
    tensor = 1
    while tensor < most and tensor < needed:
        tensor *= 2
    pipeline = 1
    while tensor * pipeline < needed and tensor * pipeline * 2 <= ranks:
        pipeline *= 2
    context = 1
    while ranks // (tensor * pipeline * context) > batch:
        context *= 2
    return tensor, pipeline, context


def micro_like(
    a: Architecture,
    accelerator: Accelerator,
    rows: int,
    length: int,
    divided: tuple[int, int, int],
    mode: Recompute,
) -> int:
    """Rows at once that one would choose: up to 4, where activations take less than 0.4 of the memory and a pipeline
    has 4 micro-batches for each stage."""
    tensor, pipeline, context = divided
    each = 2.0 if mode == Recompute.FULL else 34.0
    held = each * length / context * a.width / tensor * a.all_layers  # in flight: all stages' layers in all
    for micro in (4, 2):
        whole = rows % micro == 0 and (pipeline == 1 or rows // micro >= 4 * pipeline)
        if whole and held * micro < 0.4 * accelerator.memory:
            return micro
    return 1


def _interleave(line: Mapping[str, str], a: Architecture, pipeline: int) -> int:
    """Parts of a stage, where nobody says: about two layers each, in programs that know how to."""
    if pipeline == 1 or line["source"].startswith(("bigscience", "glm", "mtnlg")):
        return 1
    if line["source"].startswith("torchtitan"):
        return 2 if "interleaved" in line["sharding_note"] else 1
    return max(1, min(8, round(a.all_layers / pipeline / 2)))


def _int(line: Mapping[str, str], name: str, otherwise: int) -> int:
    return int(float(line[name])) if line.get(name) else otherwise
