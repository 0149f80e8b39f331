"""What every test gets: an environment and a context of its own, and no provider left over."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from coverage import Coverage
from hypothesis import settings
from opentelemetry.context import Context, attach, detach

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Everything that settings.py or OpenTelemetry would read, wherever the developer set it.
_PREFIXES = ("OTEL_", "LOKI_", "AUDIT_", "LOG_DIR", "XDG_")


# How long an example takes says something about the machine only.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Let the programs that tests start end by Ctrl-C, also when this run cannot.

    A shell script that starts the run in the background has it ignore SIGINT, and every program
    that it starts inherits that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def measures_programs() -> bool:
    """Say whether the coverage of the programs that a test starts counts.

    Measuring makes their start take twice as long. So it is where nothing else reaches some code:
    the conftest.py of such tests says so.
    """
    return False


@pytest.fixture(autouse=True)
def isolated(
    tmp_path_factory: pytest.TempPathFactory,
    measures_programs: bool,  # noqa: FBT001 - a fixture
) -> Iterator[Path]:
    """Hide the developer's environment, and forget the global provider afterwards.

    Gives the directory that stands in for the home directory. Whoever needs it asks for
    ``isolated``; that it is `autouse` for all others is what keeps tests apart.
    """
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_PREFIXES)]:
            patch.delenv(name)
        if not measures_programs:
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        # Said in one test is not said in the next one.
        patch.setenv("_OTEL_AUDIT_SAID", "")
        # Outside a request set_actor() stays in force, which is right for a program and not here.
        token = attach(Context())
        try:
            yield home
        finally:
            detach(token)
            _reset_global_provider()


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """Stop measuring coverage during a test: for one of two reasons.

    Its signal handlers raise or emit at any point: coverage's tracer calls Python code that takes a
    lock, and a handler that strikes there leaves it locked for ever, or waits for it. Or it is about
    an amount or a time, of which measuring makes three, and reaches nothing that others do not.
    """
    measuring = Coverage.current()
    if measuring is None:
        yield
        return
    measuring.stop()
    try:
        yield
    finally:
        measuring.start()


def _reset_global_provider() -> None:
    """Close the provider that a test configured; without one there is nothing to load."""
    if "otel_audit.api.provider" in sys.modules:
        from otel_audit.api import current

        current.reset()
