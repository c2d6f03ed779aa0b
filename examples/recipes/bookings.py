"""A hotel: pydantic models that a web client sends are the messages of a process.

rabble node hotel@127.0.0.1:4000 --app bookings:start --cluster shop
"""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import BaseModel, Field, field_validator

import rabble
from rabble import CorrelationId, Node, Output, Pid, Process


@rabble.message(name="bookings.Booking")
class Booking(BaseModel, frozen=True):
    """What a guest wants."""

    guest: Annotated[str, Field(min_length=1, max_length=80)]
    arrival: datetime.date
    nights: Annotated[int, Field(ge=1, le=30)]

    @field_validator("guest")
    @classmethod
    def without_spaces_around(cls, value: str) -> str:
        return value.strip()


@rabble.message(name="bookings.Confirmed")
class Confirmed(BaseModel, frozen=True):
    """The guest has the room."""

    number: int
    departure: datetime.date


@rabble.message(name="bookings.Full")
class Full(BaseModel, frozen=True):
    """Somebody else has it then."""

    until: datetime.date


class Room(Process[Booking]):
    """A room, and who has it."""

    def __init__(self) -> None:
        self.bookings: list[tuple[datetime.date, datetime.date]] = []

    def receive(
        self, msg: Booking, sender: Pid | None, correlation_id: CorrelationId | None
    ) -> Output:
        if msg.nights < 1:
            # Validators run where a model is made, and a member of the mesh may make it otherwise.
            raise ValueError(f"{msg.nights} nights")
        departure = msg.arrival + datetime.timedelta(days=msg.nights)
        for begin, end in self.bookings:
            if msg.arrival < end and begin < departure:
                return rabble.reply(Full(until=end), sender, correlation_id)
        self.bookings.append((msg.arrival, departure))
        answer = Confirmed(number=len(self.bookings), departure=departure)
        return rabble.reply(answer, sender, correlation_id)


def start(node: Node) -> None:
    """For `rabble node --app bookings:start`."""
    node.names.register("room", node.spawn(Room(), "room"))
