"""`transom words`: build a policy, sanitise files with it, explain what it promises.

Threat model: the input is private, the output is to leave the machine; a charge to the ledger is durable
before the text it pays for is written. Does not protect: columns that are not named, and what the
guarantee discloses.
Source: `transom.privacy.sanitize`, `transom.privacy.explain`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from transom.cli import words_plan
from transom.cli.app import App
from transom.cli.options import Json, NamedLedger, PolicyOptions, WordOptions
from transom.cli.output import answer, progress
from transom.cli.records import FileOptions, MapTo, check_file, check_records, sanitize_file
from transom.cli.restored import restore_file, selection_of
from transom.cli.resumable import Summary, spare
from transom.cli.summary import record_of, text_of
from transom.errors import MisconfiguredError, MissingExtraError
from transom.files import file_sha256, require_writable
from transom.privacy.explain import CURVE_EPSILONS, Explanation, explain
from transom.privacy.kinds import about
from transom.privacy.lists import load_lists
from transom.privacy.mapfile import key_name, make_key, open_map, read_key
from transom.privacy.mechanisms import IN_GROUP
from transom.privacy.policy import Policy
from transom.privacy.sanitize import Sanitizer

app = App(help="Sanitise words with differential privacy.", no_args_is_help=True)
app.command()(words_plan.plan)

CURVE_GROUPS = 64
FILES = FileOptions()


@app.command()
def sanitize(
    inputs: Annotated[
        list[Path] | None, typer.Argument(help="Files, `-` for standard input (the default).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write, or folder: for several, or if there is one.")
    ] = None,
    *,
    drawing: WordOptions,
    files: FileOptions = FILES,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that sanitise.")] = 1,
    resume: Annotated[
        bool, typer.Option(help="Go on with a run that was stopped; what it wrote stays.")
    ] = False,
    map_to: Annotated[
        Path | None,
        typer.Option("--map", help="File to write that brings the texts back, sealed with --key."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Key of the map; make one with `transom words key`.")
    ] = None,
    charged: NamedLedger,
    account: Annotated[str, typer.Option(help="The ledger's account.")] = "words",
    as_json: Json = False,
) -> None:
    """Sanitise text, CSV, TSV or JSON; what is not named stays unchanged, a summary goes to standard error.

    Nothing is sent, so nothing is charged unless a ledger is named. With --json the summary goes to standard
    output, and the text must go to --out.
    """
    charged.check()
    _check_json(out, as_json)
    sources = inputs or [Path("-")]
    mapping = _map_to(map_to, key, sources, out)
    targets = _targets(sources, out)
    kept = {"the key": key, "the ledger": charged.ledger, "the lists": drawing.lists,
            "the policy": drawing.policy, "the overlay": drawing.overlay}  # fmt: skip
    for source in sources:
        spare(targets, {"the input": source, "the map": map_to, **kept})
    spare([map_to], kept)
    selections = list(map(files.selection, sources))
    for source, target, selection in zip(sources, targets, selections, strict=True):
        check_file(source, target, selection, resume=resume)
    for source, selection in zip(sources, selections, strict=True):
        check_records(source, selection)
    sanitizer = drawing.sanitizer()
    books = charged.open()
    total = Summary()
    with progress("sanitising", sum(map(_size, sources)), quiet=as_json) as meter:
        for source, target, selection in zip(sources, targets, selections, strict=True):
            total += sanitize_file(
                drawing.sanitizer if workers > 1 else lambda: sanitizer,
                source,
                target,
                selection,
                charge=None if books is None else lambda amount: books.charge(account, amount),
                advance=meter.advance,
                workers=workers,
                resume=resume,
                settings=_settings(drawing, sanitizer, mapping),
                mapping=mapping,
            )
    if books is not None:
        books.close()
    answer(record_of(sanitizer, total), text_of(sanitizer, total), as_json=as_json, remark=True)


@app.command(name="explain")
def explain_command(
    policy: PolicyOptions,
    mechanism: Annotated[
        list[str] | None, typer.Option(help="Mechanism to explain; repeatable; `all` for all in-group ones.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Epsilon a word; overrides the policy.", min=0)
    ] = None,
    groups: Annotated[
        int,
        typer.Option(min=0, help="Compute over so many evenly spaced groups; 0 is all, exact, slower."),
    ] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write the curves to FILE.png or FILE.svg.")] = None,
    as_json: Json = False,
) -> None:
    """Print a policy's exact epsilon, Bayes attacker (success and chance), keep-rate and outputs used."""
    if plot is not None:
        if plot.suffix not in (".png", ".svg"):
            raise MisconfiguredError(f"a plot ends in .png or .svg, got {plot.name!r}")
        require_writable(plot)
        _figure_class()
    chosen = policy.load()
    budget = epsilon if epsilon is not None else chosen.epsilon
    names = list(IN_GROUP) if mechanism and "all" in mechanism else mechanism or [chosen.mechanism]
    figures: list[Explanation] = []
    curves: dict[str, list[Explanation]] = {}
    curve_groups = min(groups or CURVE_GROUPS, CURVE_GROUPS)
    if budget is not None:
        with progress("computing", len(names) * (1 + len(CURVE_EPSILONS)), quiet=as_json) as meter:
            for name in names:
                figures.append(explain(chosen, name, budget, groups or None))
                meter.advance(1)
                curves[name] = []
                for point in CURVE_EPSILONS:
                    curves[name].append(explain(chosen, name, point, curve_groups))
                    meter.advance(1)
    if plot is not None:
        _plot(curves, plot)
    if not as_json:
        _show(chosen, figures, curves)
        return
    record = _policy_record(chosen)
    record["mechanisms"] = [asdict(figure) for figure in figures]
    record["curves"] = {name: [asdict(figure) for figure in curve] for name, curve in curves.items()}
    answer(record, "", as_json=True)


