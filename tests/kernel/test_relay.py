"""The relay's process: what gets through it and how, what it is told, how it lives and ends."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import ExitStack, closing, suppress
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from driver.errors import KernelError
from driver.health import Health
from driver.linux import relay as client_module
from driver.linux.linux import LinuxKernel
from driver.linux.relay import RelayClient
from driver.model import Relay
from driver.relay import relay as relay_module
from driver.relay import tcp, udp, wire
from tests.engine.wait import wait_until
from tests.kernel.host import bound, relays, run
from tests.samples import place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TCP, UDP = "[::1]:8080", "[::1]:5353/udp"
SECONDS = 10
MEGABYTE = 1 << 20


class Site:
    """A kernel with a relay, and a server that stands for a container's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.health = Health()
        self.kernel = self.start()
        self.server = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.server.settimeout(SECONDS)
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("127.0.0.1", 0))
        self.datagrams.settimeout(SECONDS)

    def start(self) -> LinuxKernel:
        """Be another driver."""
        path = self.folder / "relay.sock"
        self.kernel = LinuxKernel(relay=RelayClient(path, self.health, starts=True))
        return self.kernel

    def relay(self, text: str, *, proxy_protocol: bool = False) -> Relay:
        """Publish a port by the relay."""
        where = place(text)
        target = self.datagrams if text.endswith("udp") else self.server
        ip, port = target.getsockname()
        each = Relay(where, ip_address(ip), port, proxy_protocol)
        self.kernel.reserve_ports([where])
        self.kernel.relay_ports([each])
        return each

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return a client's connection and the server's end of it."""
        client = socket.create_connection(("::1", 8080), SECONDS)
        served, _ = self.server.accept()
        served.settimeout(SECONDS)
        return client, served

    def close(self) -> None:
        """End all of it."""
        self.kernel.release_ports(self.kernel.list_reserved())
        self.kernel.close()
        self.server.close()
        self.datagrams.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()
    wait_until(lambda: not relays(), SECONDS, "the relay's end")


def test_both_ends_of_a_connection_end_apart(site: Site) -> None:
    site.relay(TCP)
    client, served = site.connect()
    client.sendall(b"question")
    assert served.recv(100) == b"question"
    client.shutdown(socket.SHUT_WR)
    assert served.recv(100) == b""
    served.sendall(b"answer")  # to who says nothing any more
    served.close()
    assert client.recv(100) == b"answer"
    assert client.recv(100) == b""
    client.close()


@pytest.mark.parametrize("is_client", [True, False])
def test_a_reset_gets_through_with_what_came_before(site: Site, *, is_client: bool) -> None:
    site.relay(TCP)
    ends = site.connect()
    breaking, other = ends if is_client else reversed(ends)
    other.settimeout(SECONDS)
    breaking.sendall(b"last words")
    breaking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    breaking.close()
    assert other.recv(100) == b"last words"
    with pytest.raises(ConnectionResetError):
        other.recv(100)
    other.close()


def test_an_answer_gets_through_before_the_reset_that_follows_it(site: Site) -> None:
    """Of a server that answers and closes with something unread; what is sent to it is refused."""
    site.relay(TCP)
    client, served = site.connect()
    client.sendall(b"question")
    assert served.recv(1) == b"q"
    (process,) = relays()
    os.kill(process, signal.SIGSTOP)  # so that it finds all of it at once
    client.sendall(b"and more")
    served.sendall(b"answer")
    served.close()
    os.kill(process, signal.SIGCONT)
    assert client.recv(100) == b"answer"
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    client.close()


def test_who_is_refused_by_the_container_is_reset(site: Site) -> None:
    site.relay(TCP)
    site.server.close()
    client = socket.create_connection(("::1", 8080), SECONDS)
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    client.close()


def test_who_does_not_read_stops_who_sends(site: Site) -> None:
    """And every byte arrives once it reads again, in both directions at once."""
    site.relay(TCP)
    client, served = site.connect()
    amount = pour_until_full(client)
    assert amount < 64 * MEGABYTE
    assert pour_until_full(served) < 64 * MEGABYTE
    client.settimeout(SECONDS)
    got = threading.Thread(target=lambda: received.append(drain(client)))
    received: list[int] = []
    got.start()
    client.shutdown(socket.SHUT_WR)
    served.settimeout(SECONDS)
    assert drain(served) == amount
    served.shutdown(socket.SHUT_WR)
    got.join(SECONDS)
    assert received
    client.close()
    served.close()


def pour_until_full(end: socket.socket) -> int:
    """Send until nothing more goes in for a while; return how much it was."""
    end.settimeout(0.5)
    sent = 0
    try:
        while True:
            sent += end.send(bytes(MEGABYTE))
    except TimeoutError:
        return sent


def drain(end: socket.socket) -> int:
    """Receive until the end; return how much it was."""
    count = 0
    while data := end.recv(MEGABYTE):
        count += len(data)
    return count


def test_one_connection_that_floods_keeps_no_other_waiting(site: Site) -> None:
    site.relay(TCP)
    client, served = site.connect()
    flooding = threading.Thread(target=flood, args=(client,))
    flooding.start()
    draining = threading.Thread(target=drain, args=(served,))
    draining.start()
    other, answering = site.connect()
    for number in range(200):
        other.sendall(bytes([number]))
        assert answering.recv(1) == bytes([number])
    client.shutdown(socket.SHUT_RDWR)
    flooding.join(SECONDS)
    draining.join(SECONDS)
    for each in (client, served, other, answering):
        each.close()


def flood(end: socket.socket) -> None:
    try:
        while True:
            end.sendall(bytes(MEGABYTE))
    except OSError:
        return


def test_more_connections_than_there_may_be_wait(site: Site) -> None:
    site.relay(TCP)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("::1", 8080), SECONDS))
            for _ in range(tcp.MAX_CONNECTIONS + 5)
        ]
        served = [stack.enter_context(site.server.accept()[0]) for _ in range(tcp.MAX_CONNECTIONS)]
        (process,) = relays()
        assert resident(process) < 15 * 1024
        site.server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            site.server.accept()
        for each in (clients[0], served[0]):  # there is room for one again
            each.close()
        site.server.settimeout(SECONDS)
        site.server.accept()[0].close()


def resident(process: int) -> int:
    """Return how much memory a process has, in KB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def test_a_relay_without_descriptors_goes_on_when_there_are_some(site: Site) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        site.relay(TCP)
        (process,) = wait_until(relays, SECONDS, "the relay")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    first, answering = site.connect()
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(("::1", 8080), SECONDS))
        wait_until(lambda: len(descriptors_of(process)) > 58, SECONDS, "the limit")
        first.sendall(b"x")  # who is there already, goes on
        assert answering.recv(1) == b"x"
    first.close()
    answering.close()
    site.server.settimeout(0)
    while True:
        try:
            site.server.accept()[0].close()
        except BlockingIOError:
            break
    site.server.settimeout(SECONDS)

    def answers() -> bool:
        try:
            with socket.create_connection(("::1", 8080), SECONDS) as client:
                client.settimeout(1)
                client.sendall(b"x")
                served, _ = site.server.accept()
                served.settimeout(1)
                with served:
                    return served.recv(1) == b"x"
        except (TimeoutError, ConnectionResetError):
            return False

    wait_until(answers, SECONDS, "a connection")
    assert relays() == [process]


