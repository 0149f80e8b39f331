"""Files that are written whole, and names that survive a power cut.

`write` promises: whatever ends it, an error, a full disk, SIGKILL or a power
cut, the name has what it had before or all that is new, never a part of it;
once it has returned, the new content stays; an error leaves no other file
behind. SIGKILL and a power cut may leave one of the name ``.<name>.<16 hex
digits>``. Files that grow are left to those who write them.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write(
    path: Path, data: bytes, *, replace: bool, public: bool = False, for_owner: bool = False
) -> None:
    """Write a file whole and durably, in place of the one that is there if ``replace``.

    It has mode 0600, or, if ``public``, what the umask leaves of 0666. With
    ``for_owner`` a file that root makes belongs to the owner of its directory,
    where root may do that: else the service whose trail it is could not go on
    with it (SQLite does the same with the files beside a database). Raises `OSError` that names
    ``path``, and without ``replace`` `FileExistsError` if it is there.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            _fill(scratch, data, public=public, for_owner=for_owner)
            if replace:
                scratch.replace(path)
            else:
                # It fails if the name is taken; a rename would replace that file.
                os.link(scratch, path)
        finally:
            with suppress(OSError):
                scratch.unlink()
        sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync(directory: Path) -> None:
    """Flush the directory itself, so that names in it survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(path: Path, data: bytes, *, public: bool, for_owner: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666 if public else 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if not public:
            os.fchmod(descriptor, 0o600)  # whatever the umask left
        if for_owner and os.geteuid() == 0:
            owner = path.parent.stat()
            # In a container root may be without that right, or the owner be nobody there.
            with suppress(OSError):
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
