"""Accounts and their tokens: who is asking, and what may they do."""

from __future__ import annotations

import hashlib
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["read", "write"]


@dataclass(frozen=True)
class Account:
    """The bearer of one token."""

    name: str
    role: Role
    orgs: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        """Whether the account acts for a namespace at all, with whatever token."""
        return namespace == self.name or namespace in self.orgs

    def may_write(self, namespace: str) -> bool:
        """Whether this token may change the namespace's repositories."""
        return self.role == "write" and self.owns(namespace)

    def identity(self) -> dict[str, Any]:
        """The answer to ``whoami``."""
        return {
            "type": "user",
            "id": hashlib.sha256(self.name.encode()).hexdigest()[:24],
            "name": self.name,
            "fullname": self.name,
            "email": f"{self.name}@localhost",
            "emailVerified": True,
            "canPay": False,
            "isPro": False,
            "orgs": [{"type": "org", "name": org, "fullname": org, "roleInOrg": self.role} for org in self.orgs],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": self.role}},
        }


class TokenBook:
    """Issues tokens; keeps only their digests, so that no dump or log of the server can leak one."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def issue(self, name: str, role: Role, orgs: Iterable[str]) -> str:
        """A new token, shaped like the Hub's so that redaction in the code under test sees what it must find."""
        token = "hf_" + "".join(secrets.choice(string.ascii_letters) for _ in range(34))
        self._accounts[_digest(token)] = Account(name, role, tuple(orgs))
        return token

    def revoke(self, token: str) -> None:
        """Make a token unknown."""
        self._accounts.pop(_digest(token), None)

    def find(self, token: str) -> Account | None:
        """The account of a token, if it is known."""
        return self._accounts.get(_digest(token))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
