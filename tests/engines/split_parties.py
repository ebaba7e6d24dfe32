"""Both parties of private inference over tiny models, and the model that a centralised run would serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transom.checkpoint.cut import three
from transom.checkpoint.load import Checkpoint, load
from transom.net.listen import Tls, serve_in_thread
from transom.privacy.guarantee import Guarantee
from transom.privacy.releases import Noising, Releases
from transom.serving.engines.split import SplitCustomer, SplitEngine
from transom.serving.split_server import Bounds, SplitServer, create_split_app
from transom.serving.split_wire import SplitTerms
from transom.split.job import Adapter
from transom.split.lora import add_adapter, trained

PROMISE = Guarantee(kind="empirical", unit="one token's vector", adjacency="texts")


@dataclass
class Parties:
    """A vendor that serves, its customer, and the tuned model in one piece."""

    url: str
    server: SplitServer
    customer: SplitCustomer
    central: Checkpoint
    seen: list[Tensor]

    def engine(self, **options: Any) -> SplitEngine:
        return SplitEngine(self.url, self.customer, **options)


def tuned(path: Path | str, after_block: int) -> Checkpoint:
    """The model with an adapter that changes it, in the vendor's blocks."""
    checkpoint = load(path)
    model: Any = checkpoint.model
    model.requires_grad_(False)
    add_adapter(model, Adapter(r=4, alpha=8), range(after_block, model.config.num_hidden_layers), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in trained(model).values():
        parameter.data.normal_(std=0.1, generator=generator)
    model.requires_grad_(False)
    return checkpoint


@contextmanager
def parties(
    path: Path | str,
    after_block: int = 1,
    layout: Any = "customer",
    noising: Noising | None = None,
    bounds: dict[str, Any] | None = None,
    wire: Any = "fp32",
    tls: Tls | None = None,
    wrap: Callable[[Any], Any] = lambda app: app,
    on_states: Callable[[Tensor], None] | None = None,
    **server: Any,
) -> Iterator[Parties]:
    central, base = tuned(path, after_block), load(path)
    config: Any = base.model.config
    terms = SplitTerms(
        model="tuned", tuning="t1", after_block=after_block, layout=layout, width=config.hidden_size,
        vocabulary=config.vocab_size, wire=wire,
    )  # fmt: skip
    _front, middle, head = three(central.model, after_block)
    front, _middle, tail = three(base.model, after_block)
    seen: list[Tensor] = []
    limits = replace(Bounds(context_tokens=config.max_position_embeddings), **(bounds or {}))
    vendor = SplitServer(
        terms,
        middle,
        head if layout == "vendor" else None,
        limits,
        on_states=on_states or seen.append,
        **server,
    )
    customer = SplitCustomer(
        terms=terms,
        front=front,
        tail=tail if layout == "customer" else None,
        releases=Releases(noising),
        promise=PROMISE,
        eos_ids=frozenset({config.eos_token_id}),
        context_tokens=config.max_position_embeddings,
    )
    with serve_in_thread(wrap(create_split_app(vendor)), tls=tls) as url:
        yield Parties(url, vendor, customer, central, seen)
