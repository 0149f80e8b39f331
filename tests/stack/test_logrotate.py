"""Debian's logrotate rotates the mirror, with the configuration that we ship."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_audit.instrumentation.structlog import APP_LOG
from otel_audit.readers.cursors import Cursors
from otel_audit.readers.mirror import cursor_name
from otel_audit.trail.reader import TrailReader
from tests.readers.bench import Bench, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

SHIPPED = Path(__file__).parents[2] / "packaging" / "logrotate" / "otel-audit"
RECORDS = 3_000


class Logrotate:
    """The shipped configuration, moved to the mirror's directory."""

    def __init__(self, bench: Bench) -> None:
        self._configuration = bench.root / "logrotate.conf"
        self._state = bench.root / "logrotate.state"
        self.text = SHIPPED.read_text().replace("/var/log/otel-audit", str(bench.path.parent))
        self.text = self.text.replace("/run/", f"{bench.root}/")
        self.environment = dict(os.environ)

    def change(self, old: str, new: str) -> None:
        assert old in self.text
        self.text = self.text.replace(old, new)

    def run(self, *options: str) -> str:
        """Run logrotate, which refuses what others could have written."""
        self._configuration.write_text(self.text)
        self._configuration.chmod(0o644)
        done = subprocess.run(
            ["logrotate", "--verbose", "--state", self._state, *options, self._configuration],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
        )
        assert done.returncode == 0, done.stderr
        assert "error" not in done.stderr.lower(), done.stderr
        return done.stderr


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as bench:
        yield bench


@pytest.fixture
def logrotate(bench: Bench) -> Logrotate:
    return Logrotate(bench)


def rotate_under_load(bench: Bench, logrotate: Logrotate, *, kill: bool = False) -> int:
    """Rotate again and again while one process writes and another mirrors.

    With ``kill`` the agent is killed each time and a new one takes over.
    Returns how often it was rotated.
    """
    cursors = Cursors(bench.directory)
    name = cursor_name(bench.path)
    rotations = 0
    agent = bench.start("agent")
    try:
        with bench.process("write", str(RECORDS)) as writer:
            while writer.poll() is None:
                before = cursors.get(name)
                wait_for(lambda before=before: cursors.get(name) > before or writer.poll() == 0, 20)  # type: ignore[misc]
                if kill:
                    agent.kill()
                    agent.wait()
                logrotate.run("--force")
                rotations += 1
                if kill:
                    agent = bench.start("agent")
        assert writer.returncode == 0
        wait_for(lambda: cursors.get(name) == RECORDS, 20)
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(10)
        cursors.close()
    return rotations


def test_the_shipped_configuration_says_what_it_should(bench: Bench, logrotate: Logrotate) -> None:
    bench.path.parent.mkdir(0o750)
    for name in ("audit.log", APP_LOG):
        bench.path.with_name(name).write_text("a line\n")
    shown = logrotate.run("--debug")
    kept = re.findall(r"rotating pattern: \S+/(\S+)  after 1 days \((\d+) rotations\)", shown)
    assert kept == [("audit.log", "90"), (APP_LOG, "30")]
    audit, application = re.split(r"^(?=/\S+ \{)", logrotate.text, flags=re.MULTILINE)[1:]
    assert re.findall(r"^    ((?:no)?create.*|copytruncate)", audit, re.MULTILINE) == [
        "create 0640"
    ]
    assert re.findall(r"^    ((?:no)?create.*|copytruncate)", application, re.MULTILINE) == [
        "copytruncate"
    ]


def test_no_line_is_missing_or_repeated(bench: Bench, logrotate: Logrotate) -> None:
    assert rotate_under_load(bench, logrotate) >= 3
    bench.check()
    names = {file.name for file in bench.path.parent.iterdir()}
    assert {"audit.log", "audit.log.1", "audit.log.2.gz"} <= names
    modes = {file.name: file.stat().st_mode & 0o777 for file in bench.path.parent.iterdir()}
    assert set(modes.values()) == {0o640}


def test_nor_when_the_agent_is_killed_each_time(bench: Bench, logrotate: Logrotate) -> None:
    assert rotate_under_load(bench, logrotate, kill=True) >= 3
    bench.check()


def test_nor_without_create(bench: Bench, logrotate: Logrotate) -> None:
    logrotate.change("create 0640", "nocreate")
    assert rotate_under_load(bench, logrotate) >= 2
    bench.check()


def test_nor_with_compression_at_once_after_a_second(bench: Bench, logrotate: Logrotate) -> None:
    logrotate.change("delaycompress", "nodelaycompress")
    logrotate.change("set -e\n", "set -e\nsleep 1\n")
    assert rotate_under_load(bench, logrotate) >= 2
    bench.check()
    assert bench.path.with_name("audit.log.1.gz").exists()


def test_nor_with_names_by_date(bench: Bench, logrotate: Logrotate) -> None:
    logrotate.change("# dateext", "dateext\ndateformat -%s")
    agent = bench.agent()
    agent.start()
    for _ in range(3):
        bench.append(100)
        assert agent.flush()
        logrotate.run("--force")
        time.sleep(1.0)
    bench.append(100)
    assert agent.flush()
    agent.close()
    assert len(list(bench.path.parent.iterdir())) == 4
    bench.check()


