"""`transom gateway --mode enclave`: whatever is wrong stops the start, and nothing listens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from transom.cli.main import run
from transom.enclave.bundle import pack
from transom.enclave.owner import Owner
from transom.enclave.policy import Rule
from transom.errors import BrokerError, BundleError, EvidenceError, MisconfiguredError
from transom.net.listen import Tls, serve_in_thread
from transom.net.pin import format_pin, make_certificate
from transom.privacy.policy import load_policy
from transom.serving.engines.echo import EchoEngine


class House:
    """A packed bundle, an engine and a broker over TLS; `start` runs the gateway's command."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from transom.checkpoint.tiny import tiny_llama
        from transom.enclave.broker import create_broker
        from transom.enclave.log import ReleaseLog
        from transom.enclave.policy import EvidencePolicy

        self.folder, rule = folder, Rule("insecure-dev")
        self.pin = format_pin(make_certificate(folder / "tls").fingerprint)
        self.tls = Tls(folder / "tls" / "tls.pem", folder / "tls" / "tls.key")
        self.owner = Owner(folder / "owner")
        self.manifest = pack(
            str(tiny_llama(folder / "model")), folder / "bundle", self.owner,
            production=False, rules=(rule,), policy_sha256=load_policy(None).sha256, name="tiny",
            server_pins=[self.pin],
        )  # fmt: skip
        broker = create_broker(
            self.owner, {self.manifest.bundle: self.manifest}, EvidencePolicy((rule,)),
            ReleaseLog(folder / "log"), allow_insecure_dev=True,
        )  # fmt: skip
        self.broker = stack.enter_context(serve_in_thread(broker, tls=self.tls))
        self.echo = EchoEngine(model="tiny", embedding_size=self.manifest.width)
        self.engine = stack.enter_context(serve_in_thread(self.echo.app(), tls=self.tls))

    def start(self, **changes: Any) -> int:
        options = {
            "--mode": "enclave", "--bundle": self.folder / "bundle" / "client",
            "--owner-key": self.folder / "owner" / "owner.pub", "--broker": self.broker,
            "--broker-pin": self.pin, "--engine": self.engine, "--engine-kind": "transom",
            "--evidence": "insecure-dev", "--allow-insecure-dev": "", "--port": "0",
        }  # fmt: skip
        options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        arguments = [
            str(part) for name, value in options.items() if value is not None for part in (name, value)
        ]
        return run(["gateway", *(part for part in arguments if part)])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(tmp_path_factory.mktemp("house"), stack)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The apps that would have been served."""
    apps: list[Any] = []
    monkeypatch.setattr("transom.net.listen.serve", lambda app, sock, **_: apps.append(app))
    monkeypatch.setattr("transom.cli.enclave.mark_log", lambda trust: None)
    return apps


def test_a_right_setting_serves(house: House, served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert house.start() == 0
    assert len(served) == 1
    assert "trust=none" in capsys.readouterr().err
    assert house.start(engine_pin=house.pin) == 0


# A refused connection's TLS goodbye is still under way when the command's event loop ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_settings_that_cannot_protect_do_not_serve(
    house: House, served: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(json.dumps({"allow": [{"kind": "insecure-dev"}]}))
    other_pin = format_pin(make_certificate(tmp_path / "other").fingerprint)
    wrong, misconfigured = EvidenceError.exit_code, MisconfiguredError.exit_code
    for changes, code in (
        ({"bundle": None}, misconfigured),
        ({"owner_key": None}, misconfigured),
        ({"broker": None}, misconfigured),
        ({"allow_insecure_dev": None}, misconfigured),
        ({"tokenizer": "smollm2"}, misconfigured),
        ({"engine_pin": other_pin}, misconfigured),
        ({"engine_pin": "sha256//short"}, misconfigured),
        ({"engine": house.engine.replace("https", "http")}, misconfigured),
        ({"evidence_policy": policy}, misconfigured),
        ({"evidence_policy": policy, "attestor": house.engine}, wrong),
        ({"evidence": "tpm2"}, misconfigured),
        ({"evidence": "gramine"}, misconfigured),
        ({"evidence": "auto"}, misconfigured),
        ({"broker": house.broker.replace("https", "http")}, misconfigured),
        ({"broker": "https://127.0.0.1:9"}, BrokerError.exit_code),
        ({"broker_pin": other_pin}, BrokerError.exit_code),
        ({"epsilon": 29}, misconfigured),
        ({"mechanism": "krr"}, misconfigured),
        ({"rule": "name=pass"}, misconfigured),
        ({"attestor": house.engine}, misconfigured),
        ({"mode": "words"}, misconfigured),
        ({"mode": "plain", "bundle": None, "owner_key": None, "broker": None}, misconfigured),
    ):
        assert house.start(**changes) == code, (changes, capsys.readouterr().err)
    assert served == []
    assert house.echo.seen == []


def test_another_owners_bundle_or_an_altered_one_does_not_serve(
    house: House, served: list[Any], tmp_path: Path
) -> None:
    import shutil

    Owner(tmp_path / "stranger")
    assert house.start(owner_key=tmp_path / "stranger" / "owner.pub") == BundleError.exit_code
    copy = tmp_path / "copy"
    for name in ("embedding-00001.enc", "tokenizer.json"):
        shutil.copytree(house.folder / "bundle" / "client", copy)
        data = bytearray((copy / name).read_bytes())
        data[-1] ^= 1
        (copy / name).write_bytes(data)
        assert house.start(bundle=copy) == BundleError.exit_code, name
        shutil.rmtree(copy)
    assert served == []


def test_evidence_or_its_companion_alone_is_refused_in_every_mode(house: House, served: list[Any]) -> None:
    common = [
        "gateway",
        "--mode",
        "plain",
        "--engine-kind",
        "transom",
        "--tokenizer",
        "smollm2",
        "--port",
        "0",
    ]
    assert run([*common, "--attestor", house.engine]) == MisconfiguredError.exit_code
    assert run([*common, "--evidence-policy", "policy.yaml"]) == MisconfiguredError.exit_code
    assert served == []


def test_convincing_evidence_for_an_unsigned_key_receives_no_row(
    house: House, served: list[Any], tmp_path: Path
) -> None:
    from transom.enclave.source import InsecureDevEvidence
    from transom.serving.attestor import create_attestor, spki_of

    policy = tmp_path / "policy.yaml"
    policy.write_text(json.dumps({"allow": [{"kind": "insecure-dev"}]}))
    make_certificate(tmp_path / "own")
    own = Tls(tmp_path / "own" / "tls.pem", tmp_path / "own" / "tls.key")
    echo = EchoEngine(model="tiny", embedding_size=house.manifest.width)
    for tls, code in ((own, EvidenceError.exit_code), (house.tls, 0)):
        attestor = create_attestor(InsecureDevEvidence(), spki_of(tls.certificate))
        with serve_in_thread(attestor, tls=tls) as companion, serve_in_thread(echo.app(), tls=tls) as engine:
            assert house.start(engine=engine, evidence_policy=policy, attestor=companion) == code
    assert len(served) == 1


def test_a_tokenizer_planted_beside_the_signed_half_is_not_used(
    house: House, served: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signed half may lie in a folder of the host's making; what is loaded is what was signed."""
    import shutil

    planted = tmp_path / "planted"
    shutil.copytree(house.folder / "bundle" / "client", planted / "client")
    (planted / "tokenizer.json").write_text("{}")
    (planted / "chat_template.jinja").write_text("EVIL")
    tokenizers: list[Any] = []
    monkeypatch.setattr(
        "transom.serving.gateway.app.create_gateway", lambda *parts: tokenizers.append(parts[2])
    )
    assert house.start(bundle=planted) == 0
    assert "EVIL" not in tokenizers[0].encode_text("hello").text
    assert tokenizers[0].vocab_size > 10


def test_an_engine_of_another_model_does_not_serve(house: House, served: list[Any]) -> None:
    for echo in (
        EchoEngine(model="other", embedding_size=house.manifest.width),
        EchoEngine(model="tiny", embedding_size=house.manifest.width + 1),
    ):
        with serve_in_thread(echo.app(), tls=house.tls) as url:
            assert house.start(engine=url) == BundleError.exit_code
        assert echo.seen == []
    assert served == []


def test_a_bundle_for_another_word_policy_does_not_serve(
    house: House, served: list[Any], tmp_path: Path
) -> None:
    packed = pack(
        str(house.folder / "model"), tmp_path / "bundle", house.owner, production=False,
        rules=(Rule("insecure-dev"),), policy_sha256="ab" * 32, name="tiny", server_pins=[house.pin],
    )  # fmt: skip
    assert packed.policy_sha256 == "ab" * 32
    assert house.start(bundle=tmp_path / "bundle" / "client") == MisconfiguredError.exit_code
    assert served == []
