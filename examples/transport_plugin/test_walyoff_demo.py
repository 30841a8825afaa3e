from contextlib import asynccontextmanager

import pytest
from walyoff_demo import open_transport

from walyoff.testing import TransportConformance, temporary_hosts


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


class TestDemoTransport(TransportConformance):
    unreachable = "demo:0123456789abcdef"  # well-formed, and nobody is there

    @asynccontextmanager
    async def open_transports(self):
        with temporary_hosts(2) as (one, two):
            async with open_transport(one) as a, open_transport(two) as b:
                yield a, b
