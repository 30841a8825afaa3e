"""Three devices under traffic, while they and their children are killed and stopped."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

from tests.real.processes import Device, FailedError, World

STORM_S = 60.0
#: A device that was stopped for longer than this was noticed by the others.
STILL_S = (0.5, 3.0)
PAUSE = 0.05


def flood(device: Device, number: int) -> None:
    device.call("flood", label=f"{device.name} {number}", pause=PAUSE)


def test_three_devices_converge_after_a_minute_of_kills_and_stops() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    with World() as world:
        a, b = world.pair()
        c = world.start("c")
        c.call("join", invitation=a.call("invite"), limit=40)
        devices = {"a": a, "b": b, "c": c}
        confirmed: list[tuple[str, int, bytes]] = []
        for number, device in enumerate(devices.values()):
            flood(device, number)
        rounds = 0
        until = time.monotonic() + STORM_S
        while time.monotonic() < until:
            rounds += 1
            name = dice.choice("abc")
            device = devices[name]
            match dice.choice(("kill device", "stop device", "kill child", "stop child")):
                case "kill device":
                    device.kill()
                    confirmed += device.sent()
                    devices[name] = world.start(name)
                    flood(devices[name], rounds + 10)
                case "stop device":
                    device.signal(signal.SIGSTOP)
                    time.sleep(dice.uniform(*STILL_S))
                    device.signal(signal.SIGCONT)
                case "kill child":
                    with suppress(ProcessLookupError):
                        os.kill(device.child(), signal.SIGKILL)
                case "stop child":
                    # It may be replaced meanwhile, and is then gone.
                    child = device.child()
                    with suppress(ProcessLookupError):
                        os.kill(child, signal.SIGSTOP)
                    time.sleep(dice.uniform(*STILL_S))
                    with suppress(ProcessLookupError):
                        os.kill(child, signal.SIGCONT)
            time.sleep(dice.uniform(0.2, 1.5))
        for device in devices.values():
            with suppress(FailedError):
                device.call("calm", limit=40)
            confirmed += device.sent()
        assert rounds > 10
        assert len(confirmed) > 300
        for number, device in enumerate(devices.values()):
            device.call("send", content=b"the end %d" % number, limit=40)
        ends = [b"the end %d" % number for number in range(len(devices))]
        logs = {}
        for name, device in devices.items():
            device.call("wait_content", contents=ends, limit=120)
            log = device.call("history", limit=60)
            logs[name] = sorted((entry[1], entry[2], entry[3]) for entry in log)
            assert len(set(logs[name])) == len(logs[name]), "delivered twice"
        contents = {content for _, _, content in confirmed}
        for name, log in logs.items():
            assert contents <= {entry[2] for entry in log}, f"{name} lost what was confirmed"
            assert log == logs["a"]
        for device in devices.values():
            assert device.call("status")["forked"] == []
            device.call("anchored", limit=90)
        print(f"{rounds} faults, {len(confirmed)} messages")
