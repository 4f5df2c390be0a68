"""/images: list, inspect, history, load, save, import, tag, remove, prune.

Runs in the daemon. Deliberately absent: pull, push and search, which come with registries.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
from msgspec import field

from tare.errors import EngineError, Invalid, Unsupported
from tare.http.message import Answer, Request, Response, Stream, json_response
from tare.oci import reference
from tare.oci.image import ContainerConfig
from tare.store.images import Image

from . import filters, times
from .backend import Engine
from .container_wire import Config, Health
from .containers import RUNNING, prune_until
from .errors import log, sentence
from .filters import Filters
from .inspect_wire import GraphDriver
from .wire import UNSET, Maybe, Wire, maybe

__all__ = ["Images", "Summary", "image_config"]

LIST_FILTERS = ("before", "dangling", "label", "reference", "since", "until")


class Summary(Wire, kw_only=True):
    """api/types/image/summary.go of API 1.47."""

    containers: int = -1
    created: int
    id: str
    labels: dict[str, str] | None
    parent_id: str
    repo_digests: list[str]
    repo_tags: list[str]
    shared_size: int = -1
    size: int
    virtual_size: Maybe[int] = UNSET


class RootFs(Wire):
    type: str
    layers: Maybe[list[str]] = UNSET


class Inspect(Wire, kw_only=True):
    """ImageInspect in api/types/types.go of API 1.47."""

    id: str
    repo_tags: list[str]
    repo_digests: list[str]
    parent: str
    comment: str
    created: Maybe[str] = UNSET
    docker_version: str = ""
    author: str
    config: Config
    architecture: str
    variant: Maybe[str] = UNSET
    os: str
    os_version: Maybe[str] = UNSET
    size: int
    virtual_size: Maybe[int] = UNSET
    graph_driver: GraphDriver
    root_fs: RootFs = field(name="RootFS")
    metadata: dict[str, str]


class Images:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def listing(self, request: Request) -> Response:
        query = request.query
        wanted = filters.parse(query.get("filters"), LIST_FILTERS)
        if request.version < (1, 41) and query.get("filter"):
            wanted.values["reference"] = (*wanted.get("reference"), query.get("filter"))
        chosen = list(self._select(wanted))
        shared = self.shared_sizes() if query.flag("shared-size") and request.version >= (1, 42) else {}
        return json_response([self.summary(image, names, request.version, shared) for image, names in chosen])

    def summary(
        self, image: Image, tags: Iterable[str], version: tuple[int, int], shared: dict[str, int], containers: int = -1
    ) -> Summary:
        tags, repo_digests = list(tags), list(image.repo_digests)
        if version < (1, 43) and not tags and not repo_digests:
            tags, repo_digests = ["<none>:<none>"], ["<none>@<none>"]
        return Summary(
            containers=containers,
            created=image.created // 10**9,
            id=image.id,
            labels=image.config.config.labels if image.config.config else None,
            parent_id=image.parent,
            repo_digests=repo_digests,
            repo_tags=tags,
            shared_size=shared.get(image.id, -1),
            size=image.size,
            virtual_size=image.size if version < (1, 44) else UNSET,
        )

    def shared_sizes(self) -> dict[str, int]:
        """Image id -> bytes of its layers that another image has, too."""
        images = self.engine.images.list()
        uses = Counter(chain for image in images for chain in image.chain_ids)
        return {
            image.id: sum(self._layer_size(chain) for chain in image.chain_ids if uses[chain] > 1) for image in images
        }

    def layers_size(self) -> int:
        """Bytes of all layers, each counted once."""
        chains = {chain for image in self.engine.images.list() for chain in image.chain_ids}
        return sum(self._layer_size(chain) for chain in chains)

    def _layer_size(self, chain_id: str) -> int:
        return self.engine.images.snapshots.layer_usage(chain_id)[0]

    def _select(self, wanted: Filters) -> Iterable[tuple[Image, list[str]]]:
        """Images with those of their names that a reference filter leaves. Raises Invalid, NotFound."""
        images, now = self.engine.images, time.time_ns()
        ends = [images.resolve(ref).created for ref in wanted.get("before")]
        ends += [times.until(text, now) for text in wanted.get("until")]
        starts = [images.resolve(ref).created for ref in wanted.get("since")]
        dangling_only = wanted.flag("dangling", default=False)
        patterns = [glob(pattern) for pattern in wanted.get("reference")]
        for image in images.list():
            labels = (image.config.config.labels if image.config.config else None) or {}
            if any(image.created >= end for end in ends) or any(image.created <= start for start in starts):
                continue
            if not wanted.labels(labels):
                continue
            tags = [tag for tag in image.tags if not patterns or named(tag, patterns)]
            if not tags and (patterns or ("dangling" in wanted and not dangling_only)):
                continue
            if dangling_only and tags:
                continue
            yield image, tags

    async def inspect(self, request: Request) -> Response:
        image = self.engine.images.resolve(request.params["name"])
        config = image.config
        comment = config.comment or (config.history[-1].comment if config.history else "")
        created = times.rfc3339(image.created)
        old = request.version < (1, 44)
        answer = Inspect(
            id=image.id,
            repo_tags=list(image.tags),
            repo_digests=list(image.repo_digests),
            parent=image.parent,
            comment=comment,
            created=created if image.created or old else UNSET,
            author=config.author,
            config=image_config(config.config or ContainerConfig()),
            architecture=config.architecture,
            variant=maybe(config.variant),
            os=config.os or "linux",
            os_version=maybe(config.os_version),
            size=image.size,
            virtual_size=image.size if old else UNSET,
            graph_driver=GraphDriver(),
            root_fs=RootFs(type=config.rootfs.type, layers=maybe([str(digest) for digest in config.diff_ids])),
            metadata={"LastTagTime": times.rfc3339(image.tagged)},
        )
        return json_response(answer)

    async def history(self, request: Request) -> Response:
        steps = self.engine.images.history(request.params["name"])
        return json_response(
            [
                {
                    "Comment": step.comment,
                    "Created": step.created // 10**9,
                    "CreatedBy": step.created_by,
                    "Id": step.id,
                    "Size": step.size,
                    "Tags": list(step.tags) or None,
                }
                for step in steps
            ]
        )

    async def load(self, request: Request) -> Answer:
        """Progress; whatever goes wrong comes in the stream, as in Docker."""
        quiet = request.query.flag("quiet", default=True)

        def loaded(image_id: str) -> None:
            self._emit("load", image_id, image_id)

        messages = self.engine.images.load(request.stream(), quiet, loaded)
        return Stream(progress(messages), content_type="application/json")

    async def create(self, request: Request) -> Answer:
        """Import of a root file system from the body; pull is not offered."""
        query = request.query
        if query.get("fromImage"):
            reference.parse(query.get("fromImage").removesuffix(":"))
            raise Unsupported("this engine cannot pull yet: load or import an image")
        if query.get("fromSrc") != "-":
            raise Unsupported("this engine cannot fetch an archive yet: send it as the body with fromSrc=-")
        image_id = await self.engine.images.import_(
            request.stream(),
            query.get("repo"),
            query.get("tag"),
            query.get("message") or "Imported from -",
            query.all("changes"),
        )
        self._emit("import", image_id, image_id)
        return Response(body=msgspec.json.encode({"status": image_id}) + b"\r\n", content_type="application/json")

    async def get(self, request: Request) -> Answer:
        """One image by its path, or several by `names`, as a tar."""
        name = request.params.get("name")
        names = [name] if name else request.query.all("names")
        if not names:
            raise Invalid("no image was named")
        ids = [self.engine.images.find(name) for name in names]

        async def archive() -> AsyncIterator[bytes]:
            async for piece in self.engine.images.save(names):
                yield piece
            for image_id in ids:
                self._emit("save", image_id, image_id)

        return Stream(archive(), flush_headers=False, content_type="application/x-tar")

    async def tag(self, request: Request) -> Response:
        name = request.params["name"]
        if not request.query.get("repo"):
            raise Invalid("invalid reference format")
        image_id = self.engine.images.find(name)
        tagged = self.engine.images.tag(name, request.query.get("repo"), request.query.get("tag"))
        self._emit("tag", image_id, tagged)
        return Response(status=201)

    async def remove(self, request: Request) -> Response:
        name, query = request.params["name"], request.query
        if not name.strip():
            raise Invalid("image name cannot be blank")
        return json_response(self._remove(name, force=query.flag("force"), noprune=query.flag("noprune")))

    def _remove(self, name: str, *, force: bool, noprune: bool) -> list[dict[str, str]]:
        image_id = self.engine.images.find(name)
        removed = self.engine.images.remove(name, force=force, noprune=noprune, in_use=self._users)
        for kind, what in removed:
            if kind == "Untagged":
                self._emit("untag", image_id, image_id)
            elif what == image_id:
                self._emit("delete", image_id, image_id)
        return [{kind: what} for kind, what in removed]

    def _users(self, image_id: str) -> list[tuple[str, bool]]:
        """Containers of an image: id, and whether it runs."""
        return [(c.id, c.state in RUNNING) for c in self.engine.containers.all() if c.image_id == image_id]

    async def prune(self, request: Request) -> Response:
        """Images without a tag, or with dangling=false all without a container. What is in use stays."""
        wanted = filters.parse(request.query.get("filters"), ("dangling", "label", "label!", "until"))
        dangling_only = wanted.flag("dangling", default=True)
        limit_ns = prune_until(wanted)
        deleted: list[dict[str, str]] = []
        sizes: dict[str, int] = {}
        for image in self.engine.images.list():
            labels = (image.config.config.labels if image.config.config else None) or {}
            old = limit_ns is None or image.created <= limit_ns
            if not old or not wanted.labels(labels) or not wanted.without_labels(labels):
                continue
            if (dangling_only and image.tags) or self._users(image.id):
                continue
            sizes.update((chain, self._layer_size(chain)) for chain in image.chain_ids)
            for name in (*image.tags, *image.repo_digests) or (image.id,):
                try:
                    deleted += self._remove(name, force=False, noprune=False)
                except EngineError:
                    continue
        reclaimed = sum(sizes.get(entry.get("Deleted", ""), 0) for entry in deleted)
        self.engine.events.emit("image", "prune", "", {"reclaimed": str(reclaimed)})
        return json_response({"ImagesDeleted": deleted or None, "SpaceReclaimed": reclaimed})

    def _emit(self, action: str, image_id: str, name: str) -> None:
        self.engine.events.emit("image", action, image_id, {"name": name})


def image_config(config: ContainerConfig) -> Config:
    """An image's defaults in the shape of a container's Config."""
    health = config.healthcheck
    return Config(
        hostname=config.hostname,
        domainname=config.domainname,
        user=config.user,
        exposed_ports=maybe(config.exposed_ports) if config.exposed_ports else UNSET,
        env=listed(config.env),
        cmd=listed(config.cmd),
        healthcheck=UNSET
        if health is None
        else Health(
            test=maybe(list(health.test or ())),
            interval=maybe(health.interval),
            timeout=maybe(health.timeout),
            start_period=maybe(health.start_period),
            start_interval=maybe(health.start_interval),
            retries=maybe(health.retries),
        ),
        args_escaped=maybe(config.args_escaped),
        volumes=config.volumes,
        working_dir=config.working_dir,
        entrypoint=listed(config.entrypoint),
        on_build=listed(config.on_build),
        labels={**config.labels} if config.labels is not None else None,
        stop_signal=maybe(config.stop_signal),
        stop_timeout=UNSET if config.stop_timeout is None else config.stop_timeout,
        shell=maybe(list(config.shell or ())),
    )


def listed(words: tuple[str, ...] | None) -> list[str] | None:
    return None if words is None else list(words)


def glob(pattern: str) -> re.Pattern[str]:
    """A shell pattern as Go's path.Match reads it: "*" and "?" stop at "/". Invalid for one that is none."""
    if len(pattern) > 1024 or pattern.count("*") > 8:
        raise Invalid(f"invalid filter 'reference={pattern[:64]}'")
    parts = []
    for token in re.findall(r"\*+|\?|\[\^?(?:\\.|[^\]\\])+\]|\\.|[^\\]", pattern, re.DOTALL):
        if token.startswith("*"):
            parts.append("[^/]*")
        elif token == "?":
            parts.append("[^/]")
        elif len(token) > 2 and token[0] == "[":
            parts.append(token.replace("[", "\\[")[1:])
        else:
            parts.append(re.escape(token[-1]))
    try:
        return re.compile("".join(parts))
    except re.error:
        raise Invalid(f"invalid filter 'reference={pattern}'") from None


def named(tag: str, patterns: Iterable[re.Pattern[str]]) -> bool:
    """Whether a pattern fits the familiar reference, with or without its tag."""
    bare = reference.parse(tag).familiar_name()
    return any(pattern.fullmatch(tag) or pattern.fullmatch(bare) for pattern in patterns)


async def progress(messages: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """Messages as Docker's progress stream; an error is the last message, in both spellings clients read."""
    try:
        async for message in messages:
            yield msgspec.json.encode(message) + b"\r\n"
    except (EngineError, OSError) as error:
        log.warning("load failed: %s", sentence(error))
        yield msgspec.json.encode({"errorDetail": {"message": sentence(error)}, "error": sentence(error)}) + b"\r\n"
