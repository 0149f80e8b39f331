"""Every setting, validated once, with the place it came from.

This module is the only reader of the environment. It promises that a setting
that cannot be used is an `AuditSettingsError` naming the variable, its value
and a remedy, and never a silent default. What a setting *does* is the
business of the module that takes it.
"""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

from otel_audit.destinations import (
    Destination,
    address,
    destinations,
    metrics_protocol,
    names,
    reading,
    shown_address,
    shown_unusable,
)
from otel_audit.errors import AuditSettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FORWARDED_HEADERS: Final = ("x-forwarded-for", "forwarded")
"""What a proxy says the client's address in: the de-facto header, or RFC 7239's."""

UNIX_PEER: Final = "unix"
"""Stands among the trusted proxies for a peer without address (a Unix socket)."""

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off", ""})
_SIZE: Final = re.compile(r"(\d+)\s*([kmg]?)i?b?", re.IGNORECASE)


_OURS: Final = "OTEL_AUDIT_"
_SAID: Final = "_OTEL_AUDIT_SAID"
"""What was said, for the processes that this one starts. It is no setting, so not named like one."""

_QUERIED_TENANT: Final = "audit"
"""Of the bundled Loki; one without tenants does not look at it."""

_EXPORTER: Final = "OTEL_EXPORTER_OTLP_"


def _text(value: str) -> str:
    return value.strip()


def _boolean(value: str) -> bool:
    lowered = value.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    message = "expected true or false"
    raise ValueError(message)


def _directory(value: str) -> Path:
    expanded = os.path.expanduser(os.path.expandvars(value.strip()))  # noqa: PTH111 - pathlib has no expandvars, and both belong together
    if not expanded:
        message = "expected a path"
        raise ValueError(message)
    if "$" in expanded:
        message = f"{expanded!r} names a variable that is not set"
        raise ValueError(message)
    place = os.path.abspath(expanded)  # noqa: PTH100 - resolve() would follow links, and the caller's name for the place is what errors should show
    if "\0" in place:
        message = "no path has a null byte"
        raise ValueError(message)
    if not is_utf_8(place):
        message = "expected a path in UTF-8, since SQLite opens no other"
        raise ValueError(message)
    return Path(place)


