"""The public names: what `from transom import` gives, to type checkers and to the interpreter alike.

A name that says nothing outside its room gets one that does. `__init__.py` reads this file, `docs/api.md` is
generated from it, and ruff holds the imports and `__all__` together.
"""

from transom.audit.attacks.epsilon import EpsilonFinding, distinguish
from transom.audit.words import audit_mechanism
from transom.checkpoint.cut import Back, Front
from transom.checkpoint.cut import cut as cut_model
from transom.checkpoint.load import Checkpoint
from transom.checkpoint.load import load as load_checkpoint
from transom.checkpoint.walk import Block, Walk
from transom.checkpoint.walk import walk as walk_model
from transom.data.rows import read_texts
from transom.enclave.broker import create_broker
from transom.enclave.bundle import pack as pack_bundle
from transom.enclave.bundle import verify_bundle
from transom.enclave.client import obtain_key
from transom.enclave.evidence import Claims, Evidence
from transom.enclave.log import ReleaseLog
from transom.enclave.manifest import Manifest
from transom.enclave.owner import Owner
from transom.enclave.policy import EvidencePolicy, Rule, load_evidence_policy
from transom.enclave.source import InsecureDevEvidence
from transom.enclave.table import EmbeddingTable, open_table
from transom.enclave.verify import verify as verify_evidence
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
    LinkError,
    LinkRefusedError,
    LinkTimeoutError,
    MisconfiguredError,
    MissingExtraError,
    NeverError,
    NotYetError,
    PolicyError,
    RefusedError,
    ReplaceableError,
    TransomError,
)
from transom.link.config import LinkConfig
from transom.link.config import connected as link_connected
from transom.link.faults import FaultyBroker
from transom.link.identity import Identity, Partner
from transom.link.mechanisms import Clipping, DChi, Gaussian, Laplace, Nothing
from transom.link.memory import MemoryBroker, memory_pair
from transom.link.message import Step
from transom.link.nats import NatsBroker
from transom.link.r3elu import R3elu, R3eluDp
from transom.link.record import Record
from transom.link.session import Received, Session
from transom.link.tcp import TcpBroker
from transom.link.tunnel import Tunnel
from transom.net.listen import Tls, serve_in_thread
from transom.net.pin import KeyPin, parse_pin
from transom.obfuscation.card import Card, verify_card
from transom.obfuscation.keyfile import KeyFile, load_key, new_key, save_key
from transom.obfuscation.keys import preset as obfuscation_preset
from transom.obfuscation.writer import obfuscate
from transom.privacy.account import (
    ApproximateEvent,
    Event,
    GaussianEvent,
    LaplaceEvent,
    PureEvent,
    ResponseEvent,
)
from transom.privacy.account import gaussian as gaussian_event
from transom.privacy.build import build_policy
from transom.privacy.channel import BayesAttack, Channel, exact_epsilon
from transom.privacy.channel import bayes as attack_channel
from transom.privacy.channel import sample as sample_channel
from transom.privacy.claims import Claims as TextClaims
from transom.privacy.drawn_back import drawn_words, restore_words
from transom.privacy.explain import Explanation
from transom.privacy.explain import explain as explain_mechanism
from transom.privacy.guarantee import Guarantee, price
from transom.privacy.kinds import Recogniser, Span
from transom.privacy.ledger import Ledger
from transom.privacy.lists import Lists, load_lists, watch_lists
from transom.privacy.mapfile import MapFile, open_map
from transom.privacy.mapfile import make_key as make_map_key
from transom.privacy.mapfile import read_key as read_map_key
from transom.privacy.mechanisms import build as build_mechanism
from transom.privacy.memo import PlaceMemo
from transom.privacy.partition import Partition, WordMechanism
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy, load_policy, write_policy
from transom.privacy.presets import with_preset
from transom.privacy.presidio import Presidio
from transom.privacy.sanitize import Sanitized, Sanitizer
from transom.report.finding import Attack, Example, Finding
from transom.report.html import page as report_page
from transom.report.report import Frontier, FrontierPoint, Report
from transom.report.sarif import sarif as report_sarif
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
    "ApproximateEvent",
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
    "Clipping",
    "DChi",
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
    "Event",
    "Evidence",
    "EvidenceError",
    "EvidenceGuard",
    "EvidencePolicy",
    "Example",
    "Explanation",
    "ExtractionMeter",
    "FaultyBroker",
    "Finding",
    "Front",
    "Frontier",
    "FrontierPoint",
    "GatewayConfig",
    "Gaussian",
    "GaussianEvent",
    "Guarantee",
    "Identity",
    "IdsEngine",
    "InsecureDevEvidence",
    "KeyFile",
    "KeyPin",
    "Laplace",
    "LaplaceEvent",
    "Ledger",
    "LedgerError",
    "LedgerSpentError",
    "LinkConfig",
    "LinkError",
    "LinkRefusedError",
    "LinkTimeoutError",
    "Lists",
    "LlamaCppEngine",
    "Manifest",
    "MapFile",
    "MemoryBroker",
    "MisconfiguredError",
    "MissingExtraError",
    "NatsBroker",
    "NeverError",
    "NotYetError",
    "Nothing",
    "Owner",
    "Partition",
    "Partner",
    "Pinned",
    "PlaceMemo",
    "Placeholders",
    "Policy",
    "PolicyError",
    "Presidio",
    "PureEvent",
    "R3elu",
    "R3eluDp",
    "Received",
    "Recogniser",
    "Record",
    "RefusedError",
    "ReleaseLog",
    "ReplaceableError",
    "Report",
    "ResponseEvent",
    "Rule",
    "Sanitized",
    "Sanitizer",
    "Session",
    "Span",
    "Step",
    "TcpBroker",
    "TextClaims",
    "Tls",
    "TransomError",
    "Tunnel",
    "Walk",
    "WordMechanism",
    "attack_channel",
    "audit_mechanism",
    "build_mechanism",
    "build_policy",
    "create_attestor",
    "create_broker",
    "create_engine_app",
    "create_gateway",
    "cut_model",
    "distinguish",
    "drawn_words",
    "exact_epsilon",
    "explain_mechanism",
    "gaussian_event",
    "link_connected",
    "load_checkpoint",
    "load_evidence_policy",
    "load_key",
    "load_lists",
    "load_policy",
    "load_tokenizer",
    "make_map_key",
    "memory_pair",
    "new_key",
    "obfuscate",
    "obfuscation_preset",
    "obtain_key",
    "open_map",
    "open_table",
    "pack_bundle",
    "parse_pin",
    "price",
    "read_map_key",
    "read_texts",
    "report_page",
    "report_sarif",
    "restore_words",
    "sample_channel",
    "save_key",
    "serve_in_thread",
    "verify_bundle",
    "verify_card",
    "verify_evidence",
    "walk_model",
    "watch_lists",
    "with_preset",
    "write_policy",
]
