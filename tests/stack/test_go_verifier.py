"""Go's own transparency log code accepts what we write, and refuses what was changed.

``golang/`` is a program on golang.org/x/mod/sumdb/note and .../tlog, which share
no line with otel_audit; cosignatures it checks by hand with crypto/ed25519.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from otel_audit.trail import merkle
from otel_audit.trail.checkpoint import Checkpoint, open_checkpoint, sign
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.note import open_note
from otel_audit.trail.proof import prove
from otel_audit.trail.reader import TrailReader
from otel_audit.trail.store import TrailStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ORIGIN = "otel-audit.local/shop/web-1/0a1b2c3d"
KEYS = TrailKeys.generate(ORIGIN)
NOW = 1_760_000_000
SIZES = (1, 2, 3, 255, 256, 257, 511, 512, 700, 65_535, 65_536, 66_000)
"""Sizes of the checkpoints: around tiles of level 0 and, at 65,536, of level 1."""
PLACES = ((0, 0), (0, 11), (255, 4), (256, 5), (300, 8), (65_535, 10), (65_999, 11), (777, 11))
STEPS = ((0, 1), (1, 4), (3, 4), (4, 5), (7, 8), (8, 11), (9, 10), (10, 11), (2, 11))


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = shutil.which("go")
    assert go, "tests/stack needs Go: run tests/stack/setup, or install golang-go"
    target = tmp_path_factory.mktemp("go") / "check"
    # The Go that is installed will do: it must not fetch another one.
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    built = subprocess.run(
        [go, "build", "-o", str(target), "."],
        cwd=Path(__file__).parent / "golang",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return target


@pytest.fixture(scope="session")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that Go is to check, out of a trail that the store wrote."""
    directory = tmp_path_factory.mktemp("trail")
    records = [f'{{"record_id":"{number}","note":"übung"}}'.encode() for number in range(SIZES[-1])]
    store = TrailStore(directory, new_origin=lambda: ORIGIN)
    with TrailReader(directory) as reader:
        before = 0
        for number, size in enumerate(SIZES):
            for start, stop in chunks(before, size):
                part = records[start:stop]
                store.append(part, {})
            before = size
            tree = reader.tree()
            note = sign(Checkpoint(ORIGIN, tree.size, tree.root), KEYS, NOW + number)
            store.add_checkpoint(tree.size, (NOW + number) * 10**9, note)
        store.close()
        notes = [row.note for row in reader.checkpoints()]
        log_key, cosigner_key = KEYS.verifier_keys()
        return {
            "log_key": log_key,
            "cosigner_key": cosigner_key,
            "records": [encoded(leaf.record) for leaf in reader.leaves()],
            "tiles": {
                f"{level}/{index}": encoded(reader.tile(level, index))
                for level in range(3)
                for index in range(-(-SIZES[-1] // 256 ** (level + 1)))
            },
            "checkpoints": notes,
            "inclusion": [
                {
                    "index": index,
                    "checkpoint": at,
                    "hashes": encoded_all(merkle.inclusion_proof(index, SIZES[at], reader.hash_at)),
                }
                for index, at in PLACES
            ],
            "consistency": [
                {
                    "old": old,
                    "new": new,
                    "hashes": encoded_all(
                        merkle.consistency_proof(SIZES[old], SIZES[new], reader.hash_at)
                    ),
                }
                for old, new in STEPS
            ],
            "proofs": [
                prove(index, records[index], notes[at], reader.hash_at).text()
                for index, at in PLACES
            ],
        }


def chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for at in range(start, stop, 5_000):
        yield at, min(at + 5_000, stop)


def encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def encoded_all(hashes: list[bytes]) -> list[str]:
    return [encoded(one) for one in hashes]


def run(program: Path, document: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [str(program)], input=json.dumps(document), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def test_go_accepts_checkpoints_roots_tiles_and_proofs(
    program: Path, document: dict[str, Any]
) -> None:
    outcome = run(program, document)
    assert outcome["checkpoints"] == [""] * len(SIZES)
    assert outcome["times"] == [NOW + number for number in range(len(SIZES))]
    assert outcome["roots"] == [""] * len(SIZES)
    assert outcome["tiles"] == [""] * len(SIZES)
    assert outcome["inclusion"] == [""] * len(PLACES)
    assert outcome["consistency"] == [""] * len(STEPS)
    assert outcome["proofs"] == [""] * len(PLACES)


def flipped(value: str, place: int = 40) -> str:
    raw = bytearray(base64.b64decode(value))
    raw[place % len(raw)] ^= 1
    return encoded(bytes(raw))


def change_note(document: dict[str, Any]) -> None:
    note = document["checkpoints"][8]
    document["checkpoints"][8] = note.replace("\n700\n", "\n701\n")


def change_time(document: dict[str, Any]) -> None:
    note = document["checkpoints"][8].strip()
    start, _, line = note.rpartition(" ")
    document["checkpoints"][8] = f"{start} {flipped(line, 11)}\n"


def change_record(document: dict[str, Any]) -> None:
    document["records"][300] = flipped(document["records"][300])


def change_tile(document: dict[str, Any]) -> None:
    document["tiles"]["0/1"] = flipped(document["tiles"]["0/1"])


def change_level(document: dict[str, Any]) -> None:
    document["tiles"]["1/0"] = flipped(document["tiles"]["1/0"])


def change_inclusion(document: dict[str, Any]) -> None:
    hashes = document["inclusion"][4]["hashes"]
    hashes[0] = flipped(hashes[0])


def change_proof(document: dict[str, Any]) -> None:
    lines = document["proofs"][4].split("\n")
    lines[1] = f"extra {flipped(lines[1].removeprefix('extra '))}"
    document["proofs"][4] = "\n".join(lines)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (change_note, {"checkpoints"}),
        (change_time, {"checkpoints"}),
        (change_record, {"roots", "inclusion"}),
        (change_tile, {"tiles"}),
        (change_level, {"tiles"}),
        (change_inclusion, {"inclusion"}),
        (change_proof, {"proofs"}),
    ],
)
def test_go_refuses_what_was_changed(
    program: Path,
    document: dict[str, Any],
    change: Callable[[dict[str, Any]], None],
    fields: set[str],
) -> None:
    """Without this, a program that accepts everything would pass."""
    changed = copy.deepcopy(document)
    change(changed)
    outcome = run(program, changed)
    for field in fields:
        assert any(outcome[field]), field


def test_keys_of_a_stranger_are_refused(program: Path, document: dict[str, Any]) -> None:
    log_key, cosigner_key = TrailKeys.generate(ORIGIN).verifier_keys()
    outcome = run(program, {**document, "log_key": log_key, "cosigner_key": cosigner_key})
    assert all(outcome["checkpoints"])
    assert all(outcome["proofs"])


def test_go_signs_with_our_key_file_and_we_accept_it(
    program: Path, document: dict[str, Any], tmp_path: Path
) -> None:
    keys = TrailKeys.load_or_create(tmp_path / "signing.key", ORIGIN)
    key = (tmp_path / "signing.key").read_text().splitlines()[0]
    text = Checkpoint(ORIGIN, 5, bytes(32)).text()
    signing = {**document, "sign": {"key": key, "text": text}}
    signed = run(program, signing)["signed"]
    assert open_note(signed, keys.verifiers()).text == text
    assert open_checkpoint(signed, [keys.log.verifier]).checkpoint.size == 5
