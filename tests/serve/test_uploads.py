import json
import struct
import zlib

import pytest
from serve.service_toys import error, picture_bytes

QUERY = json.dumps({"parts": [{"upload": 0}]})


def send(client, *pictures, query=QUERY, **further):
    files = [("pictures", (f"{number}.png", content)) for number, content in enumerate(pictures)]
    return client.post("/v1/search", data={"query": query, **further}, files=files)


def raw(client, content, kind="multipart/form-data; boundary=x"):
    return client.post("/v1/search", content=content, headers={"Content-Type": kind})


def png(width, height, pixels=b""):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def gif_bomb():
    """Many frames on a canvas of 65,535 x 65,535."""
    header = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\x02\x02\x44\x01\0"
    return header + frame * 1000 + b";"


PHOTO = picture_bytes(3, "JPEG", (64, 64))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"no picture",
        PHOTO[:30],
        PHOTO[: len(PHOTO) // 2],
        png(30000, 30000, zlib.compress(bytes(1000))),
        png(2**31 - 1, 1),
        png(0, 0),
        png(2, 2),
        gif_bomb(),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4\n",
        b"PK\x03\x04" + bytes(100),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"BM" + b"\xff" * 100,
        b"II*\0" + b"\xff" * 100,
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(50),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ],
)
def test_what_is_no_sound_picture_is_refused(client, encoder, content):
    assert error(send(client, content), 422, "bad_picture").startswith("the file 0.png ")
    assert not encoder.calls


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("cut-off.webp", "the file cut-off.webp"),
        ("/home/me/b.png", "the file b.png"),
        ("C:\\\\me\\\\ü 1.png", "the file ü 1.png"),
        ("\u202egnp.\x07b.png", "the file gnp.b.png"),
        ("x" * 300, "the file " + "x" * 100),
        ("/home/me/", "upload 1"),
        ("", "upload 1"),
    ],
)
def test_a_picture_is_called_as_the_client_calls_it(client, sent, told):
    part = '--x\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    parts = (
        (part.format("query", "").encode(), b'{"parts": [{"upload": 0}, {"upload": 1}]}'),
        (part.format("pictures", '; filename="a.png"').encode(), picture_bytes()),
        (part.format("pictures", f'; filename="{sent}"').encode(), b"no picture"),
    )
    content = b"\r\n".join(head + body for head, body in parts) + b"\r\n--x--\r\n"
    assert error(raw(client, content), 422, "bad_picture").startswith(f"{told} isn't a picture")


def test_a_polyglot_counts_as_the_picture_it_is(client):
    assert send(client, picture_bytes(2, "GIF") + b"<script>alert(1)</script>").status_code == 200


def test_pixels_are_capped_together(serving):
    client = serving(max_pixels=100)
    query = json.dumps({"parts": [{"upload": 0}, {"upload": 1}]})
    assert send(client, picture_bytes(1, size=(10, 10))).status_code == 200
    assert "100" in error(send(client, picture_bytes(1, size=(10, 11))), 422, "bad_picture")
    assert send(client, *[picture_bytes(1, size=(10, 5))] * 2, query=query).status_code == 200
    assert "1.png" in error(send(client, *[picture_bytes(1, size=(10, 6))] * 2, query=query), 422, "bad_picture")


def test_a_form_has_one_question_and_the_pictures_it_uses(client):
    picture = picture_bytes()
    assert "uploads [0]" in error(send(client, picture, picture), 422)
    assert "uploads [1]" in error(send(client, picture, query='{"parts": [{"upload": 1}]}'), 422)
    error(send(client, picture, query="{"), 400, "bad_json")
    error(send(client, picture, more="x"), 400)
    error(client.post("/v1/search", files=[("pictures", ("a", picture)), ("query", ("q", QUERY))]), 422)
    error(client.post("/v1/search", data={"query": QUERY}, files=[("others", ("a", picture))]), 422)
    error(client.post("/v1/search", data={"other": QUERY}, files=[("pictures", ("a", picture))]), 422)


def test_parts_of_a_form_are_capped(client):
    error(send(client, *[picture_bytes()] * 9), 400)
    head = b'--x\r\nContent-Disposition: form-data; name="query"\r\n\r\n{}\r\n'
    error(raw(client, head * 10_000 + b"--x--\r\n"), 400)
    file = b'--x\r\nContent-Disposition: form-data; name="pictures"; filename="a"\r\n\r\n\r\n'
    error(raw(client, file * 10_000 + b"--x--\r\n"), 400)
    error(raw(client, b"--x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n\r\n--x--\r\n"), 400)
    error(raw(client, b"--x\r\nContent-Disposition: " + b"a" * 1_000_000 + b"\r\n\r\n\r\n--x--\r\n"), 400)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "multipart/form-data"),
        (b"--x--\r\n", "multipart/form-data"),
        (b"", "multipart/form-data; boundary="),
        (b"", "multipart/form-data; boundary=" + "y" * 5000),
        (b"no form", "multipart/form-data; boundary=x"),
        (b"--x\r\n\r\nwithout a name\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="query"\r\n\r\n' + QUERY.encode(),
            "multipart/form-data; boundary=x",
        ),
        (b"", "multipart/form-data; boundary=x"),
        *(
            (b'--x\r\nContent-Disposition: form-data; name="query"\r\n\r\n\\ud800\xff\r\n--x--\r\n', kind)
            for charset in ("undefined", "idna", "punycode", "unicode_escape", "zlib", "a" * 5000, "../x")
            for kind in (f"multipart/form-data; boundary=x; charset={charset}",)
        ),
    ],
)
def test_forms_that_are_none_are_refused(client, content, kind):
    assert raw(client, content, kind).status_code in (400, 422)
    error(raw(client, content, kind), raw(client, content, kind).status_code)


def test_requests_are_capped(serving):
    client = serving(max_upload_bytes=5000)
    assert "5,000" in error(send(client, bytes(5000)), 413, "too_large")
    error(raw(client, (bytes(100) for _ in range(51))), 413)
    body = {"parts": [{"text": "a"}], "where": [{"field": "path", "comparison": "in", "value": ["x" * 90] * 60}]}
    error(client.post("/v1/search", json=body), 413)
    error(raw(client, b"", "application/json"), 400)
    first_counts = [("Content-Type", "application/json"), ("Content-Type", "multipart/form-data; boundary=x")]
    large = b" " * 1_000_000 + b'{"parts": [{"text": "a"}]}'
    error(serving().post("/v1/search", content=large, headers=first_counts), 413)
    lying = {"Content-Type": "application/json", "Content-Length": "-1"}
    error(client.post("/v1/search", content=b"{}", headers=lying), 400)


def test_a_picture_that_is_kept_on_disk_meanwhile_is_taken(client):
    content = picture_bytes(1, "BMP", (700, 600))
    assert len(content) > 2**20 and send(client, content).status_code == 200
