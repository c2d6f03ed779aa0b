"""A private authority and the certificates of its nodes, for those who have none: `rabble cert`.

Needs the package `cryptography`, the extra `rabble[cert]`; nodes themselves do without it. Keys are
P-256, which every TLS library speaks. Whatever the authority signs is a node of the cluster, so its
key stays on the machine where certificates are made.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rabble._core.ids import NodeId
from rabble.cluster.io.keys import read_private, write_private
from rabble.cluster.io.tls import uri_of
from rabble.errors import KeyFileError

__all__ = ["make_authority", "make_node_certificate"]

AUTHORITY_DAYS = 3_650
NODE_DAYS = 398
#: Certificates begin so long ago, for nodes whose clocks are behind.
BACKDATED = datetime.timedelta(hours=1)
#: The bound of a subject's common name (RFC 5280, appendix A).
COMMON_NAME_MAX = 64


def make_authority(folder: Path, now: datetime.datetime) -> tuple[Path, Path]:
    """Make the authority of a cluster.

    :param folder: gets its certificate `ca.pem` and its private key `ca.key`; made if need be.
    :param now: the time of day, with its zone.
    :returns: the two files.
    :raises KeyFileError: if they exist or cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise KeyFileError(f"{folder}: {error.strerror}") from error
    key = ec.generate_private_key(ec.SECP256R1())
    subject = named(f"rabble cluster {x509.random_serial_number():x}"[:COMMON_NAME_MAX])
    certificate = (
        certificate_of(subject, subject, key.public_key(), now, days=AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA256())
    )
    return write_both(folder, "ca", certificate, key)


def make_node_certificate(
    folder: Path, name: str, now: datetime.datetime, hosts: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Make a node's certificate, signed by the authority in the same folder.

    :param folder: has `ca.pem` and `ca.key`; gets `NAME.pem` and `NAME.key`, the name
        percent-encoded.
    :param name: of the node; it goes into the certificate as `URI:rabble://NAME`.
    :param now: the time of day, with its zone.
    :param hosts: names and addresses of hosts that go into the certificate too, for clients that
        check them; nodes do not.
    :returns: the two files.
    :raises KeyFileError: if the authority's files cannot be used or it has expired, and if the
        node's exist or cannot be written.
    :raises ValueError: if the name or a host is none.
    """
    NodeId(name, "localhost:0")
    authority, authority_key = read_authority(folder)
    if now >= authority.not_valid_after_utc:
        raise KeyFileError(f"{folder / 'ca.pem'}: expired at {authority.not_valid_after_utc}")
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.UniformResourceIdentifier(uri_of(name)), *map(host_entry, hosts)]
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        certificate_of(
            named(name[:COMMON_NAME_MAX]),
            authority.subject,
            key.public_key(),
            now,
            days=NODE_DAYS,
            end=authority.not_valid_after_utc,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return write_both(folder, urllib.parse.quote(name, safe=""), certificate, key)


def read_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The certificate and the key of the authority in a folder."""
    cert, private = folder / "ca.pem", folder / "ca.key"
    try:
        key = serialization.load_pem_private_key(read_private(private), password=None)
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    except OSError as error:
        raise KeyFileError(f"{cert}: {error.strerror}") from error
    except KeyFileError:
        raise
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{cert}, {private}: not what `rabble cert ca` makes") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or (
        certificate.public_key() != key.public_key()
    ):
        raise KeyFileError(f"{cert}, {private}: not a certificate and its private key")
    return certificate, key


def certificate_of(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    *,
    days: int,
    end: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    """A certificate without its extensions, valid for so many days, but not beyond `end`."""
    begin = now - BACKDATED
    last = begin + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(last if end is None else min(last, end))
    )


def key_usage(*, authority: bool) -> x509.KeyUsage:
    """What a key is for: the authority's to sign certificates, a node's to prove itself."""
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def named(name: str) -> x509.Name:
    """A subject of that common name, which is for people: nobody decides by it."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def host_entry(host: str) -> x509.GeneralName:
    """The entry of a host: an IP address, or a name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host or not host.isascii() or not host.isprintable() or set(host) & set(" :/@"):
        raise ValueError(f"host {ascii(host)} is neither a host's name in ASCII nor an IP address")
    return x509.DNSName(host)


def write_both(
    folder: Path, stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> tuple[Path, Path]:
    """Write a certificate and its key: both or none."""
    cert, private = folder / f"{stem}.pem", folder / f"{stem}.key"
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(private, pem)
    try:
        write_private(cert, certificate.public_bytes(serialization.Encoding.PEM))
    except BaseException:
        with contextlib.suppress(OSError):
            private.unlink()
        raise
    # A certificate is no secret.
    os.chmod(cert, 0o644)
    return cert, private
