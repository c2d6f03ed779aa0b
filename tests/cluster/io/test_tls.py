"""TLS between nodes over real sockets: who is let in, and by which name."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rabble import KeyFileError, NodeId
from rabble.cluster.decide.handshake import (
    Authenticate,
    Authorize,
    Established,
    Failed,
    Handshake,
    HandshakeConfig,
    Role,
    Send,
)
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.io.tls import TlsConfig, TlsContexts, certificate_end, peer_names, uri_of
from tests.cluster.mesh import nothing_left
from tests.support import PATIENCE_S

A = NodeId("alpha", "127.0.0.1:7001")
B = NodeId("beta", "127.0.0.1:7002")
TODAY = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)

#: What one side came to: the end of its handshake, or the error of its stream.
End = Established | Failed | OSError


class Issuer:
    """An authority of trustme that gives nodes their names, which trustme itself cannot."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        pem = self.authority.private_key_pem.bytes()
        self.key = serialization.load_pem_private_key(pem, None)
        self.certificate = x509.load_pem_x509_certificate(self.authority.cert_pem.bytes())

    def issue(
        self,
        stem: str,
        names: list[x509.GeneralName] | x509.UnrecognizedExtension,
        end: datetime.datetime | None = None,
    ) -> TlsConfig:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, stem)]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(TODAY - 9 * DAY)
            .not_valid_after(end or TODAY + 9 * DAY)
        )
        if isinstance(names, x509.UnrecognizedExtension):
            builder = builder.add_extension(names, critical=False)
        elif names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        cert, private = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private.touch(mode=0o600)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return TlsConfig(cert, private, self.ca)

    def node(self, name: str, end: datetime.datetime | None = None) -> TlsConfig:
        return self.issue(name, [x509.UniformResourceIdentifier(uri_of(name))], end)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def alpha(issuer: Issuer) -> TlsConfig:
    return issuer.node("alpha")


@pytest.fixture(scope="module")
def beta(issuer: Issuer) -> TlsConfig:
    return issuer.node("beta")


def carry(stream: socket.socket, handshake: Handshake) -> Established | Failed:
    """What a server does: carry a handshake over a stream to its end."""
    actions = handshake.start()
    while True:
        for action in actions:
            if isinstance(action, Send):
                stream.sendall(action.data)
            elif isinstance(action, Authenticate):
                stream.sendall(action.proof)
            elif isinstance(action, Authorize):
                actions = handshake.decide(None)
                break
            else:
                return action
        else:
            data = stream.recv(4_096)
            if not data:
                raise ConnectionResetError("the stream ended before the handshake")
            actions = handshake.receive(data, time.monotonic())


def one_side(
    raw: socket.socket, context: ssl.SSLContext | None, role: Role, own: NodeId
) -> Established | Failed:
    """Speak TLS, if there is a context, and then the handshake."""
    stream, certified = raw, None
    if context is not None:
        stream = context.wrap_socket(
            raw, server_side=role is Role.RESPONDER, suppress_ragged_eofs=False
        )
        certified = peer_names(stream)
    try:
        config = HandshakeConfig(own, 1, secured=True)
        nonce = own.name.encode().ljust(32)
        return carry(stream, Handshake(role, config, nonce, time.monotonic(), certified=certified))
    finally:
        stream.close()


