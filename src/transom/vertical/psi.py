"""Which of its IDs a party has in common with the partner: both learn that, and how many the other has.

Each hashes its IDs to points of the curve P-256, multiplies them by a secret of this run and sends them in
random order; each multiplies the other's by its own secret and sends them back in the order they came. A
common ID is then the same point on both sides, and there are no others: the match is exact. A marker, new in
each run and in both lists, shows that the answers belong to this run.
Threat model: a partner, and whoever sees the messages, that keeps to the protocol and is curious. Points of
IDs that are not common look random to it if the decisional Diffie-Hellman problem on P-256 is hard.
Does not protect: common IDs, and the counts. A partner may put guessed IDs in its list; one that answers
falsely is found by the hash of the common IDs, which it may then hold its guesses against. `hashed` sends
salted hashes instead: no protection against whoever can list what the IDs may be.
Source: Meadows 1986; Huberman, Franklin and Hogg 1999; Agrawal, Evfimievski and Srikant 2003, section 4.
Curve, hashing to it and secrets are openmined-psi's, whose request and answer are these two steps.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.errors import LinkRefusedError, extra
from transom.link.message import Step
from transom.link.session import Session
from transom.privacy.stream import Direction
from transom.vertical.ids import order_hash
from transom.vertical.job import Role

if TYPE_CHECKING:
    from torch import Tensor

MAX_IDS = 2**26
CHUNK = 2048  # IDs of a message; well under a second of work, and far below the least limit of a link
POINT_BYTES, HASH_BYTES, NONCE_BYTES = 33, 32, 32
_DIRECTIONS: Mapping[Role, Direction] = {"feature": "forward", "label": "backward"}
Advance = Callable[[int, int], object]


@dataclass(frozen=True)
class Common:
    """Places of the common IDs in this party's list, ordered by ID; how many the partner has in all."""

    places: tuple[int, ...]
    partner_count: int
    order_hash: str


class Curve:
    """Points of P-256 and a secret, new with each object. For one thread: the library's objects are.

    Raises MissingExtraError.
    """

    size_bytes = POINT_BYTES

    def __init__(self) -> None:
        with extra("psi", "openmined-psi"):
            import private_set_intersection.python as psi
        self._request = psi.Request
        self._asks = psi.client.CreateWithNewKey(True)
        self._answers = psi.server.CreateFromKey(self._asks.GetPrivateKeyBytes(), True)

    def own(self, ids: Sequence[str]) -> list[bytes]:
        """Values of these IDs, in their order."""
        return list(self._asks.CreateRequest(list(ids)).encrypted_elements)

    def other(self, values: Sequence[bytes]) -> list[bytes]:
        """The partner's values with this party's secret in them, in their order. Raises LinkRefusedError."""
        request = self._request(reveal_intersection=True, encrypted_elements=values)
        try:
            return list(self._answers.ProcessRequest(request).encrypted_elements)
        except RuntimeError:
            raise LinkRefusedError(
                "the partner sent what is no point of the curve; stop, and ask it"
            ) from None


@dataclass(frozen=True)
class Hashed:
    """Salted SHA-256, as `Curve` is used. Insecure: whoever can list what the IDs may be undoes it."""

    salt: bytes
    size_bytes: int = HASH_BYTES

    def own(self, ids: Sequence[str]) -> list[bytes]:
        return [hashlib.sha256(self.salt + one.encode()).digest() for one in ids]

    def other(self, values: Sequence[bytes]) -> list[bytes]:
        return list(values)


