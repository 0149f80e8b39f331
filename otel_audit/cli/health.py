"""`health`: ask a running service how it is, once or all the time.

Promises: asks over HTTP and nothing else, so it needs no trail; the exit code
is what a container's HEALTHCHECK wants, 0 for healthy and degraded and 1 for
everything else, including no answer in time; proxies of the environment are
not used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from otel_audit.cli import output
from otel_audit.cli.options import Json, read_bytes
from otel_audit.cli.outcome import ExitCode, UsageError, write_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.text import Text

DEFAULT: Final = "http://127.0.0.1:8000/health"

_DENIED: Final = (401, 403)
_GOOD: Final = ("healthy", "degraded")
_LARGEST: Final = 8 << 20


def health(
    url: Annotated[
        str,
        typer.Argument(
            metavar="[URL]",
            help="The service's health route; of an address without a path, /health.",
        ),
    ] = DEFAULT,
    *,
    details: Annotated[
        bool, typer.Option("--details", "-d", help="Show each component, if the service lets us.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show each component, live, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How often to ask with --watch.")
    ] = 1.0,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How long to wait for an answer.")
    ] = 3.0,
    token_file: Annotated[
        str, typer.Option(metavar="FILE", help="Holds the bearer token for details; - is stdin.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Ask a running service how it is; for people, and as a container's HEALTHCHECK."""
    service = _Service(url, timeout, _token(token_file))
    if watch:
        _watch(service, interval, as_json=as_json)
        return
    seen = service.ask(detailed=details)
    _print(service, seen, as_json=as_json)
    if seen.status not in _GOOD:
        raise typer.Exit(ExitCode.FOUND)


class _Seen(NamedTuple):
    """What the service said; ``trouble`` says why it is not what was asked for."""

    status: str
    report: dict[str, Any]
    trouble: str = ""


class _Service:
    """One service, at the address of its health route."""

    def __init__(self, url: str, timeout: float, token: str) -> None:
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            message = f"{url} is no address: {error}"
            raise UsageError(message) from error
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            message = f"{url!r} is no address of a service: it begins with http:// or https://"
            raise UsageError(message)
        self._https = parts.scheme == "https"
        self._host, self._port = parts.hostname, port
        self._path = parts.path.rstrip("/") or "/health"
        self.url = parts._replace(path=self._path, query="", fragment="").geturl()
        """What is asked, which is what is shown."""
        self._timeout = timeout
        self._token = token

    def ask(self, *, detailed: bool) -> _Seen:
        """Ask once; whatever happens is in the answer."""
        from http.client import HTTPException

        try:
            code, body = self._get(f"{self._path}/detailed" if detailed else self._path)
            if detailed and code in _DENIED:
                hint = f"the details are refused ({code}): name the token with --token-file"
                code, body = self._get(self._path)
                return _understood(code, body)._replace(trouble=hint)
            return _understood(code, body)
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return _Seen("unreachable", {}, f"{self.url} does not answer: {reason}")

    def _get(self, path: str) -> tuple[int, bytes]:
        from http.client import HTTPConnection, HTTPSConnection

        kind = HTTPSConnection if self._https else HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        try:
            headers = {"Accept": "application/json", "User-Agent": "otel-audit"}
            if self._token:
                headers["Authorization"] = f"Bearer {self._token}"
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(_LARGEST)
        finally:
            connection.close()


def _understood(code: int, body: bytes) -> _Seen:
    report = output.parsed(body)
    status = None if report is None else report.get("status")
    if report is None or not isinstance(status, str) or code not in {200, 503}:
        return _Seen("unknown", {}, f"the answer is no health: HTTP status {code}")
    return _Seen(status, report)


def _token(name: str) -> str:
    return read_bytes(name).decode("utf-8", "replace").strip() if name else ""


def _print(service: _Service, seen: _Seen, *, as_json: bool) -> None:
    if as_json:
        output.write_json({"url": service.url, **(seen.report or {"status": seen.status})})
    else:
        target = output.console()
        for part in _rendered(target, service, seen):
            target.print(part)
    if seen.trouble:
        write_error("HealthWarning", seen.trouble, ExitCode.FOUND, as_json=as_json)


def _watch(service: _Service, interval: float, *, as_json: bool) -> None:
    """Ask until Ctrl-C; on a terminal in one table, else a line for each change."""
    import time
    from contextlib import suppress

    with suppress(KeyboardInterrupt):
        if sys.stdout.isatty() and not as_json:
            _watch_live(service, interval)
            return
        before = ""
        while True:
            seen = service.ask(detailed=True)
            line = _line(seen, as_json=as_json)
            if line != before:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
                before = line
            time.sleep(interval)


def _watch_live(service: _Service, interval: float) -> None:
    import time

    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    target = output.console()
    with Live(console=target, auto_refresh=False, screen=False) as live:
        while True:
            seen = service.ask(detailed=True)
            trouble = [Text(output.visible(seen.trouble))] if seen.trouble else []
            live.update(Group(*_rendered(target, service, seen), *trouble), refresh=True)
            time.sleep(interval)


def _line(seen: _Seen, *, as_json: bool) -> str:
    """Say in one line how the whole is, and each component that is not well."""
    components = seen.report.get("components", {})
    states = {name: facts.get("status") for name, facts in sorted(components.items())}
    if as_json:
        import json

        return json.dumps({"status": seen.status, "components": states})
    bad = [f"{name} {status}" for name, status in states.items() if status != "healthy"]
    return output.visible(": ".join(filter(None, (seen.status, ", ".join(bad)))))


def _rendered(target: Console, service: _Service, seen: _Seen) -> Iterator[Text]:
    from rich.text import Text

    from otel_audit.cli.components import COLOURS, table

    style = COLOURS.get(seen.status, "red")
    yield Text.assemble((output.visible(seen.status), style), f"  {service.url}")
    components = seen.report.get("components")
    if components:
        yield from table(components, target.width if target.is_terminal else None)
