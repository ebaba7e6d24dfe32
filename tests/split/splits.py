"""Split runs and centralised ones on tiny models, for the tests of the room."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transom.link.learner import Learner, Schedule
from transom.split.job import Adapter, SplitJob, Train
from transom.split.metrics import Tally, count_targets, targets, text_labels
from transom.split.parts import Customer, Vendor, load_model, make_customer, make_vendor

RATES = Schedule(learning_rate=1e-2, warmup_steps=2, total_steps=8)


def make_job(folder: Path, task: str, **changes: Any) -> SplitJob:
    job = SplitJob(
        name="test",
        model=str(folder),
        task=task,  # type: ignore[arg-type]
        labels=("bad", "so", "good") if task == "classification" else (),
        labels_in_the_clear=True,
        adapter=Adapter(r=4, alpha=8),
        train=Train(learning_rate=1e-2, weight_decay=0.05, seed=5),
    )
    return replace(job, **changes)


@cache
def _loaded(model: str, task: str) -> Any:
    return load_model(make_job(Path(model), task)).model


def fresh_model(job: SplitJob) -> Any:
    """As `load_model` gives it, read from disk once."""
    return deepcopy(_loaded(job.model, job.task))


@dataclass(frozen=True)
class Batch:
    """Ids and mask [B, T], padded on the right; labels [B], or [B, T] of texts."""

    ids_BT: Tensor
    mask_BT: Tensor
    labels: Tensor

    def cut(self, rows: list[int]) -> list[Batch]:
        """In micro-batches of so many rows."""
        parts = zip(*(tensor.split(rows) for tensor in (self.ids_BT, self.mask_BT, self.labels)), strict=True)
        return [Batch(*part) for part in parts]


def make_batch(task: str, seed: int, rows: int = 5, tokens: int = 7, pad: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lengths_B = torch.randint(2, tokens + 1, (rows,), generator=generator)
    lengths_B[0] = tokens
    mask_BT = (torch.arange(tokens)[None] < lengths_B[:, None]).long()
    ids_BT = torch.randint(10, 90, (rows, tokens), generator=generator).masked_fill(mask_BT == 0, pad)
    labels_B = torch.randint(0, 3, (rows,), generator=generator)
    return Batch(ids_BT, mask_BT, text_labels(ids_BT, mask_BT) if task == "causal" else labels_B)


class Split:
    """Both parties in one process, without noise, each with a model of its own."""

    def __init__(self, job: SplitJob, rates: Schedule = RATES) -> None:
        self.job = job
        self.customer: Customer = make_customer(fresh_model(job), job, rates)
        self.vendor: Vendor = make_vendor(fresh_model(job), job, rates)

    @property
    def learners(self) -> list[Learner]:
        return [one for one in (self.customer.learner, self.vendor.learner) if one is not None]

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: value for one in self.learners for name, value in one.parameters.items()}

    @property
    def gradients(self) -> dict[str, Tensor]:
        return {name: value.grad.clone() for name, value in self.weights.items() if value.grad is not None}

    def backward(self, *parts: Batch) -> float:
        """Loss of the batch that these make together; its gradients gather."""
        head = self.customer.head or self.vendor.head
        assert head is not None
        count, loss, tally = sum(count_targets(self.job.task, part.labels) for part in parts), 0.0, Tally()
        sent = [self.customer.bottom(part.ids_BT, part.mask_BT) for part in parts]
        risen = [self.vendor.rise(one, part.mask_BT) for one, part in zip(sent, parts, strict=True)]
        for one, up, part in zip(sent, risen, parts, strict=True):
            graded = head.grade(up.top_BTD, part.mask_BT, part.labels, count)
            back = self.vendor.sink(up, graded.gradient_BTD)
            assert (back is None) == (not self.job.return_gradient)
            if back is not None:
                self.customer.take_back(one, back)
            loss, tally = loss + graded.loss, tally + graded.tally
        assert abs(tally.metrics(self.job.task)["loss"] - loss) < 1e-5
        return loss

    def step(self) -> None:
        for one in self.learners:
            one.step()

    def train(self, batches: list[Batch]) -> None:
        for batch in batches:
            self.backward(batch)
            self.step()

    def scores(self, batch: Batch) -> Tensor:
        head = self.customer.head or self.vendor.head
        assert head is not None
        hidden_BTD = self.customer.bottom(batch.ids_BT, batch.mask_BT, train=False)
        return head.scores(self.vendor.top(hidden_BTD, batch.mask_BT), batch.mask_BT)


class Central:
    """peft's own way, on the whole model: what a split run must equal."""

    def __init__(self, job: SplitJob, start: dict[str, Tensor], rates: Schedule = RATES) -> None:
        import peft

        self.job, self.rates = job, rates
        model = fresh_model(job)
        bert = model.config.model_type == "bert"
        first = 0 if job.return_gradient else job.after_block
        config = peft.LoraConfig(
            task_type="SEQ_CLS" if job.task == "classification" else "CAUSAL_LM",
            r=job.adapter.r,
            lora_alpha=job.adapter.alpha,
            target_modules=["query", "value"] if bert else ["q_proj", "v_proj"],
            layers_to_transform=list(range(first, model.config.num_hidden_layers)),
            layers_pattern="layer" if bert else "layers",
            modules_to_save=["pooler"] if bert else None,
        )
        with warnings.catch_warnings():  # this peft asks transformers under an older name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            self.model = peft.get_peft_model(model, config).eval()
        loaded = self.model.load_state_dict(
            {self._named(name): value.detach().clone() for name, value in start.items()}, strict=False
        )
        assert not loaded.unexpected_keys
        assert {self._named(name) for name in start} == set(self._trained())
        self.optimiser = torch.optim.AdamW(
            self._trained().values(), lr=rates.learning_rate, weight_decay=job.train.weight_decay
        )
        self.steps = 0

    def _trained(self) -> dict[str, Any]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def _named(self, name: str) -> str:
        """Our name of a tensor as peft has it in memory."""
        if ".lora_" in name:
            return "base_model.model." + name.replace(".weight", ".default.weight")
        for module in ("score", "classifier", "pooler"):
            name = name.replace(f"{module}.", f"{module}.modules_to_save.default.")
        return "base_model.model." + name

    def backward(self, batch: Batch) -> float:
        loss = self.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=batch.labels).loss
        loss.backward()
        return float(loss.detach())

    def step(self) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.rates.rate(self.steps)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.steps += 1

    def weights(self, names: Any) -> dict[str, Tensor]:
        found = self._trained()
        return {name: found[self._named(name)].detach() for name in names}

    def gradients(self, names: Any) -> dict[str, Tensor]:
        found = self._trained()
        return {name: found[self._named(name)].grad for name in names}

    def scores(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits

    def evaluate(self, batch: Batch) -> Tally:
        logits, wanted = targets(self.job.task, self.scores(batch), batch.labels)
        loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        right = int((logits.argmax(-1) == wanted).sum())
        return Tally(float(loss), right, count_targets(self.job.task, batch.labels))
