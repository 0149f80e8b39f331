"""Signed notes against the vectors of C2SP signed-note, tlog-cosignature and Go's note package."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.errors import ProofError, TrailKeyError
from otel_audit.trail import note
from otel_audit.trail.note import COSIGNATURE, ED25519, Signer, Verifier

# C2SP signed-note, section "Example".
SPEC_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n"
    "\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3"
    "mFXmRKuwHjG1Yu72IneyaQM=\n"
)

# golang.org/x/mod, sumdb/note/note_test.go.
PETER_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
ENOCH_VKEY = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
PETER = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdng"
    "otpRZb6KE6RyyBwJnAM=\n"
)
ENOCH = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWL"
    "ox33WWd1RvMc+QQ=\n"
)

# C2SP tlog-cosignature, introduction. Its public key is not published; the form is.
COSIGNED = (
    "example.com/behind-the-sofa\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Z"
    "hcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJs"
    "X3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)
COSIGNED_MESSAGE = (
    b"cosignature/v1\n"
    b"time 1679315147\n"
    b"example.com/behind-the-sofa\n"
    b"20852163\n"
    b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
)


def signer(name: str, algorithm: int = ED25519, seed: bytes = b"\x01" * 32) -> Signer:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    verifier = Verifier(name, algorithm, key.public_key().public_bytes_raw())
    return Signer(verifier, key.sign)


def keys(*vkeys: str) -> list[Verifier]:
    return [Verifier.parse(vkey) for vkey in vkeys]


def test_the_example_of_the_specification_opens() -> None:
    opened = note.open_note(SPEC_NOTE, keys(SPEC_VKEY))
    assert opened.text == "This is an example message.\n"
    assert [found.verifier.name for found in opened.verified] == ["example.com/foo"]
    assert opened.verified[0].timestamp is None


@pytest.mark.parametrize("vkey", [SPEC_VKEY, PETER_VKEY, ENOCH_VKEY])
def test_verifier_keys_survive_the_round_trip(vkey: str) -> None:
    assert str(Verifier.parse(vkey)) == vkey
    assert Verifier.parse(f" {vkey}\n") == Verifier.parse(vkey)


def test_no_mangled_verifier_key_is_accepted() -> None:
    """Go's TestNewVerifier: no part of the key, and none with a changed character."""
    parts = {
        PETER_VKEY[i:j] for i in range(len(PETER_VKEY)) for j in range(i + 1, len(PETER_VKEY) + 1)
    }
    changed = {
        PETER_VKEY[:i] + chr(ord(PETER_VKEY[i]) + 1) + PETER_VKEY[i + 1 :]
        for i in range(len(PETER_VKEY))
    }
    others = {
        "",
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    }
    for vkey in (parts | changed | others) - {PETER_VKEY}:
        with pytest.raises(ProofError):
            Verifier.parse(vkey)


def test_signing_gives_the_note_that_go_gives() -> None:
    signed = note.sign_note(TEXT, [signer("PeterNeumann", seed=PETER_SEED)], 0)
    assert signed == f"{TEXT}\n{PETER}"


def test_known_keys_are_checked_and_others_ignored() -> None:
    whole = f"{TEXT}\n{PETER}{ENOCH}"
    one = note.open_note(whole, keys(PETER_VKEY))
    assert one.text == TEXT
    assert [found.verifier.name for found in one.verified] == ["PeterNeumann"]
    assert [found.name for found in one.signatures] == ["PeterNeumann", "EnochRoot"]
    both = note.open_note(whole.encode(), keys(PETER_VKEY, ENOCH_VKEY, ENOCH_VKEY))
    assert [found.verifier.name for found in both.verified] == ["PeterNeumann", "EnochRoot"]
    with pytest.raises(ProofError, match=r"no known key, only by PeterNeumann\+c74f20a3"):
        note.open_note(f"{TEXT}\n{PETER}", keys(ENOCH_VKEY))
    with pytest.raises(ProofError, match="no known key"):
        note.open_note(whole, [])


def test_one_wrong_signature_of_a_known_key_spoils_the_note() -> None:
    wrong = f"{TEXT}\n{ENOCH}{PETER[:60]}ABCD{PETER[60:]}"
    with pytest.raises(ProofError, match="PeterNeumann"):
        note.open_note(wrong, keys(PETER_VKEY, ENOCH_VKEY))
    assert note.open_note(wrong, keys(ENOCH_VKEY)).text == TEXT
    # Also when a right one of the same key stands before it.
    twice = f"{TEXT}\n{PETER}{PETER[:60]}ABCD{PETER[60:]}"
    with pytest.raises(ProofError, match="wrong"):
        note.open_note(twice, keys(PETER_VKEY))


def test_every_changed_byte_of_a_note_is_found() -> None:
    whole = f"{TEXT}\n{PETER}".encode()
    for place in range(len(whole)):
        for bit in (0x01, 0x20):
            changed = bytearray(whole)
            changed[place] ^= bit
            with pytest.raises(ProofError):
                note.open_note(bytes(changed), keys(PETER_VKEY))


