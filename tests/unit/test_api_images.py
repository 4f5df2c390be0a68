"""/images, /networks, /volumes, /events, /info and the rest of the system against an engine of cardboard."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from api_house import CHAIN, IMAGE_ID, ask, call, container, house, image, running, value

from tare import errors
from tare.http.message import Stream

OTHER_ID = "sha256:" + "3" * 64


def test_list() -> None:
    engine = house()
    assert value(call(engine, "GET", "/images/json")) == [
        {
            "Containers": -1,
            "Created": 1_704_164_645,
            "Id": IMAGE_ID,
            "Labels": {"a": "b"},
            "ParentId": "",
            "RepoDigests": [],
            "RepoTags": ["alpine:latest"],
            "SharedSize": -1,
            "Size": 1000,
        }
    ]
    assert value(call(engine, "GET", "/v1.43/images/json"))[0]["VirtualSize"] == 1000


def test_list_filters() -> None:
    engine = house(images=(image(), image(id=OTHER_ID, tags=(), created=1)))
    for wanted, expected in [
        ({"dangling": ["true"]}, [OTHER_ID]),
        ({"dangling": ["false"]}, [IMAGE_ID]),
        ({"label": ["a=b"]}, [IMAGE_ID, OTHER_ID]),
        ({"label": ["x"]}, []),
        ({"reference": ["alp*"]}, [IMAGE_ID]),
        ({"reference": ["alpine:la?est"]}, [IMAGE_ID]),
        ({"reference": ["[a-c]lpine"]}, [IMAGE_ID]),
        ({"reference": ["*/alpine"]}, []),
        ({"before": ["alpine"]}, [OTHER_ID]),
        ({"since": [OTHER_ID]}, [IMAGE_ID]),
        ({"until": ["2020-01-01T00:00:00Z"]}, [OTHER_ID]),
    ]:
        answer = call(engine, "GET", f"/images/json?filters={json.dumps(wanted)}")
        assert [entry["Id"] for entry in value(answer)] == expected, wanted
    old = value(call(engine, "GET", "/v1.42/images/json"))[1]
    assert (old["RepoTags"], old["RepoDigests"]) == (["<none>:<none>"], ["<none>@<none>"])
    shared = value(call(engine, "GET", "/images/json?shared-size=1"))
    assert [entry["SharedSize"] for entry in shared] == [300, 300]


def test_inspect() -> None:
    shown = value(call(house(), "GET", "/images/alpine/json"))
    assert shown["Id"] == IMAGE_ID
    assert shown["Created"] == "2024-01-02T03:04:05.5Z"
    assert (shown["Comment"], shown["Os"], shown["Architecture"]) == ("hello", "linux", "amd64")
    assert shown["Config"]["Env"] == ["PATH=/bin"] and shown["Config"]["Entrypoint"] is None
    assert shown["RootFS"] == {"Type": "layers", "Layers": ["sha256:" + "d" * 64]}
    assert shown["Metadata"] == {"LastTagTime": "0001-01-01T00:00:00Z"}
    assert "VirtualSize" not in shown
    assert value(call(house(), "GET", "/v1.43/images/alpine/json"))["VirtualSize"] == 1000


def test_names_with_slashes_and_colons() -> None:
    engine = house(images=(image(tags=("host:5000/a/b:1",)),))
    assert value(call(engine, "GET", "/images/host:5000/a/b:1/json"))["Id"] == IMAGE_ID
    answer = call(engine, "GET", "/images/nope/json")
    assert (answer.status, value(answer)["message"]) == (404, "No such image: nope:latest")


def test_history() -> None:
    assert value(call(house(), "GET", "/images/alpine/history")) == [
        {"Comment": "", "Created": 1, "CreatedBy": "ADD x", "Id": IMAGE_ID, "Size": 5, "Tags": ["alpine:latest"]}
    ]


def test_load_streams_progress_and_errors() -> None:
    engine = house()
    engine.images.messages = [{"stream": "Loaded image: x:latest\n"}]
    answer = call(engine, "POST", "/images/load?quiet=0", b"tar", {"content-type": "application/x-tar"})
    assert engine.images.received == b"tar"
    assert (answer.status, answer.body) == (200, b'{"stream":"Loaded image: x:latest\\n"}\r\n')
    engine.images.loads = [IMAGE_ID, "sha256:" + "2" * 64]
    heard = engine.events.subscribe()
    call(engine, "POST", "/images/load", b"tar")
    asyncio.run(heard.aclose())
    assert [(event.action, event.actor) for event in heard._queue] == [("load", name) for name in engine.images.loads]
    engine.images.failure = errors.Invalid("not a tar")
    lines = call(engine, "POST", "/images/load", b"tar").body.splitlines()
    assert json.loads(lines[1]) == {"errorDetail": {"message": "not a tar"}, "error": "not a tar"}


def test_import_and_pull() -> None:
    engine = house()
    answer = call(
        engine,
        "POST",
        "/images/create?fromSrc=-&repo=a&tag=b&changes=CMD+x&changes=ENV+y",
        b"tar",
        {"content-type": "x"},
    )
    assert (answer.status, value(answer)) == (200, {"status": IMAGE_ID})
    assert engine.images.imports == [("a", "b", "Imported from -", ["CMD x", "ENV y"])]
    answer = call(engine, "POST", "/images/create?fromImage=busybox&tag=latest")
    assert (answer.status, value(answer)["message"]) == (
        501,
        "this engine cannot pull yet: load or import an image",
    )
    assert call(engine, "POST", "/images/create?fromImage=UPPER").status == 400
    assert call(engine, "POST", "/images/create?fromSrc=http://x").status == 501


def test_save() -> None:
    engine = house(images=(image(), image(id=OTHER_ID, tags=("b:1",))))
    answer = call(engine, "GET", "/images/get?names=alpine&names=b:1")
    assert (answer.content_type, answer.body) == ("application/x-tar", b"tar of alpine,b:1")
    assert call(engine, "GET", "/images/alpine/get").body == b"tar of alpine"
    assert call(engine, "GET", "/images/get?names=nope").status == 404
    assert call(engine, "GET", "/images/get").status == 400


def test_tag_and_events() -> None:
    engine = house()
    assert call(engine, "POST", "/images/alpine/tag?repo=mine&tag=1").status == 201
    assert call(engine, "POST", "/images/alpine/tag").status == 400
    assert call(engine, "POST", "/images/nope/tag?repo=x").status == 404
    assert recorded(engine) == [("image", "tag", IMAGE_ID, {"name": "mine:1"})]


def test_remove() -> None:
    engine = house(container())
    answer = call(engine, "DELETE", "/images/alpine")
    assert answer.status == 409
    assert value(call(engine, "DELETE", "/images/alpine?force=1")) == [
        {"Untagged": "alpine:latest"},
        {"Deleted": IMAGE_ID},
        {"Deleted": CHAIN},
    ]
    assert [event[1] for event in recorded(engine)] == ["untag", "delete"]


def test_prune() -> None:
    engine = house(container(), images=(image(), image(id=OTHER_ID, tags=())))
    assert value(call(engine, "POST", "/images/prune")) == {
        "ImagesDeleted": [{"Deleted": OTHER_ID}, {"Deleted": CHAIN}],
        "SpaceReclaimed": 300,
    }
    answer = call(engine, "POST", '/images/prune?filters={"dangling":["false"]}')
    assert value(answer) == {"ImagesDeleted": None, "SpaceReclaimed": 0}
    engine.containers.values.clear()
    answer = call(engine, "POST", '/images/prune?filters={"dangling":["false"]}')
    assert value(answer)["ImagesDeleted"][0] == {"Untagged": "alpine:latest"}


def recorded(engine: Any) -> list[tuple[str, str, str, dict[str, str]]]:
    async def run() -> list[tuple[str, str, str, dict[str, str]]]:
        subscription = engine.events.subscribe(1, 1 << 62, {})
        subscription.closed = True
        return [(e.kind, e.action, e.actor, e.attributes) async for e in subscription]

    return asyncio.run(run())


def test_events_stream() -> None:
    async def run() -> None:
        engine = house()
        answer = await ask(engine, "GET", '/events?filters={"type":["container"]}')
        assert isinstance(answer, Stream) and answer.flush_headers
        engine.events.emit("image", "tag", "sha256:x", {"name": "a"})
        engine.events.emit("container", "start", "c1", {"image": "alpine", "name": "box"})
        event = json.loads(await anext(answer.source))  # type: ignore[arg-type]
        assert event.pop("timeNano") // 10**9 == event.pop("time")
        assert event == {
            "status": "start",
            "id": "c1",
            "from": "alpine",
            "Type": "container",
            "Action": "start",
            "Actor": {"ID": "c1", "Attributes": {"image": "alpine", "name": "box"}},
            "scope": "local",
        }
        await answer.source.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())


def test_events_of_the_past_end() -> None:
    engine = house()
    engine.events.emit("container", "die", "c1")
    answer = call(engine, "GET", "/events?since=1&until=2")
    assert answer.body == b""
    answer = call(engine, "GET", "/events?since=5&until=4")
    assert answer.status == 400
    assert value(answer)["message"] == "`since` time (5) cannot be after `until` time (4)"
    assert call(engine, "GET", "/events?since=5m").status == 400


def test_ping() -> None:
    for method, body in (("GET", b"OK"), ("HEAD", b"")):
        answer = call(house(), method, "/_ping")
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers == {
            "Builder-Version": "2",
            "Swarm": "inactive",
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache",
        }


def test_version_and_info() -> None:
    engine = house(running(), container(2))
    version = value(call(engine, "GET", "/version"))
    assert (version["Version"], version["ApiVersion"], version["MinAPIVersion"]) == ("9.9.9", "1.47", "1.24")
    assert version["Components"][0]["Details"]["ApiVersion"] == "1.47"
    info = value(call(engine, "GET", "/info"))
    assert (info["ID"], info["Containers"], info["ContainersRunning"], info["ContainersStopped"]) == (
        "11111111-2222",
        2,
        1,
        1,
    )
    assert (info["NCPU"], info["MemTotal"], info["CgroupVersion"], info["DockerRootDir"]) == (2, 1 << 30, "1", "/data")
    assert info["Swarm"]["LocalNodeState"] == "inactive"
    assert info["MemoryLimit"] and not info["SwapLimit"]
    assert "WARNING: No swap limit support" in info["Warnings"]
    assert info["Runtimes"]["runc"]["path"] == "tare-oci"
    assert "status" not in value(call(engine, "GET", "/v1.43/info"))["Runtimes"]["runc"]


def test_disk_usage() -> None:
    engine = house(running())
    usage = value(call(engine, "GET", "/system/df"))
    assert (usage["LayersSize"], usage["Volumes"], usage["BuildCache"]) == (300, [], [])
    assert usage["Images"][0]["Containers"] == 1
    assert usage["Containers"][0]["SizeRw"] == 7
    only = value(call(engine, "GET", "/system/df?type=container"))
    assert only["Images"] is None and only["Containers"]
    answer = call(engine, "GET", "/system/df?type=odd")
    assert (answer.status, value(answer)["message"]) == (400, "unknown object type: odd")


def test_networks_and_volumes() -> None:
    engine = house(running())
    networks = value(call(engine, "GET", "/networks"))
    assert [(n["Name"], n["Driver"], n["Scope"]) for n in networks] == [
        ("host", "host", "local"),
        ("none", "null", "local"),
    ]
    assert len(networks[0]["Id"]) == 64
    assert value(call(engine, "GET", f"/networks/{networks[0]['Id'][:12]}"))["Name"] == "host"
    answer = call(engine, "GET", "/networks/nope")
    assert (answer.status, value(answer)["message"]) == (404, "network nope not found")
    assert len(value(call(engine, "GET", '/networks?filters={"name":["non"]}'))) == 1
    assert value(call(engine, "GET", "/volumes")) == {"Volumes": [], "Warnings": None}
    assert value(call(engine, "GET", "/volumes/x"))["message"] == "get x: no such volume"


@pytest.mark.parametrize(
    ("method", "target", "text"),
    [
        ("GET", "/swarm", "This node is not a swarm manager."),
        ("POST", "/swarm/leave", "This node is not part of a swarm"),
        ("GET", "/nodes", "This node is not a swarm manager."),
        ("GET", "/services/x", "This node is not a swarm manager."),
        ("POST", "/secrets/create", "This node is not a swarm manager."),
    ],
)
def test_swarm(method: str, target: str, text: str) -> None:
    answer = call(house(), method, target)
    assert answer.status == 503
    assert value(answer)["message"].startswith(text)


def test_plugins() -> None:
    assert value(call(house(), "GET", "/plugins")) == []
    assert call(house(), "GET", "/plugins/a/b/json").status == 404