def is_utf_8(path: str) -> bool:
    """Whether it can be written in UTF-8; what Python could not decode is in there as surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _choice(*choices: str, also: Mapping[str, str] | None = None) -> Callable[[str], str]:
    def parse(value: str) -> str:
        lowered = value.strip().lower()
        lowered = (also or {}).get(lowered, lowered)
        if lowered not in choices:
            message = f"expected one of {', '.join(choices)}"
            raise ValueError(message)
        return lowered

    return parse


def _seconds(value: str) -> float:
    message = "expected seconds, more than 0 and at most 86400"
    try:
        number = float(value)
    except ValueError:
        raise ValueError(message) from None
    if not 0 < number <= 86_400:  # noqa: PLR2004 - a day; longer waits are typing errors
        raise ValueError(message)
    return number


def _count(value: str) -> int:
    message = "expected a whole number of at least 1"
    try:
        number = int(value)
    except ValueError:
        raise ValueError(message) from None
    if number < 1:
        raise ValueError(message)
    return number


def _size(value: str) -> int:
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        message = "expected a size such as 0 (off), 104857600 or 100MB"
        raise ValueError(message)
    return int(match[1]) << 10 * " kmg".index(match[2].lower() or " ")


def _names(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _tenant(value: str) -> str:
    stripped = value.strip()
    if not re.fullmatch(r"[!'()*.\w-]{1,150}", stripped, re.ASCII):
        message = "expected a tenant id of Loki: letters, digits and !-_.*'()"
        raise ValueError(message)
    return stripped


def _networks(value: str) -> tuple[str, ...]:
    parts = [part.strip() for part in value.split(",") if part.strip()]
    return tuple(
        part if part == UNIX_PEER else str(ip_network(part, strict=False)) for part in parts
    )


def _mirror(value: str) -> bool | Path:
    """Read a switch or a path: operators use the one name for both."""
    lowered = value.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    return _directory(value)


def _setting(
    variable: str,
    parse: Callable[[str], Any],
    default: Any,  # noqa: ANN401 - one helper for settings of every type
    meaning: str,
    *,
    secret: bool = False,
) -> Any:  # noqa: ANN401 - dataclass fields take the annotation of the attribute
    return field(
        default=default,
        repr=not secret,
        metadata={"variable": variable, "parse": parse, "meaning": meaning, "secret": secret},
    )


@dataclass(frozen=True)
class Settings:
    """All settings of one provider.

    ``Settings.from_env()`` reads the environment; keyword arguments there win
    over it. ``origins`` says for each attribute where its value came from.
    """

    service_name: str | None = _setting(
        "OTEL_SERVICE_NAME", _text, None, "the service's name in each record"
    )
    log_dir: Path | None = _setting(
        "LOG_DIR", _directory, None, "holds trail/ and audit.log when nothing else is said"
    )
    directory: Path | None = _setting("OTEL_AUDIT_DIR", _directory, None, "the trail's directory")
    mirror: bool | Path | None = _setting(
        "AUDIT_LOG_LOCAL_FILE", _mirror, None, "JSON lines copy: true, false or a path"
    )
    mirror_max_bytes: int = _setting(
        "OTEL_AUDIT_MIRROR_MAX_BYTES",
        _size,
        0,
        "rotate the mirror by itself at this size (0: logrotate does)",
    )
    mirror_backups: int = _setting(
        "OTEL_AUDIT_MIRROR_BACKUPS", _count, 90, "rotated mirror files that are kept"
    )
    on_failure: str = _setting(
        "OTEL_AUDIT_ON_FAILURE",
        _choice("fail", "continue", "shutdown"),
        "fail",
        "what happens when the trail cannot take a record",
    )
    http_activity: str = _setting(
        "OTEL_AUDIT_HTTP_ACTIVITY",
        _choice("all", "mutating", "off", also={"on": "all"}),
        "all",
        "which requests become http.request records",
    )
    policy_file: Path | None = _setting(
        "OTEL_AUDIT_POLICY_FILE", _directory, None, "the policy, as YAML"
    )
    rule_sets: tuple[str, ...] = _setting(
        "OTEL_AUDIT_RULE_SETS", _names, (), "shipped rules that turn spans and routes into records"
    )
    disabled_instrumentations: tuple[str, ...] = _setting(
        "OTEL_AUDIT_DISABLED_INSTRUMENTATIONS",
        _names,
        (),
        "libraries that opentelemetry-instrument leaves without our instrumentation",
    )
    console: bool = _setting(
        "OTEL_AUDIT_CONSOLE", _boolean, False, "print records on stderr, for development"
    )
    agent: str = _setting(
        "OTEL_AUDIT_AGENT",
        _choice("thread", "off"),
        "thread",
        "who signs checkpoints and writes the mirror: a thread of ours, or `otel-audit agent` (off)",
    )
    index: bool = _setting(
        "OTEL_AUDIT_INDEX", _boolean, True, "keep index.db, by which queries are fast"
    )
    full_text: bool = _setting(
        "OTEL_AUDIT_FULL_TEXT", _boolean, True, "keep the words of records in the index, too"
    )
    read_token_file: Path | None = _setting(
        "OTEL_AUDIT_READ_TOKEN_FILE",
        _directory,
        None,
        "tokens of those who may query over HTTP (otel-audit token)",
    )
    query_loki: str | None = _setting(
        "OTEL_AUDIT_QUERY_LOKI", address, None, "a Loki to ask instead of this host's trail"
    )
    trusted_proxies: tuple[str, ...] = _setting(
        "OTEL_AUDIT_TRUSTED_PROXIES", _networks, (), "networks whose forwarding header is believed"
    )
    proxy_header: str = _setting(
        "OTEL_AUDIT_PROXY_HEADER",
        _choice(*FORWARDED_HEADERS),
        FORWARDED_HEADERS[0],
        "the header that those proxies write",
    )
    timeout: float = _setting(
        "OTEL_AUDIT_TIMEOUT", _seconds, 10.0, "seconds that a caller waits for a confirmation"
    )
    queue_size: int = _setting(
        "OTEL_AUDIT_QUEUE_SIZE", _count, 65_536, "records that may wait before back-pressure"
    )
    signing_key: str | None = _setting(
        "OTEL_AUDIT_SIGNING_KEY", _text, None, "the signing key itself", secret=True
    )
    signing_key_file: Path | None = _setting(
        "OTEL_AUDIT_SIGNING_KEY_FILE", _directory, None, "the signing key's file"
    )
    loki_enabled: bool = _setting("LOKI_ENABLED", _boolean, False, "ship straight to Loki")
    loki_endpoint: str | None = _setting("LOKI_ENDPOINT", address, None, "Loki's address")
    loki_tenant: str | None = _setting(
        "LOKI_TENANT", _tenant, None, "Loki's tenant; queries ask audit without it"
    )
    exporter: str | None = _setting(
        "OTEL_AUDIT_EXPORTER",
        _choice("otlp", "none"),
        None,
        "ship by OTLP: always (otlp), never (none); else if an endpoint is set",
    )
    destination_names: tuple[str, ...] = _setting(
        "OTEL_AUDIT_DESTINATIONS", names, (), "more destinations, each with variables of its own"
    )
    reconcile_loki: str | None = _setting(
        "OTEL_AUDIT_RECONCILE_LOKI",
        address,
        None,
        "the Loki that the agent compares the trail with",
    )
    reconcile_interval: float = _setting(
        "OTEL_AUDIT_RECONCILE_INTERVAL", _seconds, 3_600.0, "seconds between two comparisons"
    )
    reconcile_repair: bool = _setting(
        "OTEL_AUDIT_RECONCILE_REPAIR", _boolean, False, "send again what Loki does not have"
    )
    disabled: bool = _setting("OTEL_AUDIT_DISABLED", _boolean, False, "record nothing at all")
    destinations: tuple[Destination, ...] = ()
    query_with: Destination | None = None
    reconcile_with: Destination | None = None
    metrics_protocol: str | None = None
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    unknown: tuple[str, ...] = ()
    state_home: Path = field(default=Path(), compare=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, /, **overrides: object) -> Settings:
        """Read the environment; ``overrides`` (attribute names) win over it.

        An empty variable counts as not set (OpenTelemetry's rule). An override
        of None means "not said". Raises `AuditSettingsError`.
        """
        said = {name: value for name, value in overrides.items() if value is not None}
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        known: set[str] = set()
        for spec in fields(cls):
            variable = spec.metadata.get("variable")
            if variable is None:
                continue
            known.add(variable)
            if spec.name in said:
                values[spec.name] = _checked(spec.name, said.pop(spec.name), spec.metadata["parse"])
                origins[spec.name] = "argument"
            elif environ.get(variable, "").strip():
                values[spec.name] = _parsed(variable, environ[variable], spec.metadata["parse"])
                origins[spec.name] = f"environment ({variable})"
            else:
                origins[spec.name] = "default"
        if said:
            message = f"unknown setting {min(said)!r}; known are {', '.join(sorted(origins))}"
            raise AuditSettingsError(message)
        unknown = {name for name in environ if name.startswith(_OURS)} - known
        return cls(
            **values,
            destinations=destinations(environ, values),
            query_with=reading(environ, {"loki_tenant": _QUERIED_TENANT, **values}, "query_loki"),
            reconcile_with=reading(environ, values, "reconcile_loki"),
            metrics_protocol=metrics_protocol(environ),
            origins=origins,
            unknown=tuple(sorted(unknown)),
            state_home=_state_home(environ),
        )

    @classmethod
    def salvage(
        cls, environ: Mapping[str, str] = os.environ, /, **overrides: object
    ) -> tuple[Settings, tuple[AuditSettingsError, ...]]:
        """Read what can be used of the environment, and return what cannot: for diagnosis.

        A variable that cannot be used beside the others counts as not set.
        Raises `AuditSettingsError` for ``overrides`` only.
        """
        try:
            return cls.from_env(environ, **overrides), ()
        except AuditSettingsError as error:
            if error.setting not in environ:
                raise
            rest = {name: value for name, value in environ.items() if name != error.setting}
            settings, others = cls.salvage(rest, **overrides)
            # What is missing only now was there, and is told already.
            missing = f"{error.setting} is not set"
            return settings, (error, *(other for other in others if missing not in str(other)))

    @property
    def trail_directory(self) -> Path:
        """Where the trail is: OTEL_AUDIT_DIR, else LOG_DIR/trail, else the user's state."""
        if self.directory is not None:
            return self.directory
        if self.log_dir is not None:
            return self.log_dir / "trail"
        return self.state_home / "otel-audit" / _folder(self.service_name or "unknown_service")

    @property
    def mirror_file(self) -> Path | None:
        """Where the JSON lines copy goes, or None when there is none.

        Without a word about it there is a mirror exactly when LOG_DIR is set.
        """
        if isinstance(self.mirror, Path):
            return self.mirror
        wanted = self.log_dir is not None if self.mirror is None else self.mirror
        if not wanted:
            return None
        return (self.log_dir or self.trail_directory) / "audit.log"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What of the environment has no effect, or another one than it says; and what to do."""
        return (
            *(
                f"{name} is not a setting of otel-audit; {_remedy_of(name)}"
                for name in self.unknown
            ),
            *(remark for destination in self.destinations for remark in destination.remarks),
        )

    def describe(self) -> list[dict[str, str]]:
        """All settings as rows of name, variable, value, origin and meaning (secrets masked)."""
        rows = []
        for spec in fields(self):
            if "variable" not in spec.metadata:
                continue
            value = getattr(self, spec.name)
            shown = "(set)" if spec.metadata["secret"] and value else _shown(value)
            if spec.metadata["parse"] is address:
                shown = shown_address(shown)
            rows.append(
                {
                    "name": spec.name,
                    "variable": cast("str", spec.metadata["variable"]),
                    "value": shown,
                    "origin": self.origins.get(spec.name, "argument"),
                    "meaning": cast("str", spec.metadata["meaning"]),
                }
            )
        rows += [
            {
                "name": f"destination {destination.name}",
                "variable": destination.variable,
                "value": f"{shown_address(destination.endpoint)} ({destination.protocol})",
                "origin": f"environment ({destination.variable})",
                "meaning": f"where records are shipped to as {destination.name!r}",
            }
            for destination in self.destinations
            if destination.variable.startswith(_EXPORTER)
        ]
        return rows


def _remedy_of(unknown: str) -> str:
    """Say what to do about a variable that is named like a setting of ours, and is none."""
    variables = [str(spec.metadata.get("variable")) for spec in fields(Settings)]
    # Compared without what all of ours begin with, which would make all of them look alike.
    stripped = unknown.removeprefix(_OURS)
    if stripped in variables:
        return f"did you mean {stripped}?"
    known = [name.removeprefix(_OURS) for name in variables if name.startswith(_OURS)]
    close = get_close_matches(stripped, known, n=1)
    return f"did you mean {_OURS}{close[0]}?" if close else "unset it, if nothing else reads it"


def give_defaults(**defaults: str) -> None:
    """Set variables of the environment that are not set, for OpenTelemetry to read.

    Only a distribution does that, and before anything else has started.
    """
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def first_to_say(text: str) -> bool:
    """Whether neither this process nor one that started it has said this; now it counts as said.

    Workers and a supervisor that starts them anew inherit the environment: what is wrong with a
    service is read once, not once a process.
    """
    mark = f"{zlib.crc32(text.encode(errors='replace')):08x}"
    said = os.environ.get(_SAID, "").split()
    if mark in said:
        return False
    os.environ[_SAID] = " ".join([*said, mark])
    return True


def _folder(name: str) -> str:
    """Write a service's name as one folder: not `..`, no path, and no other service's."""
    quoted = quote(name, safe=" ")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _parsed(name: str, value: str, parse: Callable[[str], Any]) -> Any:  # noqa: ANN401 - the setting's own type
    try:
        return parse(value)
    except ValueError as error:
        shown = shown_unusable(value) if parse is address else value
        message = f"{name}={shown!r} cannot be used: {error}; correct it or unset it"
        raise AuditSettingsError(message, setting=name) from None


def _checked(name: str, value: object, parse: Callable[[str], Any]) -> Any:  # noqa: ANN401 - the setting's own type
    """Send an argument through the same parser as its variable, so both obey one rule."""
    if isinstance(value, (bytes, os.PathLike)):
        value = os.fsdecode(value)
    elif parse is _directory and not isinstance(value, str):
        message = (
            f"{name}={value!r} cannot be used: it is of type {type(value).__name__}, and has to be "
            "a path: give a text or a Path"
        )
        raise AuditSettingsError(message)
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return _parsed(name, str(value), parse)


def _state_home(environ: Mapping[str, str]) -> Path:
    """XDG Base Directory Specification: state that persists between restarts."""
    configured = environ.get("XDG_STATE_HOME", "")
    if configured.startswith("/"):
        return Path(configured)
    home = environ.get("HOME")
    return (Path(home) if home else Path.home()) / ".local" / "state"
