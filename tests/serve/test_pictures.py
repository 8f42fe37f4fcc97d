import asyncio
import hashlib
import io
import os
import sys

import pyarrow as pa
import pytest
from PIL import Image
from serve.service_toys import FORMATS, error, picture_bytes

from modalloy.index import Source
from modalloy.serve.pictures import Original, OriginalResponse

SHOWN = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "gif": "image/gif"}


def swapped(index, id, **values):
    """Commits the row of a picture with other values, as if somebody had tampered with the index."""
    schema = pa.schema(index.snapshot()._schema)
    (row,) = index.snapshot().rows([id], schema.names).to_pylist()
    index.commit(pa.Table.from_pylist([{**row, **values}], schema))


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("suffix", FORMATS)
def test_originals_come_as_they_are_or_as_jpeg(client, root, suffix):
    (file,) = (root / "deep").glob(f"*.{suffix}")
    reply = client.get("/v1/picture", params={"id": f"deep:{file.name}"})
    assert reply.status_code == 200 and reply.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in reply.headers["content-security-policy"]
    assert reply.headers["content-length"] == str(len(reply.content))
    if suffix in SHOWN:
        assert reply.content == file.read_bytes() and reply.headers["content-type"] == SHOWN[suffix]
        assert reply.headers["etag"] == f'"{sha256(file.read_bytes())}"'
    else:
        shown = Image.open(io.BytesIO(reply.content))
        assert (shown.format, shown.size) == ("JPEG", (3, 2)) and reply.headers["content-type"] == "image/jpeg"


def test_a_tars_member_is_served(client):
    assert client.get("/v1/picture?id=some.tar:in:6.png").content == picture_bytes(6)


def test_a_browser_asks_once(client):
    for route in ("picture", "thumbnail"):
        first = client.get(f"/v1/{route}?id=deep:1.png")
        tag = first.headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            again = client.get(f"/v1/{route}?id=deep:1.png", headers={"If-None-Match": known})
            assert again.status_code == 304 and not again.content and again.headers["etag"] == tag
        assert client.get(f"/v1/{route}?id=deep:1.png", headers={"If-None-Match": '"other"'}).status_code == 200


def test_thumbnails_are_jpeg(client):
    for id in ("deep:1.png", "deep:1.png#0"):
        reply = client.get("/v1/thumbnail", params={"id": id})
        assert reply.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(reply.content)).size == (1, 1)


@pytest.mark.parametrize("said", ['x"\r\nX-Evil: 1', "\u2603", None])
def test_a_thumbnails_tag_is_its_own_whatever_the_row_says(serving, searcher, index, said):
    client = serving()
    for small in (b"one", b"another"):
        swapped(index, "deep:1.png", sha256=said, thumbnail=small)
        assert searcher.refresh()
        reply = client.get("/v1/thumbnail?id=deep:1.png")
        assert reply.content == small and reply.headers["etag"] == f'"{sha256(small)}"'
        assert "x-evil" not in reply.headers


@pytest.mark.parametrize("route", ["picture", "thumbnail", "item"])
@pytest.mark.parametrize(
    "id",
    [
        "../secret.png",
        "..%2Fsecret.png",
        "%2e%2e%2fsecret.png",
        "..%5Csecret.png",
        "%2Fetc%2Fpasswd",
        "/etc/passwd",
        "....//....//etc/passwd",
        "deep%2F1.png",
        "deep:1.png%00",
        "deep:1.png%0d%0aX: 1",
        "..:secret.png",
        "C:%5CWindows%5Cwin.ini",
        "%5C%5Cserver%5Cshare",
        "file:%2F%2F%2Fetc%2Fpasswd",
        "http:%2F%2F127.0.0.1%2F",
        "%ff%fe",
        "%ed%a0%80",
        "",
        "%20",
        "~",
        "x' OR '1'='1",
        "a" * 5000,
    ],
)
def test_no_path_is_an_id(client, route, id):
    assert "secret" not in error(client.get(f"/v1/{route}?id={id}"), 404) or "secret" in id


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "deep/../../secret.png",
        "/etc/passwd",
        "{secret}",
        "out.png",
        "door/secret.png",
        "deep\\..\\..\\secret.png",
        "C:/secret.png",
        "deep/1.png\0",
        "deep",
        ".",
        "",
        "nowhere.png",
        "some.tar/../../secret.png",
        "some.tar/in/nowhere.png",
        "some.tar",
        "out.tar/in/6.png",
        "pipe",
        "a" * 5000,
    ],
)
def test_a_row_that_was_tampered_with_leads_nowhere(serving, searcher, index, root, path):
    secret = root.parent / "secret.png"
    (root / "out.png").symlink_to(secret)
    (root / "door").symlink_to(root.parent)
    (root / "some.tar").rename(root.parent / "out.tar")
    (root / "out.tar").symlink_to(root.parent / "out.tar")
    os.mkfifo(root / "pipe")
    path = path.format(secret=secret)
    known = picture_bytes(6) if path.startswith("out.tar") else secret.read_bytes()
    swapped(index, "deep:1.png", path=path, sha256=sha256(known))
    searcher.refresh()
    message = error(serving().get("/v1/picture?id=deep:1.png"), 404)
    assert str(root) not in message and "secret" not in message


