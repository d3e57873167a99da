"""A download that breaks, is continued and is checked; answers that are not the file; a disk that is full."""

import base64
import hashlib
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from file_server import CONTENT
from patience import PATIENCE, wait_until

from lavis.models import downloads
from lavis.models.downloads import download, published_md5
from sprc.core.errors import InputError


def md5_of(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def test_a_broken_download_is_continued_where_it_stopped(server, tmp_path):
    url, handler = server
    handler.breaks, handler.md5 = 2, md5_of(CONTENT)
    download(url + "a.pth", tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    half, three_quarters = len(CONTENT) // 2, len(CONTENT) * 3 // 4
    assert handler.requests == [None, f"bytes={half}-", f"bytes={three_quarters}-"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_a_later_run_continues_too(server, tmp_path, monkeypatch):
    url, handler = server
    handler.breaks = 1
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    with pytest.raises(OSError, match=f"broke after {len(CONTENT) // 2} of {len(CONTENT)}"):
        download(url + "a.pth", tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()
    download(url + "a.pth", tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert len(handler.requests) == 2


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    url, handler = server
    handler.ranges = False
    (tmp_path / "a.pth.partial").write_bytes(b"x" * 100)
    download(url + "a.pth", tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_damage_is_found_by_the_published_hash(server, tmp_path):
    url, handler = server
    handler.md5 = md5_of(CONTENT)
    (tmp_path / "a.pth.partial").write_bytes(b"x" * 100)  # of another file
    with pytest.raises(InputError, match="MD5"):
        download(url + "a.pth", tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.pth.partial").write_bytes(CONTENT * 2)  # longer than the file
    download(url + "a.pth", tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_hash_headers():
    assert published_md5(["crc32c=i67GjA==,md5=Ql15uc9u=="]) == "Ql15uc9u=="
    assert published_md5(["crc32c=i67GjA==", "md5=Ql15uc9u=="]) == "Ql15uc9u=="
    assert published_md5([]) is None


@pytest.mark.parametrize("length", [None, "many", "-5", ""])
def test_a_server_may_tell_no_length(server, tmp_path, length):
    url, handler = server
    handler.length, handler.md5 = length, md5_of(CONTENT)
    download(url + "a.pth", tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    handler.breaks = 1
    with pytest.raises(InputError, match="MD5"):
        download(url + "b.pth", tmp_path / "b.pth")


@pytest.mark.parametrize("told", ["bytes 0-{end}/{total}", "bytes 50-{end}/{total}", "bytes", "items 100-1/2", None])
def test_another_part_than_was_asked_for_is_never_appended(server, tmp_path, told):
    url, handler = server
    handler.content_range = told
    (tmp_path / "a.pth.partial").write_bytes(CONTENT[:100])
    download(url + "a.pth", tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert handler.requests == ["bytes=100-", None]


NOT_HTTP = [b"what?\r\n\r\n", b"", b"HTTP/1.0 two OK\r\n\r\n", b"HTTP/1.0 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n",
            b"HTTP/1.0 200 OK\r\nx: " + b"y" * 70000 + b"\r\n\r\n", b"HTTP/1.0 206 Partial Content\r\n\r\nabc",
            b"HTTP/1.0 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"]  # fmt: skip


@pytest.mark.parametrize("answer", NOT_HTTP, ids=range(len(NOT_HTTP)))
def test_a_bad_answer_is_a_failed_attempt(server, tmp_path, answer):
    url, handler = server
    handler.faults, handler.md5 = (answer, answer), md5_of(CONTENT)
    download(url + "a.pth", tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    handler.faults = (answer,) * downloads.ATTEMPTS
    with pytest.raises(OSError):
        download(url + "b.pth", tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()


def test_an_empty_answer_takes_nothing_away(server, tmp_path, monkeypatch):
    url, handler = server
    handler.faults = (b"HTTP/1.0 200 OK\r\n\r\n",)
    (tmp_path / "a.pth.partial").write_bytes(CONTENT[:100])
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    with pytest.raises(OSError, match="is empty"):
        download(url + "a.pth", tmp_path / "a.pth")
    assert (tmp_path / "a.pth.partial").read_bytes() == CONTENT[:100]


def test_a_part_that_breaks_is_noticed_by_its_range(server, tmp_path, monkeypatch):
    """Without a length and without a hash."""
    url, handler = server
    handler.length, handler.breaks = None, 1
    (tmp_path / "a.pth.partial").write_bytes(CONTENT[:100])
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    with pytest.raises(OSError, match=f"of {len(CONTENT)} bytes"):
        download(url + "a.pth", tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()


def test_a_web_page_is_no_file_of_weights(server, tmp_path):
    url, handler = server
    handler.content_type = "text/html; charset=utf-8"
    with pytest.raises(InputError, match=r"answered by a web page.*login") as error:
        download(url + "a.pth", tmp_path / "a.pth")
    assert f"put it at {tmp_path / 'a.pth'}" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_not_asked_for_again(server, tmp_path):
    url, handler = server
    handler.faults = (b"HTTP/1.0 404 Not Found\r\n\r\n",)
    with pytest.raises(OSError, match="404"):
        download(url + "a.pth", tmp_path / "a.pth")
    assert handler.requests == [None]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_in_the_place_of_the_part_is_not_followed(server, tmp_path, exists):
    url, _ = server
    other = tmp_path / "other"
    if exists:
        other.write_bytes(b"precious")
    (tmp_path / "a.pth.partial").symlink_to(other)
    download(url + "a.pth", tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT and not (tmp_path / "a.pth").is_symlink()
    assert other.exists() == exists and (not exists or other.read_bytes() == b"precious")


def test_a_link_that_is_put_there_meanwhile_is_refused(server, tmp_path, monkeypatch):
    url, _ = server
    monkeypatch.setattr(downloads, "_remove_link", lambda partial: None)
    (tmp_path / "a.pth.partial").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match=r"a\.pth\.partial cannot be written"):
        download(url + "a.pth", tmp_path / "a.pth")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 512 KiB, half of what is downloaded."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let the tests mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_the_part_is_continued(server, full_disk, tmp_path):
    url, handler = server
    with pytest.raises(InputError, match=r"a\.pth\.partial cannot be written \(No space left.*run this again") as error:
        download(url + "a.pth", full_disk / "a.pth")
    assert "continues from this part" in str(error.value)
    part = (full_disk / "a.pth.partial").read_bytes()
    assert len(part) > 400_000 and part == CONTENT[: len(part)]
    assert handler.requests == [None]  # another attempt does not make a disk larger
    subprocess.run(["mount", "-o", "remount,size=2m", full_disk], check=True)
    download(url + "a.pth", full_disk / "a.pth")
    assert (full_disk / "a.pth").read_bytes() == CONTENT
    assert handler.requests == [None, f"bytes={len(part)}-"]


def test_a_folder_that_cannot_be_made_is_one_line(server, tmp_path):
    url, _ = server
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        download(url + "a.pth", tmp_path / "file" / "a.pth")


def test_of_two_downloads_of_a_file_one_waits(server, tmp_path, caplog):
    url, handler = server
    begun, proceed = threading.Event(), threading.Event()
    send = handler._send_headers

    def wait(self, start):
        begun.set()
        proceed.wait(PATIENCE)
        send(self, start)

    handler._send_headers, handler.md5 = wait, md5_of(CONTENT)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(download, url + "a.pth", tmp_path / "a.pth")
        assert begun.wait(PATIENCE)
        second = pool.submit(download, url + "a.pth", tmp_path / "a.pth")
        wait_until(lambda: "waiting for another process" in caplog.text, "the second download does not wait")
        proceed.set()
        first.result(), second.result()
    assert handler.requests == [None]
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