@app.command()
def build(
    embeddings: Annotated[
        Path, typer.Argument(help="GloVe or word2vec text file, most frequent word first.")
    ],
    out: Annotated[Path, typer.Option(help="Policy file to write.")],
    name: Annotated[str, typer.Option(help="The policy's name.")] = "custom",
    language: Annotated[str, typer.Option(help="Language tag.")] = "en",
    vocabulary_size: Annotated[int, typer.Option(min=2, help="Words to group.")] = 20_000,
    group_size: Annotated[int, typer.Option(min=2, help="Words a group.")] = 20,
    wordnet: Annotated[
        Path | None, typer.Option(help="WordNet directory, for coherent word classes.")
    ] = None,
    polarity: Annotated[Path | None, typer.Option(help="VADER lexicon, for coherent polarity.")] = None,
    names: Annotated[
        list[Path] | None, typer.Option(help="Census list of names to replace always; repeatable.")
    ] = None,
    lists: Annotated[
        Path | None, typer.Option(help="Folder of public lists, for kinds of words (docs/words.md).")
    ] = None,
    epsilon: Annotated[float, typer.Option(help="Default epsilon a word.")] = 4.0,
    notice: Annotated[list[str] | None, typer.Option(help="Licence notice to carry; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Build a policy from public resources; never from the text that it is to protect."""
    from transom.privacy.build import build_policy

    require_writable(out)
    with progress("grouping words", 1.0, quiet=as_json) as meter:
        built = build_policy(
            embeddings,
            out,
            name=name,
            language=language,
            vocabulary_size=vocabulary_size,
            group_size=group_size,
            wordnet=wordnet,
            polarity=polarity,
            names=names or [],
            lists=lists,
            epsilon=epsilon,
            notices=notice or [],
            progress=meter.reach,
        )
    record = {"path": str(out), **_policy_record(built)}
    text = f"{out}: {record['words']} words in {record['groups']} groups\nSHA-256 {built.sha256}"
    answer(record, text, as_json=as_json)


@app.command("key")
def key_command(
    path: Annotated[Path, typer.Argument(help="File to write, readable by you alone.")], as_json: Json = False
) -> None:
    """Make a key for map files: whoever has it and a map can restore what the map belongs to."""
    make_key(path)
    name = key_name(read_key(path))
    answer(
        {"key": str(path), "name": name}, f"wrote the key {name} to {path}; keep a backup", as_json=as_json
    )


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="The sanitised file, or answers to it in its order.")],
    out: Annotated[Path | None, typer.Option(help="File to write; standard output by default.")] = None,
    *,
    map_from: Annotated[Path, typer.Option("--map", help="The map that was written with the file.")],
    key: Annotated[Path, typer.Option(help="The map's key.")],
    sanitised: Annotated[
        Path | None, typer.Option(help="The sanitised file, to be sure that the map is for it.")
    ] = None,
    column: Annotated[list[str] | None, typer.Option(help="Other columns than those sanitised.")] = None,
    field: Annotated[list[str] | None, typer.Option(help="Other fields than those sanitised.")] = None,
    as_json: Json = False,
) -> None:
    """Bring a sanitised file back to what it was; in answers, the values of placeholders.

    With --json a summary goes to standard output, and the text must go to --out.
    """
    _check_json(out, as_json)
    spare([out], {"the map": map_from, "the key": key, "the sanitised file": source})
    found = open_map(map_from, read_key(key), sanitised)
    texts = restore_file(source, out, found, selection_of(found, column or (), field or ()))
    where = "" if out is None else f" to {out}, which is private again"
    record = {"texts": texts, "out": None if out is None else str(out)}
    answer(record, f"restored {texts} texts{where}", as_json=as_json, remark=True)


def _check_json(out: Path | None, as_json: bool) -> None:
    if as_json and out is None:
        raise MisconfiguredError(
            "--json prints the summary on standard output; write the text with --out FILE"
        )


