"""Running a channel: the tasks that live as long as it is open.

Decided here: when membership changes are passed on, when device keys are renewed, and when
what changes while a channel runs is written down.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from walyoff.abc import GuardedLedger, Ledger, Store
from walyoff.channel import Channel
from walyoff.channel_state import ChannelState, load_policy, save_epochs
from walyoff.engine.driver import Engine
from walyoff.engine.facts import Report
from walyoff.epochs import Epoch, anchor_key
from walyoff.errors import ChildError, StoreError, WalyoffError
from walyoff.incarnations import note_superseded
from walyoff.platform import Foundation
from walyoff.runtime import Runtime
from walyoff.trust import Trust, is_due, make_credentials, sign_leftovers

if TYPE_CHECKING:
    from walyoff.node import Device

log = logging.getLogger("walyoff.channel")

#: How often the place in the ledger is written down, at most; reading again is harmless.
LEDGER_POSITION_EVERY_S = 1.0
#: Device keys are renewed in the middle of their months, so an hour more or less is nothing.
RENEWAL_CHECK_S = 3600.0
#: A device key signs so many batches in one run before it is replaced.
MAX_SIGNATURES = 1 << 20
#: A store that failed (a full disk) is tried again so often.
STORE_RETRY_S = 5.0


@asynccontextmanager
async def run_channel(
    *,
    device: Device,
    store: Store,
    state: ChannelState,
    foundation: Foundation,
    suite: str,
    epochs: Sequence[Epoch],
) -> AsyncIterator[Channel]:
    """Open a channel and run it while the context is open."""
    did = state.did
    trust = Trust(
        channel=did,
        identity=foundation.identity,
        store=store,
        wall_ms=device.runtime.wall_ms,
    )
    await sign_leftovers(store, did)
    credentials = await make_credentials(
        channel=did,
        identity=foundation.identity,
        store=store,
        suite=suite,
        now_ms=device.runtime.wall_ms(),
    )
    await trust.add(credentials.encoded)
    stored = await store.get(f"ledger-position/{did}")
    keeper = _Keeper(store, did, foundation.ledger)
    await keeper.guard(epochs)
    channel: Channel | None = None

    def report(fault: Report) -> None:
        if channel is not None:
            channel.note(fault)

    engine = Engine(
        store=store.channel(did),
        ledger=foundation.ledger,
        trust=trust,
        credentials=credentials,
        epochs=epochs,
        ledger_position=int.from_bytes(stored or b"", "big"),
        on_ledger_position=keeper.position,
        on_report=report,
        on_epochs=lambda new: keeper.epochs(list(engine.epochs.values())),
        runtime=device.runtime,
        chunk_key=state.derive("chunks"),
        policy=await load_policy(store, did),
    )
    async with engine.run() as tasks:
        channel = Channel(device=device, state=state, foundation=foundation, engine=engine)
        engine.on_membership = channel.connections.end_strangers
        await channel.restore_forget_policy()
        tasks.start_soon(keeper.run)
        tasks.start_soon(channel.connections.run)
        tasks.start_soon(_watch_membership, channel, device)
        tasks.start_soon(_renew_credentials, channel, store, suite, device.runtime)
        tasks.start_soon(_watch_copies, channel, store, suite, device.runtime)
        try:
            yield channel
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    # The ledger's process may have ended before: it is told at the next start.
                    await keeper.save()
                except StoreError as error:
                    log.warning("new epochs were not stored, others have them: %s", error)


async def _watch_membership(channel: Channel, device: Device) -> None:
    """Pass membership changes on, and end sessions with those who are no longer members."""
    identity = channel.foundation.identity
    async with identity.changes() as changes:
        # What the chain said before anybody listened here.
        channel.engine.membership_changed()
        async for _ in changes:
            channel.connections.end_strangers()
            channel.engine.membership_changed()
            device.kinship.wake()
            await channel.connections.pass_on_chains()


async def _watch_copies(channel: Channel, store: Store, suite: str, runtime: Runtime) -> None:
    """End sessions with copies of devices that were moved, and stop if this is one.

    Raises:
        SupersededError: another copy of this device took over; the device ends with it.
    """
    engine = channel.engine
    while True:
        news = engine.trust.superseding
        if not engine.trust.copied and _is_superseded(engine):
            # Whoever has this device's old control keys can say so. The newest come first.
            await renew_credentials(channel, store, suite, runtime)
        if engine.trust.copied or _is_superseded(engine):
            raise await note_superseded(
                store,
                engine.trust.incarnation(engine.me),
                outkeyed=engine.trust.outkeyed(engine.credentials.certificate),
            )
        await channel.connections.end_superseded()
        await news.wait()


def _is_superseded(engine: Engine) -> bool:
    return engine.trust.superseded(engine.credentials.certificate)


async def _renew_credentials(
    channel: Channel, store: Store, suite: str, runtime: Runtime
) -> None:
    """Give a device that runs for months a new key before its certificate ends."""
    engine = channel.engine
    while True:
        await anyio.sleep(RENEWAL_CHECK_S)
        now_ms = runtime.wall_ms()
        channel.connections.end_expired(now_ms)
        used_up = engine.signatures >= MAX_SIGNATURES
        if not used_up and not is_due(engine.credentials.certificate, now_ms):
            continue
        try:
            await renew_credentials(channel, store, suite, runtime)
        except WalyoffError as error:
            log.warning("the device key was not renewed, it is tried again: %s", error)


async def renew_credentials(
    channel: Channel, store: Store, suite: str, runtime: Runtime
) -> None:
    """Give a device a new key, certified by its DID's newest control keys."""
    engine = channel.engine
    credentials = await make_credentials(
        channel=channel.did,
        identity=channel.foundation.identity,
        store=store,
        suite=suite,
        now_ms=runtime.wall_ms(),
        renew=True,
    )
    await engine.trust.add(credentials.encoded)
    # Batches name their certificate and are signed by it without a pause between.
    engine.credentials = credentials
    engine.signatures = 0


