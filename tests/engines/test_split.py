"""Private inference: without noise the answers are the tuned model's; with noise, only noise leaves."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.checkpoint.load import Checkpoint
from transom.checkpoint.tiny import tiny_llama
from transom.errors import EngineBusyError, EngineError, MisconfiguredError
from transom.net.listen import serve_in_thread
from transom.privacy.noise import d_chi, noised
from transom.privacy.stream import Stream
from transom.serving.engines.base import Call, Delta
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.http import Pinned
from transom.serving.engines.server import create_engine_app
from transom.serving.engines.split import SplitEngine
from transom.serving.tokenizer import load_tokenizer

from .split_parties import parties
from .tls_fixtures import make_key

PROMPTS = ((5, 6, 7), (300,), tuple(range(20, 60)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


async def answers(engine: Any, **options: Any) -> list[tuple[Any, ...]]:
    """(ids, finish reason, scores) of each choice; the engine is closed."""
    call = Call(**({"prompts": PROMPTS, "max_tokens": 10, "temperature": 0.0, "logprobs": 2} | options))
    pieces: dict[int, list[Delta]] = {}
    async for delta in engine.generate(call):
        pieces.setdefault(delta.index, []).append(delta)
    await engine.close()
    return [
        (
            tuple(i for piece in some for i in piece.ids),
            some[-1].finish_reason,
            [score for piece in some for score in piece.scores],
        )
        for _, some in sorted(pieces.items())
    ]


async def centralised(central: Checkpoint, **options: Any) -> list[tuple[Any, ...]]:
    with EmbeddedEngine(central, model="tuned") as engine, serve_in_thread(create_engine_app(engine)) as url:
        return await answers(IdsEngine(url), **options)


def assert_same(ours: list[tuple[Any, ...]], theirs: list[tuple[Any, ...]]) -> None:
    assert len(ours) == len(theirs)
    for (ids, reason, scores), (their_ids, their_reason, their_scores) in zip(ours, theirs, strict=True):
        assert (ids, reason) == (their_ids, their_reason)
        for one, other in zip(scores, their_scores, strict=True):
            assert one.token == other.token
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [i for i, _ in one.top] == [i for i, _ in other.top]


@pytest.mark.parametrize("layout", ["customer", "vendor"])
@pytest.mark.parametrize("after_block", [0, 2])
async def test_without_noise_it_is_the_tuned_model(llama: Path, after_block: int, layout: str) -> None:
    with parties(llama, after_block, layout) as both:
        assert_same(await answers(both.engine()), await centralised(both.central))


async def test_sampling_streams_and_choices(llama: Path) -> None:
    options = {"temperature": 0.9, "top_p": 0.8, "seed": 5, "n": 3, "stream": True, "logprobs": 1}
    with parties(llama) as both:
        ours = await answers(both.engine(), **options)
        assert_same(ours, await centralised(both.central, **options))
        assert len({ids for ids, _, _ in ours}) > 3
        assert_same(await answers(both.engine(), **options | {"stream": False}), ours)
        plain = await answers(both.engine(), temperature=None, logprobs=None)
        assert all(len(ids) <= 10 and not scores for ids, _, scores in plain)


async def test_stop_ids_and_the_end_of_text(llama: Path) -> None:
    with parties(llama) as both:
        ((ids, _, _), *_rest) = await answers(both.engine())
        stopped = await answers(both.engine(), stop_ids=(ids[4],), prompts=PROMPTS[:1])
        assert [one[:2] for one in stopped] == [(ids[: ids.index(ids[4]) + 1], "stop")]
        ends = replace(both.customer, eos_ids=frozenset({ids[2]}))
        stopped = await answers(SplitEngine(both.url, ends), prompts=PROMPTS[:1])
        assert [one[:2] for one in stopped] == [(ids[: ids.index(ids[2]) + 1], "stop")]


async def test_long_prompts_go_in_pieces(tmp_path: Path) -> None:
    prompt = tuple(range(3, 303)) * 4
    with parties(tiny_llama(tmp_path, max_position_embeddings=1300)) as both:
        options = {"prompts": (prompt,), "max_tokens": 5}
        assert_same(await answers(both.engine(), **options), await centralised(both.central, **options))
        assert [len(one) for one in both.seen] == [512, 512, 176, 1, 1, 1, 1]


async def test_many_choices_take_turns(llama: Path) -> None:
    with parties(llama, bounds={"sessions": 8}) as both:
        choices = await answers(both.engine(), n=20, prompts=PROMPTS[:1], max_tokens=2)
        assert len(choices) == 20
        assert len({ids for ids, _, _ in choices}) == 1


async def test_conversations_at_once(llama: Path) -> None:
    with parties(llama, 0, "vendor", bounds={"tokens": 100_000, "sessions": 64}) as both:
        engine = both.engine()
        alone = [(await answers(engine, prompts=((i, i + 1),)))[0] for i in range(8)]
        together = await asyncio.gather(*[answers(engine, prompts=((i, i + 1),)) for i in range(8)])
        assert_same([one for (one,) in together], alone)
        assert len(both.server) == 0


@pytest.mark.parametrize("wire", ["bf16", "int8"])
async def test_narrow_wires(llama: Path, wire: str) -> None:
    with parties(llama, wire=wire) as both:
        ((ids, _, scores),) = await answers(both.engine(), prompts=PROMPTS[:1], max_tokens=1)
        ((_, _, exact),) = await centralised(both.central, prompts=PROMPTS[:1], max_tokens=1)
        assert ids
        assert scores[0].logprob == pytest.approx(exact[0].logprob, abs=0.1)
        assert scores[0].logprob != exact[0].logprob


def noise(stream: Stream, ids_N: Any, rows_ND: Any) -> Any:
    return noised(rows_ND, d_chi(stream, len(ids_N), rows_ND.shape[1], 2000.0))


async def test_only_noise_leaves_and_a_conversation_leaves_once(llama: Path) -> None:
    """Told by the vendor's own records; the exact states are never in them."""
    with parties(llama, 1, noising=noise) as both, parties(llama, 1) as bare:
        engine, prompt = both.engine(), (9, 8, 7, 6)
        ((ids, _, _),) = await answers(engine, prompts=(prompt,), temperature=0.0)
        await answers(bare.engine(), prompts=((*prompt, *ids[:-1]),), max_tokens=1)
        sent_TD, exact_TD = torch.cat(both.seen), torch.cat(bare.seen)
        assert sent_TD.shape == exact_TD.shape
        length_T = (sent_TD - exact_TD).norm(dim=1)
        assert bool(((length_T > 0.2 * 32 / 2000) & (length_T < 5 * 32 / 2000)).all())
        first = torch.cat(both.seen)
        both.seen.clear()
        again = await answers(engine, prompts=((*prompt, *ids[:-1], 5),), n=2, max_tokens=1)
        assert len(again) == 2
        for one in both.seen:  # the same to the bit, though now computed all at once
            assert torch.equal(one[:-1], first)
        both.seen.clear()
        await answers(engine, prompts=((1, *prompt[1:]),), max_tokens=1)
        assert not bool((both.seen[0][1:] == first[1:4]).any())


