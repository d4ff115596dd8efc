"""Prints password hashes as the Django of this interpreter makes them, one JSON object per line:
`{"scheme", "django", "password", "hash"}`; `scheme` is `unusable` for what no password fits.

`src/services/imported_hashes.rs` is tested against the output that is kept in
`tests/fixtures/django_hashes.jsonl`. To renew it, make an environment for each Django (1.11 needs
Python 3.6, 2.2 to 5.2 run on Python 3.11, 6.0 needs 3.12) with `pip install Django==X argon2-cffi
'bcrypt<5'` (`'argon2-cffi<21'` before Django 4, for the shorter hashes of those days), then

    for version in 1.11 2.2 3.2 4.2 5.2 6.0; do
        PATH-TO/$version/bin/python tests/peers/django_hashes.py
    done > tests/fixtures/django_hashes.jsonl

bcrypt 5 refuses passwords of more than 72 bytes, which its elders cut; Django's users have both.
"""

import json
import sys

import bcrypt
import django
from django.conf import settings

settings.configure()

from django.contrib.auth import hashers  # noqa: E402

if int(bcrypt.__version__.split(".")[0]) >= 5:
    sys.exit("bcrypt below 5 is needed here")

PLAIN = "correct horse battery"
UNICODE = "p\u00e4ssw\u00f6rd-\u6f22\u5b57-\U0001f511-\u0644"
LONG = "violet-Kettle-93/" * 7
# 72 bytes end in the middle of a character.
LONG_UNICODE = "x" + "\u00e9" * 60
# Counts of versions that are not asked for themselves: 4.1, 5.0, 5.1, 6.1.
FORCED_PBKDF2 = [390000, 720000, 870000, 1500000]
VERSION = tuple(int(part) for part in django.__version__.split(".")[:2])


def show(scheme, password, encoded):
    line = {"scheme": scheme, "django": django.__version__, "password": password, "hash": encoded}
    print(json.dumps(line, sort_keys=True))


def own(hasher, password, **others):
    """With the salt that this Django makes."""
    encoded = hasher.encode(password, hasher.salt(), **others)
    assert hasher.verify(password, encoded)
    show(hasher.algorithm, password, encoded)


# As this version makes them when nobody sets anything.
own(hashers.PBKDF2PasswordHasher(), UNICODE)
if VERSION < (3, 0):
    own(hashers.PBKDF2SHA1PasswordHasher(), UNICODE)
own(hashers.Argon2PasswordHasher(), UNICODE)
own(hashers.BCryptSHA256PasswordHasher(), PLAIN)
own(hashers.BCryptPasswordHasher(), PLAIN)
if VERSION >= (4, 0):
    own(hashers.ScryptPasswordHasher(), UNICODE)
show("unusable", PLAIN, hashers.make_password(None))


class CheapSha256(hashers.BCryptSHA256PasswordHasher):
    rounds = 4


class CheapBcrypt(hashers.BCryptPasswordHasher):
    rounds = 5


# Cheap ones, for every kind of password.
for password in (PLAIN, UNICODE, LONG, LONG_UNICODE, "a" * 71, "a" * 72, "a" * 73):
    own(CheapSha256(), password)
    own(CheapBcrypt(), password)
    own(hashers.PBKDF2SHA1PasswordHasher(), password, iterations=1)
    own(hashers.PBKDF2PasswordHasher(), password, iterations=1000)


class OtherArgon2(hashers.Argon2PasswordHasher):
    time_cost = 3
    memory_cost = 1024
    parallelism = 4


own(OtherArgon2(), LONG_UNICODE)

if VERSION == (5, 2):
    for iterations in FORCED_PBKDF2:
        own(hashers.PBKDF2PasswordHasher(), PLAIN, iterations=iterations)
    for n, r, p in ((16384, 8, 1), (8192, 16, 2), (1024, 8, 16)):
        own(hashers.ScryptPasswordHasher(), PLAIN, n=n, r=r, p=p)
