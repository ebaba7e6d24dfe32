"""The exception tree: for each its exit code, HTTP status and kind of no, as docs/exit-codes.md lists them.
Imported by every room, imports nothing.

A message says what happened, what was got (the value for configuration, only type and length for content)
and what to do. It never holds prompt text, keys or tensor contents. Exit code 2 is the command line's own
usage error and 1 an unexpected failure. Threat model: none; this module handles no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class TransomError(Exception):
    """Root of every error that Transom raises on purpose."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    kind: ClassVar[str] = "misconfigured"
    code: ClassVar[str] = "internal_error"


class MisconfiguredError(TransomError):
    """A setting is wrong; the message names it, its value and the way out."""

    exit_code, http_status, code = 3, 400, "misconfigured"


class MissingExtraError(MisconfiguredError):
    """An optional dependency is absent; the message is the exact pip line."""

    http_status, code = 501, "missing_extra"

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"{package} is not installed; in the source folder run: {pip_line(extra)}")


def pip_line(extra: str) -> str:
    """How an optional group of dependencies is installed, in the source folder: no package index has it."""
    return f"pip install '.[{extra}]'"


@contextmanager
def system_errors(
    told: str, todo: str = "", error: type[TransomError] = MisconfiguredError
) -> Iterator[None]:
    """Around what the operating system may refuse. Raises `error`: what is told, its reason, what to do."""
    try:
        yield
    except OSError as why:
        raise error(f"{told} ({why.strerror})" + (f"; {todo}" if todo else "")) from None


@contextmanager
def extra(name: str, package: str) -> Iterator[None]:
    """Around the imports of an optional dependency. Raises MissingExtraError."""
    try:
        yield
    except ImportError:
        raise MissingExtraError(name, package) from None


class CheckpointError(MisconfiguredError):
    """A model on disk cannot be used: absent, broken, truncated, unknown format, or a pickle."""

    exit_code, code = 4, "bad_checkpoint"


class PolicyError(MisconfiguredError):
    """A word policy is malformed, too large, or its hash is not the one expected."""

    exit_code, code = 5, "bad_policy"


class NeverError(TransomError):
    """What was asked cannot be protected, now or later."""

    exit_code, http_status, kind, code = 6, 400, "never", "cannot_protect"


class RefusedError(NeverError):
    """A request (field) that the mode refuses; nothing was sent. `param` is the field's name."""

    code = "refused"

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str = "refused"
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.error_code = param, status, code


class NotYetError(TransomError):
    """A known gap of this version."""

    exit_code, http_status, kind, code = 7, 501, "not yet", "not_supported"


class ReplaceableError(TransomError):
    """Not possible this way; the message names what works instead."""

    exit_code, http_status, kind, code = 8, 400, "replaceable", "use_instead"


class LedgerError(TransomError):
    """The privacy ledger cannot record a charge (locked, full, corrupt); nothing was sent."""

    exit_code, http_status, code = 9, 503, "ledger_unavailable"


class LedgerSpentError(LedgerError):
    """The account's epsilon is spent; nothing was sent and nothing was charged."""

    exit_code, http_status, kind, code = 10, 429, "never", "privacy_budget_spent"


class EvidenceError(TransomError):
    """Evidence is missing, malformed, stale, for another key, or not what the policy accepts."""

    exit_code, http_status, kind, code = 12, 403, "never", "evidence_refused"


class BundleError(TransomError):
    """An enclave bundle is incomplete, altered, unsigned, or does not fit what it is used with."""

    exit_code, http_status, code = 13, 400, "bad_bundle"


class BrokerError(TransomError):
    """The key broker cannot be reached, does not answer in time, or answers outside its protocol."""

    exit_code, http_status, code = 14, 503, "broker_unavailable"


class EngineError(TransomError):
    """The engine failed; what was charged stays charged."""

    exit_code, http_status, code = 11, 502, "engine_error"


class EngineDownError(EngineError):
    """The engine refuses connections, or died in mid-stream."""

    code = "engine_down"


class EngineTimeoutError(EngineError):
    """The engine did not answer in time."""

    http_status, code = 504, "engine_timeout"


class EngineBusyError(EngineError):
    """The engine takes no more requests for now. `retry_after_s` is how long it asks to wait, if it says."""

    http_status, code = 429, "engine_busy"

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LinkError(TransomError):
    """The link to the partner failed, or what it keeps on disk does; nothing was applied twice."""

    exit_code, http_status, code = 15, 503, "link_failed"


class LinkTimeoutError(LinkError):
    """The partner, or the broker between, did not do its part within the deadline."""

    http_status, code = 504, "link_timeout"


class LinkRefusedError(LinkError):
    """A stranger, terms that differ, or a message that is malformed, too large or not from the partner."""

    http_status, kind, code = 403, "never", "link_refused"


class EngineGarbageError(EngineError):
    """The engine's answer is outside its dialect."""

    code = "engine_garbage"
