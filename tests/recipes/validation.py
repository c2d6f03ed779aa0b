"""What is checked on the way of a model to another node, for test_pydantic.py.

python validation.py
"""

from __future__ import annotations

import datetime
import logging

import bookings
from bookings import Booking

import rabble
from rabble import Mesh

logging.getLogger("rabble").setLevel(logging.CRITICAL)
day = datetime.date(2027, 1, 1)
mesh = Mesh()
with (
    rabble.rouse("web@127.0.0.1:0", mesh=mesh) as web,
    rabble.rouse("hotel@127.0.0.1:0", mesh=mesh) as hotel,
    web.mailbox() as news,
):
    bookings.start(hotel)
    web.subscribe_nodes(news.pid)
    web.join(hotel.node_id)
    news.receive(timeout=60)
    room = hotel.pid("room")
    print(web.call(room, Booking(guest=" ada ", arrival=day, nights=2)))
    try:
        web.call(room, Booking.model_construct(guest="eve", arrival=day, nights="three"))
    except rabble.DecodeError as error:
        print("DecodeError:", error)
    try:
        web.call(room, Booking.model_construct(guest="eve", arrival=day, nights=-1))
    except rabble.ProcessCrashed as error:
        print("ProcessCrashed:", error.detail)
