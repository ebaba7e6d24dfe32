"""A real vLLM that writes its hidden states: the risk of an answer is that of the embedded engine.

It needs `make test-vllm`, as `test_vllm` does. vLLM's own connector copies by CUDA's streams, so that on a
CPU a subclass copies plainly (`vllm_connector`); what reads, locks and names its files is vLLM's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests.trust.hallucination.test_live import drawn_detector

from transom.checkpoint.load import load
from transom.cli.hallucination_live import RiskOptions
from transom.net.listen import serve_in_thread
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.server import create_engine_app
from transom.serving.engines.vllm_states import vllm_options
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.tokenizer import load_tokenizer
from transom.trust.hallucination.detector import write_detector
from transom.trust.hallucination.live import RiskTeller, RiskWatch

from .test_vllm import MARKS, VLLM_ENVIRONMENT, model_folder, running_vllm  # noqa: F401

pytestmark = MARKS
CONNECTOR = Path(__file__).parent / "vllm_connector"
ASKED = ("What is the capital of France?", "Who wrote Hamlet, and when was it first played?")


def answers(engine: Any, options: RiskOptions, kind: str, folder: Path, *, stream: bool) -> list[Any]:
    """The text and what is said of each answer."""
    tokenizer = load_tokenizer(folder)
    app = create_gateway(
        GatewayConfig(model="m"), engine, tokenizer, annotators=options.annotators(kind, tokenizer)
    )
    found = []
    with serve_in_thread(app) as url, OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        for text in ASKED:
            made: Any = client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": text}], temperature=0, max_tokens=40,
                stream=stream,
            )  # fmt: skip
            if not stream:
                note = made.transom["annotations"]["hallucination"][0]
                found.append((made.choices[0].message.content, note))
                continue
            chunks = list(made)
            said = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
            notes = [one.transom["annotations"]["hallucination"] for one in chunks if "annotations" in
                     (getattr(one, "transom", None) or {})]  # fmt: skip
            found.append((said, notes[-1][0]))
    return found


def test_the_risk_of_an_answer_is_that_of_the_embedded_engine(
    model_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = load(model_folder, dtype="float32")
    whole = load_tokenizer(model_folder).encode_chat([("user", "TEXT")]).text
    before, _, after = whole.partition("TEXT")
    drawn = drawn_detector(found, attention=False)
    about = replace(drawn.about, before=before, after=after)
    detector = replace(drawn, about=about, slope=0.002)
    write_detector(tmp_path / "detector", detector)
    states = tmp_path / "states"
    states.mkdir()
    plain = RiskOptions(risk_detector=tmp_path / "detector")
    options = replace(plain, risk_model=str(model_folder), risk_states=states)
    with (
        EmbeddedEngine(found, watch=RiskWatch(found, detector)) as embedded,
        serve_in_thread(create_engine_app(embedded)) as url,
    ):
        wanted = answers(IdsEngine(url), plain, "transom", model_folder, stream=False)
    monkeypatch.setitem(VLLM_ENVIRONMENT, "PYTHONPATH", str(CONNECTOR))
    layers = RiskTeller(found, detector).layers
    speculative, transfer = vllm_options(layers, states).split("' ")
    told = json.loads(transfer.partition("'")[2].rstrip("'"))
    told |= {"kv_connector": "StatesOnCpu", "kv_connector_module_path": "states_on_cpu"}
    with running_vllm(
        model_folder, "--dtype", "float32", "--speculative-config", speculative.partition("'")[2],
        "--kv-transfer-config", json.dumps(told),
    ) as port:  # fmt: skip
        for stream in (False, True):
            engine = options.client(f"http://127.0.0.1:{port}")
            got = answers(engine, options, "vllm", model_folder, stream=stream)
            for (text, note), (own_text, own) in zip(got, wanted, strict=True):
                assert text == own_text
                assert note["risk"] == pytest.approx(own["risk"], abs=0.01)
                assert 0.02 < own["risk"] < 0.98  # which says something
                assert len(note["sentences"]) == len(own["sentences"]) > 0
        assert not list(states.iterdir())
        other = replace(options, risk_states=tmp_path / "nowhere")
        with pytest.raises(Exception, match="wrote no states"):
            answers(other.client(f"http://127.0.0.1:{port}"), other, "vllm", model_folder, stream=False)
