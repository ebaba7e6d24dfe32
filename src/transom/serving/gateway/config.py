"""The gateway's settings, and the names and keys under which it may be used.

A key file is read again when it changes: a key that is taken out stops working, one that is put in begins
to, within about a second. While the file cannot be used (half written, broken, gone) the old keys stay.
Threat model: a web page whose name was made to point here (DNS rebinding); a caller without a key;
comparison takes the same time whatever matches. Keys are kept as digests.
Does not protect: keys on the wire (put TLS in front of anything but loopback), and the key file itself: one
that others may read is used (mounted secrets often are such) with a warning.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from transom.config import Setting
from transom.errors import MisconfiguredError, RefusedError
from transom.files import Reread

PUBLIC_ROLES = ("system", "developer")
Examples = Literal["quote", "own"]
Mode = Literal["plain", "words", "enclave", "obfuscated", "words+obfuscated"]
ANONYMOUS = "default"
CLIENTS = "Clients and their requests"  # a heading of the settings
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_KEY = re.compile(r"[!-~]{16,}")  # what an HTTP header carries unchanged
_ACCOUNT_CHARS = 100
_log = logging.getLogger("transom.gateway")


class KeyFile(Reread[Mapping[str, bytes]]):
    """The keys of a file, as it is now: account to the key's SHA-256, never empty."""

    def __init__(self, path: str | Path, every_s: float = 1.0) -> None:
        super().__init__(path, load_keys, every_s=every_s)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What bounds a request. A prompt that is too long, also for the engine's own context, is a 400."""

    max_body_bytes: Annotated[int, Setting("Largest request (413 above).", CLIENTS, least=1024)] = 4 * 2**20
    max_prompt_tokens: Annotated[int, Setting("Longest prompt (0: the engine's).", CLIENTS, least=0)] = 0
    answer_tokens: Annotated[
        int, Setting("Answer limit where a chat request has none.", CLIENTS, least=1)
    ] = 512
    unknown: Annotated[
        Literal["refuse", "drop"],
        Setting("What becomes of fields that are not known: dropped ones are named in a header.", CLIENTS),
    ] = "refuse"
    retry_minutes: Annotated[
        float,
        Setting("How long an identical request without a session reuses its draws.", CLIENTS, least=0),
    ] = 10.0


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(Limits):
    """`model` is the published name (None: the engine's), `aliases` are others. `key_digests` maps account to
    the key's SHA-256, or is the file that does.

    `public`: roles whose messages are the program's own. `examples`: assistant messages that are no answer of
    this gateway are hidden whole (`quote`), or are the caller's own writing. `restore_words`: drawn words are
    put back in answers.
    `max_prompt_chars` bounds what is sanitised in one request (400). `hosts`: the names, without port, that a
    `Host` or `Origin` header may hold (403 otherwise); None: any.
    """

    mode: Mode = "plain"
    public: tuple[str, ...] = ()
    examples: Examples = "quote"
    restore_words: bool = False
    model: str | None = None
    aliases: tuple[str, ...] = ()
    key_digests: Mapping[str, bytes] | KeyFile = field(default_factory=dict, repr=False)
    max_prompt_chars: int = 1_000_000
    hosts: tuple[str, ...] | None = LOOPBACK_HOSTS

    def account(self, authorization: str) -> str:
        """The account behind an `Authorization` header. Raises RefusedError (401)."""
        given = self.key_digests
        digests = given.now() if isinstance(given, KeyFile) else given
        if not digests:
            return ANONYMOUS
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = [name for name, known in digests.items() if hmac.compare_digest(known, digest)]
        if scheme.lower() != "bearer" or not found:
            raise RefusedError(
                "send a valid API key as 'Authorization: Bearer ...'", status=401, code="invalid_api_key"
            )
        return found[0]


def load_keys(path: str | Path) -> dict[str, bytes]:
    """Account to key digest from a file of `account:key` lines (`#` comments). Raises MisconfiguredError.

    Blanks around account and key do not count. A file that others may read is used with a warning.
    """
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            lines = file.read().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MisconfiguredError(f"cannot read the API key file {path} ({type(error).__name__})") from None
    if mode & 0o077:
        _log.warning("others may read the API key file %s (mode %04o); run: chmod 600 %s", path, mode, path)
    digests: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        account, colon, key = (part.strip() for part in line.partition(":"))
        digest = hashlib.sha256(key.encode()).digest()
        if not colon or not 0 < len(account) <= _ACCOUNT_CHARS or not account.isprintable():
            wrong = f"must be 'account:key' with an account of 1 to {_ACCOUNT_CHARS} printable characters"
        elif not _KEY.fullmatch(key):
            wrong = "needs a key of 16 or more letters, digits and signs of ASCII, without blanks"
        elif account in digests:
            wrong = "repeats an account; give each one key"
        elif digest in digests.values():
            wrong = "repeats the key of another account; give each its own"
        else:
            digests[account] = digest
            continue
        raise MisconfiguredError(f"line {number} of the API key file {path} {wrong}")
    if not digests:
        raise MisconfiguredError(f"the API key file {path} holds no key; add an 'account:key' line")
    return digests