def _settings(drawing: WordOptions, sanitizer: Sanitizer, mapping: MapTo | None) -> str:
    """What a run that goes on must share: options, policy, contents of lists, map and its key."""
    policy = sanitizer.policy
    lists = () if drawing.lists is None else (drawing.lists, *load_lists(drawing.lists).files)
    map_name = mapping and f"{mapping.path.absolute()} {key_name(mapping.secret)}"
    return (
        f"{drawing} {policy.sha256} {policy.rules} {policy.mechanism} {[*map(file_sha256, lists)]} {map_name}"
    )


def _map_to(path: Path | None, key: Path | None, sources: list[Path], out: Path | None) -> MapTo | None:
    if path is None and key is None:
        return None
    if path is None or key is None or out is None or len(sources) != 1:
        raise MisconfiguredError(
            "--map FILE needs --key FILE, --out FILE and one input; give all, or neither"
        )
    return MapTo(path, read_key(key))


def _targets(sources: list[Path], out: Path | None) -> list[Path | None]:
    if out is None and len(sources) > 1:
        raise MisconfiguredError(f"{len(sources)} inputs need --out FOLDER")
    folder = out is not None and (len(sources) > 1 or out.is_dir())
    targets = [out / source.name if out and folder else out for source in sources]
    if len(set(targets)) < len(targets):
        raise MisconfiguredError("two inputs have the same file name; in --out one would overwrite the other")
    return targets


def _size(source: Path) -> int:
    return source.stat().st_size if source.is_file() else 0


def _policy_record(policy: Policy) -> dict[str, Any]:
    return {
        "policy": policy.name,
        "language": policy.language,
        "sha256": policy.sha256,
        "rules": dict(policy.rules),
        "mechanism": policy.mechanism,
        "words": len(policy.words),
        "groups": policy.partition.groups,
        "pass_share": policy.pass_share,
        "polarity_coherent": policy.polarity_coherent,
        "licence_notices": list(policy.licence_notices),
    }


def _show(policy: Policy, figures: list[Explanation], curves: dict[str, list[Explanation]]) -> None:
    console = Console(highlight=False, markup=False)
    share = "not stated" if policy.pass_share is None else f"{policy.pass_share:.1%} of tokens"
    console.print(f"policy {policy.name} ({policy.language}), SHA-256 {policy.sha256}", soft_wrap=True)
    console.print(f"{len(policy.words)} words in {policy.partition.groups} groups; pass words: {share}")
    for kind, rule in policy.rules.items():
        console.print(
            f"  {kind:<13}{rule if isinstance(rule, str) else f'epsilon {rule:g}':<13}{about(kind)}"
        )
    if not figures:
        passed = policy.rules.get("word") == "pass"
        what = "pass, or are replaced" if passed else "are replaced"
        console.print(
            f"preset {policy.preset}: words {what} by placeholders; none is drawn: "
            "epsilon 0, nothing to compute",
            soft_wrap=True,
        )
        return
    table = Table("", *[f.mechanism for f in figures])
    rows: dict[str, Callable[[Explanation], str]] = {
        "nominal epsilon": lambda f: f"{f.nominal_epsilon:g}",
        "exact epsilon": lambda f: f"{f.exact_epsilon:.6f}",
        "Bayes attacker": lambda f: f"{f.bayes_success:.1%}",
        "  chance": lambda f: f"{f.bayes_chance:.1%}",
        "  with passed words": lambda f: "-" if f.bayes_success_all is None else f"{f.bayes_success_all:.1%}",
        "word kept": lambda f: f"{f.keep_rate:.1%}",
        "outputs used": lambda f: f"{f.outputs_used:.1f} of {f.group_size:.0f}",
        "mean score": lambda f: f"{f.score:.3f}",
    }
    for label, cell in rows.items():
        table.add_row(label, *[cell(f) for f in figures])
    console.print(f"over {figures[0].groups} of {figures[0].groups_in_all} groups:")
    console.print(table)
    for name, curve in curves.items():
        where = f"{curve[0].groups} of {curve[0].groups_in_all} groups, evenly spaced"
        bend = Table("epsilon", "kept", "attacker", "outputs", title=f"{name}: {where}")
        for f in curve:
            bend.add_row(
                f"{f.nominal_epsilon:g}",
                f"{f.keep_rate:.1%}",
                f"{f.bayes_success:.1%}",
                f"{f.outputs_used:.1f}",
            )
        console.print(bend)


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plot", "matplotlib") from error
    return Figure


def _plot(curves: dict[str, list[Explanation]], path: Path) -> None:
    figure = _figure_class()(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        epsilons = [point.nominal_epsilon for point in curve]
        (line,) = axes.plot(epsilons, [point.keep_rate for point in curve], label=f"{name}: word kept")
        success = [point.bayes_success for point in curve]
        axes.plot(epsilons, success, "--", color=line.get_color(), label=f"{name}: Bayes attacker")
    axes.set(xlabel="epsilon a word", ylabel="share of drawn words", ylim=(0, 1))
    axes.legend()
    figure.savefig(path)
