"""A person's new control keys are shown in the person's groups, whoever replaced them.

Who was removed from a person has the person's older keys, and they act for the person in a
group until somebody has acted there under the newer ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest
from anyio.abc import TaskStatus

from tests import waiting
from tests.sim.virtual import run
from tests.test_reader_rules import A, B, C, D, Group, three
from tests.test_sim_nesting import Houses, complete, houses
from walyoff import Channel
from walyoff.abc import Governance
from walyoff.child.acts import DID_PREFIX
from walyoff.child.keyring import Keyring
from walyoff.engine.control_keys import GRACE_S
from walyoff.sealing import Sealing

__all__ = ["three"]

until = partial(waiting.until, within=120.0)


# ---------------------------------------------------------------- as the chain says


def test_the_chain_says_under_which_of_its_keys_each_member_has_acted(three: Group) -> None:
    # Joining is no act of who joins.
    assert three.read().shown == {A: 1}
    three.do(B, "join", D, signer=f"{B} 2")
    three.do(B, "leave", D)
    assert three.read().shown == {A: 1, B: 2}


def test_an_act_that_does_not_count_shows_keys_if_a_member_wrote_it(three: Group) -> None:
    before = three.tips()
    three.do(B, "join", C, signer=f"{B} 2")
    assert three.read().shown[B] == 2
    assert three.read().refused
    # Somebody who is none shows nothing, whatever it signs by.
    three.do(D, "join", D, signer=f"{D} 2")
    three.do(A, "leave", C)
    three.do(C, "join", D, signer=f"{C} 2", parents=before)
    assert set(three.read().shown) == {A, B}


def test_a_leaving_shows_keys_as_well(three: Group) -> None:
    three.do(B, "leave", C, signer=f"{B} 2")
    assert three.read().shown == {A: 1, B: 2}


def test_what_a_chain_calls_a_member_is_no_file_of_this_home(tmp_path: Path) -> None:
    """A hostile member writes any text as the DID of a member."""
    keyring = Keyring(None, tmp_path / "keys", Sealing())
    (tmp_path / "store.db").write_bytes(b"not a key")
    for did in ("", "x", "did:sim:x", *(f"{DID_PREFIX}{c}" for c in ("", "../store.db", "/"))):
        assert not keyring.holds(did)
    assert keyring.dids() == []


# ------------------------------------------------------------------ whole devices


class KilledError(Exception):
    pass


def governance(channel: Channel) -> Governance:
    return channel.foundation.identity.membership.governance


def shown(h: Houses, device: str, group: str, person: str) -> bool:
    """True if the person's newest keys, as a device has them, are shown in the group there."""
    own, found = governance(h.channel(device, person)), governance(h.channel(device, group))
    return not own.renewal_due and not own.lacking and not found.keys_unshown


class Life:
    """Of a device; it dies when the scope is cancelled."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()

    async def end(self) -> None:
        self.scope.cancel()
        await self.ended.wait()


@asynccontextmanager
async def mortal(h: Houses, name: str) -> AsyncIterator[Life]:
    async def live(*, task_status: TaskStatus[Life]) -> None:
        life = Life()
        with life.scope:
            async with h.world.device(name) as device:
                h.devices[name] = device
                task_status.started(life)
                await anyio.sleep_forever()
        life.ended.set()

    async with anyio.create_task_group() as tasks:
        yield await tasks.start(live)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("who", ["another", "itself", "another-later"])
def test_the_keys_are_shown_although_the_remover_dies_before_it_does(
    backend: str, who: str
) -> None:
    """By another device that runs, by the remover's next start, by another's next start."""

    async def main() -> None:
        async with houses() as h:
            club = await h.group("club", {"carol": 1})
            async with (
                mortal(h, "bob0") as life,
                mortal(h, "bob1") as other,
                mortal(h, "bob2"),
            ):
                bob = await h.devices["bob0"].create_channel("bob")
                await h.devices["bob1"].join(await bob.invite())
                await h.devices["bob2"].join(await bob.invite())
                await h.devices["bob0"].join(await club.invite(), identity=bob)
                await until(lambda: h.has("bob1", "club") and h.has("bob2", "club"))
                await until(lambda: complete(club, 4))
                first = governance(club).newest_key
                if who != "another":
                    await other.end()

                async def die(channel: Channel) -> None:
                    life.scope.cancel()
                    raise KilledError

                # The person's chain says that the device left; nothing in the group does.
                killed = mock.patch.object(Channel, "renew_control_keys", die)
                with killed, pytest.raises(KilledError):
                    await bob.remove("did:sim:bob2")
                await life.ended.wait()
                assert governance(club).newest_key == first
                if who == "another":
                    await until(partial(shown, h, "bob1", "club", "bob"))
                    assert governance(h.channel("bob1", "club")).newest_key != first
                else:
                    async with mortal(h, "bob0" if who == "itself" else "bob1"):
                        name = "bob0" if who == "itself" else "bob1"
                        await until(partial(_restarted, h, name))
                        await until(partial(shown, h, name, "club", "bob"))
                        await until(lambda: governance(club).newest_key != first)
                # And the group's own keys, which the removed device had, are new for all.
                await until(lambda: governance(club).newest_key != first)
                newest = governance(club).newest_key
                await anyio.sleep(10 * GRACE_S)
                assert newest not in h.world.control_keys["did:sim:bob2", club.did]
                # Once: nobody goes on renewing.
                assert governance(club).newest_key == newest

    run(backend, main)


def _restarted(h: Houses, name: str) -> Any:
    return h.has(name, "club") and h.channel(name, "bob").members()
