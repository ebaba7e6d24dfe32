"""The recipes in deploy/: their syntax, what they trust, and that every command in them exists."""

from __future__ import annotations

import configparser
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import Environment, StrictUndefined
from typer.main import get_command

from transom.cli.main import app
from transom.config import load_yaml, read_config
from transom.enclave.policy import load_evidence_policy
from transom.link.config import LinkConfig

DEPLOY = Path(__file__).parents[1] / "deploy"
UNITS = sorted(DEPLOY.glob("cvm/*.service"))
VARIABLES = {
    "entrypoint": "/opt/transom/bin/python3", "venv": "/opt/transom", "stdlib": "/usr/lib/python3.11",
    "arch_libdir": "/lib/x86_64-linux-gnu", "bundle": "/srv/bundle", "owner_key": "/srv/owner.pub",
    "broker": "https://broker.example:8443", "broker_pin": "sha256//" + "A" * 43 + "=",
    "engine": "https://engine.example:8001",
}  # fmt: skip


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    """The template as gramine-manifest renders it: jinja with a `gramine` object, then TOML."""
    source = (DEPLOY / "gramine" / "transom-gateway.manifest.template").read_text()
    gramine = SimpleNamespace(libos="/usr/lib/gramine/libos", runtimedir=lambda: "/usr/lib/gramine/runtime")
    jinja = Environment(undefined=StrictUndefined, autoescape=False)  # noqa: S701  not HTML
    return tomllib.loads(jinja.from_string(source).render(gramine=gramine, **VARIABLES))


def test_the_enclave_cannot_be_looked_into(manifest: dict[str, Any]) -> None:
    sgx = manifest["sgx"]
    assert (sgx["debug"], sgx["remote_attestation"], sgx["file_check_policy"]) == (False, "dcap", "strict")
    assert not any(name.startswith("insecure") for name in flat(manifest))


def test_every_mounted_file_is_measured_but_the_signed_bundle(manifest: dict[str, Any]) -> None:
    trusted = manifest["sgx"]["trusted_files"]
    assert manifest["sgx"]["allowed_files"] == [f"file:{VARIABLES['bundle']}/"]
    mounted = [mount["uri"] for mount in manifest["fs"]["mounts"] if mount.get("type") != "tmpfs"]
    unmeasured = [uri for uri in mounted if uri.rstrip("/") not in {one.rstrip("/") for one in trusted}]
    assert unmeasured == [f"file:{VARIABLES['bundle']}"]


def test_nothing_comes_from_the_hosts_environment(manifest: dict[str, Any]) -> None:
    assert not any("passthrough" in name for name in flat(manifest))
    assert "insecure__use_cmdline_argv" not in manifest["loader"]
    assert "-I" in manifest["loader"]["argv"]  # python looks at no variable and no user site


def test_its_command_line_is_one_that_the_gateway_takes(manifest: dict[str, Any]) -> None:
    argv = manifest["loader"]["argv"]
    parsed = parse(argv[argv.index("transom.cli.main") + 1 :])
    assert (parsed["mode"], parsed["evidence"], parsed["allow_insecure_dev"]) == ("enclave", "gramine", False)
    assert parsed["owner_key"] == Path("/owner.pub")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_units_command_exists(unit: Path) -> None:
    program, *arguments = shlex.split(unit_of(unit)["Service"]["ExecStart"])
    if program.endswith("/transom"):
        options = parse(arguments)
        assert not options.get("allow_insecure_dev")
        assert options.get("evidence") in (None, "tsm")
    else:
        assert {"--enable-prompt-embeds", "--ssl-keyfile", "--ssl-certfile"} <= set(arguments)


def test_the_image_has_the_units_and_no_login() -> None:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.read(DEPLOY / "cvm" / "mkosi.conf")
    extra = parsed["Content"]["ExtraTrees"].split()
    assert {unit.name for unit in UNITS} < {line.partition(":")[0] for line in extra}
    programs = {Path(shlex.split(unit_of(unit)["Service"]["ExecStart"])[0]) for unit in UNITS}
    trees = [Path(line.partition(":")[2]) for line in extra]
    assert all(any(program.is_relative_to(tree) for tree in trees) for program in programs)
    assert parsed["Content"]["RootPassword"] == "hashed:!"
    assert not {"openssh-server", "sudo"} & set(parsed["Content"]["Packages"].split())


