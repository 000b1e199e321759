"""Rungs as tasks of a Ray cluster (`--on ray`): many machines, or many processes of this one.

The cluster is the one of RAY_ADDRESS, or a new one on this machine that ends with the ladder. Ray starts a task again
when its process or its machine dies; the rung then goes on from its checkpoint, as after any other death. Every
machine needs glassformer, the text and the ladder's folder at the same places: a shared disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from glassformer.errors import GlassformerError, Stopped, UsageError
from glassformer.scale.rungs import KILLED_AT_MOST, Job, Local, Told, train_rung
from glassformer.train.interrupt import Interrupt
from glassformer.train.launch import cores, prepare_process

_POLL = 0.2


class OnRay:
    """Trains rungs as Ray tasks with retries."""

    def __init__(self, local: Local) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError(
                "--on ray needs Ray, which is not installed.", do="pip install 'glassformer[cluster]'"
            ) from None
        self.ray, self.workers = ray, local.workers
        self.threads = local.threads or max(1, cores() // local.workers)

    def run(self, jobs: Sequence[Job], told: Told, interrupt: Interrupt) -> None:
        """Bring all to their ends. Raises Stopped when asked to stop, with everything saved."""
        ray, asked, stopped = self.ray, False, False
        with self._cluster():
            settings = {"OMP_NUM_THREADS": str(self.threads), "OMP_PROC_BIND": "false"}
            remote = ray.remote(
                num_cpus=self.threads, max_retries=KILLED_AT_MOST, runtime_env={"env_vars": settings}
            )(_task)
            running = {remote.options(name=job.name).remote(job.order()): job for job in jobs}
            while running:
                ended, _ = ray.wait(list(running), timeout=_POLL)
                for task in ended:
                    job = running.pop(task)
                    try:
                        why = ray.get(task)
                    except ray.exceptions.TaskCancelledError:
                        why = _STOPPED
                    except ray.exceptions.RayError as error:
                        why = " ".join(str(error).split())[:300]
                    stopped |= why == _STOPPED
                    if why != _STOPPED:
                        told(job, why)
                if (interrupt.reason is not None or stopped) and not asked:
                    asked = True
                    for task in running:
                        ray.cancel(task)
        if asked or stopped:
            reason = interrupt.reason or "a rung was stopped by somebody else"
            raise Stopped(f"Stopped: {reason}.", do="Everything is saved; the same command goes on.")

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        ray = self.ray
        if ray.is_initialized():
            yield
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False)
        else:
            ray.init(
                address="local",
                num_cpus=self.workers * self.threads,
                include_dashboard=False,
                log_to_driver=False,
            )
        try:
            yield
        finally:
            ray.shutdown()


_STOPPED = "stopped"


def _task(order: Mapping[str, Any]) -> str | None:
    """One rung, in a process of Ray's. None, or why it failed: what is wrong with a rung is not tried again."""
    prepare_process()
    try:
        train_rung(order)
    except Stopped:
        return _STOPPED
    except GlassformerError as error:
        return " ".join(str(error).split())[:300]
    return None
