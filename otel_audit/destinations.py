"""Where records are shipped to, read from OpenTelemetry's own variables.

`destinations` promises: of each standard variable the one for audit records
wins over the one for logs, and that over the general one; a value that counts
and cannot be used is an `AuditSettingsError` that names its variable. The
variables for logs and the general ones are for other signals, too: they count
only where records are shipped by them, and what OpenTelemetry allows there and
we cannot do is replaced, with a remark. A destination with a name of its own
takes nothing from the variables of another one, so that no token goes to the
wrong place. It reads the mapping that it is given: `settings.py` is the only
one that knows the environment.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from otel_audit.errors import AuditSettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

STANDARD: Final = "otlp"
"""The destination of the standard variables."""
LOKI: Final = "loki"
"""The destination of LOKI_ENDPOINT."""

_NAMES: Final = "OTEL_AUDIT_DESTINATIONS"
_PREFIX: Final = "OTEL_EXPORTER_OTLP_"
_STANDARD: Final = (f"{_PREFIX}AUDIT_", f"{_PREFIX}LOGS_", _PREFIX)
_SHARED: Final = frozenset(_STANDARD[1:])
_INSTEAD: Final = {
    ("PROTOCOL", "http/json"): "http/protobuf",
    ("COMPRESSION", "deflate"): "gzip",
}
"""What OpenTelemetry allows and we cannot do, and what is taken where the variable is shared."""
_LOGS_PATH: Final = "/v1/logs"
_LOKI_PATH: Final = "/otlp/v1/logs"
_LOKI_DEFAULT: Final = "http://localhost:3100"
_HTTP_DEFAULT: Final = "http://localhost:4318"
_GRPC_DEFAULT: Final = "http://localhost:4317"
_TIMEOUT: Final = 10.0
_READING_TIMEOUT: Final = 30.0
"""Loki may have to look through a month before it begins to answer."""
_MOST_SECONDS: Final = 300.0
"""A longer time-out is one in milliseconds: the specification counts in them, Python in seconds."""

_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_RESERVED: Final = frozenset({STANDARD, LOKI, "audit", "logs", "traces", "metrics"})


@dataclass(frozen=True, slots=True)
class Destination:
    """One far end that takes records by OTLP.

    ``endpoint`` is the whole URL for HTTP, and scheme, host and port for
    gRPC. ``timeout`` is in seconds, for one request. Files are read when they
    are used, so that certificates and tokens can be renewed. ``variable`` says
    what set the endpoint, ``remarks`` what was asked for and is not done.
    """

    name: str
    endpoint: str
    variable: str
    protocol: str = "http/protobuf"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    token_file: Path | None = None
    timeout: float = _TIMEOUT
    compression: str = "gzip"
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    proxy: str | None = field(default=None, repr=False)
    remarks: tuple[str, ...] = field(default=(), compare=False)

    @property
    def secure(self) -> bool:
        """Whether it is reached by TLS."""
        return self.endpoint.startswith("https:")


def destinations(environ: Mapping[str, str], said: Mapping[str, Any]) -> tuple[Destination, ...]:
    """Return the destinations that are configured, each name once.

    ``said`` are settings that were read already (exporter, destination_names,
    loki_enabled, loki_endpoint, loki_tenant). Raises `AuditSettingsError`.
    """
    found = []
    standard = _Variables(environ, _STANDARD)
    wanted = said.get("exporter")
    if wanted != "none" and (wanted == "otlp" or standard.find("ENDPOINT") is not None):
        found.append(_standard(standard))
    else:
        # What is for audit records only is judged also where nothing is shipped.
        _Variables(environ, _STANDARD[:1]).options()
    if said.get("loki_enabled"):
        found.append(_loki(environ, said))
    found += [
        _named(name, _Variables(environ, (f"{_PREFIX}AUDIT_{_upper(name)}_",)))
        for name in said.get("destination_names", ())
    ]
    return tuple(_through_proxy(destination, environ) for destination in found)


def reading(
    environ: Mapping[str, str], said: Mapping[str, Any], setting: str
) -> Destination | None:
    """Return the Loki that a setting names, to be asked for what it has; None if it names none.

    ``said`` are that setting and loki_tenant. Raises `AuditSettingsError`.
    """
    options = {"timeout": _READING_TIMEOUT, **_loki_options(environ, said)}
    base = said.get(setting)
    if base is None:
        return None
    variable = f"OTEL_AUDIT_{setting.upper()}"
    return _through_proxy(Destination(LOKI, _loki_address(base), variable, **options), environ)


def metrics_protocol(environ: Mapping[str, str]) -> str | None:
    """Return how metrics are exported by OTLP, or None when no endpoint for them is set."""
    variables = _Variables(environ, (f"{_PREFIX}METRICS_", _PREFIX))
    off = environ.get("OTEL_METRICS_EXPORTER", "").strip().lower() == "none"
    if off or variables.find("ENDPOINT") is None:
        return None
    name = variables.find("PROTOCOL")
    return "grpc" if name is not None and environ[name].strip() == "grpc" else "http/protobuf"


def names(value: str) -> tuple[str, ...]:
    """Parse OTEL_AUDIT_DESTINATIONS. Raises ValueError."""
    found = [part.strip().lower() for part in value.split(",") if part.strip()]
    for name in found:
        if not _NAME.fullmatch(name) or name in _RESERVED:
            message = f"{name!r} cannot be a destination's name; take letters, digits, _ and -"
            raise ValueError(message)
    if len(set(map(_upper, found))) != len(found):
        message = "each destination needs a name of its own"
        raise ValueError(message)
    return tuple(found)


def address(value: str) -> str:
    """Parse an HTTP address without a query: it may have user and password. Raises ValueError."""
    stripped = value.strip()
    split = _split(stripped)
    if split.scheme not in ("http", "https") or not split.hostname or split.query or split.fragment:
        message = "expected an address such as http://localhost:3100"
        raise ValueError(message)
    return stripped.rstrip("/")


def shown_address(value: str) -> str:
    """Return an address without the password that it may have."""
    return without_credentials(value)[0]


def shown_unusable(value: str) -> str:
    """Return what is no address without what stands before an @: it may be a password."""
    return re.sub(r".*@", "...@", value, flags=re.DOTALL)


def without_credentials(value: str) -> tuple[str, str | None]:
    """Return an address without user and password, and the Authorization they make (RFC 7617)."""
    split = urlsplit(value)
    own, at, host = split.netloc.rpartition("@")
    if not at:
        return value, None
    user, _, password = own.partition(":")
    pair = f"{unquote(user)}:{unquote(password)}".encode()
    return urlunsplit(split._replace(netloc=host)), f"Basic {base64.b64encode(pair).decode()}"


class _Variables:
    """Variables of one family; the first prefix that has a value wins."""

    def __init__(self, environ: Mapping[str, str], prefixes: Sequence[str]) -> None:
        self._environ = environ
        self._prefixes = prefixes
        self.remarks: list[str] = []

    def find(self, what: str) -> str | None:
        """Return the name of the variable that counts."""
        for prefix in self._prefixes:
            if self._environ.get(prefix + what, "").strip():
                return prefix + what
        return None

    def options(self) -> dict[str, Any]:
        """Read everything but the endpoint."""
        key = self.find("CLIENT_KEY")
        if key is not None and self.find("CLIENT_CERTIFICATE") is None:
            _refuse(key, self._environ[key], "there is no ..._CLIENT_CERTIFICATE for it")
        said = {
            "protocol": self._read("PROTOCOL", _protocol),
            "headers": self._read("HEADERS", _headers),
            "token_file": self._read("TOKEN_FILE", _file),
            "timeout": self._read("TIMEOUT", _timeout),
            "compression": self._read("COMPRESSION", _compression),
            "certificate": self._read("CERTIFICATE", _file),
            "client_certificate": self._read("CLIENT_CERTIFICATE", _file),
            "client_key": self._read("CLIENT_KEY", _file),
        }
        self._read("ENDPOINT", _endpoint)
        return {name: value for name, value in said.items() if value is not None}

    def endpoint(self, protocol: str) -> tuple[str, str] | None:
        """Return the endpoint, as its protocol needs it, and the variable that set it."""
        variable = self.find("ENDPOINT")
        if variable is None:
            return None
        said = self._environ[variable].strip()
        if protocol == "grpc":
            return self._grpc_target(said), variable
        split = _split(said)
        if split.scheme not in ("http", "https"):
            _refuse(
                variable, shown_unusable(said), "expected an address such as http://localhost:4318"
            )
        path = split.path
        # The general one is a base. A POST to the root of a server means nothing to anybody.
        if variable == f"{_PREFIX}ENDPOINT" or path in ("", "/"):
            path = path.rstrip("/") + _LOGS_PATH
        return urlunsplit(split._replace(path=path)), variable

    def _grpc_target(self, said: str) -> str:
        scheme, found, rest = said.partition("://")
        if not found:
            scheme, rest = "http" if self._insecure() else "https", said
        return f"{scheme.lower()}://{rest.partition('/')[0]}"

    def _insecure(self) -> bool:
        """Read a switch as OpenTelemetry does: what is not true is false, with a remark."""
        said: str = self._read("INSECURE", str.lower) or "false"
        if said not in ("true", "false"):
            variable = self.find("INSECURE")
            self.remarks.append(f"{variable}={said!r} counts as false; write true or false")
        return said == "true"

    def _read(self, what: str, parse: Callable[[str], Any]) -> Any:  # noqa: ANN401 - the setting's own type
        """Parse the variable that counts; refuse it if it is wrong."""
        variable = self.find(what)
        if variable is None:
            return None
        value = self._environ[variable]
        instead = _INSTEAD.get((what, value.strip().lower()))
        if instead is not None and variable.removesuffix(what) in _SHARED:
            self.remarks.append(
                f"{variable}={value!r} cannot be used for audit records, {instead} is; "
                f"set {_STANDARD[0]}{what}={instead} to say so yourself"
            )
            return instead
        try:
            return parse(value.strip())
        except ValueError as error:
            shown = {"HEADERS": "...", "ENDPOINT": shown_unusable(value)}.get(what, value)
            return _refuse(variable, shown, str(error))


def _standard(variables: _Variables) -> Destination:
    options = variables.options()
    protocol = options.get("protocol", "http/protobuf")
    default = _GRPC_DEFAULT if protocol == "grpc" else _HTTP_DEFAULT + _LOGS_PATH
    endpoint, variable = variables.endpoint(protocol) or (default, "OTEL_AUDIT_EXPORTER")
    remarks = tuple(variables.remarks)
    return Destination(STANDARD, endpoint, variable, remarks=remarks, **options)


def _named(name: str, variables: _Variables) -> Destination:
    options = variables.options()
    found = variables.endpoint(options.get("protocol", "http/protobuf"))
    if found is None:
        message = (
            f"{_NAMES}={name!r} cannot be used: "
            f"{_PREFIX}AUDIT_{_upper(name)}_ENDPOINT is not set; set it, or unset both"
        )
        raise AuditSettingsError(message, setting=_NAMES)
    return Destination(name, *found, remarks=tuple(variables.remarks), **options)


def _loki(environ: Mapping[str, str], said: Mapping[str, Any]) -> Destination:
    """Ship straight to Loki's own OTLP endpoint, whichever of its addresses was given."""
    endpoint = _loki_address(said.get("loki_endpoint") or _LOKI_DEFAULT, _LOKI_PATH)
    return Destination(LOKI, endpoint, "LOKI_ENDPOINT", **_loki_options(environ, said))


