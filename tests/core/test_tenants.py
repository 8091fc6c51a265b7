"""Who may see which refs, and which bytes may stand for them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.allow import AllowList
from weightd.core.errors import AccessDenied, RefNotAllowed
from weightd.core.refs import parse_ref
from weightd.core.tenants import NOBODY, REMEMBERED, Tenant, Tenants, covered, union

A = Tenant("a", 1001, AllowList(["hf://org-a/*", "https://shared/", "tiny"]))
B = Tenant("b", 1002, AllowList(["hf://org-b/*", "https://shared/"]), operate=True)
BOTH = Tenants([A, B])


@pytest.mark.parametrize(
    ("ref", "who"),
    [
        ("hf://org-a/m", {"a"}),
        ("hf://org-b/m@main", {"b"}),
        ("https://shared/x.gguf", {"a", "b"}),
        ("https://user:pw@shared/x.gguf", set()),
        ("https://shared/x.gguf?sig=1", set()),
        ("hf://org-a/m?include=*.gguf", {"a"}),
        ("tiny", {"a"}),
        ("other", set()),
        ("hf://org-c/m", set()),
    ],
)
def test_who_may_see_a_ref(ref: str, who: set[str]) -> None:
    assert BOTH.who(parse_ref(ref)) == who
    assert Tenants().who(parse_ref(ref)) == NOBODY


def test_groups_are_those_of_the_scope() -> None:
    assert BOTH.gids(frozenset("ab")) == {1001, 1002}
    assert BOTH.gids(NOBODY) == frozenset()


def test_asking_for_ever_more_refs_keeps_no_more() -> None:
    tenants = Tenants([A])
    for number in range(REMEMBERED + 100):
        tenants.who(parse_ref(f"hf://org-a/m{number}"))
    assert tenants._who.cache_info().currsize == REMEMBERED


def test_a_refusal_names_the_ref_without_its_credentials() -> None:
    with pytest.raises(RefNotAllowed) as e:
        A.check(parse_ref("https://user:secret@other/x?token=secret"))
    assert "secret" not in str(e.value)
    assert e.value.remedy
    for ref in ("https://user:secret@shared/x", "https://shared/x?token=secret"):
        with pytest.raises(RefNotAllowed, match="password or a query"):
            A.check(parse_ref(ref))
    A.check(parse_ref("tiny"))


def test_who_may_operate() -> None:
    B.check_operator()
    with pytest.raises(AccessDenied) as e:
        A.check_operator()
    assert type(e.value) is AccessDenied
    assert e.value.remedy


SCOPES = st.frozensets(st.sampled_from("abcd"))


@given(wanted=SCOPES, delivered=st.lists(SCOPES, max_size=4))
def test_bytes_stand_for_a_ref_only_where_nobody_gets_what_he_could_not_get(
    wanted: frozenset[str], delivered: list[frozenset[str]]
) -> None:
    """As the rule is meant: each who may see the ref may see one for which the bytes came."""
    assert covered(wanted, delivered) == all(any(t in scope for scope in delivered) for t in wanted)


@given(wanted=SCOPES, delivered=st.lists(SCOPES, max_size=4), more=SCOPES)
def test_more_deliveries_take_nothing_away(
    wanted: frozenset[str], delivered: list[frozenset[str]], more: frozenset[str]
) -> None:
    if covered(wanted, delivered):
        assert covered(wanted, [*delivered, more])
        for fewer in itertools.combinations(sorted(wanted), len(wanted) // 2):
            assert covered(frozenset(fewer), delivered)


def test_without_a_delivery_nobody_but_nobody_is_covered() -> None:
    assert covered(NOBODY, [])
    assert not covered(frozenset("a"), [])
    assert union([]) == NOBODY
