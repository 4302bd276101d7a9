"""HTTP over the daemon's Unix socket: bytes and JSON in, bytes and JSON out, errors as errors."""

from __future__ import annotations

import builtins
import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramet.errors import DeadlineError, PeerError, RametError, from_dict

if TYPE_CHECKING:
    import httpx


class Wire:
    """One keep-alive connection or a few. `timeout_s` bounds each wait for bytes."""

    def __init__(self, socket_path: Path, timeout_s: float) -> None:
        self._socket_path = socket_path
        self._timeout_s = timeout_s
        self._client: httpx.Client | None = None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def json(
        self, method: str, path: str, query: dict[str, Any] | None = None, body: Any = None, wait_s: float = 0.0
    ) -> Any:
        """The answer's JSON; None for an answer without content. `wait_s`: how long the daemon may wait by request."""
        with self._errors():
            response = self._http().request(
                method, path, params=query, json=body, timeout=self._timeout(self._timeout_s + wait_s)
            )
        _raise_for(response.status_code, response.content)
        return json.loads(response.content) if response.content else None

    def bytes(self, path: str, query: dict[str, Any] | None = None) -> builtins.bytes:
        """The answer's body as it is."""
        with self._errors():
            response = self._http().get(path, params=query)
        _raise_for(response.status_code, response.content)
        return response.content

    def download(self, path: str, query: dict[str, Any]) -> Iterator[builtins.bytes]:
        """The answer's body in chunks."""
        with self._errors(), self._http().stream("GET", path, params=query) as response:
            if response.status_code >= 400:
                _raise_for(response.status_code, response.read())
            yield from response.iter_raw()

    def upload(
        self,
        path: str,
        query: dict[str, Any],
        data: builtins.bytes | Iterable[builtins.bytes],
        wait_s: float = 0.0,
    ) -> None:
        with self._errors():
            timeout = self._timeout(self._timeout_s + wait_s)
            response = self._http().put(path, params=query, content=data, timeout=timeout)
        _raise_for(response.status_code, response.content)

    def follow(self, method: str, path: str, body: Any = None) -> Generator[str, None, None]:
        """Lines of an answer that comes bit by bit. PeerError when it breaks off; closing it closes the connection."""
        with self._errors(), self._http().stream(method, path, json=body) as response:
            if response.status_code >= 400:
                _raise_for(response.status_code, response.read())
            yield from response.iter_lines()

    def lines(self, path: str, query: dict[str, Any]) -> Iterator[str]:
        """Lines of an answer that does not end; ends when the connection does, however."""
        import httpx

        try:
            # The daemon gives a sign of life every 15 s, so silence for longer than the timeout is an end.
            with self._http().stream("GET", path, params=query) as response:
                if response.status_code >= 400:
                    _raise_for(response.status_code, response.read())
                yield from response.iter_lines()
        except httpx.TransportError:
            return

    def _http(self) -> httpx.Client:
        if self._client is None:
            import httpx

            from ramet.api.unix_http import UnixTransport

            self._client = httpx.Client(
                transport=UnixTransport(str(self._socket_path)),
                base_url="http://ramet",
                timeout=self._timeout(self._timeout_s),
                trust_env=False,
            )
        return self._client

    def _timeout(self, seconds: float) -> httpx.Timeout:
        import httpx

        return httpx.Timeout(seconds, connect=10.0)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TimeoutException as exc:
            raise DeadlineError("The daemon did not answer in time.") from exc
        except httpx.TransportError as exc:
            raise PeerError(
                f"The daemon at {self._socket_path} does not answer.", hint="Start it with `ramet serve`."
            ) from exc


def _raise_for(status: int, content: builtins.bytes) -> None:
    if status < 400:
        return
    raise _error(status, content)


def _error(status: int, content: builtins.bytes) -> RametError:
    try:
        return from_dict(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        text = content[:200].decode(errors="replace")
        return PeerError(f"The daemon answered {status}, and no reason that can be read: {text!r}.")
