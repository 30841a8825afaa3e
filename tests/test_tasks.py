"""Background tasks: what comes out of them when several things go wrong at once."""

from __future__ import annotations

import anyio
import pytest

from walyoff.errors import RemoteProtocolError
from walyoff.tasks import background_tasks

pytestmark = pytest.mark.anyio


async def fail(error: Exception) -> None:
    raise error


async def test_the_error_of_the_block_comes_out_bare() -> None:
    async def block() -> None:
        async with background_tasks() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            raise KeyError

    with pytest.raises(KeyError):
        await block()


async def test_of_a_peers_faults_at_once_one_comes_out() -> None:
    async def block() -> None:
        async with background_tasks() as outer:
            outer.start_soon(fail, anyio.BrokenResourceError())
            async with background_tasks() as tasks:
                tasks.start_soon(fail, RemoteProtocolError("one"))
                tasks.start_soon(fail, RemoteProtocolError("two"))
                raise anyio.BrokenResourceError

    # A group would pass by those who expect one of these, and end the device.
    with pytest.raises((RemoteProtocolError, anyio.BrokenResourceError)):
        await block()


async def test_a_fault_of_the_program_is_never_hidden_by_others() -> None:
    async def block() -> None:
        async with background_tasks() as tasks:
            tasks.start_soon(fail, RemoteProtocolError("one"))
            tasks.start_soon(fail, KeyError("bug"))
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await block()
    assert caught.group_contains(KeyError)
