"""`agent` and `new-origin`: what keeps a trail going."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from otel_audit.cli import output
from otel_audit.cli.access import account
from otel_audit.cli.options import Directory, Json, opened_trail, own, settings_for
from otel_audit.cli.outcome import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

    from rich.text import Text

    from otel_audit.readers.agent import Agent
    from otel_audit.record.event import AuditEvent
    from otel_audit.settings import Settings
    from otel_audit.trail.succession import Predecessor, Succession
    from otel_audit.trail.trail import Trail

_WAL_LIMIT: Final = 4 << 20
"""Bytes of write-ahead log that wait before the agent copies them into the database."""

_WAIT_SECONDS: Final = 0.5


def agent(
    directory: Directory = None,
    *,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait for the trail, if the application has yet to make it."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve the trail in the foreground: checkpoints, write-ahead log, mirror, shipping.

    By default a thread of the application does this; set OTEL_AUDIT_AGENT=off
    there to leave it to this process. While another process serves the trail,
    this one stands by and takes over when that one ends. SIGTERM or Ctrl-C end
    it, after a last checkpoint.
    """
    settings = settings_for(directory)
    stop = _Stop()
    _log_to_stderr(as_json=as_json)
    if wait and not _wait_for_trail(settings, stop):
        return
    with opened_trail(settings) as trail:
        served = _agent(trail, settings)
        stop.also(served)
        shut_down = _export_metrics(settings)
        _say(as_json=as_json, event="started", **_described(trail, settings))
        served.run()
        shut_down()
        last = trail.reader.last_checkpoint()
        _say(
            as_json=as_json,
            event="ended",
            records=trail.reader.tree().size,
            covered=0 if last is None else last.size,
            errors=served.errors,
        )


def new_origin(
    directory: Directory = None,
    *,
    reason: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Why; it goes into the new trail's first record. Required with --yes.",
        ),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Begin a new trail under a new origin, where the old one cannot go on.

    For a trail that is refused because an older copy was restored, because its
    key was lost or exposed, or because it is damaged. Nothing is deleted: the
    old files are moved into DIRECTORY/previous/, where they can still be read
    and verified. The new trail has a new key; its first record says how the old
    one ended. Stop the application first.
    """
    from otel_audit.trail.succession import look, succeed

    if yes and not reason.strip():
        message = (
            "with --yes nobody is asked, so say why, for the new trail's first record: --reason"
        )
        raise UsageError(message)
    settings = settings_for(directory)
    directory = settings.trail_directory
    own(directory)
    predecessor = look(directory)
    why = _why(settings, predecessor)
    settings = replace(settings, service_name=_service(settings, predecessor))
    if not yes:
        _confirm(directory, predecessor, why, as_json=as_json)
    done = succeed(
        directory,
        lambda place, ended: _begin(place, ended, settings, "; ".join(filter(None, (reason, why)))),
        timeout=settings.timeout,
    )
    _print_succession(directory, done, as_json=as_json)


# agent


class _Stop:
    """Turns SIGTERM and Ctrl-C into the agent's own way to end."""

    def __init__(self) -> None:
        self.asked = False
        self._agent: Agent | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def also(self, agent: Agent) -> None:
        self._agent = agent
        if self.asked:
            agent.stop()

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the form of a signal handler
        self.asked = True
        if self._agent is not None:
            self._agent.stop()


def _wait_for_trail(settings: Settings, stop: _Stop) -> bool:
    """Wait until there is a trail; False when asked to end before."""
    from otel_audit.trail.layout import DATABASE

    path = settings.trail_directory / DATABASE
    if not path.exists():
        sys.stderr.write(f"otel-audit: waiting for a trail in {settings.trail_directory}\n")
    while not path.exists() and not stop.asked:
        time.sleep(_WAIT_SECONDS)
    return not stop.asked


def _agent(trail: Trail, settings: Settings) -> Agent:
    from otel_audit.readers.agent import Agent
    from otel_audit.readers.attendants import attendants
    from otel_audit.readers.pace import ALL
    from otel_audit.trail.reader import TrailReader

    directory = settings.trail_directory

    def read() -> TrailReader:
        return TrailReader(directory)

    return Agent(
        directory,
        reader_factory=read,
        sign_checkpoint=trail.signer.sign,
        empty_wal=lambda: trail.store.wal.empty(above=_WAL_LIMIT),
        mirror_path=settings.mirror_file,
        mirror_max_bytes=settings.mirror_max_bytes,
        mirror_backups=settings.mirror_backups,
        # Nobody else needs the processor of this process.
        attendants=attendants(settings, read, lambda event: _record(settings, event), share=ALL),
    )


def _record(settings: Settings, event: AuditEvent) -> None:
    """Emit one record of our own into the trail that is served."""
    from otel_audit.api.logger import AuditLogger
    from otel_audit.api.provider import AuditProvider

    quiet = replace(settings, agent="off", mirror=False, directory=settings.trail_directory)
    provider = AuditProvider(quiet)
    try:
        AuditLogger(provider=provider).emit(event)
    finally:
        provider.close()


def _export_metrics(settings: Settings) -> Callable[[], object]:
    """Send the agent's metrics to where the standard variables say; return what ends that."""
    if settings.metrics_protocol is None:
        return lambda: None
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    exporter: MetricExporter
    if settings.metrics_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as by_grpc

        exporter = by_grpc.OTLPMetricExporter()
    else:
        from opentelemetry.exporter.otlp.proto.http import metric_exporter as by_http

        exporter = by_http.OTLPMetricExporter()
    named = {SERVICE_NAME: settings.service_name} if settings.service_name else {}
    provider = MeterProvider([PeriodicExportingMetricReader(exporter)], Resource.create(named))
    metrics.set_meter_provider(provider)
    return provider.shutdown


