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
    from transom.enclave.broker import create_broker
    from transom.enclave.bundle import pack, verify_bundle
    from transom.enclave.client import obtain_key
    from transom.enclave.evidence import Claims, Evidence
    from transom.enclave.manifest import Manifest
    from transom.enclave.owner import Owner
    from transom.enclave.policy import EvidencePolicy, Rule, load_evidence_policy
    from transom.enclave.source import InsecureDevEvidence
    from transom.enclave.table import EmbeddingTable, open_table
    from transom.enclave.verify import verify
    from transom.errors import (
        BrokerError,
        BundleError,
        CheckpointError,
        EngineBusyError,
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
    from transom.net.listen import serve_in_thread
    from transom.net.pin import KeyPin
    from transom.obfuscation.card import Card, verify_card
    from transom.obfuscation.keyfile import KeyFile, load_key, new_key, save_key
    from transom.obfuscation.keys import preset
    from transom.obfuscation.writer import obfuscate
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
    from transom.report.finding import Attack, Example, Finding
    from transom.report.report import Frontier, FrontierPoint, Report
    from transom.serving.attestor import create_attestor
    from transom.serving.engines.chat import ChatEngine
    from transom.serving.engines.client import IdsEngine
    from transom.serving.engines.echo import EchoEngine
    from transom.serving.engines.embedded import EmbeddedEngine
    from transom.serving.engines.evidence import EvidenceGuard
    from transom.serving.engines.http import Pinned
    from transom.serving.engines.llamacpp import LlamaCppEngine
    from transom.serving.engines.server import create_engine_app
    from transom.serving.gateway.app import create_gateway
    from transom.serving.gateway.config import GatewayConfig
    from transom.serving.gateway.enclave import Enclave, ExtractionMeter
    from transom.serving.tokenizer import ChatTokenizer, load_tokenizer

__all__ = [
    "Attack",
    "Back",
    "BayesAttack",
    "Block",
    "BrokerError",
    "BundleError",
    "Card",
    "Channel",
    "ChatEngine",
    "ChatTokenizer",
    "Checkpoint",
    "CheckpointError",
    "Claims",
    "EchoEngine",
    "EmbeddedEngine",
    "EmbeddingTable",
    "Enclave",
    "EngineBusyError",
    "EngineDownError",
    "EngineError",
    "EngineGarbageError",
    "EngineTimeoutError",
    "EpsilonFinding",
    "Evidence",
    "EvidenceError",
    "EvidenceGuard",
    "EvidencePolicy",
    "Example",
    "Explanation",
    "ExtractionMeter",
    "Finding",
    "Front",
    "Frontier",
    "FrontierPoint",
    "GatewayConfig",
    "Guarantee",
    "IdsEngine",
    "InsecureDevEvidence",
    "KeyFile",
    "KeyPin",
    "Ledger",
    "LedgerError",
    "LedgerSpentError",
    "LlamaCppEngine",
    "Manifest",
    "MisconfiguredError",
    "MissingExtraError",
    "NeverError",
    "NotYetError",
    "Owner",
    "Partition",
    "Pinned",
    "PlaceMemo",
    "Placeholders",
    "Policy",
    "PolicyError",
    "RefusedError",
    "ReplaceableError",
    "Report",
    "Rule",
    "Sanitized",
    "Sanitizer",
    "TransomError",
    "Walk",
    "WordMechanism",
    "bayes",
    "build",
    "build_policy",
    "create_attestor",
    "create_broker",
    "create_engine_app",
    "create_gateway",
    "cut",
    "distinguish",
    "exact_epsilon",
    "explain",
    "load",
    "load_evidence_policy",
    "load_key",
    "load_policy",
    "load_tokenizer",
    "new_key",
    "obfuscate",
    "obtain_key",
    "open_table",
    "pack",
    "preset",
    "sample",
    "save_key",
    "serve_in_thread",
    "verify",
    "verify_bundle",
    "verify_card",
    "walk",
    "write_policy",
]

_HOMES = {
    "transom.audit.attacks.epsilon": "EpsilonFinding distinguish",
    "transom.checkpoint.cut": "Back Front cut",
    "transom.checkpoint.load": "Checkpoint load",
    "transom.checkpoint.walk": "Block Walk walk",
    "transom.enclave.broker": "create_broker",
    "transom.enclave.bundle": "pack verify_bundle",
    "transom.enclave.client": "obtain_key",
    "transom.enclave.evidence": "Claims Evidence",
    "transom.enclave.manifest": "Manifest",
    "transom.enclave.owner": "Owner",
    "transom.net.pin": "KeyPin",
    "transom.enclave.policy": "EvidencePolicy Rule load_evidence_policy",
    "transom.enclave.source": "InsecureDevEvidence",
    "transom.enclave.table": "EmbeddingTable open_table",
    "transom.enclave.verify": "verify",
    "transom.errors": (
        "BrokerError BundleError CheckpointError EngineBusyError EngineDownError EngineError "
        "EngineGarbageError EngineTimeoutError EvidenceError LedgerError LedgerSpentError MisconfiguredError "
        "MissingExtraError NeverError NotYetError PolicyError RefusedError ReplaceableError TransomError"
    ),
    "transom.obfuscation.card": "Card verify_card",
    "transom.obfuscation.keyfile": "KeyFile load_key new_key save_key",
    "transom.obfuscation.keys": "preset",
    "transom.obfuscation.writer": "obfuscate",
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
    "transom.report.finding": "Attack Example Finding",
    "transom.report.report": "Frontier FrontierPoint Report",
    "transom.serving.attestor": "create_attestor",
    "transom.serving.engines.chat": "ChatEngine",
    "transom.serving.engines.client": "IdsEngine",
    "transom.serving.engines.echo": "EchoEngine",
    "transom.serving.engines.embedded": "EmbeddedEngine",
    "transom.serving.engines.evidence": "EvidenceGuard",
    "transom.serving.engines.http": "Pinned",
    "transom.serving.engines.llamacpp": "LlamaCppEngine",
    "transom.serving.engines.server": "create_engine_app",
    "transom.serving.gateway.app": "create_gateway",
    "transom.serving.gateway.config": "GatewayConfig",
    "transom.serving.gateway.enclave": "Enclave ExtractionMeter",
    "transom.net.listen": "serve_in_thread",
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
