"""What real clients do with a gateway, each unpatched, only its base URL changed:
`python asking.py CLIENT URL`.

Runs in an environment of the clients' own (`make test-clients`), so it imports nothing of Transom. Prints a
JSON object: the package, its version, and for each thing that the client is known for what came back, or the
error.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTION = "Write one short sentence about Marguerite Okafor, who lives in Lyon."
KEY, MODEL, TOKENS = "none", "transom", 24
Doing = Callable[[str], Any]  # given the base URL: a text, or a list of pieces


def _asked(text: str = QUESTION) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _openai(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)


def _openai_chat(url: str) -> Any:
    answer = _openai(url).chat.completions.create(model=MODEL, messages=_asked(), max_tokens=TOKENS)
    return answer.choices[0].message.content


def _openai_stream(url: str) -> Any:
    stream = _openai(url).chat.completions.create(
        model=MODEL, messages=_asked(), max_tokens=TOKENS, stream=True
    )
    return [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]


def _openai_responses(url: str) -> Any:
    return _openai(url).responses.create(model=MODEL, input=QUESTION, max_output_tokens=TOKENS).output_text


def _openai_responses_stream(url: str) -> Any:
    with _openai(url).responses.stream(model=MODEL, input=QUESTION, max_output_tokens=TOKENS) as stream:
        return [event.delta for event in stream if event.type == "response.output_text.delta"]


def _langchain(url: str) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=url, api_key=KEY, model=MODEL, max_tokens=TOKENS, max_retries=0)


def _langchain_chat(url: str) -> Any:
    return _langchain(url).invoke(QUESTION).content


def _langchain_stream(url: str) -> Any:
    return [chunk.content for chunk in _langchain(url).stream(QUESTION)]


def _llama_index(url: str) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model=MODEL, api_base=url, api_key=KEY, is_chat_model=True, max_tokens=TOKENS, max_retries=0
    )


def _llama_index_chat(url: str) -> Any:
    from llama_index.core.llms import ChatMessage

    return _llama_index(url).chat([ChatMessage(role="user", content=QUESTION)]).message.content


def _llama_index_stream(url: str) -> Any:
    return [one.delta or "" for one in _llama_index(url).stream_complete(QUESTION)]


def _litellm(url: str, **more: Any) -> Any:
    import litellm

    litellm.telemetry = False
    return litellm.completion(
        model=f"openai/{MODEL}", api_base=url, api_key=KEY, messages=_asked(), max_tokens=TOKENS, **more
    )


def _litellm_chat(url: str) -> Any:
    return _litellm(url).choices[0].message.content


def _litellm_stream(url: str) -> Any:
    return [chunk.choices[0].delta.content or "" for chunk in _litellm(url, stream=True)]


def _pydantic_ai(url: str) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.settings import ModelSettings

    os.environ |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY}
    return Agent(f"openai:{MODEL}", model_settings=ModelSettings(max_tokens=TOKENS))


def _pydantic_ai_chat(url: str) -> Any:
    return _pydantic_ai(url).run_sync(QUESTION).output


def _pydantic_ai_stream(url: str) -> Any:
    async def run() -> list[str]:
        async with _pydantic_ai(url).run_stream(QUESTION) as result:
            return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]

    return asyncio.run(run())


def _agents(url: str) -> Any:
    import agents
    import openai

    agents.set_tracing_disabled(True)
    agents.set_default_openai_client(openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0))
    return agents.Agent(name="writer", instructions="Be brief.", model=MODEL)  # an answer that is cut is none


def _agents_chat(url: str) -> Any:
    import agents

    return agents.Runner.run_sync(_agents(url), QUESTION).final_output


def _agents_stream(url: str) -> Any:
    import agents

    async def run() -> list[str]:
        result = agents.Runner.run_streamed(_agents(url), QUESTION)
        return [
            event.data.delta async for event in result.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]  # fmt: skip

    return asyncio.run(run())


def _haystack(url: str, **more: Any) -> Any:
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage
    from haystack.utils import Secret

    generator = OpenAIChatGenerator(
        api_key=Secret.from_token(KEY), model=MODEL, api_base_url=url, max_retries=0,
        generation_kwargs={"max_tokens": TOKENS}, **more,
    )  # fmt: skip
    return generator.run([ChatMessage.from_user(QUESTION)])["replies"][0].text


def _haystack_stream(url: str) -> Any:
    pieces: list[str] = []
    _haystack(url, streaming_callback=lambda chunk: pieces.append(chunk.content or ""))
    return pieces


def _dspy_chat(url: str) -> Any:
    import dspy

    lm = dspy.LM(f"openai/{MODEL}", api_base=url, api_key=KEY, max_tokens=TOKENS, cache=False, num_retries=0)
    return lm(QUESTION)[0]


def _smolagents(url: str) -> Any:
    from smolagents import OpenAIModel

    return OpenAIModel(model_id=MODEL, api_base=url, api_key=KEY, max_tokens=TOKENS)


def _smolagents_chat(url: str) -> Any:
    return _smolagents(url)([{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]).content


def _smolagents_stream(url: str) -> Any:
    messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    return [delta.content or "" for delta in _smolagents(url).generate_stream(messages)]


def _llm(url: str, *options: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        known = f"- model_id: {MODEL}\n  model_name: {MODEL}\n  api_base: {url}\n  "
        Path(folder, "extra-openai-models.yaml").write_text(known)
        done = subprocess.run(
            [
                Path(sys.executable).with_name("llm"), "-m", MODEL, "--key", KEY, *options,
                "-o", "max_tokens", str(TOKENS), QUESTION,
            ],
            env=os.environ | {"LLM_USER_PATH": folder}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:])
    return done.stdout


def _instructor(url: str, mode: str) -> Any:
    import instructor
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        city: str

    client = instructor.from_openai(_openai(url), mode=getattr(instructor.Mode, mode))
    return client.chat.completions.create(
        model=MODEL, messages=_asked(), response_model=Person, max_tokens=60, max_retries=0
    ).model_dump_json()


CLIENTS: dict[str, dict[str, Doing]] = {
    "openai": {
        "chat": _openai_chat, "stream": _openai_stream, "responses": _openai_responses,
        "responses, streamed": _openai_responses_stream,
    },
    "langchain-openai": {"chat": _langchain_chat, "stream": _langchain_stream},
    "llama-index-llms-openai-like": {"chat": _llama_index_chat, "stream": _llama_index_stream},
    "litellm": {"chat": _litellm_chat, "stream": _litellm_stream},
    "pydantic-ai-slim": {"chat": _pydantic_ai_chat, "stream": _pydantic_ai_stream},
    "openai-agents": {"chat": _agents_chat, "stream": _agents_stream},
    "haystack-ai": {"chat": _haystack, "stream": _haystack_stream},
    "dspy": {"chat": _dspy_chat},
    "smolagents": {"chat": _smolagents_chat, "stream": _smolagents_stream},
    "llm": {"chat": lambda url: _llm(url, "--no-stream"), "stream": _llm},
    "instructor": {
        "tools": lambda url: _instructor(url, "TOOLS"),
        "JSON schema": lambda url: _instructor(url, "JSON_SCHEMA"),
    },
}  # fmt: skip


def done(client: str, url: str) -> dict[str, Any]:
    """What a client did, by what it was to do: its text or pieces, or the error."""
    found: dict[str, Any] = {"client": client, "version": importlib.metadata.version(client), "did": {}}
    for name, doing in CLIENTS[client].items():
        try:
            found["did"][name] = {"answer": doing(url)}
        except Exception as error:
            found["did"][name] = {"error": f"{type(error).__name__}: {error}"[:400]}
    return found


if __name__ == "__main__":
    print(json.dumps(done(sys.argv[1], sys.argv[2])))