def test_the_images_root_is_under_verity() -> None:
    partitions = {path.name: unit_of(path)["Partition"] for path in DEPLOY.glob("cvm/mkosi.repart/*.conf")}
    root, hashes = partitions["10-root.conf"], partitions["11-root-verity.conf"]
    assert (root["Type"], root["Verity"], root["CopyFiles"]) == ("root", "data", "/")
    assert (hashes["Type"], hashes["Verity"]) == ("root-verity", "hash")
    assert root["VerityMatchKey"] == hashes["VerityMatchKey"]


def test_python_finds_the_environment_by_argv0(manifest: dict[str, Any]) -> None:
    """As in the manifest: the interpreter is the resolved file, argv[0] the environment's, with -I."""
    here = Path(sys.prefix) / "bin" / "python3"
    argv = [part.replace(VARIABLES["venv"], sys.prefix) for part in manifest["loader"]["argv"][:4]]
    assert argv[0] == str(here)
    found = subprocess.run(
        [*argv[:2], "-c", "import transom.cli.main"], executable=here.resolve(), capture_output=True
    )
    assert found.returncode == 0, found.stderr.decode()


def test_the_policies_shown_are_policies(tmp_path: Path) -> None:
    text = (DEPLOY / "README.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```yaml\n")[1:]]
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        lines = block.splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        shown = "\n".join(line[indent:] for line in lines)
        for digits in (64, 96):
            shown = shown.replace(f"<{digits} hex digits>", "ab" * (digits // 2))
        (tmp_path / "milan.crl").write_bytes(b"list")
        path = tmp_path / f"{number}.yaml"
        path.write_text(shown)
        assert load_evidence_policy(path).allow[0].registers


def unit_of(path: Path) -> configparser.ConfigParser:
    """A file in systemd's syntax; duplicate keys raise."""
    parsed = configparser.ConfigParser(interpolation=None, strict=True)
    parsed.optionxform = str  # type: ignore[method-assign, assignment]  # its keys have capitals
    parsed.read_string(path.read_text())
    return parsed


def flat(value: Any, name: str = "") -> list[str]:
    """The dotted names of every key."""
    if not isinstance(value, dict):
        return [name]
    return [one for key, inner in value.items() for one in flat(inner, f"{name}.{key}".lstrip("."))]


def parse(arguments: list[str]) -> dict[str, Any]:
    """What the command line's own parser makes of the arguments; raises for an option it does not know."""
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[arguments[0]]
        arguments = arguments[1:]
    options: dict[str, Any] = command.make_context(command.name, arguments).params
    return options


def test_the_two_parties_of_the_compose_file_fit_each_other() -> None:
    compose = load_yaml((DEPLOY / "link" / "compose.yaml").read_text())["services"]
    parties = {name: read_config(LinkConfig, DEPLOY / "link" / f"{name}.yaml") for name in ("bank", "shop")}
    bank, shop = parties.values()
    assert (bank.party, bank.partner, bank.job, bank.run) == (shop.partner, shop.party, shop.job, shop.run)
    for name, config in parties.items():
        service = compose[name]
        mounted = dict(reversed(volume.removesuffix(":ro").split(":")) for volume in service["volumes"])
        assert mounted[str(config.identity)] == f"../../keys/{name}"
        assert mounted[str(config.partner_certificate)] == f"../../keys/{config.partner}/tls.pem"
        assert mounted[service["command"][-1]] == f"./{name}.yaml"
        assert parse(service["command"])["file"] == Path(service["command"][-1])
        assert config.nats == "nats://broker:4222"
        assert (DEPLOY / "link" / service["build"]["context"] / service["build"]["dockerfile"]).exists()
    assert compose["broker"]["command"][0] == "-js"
