"""Where a trail may lie, and how its directory is made."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from otel_audit.errors import TrailError, TrailFileSystemError
from otel_audit.trail import filesystem

# As /proc/self/mountinfo has it (proc(5)): optional fields, octal escapes, a mount over another.
MOUNTS = r"""
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
30 22 0:26 / /run rw,nosuid shared:14 - tmpfs tmpfs rw
40 22 0:45 / /mnt/share rw shared:20 master:3 - nfs4 server:/export rw,vers=4.2
41 22 0:46 / /mnt/with\040space rw - cifs //server/share rw
42 22 0:47 / /mnt/données rw - nfs server:/export rw
43 22 0:48 / /mnt/back\134040slash rw - nfs server:/export rw
44 22 0:49 / /mnt/sshfs rw - fuse.sshfs user@host: rw
45 22 0:50 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw
46 22 0:51 / /data rw - xfs /dev/sdb1 rw
47 46 0:52 / /data rw - nfs4 server:/over rw
48 22 0:53 / /mnt/sharepoint rw - ext4 /dev/sdc1 rw
49 22 0:54 / /mnt/not-utf-8-? rw - nfs server:/export rw
a line that is none
""".replace("?", "\udcff")


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/", "ext4"),
        ("/srv/trail", "ext4"),
        ("/run", "tmpfs"),
        ("/run/a/b", "tmpfs"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/trail", "nfs4"),
        ("/mnt/sharepoint/trail", "ext4"),
        ("/mnt/shared/trail", "ext4"),
        ("/mnt/with space/trail", "cifs"),
        ("/mnt/données/trail", "nfs"),
        ("/mnt/back\\040slash/trail", "nfs"),
        ("/mnt/not-utf-8-\udcff/trail", "nfs"),
        ("/data/trail", "nfs4"),
    ],
)
def test_the_nearest_mount_decides(directory: str, kind: str) -> None:
    assert filesystem.type_of(Path(directory), MOUNTS) == kind


def test_links_are_followed_to_where_the_files_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/mnt/share")
    assert filesystem.type_of(tmp_path / "link" / "trail", MOUNTS) == "nfs4"


def test_the_real_mounts_are_read() -> None:
    assert filesystem.type_of(Path("/proc/self")) == "proc"


@pytest.mark.parametrize(
    "directory", ["/mnt/share/trail", "/mnt/with space", "/mnt/sshfs", "/data/x", "/mnt/données"]
)
def test_network_file_systems_are_refused_with_a_remedy(directory: str) -> None:
    with pytest.raises(
        TrailFileSystemError, match=r"fsync and locks.* set OTEL_AUDIT_DIR"
    ) as caught:
        filesystem.check(Path(directory), MOUNTS)
    assert directory in str(caught.value)
    assert isinstance(caught.value, TrailError)


@pytest.mark.parametrize(
    ("directory", "why"),
    [
        ("/run/trail", "gone after a restart"),
        ("/var/lib/docker/overlay2/x/merged/trail", "mount a volume"),
    ],
)
def test_file_systems_that_forget_are_warned_about(directory: str, why: str) -> None:
    assert why in (filesystem.check(Path(directory), MOUNTS) or "")


def test_a_local_disk_is_fine() -> None:
    assert filesystem.check(Path("/srv/trail"), MOUNTS) is None


def test_where_a_network_file_system_is_mounted_no_trail_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 1 0:1 / {tmp_path} rw - nfs4 server:/export rw\n", "utf-8")
    monkeypatch.setattr(filesystem, "_MOUNTS", str(mounts))
    from otel_audit.trail.trail import Trail

    with pytest.raises(TrailFileSystemError, match="is on nfs4"):
        Trail.open(tmp_path / "trail")
    assert not (tmp_path / "trail").exists()


def test_opening_on_a_file_system_that_forgets_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 1 0:1 / {tmp_path} rw - tmpfs tmpfs rw\n", "utf-8")
    monkeypatch.setattr(filesystem, "_MOUNTS", str(mounts))
    with caplog.at_level(logging.WARNING):
        filesystem.prepare(tmp_path / "trail")
    assert "is on tmpfs: its contents are gone after a restart" in caplog.text


def test_only_the_trails_own_directory_is_private(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        filesystem.prepare(tmp_path / "a" / "b" / "trail")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b" / "trail").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755
    filesystem.prepare(tmp_path / "a" / "b" / "trail")


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        (0o777, "is writable by others"),
        (0o770, "is writable by others"),
        (0o702, "is writable by others"),
        (0o755, "can be looked into by others"),
        (0o750, "can be looked into by others"),
    ],
)
def test_a_directory_that_is_open_and_in_use_is_warned_about_once(
    tmp_path: Path, mode: int, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "trail"
    directory.mkdir()
    directory.chmod(mode)
    (directory / "somebody's").touch()
    filesystem.prepare(directory)
    filesystem.prepare(directory)
    said = [message for message in caplog.messages if "(mode" in message]
    assert said == [f"{directory} {how} (mode {mode:04o}): chmod 700 it"]
    assert directory.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o2770])
def test_an_empty_directory_that_is_open_is_closed(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "trail"
    directory.mkdir()
    directory.chmod(mode)
    filesystem.prepare(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert "(mode" not in caplog.text


def test_a_directory_for_everybody_stays_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "tmp"
    directory.mkdir()
    directory.chmod(0o1777)
    filesystem.prepare(directory)
    assert directory.stat().st_mode & 0o7777 == 0o1777
    assert "is writable by others (mode 1777)" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_stays_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "trail"
    directory.mkdir()
    directory.chmod(0o755)
    os.chown(directory, 65534, 65534)
    filesystem.prepare(directory)
    assert directory.stat().st_mode & 0o777 == 0o755
    assert "can be looked into by others (mode 0755)" in caplog.text


def test_a_directory_whose_name_is_not_utf_8_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TrailFileSystemError, match=r"udcff/trail', since SQLite .*OTEL_AUDIT_DIR"):
        filesystem.prepare(tmp_path / "home-\udcff" / "trail")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/trail", "x" * 300])
def test_a_directory_that_cannot_be_made_is_an_error_with_a_remedy(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    why = (
        f"{tmp_path}/file is there, and is no directory"
        if "file" in place
        else "File name too long"
    )
    with pytest.raises(TrailFileSystemError, match=rf"cannot be made: {why}; .*OTEL_AUDIT_DIR"):
        filesystem.prepare(tmp_path / place)


@pytest.mark.parametrize(("made", "files"), [(0, None), (1_000, 7)])
def test_room_is_what_a_user_without_privileges_has(
    monkeypatch: pytest.MonkeyPatch, made: int, files: int | None
) -> None:
    """Some file systems (btrfs) have no fixed number of inodes, and state 0 of 0."""
    facts = SimpleNamespace(
        f_frsize=512, f_bavail=3, f_bfree=5, f_blocks=9, f_files=made, f_favail=files or 0
    )
    monkeypatch.setattr(os, "statvfs", lambda _path: facts)
    assert filesystem.room("/") == (3 * 512, 9 * 512, files)
