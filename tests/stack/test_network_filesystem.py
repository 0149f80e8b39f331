"""A trail on a real network file system is refused: sshfs over a real sshd, on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collector.stack.servers import free_port
from otel_audit import AuditProvider, Settings
from otel_audit.errors import TrailFileSystemError
from tests.stack.shop import ROOT, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

SSHD = "/usr/sbin/sshd"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(),
    reason="only root, on a kernel with FUSE, can mount a network file system",
)


def key(place: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place)], check=True)
    return place


@contextmanager
def server(place: Path) -> Iterator[tuple[int, Path]]:
    """Run an sshd of our own; give its port and the key of the only one who may come."""
    place.mkdir(mode=0o700)
    user = key(place / "user")
    (place / "allowed").write_bytes((place / "user.pub").read_bytes())
    (place / "allowed").chmod(0o600)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks itself up
    port = free_port()
    settings = {
        "ListenAddress": "127.0.0.1",
        "Port": str(port),
        "HostKey": str(key(place / "host")),
        "AuthorizedKeysFile": str(place / "allowed"),
        "StrictModes": "no",
        "PidFile": "none",
        "UsePAM": "no",
        "Subsystem": "sftp internal-sftp",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", "/dev/null", *options], stderr=log)
    try:
        yield port, user
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Path]:
    """Mount a folder over SSH."""
    far, near = tmp_path / "far", tmp_path / "near"
    far.mkdir()
    near.mkdir()
    with server(tmp_path / "sshd") as (port, user):
        options = f"IdentityFile={user},StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null"
        command = ["sshfs", "-p", str(port), "-o", options, f"root@127.0.0.1:{far}", str(near)]

        def mounted() -> bool:
            return subprocess.run(command, check=False, capture_output=True).returncode == 0

        wait_for(mounted, 20, "the mount")
        try:
            yield near
        finally:
            subprocess.run(["umount", str(near)], check=True)


def test_a_trail_on_a_network_file_system_is_refused(network: Path) -> None:
    trail = network / "trail"
    with pytest.raises(TrailFileSystemError, match=r"is on fuse\.sshfs.*a local disk"):
        AuditProvider(Settings.from_env({}, directory=trail, agent="off"))
    assert list(network.iterdir()) == []


def test_doctor_says_so(network: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "otel_audit.cli", "doctor", "--dir", str(network), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 1
    failed = [check for check in report["checks"] if check["state"] == "fail"]
    assert any("fuse.sshfs" in check["message"] for check in failed)