class _Keeper:
    """Writes down epochs at once, and the place in the ledger some time after it was read."""

    def __init__(self, store: Store, did: str, ledger: Ledger) -> None:
        self._store = store
        self._did = did
        self._ledger = ledger
        self._position = 0
        self._epochs: list[Epoch] | None = None
        self._work = anyio.Event()

    def position(self, position: int) -> None:
        self._position = position
        self._work.set()

    def epochs(self, epochs: list[Epoch]) -> None:
        self._epochs = epochs
        self._work.set()

    async def run(self) -> None:
        stored = 0
        while True:
            await self._work.wait()
            self._work = anyio.Event()
            try:
                await self.flush()
                # What was read from the ledger up to here is in the store before its place
                # is: the batches were queued for the same writer long before.
                position = self._position
                if position > stored:
                    await anyio.sleep(LEDGER_POSITION_EVERY_S)
                    key = f"ledger-position/{self._did}"
                    await self._store.put({key: position.to_bytes(8, "big")})
                    stored = position
            except StoreError as error:
                log.warning("the store failed, it is tried again: %s", error)
                await anyio.sleep(STORE_RETRY_S)
                self._work.set()

    async def flush(self) -> None:
        """Write down the epochs and tell the ledger. Raises StoreError, as `save`."""
        if epochs := await self.save():
            await self.guard(epochs)

    async def save(self) -> Sequence[Epoch]:
        """Write down the epochs, if they are new; which ones.

        Raises:
            StoreError: they are written the next time.
        """
        epochs = self._epochs
        if epochs is None:
            return ()
        await save_epochs(self._store, self._did, epochs)
        if self._epochs is epochs:
            self._epochs = None
        return epochs

    async def guard(self, epochs: Sequence[Epoch]) -> None:
        """Tell a guarded ledger what to admit."""
        if isinstance(self._ledger, GuardedLedger):
            ordered = sorted(epochs, key=lambda e: (e.created_ms, e.epoch_id))
            try:
                await self._ledger.learn_keys({e.epoch_id: anchor_key(e) for e in ordered})
            except ChildError as error:
                # The ledger keeps them, and tells the next child.
                log.warning("the ledger did not take the epochs' keys: %s", error)


__all__ = ["renew_credentials", "run_channel"]
