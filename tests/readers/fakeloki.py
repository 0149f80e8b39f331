"""A small Loki: takes OTLP like the far end, and answers query_range about what it has.

It knows the one kind of query that reconciliation makes. tests/stack has the
real one.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from tests.readers.farend import HttpFarEnd, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

Entry = tuple[int, str, dict[str, str]]


class FakeLoki(HttpFarEnd):
    """What was shipped to it can be read back; a test may change ``view``."""

    def __init__(self) -> None:
        super().__init__()
        self.view: Callable[[list[Entry]], list[Entry]] = lambda entries: entries
        self.queries: list[dict[str, str]] = []
        self.status = 200
        self.page: Reply | None = None

    def asked(self, path: str) -> Reply:
        """Answer one query."""
        if self.page is not None:
            return self.page
        if self.status != 200:
            return Reply(
                self.status, {"content-type": "text/plain"}, b"too many outstanding requests"
            )
        wanted = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        self.queries.append(wanted)
        match = re.search(r'audit_sequence_stream_id="(.*?)"', wanted["query"])
        assert match is not None
        found = [
            entry
            for entry in sorted(self.view(self._entries()), key=lambda entry: entry[0])
            if int(wanted["start"]) <= entry[0] < int(wanted["end"])
            and entry[2].get("audit_sequence_stream_id") == match[1]
        ]
        found = found[: int(wanted["limit"])]
        result = [{"stream": labels, "values": [[str(at), line]]} for at, line, labels in found]
        body = json.dumps(
            {"status": "success", "data": {"resultType": "streams", "result": result}}
        )
        return Reply(200, {"content-type": "application/json"}, body.encode())

    def _entries(self) -> list[Entry]:
        """Return what Loki would show: an entry of the same time, line and labels once."""
        entries: dict[Any, Entry] = {}
        for record in self.stored:
            labels = {
                each.key.replace(".", "_"): each.value.string_value or str(each.value.int_value)
                for each in record.attributes
            }
            entry = (record.time_unix_nano, record.body.string_value, labels)
            entries[str(entry)] = entry
        return list(entries.values())
