"""Open a connection to the Docker Engine for as long as a question to it takes."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import docker
from docker.errors import DockerException, NotFound
from requests.exceptions import RequestException

from plugin.cli.client import TIMEOUT_SECONDS
from plugin.cli.errors import AskError

if TYPE_CHECKING:
    from collections.abc import Iterator


class DockerSilent(AskError):  # noqa: N818 - the field calls it by what happened
    """Docker does not answer, or fails; the text is what it says, or the way to it."""


@contextmanager
def open_docker() -> Iterator[docker.DockerClient]:
    """Lend a client over the block. Raises DockerSilent, and Docker's own NotFound as it is."""
    try:
        client = docker.from_env(timeout=int(TIMEOUT_SECONDS))
        try:
            yield client
        finally:
            client.close()
    except NotFound:
        raise
    except (DockerException, RequestException) as error:
        raise DockerSilent(str(error)) from error


def inspect_running(client: docker.DockerClient) -> Iterator[dict[str, Any]]:
    """Yield what Docker tells of each container that runs; one that ends meanwhile is left out."""
    for each in client.api.containers():
        with suppress(NotFound):
            yield client.api.inspect_container(each["Id"])
