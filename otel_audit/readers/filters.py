"""The filters that people are shown: one list, for the terminal and for HTTP.

Everything else that a record has can be asked for as well; what a filter means
is left to `query`. This module imports nothing, so that ``--help`` need not.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Filter(NamedTuple):
    """One parameter of a query."""

    name: str
    value: str
    """What its value is called."""
    meaning: str
    example: str


FILTERS: Final = (
    Filter("action", "NAME", "The action's or the event's name.", "server_lifecycle_event"),
    Filter("event", "NAME", "The event's name.", "authentication"),
    Filter("event_type", "NAME", "The class of the event.", "authentication"),
    Filter("actor", "ID", "Who did it.", "alice"),
    Filter("client", "ID", "What the client called itself.", "cli-7"),
    Filter("client_ip", "ADDRESS", "From where.", "192.0.2.7"),
    Filter("resource_type", "NAME", "On what kind of thing.", "credential"),
    Filter("resource_name", "NAME", "On what, by its name.", "openai"),
    Filter("server_name", "NAME", "The field server_name.", "obsidian"),
    Filter("outcome", "OUTCOME", "success, failure or unknown.", "failure"),
    Filter("status", "STATUS", "How it went, in the record's own word.", "denied"),
    Filter("level", "LEVEL", "debug, info, warning, error or critical.", "warning"),
    Filter("session_id", "ID", "In which session.", "4be1c0a29d7f43c5a1d0b6c8e2f49a77"),
    Filter("request_id", "ID", "In which request.", "5f0c4b0e-8a34-4d8e-9f6b-0d6a6a3c1f11"),
    Filter("trace_id", "ID", "In which trace.", "4bf92f3577b34da6a3ce929d0e0e4736"),
    Filter("record_id", "ID", "This one record.", "5f0c4b0e-8a34-4d8e-9f6b-0d6a6a3c1f11"),
    Filter(
        "q",
        "TEXT",
        "Words that are in the record, all of them, or an id; WORD* for a beginning.",
        "refused",
    ),
)
