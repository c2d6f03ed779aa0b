"""The gather writer: bytes are sent from where they are, and let go of when they have gone."""

from __future__ import annotations

import random
import sys

import pytest

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, Pid
from tests.core.sessions import RECEIVER, SENDER, C, reader, session


@pytest.mark.parametrize("fragment_bytes", [16, 1000, 65536])
@pytest.mark.parametrize("size", [14, 65_531, 65_536, 70_000])
def test_large_bytes_are_sent_from_where_they_are_and_read_as_they_were(size, fragment_bytes):
    writer, to = session(fragment_bytes=fragment_bytes, pid_cache_slots=8192), reader()
    cid = CorrelationId(Pid("asker", C), 1, 2)
    payload = random.Random(size).randbytes(size)
    owners = sys.getrefcount(payload)
    for way in ("taken", "dropped"):
        sent = [Envelope(RECEIVER, payload, SENDER, cid), Envelope(RECEIVER, payload)]
        writer.write_all(sent)
        if way == "taken":
            received = to.decode(writer.take_data() + writer.take_bulk())
            assert received == sent
            assert [type(e.msg) for e in received] == [bytes, bytes]
            del received
        else:
            del writer
        del sent
        assert sys.getrefcount(payload) == owners
