"""Many outputs of a user's mechanism on two inputs, drawn in a process of its own.

The process is told a place `module:callable` and two JSON inputs, calls the mechanism on each in turn, and
sends numbers through a pipe. So nothing is unpickled here, and a mechanism that hangs is stopped, with what
it had drawn until then; one that misbehaves or ends its process is an error that says so.

Threat model: the mechanism is the user's own code. Does not protect against: one that sets out to deceive,
or to harm the machine that it runs on.
Source: own design.

Shapes: N draws, D floats of an output.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from transom.audit.attack import load_object
from transom.errors import MisconfiguredError, TransomError

Samples = NDArray[Any]  # int64 identities [N], or float64 vectors [N, D]
_CHUNK, _CHUNK_S = 1024, 0.2
_ENDING_S = 5.0  # for a process that closed its pipe to say how it ends
_FAR_FD = 100  # descriptors that a mechanism writes to by number lie below
_NO_VALUE = (None, object.__hash__)  # two outputs of such a type are never equal


@dataclass(frozen=True)
class Draws:
    """As many outputs on `a` as on `b`: identities [N], or vectors [N, D]."""

    a: Samples
    b: Samples


class Encoder:
    """Outputs as numbers: one identity for all outputs that are equal, or the floats of a vector [D]."""

    def __init__(self) -> None:
        self._identity: dict[Hashable, int] = {}
        self._first: tuple[int, str] | None = None

    def __call__(self, output: object) -> int | NDArray[np.float64]:
        """Raises MisconfiguredError for an output that can be neither compared nor measured."""
        vector_D = _as_vector(output)
        width, kind = 0 if vector_D is None else len(vector_D), type(output).__name__
        first_width, first_kind = self._first = self._first or (width, kind)
        if width != first_width and width and first_width:
            raise MisconfiguredError(f"returned {width} floats where earlier outputs had {first_width}")
        if width != first_width:
            other = first_kind if width else kind
            raise MisconfiguredError(
                f"returned floats on some draws and something else ({other}) on others; one kind is needed "
                "(nan can stand for a missing float)"
            )
        if vector_D is not None:
            return vector_D
        return self._identity.setdefault(_comparable(output), len(self._identity))


def draw(place: str, a: object, b: object, samples: int, timeout_s: float) -> Draws:
    """`samples` outputs of the mechanism at `place` on each input, or what it drew within `timeout_s`.

    Raises MisconfiguredError when it draws nothing in time, raises, returns a wrong type or ends its process.
    """
    request = json.dumps({"place": place, "a": json.dumps(a), "b": json.dumps(b), "samples": samples})
    deadline = time.monotonic() + timeout_s
    source, sink = os.pipe()
    process = subprocess.Popen(  # noqa: S603  our own module, no shell
        [sys.executable, "-P", "-m", "transom.audit.draws", str(sink)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(sink,),
        start_new_session=True,
    )
    os.close(sink)
    try:
        with process.stdin as pipe, suppress(BrokenPipeError):  # type: ignore[union-attr]
            pipe.write(request.encode())
        sent, over = _received(source, process, deadline)
        pairs, error = _parsed(sent)
        drawn = sum(len(chunk) for chunk in pairs)
        if error is None and over and drawn < samples:
            error = f"{_ending(process)} after {drawn} draws"
    finally:
        os.close(source)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if error is not None:
        raise MisconfiguredError(f"the mechanism {error}")
    if not drawn:
        raise MisconfiguredError(f"the mechanism gave no output within {timeout_s:.3g} s")
    all_pairs = np.concatenate(pairs)
    return Draws(all_pairs[:, 0], all_pairs[:, 1])


def _received(source: int, process: subprocess.Popen[bytes], deadline: float) -> tuple[bytearray, bool]:
    """All bytes until the end or the deadline, and whether it was the end: a closed pipe, a dead process."""
    sent = bytearray()
    while (left_s := deadline - time.monotonic()) > 0:
        dead = process.poll() is not None
        ready, _, _ = select.select([source], [], [], 0 if dead else min(left_s, _CHUNK_S))
        piece = os.read(source, 1 << 20) if ready else b""
        sent += piece
        if (ready and not piece) or (dead and not ready):
            return sent, True
    return sent, False


def _parsed(sent: bytearray) -> tuple[list[Samples], str | None]:
    """(chunks [n, 2] or [n, 2, D], what went wrong) from frames, each a JSON line and its bytes."""
    pairs: list[Samples] = []
    start = 0
    while (line_end := sent.find(b"\n", start)) >= 0:
        try:
            head = json.loads(sent[start:line_end])
            if "error" in head:
                return pairs, str(head["error"])
            start = line_end + 1 + math.prod(head["shape"]) * 8
            if start > len(sent):
                break
            pairs.append(np.frombuffer(sent[line_end + 1 : start], head["type"]).reshape(head["shape"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            return pairs, "sent something unreadable; does it write to file descriptors it did not open?"
    return pairs, None


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How it ended, asked before anyone kills it."""
    try:
        code = process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        return "closed the pipe for its outputs"
    if code >= 0:
        return f"ended its process (exit code {code})"
    name = f"signal {-code}"
    with suppress(ValueError):  # signals without a name
        name = signal.Signals(-code).name
    return f"ended its process ({name})"