def _loki_address(base: str, path: str = "") -> str:
    split = _split(base)
    root = split.path.rstrip("/")
    for known in ("/loki/api/v1/push", _LOKI_PATH, "/otlp"):
        root = root.removesuffix(known)
    return urlunsplit(split._replace(path=root + path))


def _loki_options(environ: Mapping[str, str], said: Mapping[str, Any]) -> dict[str, Any]:
    tenant = said.get("loki_tenant")
    headers = (("x-scope-orgid", tenant),) if tenant else ()
    options = _Variables(environ, ("LOKI_",)).options()
    options["headers"] = (*headers, *options.get("headers", ()))
    options["protocol"] = "http/protobuf"  # Loki has no other
    return options


def _through_proxy(destination: Destination, environ: Mapping[str, str]) -> Destination:
    """Find the HTTP proxy by the names that everybody uses; gRPC looks for its own."""
    split = urlsplit(destination.endpoint)
    proxy = _either(environ, f"{split.scheme}_proxy") or _either(environ, "all_proxy")
    if proxy is None or destination.protocol == "grpc":
        return destination
    # Here, because it loads an HTTP client, which is for those who need it.
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # noqa: PLC0415 - see above; it has no stub

    proxies = {"no": _either(environ, "no_proxy") or ""}
    around = proxy_bypass_environment(split.hostname or "", proxies)
    return destination if around else replace(destination, proxy=proxy)


