"""`rabble keygen` and `rabble cert`."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from rabble import cli
from rabble.cluster.decide.node_keys import NodeKey
from rabble.cluster.io.keys import key_id, read_key, read_key_file
from rabble.cluster.io.tls import TlsConfig

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)

Output = pytest.CaptureFixture[str]


def test_keygen(tmp_path: Path, capsys: Output) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli.main(["keygen", str(first)]) == 0
    assert cli.main(["keygen", str(second)]) == 0
    assert read_key(first) != read_key(second)
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == (
        f"{first}: a new key, {key_id(read_key(first))} for short. Give each node of the cluster a "
        f"copy, with mode 0600."
    )
    assert read_key(first).hex() not in printed.out
    assert printed.err == ""


def test_keygen_overwrites_nothing(tmp_path: Path, capsys: Output) -> None:
    file = tmp_path / "key"
    assert cli.main(["keygen", str(file)]) == 0
    before = read_key(file)
    assert cli.main(["keygen", str(file)]) == 2
    assert read_key(file) == before
    assert capsys.readouterr().err == (
        f"rabble keygen: {file}: exists already, and keys are never overwritten\n"
    )


def test_keygen_for_one_node(tmp_path: Path, capsys: Output) -> None:
    authority, first, second = (tmp_path / name for name in ("authority", "a.key", "b.key"))
    assert cli.main(["keygen", str(authority)]) == 0
    for name, file in (("a", first), ("b", second)):
        assert cli.main(["keygen", "--node", name, "--from", str(authority), str(file)]) == 0
    a, b = read_key_file(first), read_key_file(second)
    assert isinstance(a, NodeKey) and isinstance(b, NodeKey)
    assert a.pair_key("b", b.key_id) == b.pair_key("a", a.key_id)
    printed = capsys.readouterr()
    assert f"{first}: a new key of the node a.\n" in printed.out
    assert f"Fingerprint: {a.fingerprint.hex()}\n" in printed.out
    assert f"{a.coefficients[0]:064x}" not in printed.out
    assert cli.main(["fingerprint", str(first)]) == 0
    assert capsys.readouterr().out == f"{a.fingerprint.hex()}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--node", "a", "file"], "--node NAME and --from FILE go together"),
        (["--from", "authority", "file"], "--node NAME and --from FILE go together"),
        (["--node", "a", "--from", "none", "file"], "none: No such file or directory"),
        (["--node", "a ", "--from", "authority", "file"], "it begins or ends with a space"),
        (["--node", "a", "--from", "authority", "authority"], "exists already"),
    ],
)
def test_keygen_for_no_node(
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["keygen", "authority"]) == 0
    assert cli.main(["keygen", *arguments]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "file").exists()


def test_the_fingerprint_of_a_certificate_is_that_of_its_public_key(
    tmp_path: Path, capsys: Output
) -> None:
    folder = tmp_path / "pki"
    assert (
        cli.main(["cert", "ca", str(folder)]) == cli.main(["cert", "node", str(folder), "a"]) == 0
    )
    certificate = x509.load_pem_x509_certificate((folder / "a.pem").read_bytes())
    der = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    capsys.readouterr()
    assert cli.main(["fingerprint", str(folder / "a.pem")]) == 0
    assert capsys.readouterr().out == f"{hashlib.sha256(der).hexdigest()}\n"


def test_what_has_no_fingerprint(tmp_path: Path, capsys: Output) -> None:
    assert cli.main(["keygen", str(tmp_path / "key")]) == 0
    both = (tmp_path / "key").read_text() + "00" * 31 + "01\r\n"
    (tmp_path / "both").write_text(both)
    (tmp_path / "text").write_text("text")
    (tmp_path / "node").write_text("rabble node key 1\n")
    (tmp_path / "node").chmod(0o600)
    for name, text in (
        ("none", "No such file"),
        ("key", "the key of a cluster, which all its nodes have: by it no node can be banned"),
        ("both", "the key of a cluster, which all its nodes have"),
        ("text", "no certificate in PEM"),
        ("node", "not a whole node key"),
    ):
        assert cli.main(["fingerprint", str(tmp_path / name)]) == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["keygen"], ["cert"], ["cert", "ca"], ["cert", "node", "folder"], ["cert", "x"]]
)
def test_arguments_that_are_missing(arguments: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: rabble" in capsys.readouterr().err


def test_cert_without_its_package(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["cert", "ca", "folder"]) == 2
    assert capsys.readouterr().err == (
        "rabble cert needs cryptography; install rabble with its extra: rabble[cert].\n"
    )


@pytest.fixture
def folder(tmp_path: Path, capsys: Output) -> Path:
    """With an authority in it."""
    pytest.importorskip("cryptography")
    folder = tmp_path / "certs"
    assert cli.main(["cert", "ca", str(folder)]) == 0
    assert f"{folder / 'ca.key'}: its key" in capsys.readouterr().out
    return folder


def test_the_certificate_of_a_node(folder: Path, capsys: Output) -> None:
    from cryptography import x509

    hosts = ["db1.example", "127.0.0.1", "--host", "::1"]
    assert cli.main(["cert", "node", str(folder), "caf\u00e9/1", "--host", *hosts]) == 0
    stem = folder / "caf%C3%A9%2F1"
    printed = capsys.readouterr().out
    assert f"{stem}.pem: the certificate of caf\\xe9/1." in printed
    for name in ("ca.key", f"{stem.name}.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    config = TlsConfig(f"{stem}.pem", f"{stem}.key", folder / "ca.pem")
    assert config.client_context().verify_mode is ssl.CERT_REQUIRED
    certificate = x509.load_pem_x509_certificate(Path(f"{stem}.pem").read_bytes())
    valid = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert valid == datetime.timedelta(days=398)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["rabble://caf%C3%A9%2F1"]
    assert names.get_values_for_type(x509.DNSName) == ["db1.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["node", "{}", "a::b"], "node name 'a::b' is not usable"),
        (["node", "{}", "a", "--host", "b c"], "host 'b c' is neither"),
        (["node", "{}", "a", "--host", "b\u00fccher"], "is neither"),
        (["node", "{}/none", "a"], "ca.key: No such file"),
        (["node", "{}", "ca"], "ca.key: exists already"),
        (["ca", "{}"], "ca.key: exists already"),
        (["ca", "{}/none/none"], "none: No such file"),
    ],
)
def test_arguments_that_cannot_be_used(
    folder: Path, arguments: list[str], said: str, capsys: Output
) -> None:
    before = sorted(folder.iterdir())
    assert cli.main(["cert", *(part.format(folder) for part in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("rabble cert: ") and said in printed.err
    assert printed.out == ""
    assert sorted(folder.iterdir()) == before


def test_a_certificate_is_not_overwritten_nor_half_made(folder: Path, capsys: Output) -> None:
    (folder / "a.pem").write_text("an old one")
    assert cli.main(["cert", "node", str(folder), "a"]) == 2
    assert "a.pem: exists already" in capsys.readouterr().err
    assert (folder / "a.pem").read_text() == "an old one"
    assert not (folder / "a.key").exists()


@pytest.mark.parametrize("broken", ["ca.key", "ca.pem", "ca.key of another"])
def test_an_authority_that_cannot_be_used(
    folder: Path, tmp_path: Path, broken: str, capsys: Output
) -> None:
    if broken == "ca.key of another":
        assert cli.main(["cert", "ca", str(tmp_path / "other")]) == 0
        (folder / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    else:
        (folder / broken).write_text("nothing of the kind")
    assert cli.main(["cert", "node", str(folder), "a"]) == 2
    assert f"{folder / 'ca.pem'}, {folder / 'ca.key'}: not " in capsys.readouterr().err


def test_an_authority_whose_key_others_may_read(folder: Path, capsys: Output) -> None:
    (folder / "ca.key").chmod(0o640)
    assert cli.main(["cert", "node", str(folder), "a"]) == 2
    assert "has mode 0640" in capsys.readouterr().err
