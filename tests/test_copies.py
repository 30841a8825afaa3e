"""What somebody without keys writes to an identity's chain: nothing of it is kept."""

from __future__ import annotations

import base64
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_reader import PIN, did_pin, sign
from walyoff.child import births, guard, judging
from walyoff.child.acts import TOPIC_RULES, Approval, Claim, did_of, pin_of
from walyoff.child.births import GREETING, ROOM, put_birth
from walyoff.child.blocks import BlockFile, decode_block, decode_id
from walyoff.child.chainfiles import ChainFiles, parent_ids
from walyoff.child.chains import judge_later
from walyoff.child.copies import is_spelled, sift
from walyoff.child.households import MAX_PINS, KinJudge
from walyoff.child.judging import IdentityJudge
from walyoff.child.renewals import (
    PUBLIC_SIZE,
    SCHEME,
    SIGNATURE_SIZE,
    as_field,
    renewal_body,
)
from walyoff.errors import RemoteProtocolError
from walyoff.testing.walytis_blocks import Birth, birth, make_block
from walyoff.wire import pack

K0, K1 = "|key-0", "|key-1"
A, B = did_of("QmA"), did_of("QmB")
KEY, JOIN, DOC = "control_key", "member_joining", "did_doc"
VERSION = [0, 0, 1]


def signed(key: str, data: bytes) -> bytes:
    """A toy signature in the spelling of stock code: hexadecimal digits, one part for each."""
    digest = sign(key, data)
    return f"{digest.hex()}-{digest[::-1].hex()}".encode()


def verify(key: str, signature: bytes, data: bytes) -> bool:
    if key.startswith(SCHEME):
        return signature == by_renewal_key(key, data)
    try:
        parts = [bytes.fromhex(part) for part in signature.decode().split("-")]
    except ValueError:
        return False
    return parts == [sign(key, data), sign(key, data)[::-1]]


def by_renewal_key(key: str, data: bytes) -> bytes:
    return (sign(key, data) * 200)[:SIGNATURE_SIZE]


def approves(approval: Approval) -> bool:
    return approval.signature == sign(f"own {approval.by}", approval.body)


