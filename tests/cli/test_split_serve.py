"""`transom split serve` and `transom gateway --engine-kind split`, on what a run has left."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from transom.checkpoint.load import Checkpoint
from transom.checkpoint.tiny import tiny_llama
from transom.cli import split
from transom.cli.app import App
from transom.cli.gateway import gateway
from transom.cli.split_serve import Room, customer_in, run_in, vendor_in
from transom.config import to_plain
from transom.errors import CheckpointError, MisconfiguredError, NotYetError, TransomError
from transom.link import state
from transom.net.listen import serve_in_thread
from transom.privacy.denoise import expected_rows
from transom.privacy.releases import Releases
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.server import create_engine_app
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.split_server import SplitServer, create_split_app
from transom.serving.tokenizer import load_tokenizer
from transom.split import run
from transom.split.folder import keep_noise
from transom.split.job import Data, Noise, SplitJob, Train
from transom.split.learner import schedule
from transom.split.parts import load_model, make_vendor
from transom.split.privatise import Privatiser
from transom.split.settled import Settled

QUESTION = [{"role": "user", "content": "Tell Ada Lovelace about foxes."}]


@dataclass(frozen=True)
class Left:
    """The folders of a run, and its model in one piece."""

    vendor: Path
    customer: Path
    central: Checkpoint


def leave(folder: Path, **changes: Any) -> Left:
    """A run as one is left, whose adapter changes the model; trained by nobody."""
    model = tiny_llama(folder / "model")
    job = SplitJob(name="tuned", model=str(model), task="causal", labels_in_the_clear=True, **changes)
    central = load_model(job)
    part = make_vendor(central.model, job, schedule(job.train, 1))
    generator = torch.Generator().manual_seed(3)
    for parameter in part.learner.parameters.values():
        parameter.data.normal_(std=0.1, generator=generator)
    for party in ("vendor", "customer"):
        (folder / party).mkdir()
        about = {"party": party, "model": "tiny"}
        head = {"job": to_plain(job), "about": about, "steps": 4, "trains": party == "vendor"}
        (folder / party / "job.json").write_text(json.dumps(head))
    learnt = state.save(part.learner, {"party": "vendor", "model": "tiny"})
    (folder / "vendor" / "state.safetensors").write_bytes(learnt)
    settled = Settled(job.noise, job.after_block, False, 1, 64, 0.5, job.noise.eta)
    keep_noise(folder / "customer", Privatiser(settled, bytes(32), "run"))
    return Left(folder / "vendor", folder / "customer", central)


@contextmanager
def served(left: Left, monkeypatch: pytest.MonkeyPatch, *options: str) -> Iterator[str]:
    """The URL of a gateway as the command makes it, before a vendor's server."""
    apps: list[Any] = []
    monkeypatch.setattr("transom.net.listen.serve", lambda app, _sock, **_: apps.append(app))
    app = App()
    app.command()(gateway)
    with serve_in_thread(create_split_app(vendor_in(run_in(left.vendor), Room()))) as vendor_url:
        named = ["--engine", vendor_url, "--engine-kind", "split", "--split", str(left.customer)]
        result = CliRunner().invoke(app, [*named, "--port", "0", *options])
        assert result.exit_code == 0, (result.output, result.exception)
        with serve_in_thread(apps[0]) as url:
            yield url