@pytest.mark.parametrize(
    "number", [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get
)
def test_a_port_rests_while_the_host_has_no_room_for_a_connection(site: Site, number: int) -> None:
    """Else the relay would ask again and again, and serve nobody meanwhile."""

    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    said: list[str] = []
    loop = tcp.Loop(said.append)
    with socket.create_server(("::1", 8080), family=socket.AF_INET6) as listening:
        entry = wire.Entry(f"tcp ::1 8080 127.0.0.1 {site.server.getsockname()[1]} 0")
        accepting = tcp.TcpListener(loop, tcp.Pipes(), entry, listening.dup())
        able = accepting.socket
        unable: Any = SimpleNamespace(accept=refuse, fileno=able.fileno)
        accepting.socket = unable
        with socket.create_connection(("::1", 8080), SECONDS):
            loop.turn()
            assert said == [f"[::1]:8080/tcp: cannot accept: {os.strerror(number)}"]
            accepting.socket = able
            accepting.tick(time.monotonic() + tcp.PAUSE_SECONDS)
            loop.turn()
            assert len(accepting.connections) == 1
        accepting.close()
    assert len(said) == 1


def descriptors_of(process: int) -> list[Path]:
    return list(Path(f"/proc/{process}/fd").iterdir())


def asker(address: str = "::1") -> socket.socket:
    """Return a client by UDP, which hears nobody but whom it asks."""
    asking = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    asking.settimeout(SECONDS)
    asking.connect((address, 5353))
    return asking


def test_datagrams_are_answered_from_the_address_that_was_asked(site: Site) -> None:
    run("ip", "address", "add", "2001:db8::7/128", "dev", "lo")
    run("ip", "address", "add", "2001:db8::8/128", "dev", "lo")
    site.relay("[::]:5353/udp")
    for address in ("::1", "2001:db8::7", "2001:db8::8"):
        with closing(asker(address)) as asking:
            asking.send(b"question")
            question, flow = site.datagrams.recvfrom(100)
            site.datagrams.sendto(question + b"!", flow)
            assert asking.recv(100) == b"question!"


def test_a_datagram_to_nobody_is_lost_and_the_next_is_not(site: Site) -> None:
    site.relay(UDP)
    wait_until(relays, SECONDS, "the relay")  # until it is there it has what we have open
    address = site.datagrams.getsockname()
    site.datagrams.close()
    with closing(asker()) as asking:
        for _ in range(3):
            asking.send(b"lost")
        site.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        site.datagrams.bind(address)
        site.datagrams.settimeout(0.1)

        def ask() -> bool:
            asking.send(b"question")
            try:
                return site.datagrams.recv(100) == b"question"
            except TimeoutError:
                return False

        wait_until(ask, SECONDS, "a question")


def test_the_flow_that_was_silent_for_longest_makes_way(site: Site) -> None:
    site.relay(UDP)
    with ExitStack() as stack:
        for number in range(udp.MAX_FLOWS + 10):
            asking = stack.enter_context(closing(asker()))
            asking.send(str(number).encode())
            question, flow = site.datagrams.recvfrom(100)
            site.datagrams.sendto(question, flow)
            assert asking.recv(100) == question
        (process,) = relays()
        sockets = len(descriptors_of(process))
        assert udp.MAX_FLOWS <= sockets <= udp.MAX_FLOWS + 30
        assert resident(process) < 15 * 1024


def test_what_takes_too_long_is_ended() -> None:
    """A flow that is silent, and a container that does not answer: by the clock of whoever asks."""
    loop = tcp.Loop(print)
    with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as hearing:
        hearing.bind(("::1", 5353))
        listener = udp.UdpListener(loop, wire.Entry("udp ::1 5353 127.0.0.1 9 0"), hearing.dup())
        with closing(asker()) as asking:
            asking.send(b"question")
            loop.turn()
        now = time.monotonic()
        assert listener.tick(now + udp.FLOW_SECONDS - 1), "it is there yet"
        assert not listener.tick(now + udp.FLOW_SECONDS + 1)
        listener.close()
    lead_nowhere("198.51.100.1")
    with socket.create_server(("::1", 8080), family=socket.AF_INET6) as listening:
        entry = wire.Entry("tcp ::1 8080 198.51.100.1 9 0")
        accepting = tcp.TcpListener(loop, tcp.Pipes(), entry, listening.dup())
        with socket.create_connection(("::1", 8080), SECONDS) as client:
            loop.turn()
            now = time.monotonic()
            assert accepting.tick(now + tcp.CONNECT_SECONDS - 1), "it may answer yet"
            assert not accepting.tick(now + tcp.CONNECT_SECONDS + 1)
            loop.turn()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        accepting.close()


def lead_nowhere(address: str) -> None:
    """Have the host send to an address where nobody answers."""
    run("ip", "address", "add", "192.0.2.1/24", "dev", "lo")
    run("ip", "link", "add", "nowhere", "type", "veth", "peer", "name", "away")
    for end in ("nowhere", "away"):
        run("ip", "link", "set", end, "up")
    run("ip", "route", "add", f"{address}/32", "dev", "nowhere")
    run("ip", "neighbour", "add", address, "lladdr", "02:00:00:00:00:01", "dev", "nowhere")


def turn_until(loop: tcp.Loop, condition: Callable[[], bool]) -> None:
    """Have the loop do what it does until something has come of it."""
    while not condition():
        loop.turn()


def test_who_was_answered_last_makes_way_last(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is there for as long, whoever of the two spoke."""
    monkeypatch.setattr(udp, "MAX_FLOWS", 2)
    loop = tcp.Loop(print)
    port = site.datagrams.getsockname()[1]
    with ExitStack() as stack:
        hearing = stack.enter_context(closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)))
        hearing.bind(("::1", 5353))
        entry = wire.Entry(f"udp ::1 5353 127.0.0.1 {port} 0")
        listener = udp.UdpListener(loop, entry, hearing.dup())
        first, second, third = (stack.enter_context(closing(asker())) for _ in range(3))
        flows = {}
        for asking in (first, second):
            asking.send(b"question")
            loop.turn()
            flows[asking] = site.datagrams.recvfrom(100)[1]
        site.datagrams.sendto(b"answer", flows[first])
        loop.turn()
        third.send(b"question")
        loop.turn()
        for asking in (first, second):
            site.datagrams.sendto(b"more", flows[asking])
        loop.turn()
        assert [first.recv(100), first.recv(100)] == [b"answer", b"more"]
        second.settimeout(0)
        with pytest.raises(BlockingIOError):
            second.recv(100)
        listener.close()


@pytest.mark.parametrize("speaker", ["client", "container"])
def test_a_flow_is_there_for_as_long_as_either_side_speaks(
    site: Site, monkeypatch: pytest.MonkeyPatch, speaker: str
) -> None:
    """Such as one by which a container goes on sending what it was asked for once."""
    loop, now = tcp.Loop(print), time.monotonic()
    monkeypatch.setattr(udp, "time", SimpleNamespace(monotonic=lambda: now))
    with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as hearing:
        hearing.bind(("::1", 5353))
        entry = wire.Entry(f"udp ::1 5353 127.0.0.1 {site.datagrams.getsockname()[1]} 0")
        listener = udp.UdpListener(loop, entry, hearing.dup())
        with closing(asker()) as asking:
            asking.send(b"question")
            loop.turn()
            _, flow = site.datagrams.recvfrom(100)
            now += udp.FLOW_SECONDS - 1
            if speaker == "client":
                asking.send(b"more")
            else:
                site.datagrams.sendto(b"more", flow)
            loop.turn()
            assert listener.tick(now + udp.FLOW_SECONDS - 1)
            assert not listener.tick(now + udp.FLOW_SECONDS)
        listener.close()


def test_the_loop_looks_by_itself_at_what_takes_too_long(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing else happens that would wake it: a flow, an answer that does not come."""
    for module, name in ((tcp, "TICK_SECONDS"), (udp, "FLOW_SECONDS"), (tcp, "CONNECT_SECONDS")):
        monkeypatch.setattr(module, name, 0.01)
    loop = tcp.Loop(print)
    with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as hearing:
        hearing.bind(("::1", 5353))
        entry = wire.Entry(f"udp ::1 5353 127.0.0.1 {site.datagrams.getsockname()[1]} 0")
        listener = udp.UdpListener(loop, entry, hearing.dup())
        with closing(asker()) as asking:
            asking.send(b"question")
            loop.turn()
            turn_until(loop, lambda: not listener.tick(0.0))
        listener.close()
    lead_nowhere("198.51.100.1")
    with socket.create_server(("::1", 8080), family=socket.AF_INET6) as listening:
        entry = wire.Entry("tcp ::1 8080 198.51.100.1 9 0")
        accepting = tcp.TcpListener(loop, tcp.Pipes(), entry, listening.dup())
        with socket.create_connection(("::1", 8080), SECONDS) as client:
            loop.turn()
            turn_until(loop, lambda: not accepting.connections)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        accepting.close()


def test_a_full_port_that_is_given_away_is_not_listened_on_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a connection ends there is room for another, but for one that has another relay."""
    monkeypatch.setattr(tcp, "MAX_CONNECTIONS", 1)
    said: list[str] = []
    loop = tcp.Loop(said.append)
    with socket.create_server(("::1", 8080), family=socket.AF_INET6) as listening:
        entry = wire.Entry(f"tcp ::1 8080 127.0.0.1 {site.server.getsockname()[1]} 0")
        accepting = tcp.TcpListener(loop, tcp.Pipes(), entry, listening.dup())
        clients = [socket.create_connection(("::1", 8080), SECONDS) for _ in range(2)]
        loop.turn()
        assert len(accepting.connections) == 1
        accepting.stop_listening()
        for each in (*clients, site.server.accept()[0]):
            each.close()
        turn_until(loop, lambda: not accepting.connections)
    assert not said


def test_both_sides_say_small_things_at_once_and_are_asked_whether_they_are_there(
    site: Site,
) -> None:
    """As they are by Docker's proxy."""
    loop = tcp.Loop(print)
    with socket.create_server(("::1", 8080), family=socket.AF_INET6) as listening:
        entry = wire.Entry(f"tcp ::1 8080 127.0.0.1 {site.server.getsockname()[1]} 0")
        accepting = tcp.TcpListener(loop, tcp.Pipes(), entry, listening.dup())
        with socket.create_connection(("::1", 8080), SECONDS):
            loop.turn()
            (connection,) = accepting.connections
            for end in (connection._client, connection._server):
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                    assert end.getsockopt(socket.IPPROTO_TCP, option) == tcp.KEEPALIVE_SECONDS
        accepting.close()


def test_an_error_that_nobody_expected_ends_one_connection_only(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("injected")

    said: list[str] = []
    loop = tcp.Loop(said.append)
    with socket.create_server(("::1", 8080), family=socket.AF_INET6) as listening:
        entry = wire.Entry(f"tcp ::1 8080 127.0.0.1 {site.server.getsockname()[1]} 0")
        accepting = tcp.TcpListener(loop, tcp.Pipes(), entry, listening.dup())
        for is_broken in (True, False):
            with socket.create_connection(("::1", 8080), SECONDS) as client:
                client.sendall(b"x")
                loop.turn()
                if is_broken:
                    with monkeypatch.context() as patched:
                        patched.setattr(tcp.Half, "move", fail)
                        loop.turn()
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
                else:
                    loop.turn()
                    served, _ = site.server.accept()
                    served.close()
                    served, _ = site.server.accept()
                    assert served.recv(1) == b"x"
                    served.close()
        accepting.close()
    assert said == ["a connection of [::1]:8080/tcp: ValueError('injected')"]


def test_who_the_client_is_comes_first(site: Site) -> None:
    site.relay(TCP, proxy_protocol=True)
    client, served = site.connect()
    name = client.getsockname()
    client.sendall(b"question")
    words = f"PROXY TCP6 ::1 ::1 {name[1]} 8080\r\nquestion".encode()
    got = b""
    while len(got) < len(words):
        got += served.recv(100)
    assert got == words
    client.close()
    served.close()


def test_a_port_that_is_released_is_free_at_once(site: Site) -> None:
    """Whatever connections there were; they are reset."""
    for _ in range(20):
        site.relay(TCP)
        client, served = site.connect()
        site.kernel.release_ports([place(TCP)])
        with socket.socket(socket.AF_INET6) as another:
            another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            another.bind(("::1", 8080))
            another.listen()
        for end in (client, served):
            end.settimeout(SECONDS)
            with pytest.raises(ConnectionResetError):
                end.recv(1)
            end.close()


def test_a_port_on_which_connections_linger_is_published_again(site: Site) -> None:
    """Whoever closes first has them in TIME_WAIT: the relay, when the container does."""
    lingering = ("ss", "-tnH", "state", "time-wait", "sport", "=", "8080")
    for _ in range(2):
        site.relay(TCP)
        client, served = site.connect()
        served.close()
        assert client.recv(1) == b""
        client.close()
        wait_until(lambda: run(*lingering), SECONDS, "a connection that lingers")
        site.kernel.release_ports([place(TCP)])


def test_a_datagram_port_that_is_released_is_free_at_once(site: Site) -> None:
    for _ in range(20):
        site.relay(UDP)
        wait_until(relays, SECONDS, "the relay")
        site.kernel.release_ports([place(UDP)])
        bound(place(UDP)).close()


def test_what_systemd_hands_to_the_driver_is_not_the_relays(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    site.relay(TCP)
    client, served = site.connect()
    client.close()
    served.close()
    assert not site.health.problems()


def test_nobody_waits_for_the_relay_to_start(site: Site) -> None:
    began = time.monotonic()
    site.relay(TCP)
    assert time.monotonic() - began < 0.05, "the relay takes longer to start"
    client, served = site.connect()
    client.close()
    served.close()


def test_a_thousand_ports_are_one_process(site: Site) -> None:
    places = [place(f"[::1]:{port}") for port in range(10000, 11000)]
    ip, port = site.server.getsockname()
    site.kernel.reserve_ports(places)
    site.kernel.relay_ports([Relay(each, ip_address(ip), port) for each in places])
    for number in (10000, 10999):
        with socket.create_connection(("::1", number), SECONDS) as client:
            served, _ = site.server.accept()
            served.sendall(b"x")
            assert client.recv(1) == b"x"
            served.close()
    (process,) = relays()
    assert resident(process) < 15 * 1024
    site.kernel.release_ports(places)
    for each in (places[1], places[-2]):
        bound(each).close()


def test_a_new_driver_gets_the_ports_and_keeps_the_connections(site: Site) -> None:
    each = site.relay(TCP)
    client, served = site.connect()
    (process,) = relays()
    site.kernel.close()
    site.start()
    assert site.kernel.list_reserved() == {each.place}
    site.kernel.relay_ports([each])
    assert site.kernel.list_relayed() == {each}
    client.sendall(b"x")
    assert served.recv(1) == b"x"
    another, answering = site.connect()
    assert relays() == [process]
    for end in (client, served, another, answering):
        end.close()


def test_a_relay_of_other_code_hands_over_its_ports_and_keeps_its_connections(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = site.relay(TCP)
    client, served = site.connect()
    (old,) = relays()
    site.kernel.close()
    monkeypatch.setattr(wire, "read_code_version", lambda: "another")
    site.start()
    assert site.kernel.list_reserved() == {each.place}
    site.kernel.relay_ports([each])
    another, answering = site.connect()
    new = set(relays())
    assert old not in new, "it has left its connections to a child"
    assert len(new) == 2
    client.sendall(b"x")
    assert served.recv(1) == b"x"
    client.close()
    served.close()
    wait_until(lambda: len(relays()) == 1, SECONDS, "the end of who has no connection any more")
    another.sendall(b"y")
    assert answering.recv(1) == b"y"
    another.close()
    answering.close()


def test_one_that_has_long_been_at_rest_ends_with_its_last_connection(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing wakes it by the clock while it has ports; from then on it has to look."""
    site.relay(TCP)
    client, served = site.connect()
    (old,) = relays()
    wait_until(lambda: waits_for_ever(old), SECONDS, "rest")
    site.kernel.close()
    monkeypatch.setattr(wire, "read_code_version", lambda: "another")
    site.start()
    site.kernel.release_ports([place(TCP)])
    wait_until(lambda: old not in relays(), SECONDS, "its child")
    client.close()
    served.close()
    wait_until(lambda: not relays(), SECONDS, "the end of who has no connection any more")


def waits_for_ever(process: int) -> bool:
    """Tell whether a process is in epoll_wait(2) without a timeout, its fourth argument."""
    words = Path(f"/proc/{process}/syscall").read_text().split()
    return len(words) > 4 and words[4].endswith("ffffffff")


def test_a_new_driver_lets_go_of_what_nobody_has_any_more(site: Site) -> None:
    """Of a container that ended while no driver was there."""
    site.relay(TCP)
    client, served = site.connect()
    site.kernel.close()
    site.start()
    assert site.kernel.list_reserved() == {place(TCP)}
    site.kernel.release_ports([place(TCP)])
    bound(place(TCP)).close()
    assert not site.kernel.list_relayed()
    client.close()
    served.close()


def test_every_file_of_the_relays_code_tells_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or an upgrade would leave the old code at work."""
    folder = shutil.copytree(Path(wire.__file__).parent, tmp_path / "relay")
    monkeypatch.setattr(wire, "__file__", str(folder / "wire.py"))
    versions = [wire.read_code_version()]
    for path in sorted(folder.glob("*.py")):
        path.write_text(path.read_text() + "# another\n")
        versions.append(wire.read_code_version())
    assert len(set(versions)) == len(versions) > len(wire.FILES)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_relay_that_dies_is_started_again(site: Site, number: signal.Signals) -> None:
    each = site.relay(TCP)
    client, served = site.connect()
    (process,) = relays()
    os.kill(process, number)
    with suppress(ConnectionResetError):  # or an end: the kernel closes for who is killed
        assert not client.recv(1)
    client.close()
    served.close()
    client, served = site.connect()  # waits for the next relay
    assert relays() != [process]
    assert not Path(f"/proc/{process}").exists(), "nobody is left to be buried"
    wait_until(lambda: not site.health.problems(), SECONDS, "health")
    assert site.kernel.list_relayed() == {each}
    client.close()
    served.close()


def test_a_relay_that_cannot_start_is_a_problem_until_it_can(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = sys.executable
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    each = site.relay(TCP)
    (problem,) = wait_until(site.health.problems, SECONDS, "a problem")
    assert "No such file" in problem
    assert "published ports do not answer" in problem
    assert site.kernel.list_relayed() == frozenset()
    monkeypatch.setattr(sys, "executable", python)
    wait_until(lambda: not site.health.problems(), SECONDS, "health")
    assert site.kernel.list_relayed() == {each}


@pytest.mark.parametrize("is_steady", [False, True])
def test_a_relay_that_ends_again_and_again_is_started_the_seldomer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_steady: bool
) -> None:
    """One that has served for long is started at once, however often that happened."""
    monkeypatch.setattr(client_module, "STEADY_SECONDS", 0 if is_steady else 1e9)
    client = RelayClient(tmp_path / "relay.sock", Health(), starts=True)
    delays = [client._lose(KernelError("the relay has ended")) for _ in range(20)]
    client.close()
    if is_steady:
        assert set(delays) == {2 * client_module.FIRST_DELAY_SECONDS}
    else:
        assert delays == sorted(delays)
        assert delays[0] < delays[1] < delays[-1] == client_module.LONGEST_DELAY_SECONDS


def test_a_port_that_is_withdrawn_while_it_is_handed_over_costs_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is closed by then."""
    first = site.relay(TCP)
    client, served = site.connect()
    (process,) = relays()
    bring = RelayClient._drop_served
    withdrawn = threading.Event()

    def withdraw(self: RelayClient, wanted: Any) -> None:
        bring(self, wanted)
        site.kernel.release_ports([place("[::1]:8081")])
        withdrawn.set()

    monkeypatch.setattr(RelayClient, "_drop_served", withdraw)
    site.relay("[::1]:8081")
    assert withdrawn.wait(SECONDS)
    monkeypatch.undo()
    site.relay("[::1]:8082")
    with socket.create_connection(("::1", 8082), SECONDS):
        site.server.accept()[0].close()
    assert site.kernel.list_relayed() > {first}
    assert not site.health.problems()
    assert relays() == [process]
    client.sendall(b"x")
    assert served.recv(1) == b"x"
    client.close()
    served.close()


def test_nobody_waits_for_a_relay_that_has_died_to_let_go(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "DROP_SECONDS", 600)
    site.relay(TCP)
    client, served = site.connect()
    (process,) = relays()
    os.kill(process, signal.SIGSTOP)
    waiting = threading.Thread(target=site.kernel.release_ports, args=([place(TCP)],))
    waiting.start()
    told = site.kernel._relay
    assert isinstance(told, RelayClient)
    wait_until(lambda: not told._wanted, SECONDS, "what it is to let go of")
    assert told.served(), "it has not yet, and who asked for it waits"
    os.kill(process, signal.SIGKILL)
    waiting.join(SECONDS)
    assert not waiting.is_alive()
    assert not site.kernel.list_reserved()
    client.close()
    served.close()


def test_a_relay_that_hangs_is_replaced(site: Site) -> None:
    site.relay(TCP)
    wait_until(relays, SECONDS, "the relay")
    client, served = site.connect()
    (process,) = relays()
    os.kill(process, signal.SIGSTOP)
    other = site.relay("[::1]:8081")
    wait_until(lambda: not Path(f"/proc/{process}").exists(), SECONDS, "the end of who hangs")
    wait_until(lambda: not site.health.problems(), SECONDS, "health")
    assert other in site.kernel.list_relayed()
    client.close()
    served.close()


def test_a_kernel_without_ipv6_has_nobody_to_serve(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every `-p 8080:80` asks for it."""
    original = socket.socket

    def without_ipv6(family: int, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return original(family, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", without_ipv6)
        site.kernel.reserve_ports([place("[::]:8080"), place("0.0.0.0:8080")])
    each = Relay(place("[::]:8080"), ip_address("10.1.0.2"), 80)
    site.kernel.relay_ports([each])
    assert site.kernel.list_relayed() == {each}
    site.kernel.release_ports([place("[::]:8080")])
    assert not site.kernel.list_relayed()
    assert not relays()


def test_a_relay_with_nothing_to_serve_ends(site: Site) -> None:
    site.relay(TCP)
    wait_until(relays, SECONDS, "the relay")
    site.kernel.release_ports([place(TCP)])
    assert relays(), "a container may just be restarting"
    wait_until(
        lambda: not relays(), 3 * relay_module.LINGER_SECONDS, "the end of who serves nothing"
    )
    site.relay(TCP)  # and comes again
    client, served = site.connect()
    client.close()
    served.close()
    assert not site.health.problems()


def test_a_relay_that_has_served_for_long_does_not_end_at_once() -> None:
    """Nor when its last port has gone: the container may just be restarting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        relay = relay_module.Relay(control, {0})
        relay._idle_since -= 2 * relay_module.LINGER_SECONDS
        line = "tcp ::1 8080 127.0.0.1 9 0"
        relay._add(line, socket.create_server(("::1", 8080), family=socket.AF_INET6))
        relay._drop(line)
        now = time.monotonic()
        assert relay.tick(now)
        assert not relay._is_ending
        relay.tick(now + relay_module.LINGER_SECONDS + 1)
        assert relay._is_ending
        relay._loop.turn()
        for end in chain.from_iterable(relay._pipes._idle):
            os.close(end)


def test_orders_from_others_than_root_are_not_heard() -> None:
    run("mount", "-t", "tmpfs", "-o", "mode=755", "open", "/mnt")
    site = Site(Path("/mnt"))
    site.relay(TCP)
    client, served = site.connect()
    (site.folder / "relay.sock").chmod(0o777)
    child = os.fork()
    if child == 0:
        os.setresuid(65533, 65533, 65533)
        code = 1
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as intruder:
                intruder.connect(str(site.folder / "relay.sock"))
                intruder.settimeout(SECONDS)
                code = len(intruder.recv(100))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.sendall(b"x")
    assert served.recv(1) == b"x"
    client.close()
    served.close()
    site.close()


def test_the_relay_has_no_rights(site: Site) -> None:
    site.relay(TCP)
    client, served = site.connect()
    (process,) = relays()
    status = Path(f"/proc/{process}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in status
    assert "CapEff:\t0000000000000000" in status
    client.close()
    served.close()