@pytest.mark.parametrize(
    "message",
    [
        TEXT,
        TEXT + "\n",
        TEXT + "\n" + PETER[:-1],
        "\x01" + TEXT + "\n" + PETER,
        TEXT.replace("\n", "\r\n") + "\n" + PETER,
        "\ud800" + TEXT + "\n" + PETER,
        b"\xff" + f"{TEXT}\n{PETER}".encode(),
        TEXT + "\n" + PETER.replace("PeterNeumann", "Bad Name"),
        TEXT + "\n" + PETER.replace("PeterNeumann", "Bad\u2003Name"),
        TEXT + "\n" + PETER.replace("PeterNeumann", ""),
        TEXT + "\n" + PETER.replace("PeterNeumann", "Peter+Neumann"),
        TEXT + "\n" + PETER.replace("—", "-"),
        TEXT + "\n" + PETER + "Unexpected line.\n",
        TEXT + "\n" + PETER + "\n",
        TEXT + "\n— PeterNeumann\n",
        TEXT + "\n— PeterNeumann \n",
        TEXT + "\n— PeterNeumann x08gow==\n",
        TEXT + "\n" + PETER.replace("AM=", "AN="),  # the same bytes, spelled otherwise
        TEXT + "\n" + PETER * (note.MAX_SIGNATURES + 1),
        "x" * note.MAX_NOTE_SIZE + "\n\n" + PETER,
    ],
    ids=range(20),
)
def test_malformed_notes_are_refused(message: str | bytes) -> None:
    with pytest.raises(ProofError):
        note.open_note(message, keys(PETER_VKEY))
    with pytest.raises(ProofError):
        note.parse_note(message)


def test_sixteen_signatures_and_more_are_accepted() -> None:
    others = "".join(ENOCH.replace("EnochRoot", f"other{number}") for number in range(99))
    assert note.open_note(f"{TEXT}\n{others}{PETER}", keys(PETER_VKEY)).text == TEXT


def test_the_text_ends_at_the_last_empty_line() -> None:
    for text in ("a\n\nb\n", "a\n\n", "\n", "a\u2028b\u0085c\n"):
        signed = note.sign_note(text, [signer("x")], 0)
        assert note.open_note(signed, [signer("x").verifier]).text == text


def test_a_cosignature_has_the_form_of_the_specification() -> None:
    parsed = note.parse_note(COSIGNED)
    witness = parsed.signatures[1]
    assert (witness.name, f"{witness.key_id:08x}") == ("witness.example.com/w1", "8d66cf3f")
    assert len(witness.blob) == 8 + 64
    timestamp = int.from_bytes(witness.blob[:8], "big")
    assert timestamp == 1679315147
    assert note.cosigned_message(parsed.text, timestamp) == COSIGNED_MESSAGE


def test_a_cosignature_carries_and_covers_its_time() -> None:
    cosigner = signer("w", COSIGNATURE)
    signed = note.sign_note("o\n1\nr\n", [cosigner], 1_700_000_000)
    (found,) = note.open_note(signed, [cosigner.verifier]).verified
    assert found.timestamp == 1_700_000_000
    key = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32).public_key()
    blob = note.parse_note(signed).signatures[0].blob
    key.verify(blob[8:], b"cosignature/v1\ntime 1700000000\no\n1\nr\n")
    line = signed.split(" ")[-1].strip()
    raw = bytearray(base64.b64decode(line))
    raw[11] ^= 1  # the time's last byte
    with pytest.raises(ProofError, match="wrong"):
        note.open_note(signed.replace(line, base64.b64encode(raw).decode()), [cosigner.verifier])


@pytest.mark.parametrize("blob", [bytes(71), bytes(73), b"\x80" + bytes(71)])
def test_impossible_cosignatures_are_refused(blob: bytes) -> None:
    with pytest.raises(ProofError, match="cosignature"):
        signer("w", COSIGNATURE).verifier.verify("o\n", blob)


def test_one_public_key_has_another_id_for_each_kind_of_signature() -> None:
    plain, cosigner = signer("n"), signer("n", COSIGNATURE)
    assert plain.verifier.key_id != cosigner.verifier.key_id
    with pytest.raises(ProofError, match="no known key"):
        note.open_note(note.sign_note("o\n", [plain], 1), [cosigner.verifier])


def test_two_keys_with_one_name_and_id_are_refused() -> None:
    """An id is four bytes: a collision can be made, and must not pick a key by luck."""

    class Colliding(Verifier):
        @property
        def key_id(self) -> int:
            return 7

    colliding = [Colliding("n", ED25519, bytes([number]) * 32) for number in (1, 2)]
    line = base64.b64encode((7).to_bytes(4, "big") + bytes(64)).decode()
    with pytest.raises(ProofError, match="two different keys"):
        note.open_note(f"o\n\n— n {line}\n", colliding)


def test_a_signer_whose_public_key_is_another_is_found_when_it_signs() -> None:
    wrong = Signer(signer("n").verifier, signer("n", seed=b"\x02" * 32).sign)
    with pytest.raises(TrailKeyError, match="public key"):
        note.sign_note("o\n", [wrong], 1)


@pytest.mark.parametrize("text", ["", "no newline", "a\tb\n", "a\rb\n"])
def test_a_text_that_no_note_can_have_is_not_signed(text: str) -> None:
    with pytest.raises(ProofError):
        note.sign_note(text, [signer("n")], 1)


CHARACTERS = st.characters(codec="utf-8", exclude_characters=[chr(code) for code in range(32)])


@given(st.lists(st.text(CHARACTERS), min_size=1))
def test_any_text_survives_signing_and_opening(lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    both = [signer("a"), signer("b/c", COSIGNATURE)]
    opened = note.open_note(note.sign_note(text, both, 5), [one.verifier for one in both])
    assert opened.text == text
    assert [found.timestamp for found in opened.verified] == [None, 5]


@given(st.one_of(st.text(), st.binary()))
def test_garbage_raises_only_proof_errors(garbage: str | bytes) -> None:
    with pytest.raises(ProofError):
        note.open_note(garbage, keys(PETER_VKEY))
    if isinstance(garbage, str):
        with pytest.raises(ProofError):
            Verifier.parse(garbage)
