"""Ctrl-C that ends a run at the end of a step."""

from __future__ import annotations

import signal
import threading


class stop_signals:
    """While inside, Ctrl-C and SIGTERM set an event instead of interrupting a half-done step. A second Ctrl-C interrupts at once."""

    def __enter__(self) -> threading.Event:
        self.event, self.kept = threading.Event(), {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.kept[number] = signal.signal(number, self._stop)
        return self.event

    def _stop(self, number: int, frame: object) -> None:
        if self.event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.event.set()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.kept.items():
            signal.signal(number, handler)