def _described(trail: Trail, settings: Settings) -> dict[str, Any]:
    from otel_audit.trail.layout import AGENT_LOCK
    from otel_audit.trail.occupants import holders, name_of

    directory = settings.trail_directory
    leaders = holders(directory / AGENT_LOCK)
    return {
        "origin": trail.store.origin,
        "directory": str(directory),
        "mirror": None if settings.mirror_file is None else str(settings.mirror_file),
        "destinations": [destination.name for destination in settings.destinations],
        "standing_by_for": name_of(leaders[0]) if leaders else None,
    }


def _say(*, as_json: bool, event: str, **facts: object) -> None:
    """Tell, in one line each, that the agent started and ended."""
    import json

    if as_json:
        line = json.dumps({"event": event, **facts})
    elif event == "started":
        by = facts["standing_by_for"]
        task = f"standing by, as {by} serves" if by else "serving"
        line = f"{task} the trail in {facts['directory']} ({facts['origin']}); Ctrl-C ends"
    else:
        line = f"ended: {facts['covered']:,} of {facts['records']:,} records covered by checkpoints"
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _log_to_stderr(*, as_json: bool) -> None:
    """Show warnings and errors of the agent's duties, one line each."""
    import json

    class _JsonLines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return json.dumps(
                {"event": "log", "level": record.levelname.lower(), "message": record.getMessage()}
            )

    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_JsonLines() if as_json else plain)
    logger = logging.getLogger("otel_audit")
    logger.addHandler(handler)
    logger.propagate = False


# new-origin


def _why(settings: Settings, predecessor: Predecessor) -> str:
    """Say what is wrong with the old trail, as far as it can be told by reading."""
    from otel_audit.cli.diagnosis.trail import refusals

    found = [] if predecessor.trouble is None else [predecessor.trouble]
    return "; ".join(found or refusals(settings))


def _confirm(directory: Path, predecessor: Predecessor, why: str, *, as_json: bool) -> None:
    """Show what will happen, and ask. Raises `typer.Abort`."""
    target = output.console(stderr=True)
    if not as_json:
        size = "unknown" if predecessor.size is None else f"{predecessor.size:,}"
        rows: list[tuple[str, str | Text]] = [
            ("trail", str(directory)),
            ("origin", output.visible(predecessor.origin or "unknown")),
            ("records", size),
            ("trouble", output.visible(why or "none: this trail can go on as it is")),
        ]
        output.write_facts(target, rows)
    try:
        sure = typer.confirm(
            "Move it to previous/ and begin a new trail under a new origin?", err=True
        )
    except typer.Abort:
        # The end of the input, or Ctrl-C: the question still stands on this line.
        typer.echo(err=True)
        raise
    if not sys.stdin.isatty():
        typer.echo(err=True)
    if not sure:
        raise typer.Abort


def _begin(place: Path, ended: Predecessor, settings: Settings, why: str) -> None:
    """Make the new trail: a first record that says how the old one ended, and a checkpoint."""
    from otel_audit.api.logger import AuditLogger
    from otel_audit.api.provider import AuditProvider
    from otel_audit.record.event import AuditEvent

    key_file = settings.signing_key_file
    if key_file is not None and key_file.parent == settings.trail_directory:
        # The key in the trail's own directory is the old trail's, and moves with it.
        key_file = None
    provider = AuditProvider(
        replace(
            settings,
            directory=place,
            signing_key_file=key_file,
            agent="off",
            mirror=False,
            disabled=False,
            on_failure="fail",
        )
    )
    try:
        AuditLogger(provider=provider).emit(
            AuditEvent(
                "audit.origin_started",
                "new-origin",
                event_type="admin_action",
                resource_type="audit_trail",
                resource_name=provider.trail.store.origin,
                fields=_facts(ended, why),
            )
        )
    finally:
        provider.close()


def _service(settings: Settings, ended: Predecessor) -> str | None:
    """Name the service as the old trail did, when no setting names it here."""
    from otel_audit.trail.reader import TrailReader
    from otel_audit.trail.scan import UNREADABLE

    if settings.service_name or not ended.size:
        return settings.service_name
    try:
        with TrailReader(settings.trail_directory) as reader:
            last = reader.leaf(ended.size - 1)
    except UNREADABLE:
        return None
    name = None if last is None else (output.parsed(last.record) or {}).get("service_name")
    return name if isinstance(name, str) else None


def _facts(ended: Predecessor, why: str) -> dict[str, Any]:
    facts = {
        "reason": why or "no reason was given",
        "previous_origin": ended.origin,
        "previous_checkpoint": ended.checkpoint,
        "previous_size": ended.size,
        "previous_root": ended.root,
        # Which account ran the command; who sat there is not known.
        "operating_system_user": account(os.getuid()),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _print_succession(directory: Path, done: Succession, *, as_json: bool) -> None:
    from otel_audit.trail.reader import TrailReader

    with TrailReader(directory) as reader:
        origin, public = reader.origin, reader.claimed_keys
    if as_json:
        output.write_json(
            {
                "origin": origin,
                "public_keys": list(public),
                "previous_origin": done.predecessor.origin,
                "previous_size": done.predecessor.size,
                "kept_in": str(done.kept),
            }
        )
        return
    output.write_facts(
        output.console(),
        [
            ("new origin", output.visible(origin)),
            ("public key", output.visible(public[0] if public else "")),
            ("old trail", str(done.kept)),
            ("next", "start the application; hand out the new public key (otel-audit keys)"),
        ],
    )
