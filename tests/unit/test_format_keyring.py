"""Keyrings: what opens a volume, and what must not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from s3fs_banyan.errors import Corrupt, UnsupportedVersion
from s3fs_banyan.format.keyring import (
    DataKey,
    Keyring,
    Secret,
    decode_keyring,
    encode_keyring,
    unwrap,
    wrap,
)
from s3fs_banyan.format.sealed_json import open_json, seal_json

DATA_KEY = DataKey(key=bytes(range(32)), domain=bytes(range(16)))
WORD = Secret(passphrase="correct horse battery")
FILE = Secret(key_file=bytes(range(100, 140)))
_DRAWN = iter(range(1, 1 << 30))


def _bytes(count: int) -> bytes:
    return next(_DRAWN).to_bytes(count, "little")


def _keyring(*secrets: Secret) -> Keyring:
    slots = tuple(wrap(DATA_KEY, secret, _bytes, scrypt_n=1 << 10) for secret in secrets)
    domain = DATA_KEY.domain.hex()
    return Keyring(volume_id="5e" * 16, domain=domain, generation=3, created_ns=9, slots=slots)


def test_each_secret_opens_and_no_other() -> None:
    """A passphrase and a key file, each alone; a wrong one of each kind opens nothing."""
    keyring = decode_keyring(encode_keyring(_keyring(WORD, FILE)), "k")
    wrong_word, wrong_file = Secret(passphrase="correct horse batterz"), Secret(key_file=bytes(40))
    assert unwrap(keyring, [WORD]) == unwrap(keyring, [FILE]) == DATA_KEY
    assert unwrap(keyring, [wrong_word, wrong_file, FILE]) == DATA_KEY
    assert unwrap(keyring, [wrong_word, wrong_file]) is None
    assert unwrap(keyring, []) is None


def test_salts_and_nonces_are_drawn_anew() -> None:
    """A wrapping key that wrapped twice under one nonce would give itself away."""
    first, second = _keyring(WORD, WORD).slots
    assert len({first.salt, second.salt}) == len({first.nonce, second.nonce}) == 2
    assert first.wrapped != second.wrapped


@pytest.mark.parametrize("secret", [WORD, FILE], ids=lambda s: s.kind)
@pytest.mark.parametrize("field", ["salt", "nonce", "wrapped"])
def test_a_changed_slot_opens_nothing(secret: Secret, field: str) -> None:
    """Also not to another key."""
    keyring = _keyring(secret)
    (slot,) = keyring.slots
    value = getattr(slot, field)
    changed = replace(slot, **{field: ("0" if value[0] != "0" else "1") + value[1:]})
    assert unwrap(replace(keyring, slots=(changed,)), [secret]) is None


def test_a_slot_is_bound_to_its_domain_and_numbers() -> None:
    """Nobody can move one to another volume, or weaken its derivation."""
    keyring = _keyring(FILE)
    assert unwrap(replace(keyring, domain="00" * 16), [FILE]) is None
    (slot,) = keyring.slots
    assert unwrap(replace(keyring, slots=(replace(slot, scrypt_r=1),)), [FILE]) is None


def test_nothing_shows_a_secret() -> None:
    """A failed assertion, a traceback, a debug log."""
    shown = repr([WORD, FILE, DATA_KEY])
    assert "horse" not in shown
    assert repr(FILE.key_file) not in shown
    assert repr(DATA_KEY.key) not in shown


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"scrypt_n": 1 << 21, "scrypt_r": 8}, "out of range"),
        ({"scrypt_n": 1000}, "out of range"),
        ({"scrypt_n": 1}, "out of range"),
        ({"scrypt_r": 0}, "out of range"),
        ({"scrypt_p": 17}, "out of range"),
        ({"scrypt_n": 1 << 17, "scrypt_r": 1}, "out of range"),
        ({"scrypt_n": 1 << 16, "scrypt_r": 1}, "out of range"),
        ({"scrypt_n": 2, "scrypt_r": 1 << 20, "scrypt_p": 16}, "out of range"),
        ({"scrypt_n": 1 << 64}, "no number"),
        ({"created_ns": 1}, "unknown one"),
        ({"scrypt_n": "1024"}, "no number"),
        ({"kind": "retina"}, "unknown kind"),
        ({"salt": "00"}, "not 16 bytes"),
        ({"wrapped": "GG" * 48}, "not 48 bytes"),
        ({"extra": 1}, "unknown one"),
    ],
    ids=str,
)
def test_a_slot_that_cannot_be_used_is_damage(change: dict[str, object], why: str) -> None:
    """The numbers say how much this machine is to work: they are bounded before it begins."""
    body = open_json(encode_keyring(_keyring(WORD)), "keyring", 1, "k")
    slots = body["slots"]
    assert isinstance(slots, list)
    stored = seal_json({**body, "slots": [{**slots[0], **change}]})
    with pytest.raises(Corrupt, match=why):
        decode_keyring(stored, "k")


@pytest.mark.parametrize(("n", "r", "p"), [(2, 1, 1), (1 << 15, 1, 1), (2, 2, 16), (1 << 10, 8, 2)])
def test_numbers_at_the_bounds_of_scrypt_are_used(n: int, r: int, p: int) -> None:
    """What is let through must not fail when the key is asked for: here it is a wrong one only."""
    keyring = _keyring(WORD)
    slots = (replace(keyring.slots[0], scrypt_n=n, scrypt_r=r, scrypt_p=p),)
    found = decode_keyring(encode_keyring(replace(keyring, slots=slots)), "k")
    assert unwrap(found, [WORD]) is None


def test_a_keyring_of_a_newer_version_is_refused() -> None:
    """It may derive its keys otherwise."""
    body = open_json(encode_keyring(_keyring(FILE)), "keyring", 1, "k")
    with pytest.raises(UnsupportedVersion):
        decode_keyring(seal_json({**body, "version": 2}), "k")
    assert isinstance(body["slots"], list)
    for slots in ([], [body["slots"][0]] * 9):
        with pytest.raises(Corrupt, match="malformed"):
            decode_keyring(seal_json({**body, "slots": slots}), "k")
