"""The command `otel-audit`.

One file a command group, named in `app.py`. Commands promise: one clear line on
stderr instead of a traceback, and an exit code of `outcome.ExitCode`; nothing but
the result on stdout, as JSON with ``--json``. Only `agent`, `checkpoint --sign`,
`new-origin`, and `prove` where no checkpoint covers the record, write to a trail;
`ship replay`, `ship requeue` and `reconcile --repair` to its cursors, `token` to its
tokens. What commands show is found out by the layers below.
"""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Run the command line with this process's arguments, and exit."""
    import sys

    from otel_audit.cli.app import run

    sys.exit(run(sys.argv[1:]))
