"""A TCP relay between two KMEs that can be cut: refuse connections, swallow every byte, or swallow answers alone."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any, Literal

Cut = Literal["refuse", "swallow", "no answers"]
CHUNK = 1 << 16


class Relay:
    """Relays connections to ``port`` on this machine, from entering to leaving the block."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._cut: Cut | None = None
        self._links: set[asyncio.Transport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"relay-{port}", daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        """What a KME is told of where its peer is."""
        return f"https://127.0.0.1:{self.port}"

    def __enter__(self) -> Relay:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self, how: Cut) -> None:
        """From now on nothing gets through; connections that are open break if new ones are refused."""
        self._do(self._set(how))

    def mend(self) -> None:
        """Let everything through again; what was open during the cut is broken."""
        self._do(self._set(None))

    def _do(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _set(self, how: Cut | None) -> None:
        self._cut = how
        if how in (None, "refuse"):
            self._break()

    def _break(self) -> None:
        for transport in self._links:
            transport.abort()

    async def _close(self) -> None:
        self._server.close()
        self._break()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        mine: list[Any] = [writer.transport]
        try:
            if self._cut != "refuse":
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
                mine.append(far_writer.transport)
                self._links.update(mine)
                await asyncio.gather(
                    self._pump(reader, far_writer, ("swallow",)),
                    self._pump(far_reader, writer, ("swallow", "no answers")),
                )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for transport in mine:
                transport.abort()
            self._links.difference_update(mine)
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unless: tuple[Cut, ...]) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if self._cut not in unless:
                    writer.write(data)
                    await writer.drain()
        writer.transport.abort()
