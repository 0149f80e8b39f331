"""Every exception that this package raises on purpose.

Each says what is wrong, why, and what to do, and is also the builtin that a
caller would expect::

    OtelAuditError
    ├── AuditEventError (ValueError)         the event itself is unusable
    ├── AuditSettingsError (ValueError)      a setting is unusable
    ├── AuditUnavailableError (RuntimeError) the record is not confirmed
    │   ├── AuditBackpressureError           too many records wait already
    │   ├── AuditTimeoutError (TimeoutError) no confirmation within the limit
    │   └── AuditClosedError                 the provider was closed
    ├── TrailError (RuntimeError)            the trail cannot be used
    │   ├── TrailVersionError                written by a newer version
    │   ├── TrailKeyError                    signing key missing, foreign, exposed
    │   ├── TrailLockedError (TimeoutError)  another process holds the lock
    │   ├── TrailFileSystemError             not a local file system
    │   └── TrailMismatchError               files that do not belong together
    ├── ProofError (ValueError)              a note or proof is malformed or wrong
    └── QueryError (ValueError)              a question to the trail cannot be answered
"""

from __future__ import annotations


class OtelAuditError(Exception):
    """Base of all exceptions of this package."""


class AuditEventError(OtelAuditError, ValueError):
    """The event cannot become a record, whatever the state of the trail."""


class AuditSettingsError(OtelAuditError, ValueError):
    """A setting has a value that cannot be used; the message names it.

    ``setting`` is the variable, or the argument, where a single one is to blame.
    """

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        """Keep what is wrong, and with which setting."""
        self.setting = setting
        super().__init__(message)


class AuditUnavailableError(OtelAuditError, RuntimeError):
    """The record is *not confirmed*: it may or may not be in the trail.

    ``record_id`` names it, so that it can be looked up afterwards. The error
    never claims that the record was not stored: after a failed sync nobody
    can know.
    """

    def __init__(self, reason: str, *, record_id: str | None = None) -> None:
        """Keep ``reason`` (one sentence) and the record's id, if there is one."""
        self.reason = reason
        self.record_id = record_id
        suffix = f" (record {record_id} is not confirmed)" if record_id else ""
        super().__init__(reason + suffix)


class AuditBackpressureError(AuditUnavailableError):
    """The queue in front of the trail is full; slow down and try again."""


class AuditTimeoutError(AuditUnavailableError, TimeoutError):
    """The trail did not confirm the record within the configured time."""


class AuditClosedError(AuditUnavailableError):
    """The provider was closed; nothing can be emitted through it any more."""


class TrailError(OtelAuditError, RuntimeError):
    """The trail cannot be opened, read or written."""


class TrailVersionError(TrailError):
    """The trail was written by a newer version of this software."""


class TrailKeyError(TrailError):
    """The signing key is missing, malformed, readable by others, or foreign."""


class TrailLockedError(TrailError, TimeoutError):
    """Another process holds the trail's lock and did not give it back in time."""


class TrailFileSystemError(TrailError):
    """The directory lies on a file system that cannot keep the promises."""


class TrailMismatchError(TrailError):
    """Files of the trail do not belong together, or are older than they were."""


class ProofError(OtelAuditError, ValueError):
    """A signed note, checkpoint or proof is malformed, or does not hold."""


class QueryError(OtelAuditError, ValueError):
    """A filter, a time, a limit or a cursor of a query cannot be used; the message says why.

    ``parameter`` names it, where there is one.
    """

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        """Keep what is wrong, and with which parameter."""
        self.parameter = parameter
        super().__init__(message)
