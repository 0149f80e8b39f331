"""Settings: each is read from its variable, obeys one rule, and is refused by name."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.errors import AuditSettingsError
from otel_audit.settings import Settings

VARIABLES = {
    spec.metadata["variable"]: spec.name for spec in fields(Settings) if "variable" in spec.metadata
}


def read(variable: str, value: str) -> Any:
    return getattr(Settings.from_env({variable: value}), VARIABLES[variable])


def test_nothing_set_gives_defaults_that_say_so() -> None:
    settings = Settings.from_env({})
    assert set(settings.origins.values()) == {"default"}
    assert settings.on_failure == "fail"
    assert settings.timeout == 10.0
    assert settings.disabled is False


@pytest.mark.parametrize(
    ("variable", "value", "parsed"),
    [
        ("OTEL_SERVICE_NAME", " shop ", "shop"),
        ("OTEL_AUDIT_ON_FAILURE", "Continue", "continue"),
        ("OTEL_AUDIT_HTTP_ACTIVITY", "mutating", "mutating"),
        ("OTEL_AUDIT_HTTP_ACTIVITY", "On", "all"),
        ("OTEL_AUDIT_AGENT", "off", "off"),
        ("OTEL_AUDIT_POLICY_FILE", "/etc/app/policy.yaml", Path("/etc/app/policy.yaml")),
        ("OTEL_AUDIT_RULE_SETS", " sql, logins,,", ("sql", "logins")),
        ("OTEL_AUDIT_DISABLED_INSTRUMENTATIONS", "flask", ("flask",)),
        ("OTEL_AUDIT_CONSOLE", "1", True),
        ("OTEL_AUDIT_TIMEOUT", "0.5", 0.5),
        ("OTEL_AUDIT_TIMEOUT", "86400", 86_400.0),
        ("OTEL_AUDIT_QUEUE_SIZE", "1", 1),
        ("OTEL_AUDIT_MIRROR_BACKUPS", "30", 30),
        ("OTEL_AUDIT_MIRROR_MAX_BYTES", "0", 0),
        ("OTEL_AUDIT_MIRROR_MAX_BYTES", "104857600", 104_857_600),
        ("OTEL_AUDIT_MIRROR_MAX_BYTES", "100MB", 104_857_600),
        ("OTEL_AUDIT_MIRROR_MAX_BYTES", "100 MiB", 104_857_600),
        ("OTEL_AUDIT_MIRROR_MAX_BYTES", "5k", 5_120),
        ("OTEL_AUDIT_MIRROR_MAX_BYTES", "2g", 2 * 1024**3),
        ("OTEL_AUDIT_TRUSTED_PROXIES", "10.0.0.0/8, ::1", ("10.0.0.0/8", "::1/128")),
        ("OTEL_AUDIT_TRUSTED_PROXIES", "10.1.2.3/8", ("10.0.0.0/8",)),
        ("OTEL_AUDIT_TRUSTED_PROXIES", "unix,10.0.0.0/8", ("unix", "10.0.0.0/8")),
        ("OTEL_AUDIT_PROXY_HEADER", "Forwarded", "forwarded"),
        ("AUDIT_LOG_LOCAL_FILE", "true", True),
        ("AUDIT_LOG_LOCAL_FILE", "off", False),
        ("AUDIT_LOG_LOCAL_FILE", "/var/log/a.jsonl", Path("/var/log/a.jsonl")),
        ("LOKI_ENABLED", "yes", True),
        ("LOKI_ENABLED", "0", False),
        ("OTEL_AUDIT_DISABLED", "TRUE", True),
        ("OTEL_AUDIT_DIR", "/srv/trail/../other", Path("/srv/other")),
    ],
)
def test_a_variable_is_parsed(variable: str, value: str, parsed: object) -> None:
    found = read(variable, value)
    assert found == parsed
    assert type(found) is type(parsed) or isinstance(parsed, Path)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_AUDIT_ON_FAILURE", "ignore"),
        ("OTEL_AUDIT_HTTP_ACTIVITY", "some"),
        ("OTEL_AUDIT_AGENT", "process"),
        ("OTEL_AUDIT_TIMEOUT", "0"),
        ("OTEL_AUDIT_TIMEOUT", "-1"),
        ("OTEL_AUDIT_TIMEOUT", "86401"),
        ("OTEL_AUDIT_TIMEOUT", "nan"),
        ("OTEL_AUDIT_TIMEOUT", "inf"),
        ("OTEL_AUDIT_TIMEOUT", "soon"),
        ("OTEL_AUDIT_QUEUE_SIZE", "0"),
        ("OTEL_AUDIT_QUEUE_SIZE", "1.5"),
        ("OTEL_AUDIT_MIRROR_BACKUPS", "-3"),
        ("OTEL_AUDIT_MIRROR_MAX_BYTES", "-1"),
        ("OTEL_AUDIT_MIRROR_MAX_BYTES", "much"),
        ("OTEL_AUDIT_MIRROR_MAX_BYTES", "1.5GB"),
        ("OTEL_AUDIT_TRUSTED_PROXIES", "10.0.0.0/8,proxy.example"),
        ("OTEL_AUDIT_PROXY_HEADER", "via"),
        ("OTEL_AUDIT_DISABLED", "perhaps"),
        ("LOKI_ENABLED", "2"),
        ("LOG_DIR", "$NOT_SET_ANYWHERE/logs"),
        ("OTEL_AUDIT_DIR", "${NOT_SET_ANYWHERE}"),
        ("LOG_DIR", "\0"),
        ("OTEL_AUDIT_DIR", "/srv/\udcff"),
        ("AUDIT_LOG_LOCAL_FILE", "/srv/\udcff"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_value_and_remedy(variable: str, value: str) -> None:
    with pytest.raises(AuditSettingsError) as caught:
        read(variable, value)
    message = str(caught.value)
    assert message.startswith(f"{variable}={value!r} cannot be used: ")
    assert message.endswith("; correct it or unset it")


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_counts_as_not_set(variable: str, empty: str) -> None:
    settings = Settings.from_env({variable: empty})
    assert settings == Settings.from_env({})
    assert settings.origins[VARIABLES[variable]] == "default"


@pytest.mark.parametrize("variable", VARIABLES)
@given(value=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
def test_any_text_is_used_or_refused_with_the_variables_name(variable: str, value: str) -> None:
    refused = ""
    try:
        Settings.from_env({variable: value})
    except AuditSettingsError as error:
        refused = str(error)
    assert not refused or refused.startswith(variable)


def test_directories_expand_variables_and_home(
    isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE", "/srv/base")
    assert read("LOG_DIR", "${BASE}/logs") == Path("/srv/base/logs")
    assert read("OTEL_AUDIT_DIR", "~/trail") == isolated / "trail"


def test_a_relative_directory_is_of_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_env({"LOG_DIR": "logs"})
    monkeypatch.chdir("/")
    assert settings.log_dir == tmp_path / "logs"


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    settings = Settings.from_env()
    assert settings.service_name == "shop"
    assert settings.origins["service_name"] == "environment (OTEL_SERVICE_NAME)"


def test_an_argument_wins_over_the_environment() -> None:
    settings = Settings.from_env({"OTEL_AUDIT_TIMEOUT": "3"}, timeout=1.5)
    assert settings.timeout == 1.5
    assert settings.origins["timeout"] == "argument"


def test_an_argument_of_none_is_not_said() -> None:
    settings = Settings.from_env({"OTEL_AUDIT_TIMEOUT": "3"}, timeout=None)
    assert settings.timeout == 3.0


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("directory", Path("/srv/trail"), Path("/srv/trail")),
        ("directory", b"/srv/trail", Path("/srv/trail")),
        ("service_name", b"shop", "shop"),
        ("mirror", True, True),
        ("mirror", False, False),
        ("mirror", Path("/srv/a.jsonl"), Path("/srv/a.jsonl")),
        ("trusted_proxies", ["10.0.0.0/8", "192.168.0.1"], ("10.0.0.0/8", "192.168.0.1/32")),
        ("trusted_proxies", (), ()),
        ("queue_size", 10, 10),
        ("disabled", True, True),
    ],
)
def test_an_argument_obeys_the_rule_of_its_variable(name: str, value: object, kept: object) -> None:
    assert getattr(Settings.from_env({}, **{name: value}), name) == kept


def test_a_bad_argument_is_refused_by_its_name() -> None:
    with pytest.raises(AuditSettingsError, match=r"^queue_size='0' cannot be used: "):
        Settings.from_env({}, queue_size=0)


@pytest.mark.parametrize("value", [True, 5, ["/srv"], {"srv"}], ids=type)
def test_what_is_no_path_makes_no_directory_of_that_name(value: object) -> None:
    with pytest.raises(AuditSettingsError, match=r"^log_dir=.* has to be a path: give a text"):
        Settings.from_env({}, log_dir=value)


def test_an_unknown_argument_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(
        AuditSettingsError, match=r"unknown setting 'time_out'; known are .*timeout"
    ):
        Settings.from_env({}, time_out=3, agent="off", directory=None)


def test_unknown_variables_of_ours_are_kept_for_doctor() -> None:
    settings = Settings.from_env({"OTEL_AUDIT_TYPO": "1", "OTEL_AUDIT_A": "", "PATH": "/bin"})
    assert settings.unknown == ("OTEL_AUDIT_A", "OTEL_AUDIT_TYPO")


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = Settings.from_env({})
    with pytest.raises(FrozenInstanceError):
        settings.timeout = 1.0  # type: ignore[misc]


# Where the trail and the mirror are

HOME = {"HOME": "/home/ada"}
LOGS = {"LOG_DIR": "/var/log/shop"}


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        (HOME, "/home/ada/.local/state/otel-audit/unknown_service"),
        (HOME | {"OTEL_SERVICE_NAME": "shop"}, "/home/ada/.local/state/otel-audit/shop"),
        (HOME | {"XDG_STATE_HOME": "/state"}, "/state/otel-audit/unknown_service"),
        (
            HOME | {"XDG_STATE_HOME": "relative is invalid"},
            "/home/ada/.local/state/otel-audit/unknown_service",
        ),
        (HOME | LOGS, "/var/log/shop/trail"),
        (HOME | LOGS | {"OTEL_AUDIT_DIR": "/srv/trail"}, "/srv/trail"),
    ],
)
def test_the_trails_directory(environ: dict[str, str], directory: str) -> None:
    assert Settings.from_env(environ).trail_directory == Path(directory)


@pytest.mark.parametrize(
    "name", ["/etc", "../../x", "..", ".", "a/b", ".hidden", "a\\b", "%2F", "é"]
)
def test_a_services_name_stays_one_folder_of_its_own(name: str) -> None:
    directory = Settings.from_env(HOME | {"OTEL_SERVICE_NAME": name}).trail_directory
    assert directory.parent == Path("/home/ada/.local/state/otel-audit")
    assert directory.name not in ("", ".", "..")


def test_two_services_never_share_a_folder() -> None:
    names = ["a/b", "a_b", "a%2Fb", "a b", ".a", "a", "%2Ea"]
    folders = {
        Settings.from_env(HOME | {"OTEL_SERVICE_NAME": name}).trail_directory for name in names
    }
    assert len(folders) == len(names)


def test_without_home_the_users_own_is_asked_for(isolated: Path) -> None:
    directory = Settings.from_env({}).trail_directory
    assert directory == isolated / ".local/state/otel-audit/unknown_service"


@pytest.mark.parametrize(
    ("environ", "mirror"),
    [
        (HOME, None),
        (LOGS, "/var/log/shop/audit.log"),
        (LOGS | {"AUDIT_LOG_LOCAL_FILE": "false"}, None),
        (LOGS | {"AUDIT_LOG_LOCAL_FILE": "/srv/a.jsonl"}, "/srv/a.jsonl"),
        ({"AUDIT_LOG_LOCAL_FILE": "true", "OTEL_AUDIT_DIR": "/srv/trail"}, "/srv/trail/audit.log"),
        (LOGS | {"OTEL_AUDIT_DIR": "/srv/trail"}, "/var/log/shop/audit.log"),
    ],
)
def test_the_mirrors_file(environ: dict[str, str], mirror: str | None) -> None:
    assert Settings.from_env(environ).mirror_file == (Path(mirror) if mirror else None)


# What doctor shows


def test_every_setting_is_described_with_value_origin_and_meaning() -> None:
    rows = Settings.from_env({"OTEL_SERVICE_NAME": "shop"}).describe()
    assert {row["variable"] for row in rows} == set(VARIABLES)
    assert all(row["meaning"] for row in rows)
    (service,) = (row for row in rows if row["name"] == "service_name")
    assert service["value"] == "shop"
    assert service["origin"] == "environment (OTEL_SERVICE_NAME)"


def test_values_are_shown_as_they_would_be_written() -> None:
    rows = Settings.from_env({}, trusted_proxies=["10.0.0.0/8", "::1"]).describe()
    shown = {row["name"]: row["value"] for row in rows}
    assert shown["trusted_proxies"] == "10.0.0.0/8, ::1/128"
    assert shown["directory"] == ""
    assert shown["disabled"] == "False"


def test_a_key_is_never_shown() -> None:
    key = "PRIVATE+KEY+made-up+0123+AAAA"
    rows = Settings.from_env({"OTEL_AUDIT_SIGNING_KEY": key}).describe()
    assert key not in str(rows)
    (row,) = (row for row in rows if row["name"] == "signing_key")
    assert row["value"] == "(set)"


def test_a_key_is_not_in_the_settings_repr() -> None:
    key = "PRIVATE+KEY+made-up+0123+AAAA"
    assert key not in repr(Settings.from_env({"OTEL_AUDIT_SIGNING_KEY": key}))