class World:
    """A chain, and a device that follows it."""

    def __init__(self, folder: Path, born: Birth | None = None) -> None:
        self.born = born or birth()
        self.did = did_of(self.born.chain)
        folder.mkdir(exist_ok=True)
        self.files = ChainFiles(self.born.chain, folder / "chain", folder / "positions")
        #: The control keys that count.
        self.keys = [K0]
        self.judge: Any = IdentityJudge(
            self.did,
            pin_of(K0),
            verify,
            approves,
            counting=lambda *_: self.keys,
            # Of the two A is a member still.
            is_members=lambda *about: about[-1].by == A and approves(about[-1]),
        )
        #: What the network has, by name.
        self.store: dict[str, bytes] = {}
        self.refused = guard.Refusals()
        self.aside = guard.Aside()
        born_blocks = zip(self.born.blocks, self.born.files, strict=True)
        self.files.add_closed(born_blocks)

    # ------------------------------------------------------------------- blocks

    def put(self, topic: str, content: bytes, *parents: BlockFile, **more: Any) -> BlockFile:
        """A block that is somewhere in the network."""
        ids = [p.short_id for p in parents or (self.born.blocks[-1],)]
        if len(ids) == 1:
            ids.append(self.born.blocks[0].short_id)
        topics = more.pop("topics", [topic, self.born.chain])
        data = make_block(content, topics, ids, **more)
        block = decode_block(data)
        self.store[block.cid] = data
        return block

    def claim(self, kind: str, *parents: BlockFile, by: str = A, **more: Any) -> Claim:
        names = [p.cid for p in parents]
        if len(names) == 1:
            names.append(self.born.chain)
        more.setdefault("nonce", bytes(16))
        return Claim(group=self.did, kind=kind, by=by, parents=tuple(names), **more)

    def key(
        self,
        old: str,
        new: str,
        *parents: BlockFile,
        by: str | None = None,
        said: dict[str, Any] | None = None,
    ) -> BlockFile:
        value: dict[str, Any] = {
            "old_keys": old,
            "new_keys": new,
            "signature": text(signed(old, f"{old}--{new}".encode())),
            "priblocks_version": VERSION,
        }
        if by is not None:
            claim = self.claim("renew", *parents, by=by, pin=pin_of(new))
            value["walyoff"] = claim.as_field(sign(f"own {by}", claim.body()))
        if said is not None:
            value["walyoff"] = said
        return self.put(KEY, json.dumps(value).encode(), *parents)

    def info(self, topic: str, info: Any, key: str, *parents: BlockFile) -> BlockFile:
        return self.put(topic, info_content(info, key), *parents)

    def join(self, did: str, key: str, *parents: BlockFile, by: str = A) -> BlockFile:
        claim = self.claim("join", *parents, by=by, subject=did, pin=did_pin(did))
        field = claim.as_field(sign(f"own {by}", claim.body()))
        return self.info(
            JOIN, {"did": did, "invitation": "{}", "walyoff": field}, key, *parents
        )

    def rules(self, key: str, *parents: BlockFile) -> BlockFile:
        claim = self.claim("rules", *parents, rule="any")
        body = claim.body()
        content = claim.as_block(sign(f"own {A}", body), signed(key, body))
        return self.put(TOPIC_RULES, content, *parents)

    # ----------------------------------------------------------------- coming in

    def feed(self, block: BlockFile, data: bytes) -> bool:
        if block.cid in self.files:
            return False
        self.files.check(block)
        self.judge.place(self.files, block)
        self.files.add_closed([(block, data)])
        return True

    def read(self, cid: str, _announcer: str) -> bytes:
        return self.store[cid]

    def announce(self, *blocks: BlockFile) -> int:
        """Blocks are announced, and fetched from the network."""
        admitted = 0
        for block in blocks:
            try:
                branch = guard.Branch(self, self, self.judge, "")
                admitted += branch.fetch(decode_id(block.long_id))
            except RemoteProtocolError:
                continue
        return admitted

    def hand_over(self, *blocks: BlockFile) -> Counter[str]:
        """A member brings blocks; what was refused."""
        refused: Counter[str] = Counter()

        def refuse(reason: str) -> None:
            refused[reason] += 1

        pairs = [(block, self.store[block.cid]) for block in blocks]
        kept = sift(self.judge.look(self.files), pairs, refuse)

        def check(block: BlockFile) -> None:
            judge_later(self.judge, self.files, block)

        self.files.add_closed(kept, refuse, judge=check)
        return refused

    def holds(self, *blocks: BlockFile) -> bool:
        return all(block.cid in self.files for block in blocks)


def text(signature: bytes) -> str:
    return base64.urlsafe_b64encode(signature).decode()


def info_content(info: Any, key: str) -> bytes:
    signature = text(signed(key, json.dumps(info).encode()))
    value = {"info_content": info, "signature": signature, "priblocks_version": VERSION}
    return json.dumps(value).encode()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def begun(world: World) -> list[BlockFile]:
    """An identity with a member, as we found it; its blocks are held."""
    first = world.key(K0, K0)
    document = world.info(DOC, {"id": world.did}, K0, first)
    joined = world.join(A, K0, document)
    rules = world.rules(K0, joined)
    assert world.announce(rules) == 4
    return [first, document, joined, rules]


# ------------------------------------------------------------------------- spellings

Respell = Callable[[dict[str, Any]], bytes]


def dumped(**options: Any) -> Respell:
    return lambda value: json.dumps(value, **options).encode()


def changed(name: str, change: Callable[[Any], Any]) -> Respell:
    return lambda value: json.dumps({**value, name: change(value[name])}).encode()


def upper_signature(value: str) -> str:
    return text(base64.urlsafe_b64decode(value).upper())


