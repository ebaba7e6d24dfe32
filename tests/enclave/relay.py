"""A TCP relay that writes down every byte of both directions: what somebody on the wire sees.

    python relay.py HOST:PORT RECORD_FILE

Prints its own port, then relays until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path


async def relay(target: str, record: Path) -> None:
    host, port = target.rsplit(":", 1)
    with record.open("ab", buffering=0) as written:

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(65_536):
                    written.write(data)
                    writer.write(data)
                    await writer.drain()
            except ConnectionError:
                pass
            finally:
                writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pump(reader, onward_writer), pump(onward_reader, writer))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1], Path(sys.argv[2])))
