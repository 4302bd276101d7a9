"""The certificate of the listener: from an authority of the host's own, made on first use, or the user's.

    certificates = Certificates(state_dir / "tls", own=(certificate, key) or None)
    certificates.prepare(["10.0.0.5"]) -> Certificate    # made, kept or renewed; blocking, some milliseconds
    certificates.prepare(...).context() -> ssl.SSLContext

The authority (`ca.pem`, `ca.key`) lasts ten years, the server's certificate (`server.pem`, `server.key`) thirteen
months; it is renewed a month before its end, and when the host has names or addresses that it is not for. Keys are
ECDSA P-256, readable by the daemon alone. The authority's certificate is the one thing that clients have to trust, and
it stays the same when the server's is renewed. So it is never replaced because it cannot be read: what is damaged is
refused, and only where there is none, or it would end before what it signs, is one made.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ramet.errors import DamagedError, UsageError

log = structlog.stdlib.get_logger(__name__)

CA_DAYS = 3650
SERVER_DAYS = 397
RENEW_DAYS = 30
MOST_NAMES = 64
_BACK = timedelta(hours=1)
"""Clients' clocks may be behind ours."""


@dataclass(frozen=True)
class Certificate:
    """Files, and what stands in them."""

    file: Path
    """The server's certificate, with what leads to its authority."""
    key_file: Path
    ca_file: Path | None
    """None for the user's own."""
    fingerprint: str
    """SHA-256."""
    sha1: str
    """The same by SHA-1, by which older clients know certificates."""
    not_after: float
    names: tuple[str, ...]

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 and later. UsageError when the key does not belong to the certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Connections that come from now on are shown this certificate."""
        try:
            context.load_cert_chain(self.file, self.key_file, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as exc:
            raise UsageError(
                f"The certificate {self.file} and the key {self.key_file} cannot be used together: {_reason(exc)}.",
                hint="Give the certificate and its own key, unencrypted, both in PEM.",
            ) from exc


@dataclass(frozen=True)
class Certificates:
    folder: Path
    own: tuple[Path, Path] | None = None
    """The user's certificate and key."""

    def prepare(self, addresses: Sequence[str] = (), now: datetime | None = None) -> Certificate:
        """`addresses` the server listens on. UsageError for the user's files; DamagedError for an authority
        that cannot be used, OSError for other files of ours."""
        if self.own is not None:
            return _describe(*self.own, None)
        moment = now or datetime.now(UTC)
        names = host_names(addresses)
        self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.folder.chmod(0o711)  # others may read the authority's certificate, and list nothing
        authority = self._authority(moment)
        if not self._is_good(authority[0], names, moment):
            self._make_server(authority, names, moment)
        return _describe(self.folder / "server.pem", self.folder / "server.key", self.folder / "ca.pem")

    def _authority(self, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The one that is there; a new one where there is none, or it would end before what it signs."""
        found = self._read_authority()
        if found is None:
            return self._make_authority(now)
        if now < found[0].not_valid_after_utc - timedelta(days=SERVER_DAYS + RENEW_DAYS):
            return found
        log.warning("the authority is near its end: a new one is made, and clients have to trust that")
        (self.folder / "ca.pem").unlink()  # a key alone, should this be cut short, is an authority that never was
        return self._make_authority(now)

    def _read_authority(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
        """None where there is no certificate: a key alone is what is left of a making that was cut short."""
        try:
            pem = (self.folder / "ca.pem").read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._damaged(f"ca.pem: {_reason(exc)}") from exc
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            public = certificate.public_key()
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise self._damaged("ca.pem is no certificate in PEM") from exc
        try:
            key = _load_key(self.folder / "ca.key")
        except OSError as exc:
            raise self._damaged(f"ca.key: {_reason(exc)}") from exc
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:  # TypeError: it is encrypted
            raise self._damaged("ca.key is no key of ours in PEM") from exc
        if key.public_key() != public:
            raise self._damaged("ca.key is another certificate's key")
        return certificate, key

    def _damaged(self, what: str) -> DamagedError:
        return DamagedError(
            f"The authority in {self.folder} cannot be used, and clients trust it: {what}.",
            hint="Put ca.pem and ca.key back from a copy; or remove both, and a new one is made, which clients have to "
            "be told to trust.",
        )

    def _make_authority(self, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"Ramet CA of {socket.gethostname()[:40]} {x509.random_serial_number():x}"[:64])
        usage = _usage(key_cert_sign=True, crl_sign=True)
        builder = _builder(name, name, key, now, CA_DAYS)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(self.folder / "ca.key", _pem(key), 0o600)
        _write(self.folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return certificate, key

    def _make_server(
        self, authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey], names: Sequence[str], now: datetime
    ) -> None:
        issuer, issuer_key = authority
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(socket.gethostname()[:64]), issuer.subject, key, now, SERVER_DAYS)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
            .sign(issuer_key, hashes.SHA256())
        )
        chain = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (certificate, issuer))
        _write(self.folder / "server.key", _pem(key), 0o600)
        _write(self.folder / "server.pem", chain, 0o644)

    def _is_good(self, issuer: x509.Certificate, names: Sequence[str], now: datetime) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate((self.folder / "server.pem").read_bytes())
            key = _load_key(self.folder / "server.key")
            certificate.verify_directly_issued_by(issuer)
        except Exception:  # whatever is wrong with it, it is made anew
            return False
        return (
            key.public_key() == certificate.public_key()
            and now < certificate.not_valid_after_utc - timedelta(days=RENEW_DAYS)
            and set(names) <= set(_names_of(certificate))
        )


def host_names(addresses: Iterable[str] = ()) -> tuple[str, ...]:
    """What clients may call this host: its names, its own addresses, and those that are given."""
    hostname = socket.gethostname().lower()
    names = [name for name in (hostname, _full_name(hostname), "localhost") if _is_dns_name(name)]
    given = [str(ipaddress.ip_address(text)) for text in addresses if not ipaddress.ip_address(text).is_unspecified]
    own = ["127.0.0.1", "::1", *sorted({*_ipv4_addresses(), *_ipv6_addresses()})]
    return tuple(list(dict.fromkeys([*names, *given, *own]))[:MOST_NAMES])


def _full_name(hostname: str) -> str:
    """From the files of the host; no name server is asked, which could take long."""
    with contextlib.suppress(OSError):
        for line in Path("/etc/hosts").read_text().splitlines():
            words = line.partition("#")[0].lower().split()
            if hostname in words[1:]:
                return next((word for word in words[1:] if word.startswith(f"{hostname}.")), hostname)
    return hostname


def _is_dns_name(name: str) -> bool:
    return bool(name) and len(name) <= 253 and name.isascii() and all(c.isalnum() or c in "-." for c in name)


def _ipv4_addresses() -> set[str]:
    """Of all interfaces: the kernel's table of local addresses, without netlink."""
    found, last = set(), ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/fib_trie").read_text().splitlines():
            text = line.strip()
            if text.startswith("|-- "):
                last = text.removeprefix("|-- ")
            elif text == "/32 host LOCAL" and not ipaddress.ip_address(last).is_loopback:
                found.add(last)
    return found


def _ipv6_addresses() -> set[str]:
    """Those that reach beyond their link."""
    found = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            address = ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))
            if not (address.is_link_local or address.is_loopback):
                found.add(str(address))
    return found


def _describe(file: Path, key_file: Path, ca_file: Path | None) -> Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        key_file.read_bytes()
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"The certificate {file} or its key cannot be read: {_reason(exc)}.",
            hint="Both are files in PEM that the daemon may read.",
        ) from exc
    return Certificate(
        file=file,
        key_file=key_file,
        ca_file=ca_file,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
        sha1=certificate.fingerprint(hashes.SHA1()).hex(":").upper(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        names=tuple(_names_of(certificate)),
    )


def _names_of(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Ramet"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACK)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is another kind of key")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """It appears whole, and never with more rights than it has in the end."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(fd, mode)
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    fresh.replace(path)


def _no_password() -> str:
    """Without this OpenSSL would ask on the terminal."""
    raise ValueError("the key is encrypted")


def _reason(exc: BaseException) -> str:
    return (getattr(exc, "strerror", None) or str(exc) or type(exc).__name__).rstrip(".")