def _as_vector(output: object) -> NDArray[np.float64] | None:
    """The floats of a number or an array; None for anything else, lists of integers or words among it."""
    if not isinstance(output, float | list | tuple) and not hasattr(output, "__array__"):
        return None
    try:
        array = np.asarray(output)
    except (TypeError, ValueError):  # a ragged list, or an array that is not on this machine
        return None
    return array.astype(np.float64).ravel() if array.dtype.kind == "f" and array.size else None


def _comparable(output: object) -> Hashable:
    frozen, kind = _frozen(output), type(output).__name__
    if part := _without_value(frozen):
        inside = "" if part == kind else f" with a {part} in it"
        raise MisconfiguredError(f"returned a {kind}{inside}, neither hashable by value nor floats")
    try:
        hash(frozen)
    except TypeError:
        raise MisconfiguredError(f"returned a {kind} that cannot be hashed") from None
    return frozen  # type: ignore[no-any-return]


def _frozen(output: Any) -> Any:
    """`output` with tuples for its lists and arrays."""
    if hasattr(output, "__array__"):  # tensors too, whose own hash is by object
        output = np.asarray(output).tolist()
    return tuple(map(_frozen, output)) if isinstance(output, list | tuple) else output


def _without_value(frozen: Any) -> str:
    """The type of a part that is never equal to another, if there is one."""
    if isinstance(frozen, tuple):
        return next(filter(None, map(_without_value, frozen)), "")
    by_value = frozen is None or getattr(type(frozen), "__hash__", None) not in _NO_VALUE
    return "" if by_value else type(frozen).__name__


def serve(request: dict[str, Any], sink: IO[bytes]) -> None:
    """The child's work: draw on both inputs in turn and send the outputs, or the reason why not."""
    try:
        mechanism = _loaded(request["place"])
        if not callable(mechanism):
            raise MisconfiguredError(f"is a {type(mechanism).__name__}, which cannot be called")
        _send_draws(mechanism, request["a"], request["b"], request["samples"], sink)
    except TransomError as error:
        _send(sink, {"error": str(error)})


def _loaded(place: str) -> Any:
    try:
        return load_object(place)
    except TransomError:
        raise
    except BaseException as error:  # a module that exits when it is imported
        raise MisconfiguredError(f"at {place} raised {type(error).__name__} on import") from None


def _send_draws(mechanism: Callable[[Any], Any], a: str, b: str, samples: int, sink: IO[bytes]) -> None:
    encode, chunk, since_s = Encoder(), list[tuple[Any, Any]](), time.monotonic()
    for number in count(1):
        try:
            outputs = mechanism(json.loads(a)), mechanism(json.loads(b))  # fresh: it may change its input
        except BaseException as error:  # its text may hold content
            raise MisconfiguredError(f"raised {type(error).__name__} on draw {number}") from None
        chunk.append((_encoded(encode, outputs[0], number), _encoded(encode, outputs[1], number)))
        if number == samples or len(chunk) == _CHUNK or time.monotonic() - since_s > _CHUNK_S:
            pairs = np.array(chunk)
            _send(sink, {"type": pairs.dtype.str, "shape": pairs.shape}, pairs.tobytes())
            chunk, since_s = [], time.monotonic()
        if number == samples:
            return


def _encoded(encode: Encoder, output: object, number: int) -> int | NDArray[np.float64]:
    try:
        return encode(output)
    except MisconfiguredError:
        raise
    except BaseException as error:  # of the output's own methods
        raise MisconfiguredError(
            f"returned a {type(output).__name__} that could not be compared: "
            f"it raised {type(error).__name__} on draw {number}"
        ) from None


def _send(sink: IO[bytes], head: dict[str, object], body: bytes = b"") -> None:
    sink.write(json.dumps(head).encode() + b"\n" + body)
    sink.flush()


def _end_with(parent: int) -> None:
    """End this process when its parent has gone: nobody would stop a mechanism that hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """The child process: a request on standard input, frames on the pipe named by the first argument."""
    inherited = int(sys.argv.pop())
    moved = fcntl.fcntl(inherited, fcntl.F_DUPFD_CLOEXEC, _FAR_FD + secrets.randbelow(_FAR_FD))
    os.close(inherited)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with os.fdopen(moved, "wb") as sink:
        serve(json.loads(sys.stdin.read()), sink)


if __name__ == "__main__":
    main()
