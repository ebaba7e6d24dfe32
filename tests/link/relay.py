"""A network between two brokers that a test can cut, freeze and count: a relay on loopback."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Passes what arrives at `address` on to `target`. `cut_after`: bytes of each next connection, both ways
    together, before it is reset. While `frozen`, connections that are there stay, and nothing passes."""

    def __init__(self, target: tuple[str, int], cut_after: int | None) -> None:
        self.cut_after = cut_after
        self.frozen: set[int] = set()
        self.connections = 0
        self._target, self._over = target, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.02)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def freeze(self) -> None:
        """Whoever is connected now hears nothing any more, and is not told."""
        self.frozen = set(range(1, self.connections + 1))

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _listen(self) -> None:
        while not self._over.is_set():
            with suppress(TimeoutError):
                sock, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._pass_on, args=(sock, self.connections))
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, sock: socket.socket, number: int) -> None:
        left, passed = self.cut_after, 0
        with (
            suppress(OSError),
            sock,
            socket.create_connection(self._target) as other,
            selectors.DefaultSelector() as selector,
        ):
            for one, its in ((sock, other), (other, sock)):
                selector.register(one, selectors.EVENT_READ, (one, its))
            while not self._over.is_set():
                for key, _ in selector.select(0.02):
                    if number in self.frozen:
                        self._over.wait(0.02)
                        continue
                    one, its = key.data
                    part = one.recv(2**16 if left is None else min(2**16, left - passed))
                    passed += len(part)
                    its.sendall(part)
                    if not part or passed == left:
                        return


@contextmanager
def relay(target: tuple[str, int], cut_after: int | None = None) -> Iterator[Relay]:
    made = Relay(target, cut_after)
    try:
        yield made
    finally:
        made.close()
