"""The key file: made once and whole, for its owner's eyes only, for one origin."""

from __future__ import annotations

import base64
import copy
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from otel_audit.errors import TrailKeyError
from otel_audit.trail import keys as module
from otel_audit.trail.checkpoint import Checkpoint, open_checkpoint, sign
from otel_audit.trail.keys import TrailKeys, new_origin
from otel_audit.trail.note import check_name

ORIGIN = "otel-audit.local/shop/web-1/0a1b2c3d"
# golang.org/x/mod, sumdb/note/note_test.go.
GO_KEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "signing.key"


def test_keys_are_made_once_and_read_afterwards(path: Path) -> None:
    made = TrailKeys.load_or_create(path, ORIGIN)
    assert (path.stat().st_mode & 0o7777) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["signing.key"]
    before = path.read_bytes()
    for again in (TrailKeys.load_or_create(path, ORIGIN), TrailKeys.load(path)):
        assert again.verifier_keys() == made.verifier_keys()
        assert again.origin == ORIGIN
    assert path.read_bytes() == before


def test_the_umask_does_not_matter(path: Path) -> None:
    old = os.umask(0o777)
    try:
        TrailKeys.load_or_create(path, ORIGIN)
    finally:
        os.umask(old)
    assert (path.stat().st_mode & 0o7777) == 0o600


def test_the_file_has_the_form_of_go(path: Path) -> None:
    made = TrailKeys.load_or_create(path, ORIGIN)
    log, cosigner = path.read_text().splitlines()
    for line, vkey, kind in zip((log, cosigner), made.verifier_keys(), (1, 4), strict=True):
        private, key, name, key_id, encoded = line.split("+", 4)
        assert [private, key] == ["PRIVATE", "KEY"]
        assert vkey.startswith(f"{name}+{key_id}+")
        material = base64.b64decode(encoded)
        assert (len(material), material[0]) == (33, kind)
        public = Ed25519PrivateKey.from_private_bytes(material[1:]).public_key()
        assert public.public_bytes_raw() == base64.b64decode(vkey.split("+", 2)[2])[1:]
    assert made.verifier_keys()[1].startswith(f"{ORIGIN}/cosigner+")


def test_a_key_of_go_gives_the_verifier_key_of_go() -> None:
    assert str(module._PrivateKey.parse(GO_KEY).verifier()) == GO_VKEY
    assert module._PrivateKey.parse(GO_KEY).encode() == GO_KEY


def test_no_mangled_key_is_accepted_and_none_is_repeated_in_an_error() -> None:
    """Go's TestNewSigner."""
    parts = {GO_KEY[i:j] for i in range(len(GO_KEY)) for j in range(i + 1, len(GO_KEY) + 1)}
    changed = {GO_KEY[:i] + chr(ord(GO_KEY[i]) + 1) + GO_KEY[i + 1 :] for i in range(len(GO_KEY))}
    for text in (parts | changed) - {GO_KEY}:
        with pytest.raises(TrailKeyError) as caught:
            module._PrivateKey.parse(text)
        assert "AYEKFALV" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o606, 0o620, 0o601])
def test_a_file_that_others_can_use_is_refused(path: Path, mode: int) -> None:
    TrailKeys.load_or_create(path, ORIGIN)
    path.chmod(mode)
    with pytest.raises(TrailKeyError, match=rf"{mode:04o}.*chmod 600.*new-origin"):
        TrailKeys.load_or_create(path, ORIGIN)


def test_the_key_of_another_origin_is_refused(path: Path) -> None:
    TrailKeys.load_or_create(path, "elsewhere")
    with pytest.raises(TrailKeyError, match=f"belongs to elsewhere, this trail is {ORIGIN}"):
        TrailKeys.load_or_create(path, ORIGIN)


def test_a_missing_key_is_only_made_when_that_is_asked_for(path: Path) -> None:
    with pytest.raises(TrailKeyError, match="there is no signing key"):
        TrailKeys.load(path, ORIGIN)
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"secret",
        b"\xff\xfe",
        f"{GO_KEY}\n".encode(),
        f"{GO_KEY}\n{GO_KEY}\n".encode(),
        b"-----BEGIN PRIVATE KEY-----\n",
    ],
)
def test_malformed_files_are_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(TrailKeyError, match=r"signing\.key.*put back .*new-origin"):
        TrailKeys.load_or_create(path, ORIGIN)
    assert path.read_bytes() == content


def test_the_cosigner_must_be_of_the_same_origin() -> None:
    log = TrailKeys.generate(ORIGIN).to_text().splitlines()[0]
    cosigner = TrailKeys.generate("elsewhere").to_text().splitlines()[1]
    with pytest.raises(TrailKeyError, match="elsewhere/cosigner"):
        TrailKeys.from_text(f"{log}\n{cosigner}\n")
    with pytest.raises(TrailKeyError, match="two signing keys"):
        TrailKeys.from_text(f"{cosigner}\n{log}\n")