def _either(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(name) or environ.get(name.upper()) or None


def _upper(name: str) -> str:
    return name.upper().replace("-", "_")


def _refuse(variable: str, value: str, why: str) -> NoReturn:
    message = f"{variable}={value!r} cannot be used: {why}; correct it or unset it"
    raise AuditSettingsError(message, setting=variable)


def _split(value: str) -> SplitResult:
    split = urlsplit(value)
    split.port  # noqa: B018 - raises ValueError when it is none
    if any(character.isspace() or not character.isprintable() for character in value):
        message = "an address has no spaces"
        raise ValueError(message)
    return split


def _endpoint(value: str) -> str:
    scheme, found, _ = value.partition("://")
    if found and scheme.lower() not in ("http", "https"):
        message = "expected an address such as http://localhost:4318 (or host:port, for grpc)"
        raise ValueError(message)
    if not _split(value if found else f"//{value}").hostname:
        message = "it names no host"
        raise ValueError(message)
    return value


def _protocol(value: str) -> str:
    if value not in ("http/protobuf", "grpc"):
        message = "expected http/protobuf or grpc"
        raise ValueError(message)
    return value


def _compression(value: str) -> str:
    lowered = value.lower()
    if lowered not in ("gzip", "none"):
        message = "expected gzip or none"
        raise ValueError(message)
    return lowered


def _timeout(value: str) -> float:
    number = float(value)
    if number > _MOST_SECONDS:
        number /= 1_000
    if not 0 < number <= _MOST_SECONDS:
        message = "expected seconds (up to 300) or milliseconds (more than 300)"
        raise ValueError(message)
    return number


def _file(value: str) -> Path:
    return Path(value).expanduser()


def _headers(value: str) -> tuple[tuple[str, str], ...]:
    return tuple(_header_pairs(value))


def _header_pairs(value: str) -> Iterator[tuple[str, str]]:
    """Read W3C Baggage's format, as OTEL_EXPORTER_OTLP_HEADERS has it: key=value,key=value."""
    for pair in value.split(","):
        if not pair.strip():
            continue
        name, found, text = pair.partition("=")
        name, text = unquote(name.strip()).lower(), unquote(text.strip())
        if not found or not _HEADER.fullmatch(name) or not (text.isascii() and text.isprintable()):
            message = "expected name=value,name=value with printable ASCII characters"
            raise ValueError(message)
        yield name, text
