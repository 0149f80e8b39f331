"""Logins, lock-outs, sessions and roles, and what the trail says about them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from examples.agenthub.accounts import (
    AccountError,
    Accounts,
    LoginError,
    Role,
    User,
    check_password,
    hash_password,
)
from examples.agenthub.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable

    from examples.agenthub.store import Store
    from tests.examples.conftest import Records


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(records: Callable[[], Records], store: Store, clock: Clock) -> Accounts:
    assert records() == []
    accounts = Accounts(store, Config(attempts=3, lock_seconds=60, session_seconds=100), clock)
    accounts.create("vera", "right-password", Role.AUDITOR, "joined")
    return accounts


def refused(accounts: Accounts, name: str, password: str) -> str:
    with pytest.raises(LoginError) as error:
        accounts.login(name, password)
    return error.value.reason


def test_a_password_is_stored_as_a_salted_hash() -> None:
    one, other = hash_password("s3cret"), hash_password("s3cret")
    assert one != other
    assert "s3cret" not in one
    assert check_password("s3cret", one)
    assert not check_password("s3creT", one)


def test_a_session_ends_with_time_or_log_out(accounts: Accounts, clock: Clock) -> None:
    token = accounts.login("vera", "right-password")
    user = accounts.user_of(token)
    assert user == User("vera", Role.AUDITOR)
    clock.now += 99
    assert accounts.user_of(token) == user
    clock.now += 1
    assert accounts.user_of(token) is None
    token = accounts.login("vera", "right-password")
    accounts.logout(token, User("vera", Role.AUDITOR))
    assert accounts.user_of(token) is None
    assert accounts.user_of("made-up") is None


def test_too_many_failures_lock_the_account_for_a_while(
    accounts: Accounts, clock: Clock, records: Callable[[], Records]
) -> None:
    for _ in range(3):
        assert refused(accounts, "vera", "wrong") == "wrong password"
    assert refused(accounts, "vera", "right-password") == "account is locked"
    assert [user.locked for user in accounts.users()] == [True]
    (locked,) = [record for record in records() if record["event"] == "account_locked"]
    assert locked["level"] == "warning"
    assert locked["user_id"] == "vera"
    clock.now += 61
    assert accounts.login("vera", "right-password")


def test_a_success_forgives_earlier_failures(accounts: Accounts) -> None:
    for _ in range(3):
        refused(accounts, "vera", "wrong")
        refused(accounts, "vera", "wrong")
        accounts.login("vera", "right-password")


def test_guesses_made_in_parallel_all_count(
    accounts: Accounts, records: Callable[[], Records]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        reasons = list(pool.map(lambda _: refused(accounts, "vera", "wrong"), range(8)))
    assert reasons.count("wrong password") == 3
    assert reasons.count("account is locked") == 5
    assert sum(record["event"] == "account_locked" for record in records()) == 1


def test_an_administrator_unlocks(accounts: Accounts, records: Callable[[], Records]) -> None:
    for _ in range(3):
        refused(accounts, "vera", "wrong")
    accounts.unlock("vera", "called in")
    assert accounts.login("vera", "right-password")
    (unlocked,) = [record for record in records() if record["event"] == "admin_action"]
    assert unlocked["action"] == "unlock_account"
    assert unlocked["reason"] == "called in"


def test_what_was_typed_as_a_name_is_not_recorded_unless_it_is_one(
    accounts: Accounts, records: Callable[[], Records]
) -> None:
    assert refused(accounts, "right-password", "vera") == "unknown account"
    record = records()[-1]
    assert record["user_id"] == "(unknown account)"
    assert record["status"] == "failed"
    assert record["error"] == "unknown account"
    assert "right-password" not in str(records())


def test_a_change_of_role_says_from_what_to_what_and_why(
    accounts: Accounts, records: Callable[[], Records]
) -> None:
    token = accounts.login("vera", "right-password")
    accounts.set_role("vera", Role.ADMIN, "promoted")
    user = accounts.user_of(token)
    assert user is not None
    assert user.may("users")
    record = records()[-1]
    assert record["event"] == "privilege_change"
    assert (record["former_privilege"], record["privilege"]) == ("auditor", "admin")
    assert record["reason"] == "promoted"


def test_a_new_password_ends_all_sessions(accounts: Accounts) -> None:
    token = accounts.login("vera", "right-password")
    accounts.set_password("vera", "new-password", "forgotten")
    assert accounts.user_of(token) is None
    assert refused(accounts, "vera", "right-password") == "wrong password"
    assert accounts.login("vera", "new-password")


def test_names_are_unique_and_must_exist(
    accounts: Accounts, records: Callable[[], Records]
) -> None:
    with pytest.raises(AccountError, match="exists already"):
        accounts.create("vera", "another", Role.ADMIN, "impostor")
    assert records()[-1]["status"] == "failed"
    assert accounts.login("vera", "right-password")
    for change in (
        lambda: accounts.set_role("nobody", Role.ADMIN, "why"),
        lambda: accounts.unlock("nobody", "why"),
        lambda: accounts.set_password("nobody", "password", "why"),
    ):
        with pytest.raises(AccountError, match="no account named 'nobody'"):
            change()
