"""Transom: use models you do not control on data you may not share, and measure what leaked.

The public interface is flat: `from transom import Sanitizer, load_policy`. Each name is imported from its
room when it is first used, so `import transom` is quick and needs no torch. Threat model and limits: see each
name's module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transom.audit.attacks.epsilon import EpsilonFinding, distinguish
    from transom.checkpoint.cut import Back, Front, cut
    from transom.checkpoint.load import Checkpoint, load
    from transom.checkpoint.walk import Block, Walk, walk
    from transom.errors import (
        BrokerError,
        BundleError,
        CheckpointError,
        EngineDownError,
        EngineError,
        EngineGarbageError,
        EngineTimeoutError,
        EvidenceError,
        LedgerError,
        LedgerSpentError,
        MisconfiguredError,
        MissingExtraError,
        NeverError,
        NotYetError,
        PolicyError,
        RefusedError,
        ReplaceableError,
        TransomError,
    )
    from transom.privacy.build import build_policy
    from transom.privacy.channel import BayesAttack, Channel, bayes, exact_epsilon, sample
    from transom.privacy.explain import Explanation, explain
    from transom.privacy.guarantee import Guarantee
    from transom.privacy.ledger import Ledger
    from transom.privacy.mechanisms import build
    from transom.privacy.memo import PlaceMemo
    from transom.privacy.partition import Partition, WordMechanism
    from transom.privacy.placeholders import Placeholders
    from transom.privacy.policy import Policy, load_policy, write_policy
    from transom.privacy.sanitize import Sanitized, Sanitizer
    from transom.serving.engines.chat import ChatEngine
    from transom.serving.engines.client import IdsEngine
    from transom.serving.engines.echo import EchoEngine
    from transom.serving.engines.embedded import EmbeddedEngine
    from transom.serving.engines.llamacpp import LlamaCppEngine
    from transom.serving.engines.server import create_engine_app
    from transom.serving.gateway.app import create_gateway
    from transom.serving.gateway.config import GatewayConfig
    from transom.serving.local import serve_in_thread
    from transom.serving.tokenizer import ChatTokenizer, load_tokenizer

__all__ = [
    "Back",
    "BayesAttack",
    "Block",
    "BrokerError",
    "BundleError",
    "Channel",
    "ChatEngine",
    "ChatTokenizer",
    "Checkpoint",
    "CheckpointError",
    "EchoEngine",
    "EmbeddedEngine",
    "EngineDownError",
    "EngineError",
    "EngineGarbageError",
    "EngineTimeoutError",
    "EpsilonFinding",
    "EvidenceError",
    "Explanation",
    "Front",
    "GatewayConfig",
    "Guarantee",
    "IdsEngine",
    "Ledger",
    "LedgerError",
    "LedgerSpentError",
    "LlamaCppEngine",
    "MisconfiguredError",
    "MissingExtraError",
    "NeverError",
    "NotYetError",
    "Partition",
    "PlaceMemo",
    "Placeholders",
    "Policy",
    "PolicyError",
    "RefusedError",
    "ReplaceableError",
    "Sanitized",
    "Sanitizer",
    "TransomError",
    "Walk",
    "WordMechanism",
    "bayes",
    "build",
    "build_policy",
    "create_engine_app",
    "create_gateway",
    "cut",
    "distinguish",
    "exact_epsilon",
    "explain",
    "load",
    "load_policy",
    "load_tokenizer",
    "sample",
    "serve_in_thread",
    "walk",
    "write_policy",
]

_HOMES = {
    "transom.audit.attacks.epsilon": "EpsilonFinding distinguish",
    "transom.checkpoint.cut": "Back Front cut",
    "transom.checkpoint.load": "Checkpoint load",
    "transom.checkpoint.walk": "Block Walk walk",
    "transom.errors": (
        "BrokerError BundleError CheckpointError EngineDownError EngineError EngineGarbageError "
        "EngineTimeoutError EvidenceError LedgerError LedgerSpentError MisconfiguredError MissingExtraError "
        "NeverError NotYetError PolicyError RefusedError ReplaceableError TransomError"
    ),
    "transom.privacy.build": "build_policy",
    "transom.privacy.channel": "BayesAttack Channel bayes exact_epsilon sample",
    "transom.privacy.explain": "Explanation explain",
    "transom.privacy.guarantee": "Guarantee",
    "transom.privacy.ledger": "Ledger",
    "transom.privacy.mechanisms": "build",
    "transom.privacy.memo": "PlaceMemo",
    "transom.privacy.partition": "Partition WordMechanism",
    "transom.privacy.placeholders": "Placeholders",
    "transom.privacy.policy": "Policy load_policy write_policy",
    "transom.privacy.sanitize": "Sanitized Sanitizer",
    "transom.serving.engines.chat": "ChatEngine",
    "transom.serving.engines.client": "IdsEngine",
    "transom.serving.engines.echo": "EchoEngine",
    "transom.serving.engines.embedded": "EmbeddedEngine",
    "transom.serving.engines.llamacpp": "LlamaCppEngine",
    "transom.serving.engines.server": "create_engine_app",
    "transom.serving.gateway.app": "create_gateway",
    "transom.serving.gateway.config": "GatewayConfig",
    "transom.serving.local": "serve_in_thread",
    "transom.serving.tokenizer": "ChatTokenizer load_tokenizer",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its room."""
    for room, names in _HOMES.items():
        if name in names.split():
            return getattr(import_module(room), name)
    raise AttributeError(f"module 'transom' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__
