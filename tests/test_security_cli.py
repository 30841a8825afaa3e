"""`walyoff remove`, as a person uses it."""

from __future__ import annotations

from pathlib import Path

from tests.cli_processes import failure, objects, running, walyoff


def test_a_device_is_removed_by_the_end_of_its_did(tmp_path: Path) -> None:
    alice, bob = ("--home", str(tmp_path / "a")), ("--home", str(tmp_path / "b"))
    objects("init", *alice)
    objects("create", "family", *alice)
    with running("invite", "--json", *alice) as inviting:
        invitation = inviting.json()["invitation"]
        (joined,) = objects("join", "-", *bob, stdin=invitation.encode())
        inviting.json()
        inviting.end()
    assert joined["members"] == 2
    assert "ends in" in failure(walyoff("remove", "nobody", *alice))
    # Its end, with the dots that the lists for people show.
    (removed,) = objects("remove", "family", f"…{joined['me'][-6:]}", *alice)
    assert removed["removed"] == joined["me"]
    assert removed["members"] == 1
    (left,) = objects("members", *alice)
    assert left["me"] is True
    assert "ends in" in failure(walyoff("remove", joined["me"], *alice))
