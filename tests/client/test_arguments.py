"""What a client is given is looked at when it is made, and not when it is first used."""

from __future__ import annotations

import pytest

from rabble.client import AsyncClient, Client
from rabble.services import server as servers


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"framing": servers.JsonLines}, "framing must be .* a codec, for a server"),
        ({"framing": servers.MsgpackCodec}, "framing must be .* a codec, for a server"),
        ({"framing": "json"}, "framing must be .* not 'json'"),
        ({"limits": servers.ServerLimits()}, "limits must be a ClientLimits or None, not Server"),
        ({"retry": 3}, "retry must be a RetryPolicy or None, not 3"),
        ({"tls": True}, "tls must be an ssl.SSLContext or None, not True"),
    ],
)
def test_arguments_of_other_types_are_refused_at_once(arguments, said):
    for cls in (Client, AsyncClient):
        with pytest.raises(TypeError, match=f"^{cls.__name__}: {said}"):
            cls("127.0.0.1:1", **arguments)
