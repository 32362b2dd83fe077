"""Certificates that a demo's CA, or another, might issue: right ones and wrong ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)


@dataclass
class Request:
    """What a certificate is to say."""

    common_name: str = "someone"
    uris: list[str] = field(default_factory=list)
    dns: list[str] = field(default_factory=list)
    begins: timedelta = -DAY
    ends: timedelta = DAY
    ca: bool = False
    usage: x509.ObjectIdentifier | tuple[x509.ObjectIdentifier, ...] = ExtendedKeyUsageOID.CLIENT_AUTH


class TestAuthority:
    """A CA whose key the test holds: the demo's own, read from its directory, or a new one."""

    __test__ = False

    def __init__(self, directory: Path | None = None) -> None:
        if directory is not None:
            self.certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
            key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            self.key = key
            return
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another CA")])
        builder = _builder(name, name, self.key.public_key(), -DAY, DAY)
        self.certificate = builder.add_extension(x509.BasicConstraints(True, None), critical=True).sign(
            self.key, hashes.SHA256()
        )

    def issue(self, directory: Path, request: Request) -> tuple[str, str]:
        """Paths of a certificate and its key, made in ``directory``."""
        directory.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, request.common_name)])
        builder = _builder(name, self.certificate.subject, key.public_key(), request.begins, request.ends)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in request.uris]
        names += [x509.DNSName(dns) for dns in request.dns]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        usages = request.usage if isinstance(request.usage, tuple) else (request.usage,)
        certificate = (
            builder.add_extension(x509.BasicConstraints(request.ca, None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        paths = directory / "cert.pem", directory / "key.pem"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(paths[0]), str(paths[1])

    def revoke(self, path: Path, *certificates: str) -> None:
        """Write a revocation list that names ``certificates`` (paths), replacing the file whole."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(now - DAY).next_update(now + DAY)
        for certificate in certificates:
            serial = x509.load_pem_x509_certificate(Path(certificate).read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        new = path.with_suffix(".new")
        new.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        new.replace(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begins: timedelta, ends: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )
