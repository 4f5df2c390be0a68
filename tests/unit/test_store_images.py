"""The ledger of images: names, removal, garbage. No worker: layers are staged by hand."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.db import Database
from tare.errors import Conflict, Invalid, NotFound
from tare.oci import digest as digests
from tare.oci import reference as references
from tare.oci.digest import Digest
from tare.oci.image import MANIFEST
from tare.store import gc
from tare.store.arrival import NewImage, NewLayer
from tare.store.content import Content
from tare.store.images import Images
from tare.store.paths import Layout
from tare.store.snapshots import Snapshots

BOX = "ab" * 32


class Store:
    """Everything of one data root, and shorthand to fill it."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.layout.create()
        self.db = Database(str(self.layout.database))
        self.content = Content(self.layout)
        self.snapshots = Snapshots(self.db, self.layout)
        self.images = Images(self.db, self.content, self.snapshots, self.layout)
        self.users: list[tuple[str, bool]] = []

    def add(self, layers: tuple[str, ...], *names: str, comment: str = "", parent: str = "") -> str:
        """An image with one file per layer; its id."""
        diff_ids = [Digest("sha256:" + hashlib.sha256(layer.encode()).hexdigest()) for layer in layers]
        config = self.content.write(
            json.dumps(
                {
                    "architecture": "amd64",
                    "os": "linux",
                    "created": "2024-05-01T10:00:00.5Z",
                    "comment": comment,
                    "config": {"Env": ["A=b"], "Cmd": ["sh"]},
                    "rootfs": {"type": "layers", "diff_ids": diff_ids},
                    "history": [
                        *({"created_by": f"ADD {layer}", "created": "2024-05-01T09:00:00Z"} for layer in layers),
                        {"created_by": "CMD sh", "empty_layer": True, "comment": "last"},
                    ],
                }
            ).encode()
        )
        manifest = self.content.write(f"manifest of {config}".encode())
        new, staged = [], []
        for layer, chain_id in zip(layers, digests.chain_ids(diff_ids), strict=True):
            blob = self.content.write(f"blob of {layer}".encode())
            number = 0
            if not self.snapshots.exists(chain_id):
                staging = self.snapshots.staging()
                (staging.path / layer).write_text(layer)
                staged.append(staging)
                number = staging.number
            new.append(NewLayer(chain_id=chain_id, blob=blob, number=number, size=len(layer), inodes=2))
        self.images.add(
            [
                NewImage(
                    id=config,
                    manifest=manifest,
                    manifest_type=MANIFEST,
                    manifest_size=self.content.size(manifest),
                    layers=new,
                    names=[references.parse(name) for name in names],
                    parent=parent,
                )
            ]
        )
        for staging in staged:
            staging.close()
        return config

    def remove(self, ref: str, *, force: bool = False, noprune: bool = False) -> list[tuple[str, str]]:
        return list(self.images.remove(ref, force=force, noprune=noprune, in_use=lambda image_id: self.users))

    def blobs(self) -> int:
        return len(list(self.content.walk()))

    def folders(self) -> int:
        return len(os.listdir(self.layout.snapshots))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "root")
    yield store
    store.db.close()


def test_every_spelling_finds_the_image(store: Store) -> None:
    image_id = store.add(("one", "two"), "busybox:latest", "busybox@sha256:" + "d" * 64, "reg.io:5000/a/b:1.0")
    digest = image_id.removeprefix("sha256:")
    for ref in (
        "busybox",
        "busybox:latest",
        "docker.io/library/busybox:latest",
        "docker.io/busybox",
        "busybox@sha256:" + "d" * 64,
        "busybox:other@sha256:" + "d" * 64,
        "reg.io:5000/a/b:1.0",
        image_id,
        digest,
        digest[:12],
        digest[:1],
        f"sha256:{digest[:7]}",
    ):
        assert store.images.resolve(ref).id == image_id, ref


@pytest.mark.parametrize(
    ("ref", "shown"),
    [
        ("nope", "nope:latest"),
        ("nope:1", "nope:1"),
        ("docker.io/library/nope", "nope:latest"),
        ("reg.io/nope", "reg.io/nope:latest"),
        ("busybox:other", "busybox:other"),
        ("busybox@sha256:" + "e" * 64, "busybox@sha256:" + "e" * 64),
        ("0" * 64, "sha256:" + "0" * 64),
        ("sha256:" + "0" * 64, "sha256:" + "0" * 64),
    ],
)
def test_missing_image_is_named_as_docker_does(store: Store, ref: str, shown: str) -> None:
    store.add(("one",), "busybox")
    with pytest.raises(NotFound) as caught:
        store.images.resolve(ref)
    assert str(caught.value) == f"No such image: {shown}"


@pytest.mark.parametrize("ref", ["", "Foo", "a b", "a:b:c", "-a", "a@sha256:1"])
def test_malformed_reference_is_invalid(store: Store, ref: str) -> None:
    with pytest.raises(Invalid):
        store.images.resolve(ref)


def test_ambiguous_prefix_finds_nothing_and_a_tag_wins(store: Store) -> None:
    ids = [store.add((f"layer{number}",)) for number in range(17)]
    letters = [image_id[7] for image_id in ids]
    twice = next(letter for letter in letters if letters.count(letter) > 1)
    with pytest.raises(NotFound):
        store.images.resolve(twice)
    store.images.tag(ids[0], ids[1][7:15])
    assert store.images.resolve(ids[1][7:15]).id == ids[0]


def test_an_image_tells_all(store: Store) -> None:
    image_id = store.add(("one", "three"), "b:2", "a", "a@sha256:" + "d" * 64)
    image = store.images.get(image_id)
    assert image.tags == ("a:latest", "b:2")
    assert image.repo_digests == ("a@sha256:" + "d" * 64,)
    assert image.size == len("onethree")
    assert image.created == 1714557600_500000000
    assert image.stored > image.created and image.tagged == 0
    assert image.config.config is not None and image.config.config.cmd == ("sh",)
    assert image.chain_ids == tuple(digests.chain_ids(image.config.diff_ids)) and image.top == image.chain_ids[1]
    store.snapshots.prepare(BOX, image.top)
    assert [os.listdir(path)[0] for path in store.snapshots.rootfs(BOX)["lower"]] == ["three", "one"]
    store.images.tag("a", "c")
    assert store.images.get(image_id).tagged > image.stored


