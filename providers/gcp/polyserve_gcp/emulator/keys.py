"""RSA keys, and what is signed with them: JSON Web Tokens, and bytes."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

BITS = 2048
_VALID = dt.timedelta(days=365)


@dataclass(slots=True)
class Key:
    """One key pair.

    Attributes:
        identifier: What tokens name it by.
        private: The private half.
        user_managed: Whether somebody has it in a file; Google alone has the others.
    """

    identifier: str
    private: rsa.RSAPrivateKey
    user_managed: bool = True
    made: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    _certificate: str = ""

    def pem(self) -> str:
        """Return the private half as PEM, as key files have it."""
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    def certificate(self) -> str:
        """Return a certificate of the public half as PEM, as Google publishes it."""
        if not self._certificate:
            name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "polyserve-emulated")])
            made = (
                x509.CertificateBuilder()
                .subject_name(name)
                .issuer_name(name)
                .public_key(self.private.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(self.made - dt.timedelta(days=1))
                .not_valid_after(self.made + _VALID)
                .sign(self.private, hashes.SHA256())
            )
            self._certificate = made.public_bytes(serialization.Encoding.PEM).decode()
        return self._certificate

    def jwk(self) -> dict[str, str]:
        """Return the public half as a JSON Web Key."""
        numbers = self.private.public_key().public_numbers()

        def text(number: int) -> str:
            return encode_part(number.to_bytes((number.bit_length() + 7) // 8, "big"))

        shown = {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": self.identifier}
        return shown | {"n": text(numbers.n), "e": text(numbers.e)}

    def sign(self, data: bytes) -> bytes:
        """Return the signature of bytes, RSASSA-PKCS1-v1_5 over SHA-256."""
        return self.private.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether a signature is this key's, of these bytes."""
        try:
            self.private.public_key().verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True

    def sign_token(self, claims: dict[str, Any]) -> str:
        """Return a signed token, RS256."""
        head = {"alg": "RS256", "kid": self.identifier, "typ": "JWT"}
        text = ".".join(encode_part(json.dumps(part, separators=(",", ":")).encode()) for part in (head, claims))
        return f"{text}.{encode_part(self.sign(text.encode()))}"


def make_key(*, user_managed: bool = True) -> Key:
    """Make a key pair; takes a tenth of a second."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    return Key(hashlib.sha1(secrets.token_bytes(20), usedforsecurity=False).hexdigest(), private, user_managed)


@dataclass(frozen=True, slots=True)
class Token:
    """A JSON Web Token that is read, and not yet believed."""

    head: dict[str, Any]
    claims: dict[str, Any]
    signed: bytes
    signature: bytes

    def is_by(self, key: Key) -> bool:
        """Whether a key has signed it."""
        return key.verify(self.signature, self.signed)


def read_token(text: str) -> Token:
    """Return the parts of a token.

    Raises:
        ValueError: It is none, or is not signed with RS256.
    """
    parts = text.split(".")
    if len(parts) != 3:
        raise ValueError("not a JSON Web Token: it has no three parts")
    try:
        head, claims = (json.loads(decode_part(part)) for part in parts[:2])
        signature = decode_part(parts[2])
    except (ValueError, binascii.Error) as error:
        raise ValueError("not a JSON Web Token: a part of it cannot be read") from error
    if not isinstance(head, dict) or not isinstance(claims, dict) or head.get("alg") != "RS256":
        raise ValueError("not a JSON Web Token signed with RS256")
    return Token(head, claims, f"{parts[0]}.{parts[1]}".encode(), signature)


def encode_part(data: bytes) -> str:
    """Return bytes in the base64 of tokens."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode_part(text: str) -> bytes:
    """Return the bytes of a part of a token."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
