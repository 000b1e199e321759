"""`glassformer train --ranks N --restarts R`: the ranks of this machine, begun again when one of them dies.

Each try is one life of torch's own elastic agent, as torchrun would be: it starts the processes, keeps the store in
which they meet, and ends all of them when one ends. What is decided here is whether to begin again:

    a rank was killed, raised, or was ended because it hung    all begin again, from the last checkpoint
    a signal or a deadline stopped them, Ctrl-C twice          no: somebody wants them to end
    a wrong flag, a damaged file, numbers that diverged        no: they would end the same way

A signal to the launcher is passed on to all ranks, and they have as long as they need for a save. A second Ctrl-C is
passed on as well, and ends them at once. SIGQUIT makes every rank say where it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from json import dumps
from pathlib import Path

from glassformer.errors import Stopped
from glassformer.run.manifest import oom_kills
from glassformer.train import attempt
from glassformer.train.attempt import Cause
from glassformer.train.launch import cores, why_killed

_SAVE_SECONDS = 600
"""Ranks that were asked to stop are killed after so long."""
_ASKS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")


def start_ranks(
    count: int, arguments: Sequence[str], run: Path | None = None, restarts: int = 0,
    entry: Callable[..., None] | None = None,
) -> int:  # fmt: skip
    """`glassformer ARGUMENTS` in `count` processes that find each other; returns what they exit with.

    Those that die begin again up to `restarts` times. `run` is where they train: how they died is written there.
    `entry` is called with the arguments instead, in processes that are forked from this one.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    os.environ[attempt.BEGUN] = str(time.monotonic())
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the ranks say themselves what happened
    done = 0
    while True:
        os.environ[attempt.RESTARTS] = str(done)
        with tempfile.TemporaryDirectory(prefix="glassformer-ranks-") as said:
            code, cause = _one_life(count, arguments, Path(said), run, entry)
        if cause is None or not cause.again:
            return code
        do = f"all ranks begin again from the last checkpoint (restart {done + 1} of {restarts})"
        if done == restarts:
            do = f"after {restarts} restarts no more" if restarts else "the same command goes on"
            if cause.what.endswith("SIGKILL"):
                do += why_killed(None)
        print(f"error: {_sentence(cause)}: {do}.", file=sys.stderr, flush=True)
        if done == restarts:
            return code
        done += 1


def _one_life(
    count: int, arguments: Sequence[str], said: Path, run: Path | None, entry: Callable[..., None] | None
) -> tuple[int, Cause | None]:
    """(the exit code of the ranks, why they ended; None where all did what they should or were told to)."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id="glassformer", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, logs_specs=DefaultLogsSpecs(log_dir=str(said)),
        signals_to_handle="", local_addr="localhost", shutdown_timeout=_SAVE_SECONDS,
        start_method="fork" if entry else "spawn",
    )  # fmt: skip
    kills = oom_kills()
    with _signals(said) as heard:
        try:
            program = () if entry else ("-m", "glassformer")
            elastic_launch(config, entry or sys.executable)(*program, *arguments)
        except ChildFailedError as failed:
            codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
            cause = why(codes, [Cause(**end["cause"]) for end in attempt.ends_below(said)])
            if heard:
                return _told(said, heard[0]), None
            if cause.what.startswith("it was killed"):
                if cause.what.endswith("SIGKILL") and (certain := why_killed(kills)) != why_killed(None):
                    cause = Cause(cause.rank, cause.what + certain, 1, True)
                if run is not None:
                    attempt.append_end(run, _line(cause))
            return cause.exit_code, cause
        except SignalException as stopped:
            return _told(said, stopped.sigval), None
    return 0, None


def why(codes: Mapping[int, int], causes: Sequence[Cause]) -> Cause:
    """The one cause of what the ranks exited with and what they said."""
    for cause in sorted(causes, key=lambda cause: -len(cause.what)):
        if cause.hangs:  # it was killed for that
            return cause
    for rank, code in sorted(codes.items()):
        if code < 0 and code != -signal.SIGTERM:  # which is the launcher's, to those that were left
            return Cause(rank, f"it was killed by {signal.Signals(-code).name}", 1, True)
    if set(codes.values()) == {-signal.SIGTERM}:
        return Cause(min(codes), "it was terminated before it could save", 128 + signal.SIGTERM, False)
    worth = sorted(causes, key=lambda cause: (cause.rank < 0, not cause.again))
    if worth and worth[0].again:
        return worth[0]
    silent = sum(code in (1, Stopped.exit_code) for code in codes.values()) - len(causes)
    if silent > 0 and 1 in codes.values():
        rank = min(rank for rank, code in codes.items() if code == 1)
        return Cause(rank, "it ended before it could say why", 1, True)
    if worth:
        return worth[0]
    rank, code = next(((r, c) for r, c in sorted(codes.items()) if c > 1), (min(codes), 1))
    return Cause(rank, f"it ended with exit code {code}", code, code == 1)


def _told(said: Path, number: int) -> int:
    """The exit code after a signal to the launcher."""
    causes = [Cause(**end["cause"]) for end in attempt.ends_below(said)]
    saved = bool(causes) and all(cause.exit_code == Stopped.exit_code for cause in causes)
    return Stopped.exit_code if saved else 128 + number


@contextlib.contextmanager
def _signals(said: Path) -> Iterator[list[int]]:
    """The first signal ends the agent, which passes it on and waits for the ranks; later ones go to the ranks alone."""
    from torch.distributed.elastic.multiprocessing import SignalException

    heard: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        for pid in filter(_is_child, attempt.pids_below(said)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def hear(number: int, frame: object) -> None:
        heard.append(number)
        if len(heard) > 1:
            return pass_on(number, frame)
        raise SignalException(f"{signal.Signals(number).name} was received", signal.Signals(number))

    before = {signal.Signals[name]: signal.signal(signal.Signals[name], hear) for name in _ASKS}
    before[signal.SIGQUIT] = signal.signal(signal.SIGQUIT, pass_on)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_child(pid: int) -> bool:
    """Whether it is still the process that this one began: numbers are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())
    except OSError:
        return not Path("/proc/self/stat").exists()


def _sentence(cause: Cause) -> str:
    what = cause.what.splitlines()[0].rstrip(".")
    if cause.rank < 0:
        return what
    return f"Rank {cause.rank} {what.removeprefix('it ') if what.startswith('it ') else f'failed: {what}'}"


def _line(cause: Cause) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    end = {"time": now, "attempt": attempt.number(), "rank": None, "machine": socket.gethostname()}
    return dumps({**end, "cause": asdict(cause)})
