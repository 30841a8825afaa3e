"""did show: the W3C DID document of a channel's identity."""

from __future__ import annotations

from walyoff.cli.choosing import choose
from walyoff.cli.console import Console
from walyoff.cli.output import escape_line, short
from walyoff.node import Device

_RELATIONS = ("authentication", "assertionMethod", "keyAgreement", "capabilityInvocation")


async def show(console: Console, device: Device, *, name: str | None) -> None:
    """Show the document: the keys and what each is for."""
    channel = choose(device, name)
    document = await channel.did_document()
    lines = [f"{escape_line(channel.name)} is {document['id']}"]
    lines += [f"controller  {did}" for did in document["controller"]]
    for method in document["verificationMethod"]:
        uses = [r for r in _RELATIONS if method["id"] in document.get(r, ())]
        whose = (
            "identity" if method["controller"] == channel.did else short(method["controller"])
        )
        fragment = method["id"].partition("#")[2]
        lines.append(f"key  {fragment:<28}  {whose:<9} {', '.join(uses)}")
    lines.append("the document itself: --json")
    console.result(document, "\n".join(lines))
