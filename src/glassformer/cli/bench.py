"""`glassformer bench`: what this machine can do, and what training makes of it."""

from __future__ import annotations

from typing import Any

from cyclopts import App

from glassformer.cli.overrides import Values
from glassformer.cli.terminal import document, facts, note
from glassformer.configs import build, override
from glassformer.train.config import EngineConfig
from glassformer.train.launch import prepare_process
from glassformer.units import show_bytes, show_count, show_flops, show_seconds

bench = App(name="bench", help="Measure this machine, and training on it.")


@bench.default
def machine(*, quick: bool = False, threads: int | None = None, json: bool = False) -> None:
    """Measure this machine, operation by operation, and keep what was found for `plan --hardware here`.

    Args:
        quick: Only the largest matrix products and memory, in a second; nothing is kept.
        threads: Threads to compute with; as many as there are cores.
        json: One JSON document instead of a table.
    """
    prepare_process(threads)
    if quick:
        from glassformer.train.bench import probe

        _show(probe(), json=json)
        return
    from glassformer.plan.machine import save_profile
    from glassformer.train.probing import profile

    found = profile(lambda what: note(f"measuring {what}"))
    path = save_profile(found)
    if json:
        document(found)
        return
    tables = {name for name, value in found.items() if isinstance(value, dict)} - {"machine"}
    best = {f"{name}_flops_per_second": rate for name, rate in found["best_flops_per_second"].items()}
    _show({**{k: v for k, v in found.items() if k not in tables}, **best, "kept in": str(path)}, json=False)


@bench.command
def train(
    shape: str = "124m",
    /,
    *,
    steps: int = 5,
    batch: int | None = None,
    threads: int | None = None,
    json: bool = False,
    engine: Values = None,
) -> None:
    """Measure training: real steps of a shape, on random tokens.

    Args:
        shape: tiny, baby (nanoGPT's), 124m (GPT-2's) or 1b.
        steps: Steps to time, after the first.
        batch: Rows in a batch; otherwise the shape's own.
        threads: Threads to compute with; as many as there are cores.
        json: One JSON document instead of a table.
        engine: --engine.KEY VALUE: how this machine is used; otherwise what is quickest.
    """
    config = build(EngineConfig, override({}, engine or {}), origin="The engine")
    prepare_process(threads)
    from glassformer.train.bench import bench_train

    _show(bench_train(shape, steps=steps, batch=batch, engine=config), json=json)


def _show(values: dict[str, Any], *, json: bool) -> None:
    if json:
        document(values)
        return
    units = {
        "flops_per_second": lambda value: f"{show_flops(value)}/s",
        "bytes_per_second": lambda value: f"{show_bytes(value)}/s",
        "tokens_per_second": show_count,
        "_bytes": show_bytes,
        "_seconds": show_seconds,
        "parameters": show_count,
        "utilisation": "{:.1%}".format,
    }
    flat = {**values.pop("machine", {}), **values}
    for name, value in flat.items():
        show = next((unit for ending, unit in units.items() if name.endswith(ending)), None)
        flat[name] = show(value) if show and value is not None else value
    accelerators = ", ".join(flat.pop("accelerators", ())) or None
    facts(
        {
            **{name: flat[name] for name in flat if name not in ("schema", "version")},
            "accelerators": accelerators,
        }
    )