SPELLINGS: dict[str, Respell] = {
    "spaces": dumped(indent=1),
    "no spaces": dumped(separators=(",", ":")),
    "space before": lambda value: b" " + json.dumps(value).encode(),
    "line after": lambda value: json.dumps(value).encode() + b"\n",
    "other order": dumped(sort_keys=True),
    "more fields": lambda value: json.dumps({**value, "n": 7}).encode(),
    "fewer fields": lambda value: json.dumps(
        {k: v for k, v in value.items() if k != "priblocks_version"}
    ).encode(),
    "a field twice": lambda value: b'{"signature": 1, ' + json.dumps(value).encode()[1:],
    "an escape": lambda value: json.dumps(value).replace("key", "\\u006bey").encode(),
    "other version": changed("priblocks_version", lambda _: [0, 0, 2]),
    "a version of floats": changed("priblocks_version", lambda _: [0.0, 0, 1]),
    "a version of booleans": changed("priblocks_version", lambda _: [False, 0, True]),
    "upper case": changed("signature", upper_signature),
    "spaces in digits": changed(
        "signature",
        lambda value: text(base64.urlsafe_b64decode(value).replace(b"-", b" -")),
    ),
    "bits after the signature": changed(
        "signature", lambda value: value[:-3] + chr(ord(value[-3]) + 1) + "="
        if value.endswith("==") else value.replace("=", "") + "===="
    ),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_nobody_lengthens_a_chain_by_other_spellings(world: World, spelling: str) -> None:
    first, document, *_ = begun(world)
    length = len(world.files)
    made = []
    for block, topic in ((first, KEY), (document, DOC)):
        content = SPELLINGS[spelling](json.loads(block.content))
        if content == block.content:
            continue
        for minute, parents in enumerate(([], [block])):
            made.append(world.put(topic, content, *parents, minute=minute))
    assert made
    assert world.announce(*made) == 0
    world.hand_over(*made)
    assert len(world.files) == length


def test_a_spelling_that_comes_before_what_was_signed_does_not_come_in(world: World) -> None:
    first = world.key(K0, K0)
    copy = world.put(KEY, SPELLINGS["spaces"](json.loads(first.content)))
    assert world.announce(copy, first) == 1
    assert world.holds(first)


# ---------------------------------------------------------------------------- copies


def copies(world: World, blocks: list[BlockFile]) -> list[BlockFile]:
    """All that somebody without keys can make of what is on a chain, with one more on top."""
    topics = {KEY: KEY, DOC: DOC, JOIN: JOIN}
    made: list[BlockFile] = []
    for block in blocks:
        topic = next((t for t in block.topics if t in topics), TOPIC_RULES)
        own = parent_ids(block)
        for minute in range(3):
            data = make_block(block.content, list(block.topics), own, minute=minute)
            again = decode_block(data)
            world.store[again.cid] = data
            # In its place, below it, above it, as another kind, and with one more topic.
            made += [again, world.put(topic, block.content, again, minute=minute)]
            made += [world.put(topic, block.content, minute=minute)]
            made += [world.put(topic, block.content, block, minute=minute)]
            made += [world.put(DOC, block.content, block, minute=minute)]
            more = [topic, "more", world.born.chain]
            made += [world.put(topic, block.content, minute=minute, topics=more)]
    return made


def test_nothing_of_what_can_be_copied_is_kept(world: World) -> None:
    blocks = begun(world)
    blocks.append(world.key(K0, K1, blocks[-1], by=A))
    assert world.announce(blocks[-1]) == 1
    length = len(world.files)
    made = copies(world, blocks)
    assert len(made) > 80
    assert world.announce(*made) == 0
    world.hand_over(*made)
    assert len(world.files) == length


def test_copies_below_a_forged_block_do_not_come_in_with_it(world: World) -> None:
    first, *_ = begun(world)
    length = len(world.files)
    below = [world.put(KEY, first.content, minute=n) for n in range(20)]
    tips = [
        world.join(B, "|nobody's", *below),
        world.info(JOIN, {"did": B}, "|nobody's", *below[:10]),
        world.key("|nobody's", K1, *below[10:], by=A),
        world.key(K0, K1, *below[5:15], by=B),
    ]
    # The last is a renewal that was signed, elsewhere: its field is an outsider's.
    value = json.loads(tips[-1].content)
    value["walyoff"]["sig"] = base64.b64encode(b"rubbish").decode()
    tips.append(world.put(KEY, json.dumps(value).encode(), *below[5:15]))
    del tips[3]
    assert world.announce(*tips) == 0
    assert len(world.files) == length


def test_what_a_member_built_on_comes_with_its_block(world: World) -> None:
    """As long as it was not known that it is a copy, it could be taken for the first one."""
    _, document, joined, rules = begun(world)
    copy = world.put(JOIN, joined.content, document, minute=7)
    spelled = world.put(DOC, SPELLINGS["spaces"](json.loads(document.content)), copy)
    assert world.announce(copy, spelled) == 0
    newest = world.join(B, K0, rules, spelled)
    assert world.announce(newest) == 3
    assert world.holds(copy, spelled, newest)


def test_the_same_when_it_is_handed_over(world: World, tmp_path: Path) -> None:
    _, document, joined, rules = begun(world)
    copy = world.put(JOIN, joined.content, document, minute=7)
    newest = world.join(B, K0, rules, copy)
    assert world.hand_over(copy) == {"replayed": 1}
    assert world.hand_over(copy, newest) == {}
    assert world.holds(copy, newest)


def forged(world: World, renewal: BlockFile, *parents: BlockFile) -> list[BlockFile]:
    """What can be made of a renewal whose author's approval its signature does not cover."""
    value = json.loads(renewal.content)
    plain = {name: value[name] for name in value if name != "walyoff"}
    own = value["walyoff"]
    found = [plain]
    found += [{**plain, "walyoff": {**own, "sig": base64.b64encode(b"%d" % n).decode()}}
              for n in range(3)]  # fmt: skip
    found += [{**plain, "walyoff": {**own, "nonce": bytes(15).hex() + f"{n:02x}"}}
              for n in range(1, 3)]  # fmt: skip
    found += [{**plain, "walyoff": {**own, "by": B}}, {**plain, "walyoff": None}]
    return [world.put(KEY, json.dumps(value).encode(), *parents) for value in found]


def test_a_forged_approval_neither_comes_in_nor_keeps_the_real_one_out(
    tmp_path: Path,
) -> None:
    for number, rival in enumerate(range(8)):
        world = World(tmp_path / str(number))
        *_, rules = begun(world)
        renewal = world.key(K0, K1, rules, by=A)
        rivals = forged(world, renewal, rules)
        # The one that was faster, by luck: nobody can tell.
        early = world.announce(rivals[rival])
        assert world.announce(renewal) == 1
        length = len(world.files)
        assert world.announce(*rivals) == 0
        world.hand_over(*rivals)
        assert len(world.files) == length == 10 + early


@pytest.mark.parametrize("way", ["announced", "handed over"])
def test_a_former_member_lengthens_a_chain_up_to_a_number(
    world: World, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """It has the keys of its time for ever, and signs what it likes."""
    monkeypatch.setattr(judging, "MAX_LATE", 20)
    *_, rules = begun(world)
    renewal = world.key(K0, K1, rules, by=A)
    world.announce(renewal)
    world.keys.append(K1)
    length = len(world.files)
    bring = world.announce if way == "announced" else world.hand_over
    made = [world.info(DOC, {"n": n}, K0, rules) for n in range(60)]
    # Keys of its own making are worth no more than those that made them.
    own = world.key(K0, "|evil", rules, by=B)
    made += [own, *(world.info(DOC, {"n": n}, "|evil", own) for n in range(60))]
    made += [world.join(did_of(f"Qm{n}"), K0, renewal, by=B) for n in range(60)]
    for block in made:
        bring(block)
    assert len(world.files) == length + 20
    bring(*[world.key(K0, f"|evil {n}", renewal, by=B) for n in range(60)])
    assert len(world.files) == length + 40
    # Those who have the newer keys go on, as do those who get still newer ones.
    fresh = [world.join(did_of(f"Qm{n} new"), K1, renewal) for n in range(30)]
    bring(*fresh)
    newer = world.key(K1, "|key-2", *fresh, by=A)
    more = [world.join(did_of(f"Qm{n} newer"), "|key-2", newer) for n in range(30)]
    bring(newer, *more)
    assert world.holds(*fresh, newer, *more)
    # And what one of them built on comes.
    late = world.info(DOC, {"n": 100}, K0, rules)
    bring(late)
    assert not world.holds(late)
    last = world.join(did_of("Qmlast"), "|key-2", late, newer)
    if way == "announced":
        world.announce(last)
    else:
        world.hand_over(late, last)
    assert world.holds(late, last)


@pytest.mark.parametrize("way", ["announced", "handed over"])
def test_beside_a_renewal_that_does_not_count_others_write_on(
    world: World, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Two renewed at once, and one of the renewals counts."""
    monkeypatch.setattr(judging, "MAX_LATE", 20)
    bring = world.announce if way == "announced" else world.hand_over
    *_, rules = begun(world)
    counts, lost = world.key(K0, K1, rules, by=A), world.key(K0, "|lost", rules, by=B)
    bring(counts)
    bring(lost)
    world.keys.append(K1)
    fresh = [world.join(did_of(f"Qm{n}"), K1, counts, lost) for n in range(30)]
    bring(*fresh)
    assert world.holds(*fresh)
    # Who has the keys of before is bounded as ever,
    length = len(world.files)
    for n in range(60):
        bring(world.info(DOC, {"n": n}, K0, rules))
        bring(world.join(did_of(f"Qm{n} late"), K0, counts, lost))
    assert len(world.files) <= length + 20
    # and so is who has those that were replaced, once others go on from them.
    newer = world.key(K1, "|key-2", *fresh, by=A)
    bring(newer)
    world.keys.append("|key-2")
    length = len(world.files)
    for n in range(60):
        bring(world.info(DOC, {"n": n}, "|lost", lost))
        bring(world.join(did_of(f"Qm{n} later"), "|lost", newer))
    assert len(world.files) <= length + 20
    last = world.join(did_of("Qmlast"), "|key-2", newer)
    bring(last)
    assert world.holds(last)


def test_nobody_writes_a_devices_renewal_again(tmp_path: Path) -> None:
    """With another end, or with a renewal key of its own."""
    committed, others = (bytes([n]) * PUBLIC_SIZE for n in (1, 2))
    following = pin_of("the next one")

    def renewals(world: World) -> list[BlockFile]:
        first = world.key(K0, K0)
        plain = json.loads(world.key(K0, K1, first).content)
        made = []
        for key, promised in ((committed, following), (others, following), (others, PIN)):
            body = renewal_body(world.did, K0, K1, promised)
            sig = by_renewal_key(SCHEME + key.hex(), body)
            made.append({**plain, "walyoff": as_field(world.did, key, promised, sig)})
        made.append({**plain, "walyoff": as_field(world.did, committed, PIN, sig)})
        contents = [json.dumps(value).encode() for value in [*made, plain]]
        contents += [contents[0][:-2] + b', "n": 1}}', contents[0] + b" "]
        return [world.put(KEY, content, first) for content in contents]

    for early in range(1, 7):
        world = World(tmp_path / str(early), born_device(pin_of(SCHEME + committed.hex())))
        renewal, *rivals = renewals(world)
        admitted = world.announce(rivals[early - 1])
        world.announce(renewal)
        assert world.holds(renewal)
        length = len(world.files)
        assert world.announce(*rivals) == 0
        world.hand_over(*rivals)
        # The first key block, the renewal, and what was faster, if it was signed at all.
        assert len(world.files) == length == 5 + 2 + max(admitted - 1, 0)


@pytest.mark.parametrize("way", ["announced", "handed over"])
def test_false_first_keys_of_a_device_keep_nothing_of_its_chain_out(
    tmp_path: Path, way: str
) -> None:
    """Any member can write that a device joined with others, before its chain is here."""
    renewal_keys = [bytes([n]) * PUBLIC_SIZE for n in (1, 2, 3)]
    names = [SCHEME + key.hex() for key in renewal_keys]
    world = World(tmp_path, born_device(pin_of(names[0])))
    world.judge = kin = KinJudge()
    for n in range(MAX_PINS):
        pin = bytes([n]) * 32
        kin.add(pin, IdentityJudge(world.did, pin, verify, approves))
    kin.add(pin_of(K0), IdentityJudge(world.did, pin_of(K0), verify, approves))
    bring = world.announce if way == "announced" else world.hand_over
    blocks = [world.key(K0, K0)]
    for number, (old, new) in enumerate([(K0, K1), (K1, "|key-2")]):
        promised = pin_of(names[number + 1])
        signature = by_renewal_key(names[number], renewal_body(world.did, old, new, promised))
        said = as_field(world.did, renewal_keys[number], promised, signature)
        # Who copies it without what the device says comes first.
        stripped = world.key(old, new, blocks[-1])
        blocks.append(world.key(old, new, blocks[-1], said=said))
        bring(stripped)
        bring(*blocks[-2:])
    assert world.holds(*blocks)


@pytest.mark.parametrize("way", ["announced", "handed over"])
@pytest.mark.parametrize("place", ["beside", "above"])
def test_a_former_member_leaves_room_for_what_members_write(
    world: World, monkeypatch: pytest.MonkeyPatch, way: str, place: str
) -> None:
    """Members who were not given the newest keys, or did not hear of them, have the old."""
    monkeypatch.setattr(judging, "MAX_LATE", 20)
    bring = world.announce if way == "announced" else world.hand_over
    *_, rules = begun(world)
    newer = world.key(K0, K1, rules, by=A)
    world.announce(newer)
    world.keys.append(K1)
    top = rules if place == "beside" else newer
    former = [world.key(K0, f"|evil {n}", top, by=B) for n in range(60)]
    bring(*former)
    assert 0 < sum(world.holds(block) for block in former) <= 20
    recovers = world.key(K0, "|key-2", top, by=A)
    forged = world.claim("renew", top, by=A, pin=pin_of("|forged"))
    false = world.key(K0, "|forged", top, said=forged.as_field(bytes(32)))
    bring(false)
    bring(recovers)
    assert world.holds(recovers)
    assert not world.holds(false)
    length = len(world.files)
    bring(*[world.key(K0, f"|evil {n}", top, by=B) for n in range(60, 90)])
    assert len(world.files) == length


def test_a_forged_block_does_not_put_the_real_one_aside(
    world: World,
) -> None:
    """It has the signature of a block that it is not; both come in one hand-over."""
    *_, rules = begun(world)
    renewal = world.key(K0, K1, rules)
    value = json.loads(renewal.content)
    for n in range(20):
        forged = world.put(KEY, json.dumps({**value, "new_keys": f"|evil {n}"}).encode(), rules)
        world.hand_over(*sorted([forged, renewal], key=lambda b: b is renewal))
        assert world.holds(renewal)
        assert not world.holds(forged)


def born_device(following: bytes) -> Birth:
    content = put_birth(GREETING + bytes(ROOM), births.Birth(pin=pin_of(K0), next=following))
    files = [make_block(content, ["genesis"], [])]
    blocks = [decode_block(files[0])]
    for number in range(1, 5):
        parents = [blocks[-1].short_id, blocks[0].short_id]
        files.append(make_block(b"hello %d" % number, ["genesis"], parents, minute=number))
        blocks.append(decode_block(files[-1]))
    return Birth(files, blocks)


def test_what_was_refused_as_a_copy_does_not_bar_what_members_build_on(world: World) -> None:
    """The copy came first, so the original is taken for one, until somebody builds on it."""
    *_, rules = begun(world)
    original = world.join(B, K0, rules)
    data = make_block(original.content, list(original.topics), parent_ids(original), minute=9)
    copy = decode_block(data)
    world.store[copy.cid] = data
    assert world.announce(copy, original) == 1
    assert not world.holds(original)
    newest = world.join(did_of("QmC"), K0, original)
    assert world.announce(newest) == 2
    assert world.holds(original, newest)


@pytest.mark.parametrize("seed", range(12))
def test_in_any_order_all_that_members_wrote_comes_in(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    world = World(tmp_path / "1")
    blocks = begun(world)
    for number in range(6):
        # Sometimes two at a time, who do not know of one another.
        tops = leaves_of(blocks)
        for who in range(rng.choice([1, 2])):
            blocks.append(world.join(did_of(f"Qm{number}{who}"), K0, *tops))
    other = World(tmp_path / "2", world.born)
    other.store = world.store
    made = copies(world, blocks)
    mixed = rng.sample(made, 60) + blocks
    rng.shuffle(mixed)
    other.announce(blocks[0])
    for start in range(0, len(mixed), 7):
        other.announce(*mixed[start : start + 7])
    # The tip that a member writes on what it holds brings all of it, whatever came before.
    newest = world.join(did_of("Qmlast"), K0, *leaves_of(blocks))
    assert other.announce(newest) >= 1
    assert other.holds(*blocks, newest)
    # Who had the first of two that say the same has one more for it, and no others.
    kept = len(other.files) - len(world.born.blocks) - len(blocks) - 1
    assert kept <= len(blocks)
    length = len(other.files)
    assert other.announce(*made) == 0
    other.hand_over(*made)
    assert len(other.files) == length


def leaves_of(blocks: list[BlockFile]) -> list[BlockFile]:
    below = {parent for block in blocks for parent in block.parents}
    return [block for block in blocks if block.cid not in below]


def test_a_spelling_is_looked_at_byte_by_byte(world: World) -> None:
    first, document, joined, rules = begun(world)
    renewal = world.key(K0, K1, rules, by=A)
    for block in (first, document, joined, rules, renewal):
        act = world.judge.act(block)
        assert is_spelled(act, block.topics, block.content)
        if TOPIC_RULES not in block.topics:
            assert not is_spelled(act, block.topics, block.content + b" ")


@pytest.mark.parametrize("copied_first", [True, False], ids=["copy first", "copy last"])
@pytest.mark.parametrize("way", ["announced", "handed over"])
def test_nobody_hides_a_devices_renewal_behind_a_copy_of_it(
    world: World, way: str, copied_first: bool
) -> None:
    """What the device says besides is not covered by the signature that both have."""
    first = world.key(K0, K0)
    body = renewal_body(world.did, K0, K1, bytes(32))
    own = pack([sign(K0, body), sign(K0, body)[::-1]])
    said = as_field(world.did, b"", bytes(32), own)
    renewal = world.key(K0, K1, first, said=said)
    assert is_spelled(world.judge.act(renewal), renewal.topics, renewal.content)
    respelled = [
        dict(reversed(said.items())),
        {**said, "next": "00 " + "00" * 31},
        {**said, "key": "\n"},
    ]
    stripped = world.key(K0, K1, first)
    worthless = [
        world.key(K0, K1, first, said={**said, "next": "11" * 32}),
        *(world.key(K0, K1, first, said=other) for other in respelled),
    ]
    order = [stripped, renewal] if copied_first else [renewal, stripped]
    bring = world.announce if way == "announced" else world.hand_over
    for block in (first, *order, *worthless, *order, *worthless):
        bring(block)
    assert world.holds(first, renewal)
    # Of who has both at last, the first of two that say the same is there as well.
    assert world.holds(stripped) == copied_first
    assert not any(world.holds(block) for block in worthless)


def test_who_looks_at_a_chain_is_in_nobodys_way_who_adds_to_it(world: World) -> None:
    """A hand-over holds the chain when it asks the judge: so must who asks without one."""
    begun(world)
    world.judge = IdentityJudge(world.did, pin_of(K0), verify, approves)
    looking = threading.Thread(target=world.judge.look, args=[world.files], daemon=True)
    with world.files.lock:
        looking.start()
        looking.join(0.05)
        assert looking.is_alive()
        assert world.judge._lock.acquire(timeout=5)
        world.judge._lock.release()
    looking.join(5)
    assert not looking.is_alive()
