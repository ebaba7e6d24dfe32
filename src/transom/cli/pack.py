"""`transom pack MODEL`: make an enclave bundle; `transom pack verify BUNDLE`: check one.

Threat model: run by the owner, whose folder holds the keys; verify is for whoever received client/.
Does not protect: server/, which holds the plain weights and stays with the owner.
Source: `transom.enclave.bundle`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from transom.cli.app import App
from transom.cli.options import EVIDENCE_POLICY, OWNER_FOLDER, Json, ModelArgument
from transom.cli.output import answer, plain_console, progress
from transom.config import Setting, to_plain
from transom.enclave.bundle import EXTRACTION_SHARE, leftovers, pack, verify_bundle
from transom.enclave.manifest import Manifest
from transom.enclave.owner import Owner, load_owner_key
from transom.enclave.policy import load_evidence_policy
from transom.files import require_writable
from transom.privacy.policy import load_policy

SHOWN = (
    *("path", "bundle", "model", "production", "rows", "width", "dtype", "shards", "size_bytes"),
    *("policy_sha256", "rules", "server_pins", "extraction_share", "created", "manifest_sha256"),
)


class _MakeByDefault(TyperGroup):
    """`transom pack MODEL ...` means `transom pack make MODEL ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = not args or args[0] in self.commands or args[0] == "--help"
        return super().parse_args(ctx, args if known else ["make", *args])


app = App(
    cls=_MakeByDefault,
    no_args_is_help=True,
    help="Pack a model into an enclave bundle, or verify one. `make` may be left out: `transom pack MODEL`.",
)


@app.command()
def make(
    source: ModelArgument,
    out: Annotated[Path, "The bundle's folder; it must not exist."],
    owner: Annotated[Path, OWNER_FOLDER],
    production: Annotated[
        bool, typer.Option("--production", help="Open only for attested hardware; needs --evidence-policy.")
    ] = False,
    evidence_policy: Annotated[Path | None, EVIDENCE_POLICY] = None,
    policy: Annotated[
        Path | None, "Word policy that the enclave must run; the English one by default."
    ] = None,
    name: Annotated[str | None, "The model's published name."] = None,
    server_pin: Annotated[list[str] | None, "Public key of the engine, sha256//BASE64; repeatable."] = None,
    extraction_share: Annotated[
        float, Setting("Share of the rows that a gateway may use within a day.", least=0, most=1)
    ] = EXTRACTION_SHARE,
    as_json: Json = False,
) -> None:
    """Encrypt a model's embedding for an enclave, and keep the whole model for the engine."""
    if not out.exists():  # `pack` says what it says of one that does
        require_writable(out, parents=True)
    rules = load_evidence_policy(evidence_policy).allow if evidence_policy is not None else ()
    console = plain_console(stderr=True)
    for path in leftovers(out):
        console.print(f"{path} is left of a packing that was killed, or still runs; delete it if none does")
    keys = Owner(owner)
    with progress("packing", 1.0, quiet=as_json) as meter:
        made = pack(
            source,
            out,
            keys,
            production=production,
            rules=rules,
            policy_sha256=load_policy(policy).sha256,
            name=name,
            server_pins=server_pin or [],
            extraction_share=extraction_share,
            progress=meter.reach,
        )
    _show(made, out, as_json)


@app.command()
def key(
    owner: Annotated[Path, OWNER_FOLDER],
) -> None:
    """Make the owner's keys if need be, and print where the public one is: to be measured before packing."""
    typer.echo(Owner(owner).folder / "owner.pub")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or its client half.")],
    owner_key: Annotated[Path, "The owner's public key, owner.pub."],
    as_json: Json = False,
) -> None:
    """Check a bundle's signature and every file's hash; the data key is not needed."""
    _show(verify_bundle(bundle, load_owner_key(owner_key)), bundle, as_json)


def _show(manifest: Manifest, path: Path, as_json: bool) -> None:
    told = to_plain(manifest) | {
        "path": str(path),
        "shards": len(manifest.shards),
        "size_bytes": sum(shard.size_bytes for shard in manifest.shards),
        "manifest_sha256": manifest.sha256,
    }
    record = {name: told[name] for name in SHOWN}
    kinds = ", ".join(sorted({rule.kind for rule in manifest.rules})) or "nobody yet (no evidence policy)"
    text = (
        f"{path}: {manifest.model}, bundle {manifest.bundle} "
        f"({'production' if manifest.production else 'development'})\n"
        f"{manifest.rows} x {manifest.width} {manifest.dtype} in {record['shards']} encrypted shards, "
        f"{record['size_bytes'] / 1e6:.1f} MB; opens for {kinds}\n"
        f"manifest SHA-256 {manifest.sha256}"
    )
    answer(record, text, as_json=as_json)
