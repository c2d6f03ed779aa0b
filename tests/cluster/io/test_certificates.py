"""Certificates for those who have no authority: what they say, and until when they are good."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from cryptography import x509

from rabble import KeyFileError
from rabble.cluster.io import certificates
from rabble.cluster.io.tls import uri_of

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an authority in it."""
    certificates.make_authority(tmp_path, NOW)
    return tmp_path


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_node_is_vouched_for_by_the_authority_and_vouches_for_nobody(folder: Path) -> None:
    cert, key = certificates.make_node_certificate(folder, "a", NOW)
    authority, node = load(folder / "ca.pem"), load(cert)
    node.verify_directly_issued_by(authority)
    of_authority, of_node = (
        each.extensions.get_extension_for_class(x509.BasicConstraints).value
        for each in (authority, node)
    )
    assert of_authority.ca and of_authority.path_length == 0
    assert not of_node.ca
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(cert.stat().st_mode) == 0o644


def test_a_node_whose_clock_is_behind_takes_the_certificate(folder: Path) -> None:
    cert, _ = certificates.make_node_certificate(folder, "a", NOW)
    assert load(cert).not_valid_before_utc == NOW - certificates.BACKDATED


def test_a_long_name_is_in_the_entry_that_counts_and_cut_in_the_subject(folder: Path) -> None:
    name = "n" * 200
    cert, _ = certificates.make_node_certificate(folder, name, NOW)
    names = load(cert).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [uri_of(name)]
    [subject] = load(cert).subject
    assert subject.value == name[: certificates.COMMON_NAME_MAX]


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    made, _ = certificates.make_authority(tmp_path, NOW)
    end = x509.load_pem_x509_certificate(made.read_bytes()).not_valid_after_utc
    late, _ = certificates.make_node_certificate(tmp_path, "a", end - datetime.timedelta(days=9))
    assert x509.load_pem_x509_certificate(late.read_bytes()).not_valid_after_utc == end
    with pytest.raises(KeyFileError, match=r"ca\.pem: expired"):
        certificates.make_node_certificate(tmp_path, "b", end)


def test_a_certificate_that_cannot_be_written_leaves_no_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = certificates.write_private

    def fail_for_certificates(path: Path, data: bytes) -> None:
        if path.suffix == ".pem":
            raise KeyFileError(f"{path}: no space")
        write(path, data)

    monkeypatch.setattr(certificates, "write_private", fail_for_certificates)
    before = sorted(folder.iterdir())
    with pytest.raises(KeyFileError, match="no space"):
        certificates.make_node_certificate(folder, "a", NOW)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("host", ["", "b c", "b\u00fccher", "a:1", "a/b", "a@b", "a\n"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="neither a host's name in ASCII nor an IP address"):
        certificates.host_entry(host)
