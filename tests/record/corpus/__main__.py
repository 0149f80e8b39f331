"""Prints what docs/redaction.md shows: ``python -m tests.record.corpus``."""

from __future__ import annotations

import sys

from tests.record.corpus import figures

sys.stdout.write(figures.table())
