"""The place where tensors leave a party: privatised on the way forth, and their gradients on the way back.

A tunnel stands between the parts of a model. Forward it hands each row, flattened, to one mechanism;
backward, by autograd, it hands the gradient that comes back to another. The gradient passes the forward
mechanism unchanged (straight through). Noise is labelled by run, topic, epoch, batch, direction and attempt:
a step that is computed again has the noise of the first time.
Threat model: the partner keeps every release, of every epoch, and knows everything but the secret.
Does not protect: sizes, steps and their times. A promise is for the row itself: weights that were trained
on a record carry it into other rows, which no noise on its own row covers. Values are rounded after float64
noise, and the noise has the bits of floating point.
Source: own; the mechanisms: `mechanisms` and `r3elu`.

Legend: B rows, which are the records of a batch, D the values of one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any, NoReturn

from transom.checkpoint.finite import is_finite
from transom.errors import LinkRefusedError, MisconfiguredError, extra
from transom.link.mechanisms import Mechanism, Nothing
from transom.link.message import Step
from transom.link.r3elu import R3elu, R3eluDp, importance
from transom.privacy.stream import Direction, Stream, step_label

with extra("link", "torch"):
    import torch
    from torch import Tensor, nn
    from torch.autograd.function import once_differentiable

_REMEMBERED = 2**16  # labels of which a tunnel knows what was released
_KEPT = 64  # releases whose answer may still come, more than are ever under way
_NEW = 0.1  # of what is newly learnt of the importance of values, in its running mean


class Tunnel(nn.Module):
    """Calls of `tunnel(x, step)` release `x` [B, ...] and, when gradients come back, theirs.

    `secret` is 32 bytes that the partner does not have: `Record.secret`, the same whenever the run goes on.
    One tunnel has it; with two, two values would have one noise. It is not in the module's state. A label
    whose first release had another input is refused, since the noise would cancel out (of the last 65,536
    labels; that what was sent is sent no other way is the record's).
    """

    def __init__(self, forward: Mechanism, backward: Mechanism, secret: bytes, run: str) -> None:
        super().__init__()
        Stream(secret, step_label(run, 0, 0, "forward"))  # refuses a secret or a run that is none
        self.mechanisms: dict[Direction, Mechanism] = {"forward": forward, "backward": backward}
        self._secret, self._run = secret, run
        self._released: dict[str, bytes] = {}
        self._unanswered: dict[Step, Tensor] = {}
        self.importance: dict[Direction, tuple[float, ...]] = {"forward": (), "backward": ()}

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """The release of `x` for a step that goes forward: of its shape, type and device."""
        if step.direction != "forward":
            raise MisconfiguredError(
                "a tunnel is entered by a step that goes forward; call `release` instead"
            )
        privatised: Tensor = _Crossing.apply(x, self, step)  # type: ignore[no-untyped-call]
        return privatised

    def release(self, x: Tensor, step: Step) -> Tensor:
        """What may leave for a step in its direction; no gradient passes.

        Raises LinkRefusedError for values that are not finite and for a label that had another input,
        MisconfiguredError for a tensor without rows or of integers.
        """
        if not x.ndim or not x.is_floating_point():
            raise MisconfiguredError(f"a tunnel takes rows of floats, got {x.dtype} of {x.ndim} dimensions")
        label = step_label(
            self._run, step.epoch, step.batch, step.direction, topic=step.topic, attempt=step.attempt
        )
        x, mechanism = x.detach(), self.mechanisms[step.direction]
        if not is_finite(x):
            raise LinkRefusedError(
                f"values of step {step} are not finite; nothing left. Try a lower learning rate"
            )
        self._remember(label, x)
        if isinstance(mechanism, Nothing):  # what follows would take a third of a message's time for it
            return x.clone()
        x_BD = x.double().reshape(len(x), math.prod(x.shape[1:]))
        if isinstance(mechanism, R3elu | R3eluDp) and mechanism.learns:
            weighed = replace(mechanism, importance=self.importance[step.direction])
            y_BD = weighed.privatise(x_BD, Stream(self._secret, label))
            public_BD = torch.full_like(x_BD, mechanism.clip)  # in the place of values that may not show
            if step.topic == "train":  # nothing comes back for others
                self._unanswered[step] = x_BD if isinstance(mechanism, R3elu) else public_BD
            if len(self._unanswered) > _KEPT:
                del self._unanswered[next(iter(self._unanswered))]
        else:
            y_BD = mechanism.privatise(x_BD, Stream(self._secret, label))
        return y_BD.reshape(x.shape).to(x.dtype, copy=True)

    def learn(self, step: Step, answer: Tensor) -> None:
        """Where the mechanism of a step learns: the partner's `answer` to its release tells how much each
        value matters. One that was answered, or was forgotten by a restart, teaches nothing."""
        sent_BD = self._unanswered.pop(step, None)
        if sent_BD is None or not is_finite(answer):
            return
        found = importance(sent_BD, answer.detach().reshape(sent_BD.shape)).tolist()
        before = self.importance[step.direction] or found
        pairs = zip(before, found, strict=True)
        self.importance[step.direction] = tuple((1 - _NEW) * old + _NEW * new for old, new in pairs)

    def __reduce__(self) -> NoReturn:
        raise MisconfiguredError(
            "a tunnel is neither copied nor pickled: two would give two values one noise, and it holds the "
            "run's secret; copy the parts of the model around it"
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={mechanism}" for name, mechanism in self.mechanisms.items())

    def _remember(self, label: str, x: Tensor) -> None:
        """Raises LinkRefusedError if another input had the label."""
        kind = f"{x.dtype} {tuple(x.shape)} ".encode()
        values = x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        digest = hashlib.sha256(kind + values).digest()[:16]
        if self._released.setdefault(label, digest) != digest:
            raise LinkRefusedError(
                f"{label} was released already, of another input: the difference would have no noise. Give "
                "the step another attempt, and charge it"
            )
        if len(self._released) > _REMEMBERED:
            del self._released[next(iter(self._released))]


class _Crossing(torch.autograd.Function):
    """Releases the values forward, and their gradients backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tunnel: Tunnel, step: Step) -> Tensor:
        ctx.tunnel, ctx.step = tunnel, step
        return tunnel.release(x, step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.tunnel.learn(ctx.step, gradient)
        return ctx.tunnel.release(gradient, replace(ctx.step, direction="backward")), None, None
