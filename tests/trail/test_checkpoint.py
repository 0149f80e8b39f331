"""Checkpoints: what they say, and whose signatures they need."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.errors import ProofError, TrailKeyError
from otel_audit.trail import checkpoint as module
from otel_audit.trail.checkpoint import Checkpoint, open_checkpoint, sign
from otel_audit.trail.keys import TrailKeys
from otel_audit.trail.note import sign_note

ORIGIN = "otel-audit.local/shop/web-1/0a1b2c3d"
KEYS = TrailKeys.generate(ORIGIN)
OTHER = TrailKeys.generate(ORIGIN)
HEAD = Checkpoint(ORIGIN, 20_852_163, bytes(range(32)))
NOW = 1_760_000_000

# C2SP tlog-checkpoint, introduction.
SPEC_TEXT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"


def test_the_example_of_the_specification_parses() -> None:
    parsed = Checkpoint.parse(SPEC_TEXT)
    assert (parsed.origin, parsed.size) == ("example.com/behind-the-sofa", 20_852_163)
    assert parsed.root.hex().startswith("0ac5186a91863e8e")
    assert parsed.text() == SPEC_TEXT


def test_extension_lines_are_kept() -> None:
    parsed = Checkpoint.parse(f"{SPEC_TEXT}one\ntwo\n")
    assert parsed.extensions == ("one", "two")
    assert parsed.text() == f"{SPEC_TEXT}one\ntwo\n"


ROOT = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "o\n1\n",
        f"o\n1\n{ROOT}",
        f"\n1\n{ROOT}\n",
        f"o\n\n{ROOT}\n",
        f"o\n1\n{ROOT}\n\n",
        f"o\n1\n{ROOT}\nx\n\n",
        f"o\n01\n{ROOT}\n",
        f"o\n-1\n{ROOT}\n",
        f"o\n+1\n{ROOT}\n",
        f"o\n1 \n{ROOT}\n",
        f"o\n1_0\n{ROOT}\n",
        f"o\n\u0661\n{ROOT}\n",
        f"o\n0x1\n{ROOT}\n",
        f"o\n{1 << 63}\n{ROOT}\n",
        f"o\n{'9' * 5_000}\n{ROOT}\n",
        f"o\n1\n{base64.b64encode(bytes(31)).decode()}\n",
        f"o\n1\n{base64.b64encode(bytes(33)).decode()}\n",
        f"o\n1\n{ROOT[:-1]}\n",
        f"o\n1\n{ROOT[:-2]}B=\n",
        f"o\n1\n {ROOT}\n",
    ],
    ids=range(22),
)
def test_malformed_checkpoints_are_refused(text: str) -> None:
    with pytest.raises(ProofError):
        Checkpoint.parse(text)


LINES = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1)


@given(LINES, st.integers(0, (1 << 63) - 1), st.binary(min_size=32, max_size=32))
def test_text_and_parse_are_inverse(origin: str, size: int, root: bytes) -> None:
    head = Checkpoint(origin, size, root)
    assert Checkpoint.parse(head.text()) == head


@given(st.text())
def test_garbage_raises_only_proof_errors(text: str) -> None:
    with pytest.raises(ProofError):
        Checkpoint.parse(text)


def test_a_checkpoint_carries_both_signatures_and_the_time() -> None:
    signed = sign(HEAD, KEYS, NOW)
    lines = signed.removeprefix(f"{HEAD.text()}\n").splitlines()
    assert [line.split(" ")[1] for line in lines] == [ORIGIN, f"{ORIGIN}/cosigner"]
    opened = open_checkpoint(signed, KEYS.verifiers())
    assert (opened.checkpoint, opened.timestamp, opened.note) == (HEAD, NOW, signed)
    assert open_checkpoint(signed.encode(), KEYS.verifiers()) == opened


def test_the_log_key_alone_opens_it_without_a_time() -> None:
    opened = open_checkpoint(sign(HEAD, KEYS, NOW), [KEYS.log.verifier])
    assert (opened.checkpoint, opened.timestamp) == (HEAD, None)


def test_the_log_signature_is_required() -> None:
    signed = sign(HEAD, KEYS, NOW)
    with pytest.raises(ProofError, match="not signed by a known key of that name"):
        open_checkpoint(signed, [KEYS.cosigner.verifier])
    only_cosigned = sign_note(HEAD.text(), [KEYS.cosigner], NOW)
    with pytest.raises(ProofError, match="not signed by a known key of that name"):
        open_checkpoint(only_cosigned, KEYS.verifiers())


def test_a_cosignature_that_is_asked_for_is_required() -> None:
    with pytest.raises(ProofError, match="lacks the cosignature"):
        open_checkpoint(sign_note(HEAD.text(), [KEYS.log], NOW), KEYS.verifiers())


def test_the_keys_of_another_trail_with_the_same_name_do_not_open_it() -> None:
    with pytest.raises(ProofError, match="no known key"):
        open_checkpoint(sign(HEAD, KEYS, NOW), OTHER.verifiers())


def test_a_key_only_speaks_for_its_own_origin() -> None:
    foreign = Checkpoint("elsewhere", 1, bytes(32))
    with pytest.raises(ProofError, match="elsewhere is not signed by a known key"):
        open_checkpoint(sign_note(foreign.text(), [KEYS.log], NOW), KEYS.verifiers())
    with pytest.raises(TrailKeyError, match="must not sign a checkpoint of elsewhere"):
        sign(foreign, KEYS, NOW)


def test_any_of_several_known_cosigners_of_the_origin_will_do() -> None:
    known = (*KEYS.verifiers(), OTHER.cosigner.verifier)
    assert open_checkpoint(sign(HEAD, KEYS, NOW), known).timestamp == NOW


def test_every_changed_byte_of_a_checkpoint_is_found() -> None:
    signed = sign(HEAD, KEYS, NOW).encode()
    for place in range(len(signed)):
        changed = bytearray(signed)
        changed[place] ^= 0x01
        with pytest.raises(ProofError):
            open_checkpoint(bytes(changed), KEYS.verifiers())


def test_a_checkpoint_can_be_read_without_keys() -> None:
    assert module.read_checkpoint(sign(HEAD, KEYS, NOW)) == HEAD
    with pytest.raises(ProofError):
        module.read_checkpoint(HEAD.text())