def meet(
    client: ssl.SSLContext | None, server: ssl.SSLContext | None, own: NodeId = A, peer: NodeId = B
) -> tuple[End, End]:
    """What the dialling and the dialled node come to."""
    ends: dict[Role, End] = {}
    near, far = socket.socketpair()

    def run(raw: socket.socket, context: ssl.SSLContext | None, role: Role, node: NodeId) -> None:
        with raw:
            raw.settimeout(PATIENCE_S)
            try:
                ends[role] = one_side(raw, context, role, node)
            except OSError as error:
                ends[role] = error

    threads = [
        threading.Thread(target=run, args=(near, client, Role.INITIATOR, own)),
        threading.Thread(target=run, args=(far, server, Role.RESPONDER, peer)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for end in ends.values():
        assert not isinstance(end, TimeoutError), ends
    return ends[Role.INITIATOR], ends[Role.RESPONDER]


def refused(ends: tuple[End, End]) -> None:
    """Neither is up, least of all the one that dialled."""
    for end in ends:
        assert not isinstance(end, Established), ends


def test_two_nodes_with_certificates_of_their_names(alpha: TlsConfig, beta: TlsConfig) -> None:
    left, right = meet(alpha.client_context(), beta.server_context())
    assert isinstance(left, Established) and left.peer.node == B
    assert isinstance(right, Established) and right.peer.node == A


def test_what_is_spoken_is_tls_1_3_without_sessions(alpha: TlsConfig, beta: TlsConfig) -> None:
    for context in (alpha.client_context(), beta.server_context()):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert not context.check_hostname
    assert beta.server_context().num_tickets == 0


def test_no_client_certificate(issuer: Issuer, beta: TlsConfig) -> None:
    """The dialling side's TLS is through, and must not be taken for an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(issuer.ca)
    ends = meet(context, beta.server_context())
    refused(ends)
    assert isinstance(ends[1], ssl.SSLError)
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in str(ends[1])


@pytest.mark.parametrize("stranger", ["client", "server"])
def test_another_authority(
    stranger: str, alpha: TlsConfig, beta: TlsConfig, tmp_path: Path
) -> None:
    theirs = Issuer(tmp_path / "theirs").node("alpha" if stranger == "client" else "beta")
    # Even if it trusts ours.
    theirs = TlsConfig(theirs.cert, theirs.key, alpha.ca)
    if stranger == "client":
        ends = meet(theirs.client_context(), beta.server_context())
    else:
        ends = meet(alpha.client_context(), theirs.server_context())
    refused(ends)
    failed = ends[1] if stranger == "client" else ends[0]
    assert isinstance(failed, ssl.SSLCertVerificationError)


@pytest.mark.parametrize("role", ["client", "server"])
def test_an_expired_certificate(
    role: str, issuer: Issuer, alpha: TlsConfig, beta: TlsConfig
) -> None:
    if role == "client":
        expired = issuer.node("alpha-expired", TODAY - DAY)
        ends = meet(expired.client_context(), beta.server_context())
    else:
        expired = issuer.node("beta-expired", TODAY - DAY)
        ends = meet(alpha.client_context(), expired.server_context())
    refused(ends)
    failed = ends[1] if role == "client" else ends[0]
    assert isinstance(failed, ssl.SSLCertVerificationError)
    assert "expired" in str(failed)


@pytest.mark.parametrize("liar", ["client", "server"])
def test_the_certificate_of_another_node(
    liar: str, issuer: Issuer, alpha: TlsConfig, beta: TlsConfig
) -> None:
    gamma = issuer.node("gamma")
    if liar == "client":
        ends = meet(gamma.client_context(), beta.server_context())
    else:
        ends = meet(alpha.client_context(), gamma.server_context())
    refused(ends)
    for end in ends:
        assert isinstance(end, Failed) and end.code is RefusalCode.NAME_MISMATCH


def test_a_certificate_of_a_host_is_none_of_a_node(issuer: Issuer, beta: TlsConfig) -> None:
    host = issuer.issue("host", [x509.DNSName("alpha")])
    ends = meet(host.client_context(), beta.server_context())
    refused(ends)
    assert isinstance(ends[1], Failed) and ends[1].code is RefusalCode.NAME_MISMATCH


@pytest.mark.parametrize("old", ["client", "server"])
def test_tls_1_2(old: str, alpha: TlsConfig, beta: TlsConfig) -> None:
    client, server = alpha.client_context(), beta.server_context()
    context = client if old == "client" else server
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    ends = meet(client, server)
    refused(ends)
    assert all(isinstance(end, OSError) for end in ends)


@pytest.mark.parametrize("plain", ["client", "server"])
def test_a_node_with_tls_and_one_without(plain: str, alpha: TlsConfig, beta: TlsConfig) -> None:
    if plain == "client":
        ends = meet(None, beta.server_context())
    else:
        ends = meet(alpha.client_context(), None)
    refused(ends)


# The names in a certificate.


def connected(
    client: ssl.SSLContext, server: ssl.SSLContext
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Two ends of TLS in memory whose handshake is done."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(back, there, server_side=False)
    far = server.wrap_bio(there, back, server_side=True)
    steps: list[Callable[[], None]] = [near.do_handshake, far.do_handshake]
    while steps:
        step = steps.pop(0)
        try:
            step()
        except ssl.SSLWantReadError:
            steps.append(step)
    return near, far


URI = x509.UniformResourceIdentifier


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([URI("rabble://alpha")], {"alpha"}),
        ([URI("rabble://alpha"), URI("rabble://beta")], {"alpha", "beta"}),
        ([URI(uri_of("caf\u00e9/1 %"))], {"caf\u00e9/1 %"}),
        ([URI("rabble://%ff"), URI("rabble://b")], {"b"}),
        ([URI("spiffe://alpha"), URI("https://alpha"), x509.DNSName("alpha")], set()),
        ([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], set()),
        ([], set()),
    ],
)
def test_names_in_a_certificate(
    names: list[x509.GeneralName], found: set[str], issuer: Issuer, beta: TlsConfig
) -> None:
    config = issuer.issue("names", names)
    near, far = connected(config.client_context(), beta.server_context())
    assert peer_names(far) == found
    assert peer_names(near) == {"beta"}


def test_a_certificate_that_cannot_be_read_names_no_node(issuer: Issuer, beta: TlsConfig) -> None:
    """`ssl` raises for a URI that is not UTF-8, which an authority may have signed for a host."""
    uri = b"rabble://alpha\xff"
    general_name = bytes([0x86, len(uri)]) + uri
    names = x509.UnrecognizedExtension(
        x509.SubjectAlternativeName.oid, bytes([0x30, len(general_name)]) + general_name
    )
    near, far = connected(issuer.issue("odd", names).client_context(), beta.server_context())
    with pytest.raises(UnicodeDecodeError):
        far.getpeercert()
    assert peer_names(far) == frozenset()


def test_what_rabble_cert_makes_is_good_for_both_sides(tmp_path: Path) -> None:
    from rabble.cluster.io.certificates import make_authority, make_node_certificate

    ca, _ = make_authority(tmp_path, TODAY)
    configs = [TlsConfig(*make_node_certificate(tmp_path, node.name, TODAY), ca) for node in (A, B)]
    contexts = [configs[0].client_context(), configs[1].server_context()]
    for context in contexts:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    left, right = meet(*contexts)
    assert isinstance(left, Established) and isinstance(right, Established)


# Files that cannot be used.


def test_files_that_cannot_be_used(alpha: TlsConfig, beta: TlsConfig, tmp_path: Path) -> None:
    none, empty = tmp_path / "none.pem", tmp_path / "empty.pem"
    empty.touch(mode=0o600)
    private = Path(alpha.key).read_bytes()
    readable, locked = tmp_path / "readable.key", tmp_path / "locked.key"
    readable.write_bytes(private)
    readable.chmod(0o644)
    locked.touch(mode=0o600)
    locked.write_bytes(
        serialization.load_pem_private_key(private, None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a password"),
        )
    )
    for config, said in [
        (TlsConfig(none, alpha.key, alpha.ca), "none.pem: No such file"),
        (TlsConfig(alpha.cert, none, alpha.ca), "none.pem: No such file"),
        (TlsConfig(alpha.cert, alpha.key, none), "none.pem: No such file"),
        (TlsConfig(empty, alpha.key, alpha.ca), "empty.pem, .*: not a certificate"),
        (TlsConfig(alpha.cert, beta.key, alpha.ca), "not a certificate in PEM and its private"),
        (TlsConfig(alpha.cert, alpha.key, empty), "empty.pem: no certificates"),
        (TlsConfig(alpha.cert, readable, alpha.ca), "has mode 0644"),
        (TlsConfig(alpha.cert, locked, alpha.ca), "not encrypted"),
    ]:
        for make in (config.client_context, config.server_context):
            with pytest.raises(KeyFileError, match=said):
                make()


# Files that change.


def named(name: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(uri_of(name))]


@pytest.mark.parametrize("year", [2030, 2049, 2050, 2123])
def test_the_end_of_a_certificate_is_read_from_its_file(issuer: Issuer, year: int) -> None:
    end = datetime.datetime(year, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    config = issuer.issue(f"until-{year}", named("alpha"), end)
    assert certificate_end(config.cert) == end.timestamp()


def test_the_end_of_what_is_no_certificate(tmp_path: Path, alpha: TlsConfig) -> None:
    file = tmp_path / "cert.pem"
    pem = Path(alpha.cert).read_text()
    lines = pem.splitlines()
    for text in ("", "x", lines[0], pem[: len(pem) // 2], "\n".join([lines[0], "MAA=", lines[-1]])):
        file.write_text(text)
        with pytest.raises(KeyFileError, match="no certificate in PEM"):
            certificate_end(file)
    with pytest.raises(KeyFileError, match="No such file"):
        certificate_end(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(KeyFileError, match="is not a regular file"):
        certificate_end(tmp_path / "pipe")


def test_contexts_and_the_end_of_the_certificate_are_read_together(
    issuer: Issuer, beta: TlsConfig
) -> None:
    config = issuer.issue("renewed", named("alpha"), TODAY + 99 * DAY)
    contexts = TlsContexts.read(config)
    assert contexts.ends_at == pytest.approx((TODAY + 99 * DAY).timestamp(), abs=1.0)
    assert isinstance(meet(contexts.client, beta.server_context())[0], Established)
    assert contexts.server.verify_mode is ssl.CERT_REQUIRED


def test_files_that_do_not_belong_together_are_not_read(issuer: Issuer) -> None:
    config = issuer.issue("half", named("alpha"))
    key = Path(config.key).read_bytes()
    issuer.issue("half", named("alpha"), TODAY + 99 * DAY)
    Path(config.key).write_bytes(key)
    with pytest.raises(KeyFileError, match="not a certificate in PEM and its private key"):
        TlsContexts.read(config)
    Path(config.cert).unlink()
    with pytest.raises(KeyFileError, match="No such file"):
        TlsContexts.read(config)