def test_list_survives_a_damaged_config(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = store.add(("one",), "good"), store.add(("two",), "bad")
    store.layout.blob(bad).write_bytes(b"{}")
    assert [image.id for image in store.images.list()] == [good]
    assert bad in caplog.text
    with pytest.raises(OSError):
        store.images.resolve("bad")
    assert store.remove("bad")[-1][0] == "Deleted"


def test_tag_moves_and_leaves_the_old_image_dangling(store: Store) -> None:
    one, two = store.add(("one",), "a"), store.add(("two",), "b")
    assert store.images.tag("b", "a", "") == "a:latest"
    assert store.images.tag(two[:20], "reg.io/x", "v1") == "reg.io/x:v1"
    assert store.images.tag("b", "y:v2") == "y:v2"
    assert store.images.get(one).tags == ()
    assert store.images.get(two).tags == ("a:latest", "b:latest", "y:v2", "reg.io/x:v1")


@pytest.mark.parametrize(
    ("repo", "tag", "text"),
    [
        ("", "", "invalid reference format"),
        ("a b", "", "invalid reference format"),
        ("a@sha256:" + "d" * 64, "", "refusing to create a tag with a digest reference"),
        ("sha256", "x", "refusing to create an ambiguous tag using digest algorithm as name"),
        ("sha256:sometag", "", "refusing to create an ambiguous tag using digest algorithm as name"),
        ("a", "-x", "invalid tag format"),
    ],
)
def test_bad_tags(store: Store, repo: str, tag: str, text: str) -> None:
    store.add(("one",), "b")
    with pytest.raises(Invalid) as caught:
        store.images.tag("b", repo, tag)
    assert str(caught.value) == text


def test_index_lists_every_name(store: Store) -> None:
    image_id = store.add(("one",), "a:1")
    store.images.tag("a:1", "b")
    dangling = store.add(("two",))
    index = json.loads(store.layout.index.read_text())
    names = [entry.get("annotations", {}).get("io.containerd.image.name") for entry in index["manifests"]]
    assert names == [None, "docker.io/library/a:1", "docker.io/library/b:latest"]
    assert {entry["digest"] for entry in index["manifests"]} == {
        store.images.get(image_id).manifest,
        store.images.get(dangling).manifest,
    }


def test_last_name_takes_the_image_along(store: Store) -> None:
    image_id = store.add(("one", "two"), "a", "a@sha256:" + "d" * 64)
    chains = store.images.get(image_id).chain_ids
    assert store.remove("a") == [
        ("Untagged", "a:latest"),
        ("Untagged", "a@sha256:" + "d" * 64),
        ("Deleted", image_id),
        ("Deleted", chains[1]),
        ("Deleted", chains[0]),
    ]
    assert store.blobs() == 0 and store.folders() == 0
    assert json.loads(store.layout.index.read_text())["manifests"] == []
    with pytest.raises(NotFound):
        store.images.get(image_id)


def test_shared_layers_and_blobs_stay(store: Store) -> None:
    base = store.add(("one",), "base")
    store.add(("one", "two"), "child")
    removed = store.remove("child")
    assert [kind for kind, _ in removed] == ["Untagged", "Deleted", "Deleted"]
    assert store.snapshots.exists(store.images.get(base).top)
    assert store.blobs() == 3 and store.folders() == 1
    child = store.add(("one", "two"), "child")
    assert [kind for kind, _ in store.remove("base")] == ["Untagged", "Deleted"]
    assert store.images.get(child).size == 6 and store.folders() == 2


def test_one_name_of_several_only_untags(store: Store) -> None:
    image_id = store.add(("one",), "a", "b")
    store.users = [(BOX, True)]
    assert store.remove("a") == [("Untagged", "a:latest")]
    assert store.images.get(image_id).tags == ("b:latest",)


def conflict(store: Store, ref: str, *, force: bool = False) -> str:
    before = store.images.list()
    with pytest.raises(Conflict) as caught:
        store.remove(ref, force=force)
    assert store.images.list() == before
    return str(caught.value)


def test_conflicts_by_name(store: Store) -> None:
    image_id = store.add(("one",), "busybox")
    short = image_id[7:19]
    store.users = [(BOX, False)]
    assert conflict(store, "busybox") == (
        'conflict: unable to remove repository reference "busybox" (must force) - '
        f"container {BOX[:12]} is using its referenced image {short}"
    )
    # With force the name goes; the running container keeps the image, quietly.
    store.users = [(BOX, True)]
    assert store.remove("busybox", force=True) == [("Untagged", "busybox:latest")]
    assert store.images.get(image_id).tags == ()


def test_conflicts_by_id(store: Store) -> None:
    image_id = store.add(("one",), "a", "b")
    short = image_id[7:19]
    assert conflict(store, short) == (
        f"conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
    )
    store.remove("b")
    store.users = [(BOX, False)]
    assert conflict(store, image_id) == (
        f"conflict: unable to delete {short} (must be forced) - image is being used by stopped container {BOX[:12]}"
    )
    store.users = [(BOX, True)]
    for force in (False, True):
        assert conflict(store, image_id, force=force) == (
            f"conflict: unable to delete {short} (cannot be forced) - "
            f"image is being used by running container {BOX[:12]}"
        )


def test_force_by_id_removes_every_name(store: Store) -> None:
    image_id = store.add(("one",), "a", "b")
    assert [line[0] for line in store.remove(image_id, force=True)] == ["Untagged", "Untagged", "Deleted", "Deleted"]


def test_stopped_containers_snapshot_keeps_the_layers(store: Store) -> None:
    image_id = store.add(("one",), "a")
    store.snapshots.prepare(BOX, store.images.get(image_id).top)
    store.users = [(BOX, False)]
    assert store.remove("a", force=True) == [("Untagged", "a:latest"), ("Deleted", image_id)]
    assert store.folders() == 2
    store.snapshots.remove(BOX)
    gc.sweep(store.db, store.content, store.snapshots, store.layout)
    assert store.folders() == 0


def test_parents_go_unless_noprune(store: Store) -> None:
    parent = store.add(("one",))
    child = store.add(("one", "two"), "child", parent=parent)
    assert conflict(store, parent) == (
        f"conflict: unable to delete {parent[7:19]} (cannot be forced) - image has dependent child images"
    )
    assert [step.id for step in store.images.history("child")] == [child, parent, "<missing>"]
    assert ("Deleted", parent) in store.remove("child")
    parent = store.add(("one",))
    store.add(("one", "two"), "child", parent=parent)
    assert ("Deleted", parent) not in store.remove("child", noprune=True)


def test_history_is_newest_first(store: Store) -> None:
    image_id = store.add(("one", "three"), "a")
    steps = store.images.history("a")
    assert [step.created_by for step in steps] == ["CMD sh", "ADD three", "ADD one"]
    assert [step.size for step in steps] == [0, 5, 3]
    assert [step.id for step in steps] == [image_id, "<missing>", "<missing>"]
    assert [step.tags for step in steps] == [("a:latest",), (), ()]
    assert steps[0].comment == "last" and steps[1].created == 1714554000_000000000


def test_half_an_image_is_no_image(store: Store) -> None:
    lost = NewImage(
        id="sha256:" + "1" * 64,
        manifest="sha256:" + "2" * 64,
        manifest_type=MANIFEST,
        manifest_size=1,
        layers=[NewLayer(chain_id="sha256:" + "3" * 64, blob="sha256:" + "4" * 64)],
        names=[references.parse("lost")],
    )
    with store.snapshots.staging() as staging:
        good = NewImage(
            id="sha256:" + "5" * 64,
            manifest="sha256:" + "6" * 64,
            manifest_type=MANIFEST,
            manifest_size=1,
            layers=[NewLayer(chain_id="sha256:" + "7" * 64, blob="sha256:" + "8" * 64, number=staging.number)],
            names=[references.parse("good")],
        )
        with pytest.raises(NotFound):
            store.images.add([good, lost])
    assert store.db.execute("SELECT count(*) FROM images")[0][0] == 0
    assert store.db.execute("SELECT count(*) FROM snapshots")[0][0] == 0
    assert store.folders() == 0


def test_leased_parts_outlive_a_removal(store: Store) -> None:
    image_id = store.add(("one",), "a")
    chain_id = store.images.get(image_id).top
    with store.content.leases.take(image_id), store.snapshots.leases.take(chain_id):
        assert store.remove("a") == [("Untagged", "a:latest"), ("Deleted", image_id)]
        gc.sweep(store.db, store.content, store.snapshots, store.layout)
        assert store.snapshots.exists(chain_id) and store.content.has(image_id)
    gc.sweep(store.db, store.content, store.snapshots, store.layout)
    assert not store.snapshots.exists(chain_id) and not store.content.has(image_id)


def test_start_reclaims_what_a_killed_action_left(store: Store) -> None:
    kept = store.add(("one",), "a")
    store.snapshots.prepare(BOX, store.images.get(kept).top)
    store.db.execute("INSERT INTO containers VALUES (?, 'box', '{}', 1)", (BOX,))
    store.snapshots.prepare("cd" * 32, store.images.get(kept).top)
    folders, blobs = store.folders(), store.blobs()
    orphan = store.content.write(b"x" * 1000)
    (store.layout.ingest / "job-1").mkdir()
    (store.layout.ingest / "job-1" / "blob").write_bytes(b"x" * 10_000)
    (store.layout.ingest / "blob-2").write_bytes(b"x")
    (store.layout.fs(77)).mkdir(parents=True)
    (store.layout.trash / "old").mkdir()
    staging = store.snapshots.staging()

    async def collect() -> int:
        return await gc.collect(store.db, store.content, store.snapshots, store.layout, starting=True)

    assert asyncio.run(collect()) >= 11_000
    assert not store.content.has(orphan) and store.blobs() == blobs
    assert os.listdir(store.layout.ingest) == [] and os.listdir(store.layout.trash) == []
    assert store.folders() == folders  # without the orphaned container's, with the leased staging
    assert staging.path.is_dir() and store.snapshots.exists(BOX) and not store.snapshots.exists("cd" * 32)
    assert store.images.resolve("a").id == kept


def test_damaged_ledger_costs_no_data(tmp_path: Path) -> None:
    store = Store(tmp_path / "root")
    kept = store.add(("one",), "a")
    store.db.close()
    Database(str(store.layout.database)).close()  # a generation that knows "a"
    store = Store(tmp_path / "root")
    store.add(("two",), "b")
    store.snapshots.prepare(BOX)
    (Path(str(store.snapshots.rootfs(BOX)["upper"])) / "precious").write_text("x")
    store.db.close()
    store.layout.database.write_bytes(b"torn")
    again = Store(tmp_path / "root")
    assert again.db.restored
    gc.sweep(again.db, again.content, again.snapshots, again.layout, starting=True)
    assert again.images.resolve("a").id == kept and again.folders() == 1 and again.blobs() == 3
    assert len(list(again.layout.lost.rglob("precious"))) == 1
    assert len(os.listdir(again.layout.lost)) == 2 + 3  # layer and upper; manifest, config, layer blob
    again.db.close()
    last = Store(tmp_path / "root")
    assert not last.db.restored
    gc.sweep(last.db, last.content, last.snapshots, last.layout, starting=True)
    assert len(os.listdir(last.layout.lost)) == 5
    last.db.close()


def test_meant_for_a_save(store: Store) -> None:
    one, two = store.add(("one",), "a:1", "a:2"), store.add(("two",), "a:3", "b")
    assert store.images.meant("a") == [
        (one, "docker.io/library/a:1"),
        (one, "docker.io/library/a:2"),
        (two, "docker.io/library/a:3"),
    ]
    assert store.images.meant("a:3") == [(two, "docker.io/library/a:3")]
    assert store.images.meant(one) == store.images.meant(one[7:20]) == [(one, "")]
    with pytest.raises(NotFound):
        store.images.meant("c")