def intersect(
    session: Session,
    ids: Sequence[str],
    role: Role,
    *,
    hashed: bool = False,
    advance: Advance = lambda done, total: None,
) -> Common:
    """The common IDs of this party's list and the partner's, over a connected session of this run.

    IDs are canonical and each stands once. `advance` is told how many IDs of both are done, and of how many.
    Raises LinkError, LinkRefusedError for a partner that breaks the rules, MissingExtraError.
    """
    talk = _Talk(session, role)
    partner_count, salt = _greet(talk, len(ids))
    marked = [*ids, f"RUN {salt.hex()}"]  # no ID has capitals
    blinding = Hashed(salt) if hashed else Curve()
    order = secrets.SystemRandom().sample(range(len(marked)), len(marked))
    theirs: list[bytes] = []
    returned: list[bytes] = []
    total = len(marked) + partner_count + 1
    rounds = -(-max(len(marked), partner_count + 1) // CHUNK)
    for number in range(rounds):
        start = number * CHUNK
        sent = blinding.own([marked[place] for place in order[start : start + CHUNK]])
        due = min(max(partner_count + 1 - start, 0), CHUNK)
        got = talk.swap("psi-own", number, sent, due, blinding.size_bytes)
        theirs += (ours_too := blinding.other(got))
        returned += talk.swap("psi-back", number, ours_too, len(sent), blinding.size_bytes)
        advance(len(returned) + len(theirs), total)
    places = _matches(order, returned, theirs)
    if len(ids) not in places:
        raise LinkRefusedError("the partner's answers belong to another run; start both parties again")
    places.remove(len(ids))
    return _agreed(talk, ids, places, partner_count, salt)


def _greet(talk: _Talk, count: int) -> tuple[int, bytes]:
    """How many IDs the partner has, and a salt that both made."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    got = talk.swap("psi-greet", 0, [count.to_bytes(NONCE_BYTES, "big"), nonce], 2, NONCE_BYTES)
    partner_count = int.from_bytes(got[0], "big")
    for whose, one in (("this party", count), (talk.partner, partner_count)):
        if not 1 <= one <= MAX_IDS:
            raise LinkRefusedError(f"IDs are 1 to {MAX_IDS}, and {whose} has {one:.6g}")
    if got[1] == nonce:
        raise LinkRefusedError("the partner sent this party's own number back; stop, and ask it")
    return partner_count, hashlib.sha256(b"".join(sorted([nonce, got[1]]))).digest()


def _matches(order: Sequence[int], returned: Sequence[bytes], theirs: Sequence[bytes]) -> set[int]:
    """The places of what stands in both. Raises LinkRefusedError for values that stand twice."""
    known = {*theirs}
    if len(known) < len(theirs) or len({*returned}) < len(returned):
        raise LinkRefusedError("the partner's list has an ID twice; it is of another version, or wrong")
    return {place for place, value in zip(order, returned, strict=True) if value in known}


def _agreed(talk: _Talk, ids: Sequence[str], places: set[int], partner_count: int, salt: bytes) -> Common:
    """The result, once the partner has found the same IDs: their hash is compared, salted for this run."""
    ordered = tuple(sorted(places, key=ids.__getitem__))
    found = order_hash(ids[place] for place in ordered)
    shown = hashlib.sha256(salt + bytes.fromhex(found)).digest()
    theirs = talk.swap("psi-order", 0, [shown], 1, HASH_BYTES)[0]
    if theirs != shown:
        raise LinkRefusedError(
            f"the parties found different common IDs ({len(ordered)} here; {shown.hex()[:16]} here, "
            f"{theirs.hex()[:16]} there); one of them is of another version, or wrong"
        )
    return Common(ordered, partner_count, found)


class _Talk:
    """Messages of values, one each way at a time, so that no wait is longer than the work on one chunk."""

    def __init__(self, session: Session, role: Role) -> None:
        self._session, self.partner = session, f"the {'label' if role == 'feature' else 'feature'} party"
        self._way = _DIRECTIONS[role]

    def swap(
        self, topic: str, number: int, values: Sequence[bytes], due: int, size_bytes: int
    ) -> list[bytes]:
        """Send values and get the partner's: `due` of so many bytes each. Raises LinkRefusedError."""
        self._session.send(Step(0, number, self._way, topic=topic), {"values": _tensor(values, size_bytes)})
        received = self._session.receive(topic)
        with self._session.commit():
            pass
        step, tensor = received.header.step, received.tensors.get("values")
        expected = Step(0, number, "backward" if self._way == "forward" else "forward", topic=topic)
        if step != expected or tensor is None or not _fits(tensor, due, size_bytes):
            raise LinkRefusedError(
                f"{self.partner} sent {step} where {expected} with {due} values of {size_bytes} bytes was due"
            )
        return list(_rows(tensor))


def _tensor(values: Sequence[bytes], size_bytes: int) -> Tensor:
    import torch

    joined = bytearray(b"".join(values))
    if not joined:
        return torch.empty((0, size_bytes), dtype=torch.uint8)
    return torch.frombuffer(joined, dtype=torch.uint8).reshape(len(values), size_bytes)


def _fits(tensor: Any, due: int, size_bytes: int) -> bool:
    import torch

    return tensor.dtype == torch.uint8 and tuple(tensor.shape) == (due, size_bytes)


def _rows(tensor: Tensor) -> Iterator[bytes]:
    data, size = tensor.numpy().tobytes(), tensor.shape[1]
    return (data[start : start + size] for start in range(0, len(data), size))
