"""Being asked to stop: finish the step, save, and say that the same command goes on (exit code 75)."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from glassformer.errors import Stopped
from glassformer.train import attempt

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]


class Interrupt:
    """Why to stop, or None. The first signal asks; a second Ctrl-C stops at once, and loses nothing saved."""

    def __init__(self, stop_after: float | None = None) -> None:
        self._deadline = None if stop_after is None else time.monotonic() + stop_after - attempt.spent()
        self._signal: str | None = None

    @property
    def reason(self) -> str | None:
        if self._signal is None and self._deadline is not None and time.monotonic() >= self._deadline:
            return "the time given by --stop-after is over"
        return self._signal

    def before_the_first_step(self, progress: Callable[[str], None]) -> Callable[[str], None]:
        """`progress`, until a signal comes: then, with nothing to save yet, training ends without a step."""

        def tell(message: str) -> None:
            if self._signal is not None:
                raise Stopped(
                    f"Stopped before the first step: {self._signal}.", do="The same command goes on."
                )
            progress(message)

        return tell

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Catch the signals in the block; in other threads than the main one only the deadline counts."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = f"{signal.Signals(number).name} was received"
