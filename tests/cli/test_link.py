"""`transom link`: keys, two parties that check their way, and what is said where they do not fit."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transom.cli import link as link_command
from transom.cli import main
from transom.cli.app import App
from transom.link.identity import Identity
from transom.link.nats_server import local_server, tls_settings
from transom.net.pin import format_pin


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = App()
    root.callback()(lambda: None)
    root.add_typer(link_command.app, name="link")
    monkeypatch.setattr(main, "app", root)
    monkeypatch.chdir(tmp_path)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def configured(name: str, other: str, *lines: str, folder: str = "keys") -> str:
    """The path of a party's configuration; its keys are made if absent."""
    for one in (name, other):
        if not Path(folder, one).exists():
            assert main.run(["link", "keys", "--out", f"{folder}/{one}", "--name", one]) == 0
    base = ("job: credit", "run: r1", f"party: {name}", f"partner: {other}", "timeout_s: 20")
    keys = (f"identity: {folder}/{name}", f"partner_certificate: {folder}/{other}/tls.pem")
    Path(f"{name}.yaml").write_text("\n".join((*base, *keys, *lines)))
    return f"{name}.yaml"


def both(
    capsys: pytest.CaptureFixture[str], ours: str, theirs: str, messages: str = "4"
) -> tuple[int, str, int, str]:
    """Exit codes and outputs of one check here and one in a process of its own, of so many messages."""
    command = [sys.executable, "-m", "transom.cli.main", "link", "check", theirs, "--messages", messages]
    capsys.readouterr()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as other:
        code = main.run(["link", "check", ours, "--messages", "4", "--json"])
        told, _ = other.communicate(timeout=60)
        captured = capsys.readouterr()
        return code, captured.out + captured.err, other.returncode, told


def checked(capsys: pytest.CaptureFixture[str], ours: str, theirs: str) -> dict[str, Any]:
    code, said, other_code, told = both(capsys, ours, theirs)
    assert (code, other_code) == (0, 0), said + told
    assert "shop is connected to bank" in told
    value: dict[str, Any] = json.loads(said)
    return value


