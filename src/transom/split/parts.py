"""What each party computes of one step, from tensors to tensors; who talks to whom is not said here.

A step goes up and down: `Customer.bottom`, noise, `Vendor.rise`, `Head.grade`, `Vendor.sink`, and where the
customer has an adapter, `Customer.take_back`. The head is the vendor's, or in the U-shape the customer's.
Losses are divided by the targets of the whole batch, so micro-batches give together its gradients.
Threat model: as the room's. Tensors of the partner are of the shapes agreed; the link checks that.
Does not protect anything by itself: noise is added to what `bottom` gives, before it is sent.
Source: see the room. Shapes: B batch, T tokens, D model width, C classes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.checkpoint.cut import Front, Middle, Tail, three
from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.seeded import seeded
from transom.errors import LinkRefusedError, MisconfiguredError, NotYetError
from transom.link.learner import Learner, Schedule
from transom.split.checks import require_trainable
from transom.split.job import SplitJob, Task
from transom.split.lora import add_adapter, head_names, train_head, trained
from transom.split.metrics import IGNORED, Tally, count_targets, targets

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Graded:
    """A batch's loss as a share of its whole batch's, its gradient at the top [B, T, D], and its tally."""

    loss: float
    gradient_BTD: Tensor
    tally: Tally


@dataclass(frozen=True)
class Head:
    """From the top states to loss and scores. Whoever has it has the labels."""

    tail: Tail
    task: Task

    def grade(self, top_BTD: Tensor, mask_BT: Tensor, labels: Tensor, count: int) -> Graded:
        """Loss of these rows over `count` targets of the whole batch; the head's gradients gather in it.

        Raises LinkRefusedError for labels that are none.
        """
        top_BTD = top_BTD.detach().requires_grad_()
        loss_sum, right = _judge(self, top_BTD, mask_BT, labels)
        loss = loss_sum / max(count, 1)
        loss.backward()  # type: ignore[no-untyped-call]
        return Graded(float(loss.detach()), _gradient(top_BTD), _tally(self.task, loss_sum, right, labels))

    def scores(self, top_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits [B, C] of classes, or [B, T, V] of next tokens."""
        import torch

        with torch.no_grad():
            return self.tail(top_BTD, mask_BT)

    def evaluate(self, top_BTD: Tensor, mask_BT: Tensor, labels: Tensor) -> Tally:
        """The tally of these rows; nothing is trained."""
        import torch

        with torch.no_grad():
            loss_sum, right = _judge(self, top_BTD, mask_BT, labels)
        return _tally(self.task, loss_sum, right, labels)

    def evaluate_each(self, top_BTD: Tensor, mask_BT: Tensor, labels: Tensor) -> list[Tally]:
        """The tally of each row."""
        rows = range(len(top_BTD))
        return [self.evaluate(top_BTD[i : i + 1], mask_BT[i : i + 1], labels[i : i + 1]) for i in rows]


@dataclass(frozen=True)
class Customer:
    """The customer's part. `learner` has the head in the U-shape, and the adapter in its own blocks if a
    gradient comes back; None where it trains nothing."""

    front: Front
    head: Head | None
    learner: Learner | None
    has_adapter: bool

    def bottom(self, ids_BT: Tensor, mask_BT: Tensor, train: bool = True) -> Tensor:
        """States [B, T, D] after the cut, to be sent with noise. With an adapter, `train` leaves their graph
        for `take_back`. Raises MisconfiguredError for rows without a token, or none where the head looks."""
        import torch

        _require_tokens(mask_BT, self.front.parts.family.causal)
        with torch.set_grad_enabled(train and self.has_adapter):
            return self.front(ids_BT, mask_BT)

    def take_back(self, sent_BTD: Tensor, gradient_BTD: Tensor) -> None:
        """The gradient at what was sent goes down into the customer's adapter, and gathers there."""
        if not self.has_adapter:
            raise MisconfiguredError("the customer has no adapter, so no gradient goes back to it")
        sent_BTD.backward(gradient_BTD)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Risen:
    """What the vendor keeps of a batch until its gradient comes: the states [B, T, D] it got and gave."""

    hidden_BTD: Tensor
    top_BTD: Tensor


