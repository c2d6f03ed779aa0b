"""Whether what a client was given is of the right types, before it is used, which may be later."""

from __future__ import annotations

from typing import Any

from rabble.client.limits import ClientLimits
from rabble.client.retries import RetryPolicy
from rabble.texts import argument_text

__all__ = ["check_arguments"]


def check_arguments(name: str, framing: Any, limits: Any, retry: Any, tls: Any) -> None:
    """Raise the `TypeError` of a client where an argument is of another type.

    :param name: of the client's class.
    """
    # Codecs of servers have the same names as framings, and come from another module.
    if not callable(framing) or hasattr(framing, "compiled"):
        raise TypeError(
            f"{name}: framing must be MsgpackFrames, JsonLines or PlainLines of rabble.client, not "
            f"{argument_text(framing)}"
            + (": that is a codec, for a server" if hasattr(framing, "compiled") else "")
        )
    for what, value, cls in (("limits", limits, ClientLimits), ("retry", retry, RetryPolicy)):
        if value is not None and not isinstance(value, cls):
            raise TypeError(
                f"{name}: {what} must be a {cls.__name__} or None, not {argument_text(value)}"
            )
    if tls is not None and not hasattr(tls, "wrap_socket"):
        raise TypeError(
            f"{name}: tls must be an ssl.SSLContext or None, not {argument_text(tls)}; "
            f"ssl.create_default_context() makes one"
        )