def test_two_parties_meet_over_tcp(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    ours = configured("bank", "shop", f"listen: 127.0.0.1:{port}", "record: records")
    theirs = configured("shop", "bank", f"connect: 127.0.0.1:{port}", "record: records")
    for _ in range(2):  # a check leaves nothing that a second one would trip over
        seen = checked(capsys, ours, theirs)
        assert (seen["party"], seen["partner"]) == ("bank", "shop")
        assert min(seen["round_trip_ms"], seen["sent_mb_s"], seen["received_mb_s"]) > 0
        assert seen["broker"]["tls"] == "TLSv1.3"
        assert seen["broker"]["partner_pin"] == format_pin(Identity(Path("keys/shop")).pin.fingerprint)
    assert not Path("records").exists()


def test_two_parties_meet_over_nats(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with local_server(tmp_path / "nats", settings="max_payload: 1MB") as server:  # as NATS has it
        way = f"nats: {server.url}"
        seen = checked(capsys, configured("bank", "shop", way), configured("shop", "bank", way))
    assert seen["broker"]["server"].startswith("NATS ")


def test_two_parties_meet_over_nats_with_tls_of_link_keys(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main.run(["link", "nats", "--folder", "streams", "--tls", "keys/broker"]) == 3
    assert "lacks tls.pem and tls.key: transom link keys --out keys/broker" in capsys.readouterr().err
    assert main.run(["link", "keys", "--out", "keys/broker", "--name", "localhost"]) == 0
    with local_server(tmp_path / "nats", settings=tls_settings(Path("keys/broker"))) as server:
        place = server.url.replace("nats://127.0.0.1", "tls://localhost")
        ways = f"nats: {place}", "nats_ca: keys/broker/tls.pem"
        seen = checked(capsys, configured("bank", "shop", *ways), configured("shop", "bank", *ways))
    assert seen["broker"]["tls"] == "TLSv1.3"


def test_the_least_window_and_the_longest_run_are_checked_too(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    ways = (f"listen: 127.0.0.1:{port}", f"connect: 127.0.0.1:{port}")
    ours = configured("bank", "shop", ways[0], "window_mb: 1", "window: 1")
    theirs = configured("shop", "bank", ways[1], "message_mb: 1")
    for path in (ours, theirs):
        Path(path).write_text(Path(path).read_text().replace("run: r1", f"run: {'r' * 64}"))
    assert checked(capsys, ours, theirs)["max_bytes"] == 2**20


def test_checks_of_other_lengths_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    ours = configured("bank", "shop", f"listen: 127.0.0.1:{port}")
    theirs = configured("shop", "bank", f"connect: 127.0.0.1:{port}")
    code, said, other_code, told = both(capsys, ours, theirs, "5")
    assert (code, other_code) == (15, 15)
    assert "terms.messages is 4 here and 5 there" in said
    assert "terms.messages is 5 here and 4 there" in told


def test_terms_that_differ_are_named_with_both_values(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    ours = configured("bank", "shop", f"listen: 127.0.0.1:{port}")
    theirs = configured("shop", "bank", f"connect: 127.0.0.1:{port}", "wire: bf16")
    code, said, other_code, told = both(capsys, ours, theirs)
    assert (code, other_code) == (15, 15)
    assert "terms.wire is fp32 here and bf16 there" in said
    assert "terms.wire is bf16 here and fp32 there" in told


def test_a_stranger_is_refused_with_both_pins(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    theirs = configured("bank", "shop", f"listen: 127.0.0.1:{port}")
    Path(theirs).write_text(Path(theirs).read_text().replace("timeout_s: 20", "timeout_s: 6"))
    ours = configured("shop", "bank", f"connect: 127.0.0.1:{port}", folder="others")
    code, said, other_code, told = both(capsys, ours, theirs)
    assert (code, other_code) == (15, 15), said + told
    for folder in ("keys", "others"):
        assert format_pin(Identity(Path(folder, "bank")).pin.fingerprint) in said
    assert "no partner came" in told


def test_nobody_comes(capsys: pytest.CaptureFixture[str]) -> None:
    for way, why in (("listen", "not connected yet"), ("connect", "not connected: [Errno 111]")):
        ours = configured("bank", "shop", f"{way}: 127.0.0.1:{free_port()}")
        Path(ours).write_text(Path(ours).read_text().replace("timeout_s: 20", "timeout_s: 0.3"))
        assert main.run(["link", "check", ours]) == 15
        told = capsys.readouterr().err
        assert f"no partner came within 0.3 s; nothing was heard of shop ({why}" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("listen: 127.0.0.1:1", ""), "one of listen, connect and nats says where the parties meet"),
        (("partner: shop", "partner: bank"), "party and partner have one name"),
        (("identity: keys/bank", ""), "identity and partner_certificate go together"),
        (("run: r1", "run: ../r1"), "run must be 1 to 64 letters"),
        (("timeout_s: 20", "timeout_s: 0"), "timeout_s must be"),
        (("timeout_s: 20", "timeout_s: 100000000000"), "timeout_s must be"),
        (("timeout_s: 20", "window: 1025"), "window must be a whole number, at least 1 and at most 1024"),
        (("job: credit", "jobb: credit"), "did you mean 'job'?"),
        (("127.0.0.1:1", "127.0.0.1"), "an address looks like HOST:PORT"),
    ],
)
def test_a_wrong_configuration_is_told(
    capsys: pytest.CaptureFixture[str], change: tuple[str, str], told: str
) -> None:
    path = Path(configured("bank", "shop", "listen: 127.0.0.1:1"))
    path.write_text(path.read_text().replace(*change))
    assert main.run(["link", "check", str(path)]) == 3
    assert told in capsys.readouterr().err


def test_without_keys_only_this_machine_is_reached(capsys: pytest.CaptureFixture[str]) -> None:
    lines = "job: j\nrun: r\nparty: a\npartner: b\n"
    for way, code in (("listen: 0.0.0.0:7000", 3), ("nats: nats://127.0.0.1:4222", 3)):
        Path("a.yaml").write_text(lines + way)
        assert main.run(["link", "check", "a.yaml"]) == code
        assert "transom link keys" in capsys.readouterr().err
