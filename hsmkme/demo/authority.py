"""A development CA: the certificates of a demo. Not for production."""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAYS: Final = 825


class Authority:
    """The CA in ``directory``; made there if it is new. ``whose`` certificates it signs is part of its name."""

    def __init__(self, directory: Path, whose: str = "") -> None:
        self.certificate_path = directory / "ca.pem"
        self._key_path = directory / "ca.key"
        if not self.certificate_path.exists():
            directory.mkdir(parents=True, exist_ok=True)
            self._create(f"hsmkme development CA {whose}".strip())
        self._certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
        key = serialization.load_pem_private_key(self._key_path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{self._key_path} is not an EC key")
        self._key = key

    def _create(self, common_name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(common_name)
        usage = x509.KeyUsage(
            *(False, False, False, False, False),  # nothing but
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        write_private(self._key_path, _pem(key))
        self.certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue_server(self, kme_id: str, directory: Path) -> tuple[Path, Path]:
        """Certificate and key of the KME's SAE side: localhost and ``urn:qkd:kme:<id>``."""
        return self._issue(directory, kme_id, _kme_names(kme_id), ExtendedKeyUsageOID.SERVER_AUTH)

    def issue_peer(self, kme_id: str, directory: Path) -> tuple[Path, Path]:
        """Certificate and key of the KME towards its peers, whom it serves and calls: the same names."""
        usages = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
        return self._issue(directory, kme_id, _kme_names(kme_id), *usages)

    def issue_sae(self, sae_id: str, directory: Path) -> tuple[Path, Path]:
        """Certificate and key of an SAE: ``urn:qkd:sae:<id>`` and CN = id."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"urn:qkd:sae:{sae_id}")]
        return self._issue(directory, sae_id, names, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self, directory: Path, common_name: str, names: list[x509.GeneralName], *usages: x509.ObjectIdentifier
    ) -> tuple[Path, Path]:
        directory.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(common_name), self._certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        certificate_path, key_path = directory / "cert.pem", directory / "key.pem"
        write_private(key_path, _pem(key))
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return certificate_path, key_path


def write_private(path: Path, content: bytes) -> None:
    """Write a new file of mode 0400."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400), "wb") as file:
        file.write(content)


def _kme_names(kme_id: str) -> list[x509.GeneralName]:
    return [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
        x509.UniformResourceIdentifier(f"urn:qkd:kme:{kme_id}"),
    ]


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