def test_a_link_inside_the_folder_is_followed(serving, searcher, index, root):
    (root / "link.png").symlink_to(root / "deep" / "1.png")
    swapped(index, "deep:1.png", path="link.png")
    searcher.refresh()
    assert serving().get("/v1/picture?id=deep:1.png").content == picture_bytes(1)


def test_a_source_that_is_not_known_or_gone_leads_nowhere(serving, searcher, index, root):
    swapped(index, "deep:1.png", source="other")
    head = index.snapshot().head.with_source(Source("gone", "x", None, str(root / "gone")))
    index.commit(head=head)
    swapped(index, "deep:2.webp", source="gone")
    searcher.refresh()
    client = serving()
    error(client.get("/v1/picture?id=deep:1.png"), 404)
    error(client.get("/v1/picture?id=deep:2.webp"), 404)


def test_a_file_that_changed_is_not_served(serving, root):
    client = serving()
    assert client.get("/v1/picture?id=deep:1.png").status_code == 200
    file = root / "deep" / "1.png"
    before = file.stat()
    file.write_bytes(picture_bytes(77, size=(4, 4)))
    assert "update" in error(client.get("/v1/picture?id=deep:1.png"), 404)
    file.write_bytes(picture_bytes(1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert client.get("/v1/picture?id=deep:1.png").content == picture_bytes(1)
    # As large, and dated back.
    file.write_bytes(picture_bytes(1)[:-1] + b"x")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "update" in error(client.get("/v1/picture?id=deep:1.png"), 404)
    file.unlink()
    error(client.get("/v1/picture?id=deep:1.png"), 404)


@pytest.mark.parametrize(
    "content", [b"<script>alert(1)</script>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"", b"%PDF-1.4", b"GIF89a"]
)
def test_what_is_no_picture_is_not_served_even_if_indexed(serving, searcher, index, root, content):
    (root / "evil.png").write_bytes(content)
    swapped(index, "deep:1.png", path="evil.png", sha256=sha256(content))
    searcher.refresh()
    error(serving().get("/v1/picture?id=deep:1.png"), 404)


def test_a_polyglot_is_only_ever_a_picture(serving, searcher, index, root):
    content = picture_bytes(1, "GIF") + b"<script>alert(1)</script>"
    (root / "page.html").write_bytes(content)
    swapped(index, "deep:1.png", path="page.html", sha256=sha256(content))
    searcher.refresh()
    reply = serving().get("/v1/picture?id=deep:1.png")
    assert reply.content == content and reply.headers["content-type"] == "image/gif"
    assert "sandbox" in reply.headers["content-security-policy"]


def test_a_picture_that_is_too_large_is_not_shown(serving, searcher, index, root):
    content = picture_bytes(1, "BMP", (40, 30))
    (root / "large.bmp").write_bytes(content)
    swapped(index, "deep:1.png", path="large.bmp", sha256=sha256(content))
    searcher.refresh()
    error(serving(max_pixels=1199).get("/v1/picture?id=deep:1.png"), 404)


@pytest.mark.parametrize("sent", [0, 1])
def test_a_file_is_closed_when_the_client_is_gone(tmp_path, sent):
    """A browser that leaves the page gives up its pictures, some before a byte of them was read."""
    (tmp_path / "large").write_bytes(bytes(3 * 2**18))
    original = Original((tmp_path / "large").open("rb"), 3 * 2**18, "image/png", "tag")
    told = []

    async def ask():
        gone = asyncio.Event()

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            told.append(message)
            if len(told) > sent:
                gone.set()
                await asyncio.Event().wait()

        scope = {"type": "http", "method": "GET", "headers": [], "asgi": {"spec_version": "2.3"}}
        await asyncio.wait_for(OriginalResponse(original, {})(scope, receive, send), 10)

    asyncio.run(ask())
    assert len(told) == sent + 1 and original.file.closed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files by /proc")
def test_no_file_stays_open(serving):
    client = serving()
    ids = ["deep:1.png", "deep:4.bmp", "some.tar:in:6.png", "nowhere"]

    def ask():
        for id in ids:
            tag = client.get("/v1/picture", params={"id": id}).headers.get("etag", "")
            client.get("/v1/picture", params={"id": id}, headers={"If-None-Match": tag})
        return len(os.listdir("/proc/self/fd"))

    assert ask() == ask()
