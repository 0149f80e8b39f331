"""Destinations: the standard variables, their order, and what cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_audit.destinations import Destination, shown_address
from otel_audit.errors import AuditSettingsError
from otel_audit.settings import Settings

GENERAL = "OTEL_EXPORTER_OTLP_"
LOGS = "OTEL_EXPORTER_OTLP_LOGS_"
AUDIT = "OTEL_EXPORTER_OTLP_AUDIT_"


def found(**environ: str) -> tuple[Destination, ...]:
    return Settings.from_env(environ).destinations


def only(**environ: str) -> Destination:
    [destination] = found(**environ)
    return destination


def test_nothing_is_shipped_unless_somebody_says_where() -> None:
    assert found() == ()
    assert found(OTEL_EXPORTER_OTLP_HEADERS="a=b", LOKI_ENDPOINT="http://loki:3100") == ()


def test_the_general_endpoint_is_a_base() -> None:
    destination = only(OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4318/base/")
    assert destination.name == "otlp"
    assert destination.endpoint == "http://collector:4318/base/v1/logs"
    assert destination.variable == "OTEL_EXPORTER_OTLP_ENDPOINT"
    assert (destination.protocol, destination.compression, destination.timeout) == (
        "http/protobuf",
        "gzip",
        10.0,
    )
    assert not destination.secure


@pytest.mark.parametrize(
    ("said", "endpoint"),
    [
        ("https://c:4328/v1/logs", "https://c:4328/v1/logs"),
        ("https://c:4328/custom", "https://c:4328/custom"),
        ("https://c:4328", "https://c:4328/v1/logs"),
        ("https://c:4328/", "https://c:4328/v1/logs"),
    ],
)
def test_a_specific_endpoint_is_taken_as_it_is_if_it_has_a_path(said: str, endpoint: str) -> None:
    assert only(**{f"{AUDIT}ENDPOINT": said}).endpoint == endpoint
    assert only(**{f"{LOGS}ENDPOINT": said}).endpoint == endpoint


@pytest.mark.parametrize(
    ("what", "values", "attribute", "expected"),
    [
        ("ENDPOINT", ("http://a/x", "http://l/x", "http://g"), "endpoint", "http://a/x"),
        ("HEADERS", ("a=1", "l=1", "g=1"), "headers", (("a", "1"),)),
        ("TIMEOUT", ("1", "2", "3"), "timeout", 1.0),
        ("COMPRESSION", ("none", "gzip", "gzip"), "compression", "none"),
        ("CERTIFICATE", ("/a", "/l", "/g"), "certificate", Path("/a")),
        ("TOKEN_FILE", ("/a", "/l", "/g"), "token_file", Path("/a")),
    ],
)
def test_audit_wins_over_logs_and_logs_over_the_general_one(
    what: str, values: tuple[str, str, str], attribute: str, expected: object
) -> None:
    environ = {f"{GENERAL}ENDPOINT": "http://collector:4318"}
    for prefix, value in zip((AUDIT, LOGS, GENERAL), values, strict=True):
        environ[prefix + what] = value
    assert getattr(only(**environ), attribute) == expected
    del environ[AUDIT + what]
    assert getattr(only(**environ), attribute) != expected or what == "COMPRESSION"
    environ[LOGS + what] = " "
    general = getattr(only(**environ), attribute)
    assert str(values[2]).partition("=")[0] in str(general)


def test_grpc_takes_scheme_host_and_port() -> None:
    def grpc(endpoint: str, **more: str) -> Destination:
        return only(
            OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **more
        )

    assert grpc("http://c:4317/ignored").endpoint == "http://c:4317"
    assert grpc("https://c:4317").secure
    assert grpc("c:4317").secure
    assert not grpc("c:4317", OTEL_EXPORTER_OTLP_INSECURE="true").secure
    assert only(OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_AUDIT_EXPORTER="otlp").endpoint == (
        "http://localhost:4317"
    )


def test_shipping_can_be_asked_for_and_switched_off() -> None:
    assert only(OTEL_AUDIT_EXPORTER="otlp").endpoint == "http://localhost:4318/v1/logs"
    assert found(OTEL_AUDIT_EXPORTER="none", OTEL_EXPORTER_OTLP_ENDPOINT="http://c:4318") == ()


@pytest.mark.parametrize(
    "said",
    [
        "http://loki:3100",
        "http://loki:3100/",
        "http://loki:3100/otlp",
        "http://loki:3100/otlp/v1/logs",
        "http://loki:3100/loki/api/v1/push",
    ],
)
def test_loki_is_found_by_any_of_its_addresses(said: str) -> None:
    destination = only(LOKI_ENABLED="true", LOKI_ENDPOINT=said, LOKI_TENANT="audit")
    assert destination.name == "loki"
    assert destination.endpoint == "http://loki:3100/otlp/v1/logs"
    assert destination.headers == (("x-scope-orgid", "audit"),)
    asked = Settings.from_env({"LOKI_TENANT": "audit"}, reconcile_loki=said, query_loki=said)
    for reading in (asked.reconcile_with, asked.query_with):
        assert reading is not None
        assert reading.endpoint == "http://loki:3100"
        assert reading.headers == destination.headers


def test_queries_ask_the_tenant_of_what_is_shipped_or_the_bundled_lokis() -> None:
    def tenants(**environ: str) -> list[object]:
        url = "http://loki:3100"
        settings = Settings.from_env(environ, query_loki=url, reconcile_loki=url)
        asked = (settings.query_with, settings.reconcile_with)
        return [each and dict(each.headers).get("x-scope-orgid") for each in asked]

    assert tenants(LOKI_TENANT="one") == ["one", "one"]
    assert tenants(LOKI_TENANT="one", LOKI_HEADERS="X-Scope-OrgID=two") == ["two", "two"]
    assert tenants() == ["audit", None]


def test_loki_has_more_time_to_answer_than_to_take() -> None:
    url = "http://loki:3100"
    for environ, seconds in (({}, 30.0), ({"LOKI_TIMEOUT": "7"}, 7.0)):
        asked = Settings.from_env(environ, query_loki=url).query_with
        assert asked is not None
        assert asked.timeout == seconds


def test_loki_on_this_host_is_the_default() -> None:
    assert only(LOKI_ENABLED="yes").endpoint == "http://localhost:3100/otlp/v1/logs"


def test_a_destination_with_a_name_takes_nothing_from_another_one() -> None:
    standard, loki, siem, other = found(
        OTEL_AUDIT_DESTINATIONS="siem, other-one",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4318",
        OTEL_EXPORTER_OTLP_HEADERS="authorization=secret",
        OTEL_EXPORTER_OTLP_AUDIT_SIEM_ENDPOINT="https://siem:4318",
        OTEL_EXPORTER_OTLP_AUDIT_OTHER_ONE_ENDPOINT="other:4317",
        OTEL_EXPORTER_OTLP_AUDIT_OTHER_ONE_PROTOCOL="grpc",
        LOKI_ENABLED="true",
    )
    assert [each.name for each in (standard, loki, siem, other)] == [
        "otlp",
        "loki",
        "siem",
        "other-one",
    ]
    assert standard.headers == (("authorization", "secret"),)
    assert siem.endpoint == "https://siem:4318/v1/logs"
    assert other.endpoint == "https://other:4317"
    assert loki.headers == siem.headers == other.headers == ()


@pytest.mark.parametrize(
    ("said", "seconds"), [("0.5", 0.5), ("10", 10.0), ("10000", 10.0), ("500", 0.5)]
)
def test_a_time_out_is_in_seconds_or_if_it_is_long_in_milliseconds(
    said: str, seconds: float
) -> None:
    assert only(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://c", OTEL_EXPORTER_OTLP_TIMEOUT=said
    ).timeout == (seconds)


def test_headers_are_percent_decoded() -> None:
    destination = only(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://c",
        OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20a%2Cb, x-tenant = t=1,",
    )
    assert destination.headers == (("authorization", "Bearer a,b"), ("x-tenant", "t=1"))
    assert "Bearer" not in repr(destination)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://c"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:port"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c d"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http"),
        ("OTEL_EXPORTER_OTLP_AUDIT_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_AUDIT_COMPRESSION", "deflate"),
        ("LOKI_COMPRESSION", "deflate"),
        ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "nan"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key"),
        ("OTEL_AUDIT_DESTINATIONS", "siem"),
        ("OTEL_AUDIT_DESTINATIONS", "logs"),
        ("OTEL_AUDIT_DESTINATIONS", "a,a"),
        ("OTEL_AUDIT_DESTINATIONS", "a b"),
        ("OTEL_AUDIT_EXPORTER", "console"),
        ("LOKI_ENDPOINT", "loki:3100"),
        ("LOKI_ENDPOINT", "http://loki:3100/?a=b"),
        ("LOKI_TENANT", "a\r\nb"),
        ("OTEL_AUDIT_RECONCILE_LOKI", "here"),
        ("OTEL_AUDIT_QUERY_LOKI", "not an address"),
        ("OTEL_AUDIT_QUERY_LOKI", "file:///etc/passwd"),
        ("OTEL_AUDIT_QUERY_LOKI", "http://"),
        ("OTEL_AUDIT_QUERY_LOKI", "http://[loki"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(AuditSettingsError) as caught:
        Settings.from_env({variable: value, "OTEL_AUDIT_EXPORTER": "otlp"} | {variable: value})
    assert str(caught.value).startswith(f"{variable}={value!r} cannot be used: ")


@pytest.mark.parametrize("prefix", [LOGS, GENERAL])
@pytest.mark.parametrize(
    ("what", "value", "attribute", "taken"),
    [
        ("PROTOCOL", "http/json", "protocol", "http/protobuf"),
        ("COMPRESSION", "Deflate", "compression", "gzip"),
    ],
)
def test_what_others_can_do_with_a_shared_variable_is_replaced_and_told(
    prefix: str, what: str, value: str, attribute: str, taken: str
) -> None:
    environ = {f"{AUDIT}ENDPOINT": "http://c", prefix + what: value}
    destination = only(**environ)
    assert getattr(destination, attribute) == taken
    remark = (
        f"{prefix + what}={value!r} cannot be used for audit records, {taken} is; "
        f"set {AUDIT}{what}={taken} to say so yourself"
    )
    assert Settings.from_env(environ).remarks == destination.remarks == (remark,)
    assert only(**environ, **{AUDIT + what: taken}).remarks == ()


def test_a_shared_variable_that_does_not_count_is_not_judged() -> None:
    wrong = {
        "PROTOCOL": "carrier/pigeon",
        "COMPRESSION": "zstd",
        "TIMEOUT": "soon",
        "HEADERS": "secret",
        "CLIENT_KEY": "/key",
    }
    shared = {GENERAL + what: value for what, value in wrong.items()}
    assert found(**shared, **{f"{GENERAL}TRACES_ENDPOINT": "http://c"}) == ()
    assert found(**shared, **{f"{GENERAL}ENDPOINT": "c:1", "OTEL_AUDIT_EXPORTER": "none"}) == ()
    assert found(**shared, LOKI_ENABLED="true")[0].name == "loki"
    said = {"PROTOCOL": "grpc", "COMPRESSION": "gzip", "TIMEOUT": "3", "HEADERS": "a=b"}
    ours = {f"{AUDIT}{what}": value for what, value in said.items()}
    files = {f"{AUDIT}CLIENT_CERTIFICATE": "/crt"}
    assert only(**shared, **ours, **files, **{f"{AUDIT}ENDPOINT": "c:1"}).remarks == ()
    with pytest.raises(AuditSettingsError, match=f"^{AUDIT}TIMEOUT='soon' cannot be used"):
        found(**{f"{AUDIT}TIMEOUT": "soon"})


@pytest.mark.parametrize(
    ("said", "scheme"), [("true", "http"), ("True", "http"), ("false", "https"), ("1", "https")]
)
def test_insecure_is_read_as_opentelemetry_does(said: str, scheme: str) -> None:
    destination = only(
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_ENDPOINT="c:4317",
        OTEL_EXPORTER_OTLP_INSECURE=said,
    )
    assert destination.endpoint == f"{scheme}://c:4317"
    odd = ("OTEL_EXPORTER_OTLP_INSECURE='1' counts as false; write true or false",)
    assert destination.remarks == (odd if said == "1" else ())


@pytest.mark.parametrize("value", ["secret", "a=b\r\nc", "=b", "a b=c", "a=\x00"])
def test_headers_that_cannot_be_used_are_not_quoted(value: str) -> None:
    with pytest.raises(AuditSettingsError) as caught:
        Settings.from_env({f"{AUDIT}HEADERS": value})
    assert str(caught.value).startswith(f"{AUDIT}HEADERS='...' cannot be used")


@pytest.mark.parametrize(
    "variable",
    ["OTEL_AUDIT_QUERY_LOKI", "OTEL_AUDIT_RECONCILE_LOKI", "OTEL_EXPORTER_OTLP_ENDPOINT"],
)
@pytest.mark.parametrize(
    "value",
    ["ftp://user:secret@c", "user:secret@c", "http://user:sec/secret@c", "http://a:secret@"],
)
def test_an_address_that_cannot_be_used_is_told_without_its_password(
    variable: str, value: str
) -> None:
    with pytest.raises(AuditSettingsError) as caught:
        Settings.from_env({variable: value})
    assert str(caught.value).startswith(f"{variable}='...@")
    assert "secret" not in str(caught.value)


def test_diagnosis_judges_variables_beside_the_others() -> None:
    """A name needs its endpoint, and a key its certificate."""
    environ = {
        "OTEL_AUDIT_DESTINATIONS": "one,two",
        "OTEL_EXPORTER_OTLP_AUDIT_ONE_ENDPOINT": "http://one",
        "OTEL_EXPORTER_OTLP_AUDIT_TWO_ENDPOINT": "two:4317",
        "OTEL_EXPORTER_OTLP_AUDIT_TWO_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT": "https://c",
        "OTEL_EXPORTER_OTLP_AUDIT_CLIENT_CERTIFICATE": "/crt",
        "OTEL_EXPORTER_OTLP_AUDIT_CLIENT_KEY": "/key",
    }
    assert Settings.salvage(environ) == (Settings.from_env(environ), ())
    settings, [error] = Settings.salvage({**environ, "OTEL_AUDIT_TIMEOUT": "x"})
    assert error.setting == "OTEL_AUDIT_TIMEOUT"
    assert settings == Settings.from_env(environ)
    settings, [error] = Settings.salvage({**environ, "LOKI_ENDPOINT": "x"}, timeout=3)
    assert (error.setting, settings.timeout) == ("LOKI_ENDPOINT", 3)
    with pytest.raises(AuditSettingsError, match="timeout='x' cannot be used"):
        Settings.salvage(environ, timeout="x")


def test_diagnosis_goes_on_when_destinations_do_not_fit_together() -> None:
    settings, errors = Settings.salvage(
        {
            "OTEL_AUDIT_DESTINATIONS": "siem",
            "OTEL_AUDIT_TIMEOUT": "3",
            "OTEL_EXPORTER_OTLP_AUDIT_TIMEOUT": "x",
        }
    )
    assert settings.timeout == 3
    assert settings.destinations == ()
    assert sorted(str(error).partition("=")[0] for error in errors) == [
        "OTEL_AUDIT_DESTINATIONS",
        "OTEL_EXPORTER_OTLP_AUDIT_TIMEOUT",
    ]
    settings, errors = Settings.salvage(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
    )
    assert settings.destinations == ()
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("variables", "unusable"),
    [
        ({"ENDPOINT": "ftp://siem"}, "ENDPOINT"),
        ({"ENDPOINT": "siem:4317"}, "ENDPOINT"),
        ({"ENDPOINT": "https://siem", "TIMEOUT": "x"}, "TIMEOUT"),
        ({"TIMEOUT": "3"}, None),
    ],
)
def test_diagnosis_tells_once_what_is_wrong_with_a_destination(
    variables: dict[str, str], unusable: str | None
) -> None:
    own = "OTEL_EXPORTER_OTLP_AUDIT_SIEM_"
    environ = {own + what: value for what, value in variables.items()}
    _, [error] = Settings.salvage({"OTEL_AUDIT_DESTINATIONS": "siem", **environ})
    assert error.setting == ("OTEL_AUDIT_DESTINATIONS" if unusable is None else own + unusable)


def test_proxies_are_found_as_everywhere() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://c.example:4318",
        "HTTPS_PROXY": "http://p:3128",
    }
    assert only(**environ).proxy == "http://p:3128"
    assert only(**environ, NO_PROXY="localhost, .example").proxy is None
    assert only(**environ, no_proxy="*").proxy is None
    assert only(**environ, https_proxy="http://q:3128").proxy == "http://q:3128"
    assert only(**environ, OTEL_EXPORTER_OTLP_PROTOCOL="grpc").proxy is None
    assert only(OTEL_EXPORTER_OTLP_ENDPOINT="http://c", ALL_PROXY="http://p").proxy == "http://p"


def test_where_metrics_go_is_told_by_their_own_variables() -> None:
    def protocol(**environ: str) -> str | None:
        return Settings.from_env(environ).metrics_protocol

    assert protocol() is None
    assert protocol(OTEL_EXPORTER_OTLP_ENDPOINT="http://c") == "http/protobuf"
    assert protocol(OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="http://c") == "http/protobuf"
    assert (
        protocol(OTEL_EXPORTER_OTLP_ENDPOINT="http://c", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
        == "grpc"
    )
    assert protocol(OTEL_EXPORTER_OTLP_ENDPOINT="http://c", OTEL_METRICS_EXPORTER="none") is None


def test_doctor_shows_destinations_but_no_password() -> None:
    settings = Settings.from_env(
        {
            "OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT": "https://user:secret@c:4318",
            "LOKI_ENABLED": "true",
            "LOKI_ENDPOINT": "https://user:secret@loki",
            "OTEL_AUDIT_RECONCILE_LOKI": "https://user:secret@loki",
            "OTEL_AUDIT_QUERY_LOKI": "http://user:secret@loki:3100",
        }
    )
    rows = {row["variable"]: row["value"] for row in settings.describe()}
    assert rows["OTEL_EXPORTER_OTLP_AUDIT_ENDPOINT"] == "https://c:4318/v1/logs (http/protobuf)"
    assert rows["LOKI_ENDPOINT"] == "https://loki"
    assert rows["OTEL_AUDIT_QUERY_LOKI"] == "http://loki:3100"
    assert "secret" not in str(rows)
    assert shown_address("http://a/b") == "http://a/b"
