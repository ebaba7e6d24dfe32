"""`transom vertical`: two parties in two processes find the rows that both have."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from transom.cli import main
from transom.vertical.ids import order_hash


@pytest.fixture(autouse=True)
def parties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bank.yaml of the label party and shop.yaml of the feature party, which meet over TCP with TLS."""
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
    files = {
        "bank": "id,pay,y\nA1,1,no\na2,2,yes\nA3,3,no\n a1 ,1.0,no\n",
        "shop": "id,age\na3,30\nb9,41\nA2,52\n",
    }
    for name, other, way in (("bank", "shop", "listen"), ("shop", "bank", "connect")):
        assert main.run(["link", "keys", "--out", name, "--name", name]) == 0
        Path(f"{name}.csv").write_text(files[name])
        link = {
            "job": "credit", "run": "r1", "party": name, "partner": other, way: place, "timeout_s": 20,
            "identity": name, "partner_certificate": f"{other}/tls.pem",
        }  # fmt: skip
        job = {"name": "credit", "task": "binary", "out": f"{name}_out", "link": link}
        job |= {"data": {"path": f"{name}.csv"} | ({"label_column": "y"} if name == "bank" else {})}
        job |= {"classes": ["no", "yes"]} if name == "bank" else {}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(job))


def both(
    capsys: pytest.CaptureFixture[str], ours: list[str], theirs: list[str]
) -> tuple[int, str, str, int, str]:
    """Exit codes and outputs of `psi` of the bank here, and of the shop in a process of its own."""
    command = [sys.executable, "-m", "transom.cli.main", "vertical", "psi", "shop.yaml", *theirs]
    capsys.readouterr()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as other:
        code = main.run(["vertical", "psi", "bank.yaml", *ours])
        told, _ = other.communicate(timeout=60)
    captured = capsys.readouterr()
    return code, captured.out, captured.err, other.returncode, told


def test_two_processes_find_their_common_rows(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err, other_code, told = both(capsys, ["--json"], [])
    assert (code, other_code) == (0, 0), err + told
    found = json.loads(out)
    assert found["order_hash"] == order_hash(["a2", "a3"])
    assert (found["party"], found["common"], found["rows"], found["partner_rows"]) == ("label", 2, 3, 3)
    assert (found["merged"], found["join"]) == (1, "psi")
    assert f"2 rows in common, of 3 here and 3 there; order hash {found['order_hash'][:16]}" in told
    assert "the partner has learnt which of its IDs this party has" in told
    kept = [json.loads(Path(file).read_text()) for file in (found["file"], "shop_out/feature/aligned.json")]
    assert kept[0]["ids"] == kept[1]["ids"] == ["a2", "a3"]


def test_a_hashed_join_is_called_insecure_and_both_must_want_it(capsys: pytest.CaptureFixture[str]) -> None:
    flag = "--insecure-hashed-join"
    code, out, err, other_code, told = both(capsys, ["--json", flag], [flag])
    assert (code, other_code) == (0, 0), err + told
    assert json.loads(out)["join"] == "hashed"
    assert "insecure: the partner learns every ID here that it can guess" in err
    assert "insecure" in told
    code, _, err, other_code, told = both(capsys, [], [flag])
    assert (code, other_code) == (15, 15)
    assert "insecure_hashed_join" in err
    assert "insecure_hashed_join" in told


def test_a_file_that_cannot_be_used_is_told_before_the_partner_is_met(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("bank.csv").write_text("id,pay,y\nA1,nan,no\nA2,2,perhaps\n")
    assert main.run(["vertical", "psi", "bank.yaml"]) == 3
    told = capsys.readouterr().err
    assert "column 'pay': no finite number in 1 row (2)" in told
    assert "column 'y': a label that is none of the job's classes in 1 row (3)" in told
    assert not Path("bank_out").exists()