@pytest.mark.parametrize("gap", ["\n", " ", "\r\n", "  \n\n "])
def test_a_setting_can_hold_the_keys_in_one_line(gap: str) -> None:
    made = TrailKeys.generate(ORIGIN)
    read = TrailKeys.from_text(made.to_text().replace("\n", gap), ORIGIN)
    assert read.verifier_keys() == made.verifier_keys()
    assert read.to_text() == made.to_text()


def test_directories_pipes_and_unwritable_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("directory", "pipe"):
        with pytest.raises(TrailKeyError, match="regular file"):
            TrailKeys.load(tmp_path / name)
    with pytest.raises(TrailKeyError, match="cannot be written"):
        TrailKeys.load_or_create(tmp_path / "missing" / "signing.key", ORIGIN)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(TrailKeyError, match="cannot be read"):
        TrailKeys.load(tmp_path / "loop")


def test_a_link_to_the_key_is_followed(tmp_path: Path) -> None:
    """Secrets are mounted into containers as links."""
    made = TrailKeys.load_or_create(tmp_path / "real", ORIGIN)
    (tmp_path / "link").symlink_to("real")
    assert TrailKeys.load(tmp_path / "link").verifier_keys() == made.verifier_keys()


def test_all_threads_get_the_same_keys(path: Path) -> None:
    found: list[tuple[str, str]] = []
    barrier = threading.Barrier(8)

    def load() -> None:
        barrier.wait()
        found.append(TrailKeys.load_or_create(path, ORIGIN).verifier_keys())

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {TrailKeys.load(path).verifier_keys()}
    assert [entry.name for entry in path.parent.iterdir()] == ["signing.key"]


def test_all_processes_get_the_same_keys(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from otel_audit.trail.keys import TrailKeys; "
        "sys.stdin.read(1); print(*TrailKeys.load_or_create(Path(sys.argv[1]), sys.argv[2])"
        ".verifier_keys())"
    )
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), ORIGIN],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    printed = {process.communicate("x")[0].strip() for process in processes}
    assert printed == {" ".join(TrailKeys.load(path).verifier_keys())}


def test_a_crash_while_writing_leaves_no_half_key(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TrailKeyError, match="cannot be written"):
        TrailKeys.load_or_create(path, ORIGIN)
    assert list(path.parent.iterdir()) == []


def test_private_parts_never_show() -> None:
    made = TrailKeys.generate(ORIGIN)
    seeds = [line.split("+")[4] for line in made.to_text().splitlines()]
    shown = repr(made) + str(made) + repr(made.log) + repr(made.cosigner) + repr(made._private)
    assert not any(seed in shown for seed in seeds)
    assert not any(repr(key.seed) in shown for key in made._private or ())
    assert all(vkey in repr(made) for vkey in made.verifier_keys())
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            leak(made)


def test_signers_elsewhere_can_sign() -> None:
    log, cosigner = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    asked: list[bytes] = []

    def log_sign(message: bytes) -> bytes:
        asked.append(message)
        return log.sign(message)

    made = TrailKeys.from_signers(
        ORIGIN,
        log_sign=log_sign,
        log_public=log.public_key().public_bytes_raw(),
        cosigner_sign=cosigner.sign,
        cosigner_public=cosigner.public_key().public_bytes_raw(),
    )
    head = Checkpoint(ORIGIN, 1, bytes(32))
    assert open_checkpoint(sign(head, made, 5), made.verifiers()).timestamp == 5
    assert asked == [head.text().encode()]
    with pytest.raises(TrailKeyError, match="not held by this process"):
        made.to_text()


@pytest.mark.parametrize(("origin", "length"), [(ORIGIN, 31), ("with space", 32), ("a+b", 32)])
def test_unusable_signers_are_refused(origin: str, length: int) -> None:
    with pytest.raises(TrailKeyError):
        TrailKeys.from_signers(
            origin,
            log_sign=lambda _: b"",
            log_public=bytes(length),
            cosigner_sign=lambda _: b"",
            cosigner_public=bytes(32),
        )


def test_origins_are_new_each_time_and_always_usable() -> None:
    assert new_origin("shop", "web-1").rsplit("/", 1)[0] == "otel-audit.local/shop/web-1"
    assert len({new_origin("shop", "web-1") for _ in range(50)}) == 50
    for service, host in (
        ("my service+1", "h\u00f6st/../x"),
        ("", " "),
        ("\n", "\u2003"),
        ("..", "a" * 300),
        ("\ud800", "\x00"),
    ):
        origin = new_origin(service, host)
        check_name(origin)
        assert origin.isascii()
        prefix, *parts = origin.split("/")
        assert (prefix, len(parts)) == ("otel-audit.local", 3)
        assert all(0 < len(part) <= 63 and part.strip(".") for part in parts)
        TrailKeys.from_text(TrailKeys.generate(origin).to_text(), origin)
