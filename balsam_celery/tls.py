"""Certificates of the site's own Redis: a CA of the site, and one for the server.

The CA's certificate is no secret and lies with the server's in ``tls/``, in the site directory, so
that pilots on other hosts check the server by it; the keys are in ``secrets/``. Nobody else trusts
the CA. Clients have no certificates: they give the password.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from balsam_celery.errors import SiteError
from balsam_celery.private import private_dir, read_secret, write_private
from balsam_celery.redisaddress import CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY, TLS_DIR

CA_KEY = "tls-ca.key"
LIFETIME = timedelta(days=3650)
#: A certificate that ends so soon is made anew.
RENEW_BEFORE = timedelta(days=90)
#: Clocks of other hosts may be behind.
_SLACK = timedelta(days=1)


def make_certificates(
    site_directory: Path, secrets_dir: Path, names: Collection[str], addresses: Collection[str]
) -> bool:
    """Make what is missing, ends soon, or does not name the server; tell whether anything was.

    Args:
        site_directory: where ``tls/`` is, or is made, for the certificates.
        secrets_dir: where the keys go.
        names: host names that clients may call the server by; ``localhost`` is always one.
        addresses: IP addresses that they may connect to; the loopback's are always among them.

    Raises:
        SiteError: a file cannot be read or written, or is open to others.
    """
    directory = private_dir(site_directory / TLS_DIR)
    wanted = _alternative_names({*names, "localhost"}, {*addresses, "127.0.0.1", "::1"})
    authority = _usable(directory / CA_CERTIFICATE, secrets_dir / CA_KEY)
    server = _usable(directory / SERVER_CERTIFICATE, secrets_dir / SERVER_KEY)
    if authority and server and _serves(server[0], authority[0], wanted):
        return False
    if authority is None:
        authority = _make_authority()
        _write(directory / CA_CERTIFICATE, secrets_dir / CA_KEY, *authority)
    certificate, key = _make_server(wanted, *authority)
    _write(directory / SERVER_CERTIFICATE, secrets_dir / SERVER_KEY, certificate, key)
    return True


def _alternative_names(names: Collection[str], addresses: Collection[str]) -> set[x509.GeneralName]:
    return {
        *(x509.DNSName(name) for name in names),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
    }


def _usable(
    certificate: Path, key: Path
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    """The pair, when both files are there, belong together, and do not end soon."""
    if not certificate.exists() or not key.exists():
        return None
    try:
        read = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = serialization.load_pem_private_key(read_secret(key).encode(), password=None)
    except (OSError, ValueError) as error:
        raise SiteError(
            f"{certificate} or {key} cannot be used ({error}): remove both, and new ones are made"
        ) from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        return None
    # a crash between the two writes leaves a pair that is none
    if private.public_key() != read.public_key():
        return None
    return (read, private) if read.not_valid_after_utc > datetime.now(UTC) + RENEW_BEFORE else None


def _serves(
    certificate: x509.Certificate, authority: x509.Certificate, wanted: set[x509.GeneralName]
) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # noqa: BLE001 - cryptography's own kinds of failure: it is not of this CA
        return False
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return wanted <= set(found.value)


def _builder(
    subject: str, issuer: x509.Name | None, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer or name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _make_authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    # a name of its own for each, so that an old one and a new one are not mixed up
    builder = _builder(f"balsam_celery CA {x509.random_serial_number():040x}"[:48], None, key)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return builder.sign(key, hashes.SHA256()), key


def _make_server(
    names: set[x509.GeneralName],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("balsam_celery Redis", authority.subject, key)
    of_authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = builder.add_extension(of_authority, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    serves = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = builder.add_extension(serves, critical=False)
    ordered = sorted(names, key=repr)
    builder = builder.add_extension(x509.SubjectAlternativeName(ordered), critical=False)
    return builder.sign(authority_key, hashes.SHA256()), key


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    certificate: Path, key: Path, made: x509.Certificate, private: ec.EllipticCurvePrivateKey
) -> None:
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(key, pem.decode())
    write_private(certificate, made.public_bytes(serialization.Encoding.PEM).decode())
