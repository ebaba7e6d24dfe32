"""The official client, a gateway and an echoing engine in one process; then what the engine received.

python examples/gateway_in_process.py
"""

import json

from openai import OpenAI

from transom import (
    EchoEngine,
    GatewayConfig,
    IdsEngine,
    Sanitizer,
    create_gateway,
    load_policy,
    load_tokenizer,
    serve_in_thread,
    with_preset,
)

engine = EchoEngine(model="echo")
tokenizer = load_tokenizer("smollm2")
with serve_in_thread(engine.app()) as engine_url:
    gateway = create_gateway(
        GatewayConfig(mode="words"),
        IdsEngine(engine_url),
        tokenizer,
        Sanitizer(with_preset(load_policy(), "entities")),
    )
    with serve_in_thread(gateway) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="transom",
            max_tokens=64,
            messages=[{"role": "user", "content": "My friend Marguerite has 4815 dollars."}],
            extra_headers={"X-Transom-Show-Host": "1"},
        )
shown = (answer.model_extra or {})["transom"]
received = tokenizer.detokenizer().feed(json.loads(engine.seen[-1])["prompt"])
print("the engine received:", received.split("user\n")[-1].split("assistant")[0].strip())
print("epsilon:", shown["epsilon_spent"], " guarantee:", shown["guarantee"]["unit"])
