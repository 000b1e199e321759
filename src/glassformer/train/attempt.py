"""Which try this is of ranks that are begun again when one of them ends, and how each of them ended.

A launcher (torchrun, or `--ranks` with `--restarts`) begins all ranks again after a crash. Whether it should depends on
why they ended, and the next try must know how long the run has taken and that `--fresh` was done. So every rank leaves
one line where its launcher keeps torch's error file, and one in the run's folder:

    <beside TORCHELASTIC_ERROR_FILE>/pid            who it is, so that a second Ctrl-C reaches it
    <beside TORCHELASTIC_ERROR_FILE>/end.json       how it ended: a line as below
    RUN/faults/ends.jsonl                           {"time", "attempt", "rank", "machine", "cause": {...}}, appended

No torch, and nothing here raises: what cannot be written must not hide why a rank ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glassformer.errors import GlassformerError, OutOfMemory, Stopped

RESTARTS, BEGUN = "GLASSFORMER_RESTARTS", "GLASSFORMER_BEGUN"
"""What `--ranks` tells its ranks: how often they were begun again, and the monotonic clock when they first were."""
ENDS = Path("faults") / "ends.jsonl"
INTERRUPTED = 130
_LINE = 2000
"""Most characters of a cause that are kept."""


class RankFailed(GlassformerError):
    """Another rank ended, and with it the run; nothing saved is lost."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why ranks end."""

    rank: int
    """The first that did; -1 where nobody knows."""
    what: str
    exit_code: int
    again: bool
    """Whether to begin again may help: not after a wrong flag, a damaged file or a signal to stop."""
    hangs: bool = False
    """It did not end by itself: where all ranks are is worth knowing."""

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Cause:
        """`error` ends this rank."""
        if isinstance(error, GlassformerError):
            return cls(rank, _short(str(error)), error.exit_code, isinstance(error, RankFailed | OutOfMemory))
        if isinstance(error, KeyboardInterrupt | GeneratorExit):
            return cls(rank, "it was interrupted", INTERRUPTED, False)
        return cls(rank, _short(f"{type(error).__name__}: {error}".strip(": ")), 1, True)

    def error(self) -> BaseException:
        """What another rank ends with because of it."""
        if self.exit_code == Stopped.exit_code:
            return Stopped(self.what)
        if self.exit_code == INTERRUPTED:
            return KeyboardInterrupt()
        goes_on = "the same command goes on from the last checkpoint."
        if self.rank < 0:
            return RankFailed(f"{self.what.rstrip('.')}.", do=goes_on.capitalize())
        return RankFailed(
            f"Rank {self.rank} failed: {self.what.rstrip('.')}.",
            do=f"The run ends with it; {'' if self.again else 'mend that, and '}{goes_on}",
        )


def number() -> int:
    """How often these ranks were begun again."""
    given = os.environ.get(RESTARTS) or os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"
    return int(given) if given.isdecimal() else 0


def spent() -> float:
    """Seconds since the launcher began these ranks for the first time; 0 where none did, or it cannot be known."""
    with contextlib.suppress(ValueError, OSError, KeyError):
        if BEGUN in os.environ:
            return max(0.0, time.monotonic() - float(os.environ[BEGUN]))
        if number() and (here := place()) is not None:
            return max(0.0, time.time() - (here.parents[1] / "attempt_0").stat().st_mtime)
    return 0.0


def made_since(file: Path) -> bool:
    """Whether an earlier try of this launch made the file: then `--fresh` was done."""
    with contextlib.suppress(OSError):
        return number() > 0 and file.stat().st_mtime > time.time() - spent() - 1.0
    return False


def is_launched() -> bool:
    """Whether torch's launcher looks after this process."""
    return place() is not None


def announce(rank: int) -> None:
    """Tell the launcher which process this rank is. Raises what ended the try before this one for good, where torchrun
    begins ranks again that ended on purpose."""
    if (here := place()) is None:
        return
    with contextlib.suppress(OSError):
        (here / "pid").write_text(str(os.getpid()), encoding="ascii")
    if number() and RESTARTS not in os.environ:
        before = here.parents[1] / f"attempt_{number() - 1}"
        causes = [Cause(**end["cause"]) for end in ends_below(before)]
        if causes and not any(cause.again for cause in causes):
            tell_end(causes[0], rank, None)
            raise causes[0].error()


def tell_end(cause: Cause, rank: int, run: Path | None) -> None:
    """Leave word of how this rank ends: beside the launcher's error file, and in the run's folder where it is here."""
    line = json.dumps(
        {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "attempt": number(),
            "rank": rank, "machine": socket.gethostname(), "cause": asdict(cause),
        }
    )  # fmt: skip
    if (here := place()) is not None:
        with contextlib.suppress(OSError):
            (here / "end.json").write_text(line, encoding="utf-8")
    if run is not None:
        append_end(run, line)


def append_end(run: Path, line: str) -> None:
    """Add a line to the run's `faults/ends.jsonl`; several processes may at once."""
    with contextlib.suppress(OSError):
        if (run / "recipe.toml").exists():
            (run / ENDS).parent.mkdir(exist_ok=True)
            handle = os.open(run / ENDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.encode() + b"\n")
            finally:
                os.close(handle)


def ends_below(folder: Path) -> Iterator[dict[str, Any]]:
    """Every end that the ranks of a launcher left below its folder."""
    for file in sorted(folder.rglob("end.json")):
        with contextlib.suppress(OSError, ValueError):
            yield json.loads(file.read_text(encoding="utf-8"))


def pids_below(folder: Path) -> list[int]:
    """The processes that announced themselves below a launcher's folder."""
    found = []
    for file in folder.rglob("pid"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(file.read_text(encoding="ascii")))
    return found


def place() -> Path | None:
    """The folder of this rank at its launcher: RUN_LOG/attempt_N/LOCAL_RANK."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(file).parent if file else None


def _short(text: str) -> str:
    return text if len(text) <= _LINE else text[:_LINE] + " ..."
