"""What pyroute2 passes over in the kernel's answers, and what it leaves open."""

from __future__ import annotations

import errno
import gc
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from pyroute2.netlink import NLM_F_DUMP, NLMSG_ERROR
from pyroute2.netlink.rtnl import RTM_GETADDR
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

from driver.errors import KernelError
from driver.linux import links, session
from driver.linux.rtnetlink import _REQUEST, Rtnetlink, _change_link, _message
from driver.linux.session import NetlinkError
from tests.kernel.host import all_but, descriptors, ip, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyroute2.netlink import nlmsg

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
LATIN = b"\xe9t\xe9"
MANY, LONG = 100, 999.0
MOST_NEEDED = 6  # descriptors of a session, and more


def test_a_listing_that_the_kernel_gives_up_is_none() -> None:
    """It says why in the last message, behind what it has listed: the rest would seem gone."""
    by_scope = _message(ifaddrmsg, RTM_GETADDR, _REQUEST | NLM_F_DUMP)
    by_scope["scope"] = 1  # which it refuses to look at
    with Rtnetlink() as route, pytest.raises(NetlinkError) as refused:
        route.request(by_scope)
    assert refused.value.errno == errno.EINVAL


def test_no_buffer_is_a_refusal_as_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what is done before it were not undone."""
    with Rtnetlink() as route:
        answers = iter([0, errno.ENOBUFS, 0])

        def answer(data: bytes) -> None:
            offset = 0
            while offset < len(data):
                length, _, _, sequence, _ = HEADER.unpack_from(data, offset)
                status = struct.pack("=i", -next(answers)) + data[offset : offset + HEADER.size]
                size = HEADER.size + len(status)
                head = HEADER.pack(size, NLMSG_ERROR, 0, sequence, 0)
                route._socket.enqueue(head + status, None)
                offset += length

        monkeypatch.setattr(route._socket, "send", answer)
        with pytest.raises(NetlinkError) as refused:
            route.request(*(_change_link("lo") for _ in range(3)))
    assert (refused.value.errno, refused.value.done) == (errno.ENOBUFS, 1)
    assert refused.value.strerror == "No buffer space available"


def test_an_answer_that_found_no_room_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ANSWER_SECONDS", LONG)
    with Rtnetlink() as route:
        route._socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with pytest.raises(OSError, match="No buffer space available"):
            route.request(*(_change_link("lo") for _ in range(MANY)))
    with Rtnetlink() as route:
        assert route.find_link("lo")


def test_what_the_kernel_takes_long_to_carry_out_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the rtnl lock in sendmsg(), and has answered when that returns."""
    with Rtnetlink() as route:
        send = route._socket.send

        def send_late(data: bytes) -> None:
            time.sleep(0.2)
            send(data)

        monkeypatch.setattr(session, "ANSWER_SECONDS", 0.1)
        monkeypatch.setattr(route._socket, "send", send_late)
        route.raise_link("lo")


def test_names_and_aliases_are_any_bytes() -> None:
    run("ip", "link", "add", LATIN, "type", "bridge")  # type: ignore[arg-type]
    run("ip", "link", "set", LATIN, "alias", LATIN)  # type: ignore[arg-type]
    (found,) = links.observe_links().keys() - {"lo"}
    assert found == LATIN.decode(errors="replace")
    ip("link", "add", "plain", "type", "bridge")
    run("ip", "link", "set", "plain", "alias", LATIN)  # type: ignore[arg-type]
    links.delete_links(["plain"])
    assert "plain" in links.observe_links()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's
def test_a_session_that_cannot_be_opened_keeps_no_descriptor() -> None:
    """Not until garbage is collected either: others need them now."""
    links.observe_links()
    gc.disable()
    before = descriptors()
    failures = 0
    for free in range(MOST_NEEDED):
        with all_but(free):
            try:
                links.observe_links()
            except KernelError as error:
                assert "Too many open files" in str(error)  # noqa: PT017 - some of them
                failures += 1
        assert descriptors() == before, free
    assert 0 < failures < MOST_NEEDED


@pytest.mark.parametrize("fails", [False, True])
def test_the_collector_is_off_during_a_listing_of_links_and_on_after_it(
    monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """It would walk through the listing again and again, and a restart take half as long again."""
    seen: list[bool] = []
    dump = Rtnetlink._dump

    def looked_at(self: Rtnetlink, question: Callable[[], nlmsg]) -> list[nlmsg]:
        seen.append(gc.isenabled())
        if fails:
            raise NetlinkError(errno.EBUSY)
        return dump(self, question)

    monkeypatch.setattr(Rtnetlink, "_dump", looked_at)
    with Rtnetlink() as route, suppress(NetlinkError):
        assert [link.name for link in route.links()] == ["lo"]
    assert seen == [False]
    assert gc.isenabled()
