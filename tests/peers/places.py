"""Makes tests/fixtures/places.mmdb, the places of src/places.rs's tests, anew.

    python3 -m pip install mmdb_writer==0.2.7
    python3 tests/peers/places.py

The addresses are those that documents may use (RFC 5737, RFC 3849). Besides good entries there are some that a broken or
hostile file may hold. The same program gives the same bytes.
"""

import time
from pathlib import Path

from mmdb_writer import MMDBWriter
from netaddr import IPSet

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "places.mmdb"


def place(country, city=None, iso_code=None):
    entry = {"country": {"names": {"en": country}}}
    if iso_code:
        entry["country"]["iso_code"] = iso_code
    if city:
        entry["city"] = {"names": city if isinstance(city, dict) else {"en": city}}
    return entry


ENTRIES = {
    "192.0.2.0/24": place("Nigeria", {"de": "Lagos (de)", "en": "Lagos"}, "NG"),
    "198.51.100.0/24": place("Switzerland", "Zürich", "CH"),
    "2001:db8::/32": place("Kenya", iso_code="KE"),
    # No English name.
    "203.0.113.0/28": {"country": {"names": {"de": "Schweiz"}}, "city": {"names": {"de": "Bern"}}},
    # Control characters, a change of direction, white space around.
    "203.0.113.16/28": place(" Nige\u0000ria\r\nBcc: x\u202e\u200b ", "\u001b[2JLagos\u007f\u0085"),
    # Far too long, in letters of two bytes.
    "203.0.113.32/28": place("ü" * 250, "x" * 100),
    # The city is a number; the country is right.
    "203.0.113.48/28": {"country": {"names": {"en": "Ghana"}}, "city": 7},
    # Nothing but white space.
    "203.0.113.64/28": place(" \t ", "\u00a0"),
    # The entry is not a map.
    "203.0.113.80/28": "Accra",
    # An organisation's own addresses, which the gateway is not to place.
    "10.0.0.0/8": place("Nowhere", "Office"),
    "100.64.0.0/10": place("Nowhere", "Carrier"),
    "fd00::/8": place("Nowhere", "Office"),
    "fe80::/10": place("Nowhere", "Link"),
}


def main():
    # The writer notes when a file was made.
    time.time = lambda: 1_767_225_600.0
    writer = MMDBWriter(
        ip_version=6,
        ipv4_compatible=True,
        database_type="Bifrons-Test-City",
        languages=["en"],
        description="Places for the tests of bifrons",
    )
    for network, entry in ENTRIES.items():
        writer.insert_network(IPSet([network]), entry)
    FIXTURE.parent.mkdir(exist_ok=True)
    writer.to_db_file(str(FIXTURE))
    print(f"{FIXTURE.name}: {FIXTURE.stat().st_size} bytes")


main()