async def test_too_much_is_refused(llama: Path) -> None:
    with parties(llama, bounds={"sessions": 1, "tokens": 60}) as both:
        with pytest.raises(EngineBusyError):
            await answers(both.engine())
        assert len(await answers(both.engine(), prompts=PROMPTS[2:])) == 1
        with pytest.raises(EngineBusyError):
            await answers(both.engine(), prompts=PROMPTS[2:], max_tokens=30)
        assert len(both.server) == 0


async def test_tls_with_a_pin(llama: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "a")
    with parties(llama, tls=key.tls) as both:
        ours = await answers(both.engine(guard=Pinned(key.pin)))
        assert_same(ours, await centralised(both.central))


async def test_another_tuning_is_refused_by_name(llama: Path) -> None:
    with parties(llama, 1) as both:
        for name, other in (("after_block", 2), ("tuning", "t2"), ("width", 64), ("wire", "bf16")):
            terms = replace(both.customer.terms, **{name: other})
            engine = SplitEngine(both.url, replace(both.customer, terms=terms))
            with pytest.raises(MisconfiguredError, match=rf"{name}: .* there, {other!r} here"):
                await engine.probe()
            await engine.close()
        both.server.terms = replace(both.server.terms, tuning="t2")  # it comes back as another
        engine = both.engine()
        with pytest.raises(MisconfiguredError):
            await answers(engine)
        assert not both.seen


async def test_a_vendor_that_changes_beneath_is_noticed(llama: Path) -> None:
    with parties(llama, 1) as both:
        engine = both.engine()
        await engine.probe()
        both.server.terms = replace(both.server.terms, tuning="t2")
        with pytest.raises(EngineError, match="409"):
            await answers(engine)
        assert not both.seen


async def test_a_cancelled_answer_frees_its_session(llama: Path) -> None:
    began = threading.Event()
    with parties(llama, on_states=lambda _states: began.set()) as both:
        engine = both.engine()
        stream = engine.generate(Call(prompts=PROMPTS, max_tokens=200, stream=True, temperature=0.0))
        await anext(stream)
        assert len(both.server) == 3
        await stream.aclose()
        await engine.close()
        assert len(both.server) == 0
        began.clear()
        task = asyncio.create_task(answers(engine, max_tokens=200))
        await asyncio.to_thread(began.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.close()
        assert len(both.server) == 0


def test_who_has_the_head(llama: Path) -> None:
    with parties(llama) as both, pytest.raises(MisconfiguredError, match="head"):
        replace(both.customer, tail=None)


async def test_a_real_model_cut_in_its_middle() -> None:
    """SmolLM2 with an adapter, after block 3, both parties on this machine."""
    ids = load_tokenizer("smollm2").encode_chat([("user", "Name three foxes.")]).ids
    options = {"prompts": (ids,), "max_tokens": 6}
    with parties("smollm2", 3) as both:
        assert_same(await answers(both.engine(), **options), await centralised(both.central, **options))
        assert [one.shape for one in both.seen] == [(len(ids), 576)] + [(1, 576)] * 5
