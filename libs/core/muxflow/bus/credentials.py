"""NKeys: who somebody on the bus is. The seed is the secret; the server knows public keys only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import nkeys

from muxflow.bus.permissions import inbox_prefix, permissions
from muxflow.contracts import Role, decode_token, encode_token


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody with credentials: a role, bound to a tenant, node or workload if the role asks for it."""

    role: Role
    bound_to: str | None = None

    @classmethod
    def named(cls, name: str) -> Principal:
        """Give the principal of this `name`. ValueError if it is none."""
        role, dash, token = name.partition("-")
        principal = cls(role=Role(role), bound_to=decode_token(token) if dash else None)
        permissions(principal.role, principal.bound_to)
        return principal

    @property
    def name(self) -> str:
        """Name of its credentials, such as ``user-default``."""
        return self.role.value if self.bound_to is None else f"{self.role.value}-{encode_token(self.bound_to)}"

    @property
    def inbox_prefix(self) -> str:
        """Where its answers arrive."""
        return inbox_prefix(self.role, self.bound_to)

    def seed_path(self, directory: Path) -> Path:
        """Its seed's file in a directory of credentials."""
        return directory / f"{self.name}.nk"


def generate_seed() -> str:
    """Make a new secret seed of a user."""
    seed: bytes = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return seed.decode()


def public_key(seed: str) -> str:
    """Give the public key that belongs to a seed. ValueError if it is none."""
    try:
        pair = nkeys.from_seed(bytearray(seed.strip().encode()))
    except (nkeys.NkeysError, ValueError) as error:
        raise ValueError(f"not an NKey seed: {error}") from None
    key: bytes = pair.public_key
    return key.decode()


def ensure(directory: Path, principals: Iterable[Principal]) -> dict[Principal, str]:
    """Make the seed files that are not there yet, readable by their owner only; returns the public keys.

    Raises `OSError`, and ValueError for a file that holds no seed.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {principal: _ensure_one(principal.seed_path(directory)) for principal in principals}


def _ensure_one(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        try:
            return public_key(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    seed = generate_seed()
    with os.fdopen(descriptor, "w") as file:
        file.write(seed + "\n")
        file.flush()
        os.fsync(file.fileno())
    return public_key(seed)
