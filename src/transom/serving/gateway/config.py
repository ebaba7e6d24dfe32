"""The gateway's settings, and the names and keys under which it may be used.

Threat model: a web page whose name was made to point here (DNS rebinding); a caller without a key;
comparison takes the same time whatever matches. Keys are kept as digests.
Does not protect: keys on the wire (put TLS in front of anything but loopback), and the key file itself.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transom.errors import MisconfiguredError, RefusedError

Mode = Literal["plain", "words", "enclave", "obfuscated", "words+obfuscated"]
ANONYMOUS = "default"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """`model` is the published name (None: the engine's). `key_digests` maps account to the key's SHA-256.

    `max_body_bytes` bounds a request (413), `max_prompt_tokens` a prompt (400), beside the engine's context.
    `max_prompt_chars` bounds what is sanitised in one request (400). A request without a session that is
    repeated within `retry_minutes` reuses its draws. `answer_tokens` is the limit where a chat request names
    none. `hosts`: the names, without port, that a `Host` or `Origin` header may hold (403 otherwise); None:
    any.
    """

    mode: Mode = "plain"
    model: str | None = None
    key_digests: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    max_body_bytes: int = 4 * 2**20
    max_prompt_tokens: int | None = None
    max_prompt_chars: int = 1_000_000
    retry_minutes: float = 10.0
    answer_tokens: int = 512
    hosts: tuple[str, ...] | None = LOOPBACK_HOSTS

    def account(self, authorization: str) -> str:
        """The account behind an `Authorization` header. Raises RefusedError (401)."""
        if not self.key_digests:
            return ANONYMOUS
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = [name for name, known in self.key_digests.items() if hmac.compare_digest(known, digest)]
        if scheme.lower() != "bearer" or not found:
            raise RefusedError(
                "send a valid API key as 'Authorization: Bearer ...'", status=401, code="invalid_api_key"
            )
        return found[0]


def load_keys(path: str | Path) -> dict[str, bytes]:
    """Account to key digest from a file of `account:key` lines (`#` comments). Raises MisconfiguredError."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MisconfiguredError(f"cannot read the API key file {path} ({type(error).__name__})") from None
    digests: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        account, colon, key = line.strip().partition(":")
        if not colon or not account or len(account) > 100 or len(key) < 16 or account in digests:
            raise MisconfiguredError(
                f"line {number} of the API key file {path} must be "
                "a new 'account:key' with a key of 16 characters or more"
            )
        digests[account] = hashlib.sha256(key.encode()).digest()
    if not digests:
        raise MisconfiguredError(f"the API key file {path} holds no key; add an 'account:key' line")
    return digests
