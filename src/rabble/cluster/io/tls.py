"""TLS 1.3 with certificates on both sides, and the node's name in them.

A node's certificate has the entry `URI:rabble://NAME` among its subject's alternative names, with
NAME percent-encoded (RFC 3986). Only such an entry makes a certificate one of a node: the
certificate of a host or a person says nothing about nodes, though the same authority may have
issued it. Host names are not checked: nodes move between hosts, and the name is what counts.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import ssl
import stat
import urllib.parse

from rabble.cluster.io.keys import read_private
from rabble.errors import KeyFileError

__all__ = [
    "PeerCertificate",
    "TlsConfig",
    "TlsContexts",
    "certificate_end",
    "certificate_fingerprint",
    "key_fingerprint",
    "peer_certificate",
    "peer_names",
    "uri_of",
]

SCHEME = "rabble://"
PEM_BEGIN, PEM_END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
#: More than a file of certificates ever has.
PEM_BYTES_MAX = 4 << 20


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
            read_file(path)
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


@dataclasses.dataclass(frozen=True, slots=True)
class TlsContexts:
    """What a node makes of its files.

    :param client: for connections that it dials.
    :param server: for connections that it accepts.
    :param ends_at: when its certificate ends, in seconds since 1970.
    :param fingerprint: of the public key in it.
    """

    client: ssl.SSLContext
    server: ssl.SSLContext
    ends_at: float
    fingerprint: bytes

    @classmethod
    def read(cls, config: TlsConfig) -> TlsContexts:
        """Read the files. For any thread.

        :raises KeyFileError: says which file cannot be used, and why.
        """
        return cls(
            config.client_context(),
            config.server_context(),
            certificate_end(config.cert),
            certificate_fingerprint(config.cert),
        )


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a file of certificates.

    :raises KeyFileError: if it cannot be read, or is no file. One that would keep the reader
        waiting, as a named pipe does, is none.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise KeyFileError(f"{path}: is not a regular file")
            return os.read(file, PEM_BYTES_MAX)
        finally:
            os.close(file)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error


def certificate_end(path: str | os.PathLike[str]) -> float:
    """When the first certificate of a file in PEM is no longer valid, in seconds since 1970.

    :raises KeyFileError: if there is none, or it has no such time.
    """
    try:
        return end_of_validity(first_certificate(path))
    except (ValueError, IndexError) as error:
        raise KeyFileError(f"{path}: no certificate in PEM: {error}") from error


def certificate_fingerprint(path: str | os.PathLike[str]) -> bytes:
    """The fingerprint of the public key in the first certificate of a file in PEM.

    :raises KeyFileError: if there is none.
    """
    try:
        return key_fingerprint(first_certificate(path))
    except (ValueError, IndexError) as error:
        raise KeyFileError(f"{path}: no certificate in PEM: {error}") from error


def first_certificate(path: str | os.PathLike[str]) -> bytes:
    """The first certificate of a file in PEM, as DER."""
    text = read_file(path).decode("ascii", "replace")
    begin, end = text.find(PEM_BEGIN), text.find(PEM_END)
    return ssl.PEM_cert_to_DER_cert(text[begin : end + len(PEM_END)])


def end_of_validity(der: bytes) -> float:
    """The field notAfter of a certificate (RFC 5280, section 4.1): `ssl` tells it of peers only."""
    _, validity, _ = element(from_validity(der))
    _, _, not_after = element(validity)
    kind, value, _ = element(not_after)
    text = value.decode("ascii")
    if kind == 0x17:  # UTCTime: two digits of the year
        text = ("19" if text[:2] >= "50" else "20") + text
    end = datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ")
    return end.replace(tzinfo=datetime.UTC).timestamp()


def key_fingerprint(der: bytes) -> bytes:
    """The SHA-256 of a certificate's public key: of the field subjectPublicKeyInfo, as DER.

    Of a certificate that is issued anew for the same key it is the same one.
    """
    _, _, from_subject = element(from_validity(der))
    _, _, from_key = element(from_subject)
    _, _, rest = element(from_key)
    return hashlib.sha256(from_key[: len(from_key) - len(rest)]).digest()


def from_validity(der: bytes) -> bytes:
    """What a certificate has from the field validity on (RFC 5280, section 4.1)."""
    _, certificate, _ = element(der)
    _, signed, _ = element(certificate)
    kind, _, rest = element(signed)
    if kind == 0xA0:  # the version, which need not be there
        _, _, rest = element(rest)
    for _ in range(2):  # past the algorithm and the issuer
        _, _, rest = element(rest)
    return rest


def element(der: bytes) -> tuple[int, bytes, bytes]:
    """The first element of some DER: its tag, what it holds, and what follows it."""
    size, head = der[1], 2
    if size & 0x80:
        head += size & 0x7F
        size = int.from_bytes(der[2:head], "big")
    if len(der) < head + size:
        raise ValueError("it ends too early")
    return der[0], der[head : head + size], der[head + size :]


def uri_of(name: str) -> str:
    """The entry that a node of that name has in its certificate."""
    return SCHEME + urllib.parse.quote(name, safe="")


@dataclasses.dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What counts of a peer's certificate.

    :param names: that it gives to nodes.
    :param fingerprint: of its public key, 32 bytes.
    """

    names: frozenset[str]
    fingerprint: bytes


def peer_certificate(connection: ssl.SSLObject | ssl.SSLSocket) -> PeerCertificate:
    """The peer's certificate, of a connection whose TLS handshake is done.

    :raises ssl.SSLError: if its public key cannot be found.
    """
    der = connection.getpeercert(binary_form=True)
    try:
        fingerprint = key_fingerprint(der or b"")
    except (ValueError, IndexError) as error:
        # Without it a ban could not be told to be of that peer.
        raise ssl.SSLError(f"the peer's certificate has no public key: {error}") from error
    return PeerCertificate(peer_names(connection), fingerprint)


def peer_names(connection: ssl.SSLObject | ssl.SSLSocket) -> frozenset[str]:
    """The names that the peer's certificate gives to nodes; empty if it is none of a node.

    :param connection: whose TLS handshake is done, of one of the contexts above.
    """
    try:
        certificate = connection.getpeercert() or {}
    except ValueError:
        # `ssl` reads all URIs of a certificate as UTF-8; the authority may have signed others.
        return frozenset()
    names = set()
    for entry in certificate.get("subjectAltName", ()):
        kind, value = entry[0], entry[1]
        if kind == "URI" and isinstance(value, str) and value.startswith(SCHEME):
            try:
                names.add(urllib.parse.unquote(value[len(SCHEME) :], errors="strict"))
            except UnicodeDecodeError:
                continue
    return frozenset(names)
