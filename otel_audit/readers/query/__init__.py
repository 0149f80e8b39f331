"""What can be asked of records: one model for Python, HTTP and the command line."""

from otel_audit.readers.query.model import PERSONAL
from otel_audit.readers.query.parameters import parse

__all__ = ["PERSONAL", "parse"]
