"""What a guest says of its own address is believed only where it can be true."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.host.guests import believable


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (["10.9.0.5"], "10.9.0.5"),
        (["172.17.0.1", "10.9.0.5"], "10.9.0.5"),  # of containers in it
        (["127.0.0.1", "10.9.0.1", "192.0.2.7"], None),  # ours, the gateway's, somewhere outside
        (["10.9.0.9"], None),  # another's
        (["host.example", "10.9.0.5\n", ""], None),
    ],
)
def test_a_guests_word_leads_to_itself_only(told: list[str], expected: str | None) -> None:
    assert believable(told, "10.9.0.0/24", {"10.9.0.9"}) == expected


def test_nothing_is_believed_where_there_is_no_network() -> None:
    assert believable(["10.9.0.5"], None, ()) is None


@given(st.lists(st.text(max_size=20)))
def test_any_text_is_an_address_or_none(told: list[str]) -> None:
    assert believable(told, "10.9.0.0/24", ()) in (None, *told)
