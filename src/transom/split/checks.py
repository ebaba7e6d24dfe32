"""What would go wrong in silence: an adapter that trains nothing, or part of what was named, or stands still.

Libraries pass over names that match nothing, over fused experts, and over a head that nobody asked to save.
Before the first step what an adapter covers is compared with what was named; after the first ones all that
is trained must have moved, and the outputs with it.
Threat model: mistakes and silent changes of libraries. Does not protect: a training that learns nothing.
Source: own; peft's ways are those of version 0.21.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transom.checkpoint.families import family_of
from transom.errors import MisconfiguredError, NotYetError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from transom.link.learner import Learner

_SHOWN = 12


def blocks_of(model: Any) -> tuple[str, tuple[nn.Module, ...]]:
    """Where a model's blocks are, as `model.layers`, and they. Raises NotYetError."""
    family = family_of({"model_type": model.config.model_type})
    if family is None:
        raise NotYetError(f"{type(model).__name__} is not known here; no adapter can be checked on it")
    trunk = getattr(model, family.names.trunk, None)
    place = family.names.blocks if trunk is None else f"{family.names.trunk}.{family.names.blocks}"
    return place, tuple(model.get_submodule(place))


def covered(model: Any, targets: Sequence[str], blocks: Iterable[int]) -> tuple[str, ...]:
    """The linear layers that an adapter with these targets must cover in these blocks, by name.

    A target is the end of a layer's name. Raises MisconfiguredError, with the layers that would be covered:
    there are no blocks or targets, a target is in none of the blocks or not in all, or it is in a mixture
    whose fused experts it would leave out.
    """
    from torch import nn

    place, modules = blocks_of(model)
    chosen = tuple(blocks)
    found: dict[str, list[str]] = {target: [] for target in targets}
    problems = []
    for target, names in found.items():
        for number in chosen:
            linear = [name for name, part in modules[number].named_modules() if isinstance(part, nn.Linear)]
            names += [f"{place}.{number}.{name}" for name in linear if f".{name}".endswith(f".{target}")]
        if len({name.removeprefix(f"{place}.").split(".")[0] for name in names}) < len(chosen):
            problems.append(f"{target!r} is no linear layer of {'some' if names else 'any'} of the blocks")
    every = tuple(sorted({name for names in found.values() for name in names}))
    problems += _left_out(modules, chosen, every, place)
    if not chosen or not targets:
        problems = [f"there are {len(chosen)} blocks and {len(targets)} targets for it"]
    if problems or not every:
        raise MisconfiguredError(
            f"the adapter would not train what was named: {'; '.join(problems)}. It would cover "
            f"{_shown(every)}; name other targets, or another cut"
        )
    return every


def _left_out(
    modules: Sequence[nn.Module], chosen: Sequence[int], every: Sequence[str], place: str
) -> Iterable[str]:
    """Fused experts of a mixture (weights of three dimensions) in which something else was named."""
    fused = sorted(
        f"{place}.{number}.{name}"
        for number in chosen
        for name, weight in modules[number].named_parameters()
        if weight.ndim == 3
    )
    mixtures = {name.rsplit(".", 2)[0] for name in fused}
    if any(name.startswith(f"{mixture}.") for name in every for mixture in mixtures):
        yield f"it would leave out the fused experts beside them ({_shown(fused)})"


def require_trainable(model: Any, wanted: Iterable[str]) -> None:
    """Exactly the parameters of these names are trained. Raises MisconfiguredError with the difference."""
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing, further = sorted(set(wanted) - found), sorted(found - set(wanted))
    if missing or further:
        raise MisconfiguredError(
            f"what would be trained is not what was named: not {_shown(missing)}, and beside it "
            f"{_shown(further)}; it covers {_shown(sorted(found))}. This peft does not fit; install the "
            "version of constraints.txt"
        )


def copies(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters as they are now, to compare with later."""
    return {name: value.detach().clone() for name, value in parameters.items()}


def require_moved(
    learner: Learner, before: Mapping[str, Tensor], but: Collection[str] = (), *, first: bool
) -> None:
    """What is trained, `but` these, has changed since `before`, and by its gradient, not by the decay of
    weights alone.

    LoRA's A does not move with the `first` gradient: while B is zero, so is A's. Raises MisconfiguredError
    that names what stood still.
    """
    still = [
        name
        for name, value in learner.parameters.items()
        if not (first and ".lora_A." in name)
        and name not in but
        and (bool((value == before[name]).all()) or not learner.has_gradient(name))
    ]
    if still:
        raise MisconfiguredError(
            f"after {learner.steps} steps these have not moved: {_shown(still)}; nothing reaches them. "
            "Look at the cut, the targets and the learning rate"
        )


def require_changed(before: Tensor, after: Tensor) -> None:
    """Outputs for the same inputs differ. Raises MisconfiguredError."""
    if before.shape == after.shape and bool((before == after).all()):
        raise MisconfiguredError(
            "the outputs are what they were before the first steps: the adapter has no part in them"
        )


def _shown(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    return (", ".join(names[:_SHOWN]) + more) or "nothing"
