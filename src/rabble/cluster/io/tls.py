"""TLS 1.3 with certificates on both sides, and the node's name in them.

A node's certificate has the entry `URI:rabble://NAME` among its subject's alternative names, with
NAME percent-encoded (RFC 3986). Only such an entry makes a certificate one of a node: the
certificate of a host or a person says nothing about nodes, though the same authority may have
issued it. Host names are not checked: nodes move between hosts, and the name is what counts.
"""

from __future__ import annotations

import dataclasses
import os
import ssl
import urllib.parse

from rabble.cluster.io.keys import read_private
from rabble.errors import KeyFileError

__all__ = ["TlsConfig", "peer_names", "uri_of"]

SCHEME = "rabble://"


@dataclasses.dataclass(frozen=True, slots=True)
class TlsConfig:
    """The files that a node needs to speak TLS, all in PEM.

    :param cert: the node's certificate, followed by intermediate ones if there are any.
    :param key: its private key, not encrypted, which only its owner may read.
    :param ca: the certificates of the authorities that issue those of nodes. A private authority:
        whoever it gives a certificate of a node to is one.
    """

    cert: str | os.PathLike[str]
    key: str | os.PathLike[str]
    ca: str | os.PathLike[str]

    def client_context(self) -> ssl.SSLContext:
        """For connections that this node dials. Reads the files; for any thread.

        With TLS 1.3 a client's side is through before the server has looked at its certificate:
        the peer is up only when its answer to HELLO came.

        :raises KeyFileError: says which file cannot be used, and why.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        return self._loaded(context)

    def server_context(self) -> ssl.SSLContext:
        """For connections that this node accepts. Reads the files; for any thread.

        :raises KeyFileError: says which file cannot be used, and why.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Each connection shows its certificates anew: a session would outlive them.
        context.num_tickets = 0
        return self._loaded(context)

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.options |= ssl.OP_NO_TICKET
        read_private(self.key)
        # An error of ssl does not name the file.
        for path in (self.cert, self.ca):
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                raise KeyFileError(f"{path}: {error.strerror}") from error
        try:
            # Without a password OpenSSL would ask for one at the terminal, and wait.
            context.load_cert_chain(self.cert, self.key, password=b"")
        except (OSError, ValueError) as error:
            raise KeyFileError(
                f"{self.cert}, {self.key}: not a certificate in PEM and its private key, "
                f"not encrypted: {error}"
            ) from error
        try:
            context.load_verify_locations(cafile=self.ca)
        except (OSError, ValueError) as error:
            raise KeyFileError(f"{self.ca}: no certificates in PEM: {error}") from error
        return context


def uri_of(name: str) -> str:
    """The entry that a node of that name has in its certificate."""
    return SCHEME + urllib.parse.quote(name, safe="")


def peer_names(connection: ssl.SSLObject | ssl.SSLSocket) -> frozenset[str]:
    """The names that the peer's certificate gives to nodes; empty if it is none of a node.

    :param connection: whose TLS handshake is done, of one of the contexts above.
    """
    certificate = connection.getpeercert() or {}
    names = set()
    for entry in certificate.get("subjectAltName", ()):
        kind, value = entry[0], entry[1]
        if kind == "URI" and isinstance(value, str) and value.startswith(SCHEME):
            try:
                names.add(urllib.parse.unquote(value[len(SCHEME) :], errors="strict"))
            except UnicodeDecodeError:
                continue
    return frozenset(names)
