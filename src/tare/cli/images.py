"""`tare images`, `rmi`, `tag`, `history`."""

from __future__ import annotations

import time

from tare.cli import terminal
from tare.cli.client import ApiError, query
from tare.cli.failure import Failure
from tare.cli.human import ago, date, ellipsis, short_id, size
from tare.cli.listing import FORMAT_HELP, Row, configured, filter_word, filters, show
from tare.cli.options import Command
from tare.cli.reference import familiar, image_path, split, valid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from tare.cli.main import Call

__all__ = ["TITLES", "ImageRow", "deleted", "history", "images", "rmi", "tag"]

IMAGES = Command(
    "[OPTIONS] [REPOSITORY[:TAG]]",
    (
        ("all", "a", "bool", "", "Show all images (default hides intermediate images)"),
        ("digests", "", "bool", "", "Show digests"),
        ("filter", "f", "filter", "", "Filter output based on conditions provided"),
        ("format", "", "string", "", FORMAT_HELP),
        ("no-trunc", "", "bool", "", "Don't truncate output"),
        ("quiet", "q", "bool", "", "Only show image IDs"),
    ),
    most=1,
    aliases="tare image ls, tare image list, tare images",
    checks={"filter": filter_word},
)
RMI = Command(
    "[OPTIONS] IMAGE [IMAGE...]",
    (
        ("force", "f", "bool", "", "Force removal of the image"),
        ("no-prune", "", "bool", "", "Do not delete untagged parents"),
    ),
    least=1,
    aliases="tare image rm, tare image remove, tare rmi",
)
TAG = Command(
    "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
    least=2,
    most=2,
    interspersed=False,
    aliases="tare image tag, tare tag",
)
HISTORY = Command(
    "[OPTIONS] IMAGE",
    (
        ("format", "", "string", "", FORMAT_HELP),
        ("human", "H", "bool", "true", "Print sizes and dates in human readable format"),
        ("no-trunc", "", "bool", "", "Don't truncate output"),
        ("quiet", "q", "bool", "", "Only show image IDs"),
    ),
    least=1,
    most=1,
    aliases="tare image history, tare history",
)
TITLES = {
    "ID": "IMAGE ID",
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "Containers": "CONTAINERS",
    "VirtualSize": "SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
}
DEFAULT = ("Repository", "Tag", "ID", "CreatedSince", "Size")
WITH_DIGEST = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")
RAW = """repository: {{ .Repository }}
tag: {{.Tag}}
%simage_id: {{.ID}}
created_at: {{.CreatedAt}}
virtual_size: {{.Size}}
"""
HISTORY_TITLES = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}
YEAR_2000 = 946684800
NONE = "<none>"
VERBS = frozenset("build history import inspect list load ls prune pull push rm save tag".split())


class ImageRow(Row):
    """One name of an image of GET /images/json."""

    go_type = "*formatter.imageContext"

    def __init__(self, data: Mapping[str, Any], name: str, tag: str, digest: str, *, short: bool = True) -> None:
        super().__init__(data, short=short)
        self.name, self.tag, self.digest = name, tag, digest

    def value_ID(self) -> str:
        identity = str(self.data.get("Id", ""))
        return short_id(identity) if self.short else identity

    def value_Repository(self) -> str:
        return self.name

    def value_Tag(self) -> str:
        return self.tag

    def value_Digest(self) -> str:
        return self.digest

    def value_CreatedSince(self) -> str:
        return ago(self.data.get("Created", 0))

    def value_CreatedAt(self) -> str:
        return date(self.data.get("Created", 0))

    def value_Size(self) -> str:
        return size(self.data.get("Size", 0), 3)

    def value_Containers(self) -> str:
        count = self.data.get("Containers", -1)
        return "N/A" if count == -1 else str(count)

    def value_VirtualSize(self) -> str:
        return size(self.data.get("Size", 0))

    def value_SharedSize(self) -> str:
        shared = self.data.get("SharedSize", -1)
        return "N/A" if shared == -1 else size(shared)

    def value_UniqueSize(self) -> str:
        total, shared = self.data.get("Size", -1), self.data.get("SharedSize", -1)
        return "N/A" if -1 in (total, shared) else size(total - shared)


def _dangling(image: Mapping[str, Any]) -> bool:
    tags, digests = image.get("RepoTags") or [], image.get("RepoDigests") or []
    return (not tags and not digests) or (tags == ["<none>:<none>"] and digests == ["<none>@<none>"])


def _names(image: Mapping[str, Any], *, digests: bool, each_digest: bool) -> Iterator[tuple[str, str, str]]:
    """(repository, tag, digest) of every row of one image, as imageFormatTaggedAndDigest has them."""
    if _dangling(image):
        yield NONE, NONE, NONE
        return
    tags: dict[str, list[str]] = {}
    by_digest: dict[str, list[str]] = {}
    for text in image.get("RepoTags") or ():
        name, tag, _ = split(text)
        if tag:
            tags.setdefault(familiar(name), []).append(tag)
    for text in image.get("RepoDigests") or ():
        name, _, digest = split(text)
        if digest:
            by_digest.setdefault(familiar(name), []).append(digest)
    for name, several in tags.items():
        known = by_digest.pop(name, [])
        for tag in several:
            for digest in (digests and known) or [NONE]:
                yield name, tag, digest
    for name, known in by_digest.items():
        for digest in known if each_digest else [""]:
            yield name, NONE, digest


def images(call: Call) -> int:
    flags = call.parse(IMAGES)
    wanted = flags.words[0] if flags.words else ""
    quiet, with_digests = flags.on("quiet"), flags.on("digests")
    more = [("reference", wanted)] if wanted else []
    path = "/images/json" + query(all=1 if flags.on("all") else None, filters=filters(flags, more))
    form = flags.text("format")
    if not form and not quiet:
        form = configured("imagesFormat", call.settings.text("config"))
    if form.startswith("table") and form != "table" and with_digests and "{{.Digest}}" not in form:
        form += "\t{{.Digest}}"
    digests = with_digests or "{{.Digest}}" in form
    found = call.client.get(path)
    rows = [
        ImageRow(image, *names, short=not flags.on("no-trunc"))
        for image in found
        for names in _names(image, digests=digests, each_digest=with_digests)
    ]
    if quiet and form in ("", "table", "raw"):
        form = "image_id: {{.ID}}" if form == "raw" else "{{.ID}}"
    elif form == "raw":
        form = RAW % ("digest: {{.Digest}}\n" if with_digests else "")
    terminal.out(show(form, rows, TITLES, WITH_DIGEST if with_digests else DEFAULT))
    if wanted in VERBS and not found and call.name == "images":
        terminal.err(f'\nNo images found matching "{wanted}": did you mean "tare image {wanted}"?\n')
    return 0


def rmi(call: Call) -> int:
    """With --force an image that is not there is told, but no failure."""
    flags = call.parse(RMI)
    fields = query(force=1 if flags.on("force") else None, noprune=1 if flags.on("no-prune") else None)
    problems: list[str] = []
    fatal = False
    for name in flags.words:
        try:
            gone = call.client.request("DELETE", image_path(name) + fields).document()
        except Failure as error:
            problems.append(str(error))
            fatal = fatal or not (isinstance(error, ApiError) and error.code == 404)
            continue
        terminal.out(terminal.printable(deleted(gone, "Untagged: ", "Deleted: ")))
    if problems:
        raise Failure("\n".join(problems), 1 if fatal or not flags.on("force") else 0)
    return 0


def deleted(report: Iterable[Mapping[str, str]], untagged: str, removed: str) -> str:
    """The lines of what a removal did."""
    return "".join(
        f"{removed}{each['Deleted']}\n" if each.get("Deleted") else f"{untagged}{each.get('Untagged', '')}\n"
        for each in report
    )


def tag(call: Call) -> int:
    source, target = call.parse(TAG).words
    name, word, digest = split(target)
    if not valid(target):
        raise Failure(f'Error parsing reference: "{target}" is not a valid repository/tag: {_why(name)}')
    if digest:
        raise Failure("refusing to create a tag with a digest reference")
    call.client.post(image_path(source) + "/tag" + query(repo=familiar(name), tag=word or "latest"))
    return 0


def _why(name: str) -> str:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first in ("localhost", "docker.io")):
        name = rest
    elif not slash:
        name = "library/" + name
    if name != name.lower():
        return f"invalid reference format: repository name ({name}) must be lowercase"
    return "invalid reference format"


class HistoryRow(Row):
    """One step of GET /images/{name}/history."""

    go_type = "*image.historyContext"

    def __init__(self, data: Mapping[str, Any], *, short: bool, human: bool) -> None:
        super().__init__(data, short=short)
        self.human = human

    def value_ID(self) -> str:
        identity = str(self.data.get("Id", ""))
        return short_id(identity) if self.short else identity

    def value_CreatedAt(self) -> str:
        moment = time.localtime(self.data.get("Created", 0))
        zone = time.strftime("%z", moment)
        return time.strftime("%Y-%m-%dT%H:%M:%S", moment) + ("Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}")

    def value_CreatedSince(self) -> str:
        if not self.human:
            return self.value_CreatedAt()
        created = self.data.get("Created", 0)
        return "N/A" if created <= YEAR_2000 else ago(created)

    def value_CreatedBy(self) -> str:
        command = str(self.data.get("CreatedBy", "")).replace("\t", " ")
        return ellipsis(command, 45) if self.short else command

    def value_Size(self) -> str:
        amount = self.data.get("Size", 0)
        return size(amount, 3) if self.human else str(amount)

    def value_Comment(self) -> str:
        return str(self.data.get("Comment", ""))


def history(call: Call) -> int:
    flags = call.parse(HISTORY)
    human = not flags.given("human") or flags.on("human")
    steps = call.client.get(image_path(flags.words[0]) + "/history")
    rows = [HistoryRow(step, short=not flags.on("no-trunc"), human=human) for step in steps]
    form = flags.text("format")
    if flags.on("quiet") and form in ("", "table"):
        form = "{{.ID}}"
    created = "CreatedSince" if human else "CreatedAt"
    terminal.out(show(form, rows, HISTORY_TITLES, ("ID", created, "CreatedBy", "Size", "Comment")))
    return 0
