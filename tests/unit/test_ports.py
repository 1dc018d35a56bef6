"""Where ports are published: the candidates of a request, in order, and what answers it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from driver.firewall.ports import find_unserved, is_satisfied, order_requests, plan_candidates
from driver.model import GatewayMode, HostPort, PortBinding, Protocol, Publish
from tests.samples import binding, endpoint, network, place, pool, ports

if TYPE_CHECKING:
    from driver.model import Endpoint, Network

V4 = pool("10.1.0.1/24")
V6 = pool("fd00:1::1/64")
BOTH = ("10.1.0.2/24", "fd00:1::2/64")
EPHEMERAL = range(32768, 32772)
ROUTED, UNPROTECTED = GatewayMode.ROUTED, GatewayMode.NAT_UNPROTECTED


def net(**options: Any) -> Network:
    return network(1, pools=(V4, V6), **options)


def candidates(
    text: str, net: Network, *addresses: str, start: int = 0, most: int = 9
) -> list[list[str]]:
    """Return the candidates of a request, each as the places `docker ps` would show."""
    (request,) = ports(text)
    planned = plan_candidates(request, endpoint(1, 1, *addresses), net, EPHEMERAL, start)
    return [[str(each.host or each.container_ip) for each in one] for one in islice(planned, most)]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("8080:80", {}, [["0.0.0.0:8080/tcp", "[::]:8080/tcp"]]),
        ("8080:80/udp", {}, [["0.0.0.0:8080/udp", "[::]:8080/udp"]]),
        ("127.0.0.1:8080:80", {}, [["127.0.0.1:8080/tcp"]]),
        ("0.0.0.0:8080:80", {}, [["0.0.0.0:8080/tcp"]]),
        ("[::1]:8080:80/sctp", {}, [["[::1]:8080/sctp"]]),
        ("8080-8081:80", {}, [[f"0.0.0.0:{n}/tcp", f"[::]:{n}/tcp"] for n in (8080, 8081)]),
        (
            "80",
            {},
            [[f"0.0.0.0:{n}/tcp", f"[::]:{n}/tcp"] for n in (32768, 32769, 32770, 32771)],
        ),
        ("[::1]::80", {}, [[f"[::1]:{n}/tcp"] for n in (32768, 32769, 32770, 32771)]),
        ("8080:80", {"host_binding_ipv4": IPv4Address("192.0.2.1")}, [["192.0.2.1:8080/tcp"]]),
        (
            "8080:80",
            {"host_binding_ipv4": IPv4Address("0.0.0.0")},
            [["0.0.0.0:8080/tcp", "[::]:8080/tcp"]],
        ),
        ("8080:80", {"host_binding_ipv6": IPv6Address("::1")}, [["[::1]:8080/tcp"]]),
        (
            "127.0.0.1:8080:80",
            {"host_binding_ipv4": IPv4Address("192.0.2.1")},
            [["127.0.0.1:8080/tcp"]],
        ),
        (
            "8080:80",
            {"gateway_mode_ipv4": UNPROTECTED},
            [["0.0.0.0:8080/tcp", "[::]:8080/tcp"]],
        ),
        ("8080:80", {"gateway_mode_ipv6": ROUTED}, [["fd00:1::2", "0.0.0.0:8080/tcp"]]),
        ("8080:80", {"gateway_mode_ipv4": ROUTED}, [["10.1.0.2", "[::]:8080/tcp"]]),
        (
            "8080:80",
            {"gateway_mode_ipv4": ROUTED, "gateway_mode_ipv6": ROUTED},
            [["10.1.0.2", "fd00:1::2"]],
        ),
        (
            "127.0.0.1:8080:80",
            {"gateway_mode_ipv4": ROUTED, "gateway_mode_ipv6": ROUTED},
            [["10.1.0.2", "fd00:1::2"]],
        ),
        ("8080:80", {"internal": True}, []),
        ("8080:80", {"publish": Publish.DOCKER}, []),
    ],
)
def test_where_a_port_may_be_published(
    text: str, options: dict[str, Any], expected: list[list[str]]
) -> None:
    assert candidates(text, net(**options), *BOTH) == expected


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (("10.1.0.2/24",), [["0.0.0.0:8080/tcp"]]),
        (("fd00:1::2/64",), [["[::]:8080/tcp"]]),
        (BOTH, [["0.0.0.0:8080/tcp", "[::]:8080/tcp"]]),
    ],
)
def test_a_family_that_the_container_has_not_is_left_out(
    addresses: tuple[str, ...], expected: list[list[str]]
) -> None:
    assert candidates("8080:80", net(), *addresses) == expected


@pytest.mark.parametrize(
    ("text", "address"),
    [("[::1]:8080:80", "10.1.0.2/24"), ("127.0.0.1:8080:80", "fd00:1::2/64")],
)
def test_a_family_that_is_asked_for_and_missing_is_left_to_another(text: str, address: str) -> None:
    (request,) = ports(text)
    assert not list(plan_candidates(request, endpoint(1, 1, address), net(), EPHEMERAL, 0))


@pytest.mark.parametrize("start", [0, 32768, 32770, 32771, 32772, 70000])
def test_the_choice_goes_on_where_it_was_and_comes_round_once(start: int) -> None:
    found = [one[0] for one in candidates("80", net(), "10.1.0.2/24", start=start)]
    numbers = [place(text.removesuffix("/tcp")).port for text in found]
    assert sorted(numbers) == list(EPHEMERAL)
    assert numbers[0] == (start if start in EPHEMERAL else EPHEMERAL.start)


def test_a_binding_says_all_there_is_to_it() -> None:
    (request,) = ports("127.0.0.1:8080:80/udp")
    ((bound,),) = plan_candidates(request, endpoint(), net(), EPHEMERAL, 0)
    host = HostPort(Protocol.UDP, IPv4Address("127.0.0.1"), 8080)
    assert bound == PortBinding(Protocol.UDP, IPv4Address("10.1.0.2"), 80, host)


REQUESTS = ports(
    "80", "8000-8010:1", "8000-8001:2", "9000:3", "443:3", "81/udp", "127.0.0.1:9000:3"
)


@given(st.permutations([*REQUESTS, *REQUESTS[:2]]))
def test_fixed_ports_come_first_and_chosen_ones_last(shuffled: list[Any]) -> None:
    ordered = order_requests(shuffled)
    assert len(ordered) == len(REQUESTS)
    spans = [each.last - each.first if each.first else 65535 for each in ordered]
    assert spans == sorted(spans)
    assert ordered == order_requests(REQUESTS)


PUBLISHED = [binding("0.0.0.0:8080"), binding("[::]:8080", "[fd00:1::2]:80")]
CHOSEN = [binding("0.0.0.0:32768"), binding("[::]:32768", "[fd00:1::2]:80")]
OPENED = [binding(None), binding(None, "[fd00:1::2]:80")]


def is_answered(texts: list[str], bindings: list[PortBinding], **options: Any) -> bool:
    holder = replace(endpoint(1, 1, *BOTH), bindings=tuple(bindings))
    return is_satisfied(ports(*texts), holder, net(**options))


@pytest.mark.parametrize(
    ("texts", "bindings", "expected"),
    [
        (["8080:80"], PUBLISHED, True),
        (["8080:80", "8080:80"], PUBLISHED, True),
        (["80"], PUBLISHED, True),
        (["8000-8100:80"], PUBLISHED, True),
        (["0.0.0.0:8080:80"], PUBLISHED, False),
        (["0.0.0.0:8080:80"], PUBLISHED[:1], True),
        (["0.0.0.0:8080:80", "[::]:8080:80"], PUBLISHED, True),
        (["8080:80"], PUBLISHED[:1], False),
        ([], [], True),
        (["8080:80"], [], False),
        (["8081:80"], PUBLISHED, False),
        (["9000-9100:80"], PUBLISHED, False),
        (["127.0.0.1:8080:80"], PUBLISHED, False),
        (["8080:80/udp"], PUBLISHED, False),
        (["8080:81"], PUBLISHED, False),
        (["8080:80", "8081:81"], PUBLISHED, False),
        (["8080:80"], [*PUBLISHED, binding("0.0.0.0:8081", "10.1.0.2:81")], False),
        ([], PUBLISHED, False),
        (["8080:80", "8081:80"], PUBLISHED, False),
        (["8080:80"], [*PUBLISHED, binding("0.0.0.0:8081")], False),
        # A request that leaves the port open is no excuse for one that nobody asks for any more.
        (["80"], [*PUBLISHED, *CHOSEN], False),
        (["80", "8080:80"], [*PUBLISHED, *CHOSEN], True),
        (["80", "8080:80"], PUBLISHED, False),
        (["80", "8080:80", "127.0.0.1::80"], [*PUBLISHED, *CHOSEN], False),
        (["8080-8081:80", "8081-8082:80"], PUBLISHED, False),
        (["8080:80"], OPENED, False),
    ],
)
def test_what_answers_a_request(
    texts: list[str], bindings: list[PortBinding], *, expected: bool
) -> None:
    assert is_answered(texts, bindings) is expected


@pytest.mark.parametrize(
    ("texts", "bindings", "expected"),
    [
        (["8080:80"], OPENED, True),
        (["8081:80"], OPENED, True),
        (["8080:80"], OPENED[:1], False),
        (["8080:81"], OPENED, False),
        (["8080:80"], PUBLISHED, False),
    ],
)
def test_what_answers_a_request_where_nothing_is_translated(
    texts: list[str], bindings: list[PortBinding], *, expected: bool
) -> None:
    modes = {"gateway_mode_ipv4": ROUTED, "gateway_mode_ipv6": ROUTED}
    assert is_answered(texts, bindings, **modes) is expected


@pytest.mark.parametrize("text", ["8080:80", "80", "8000-8001:80", "0.0.0.0:8080:80", "[::1]::80"])
@pytest.mark.parametrize("ipv4", [GatewayMode.NAT, ROUTED, UNPROTECTED])
@pytest.mark.parametrize("ipv6", [GatewayMode.NAT, ROUTED, UNPROTECTED])
def test_what_was_planned_for_a_request_answers_it(
    text: str, ipv4: GatewayMode, ipv6: GatewayMode
) -> None:
    """In every mixture of families that are translated and such that are only opened."""
    modes = {"gateway_mode_ipv4": ipv4, "gateway_mode_ipv6": ipv6}
    (request,) = ports(text)
    first = next(plan_candidates(request, container(*BOTH), net(**modes), EPHEMERAL, 0))
    assert is_answered([text], list(first), **modes)
    assert not is_answered([text, "81"], list(first), **modes)
    assert not is_answered([text], [*first, binding("0.0.0.0:99")], **modes)


def test_a_request_of_a_family_that_is_missing_asks_for_nothing() -> None:
    """It is for another endpoint of the container to publish."""
    holder = replace(endpoint(1, 1, BOTH[0]), bindings=(binding("0.0.0.0:8080"),))
    requests = ports("8080:80", "[::1]:81:81")
    assert is_satisfied(requests, holder, net())
    assert find_unserved(requests, holder, net()) == [requests[1]]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=5, unique=True)
)
def test_what_was_taken_one_after_the_other_answers_all(spans: list[tuple[int, int]]) -> None:
    """Whatever the requests left to choose from, and in whatever order it was chosen."""
    texts = [f"0.0.0.0:{first}-{first + more}:80" for first, more in spans]
    taken: list[int] = []
    for first, more in spans:
        free = [port for port in range(first, first + more + 1) if port not in taken]
        assume(free)
        taken.append(free[-1])
    bindings = [binding(f"0.0.0.0:{port}") for port in taken]
    assert is_answered(texts, bindings)
    assert not is_answered(texts, [*bindings, binding("0.0.0.0:99")])
    assert not is_answered(texts, bindings[1:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.0.0.0:80", "0.0.0.0:80/tcp"), ("[::1]:53/udp", "[::1]:53/udp")],
)
def test_a_place_reads_as_docker_writes_it(text: str, expected: str) -> None:
    assert str(place(text)) == expected


def container(*addresses: str) -> Endpoint:
    return endpoint(1, 1, *addresses)


@given(
    st.integers(1, 65535), st.integers(0, 3), st.sampled_from([BOTH, BOTH[:1], BOTH[1:]]), st.data()
)
def test_candidates_are_what_was_asked_for(
    first: int, span: int, addresses: tuple[str, ...], data: st.DataObject
) -> None:
    last = min(first + span, 65535)
    text = data.draw(st.sampled_from(["{}-{}:80", "[::]:{}-{}:80", "0.0.0.0:{}-{}:80"]))
    (request,) = ports(text.format(first, last))
    planned = list(plan_candidates(request, container(*addresses), net(), EPHEMERAL, 0))
    if find_unserved([request], container(*addresses), net()):
        assert not planned
        return
    assert len(planned) == last - first + 1
    for one in planned:
        holder = replace(container(*addresses), bindings=one)
        assert is_satisfied([request], holder, net())
        assert len({each.host.port for each in one if each.host}) == 1
