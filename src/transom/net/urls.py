"""The addresses that Transom sends to: what they look like, and that content is not sent in the clear.

Threat model: an address typed wrongly, or with a user name, query or fragment in it.
Does not protect against: a right address of the wrong machine; see `pin` for that.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from transom.errors import MisconfiguredError


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address or `localhost`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_url(url: str, what: str, schemes: tuple[str, ...] = ("http", "https")) -> SplitResult:
    """The parts of a base URL; `what` names it in errors. Raises MisconfiguredError.

    >>> split_url("https://broker.example:8443", "the key broker's URL").port
    8443
    """
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    odd = parts.query or parts.fragment or parts.username is not None
    if parts.scheme not in schemes or not host or not parts.netloc.isascii() or odd:
        raise MisconfiguredError(
            f"{what} must look like {schemes[-1]}://HOST:PORT, without user, query or fragment; got scheme "
            f"{parts.scheme!r}, host {host!r}"
        )
    return parts


def check_url(url: str, *, pinned: bool = False) -> str:
    """The base URL of an engine without a trailing slash or `/v1`.

    Raises MisconfiguredError for plain HTTP beyond loopback, and anywhere when a TLS key is `pinned`.
    """
    parts = split_url(url, "the engine's URL")
    if parts.scheme == "http" and pinned:
        raise MisconfiguredError(
            f"plain HTTP to {parts.hostname!r} has no TLS key to check; use https with a pin or with evidence"
        )
    if parts.scheme == "http" and not is_loopback(str(parts.hostname)):
        raise MisconfiguredError(
            f"plain HTTP to {parts.hostname!r} would let the network read prompts; use https, or a tunnel to "
            "loopback"
        )
    return url.rstrip("/").removesuffix("/v1")