def ask(url: str, **body: Any) -> Any:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    asked = {"model": "transom", "messages": QUESTION, "max_tokens": 12, "temperature": 0, **body}
    headers = {"Content-Type": "application/json", "X-Transom-Show-Host": "1"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
        answer = connection.getresponse().read().decode()
    finally:
        connection.close()
    if not body.get("stream"):
        return json.loads(answer)
    assert answer.endswith("data: [DONE]\n\n"), answer
    events = [json.loads(line[6:]) for line in answer.split("\n\n") if line.startswith("data: {")]
    return [one["choices"][0] for one in events if one["choices"]]


@pytest.mark.parametrize(("layout", "after_block"), [("vendor", 0), ("customer", 1)])
def test_chat_is_that_of_the_tuned_model(
    layout: Any, after_block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = leave(tmp_path, layout=layout, after_block=after_block)
    tokenizer = load_tokenizer(tmp_path / "model")
    scored = {"logprobs": True, "top_logprobs": 2}
    with (
        EmbeddedEngine(left.central, model="tuned") as engine,
        serve_in_thread(create_engine_app(engine)) as engine_url,
        serve_in_thread(create_gateway(GatewayConfig(), IdsEngine(engine_url), tokenizer)) as whole,
        served(left, monkeypatch, "--mode", "plain") as parted,
    ):
        one, other = ask(parted, **scored), ask(whole, **scored)
        assert one["usage"] == other["usage"]
        (ours,), (theirs,) = one["choices"], other["choices"]
        assert (ours["message"], ours["finish_reason"]) == (theirs["message"], theirs["finish_reason"])
        pairs = zip(ours["logprobs"]["content"], theirs["logprobs"]["content"], strict=True)
        for mine, its in pairs:
            assert mine["token"] == its["token"]
            assert mine["logprob"] == pytest.approx(its["logprob"], abs=1e-4)
        text = ours["message"]["content"]
        streamed = ask(parted, stream=True)
        assert "".join(piece["delta"].get("content", "") for piece in streamed) == text
        assert len(ask(parted, n=3, temperature=1)["choices"]) == 3
        stop = text[len(text) // 2 :][:2]
        stopped = ask(parted, stop=[stop])["choices"][0]
        assert stopped["message"]["content"] == text[: text.index(stop)]
        assert stopped["finish_reason"] == "stop"
        told = one["transom"]
        assert told["host_token_ids"] is None
        assert told["host_saw"] == f"<states of {one['usage']['prompt_tokens']} tokens, 32 numbers each>"
        assert "Ada" in told["host_can_read"]
        assert told["guarantee"]["kind"] == "empirical"
        assert "nothing is protected" in told["guarantee"]["assumptions"][0]


@pytest.mark.parametrize("layout", ["vendor", "customer"])
def test_what_a_run_left_is_served(layout: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts.txt").write_text("the fox ran\na good dog sat\n" * 4, "utf-8")
    job = SplitJob(
        name="tuned", model=str(tiny_llama(tmp_path / "model")), task="causal", layout=layout,
        labels_in_the_clear=True, noise=Noise(kind="d_chi", eta=40.0), out=tmp_path / "out",
        data=Data(tmp_path / "texts.txt"), train=Train(epochs=1, batch_rows=4),
    )  # fmt: skip
    run.simulate(job, lambda told: None)
    left = Left(job.out / "vendor", job.out / "customer", load_model(job))
    with served(left, monkeypatch, "--mode", "plain") as url:
        told = ask(url)
    assert told["usage"]["completion_tokens"] > 0
    assert "eta 40, released 1 times" in told["transom"]["guarantee"]["assumptions"][0]


def test_a_client_that_leaves_frees_the_vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, dropped = leave(tmp_path, layout="customer"), threading.Event()
    drop = SplitServer.drop
    monkeypatch.setattr(SplitServer, "drop", lambda self, name: (drop(self, name), dropped.set()))
    with served(left, monkeypatch, "--mode", "plain") as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        asked = {"model": "transom", "messages": QUESTION, "max_tokens": 150, "stream": True}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
        answer = connection.getresponse()
        assert answer.read(5) == b"data:"
        assert not dropped.is_set()
        answer.close()
        connection.close()
        assert dropped.wait(10)
        assert ask(url)["choices"]


def test_noise_and_words_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = leave(tmp_path, layout="customer", noise=Noise(kind="d_chi", eta=10.0))
    with served(left, monkeypatch) as url:
        told = ask(url)["transom"]
    assert told["counts"]  # a name became a placeholder before anything was noised
    assert "Ada" not in told["host_can_read"]
    promise = told["states_guarantee"]
    assert (promise["kind"], promise["epsilon"]) == ("metric-dp", pytest.approx(10.0))
    assert any("odds of each next token" in one for one in promise["discloses"])
    assert any("secret stays" in one for one in promise["assumptions"])
    rows = torch.zeros(1, 32).numpy()
    sent = [one.extend(one.start, (5,), rows)[1] for one in twice(left)]
    assert (sent[0] == sent[1]).all()  # drawn once, whichever process asks
    assert (left.customer / "serve.secret").stat().st_mode & 0o777 == 0o600
    louder = Settled(Noise(kind="d_chi", eta=10.0), 0, False, 1, 64, 0.5, 5.0)
    keep_noise(left.customer, Privatiser(louder, bytes(32), "run"))
    loud = twice(left)[0]
    loud_1D = loud.extend(loud.start, (5,), rows)[1]
    assert abs(float((loud_1D * sent[0]).sum())) < 0.9 * float(
        ((loud_1D**2).sum() * (sent[0] ** 2).sum()) ** 0.5
    )  # or half of one less the other would be the state
    assert 0.2 * 32 / 10 < float((sent[0] ** 2).sum() ** 0.5) < 5 * 32 / 10


def test_what_was_trained_on_expected_rows_is_asked_with_them(tmp_path: Path) -> None:
    """At an eta under which the noisy row lets expect its own token, that token's row is sent."""
    left = leave(tmp_path, layout="customer", noise=Noise(kind="d_chi", eta=1e6, denoise=True))
    customer = customer_in(left.customer)
    table_VD = customer.front.parts.embedding.weight.detach().numpy()
    rows_ND = table_VD[[5, 9]] + 1e-3  # of no token: what is sent shows that it was not passed on
    sent_ND = customer.releases.extend(customer.releases.start, (5, 9), rows_ND)[1]
    np.testing.assert_array_equal(sent_ND, table_VD[[5, 9]])


def twice(left: Left) -> list[Releases]:
    return [customer_in(left.customer).releases for _ in range(2)]


def test_rows_leave_as_in_training_where_they_were_denoised(tmp_path: Path) -> None:
    (tmp_path / "noisy").mkdir()
    (tmp_path / "denoised").mkdir()
    noise = Noise(kind="d_chi", eta=60.0)
    noisy = customer_in(leave(tmp_path / "noisy", layout="customer", noise=noise).customer)
    left = leave(tmp_path / "denoised", layout="customer", noise=replace(noise, denoise=True))
    one = customer_in(left.customer)
    table_VD = one.front.parts.embedding.weight.detach().numpy()
    rows, ids = table_VD[[5, 9, 70]], (5, 9, 70)
    sent = one.releases.extend(one.releases.start, ids, rows)[1]
    noisy.releases._secret = one.releases._secret  # the noise of the other
    seen = noisy.releases.extend(one.releases.start, ids, rows)[1]
    np.testing.assert_allclose(sent, expected_rows(seen, table_VD, 60.0), atol=1e-5)
    assert np.abs(sent - seen).max() > 0.01


def test_after_a_block_no_process_draws_like_another(tmp_path: Path) -> None:
    left = leave(tmp_path, layout="customer", after_block=1, noise=Noise(kind="d_chi", eta=10.0))
    rows = torch.zeros(1, 32).numpy()
    sent = [one.extend(one.start, (5,), rows)[1] for one in twice(left)]
    assert (sent[0] != sent[1]).all()
    assert not (left.customer / "serve.secret").exists()


def test_what_does_not_go_together_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = leave(tmp_path, layout="customer")
    monkeypatch.setattr("transom.net.listen.serve", lambda *_, **__: pytest.fail("it would have served"))
    app = App()
    app.command()(gateway)
    for options in (
        ["--engine-kind", "split"],
        ["--engine-kind", "transom", "--split", str(left.customer)],
        ["--engine-kind", "split", "--split", str(left.vendor)],
        ["--engine-kind", "split", "--split", str(tmp_path / "none")],
    ):
        result = CliRunner().invoke(app, [*options, "--port", "0"])
        assert isinstance(result.exception, TransomError), (options, result.output)
    with serve_in_thread(create_split_app(vendor_in(run_in(left.vendor), Room()))) as url:
        result = CliRunner().invoke(app, ["--engine", url, "--port", "0"])  # kind auto: never sent text
    assert isinstance(result.exception, MisconfiguredError)
    assert "--split" in str(result.exception)
    with pytest.raises(CheckpointError, match="customer"):
        vendor_in(run_in(left.customer), Room())
    (left.vendor / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks its state"):
        vendor_in(run_in(left.vendor), Room())
    (left.customer / "noise.json").unlink()
    with pytest.raises(CheckpointError, match=r"noise\.json"):
        customer_in(left.customer)
    head = json.loads((left.vendor / "job.json").read_text())
    head["job"] |= {"task": "classification", "labels": ["a", "b"]}
    (left.vendor / "job.json").write_text(json.dumps(head))
    with pytest.raises(NotYetError):
        run_in(left.vendor)
    (left.vendor / "job.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        run_in(left.vendor)


def test_the_command_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = leave(tmp_path, layout="customer")
    apps: list[Any] = []
    monkeypatch.setattr("transom.cli.split_serve.serve_app", lambda app, *_, **__: apps.append(app))
    result = CliRunner().invoke(split.app, ["serve", str(left.vendor), "--port", "0"])
    assert result.exit_code == 0, result.output
    assert "serving tuned, tuned for 4 steps" in result.output
    with serve_in_thread(apps[0]) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.request("GET", "/v1/models")
        (card,) = json.loads(connection.getresponse().read())["data"]
        connection.close()
    assert (card["owned_by"], card["max_model_len"]) == ("transom-split", 256)
    for options in (["--host", "0.0.0.0"], ["--tls-cert", "x"]):
        result = CliRunner().invoke(split.app, ["serve", str(left.vendor), *options])
        assert isinstance(result.exception, MisconfiguredError)