@dataclass(frozen=True)
class Vendor:
    """The vendor's part. `learner` has the adapter, and the head where that is the vendor's."""

    middle: Middle
    head: Head | None
    learner: Learner
    returns_gradient: bool

    def rise(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Risen:
        """Through the blocks. Any number of batches may be on their way before the first one's `sink`."""
        hidden_BTD = hidden_BTD.detach().requires_grad_(self.returns_gradient)
        return Risen(hidden_BTD, self.middle(hidden_BTD, mask_BT))

    def sink(self, risen: Risen, gradient_BTD: Tensor) -> Tensor | None:
        """The gradient at the top goes down, gathers in the adapter, and comes out at the cut if it is to."""
        risen.top_BTD.backward(gradient_BTD)  # type: ignore[no-untyped-call]
        return _gradient(risen.hidden_BTD) if self.returns_gradient else None

    def top(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The top states [B, T, D] alone; nothing is trained."""
        import torch

        with torch.no_grad():
            return self.middle(hidden_BTD, mask_BT)


def load_model(job: SplitJob) -> Checkpoint:
    """The job's model, nothing of it trained; a head that its files lack starts from the job's seed.

    Raises as `transom.checkpoint.load.load`; NotYetError for texts without a language model's head.
    """

    if job.task == "causal":
        found = load(job.model, device=job.device)
        if not type(found.model).__name__.endswith("ForCausalLM"):
            raise NotYetError(
                f"{job.model} holds a {type(found.model).__name__}, and its head is not trained here; give a "
                "causal language model"
            )
        return found
    with seeded(job.train.seed):
        return load(job.model, device=job.device, task="sequence-classification", num_labels=len(job.labels))


def make_customer(model: Any, job: SplitJob, rates: Schedule) -> Customer:
    """The customer's part; its model may end after the cut. Changes the model in place.

    Raises MisconfiguredError when it would not train what the job says, NotYetError for unknown models.
    """
    front, _middle, tail = three(model, job.after_block)
    head = Head(tail, job.task) if job.layout == "customer" else None
    model.requires_grad_(False).eval()  # without dropout
    if job.return_gradient:
        add_adapter(model, job.adapter, range(job.after_block), job.train.seed + 1)
    learner = _learner(model, job, head, rates)
    return Customer(front, head, learner, job.return_gradient)


def make_vendor(model: Any, job: SplitJob, rates: Schedule) -> Vendor:
    """The vendor's part; changes the model in place. Raises as `make_customer`."""
    _front, middle, tail = three(model, job.after_block)
    head = Head(tail, job.task) if job.layout == "vendor" else None
    model.requires_grad_(False).eval()  # without dropout
    add_adapter(model, job.adapter, range(job.after_block, len(middle.parts.blocks)), job.train.seed)
    learner = _learner(model, job, head, rates)
    if learner is None:
        raise MisconfiguredError("the vendor would train nothing")
    return Vendor(middle, head, learner, job.return_gradient)


def _learner(model: Any, job: SplitJob, head: Head | None, rates: Schedule) -> Learner | None:
    wanted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if head is not None and job.task == "classification":
        wanted += head_names(head.tail)
        train_head(head.tail)
    require_trainable(model, wanted)
    parameters = trained(model)
    return Learner(parameters, rates, job.train.weight_decay) if parameters else None


def _require_tokens(mask_BT: Tensor, causal: bool) -> None:
    real_BT = mask_BT != 0
    if not bool(real_BT.any(1).all()):
        raise MisconfiguredError(f"a row of this batch of {len(mask_BT)} has no token; leave it out")
    if not causal and not bool(real_BT[:, 0].all()):
        raise MisconfiguredError("this model's class is read at the first token; pad rows on the right")


def _judge(head: Head, top_BTD: Tensor, mask_BT: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Summed loss, with its graph, and how many guesses are right."""
    from torch.nn.functional import cross_entropy

    logits, wanted = targets(head.task, head.tail(top_BTD, mask_BT), labels)
    known = (wanted == IGNORED) | ((wanted >= 0) & (wanted < logits.shape[-1]))
    if wanted.shape != logits.shape[:1] or not bool(known.all()):
        raise LinkRefusedError(
            f"labels of shape {tuple(labels.shape)} are not all of {logits.shape[-1]} kinds for "
            f"{len(logits)} targets; the parties' labels or tokenizers differ"
        )
    loss_sum = cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="sum")
    return loss_sum, int((logits.detach().argmax(-1) == wanted).sum())


def _tally(task: Task, loss_sum: Tensor, right: int, labels: Tensor) -> Tally:
    return Tally(float(loss_sum.detach()), right, count_targets(task, labels))


def _gradient(tensor: Tensor) -> Tensor:
    import torch

    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
