"""Timers: a beat that starts its own successor, and an alarm that is called off.

A process does not sleep. It asks its executor for a timer and is sent a `Timeout`.
"""

from __future__ import annotations

from typing import Any

import rabble
from rabble import (
    CancelTimer,
    CorrelationId,
    Envelope,
    Output,
    Pid,
    Process,
    StartTimer,
    Timeout,
    TimerCancelled,
)

BEATS = 5
BEAT_MS = 20
ALARM_MS = 60_000


class Metronome(Process):
    """Beats five times, then calls its alarm off and says so."""

    def __init__(self, listener: Pid) -> None:
        self.listener = listener
        self.beats = 0

    def init(self) -> Output:
        self.beat = CorrelationId(self.pid, request=1)
        self.alarm = CorrelationId(self.pid, request=2)
        self.started = self.now
        return [
            Envelope(self.executor, StartTimer(self.beat, BEAT_MS)),
            Envelope(self.executor, StartTimer(self.alarm, ALARM_MS)),
        ]

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Timeout(timer) if timer == self.beat:
                self.beats += 1
                on_time = self.now - self.started >= self.beats * BEAT_MS / 1000
                said = f"beat {self.beats}, {'not early' if on_time else 'too early'}"
                if self.beats < BEATS:
                    then = StartTimer(self.beat, BEAT_MS)
                    return [Envelope(self.executor, then), Envelope(self.listener, said)]
                # After the acknowledgement no Timeout of the alarm can come any more.
                off = CancelTimer(self.alarm, acknowledge=True)
                return [Envelope(self.listener, said), Envelope(self.executor, off)]
            case Timeout(timer):
                return Envelope(self.listener, "the alarm went off")
            case TimerCancelled(_, was_active):
                state = "was still running" if was_active else "had gone off"
                return Envelope(self.listener, f"the alarm is cancelled, it {state}")
            case _:
                pass
        return None


def main() -> None:
    with rabble.rouse() as node, node.mailbox("listener") as listener:
        node.spawn(Metronome(listener.pid), "metronome")
        for _ in range(BEATS + 1):
            print(listener.receive(timeout=60).msg)


if __name__ == "__main__":
    main()
