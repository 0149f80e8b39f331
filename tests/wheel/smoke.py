"""What a new user writes first, with nothing but the wheel and what it brings.

Type-checked against the installed package, then run in an empty directory; prints the record's
id, which the test looks up with the command line.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import otel_audit
from otel_audit import AuditEvent, AuditReceipt, TrailReader


def main(directory: str) -> None:
    """Write records in each way that needs no web framework, and read them back."""
    if find_spec("fastapi") or find_spec("pytest"):
        sys.exit("this environment is not clean: it has what the wheel does not bring")
    provider = otel_audit.configure(directory=directory, service_name="smoke")
    audit = otel_audit.get_audit_logger("smoke")

    receipt = audit.emit(AuditEvent("data_access", "read", resource_type="customer"))
    if not isinstance(receipt, AuditReceipt):
        sys.exit("a thread without a running loop gets its receipt at once")
    audit.audit_event(
        "data_access", "read", "customer", "42", "success", purpose="support", password="x"
    )
    audit.log_event("consent_change", "withdraw", customer=42)
    with otel_audit.audit_span("data_export", "export", resource_type="customer", rows=3):
        pass
    if not audit.flush():
        sys.exit("the mirror did not catch up")
    provider.close()

    with TrailReader(Path(directory)) as reader:
        records = [leaf.record for leaf in reader.leaves()]
    if not any(receipt.record_id.encode() in record for record in records):
        sys.exit("the record with the receipt is not in the trail")
    if any(b'"x"' in record for record in records):
        sys.exit("the password was not redacted")
    print(receipt.record_id)


if __name__ == "__main__":
    main(sys.argv[1])
