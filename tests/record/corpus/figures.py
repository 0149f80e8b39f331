"""What the redactor finds, and what it takes wrongly: counted on the corpus."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final, NamedTuple

from otel_audit.record.redact import REDACTED, Redactor
from tests.record.corpus import innocents, secrets

_MARK: Final = re.compile(r"\[REDACTED:\w+\]")
WINDOW: Final = 8
"""So many characters of a secret in a row are a leak."""


class Figure(NamedTuple):
    """Of ``total`` texts or names, ``hits`` were altered."""

    total: int
    hits: int


def leaks(secret: str, text: str) -> bool:
    """Whether a part of the secret can still be read in the text."""
    text = _MARK.sub("", text)
    last = max(1, len(secret) - WINDOW + 1)
    return any(secret[start : start + WINDOW] in text for start in range(last))


def recall(redactor: Redactor) -> dict[str, Figure]:
    """For each kind: texts, and those in which nothing of the secret is left."""
    totals: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for sample in secrets.samples():
        totals[sample.kind] += 1
        hits[sample.kind] += not leaks(sample.secret, redactor.text(sample.text))
    return {kind: Figure(totals[kind], hits[kind]) for kind in sorted(totals)}


def false_positives(redactor: Redactor) -> dict[str, Figure]:
    """For each class of innocent texts: texts, and those that were altered."""
    return {
        name: Figure(len(texts), sum(redactor.text(text) != text for text in texts))
        for name, texts in innocents.texts().items()
    }


def names_hidden(redactor: Redactor, file: str) -> Figure:
    """Of the names in a file, in all styles: how many hide their value."""
    names = innocents.names(file)
    return Figure(len(names), sum(hides(redactor, name) for name in names))


def hides(redactor: Redactor, name: str) -> bool:
    """Whether a text under this name is hidden."""
    fields: dict[str, object] = {name: "plain text"}
    redactor.fields(fields)  # type: ignore[arg-type]  # a dict is invariant in its values
    return fields == {name: REDACTED}


def table() -> str:
    """Write all figures as the document shows them."""
    redactor = Redactor()
    found = recall(redactor)
    taken = false_positives(redactor)
    secret = names_hidden(redactor, "names-secret.txt")
    innocent = names_hidden(redactor, "names-innocent.txt")
    rows = ["names and texts                      number  redacted"]
    rows.append(_row("names of secrets", secret))
    rows.append(_row("innocent names", innocent))
    rows.append(_row("texts with a secret", _sum(found)))
    rows += [_row(f"  {kind}", figure) for kind, figure in found.items()]
    rows.append(_row("texts without a secret", _sum(taken)))
    rows += [_row(f"  {name}", figure) for name, figure in taken.items()]
    return "\n".join(rows) + "\n"


def _sum(figures: dict[str, Figure]) -> Figure:
    return Figure(
        sum(figure.total for figure in figures.values()),
        sum(figure.hits for figure in figures.values()),
    )


def _row(name: str, figure: Figure) -> str:
    return f"{name:<34}{figure.total:>9,}{figure.hits:>10,}{figure.hits / figure.total:>9.2%}"
