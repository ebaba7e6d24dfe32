"""The gateway's key file: what it may hold, who may read it, and what becomes of one that changes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import MisconfiguredError, RefusedError
from transom.serving.gateway.config import GatewayConfig, KeyFile, load_keys

ALICE, BOB, CAROL = (f"{name}-key-0123456789" for name in ("alice", "bob", "carol"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    return path


def account(key: str, keys: object) -> str | None:
    """Whom `key` speaks for."""
    try:
        return GatewayConfig(key_digests=keys).account(f"Bearer {key}")  # type: ignore[arg-type]
    except RefusedError:
        return None


@pytest.mark.parametrize(
    "line",
    [
        f"alice: {ALICE}",
        f"alice :{ALICE}",
        f"  alice\t:\t{ALICE}  ",
        f"alice:{ALICE}\r",
        f"\ufeffalice:{ALICE}",
    ],
    ids=repr,
)
def test_blanks_and_a_mark_at_the_beginning_do_not_count(path: Path, line: str) -> None:
    path.write_bytes(f"{line}\n# {BOB}\n\n".encode())
    assert account(ALICE, load_keys(path)) == "alice"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:clé-of-sixteen-characters", "ASCII"),
        ("a:key of sixteen characters", "blanks"),
        ("a:0123456789abcde", "16"),
        ("a:0123456789\x7fabcdefgh", "ASCII"),
        (f":{ALICE}", "account"),
        (f"a\u200bb:{ALICE}", "printable"),
        (ALICE, "account:key"),
        (f"a:{ALICE}\na:{BOB}", "line 2 .* repeats an account"),
        (f"a:{ALICE}\nb:{BOB}\nc: {ALICE}", "line 3 .* repeats the key"),
        ("# nobody", "no key"),
    ],
    ids=repr,
)
def test_what_could_not_work_or_tell_apart_is_refused(path: Path, text: str, said: str) -> None:
    path.write_text(text, "utf-8")
    with pytest.raises(MisconfiguredError, match=said) as caught:
        load_keys(path)
    assert ALICE not in str(caught.value)


@given(st.from_regex(r"[!-~]{16,40}", fullmatch=True))
def test_whatever_key_is_accepted_works(tmp_path_factory: pytest.TempPathFactory, key: str) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.touch(mode=0o600)
    path.write_text(f"a: {key}\n")
    assert account(key, load_keys(path)) == "a"


def test_a_file_that_others_may_read_is_used_with_a_word(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(f"alice:{ALICE}")
    load_keys(path)
    assert not caplog.records
    path.chmod(0o644)
    assert account(ALICE, load_keys(path)) == "alice"
    assert "chmod 600" in caplog.text
    assert ALICE not in caplog.text


def test_a_changed_file_is_read_again(path: Path) -> None:
    path.write_text(f"alice:{ALICE}\nbob:{BOB}")
    keys = KeyFile(path, every_s=0)
    assert (account(ALICE, keys), account(CAROL, keys)) == ("alice", None)
    path.write_text(f"bob:{BOB}\ncarol:{CAROL}\n")
    assert [account(key, keys) for key in (ALICE, BOB, CAROL)] == [None, "bob", "carol"]
    aside = path.with_name("aside")  # as editors and mounted secrets do it
    aside.write_text(f"bob:{BOB}\nalice:{ALICE}\n")
    before = path.stat()
    os.utime(aside, ns=(before.st_atime_ns, before.st_mtime_ns))
    aside.replace(path)
    assert [account(key, keys) for key in (ALICE, BOB, CAROL)] == ["alice", "bob", None]


def test_a_broken_file_keeps_the_old_keys_and_opens_no_door(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(f"alice:{ALICE}\n")
    keys = KeyFile(path, every_s=0)
    for broken in (b"", b"# none", f"bob:{BOB}\nx".encode(), b"\xff\xfe", None):
        caplog.clear()
        path.unlink() if broken is None else path.write_bytes(broken)
        for _ in range(2):
            assert [account(key, keys) for key in (ALICE, BOB, "")] == ["alice", None, None]
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert "read before stays" in record.getMessage()
        assert BOB not in caplog.text
    path.write_text(f"bob:{BOB}\n")
    assert [account(key, keys) for key in (ALICE, BOB)] == [None, "bob"]


def test_it_is_not_looked_at_more_often_than_asked(path: Path) -> None:
    path.write_text(f"alice:{ALICE}")
    keys = KeyFile(path, every_s=1e6)
    path.write_text(f"bob:{BOB}")
    assert [account(key, keys) for key in (ALICE, BOB)] == ["alice", None]
