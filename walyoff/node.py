"""A device: one running installation, with its store, its keys, its transports, its channels.

Everything that a device starts lives in the context of `walyoff.open_device` and ends with
it: the child process, listeners, sessions, channels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
from anyio.abc import ByteStream, TaskGroup

from walyoff import plugins
from walyoff.abc import Store, Transport
from walyoff.accepting import Acceptor, judge
from walyoff.address_book import MAX_ADDRESSES, AddressBook
from walyoff.channel import Channel
from walyoff.channel_state import (
    MAX_NAME_CHARS,
    SECRET_SIZE,
    ChannelState,
    load_epochs,
    save_epochs,
)
from walyoff.epochs import EPOCH_KEY_SIZE, new_epoch
from walyoff.errors import LocalProtocolError, RemoteProtocolError, TransportError
from walyoff.introducing import introduce
from walyoff.issued import InvitationBook
from walyoff.joining import Granted, OnWords, request_join
from walyoff.kinship import Kinship
from walyoff.leaving import finish_leaving
from walyoff.open_channels import OpenChannels
from walyoff.paths import carriers, scheme
from walyoff.platform import Foundation, Platform
from walyoff.running import renew_credentials
from walyoff.runtime import Runtime
from walyoff.session.dialling import dial
from walyoff.session.peer import Session

log = logging.getLogger("walyoff.device")

#: For so long the news of a chain may take to those who are connected.
NEWS_S = 1.0


class Device:
    """One running device. Get one from `walyoff.open_device`."""

    def __init__(
        self,
        *,
        home: Path,
        store: Store,
        platform: Platform,
        transports: dict[str, Transport],
        suite: str,
        tasks: TaskGroup,
        runtime: Runtime,
    ) -> None:
        self.home = home
        self.runtime = runtime
        self._store = store
        self._platform = platform
        self._transports = transports
        self._carriers = carriers(list(transports.values()))
        self._suite = suite
        self._open = OpenChannels(self, tasks)
        #: Where members were reached last.
        self.address_book = AddressBook(store)
        #: Held while a channel is made, so that two at once never are the same one.
        self._making = anyio.Lock()
        #: And this one while the device gets its DID.
        self._naming = anyio.Lock()
        #: Channels that this device was removed from and is joining again.
        self._former: set[str] = set()
        #: The invitations that this device made.
        self.invitations = InvitationBook(store, runtime)
        self.acceptor = Acceptor(self)
        self.kinship = Kinship(self)
        self._started = runtime.now()

    def __repr__(self) -> str:
        channels = self.channels()
        peers = {did for channel in channels for did in channel.peers()}
        return (
            f"<Device {self.home.name} [{len(channels)} channels, {len(peers)} peers | "
            f"{', '.join(sorted(self._transports)) or 'no transport'}]>"
        )

    # ---------------------------------------------------------------------- public

    @property
    def addresses(self) -> list[str]:
        """What other devices need to reach this one, best first."""
        found = [a for transport in self._transports.values() for a in transport.addresses]
        return found[:MAX_ADDRESSES]

    @property
    def transports(self) -> list[Transport]:
        """The transports that are open, best first."""
        return list(self._transports.values())

    @property
    def suite(self) -> str:
        """The suite of this device's own keys."""
        return self._suite

    @property
    def store(self) -> Store:
        """The device's store."""
        return self._store

    def channels(self) -> list[Channel]:
        """The channels of this device."""
        return list(self._open.by_did.values())

    def find_channel(self, did: str) -> Channel | None:
        """The channel of a DID, if it is open here."""
        return self._open.by_did.get(did)

    def channel(self, name: str) -> Channel:
        """A channel by its name or its DID.

        Raises:
            LocalProtocolError: there is none, or the name is ambiguous.
        """
        if name in self._open.by_did:
            return self._open.by_did[name]
        found = [c for c in self.channels() if c.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise LocalProtocolError(f"{len(found)} channels are named {name!r}: use the DID")
        have = ", ".join(sorted(c.name for c in self.channels())) or "none"
        raise LocalProtocolError(f"no channel {name!r} here (channels: {have})")

    async def create_channel(
        self, name: str, *, identity: Channel | None = None, admins: bool = False
    ) -> Channel:
        """Make a new identity with this device as its first member, and open its channel.

        With `identity`, which is one of this device's channels, that identity is the first
        member instead: all devices under it get the new channel.

        With `admins` only admins may invite and remove: the first member, and whom admins
        name (`Channel.make_admin`). That is a rule on the chain, which every device checks;
        it cannot be changed later.

        Raises:
            LocalProtocolError: the name is empty, too long or taken on this device.
            NotAMemberError: this device was removed from `identity`.
            ChildError: the chain could not be made now.
        """
        first = None if identity is None else identity.speaking_did()
        async with self._making:
            self._check_name(name)
            device = await self.did()
            rule = "admins" if admins else "any"
            created = self._platform.create(device, first, rule=rule)
            return await self._found(name, created)

    async def take_stock(self, name: str, did: str, group: str, pin: bytes) -> Channel:
        """Open a channel of a group that stock software made; see `walyoff.stock`.

        The device becomes the group's member `did`.

        Raises:
            LocalProtocolError: it has another DID, or the channel, or the name is taken.
        """
        async with self._making:
            self._check_name(name)
            self.check_new(group)
            async with self._naming:
                own = await self._store.get("device")
                if own is not None and own != did.encode():
                    raise LocalProtocolError(
                        "this device has a DID already: adopt into a new home"
                    )
                await self._store.put({"device": did.encode()})
            return await self._found(name, self._platform.open(group, pin=pin, device=did))

    async def _found(
        self, name: str, context: AbstractAsyncContextManager[Foundation]
    ) -> Channel:
        """Begin the channel of an identity that has none yet."""
        async with self._open.entered(context) as foundation:
            state = ChannelState(
                did=foundation.identity.did,
                name=name,
                pin=foundation.pin,
                secret=self.runtime.random_bytes(SECRET_SIZE),
            )
            epoch = new_epoch(
                key=self.runtime.random_bytes(EPOCH_KEY_SIZE),
                now_ms=self.runtime.wall_ms(),
            )
            await save_epochs(self._store, state.did, [epoch])
            return await self._start(state, foundation)

    async def join(
        self,
        invitation: str,
        *,
        name: str | None = None,
        identity: Channel | None = None,
        on_words: OnWords | None = None,
    ) -> Channel:
        """Join a channel by an invitation, and open it.

        With `identity`, which is one of this device's channels, that identity becomes the
        member: all devices under it get the channel, those of later too.

        A join that broke at any step can be tried again with the same invitation. `on_words`
        is awaited with six words as soon as the two devices talk: the inviter sees the same
        ones (`Channel.joins`), unless somebody is between them.

        Raises:
            InvitationError: mistyped, expired, used by somebody else, or revoked.
            TransportError: the inviting device cannot be reached now.
            LocalProtocolError: this device is in the channel already, or the name is taken.
        """
        if name is not None:
            self._check_name(name)
        did = None if identity is None else identity.speaking_did()
        granted = await request_join(self, invitation, on_words, did)
        async with self._making:
            channel = None if did is None else self._given(granted.channel)
            if channel is None:
                self.check_new(granted.channel)
                name = await self._close_former(granted.channel, name)
                channel = await self._take_up(granted, name)
            else:
                # The identity is in it since a moment, and another device of it was faster.
                await self._own(channel.state, name)
        await channel.learn_certificates(granted.certificates)
        return channel

    def _given(self, did: str) -> Channel | None:
        """A channel that another device gave this one, which it is still in."""
        channel = self._open.by_did.get(did)
        given = channel is not None and channel.state.given_by and did not in self._former
        return channel if given else None

    async def _own(self, state: ChannelState, name: str | None) -> None:
        """Keep a channel that was given as one that was joined."""
        state.given_by = ""
        state.name = name or state.name
        await self._store.put({f"channel/{state.did}": state.encode()})

    async def take_group(self, granted: Granted, *, through: str) -> None:
        """Open a group that this device is in through an identity, as a device of it granted.

        Raises RemoteProtocolError if the chains do not say so.
        """
        async with self._making:
            if granted.channel in self._open.by_did:
                return
            channel = await self._take_up(granted, None, through=through)
        await channel.learn_certificates(granted.certificates)

    async def _take_up(
        self, granted: Granted, name: str | None, *, through: str | None = None
    ) -> Channel:
        """Open a channel that was granted."""
        adopted = self._platform.adopt(granted.grant, device=await self.did())
        async with self._open.entered(adopted) as foundation:
            did = foundation.identity.did
            if did != granted.channel:
                raise RemoteProtocolError("the inviting device granted another identity")
            if through is not None and through not in foundation.identity.membership.kin:
                raise RemoteProtocolError("a group of somebody else")
            taken = {channel.name for channel in self.channels()}
            chosen = name or granted.name
            state = ChannelState(
                did=did,
                name=chosen if chosen not in taken else f"{chosen}-{did[-4:]}",
                pin=foundation.pin,
                secret=granted.secret,
                given_by="" if through is None else granted.inviter,
            )
            known = {e.epoch_id: e for e in await load_epochs(self._store, did)}
            known.update({e.epoch_id: e for e in granted.epochs})
            await save_epochs(self._store, did, list(known.values()))
            for member, addresses in (*granted.met, (granted.inviter, granted.addresses)):
                await self.address_book.remember(did, member, addresses)
            return await self._start(state, foundation)

    async def _close_former(self, did: str, name: str | None) -> str | None:
        """Close a channel that this device was removed from; returns what to call it now."""
        former = self._open.by_did.get(did)
        if former is None:
            return name
        self._former.discard(did)
        await self.close_channel(did)
        return name or former.name

    async def close_channel(self, did: str) -> None:
        """Close a channel and what it stands on."""
        await self._open.close(did)

    async def renew_keys(self) -> None:
        """Replace the control keys of this device's DID, and its device keys everywhere.

        It happens by itself after some months. What was signed before stays verifiable.

        Raises ChildError when the chain could not be written now.
        """
        await self._platform.renew_device(await self.did())
        for channel in self.channels():
            await channel.connections.announce_chains()
        # Who is connected takes the chain's news meanwhile, and then knows the new keys.
        await anyio.sleep(NEWS_S)
        for channel in self.channels():
            await renew_credentials(channel, self._store, self._suite, self.runtime)

    def check_new(self, did: str) -> None:
        """Raise LocalProtocolError if this device is in the channel of that DID already."""
        channel = self._open.by_did.get(did)
        if channel is None or did in self._former:
            return
        if not channel.engine.trust.is_member(channel.me):
            # It was removed. The chain may say otherwise before the join is through.
            self._former.add(did)
        else:
            raise LocalProtocolError(f"this device is in {channel.name!r} already")

    async def did(self) -> str:
        """The DID of this device, made when it is first needed."""
        async with self._naming:
            stored = await self._store.get("device")
            if stored is None:
                stored = (await self._platform.create_device()).encode()
                await self._store.put({"device": stored})
        return stored.decode()

    def status(self) -> dict[str, object]:
        """What the device is doing, for people and for `--json`."""
        return {
            "home": str(self.home),
            "addresses": self.addresses,
            "suite": self._suite,
            "transports": sorted(self._transports),
            "channels": [channel.status() for channel in self.channels()],
        }

    def statistics(self) -> dict[str, float]:
        """Counters since the device was opened."""
        return {
            "uptime_s": self.runtime.now() - self._started,
            "channels": len(self._open.by_did),
            "handshakes": self.acceptor.handshakes,
        }

    # -------------------------------------------------------------------- channels

    def _check_name(self, name: str) -> None:
        if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise LocalProtocolError(
                f"a channel's name has 1 to {MAX_NAME_CHARS} printable characters"
            )
        if any(channel.name == name for channel in self.channels()):
            raise LocalProtocolError(
                f"a channel {name!r} exists on this device: choose another"
            )

    async def _start(self, state: ChannelState, foundation: Foundation) -> Channel:
        await self._store.put({f"channel/{state.did}": state.encode()})
        return await self._open.run(state, foundation)

    async def open_channels(self) -> None:
        """Open every channel that the store knows."""
        await self.invitations.load()
        await finish_leaving(self)
        for key in await self._store.keys("channel/"):
            value = await self._store.get(key)
            if value is None:
                continue
            state = ChannelState.decode(value)
            found = self._platform.open(state.did, pin=state.pin, device=await self.did())
            async with self._open.entered(found) as foundation:
                await self._open.run(state, foundation)

    # -------------------------------------------------------------------- sessions

    async def connect_stream(self, address: str) -> ByteStream:
        """A stream to an address, by the transport that the address names."""
        path = self._carriers.get(scheme(address))
        if path is None:
            have = ", ".join(sorted(self._transports)) or "none"
            raise TransportError(
                f"no transport {scheme(address)!r} is open here (open: {have})"
            )
        return await self._transports[path].connect(address)

    async def dial(
        self, channel: Channel, address: str, claim: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Connect to an address and serve the session until it ends.

        `claim` is asked with the DID that is there; if it says no, the session is ended.

        Raises:
            TransportError: nobody was reached, or the connection broke.
            RemoteProtocolError: it is not a member, or it refused.
        """
        session = await self._reach(channel, address)
        if not claim(session.did):
            async with session.run():
                log.debug("the session with %s at %s is not wanted", session.did, address)
            return
        try:
            await channel.connections.serve(session)
        except RemoteProtocolError as error:
            known = error.reason != "refused"
            if known or not await introduce(self, channel, address, judge(channel)):
                raise
            again = await self._reach(channel, address)
            await channel.connections.serve(again)

    async def _reach(self, channel: Channel, address: str) -> Session:
        stream = await self.connect_stream(address)
        session = await dial(
            stream,
            mode="member",
            tag_key=channel.state.tag_key,
            context=channel.handshake_context(),
            suites=self.suites(),
            judge=judge(channel),
            runtime=self.runtime,
        )
        session.path = self._carriers[scheme(address)]
        return session

    def suites(self) -> list[str]:
        """The suites that this device accepts, its own first."""
        others = [name for name in plugins.installed_suites() if name != self._suite]
        return [self._suite, *others]

    @property
    def platform(self) -> Platform:
        """Where this device's identities come from."""
        return self._platform
