"""Both parties hold the same people in the same order, by whatever way they met, or both are refused."""

from __future__ import annotations

import json
import random
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transom.config import from_plain
from transom.errors import CheckpointError, LinkRefusedError, LinkTimeoutError, MisconfiguredError
from transom.link.nats_server import local_server
from transom.net.pin import make_certificate
from transom.vertical import align, psi
from transom.vertical.align import Aligned
from transom.vertical.ids import canonical, order_hash
from transom.vertical.job import VerticalJob
from transom.vertical.table import Table, read_table

from ..link.parties import pair, together


def written(path: Path, head: str, rows: list[str], seed: int = 0) -> Path:
    random.Random(seed).shuffle(rows)
    path.write_text("\n".join([head, *rows]) + "\n", "utf-8")
    return path


def jobs(folder: Path, label_ids: list[str], feature_ids: list[str]) -> tuple[VerticalJob, VerticalJob]:
    """A label party and a feature party with these IDs, in different orders; they meet over TCP."""
    bank = written(folder / "bank.csv", "id,pay,y", [f"{one},{n},{n % 2}" for n, one in enumerate(label_ids)])
    shop = written(folder / "shop.csv", "id,age", [f"{one},{n}" for n, one in enumerate(feature_ids)], seed=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
    both = {"job": "credit", "run": "r1", "timeout_s": 10.0, "record": str(folder / "records")}
    common: dict[str, Any] = {"name": "credit", "task": "binary", "out": str(folder / "out")}
    label = common | {
        "classes": ["0", "1"],
        "data": {"path": str(bank), "label_column": "y"},
        "link": both | {"party": "bank", "partner": "shop", "listen": place},
    }
    feature = common | {
        "data": {"path": str(shop)},
        "link": both | {"party": "shop", "partner": "bank", "connect": place},
    }
    made = [from_plain(VerticalJob, one, "a job") for one in (label, feature)]
    return made[0], made[1]


def over_tcp(*each: VerticalJob) -> list[Any]:
    """What both parties find over their links, or raise."""
    tables = [read_table(job) for job in each]
    return together(
        *(
            lambda job=job, table=table: align.with_partner(job, table)
            for job, table in zip(each, tables, strict=True)
        )
    )  # type: ignore[misc]


MESSY = [" Anna 1 ", "BERT", "Émile", "x4", "x10"], ["émile", "X10", "ANNA  1", "other", "x5", "bert"]


@pytest.mark.parametrize("hashed", [False, True])
def test_parties_that_write_and_order_ids_differently_get_the_same_rows(tmp_path: Path, hashed: bool) -> None:
    label, feature = (replace(job, insecure_hashed_join=hashed) for job in jobs(tmp_path, *MESSY))
    one, other = over_tcp(label, feature)
    assert one.ids == other.ids == ("anna 1", "bert", "x10", "émile")
    assert one.order_hash == other.order_hash == order_hash(one.ids)
    assert (one.partner_count, other.partner_count) == (6, 5)
    assert one.join == other.join == ("hashed" if hashed else "psi")
    assert ("every other ID that it can guess" in one.discloses) == hashed
    for job, found in ((label, one), (feature, other)):
        table = read_table(job)
        assert tuple(table.ids[row] for row in found.rows_M) == found.ids
    assert not (tmp_path / "records").exists()


class KilledError(Exception):
    """A party ended here."""


@pytest.mark.parametrize("role", [0, 1])
def test_a_party_that_is_killed_and_started_again_finds_the_rows_with_the_one_that_waits(
    tmp_path: Path, role: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that waits meets a process that knows nothing of what was said, and begins anew."""
    monkeypatch.setattr(psi, "CHUNK", 1)
    each = jobs(tmp_path, *MESSY)
    tables = [read_table(job) for job in each]

    def killed() -> Aligned:
        def advance(done: int, total: int) -> None:
            if done > 4:
                raise KilledError

        with pytest.raises(KilledError):
            align.with_partner(each[role], tables[role], advance)
        return align.with_partner(each[role], tables[role])

    found: list[Any] = together(killed, lambda: align.with_partner(each[1 - role], tables[1 - role]))
    assert [getattr(one, "ids", one) for one in found] == [("anna 1", "bert", "x10", "émile")] * 2


def test_alignment_over_nats_is_that_over_tcp(tmp_path: Path) -> None:
    for name in ("bank", "shop"):
        make_certificate(tmp_path / name, name)
    with local_server() as server:
        each = [
            replace(
                job,
                link=replace(
                    job.link, listen="", connect="", nats=server.url, identity=tmp_path / job.link.party,
                    partner_certificate=tmp_path / job.link.partner / "tls.pem",
                ),
            )
            for job in jobs(tmp_path, *MESSY)
            if job.link is not None
        ]  # fmt: skip
        found = over_tcp(*each)
    assert [getattr(one, "ids", one) for one in found] == [("anna 1", "bert", "x10", "émile")] * 2
    assert found[0].order_hash == found[1].order_hash


def test_alignment_here_is_that_over_the_link(tmp_path: Path) -> None:
    tables = [read_table(job) for job in jobs(tmp_path, *MESSY)]
    with pair() as (a, b):
        label, feature = jobs(tmp_path, *MESSY)
        met: list[Any] = together(
            lambda: align.align(label, tables[0], a), lambda: align.align(feature, tables[1], b)
        )
    for ours, theirs in zip(align.here(tables[0], tables[1]), met, strict=True):
        assert same(replace(ours, join="psi"), theirs)


def same(one: Aligned, other: Aligned) -> bool:
    plain = replace(one, rows_M=other.rows_M)
    return plain == other and bool((one.rows_M == other.rows_M).all())


@pytest.mark.parametrize(("theirs", "count"), [(["q1", "q2", "q3"], 0), (["q1", "P2", "q3"], 1)])
def test_fewer_than_two_common_rows_are_refused_at_both(
    tmp_path: Path, theirs: list[str], count: int
) -> None:
    each = jobs(tmp_path, ["p1", "p2"], theirs)
    for outcome, (own, other) in zip(over_tcp(*each), ((2, 3), (3, 2)), strict=True):
        assert isinstance(outcome, MisconfiguredError)
        assert f"have {count} rows in common, of {own} here and {other} there" in str(outcome)
    with pytest.raises(MisconfiguredError, match=f"have {count} rows in common"):
        align.here(*(read_table(job) for job in each))


def differing(tmp_path: Path, change: Any) -> list[str]:
    label, feature = jobs(tmp_path, *MESSY)
    outcomes = over_tcp(*change(label, feature))
    assert all(isinstance(one, LinkRefusedError) for one in outcomes), outcomes
    return [str(one) for one in outcomes]


@pytest.mark.parametrize(
    ("changes", "name", "values"),
    [
        ({"width": 16}, "width", ("16", "32")),
        ({"task": "counts"}, "task", ("counts", "binary")),
        ({"insecure_hashed_join": True}, "insecure_hashed_join", ("True", "False")),
        ({"wire": "bf16"}, "wire", ("bf16", "fp32")),
    ],
)
def test_terms_that_differ_are_told_with_both_values(
    tmp_path: Path, changes: dict[str, Any], name: str, values: tuple[str, str]
) -> None:
    for told in differing(tmp_path, lambda label, feature: (label, replace(feature, **changes))):
        assert name in told
        assert all(value in told for value in values)


def test_a_label_column_at_both_parties_or_at_none_is_told(tmp_path: Path) -> None:
    def both(label: VerticalJob, feature: VerticalJob) -> tuple[VerticalJob, VerticalJob]:
        data = replace(feature.data, label_column="age")
        return label, replace(feature, data=data, classes=("0", "1"), task="binary")

    def none(label: VerticalJob, feature: VerticalJob) -> tuple[VerticalJob, VerticalJob]:
        return replace(label, data=replace(label.data, label_column=None), classes=()), feature

    (tmp_path / "none").mkdir()
    shop = ["0", "1"]
    label, feature = jobs(tmp_path, shop, shop)  # their ages are 0 and 1, which are classes
    for outcome in over_tcp(*both(label, feature)):
        assert isinstance(outcome, LinkRefusedError)
        assert "label party" in str(outcome)
        assert "bank" in str(outcome)
        assert "shop" in str(outcome)
    for told in differing(tmp_path / "none", none):
        assert "label party" in told


def test_a_partner_that_never_comes_is_waited_for_as_long_as_the_link_says(tmp_path: Path) -> None:
    label, _ = jobs(tmp_path, *MESSY)
    assert label.link is not None
    job = replace(label, link=replace(label.link, timeout_s=0.3))
    with pytest.raises(LinkTimeoutError, match="no partner came"):
        align.with_partner(job, read_table(job))
    with pytest.raises(MisconfiguredError, match="transom vertical simulate"):
        align.with_partner(replace(job, link=None), read_table(job))


@pytest.fixture
def kept(tmp_path: Path) -> tuple[VerticalJob, Table, Aligned]:
    label, feature = jobs(tmp_path, *MESSY)
    table = read_table(label)
    found, _ = align.here(table, read_table(feature))
    align.write(label, found)
    return label, table, found


def test_what_was_found_is_read_again_also_where_rows_moved(kept: tuple[VerticalJob, Table, Aligned]) -> None:
    job, table, found = kept
    assert (job.folder / "aligned.json").stat().st_mode & 0o777 == 0o600
    assert same(align.read(job, table), found)
    order = np.array([4, 2, 0, 3, 1])
    moved = replace(table, ids=tuple(table.ids[one] for one in order), features_NF=table.features_NF[order])
    again = align.read(job, moved)
    assert (moved.features_NF[again.rows_M] == table.features_NF[found.rows_M]).all()


def test_it_names_this_partys_own_rows_alone(kept: tuple[VerticalJob, Table, Aligned]) -> None:
    job, _, _ = kept
    text = (job.folder / "aligned.json").read_text("utf-8")
    own, theirs = ({canonical(one) for one in ids} for ids in MESSY)
    assert {*json.loads(text)["ids"]} == own & theirs
    assert not any(one in text for one in theirs - own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kept: kept | {"ids": kept["ids"][1:]}, "not those of its order hash"),
        (lambda kept: kept | {"ids": kept["ids"][::-1]}, "not those of its order hash"),
        (lambda kept: kept | {"order_hash": "0" * 64}, "not those of its order hash"),
        (lambda kept: kept | {"job": "other"}, "of job 'other'"),
        (lambda kept: kept | {"rule": "0"}, "rule '0'"),
        (lambda kept: kept | {"version": 2}, "of job"),
        (lambda kept: kept | {"join": "guessed"}, "join must be one of psi"),
        (lambda kept: [kept], "cannot be used"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    kept: tuple[VerticalJob, Table, Aligned], change: Any, message: str
) -> None:
    job, table, _ = kept
    path = job.folder / "aligned.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match=message):
        align.read(job, table)


def test_a_file_that_is_absent_open_to_others_or_of_rows_that_are_gone_is_refused(
    kept: tuple[VerticalJob, Table, Aligned],
) -> None:
    job, table, _ = kept
    path = job.folder / "aligned.json"
    fewer = replace(table, ids=("gone", *table.ids[1:]))
    if table.ids[0] == "x4":  # the one that is not common
        fewer = replace(table, ids=(table.ids[0], "gone", *table.ids[2:]))
    with pytest.raises(CheckpointError, match="1 of 4 aligned IDs are no longer in"):
        align.read(job, fewer)
    path.chmod(0o644)
    with pytest.raises(MisconfiguredError, match="chmod 600"):
        align.read(job, table)
    path.chmod(0o600)
    path.write_bytes(b"{")
    with pytest.raises(CheckpointError, match="is damaged"):
        align.read(job, table)
    path.unlink()
    with pytest.raises(MisconfiguredError, match="transom vertical psi"):
        align.read(job, table)