def test_copytruncate_is_warned_about_and_survived(
    bench: Bench, logrotate: Logrotate, caplog: pytest.LogCaptureFixture
) -> None:
    logrotate.change("create 0640", "copytruncate")
    agent = bench.agent()
    agent.start()
    bench.append(100)
    assert agent.flush()
    logrotate.run("--force")
    wait_for(lambda: "copytruncate" in caplog.text)
    bench.append(100)
    assert agent.flush()
    agent.close()
    bench.check()  # nothing was written between the copy and the cut


LOGGING = """
import logging, sys
from otel_audit import setup_logging
setup_logging(sys.argv[1])
for line in sys.stdin:
    logging.getLogger("application").info(line.strip())
    print(flush=True)
"""


def test_what_setup_logging_writes_goes_on_in_the_same_file(
    bench: Bench, logrotate: Logrotate
) -> None:
    folder = bench.path.parent
    with subprocess.Popen(
        [sys.executable, "-c", LOGGING, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        for number in range(4):
            program.stdin.write(f"line {number}\n")
            program.stdin.flush()
            program.stdout.readline()  # it is written
            if number < 3:
                logrotate.run("--force")
        program.stdin.close()
    written = [
        (folder / APP_LOG).read_bytes(),
        (folder / f"{APP_LOG}.1").read_bytes(),
        *(gzip.decompress((folder / f"{APP_LOG}.{n}.gz").read_bytes()) for n in (2, 3)),
    ]
    assert [json.loads(text)["event"] for text in written] == [
        f"line {number}" for number in (3, 2, 1, 0)
    ]


PROGRAM = """#!/bin/sh
echo "$0" "$@" >> {log}
while [ $# -gt 0 ]; do
  case "$1" in
    --body) cp "$2" {log}.body."$(basename "$2")" ;;
    -) cat > {log}.stdin ;;
    -o) echo checkpoint > "$2" ;;
  esac
  shift
done
"""


def programs(bench: Bench, logrotate: Logrotate, *names: str) -> Path:
    """Put programs that write down what they get in place of those that are not here."""
    folder = bench.root / "bin"
    folder.mkdir()
    for name in names:
        program = folder / name
        program.write_text(PROGRAM.format(log=bench.root / "called"))
        program.chmod(0o755)
    logrotate.environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    return bench.root / "called"


def rotate_once(bench: Bench, logrotate: Logrotate) -> list[bytes]:
    agent = bench.agent()
    agent.start()
    bench.append(100)
    assert agent.flush()
    shutil.copy(bench.path, bench.path.with_name(APP_LOG))
    logrotate.run("--force")
    agent.close()
    return bench.expected()


def test_the_reload_example(bench: Bench, logrotate: Logrotate) -> None:
    called = programs(bench, logrotate, "systemctl")
    logrotate.change("#example-reload", "")
    rotate_once(bench, logrotate)
    calls = [line.split(maxsplit=1)[1] for line in called.read_text().splitlines()]
    assert calls == ["reload fluent-bit.service", "kill --signal=USR1 example-service.service"]


def test_the_archive_example(bench: Bench, logrotate: Logrotate) -> None:
    called = programs(bench, logrotate, "aws")
    logrotate.change("#example-archive", "")
    expected = rotate_once(bench, logrotate)
    assert re.search(
        r"s3 cp - s3://example-archive/audit/\S+/\d{8}T\d{6}Z\.log\.gz", called.read_text()
    )
    archived = gzip.decompress(called.with_name("called.stdin").read_bytes())
    assert archived.splitlines() == expected


def test_the_compliance_example(bench: Bench, logrotate: Logrotate) -> None:
    called = programs(bench, logrotate, "aws", "otel-audit")
    logrotate.change("#example-compliance", "")
    expected = rotate_once(bench, logrotate)
    checkpoint, *puts = called.read_text().splitlines()
    assert f"checkpoint --dir {bench.directory.parent}/log/trail -o " in checkpoint
    locked = r"--object-lock-mode COMPLIANCE --object-lock-retain-until-date 20\d\d-\S+Z$"
    assert len(puts) == 2
    assert all(re.search(locked, put) for put in puts)
    body = called.with_name("called.body.audit.log.1")
    assert body.read_bytes().splitlines() == expected
    assert called.with_name("called.body.otel-audit.checkpoint").exists()


def test_the_trail_is_complete_whatever_rotation_does(bench: Bench, logrotate: Logrotate) -> None:
    logrotate.change("create 0640", "copytruncate")
    agent = bench.start("agent")
    with bench.process("write", str(RECORDS)) as writer:
        while writer.poll() is None:
            logrotate.run("--force")
            time.sleep(0.1)
    agent.send_signal(signal.SIGTERM)
    agent.wait(10)
    with TrailReader(bench.directory) as reader:
        assert reader.tree().size == RECORDS
    # Lines may be missing, but each one that is there is a record's, once, and in order.
    position = {record: number for number, record in enumerate(bench.expected())}
    numbers = [position[line] for line in bench.mirrored()]
    assert numbers == sorted(set(numbers))
