"""Faults of many kinds in a real search: children, cached files, results and inputs.

Whatever is broken, the command either answers what it would have answered, or ends with one line and its exit code; and
the same command answers once the fault is gone.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import shims
from obligations import Obligation
from searching import Search, Uninterrupted

CHILDREN = "a child that crashes, lies or dies costs no answer, or one line"
FILES = "a damaged file is made again, or told in one line"
ERROR = re.compile(r"^quantune-compile: (?:internal )?error: ", re.MULTILINE)
FAILED, WRONG, LACKING = 1, 2, 4
"""Exit codes: what was asked for failed, the request is wrong, the machine lacks something."""

pytestmark = pytest.mark.slow


@pytest.fixture
def search(whole: Uninterrupted, tmp_path: Path) -> Search:
    """A search with its own copy of a full cache and of its data, nothing broken yet."""
    shutil.copytree(whole.cache, tmp_path / "cache")
    shutil.copytree(whole.data, tmp_path / "data")
    return Search(tmp_path, tmp_path / "cache", tmp_path / "data", options=("--quiet",), ready=True)


def problem(search: Search, whole: Uninterrupted, codes: tuple[int, ...]) -> str:
    """What is wrong with a run in which something is broken; nothing where it answers or says why it cannot."""
    code, said = search.run(), search.said()
    if code not in codes:
        return f"exit code {code}, expected one of {codes}: {said[-400:]}"
    if "Traceback" in said or "internal error" in said:
        return f"exit code {code} with more than a line: {said[-400:]}"
    if code == 0:
        return "" if search.answer() == whole.answer else f"another answer: {search.answer()}"
    return "" if len(ERROR.findall(said)) == 1 else f"exit code {code} without one line: {said[-400:]}"


def recovered(search: Search, whole: Uninterrupted) -> str:
    """What is wrong with the same command once the fault is gone."""
    search.environment = {}
    code = search.run()
    if code != 0:
        return f"exit code {code} of a healthy search: {search.said()[-400:]}"
    left = search.wait_until_gone() or list(search.temporary.iterdir())
    return f"left: {left}" if left else "" if search.answer() == whole.answer else f"later: {search.answer()}"


def nothing() -> None: ...


def tried(
    promise: Obligation,
    name: str,
    search: Search,
    whole: Uninterrupted,
    codes: tuple[int, ...],
    heal: Callable[[], object] = nothing,
) -> None:
    """Run with the fault, heal it, run again, and record."""
    found = problem(search, whole, codes)
    heal()
    found = found or recovered(search, whole)
    promise.tried(not found, f"{name}: {found}")


# Children

ALWAYS = ("segmentation fault", "no memory", "half an answer", "half a file", "exit status 0 and no file")


def both(faults: Iterable[str]) -> list[tuple[str, bool]]:
    """Every fault once in a search, and some of them every time."""
    return [(fault, False) for fault in faults] + [(each, True) for each in ALWAYS if each in faults]


@pytest.mark.parametrize(("fault", "always"), both(shims.COMPILER))
def test_compiler(
    fault: str, always: bool, search: Search, whole: Uninterrupted, obligation: Callable[[str], Obligation]
) -> None:
    shutil.rmtree(search.cache)
    shims.compiler(search, fault, always=always)
    harmless = fault == "a flood of warnings"
    codes = (0,) if harmless else (FAILED, LACKING) if always else (0, FAILED, LACKING)
    tried(obligation(CHILDREN), f"compiler, {fault}", search, whole, codes)
    assert shims.struck(search, always=always)


@pytest.mark.parametrize(
    ("kind", "fault", "always"), [(kind, *each) for kind, what in shims.CHILDREN.items() for each in both(what.faults)]
)
def test_child(
    kind: str, fault: str, always: bool, search: Search, whole: Uninterrupted, obligation: Callable[[str], Obligation]
) -> None:
    forget_answers(search)
    if kind == "checker":
        forget_programs(search)
    shims.child(search, kind, fault, always=always)
    codes = {"reader": (WRONG,), "evaluator": (FAILED,), "timer": (FAILED,), "checker": (FAILED, LACKING)}[kind]
    codes = codes if always else codes if kind == "reader" else (0, *codes)
    tried(obligation(CHILDREN), f"{kind}, {fault}", search, whole, codes)
    assert shims.struck(search, always=always)


@pytest.mark.parametrize("start", ["sys.exit(3)", "time.sleep(5)", "answer('hello')", "os.close(0)"])
@pytest.mark.parametrize("kind", ["evaluator", "checker"])
def test_child_that_starts_badly(
    kind: str, start: str, search: Search, whole: Uninterrupted, obligation: Callable[[str], Obligation]
) -> None:
    forget_answers(search)
    if kind == "checker":
        forget_programs(search)
    shims.child(search, kind, "kill -9", always=False, start=start)
    tried(obligation(CHILDREN), f"{kind}, {start}", search, whole, (0, FAILED, LACKING))


@pytest.mark.parametrize("size", [1 << 10, 10 << 10, 60 << 10, 200 << 10])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_a_limit_for_the_size_of_files(
    size: int, warm: bool, search: Search, whole: Uninterrupted, obligation: Callable[[str], Obligation]
) -> None:
    """As a quota does, or a full disk, for every file that is written, the compiler's too."""
    if not warm:
        shutil.rmtree(search.cache)
    search.environment = {"FAULT_FILE_SIZE": str(size)}
    tried(obligation(FILES), f"files of {size} bytes at most", search, whole, (0, FAILED, LACKING))


def forget_programs(search: Search) -> None:
    """Have the programs compiled again: the checker is asked about what was just compiled."""
    for path in search.cache.rglob("*.vmfb"):
        path.unlink()


def forget_answers(search: Search) -> None:
    """Have the accuracies counted again: what workers answered is in the cache."""
    for path in search.cache.rglob("*.correct"):
        path.unlink()


# Files

DAMAGES: dict[str, Callable[[Path], object]] = {
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"nothing of this kind\n" * 40),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "unreadable": lambda path: (path.unlink(), path.symlink_to(path.name)),  # for root too
}


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["*.npz", "*.vmfb", "*.facts.gz", "*.correct", "*.npy", "*.labels.npy"])
def test_cached_file(
    kind: str, damage: str, search: Search, whole: Uninterrupted, obligation: Callable[[str], Obligation]
) -> None:
    paths = [path for path in search.cache.rglob(kind) if kind != "*.npy" or ".labels" not in path.name]
    assert paths
    for path in paths:
        DAMAGES[damage](path)
    if kind == "*.vmfb" or kind.endswith(".npy"):
        forget_answers(search)
    tried(obligation(FILES), f"cached {kind}, {damage}", search, whole, (0,))


def clear(path: Path) -> None:
    """Take away what stands in the way."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        path.rmdir()


@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
def test_results_of_before(
    damage: str, search: Search, whole: Uninterrupted, obligation: Callable[[str], Obligation]
) -> None:
    """What an earlier search left is written anew, whatever became of it."""
    shutil.copytree(whole.out, search.out)
    results = [search.out / name for name in ("best.vmfb", "best.json", "report.html", "report.json")]
    for path in results if damage != "folder" else results[:1]:
        DAMAGES.get(damage, Path.unlink)(path)
    codes = (WRONG, LACKING) if damage == "folder" else (0,)
    tried(obligation(FILES), f"earlier results, {damage}", search, whole, codes, lambda: clear(results[0]))


@pytest.mark.parametrize("name", ["best.json", "report.html", "report.json"])
def test_a_folder_in_the_place_of_a_result(
    name: str, search: Search, whole: Uninterrupted, obligation: Callable[[str], Obligation]
) -> None:
    (search.out / name).mkdir(parents=True)
    tried(
        obligation(FILES), f"a folder named {name}", search, whole, (WRONG, LACKING), lambda: clear(search.out / name)
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_study(damage: str, search: Search, whole: Uninterrupted, obligation: Callable[[str], Obligation]) -> None:
    shutil.copytree(whole.out, search.out)
    DAMAGES[damage](search.out / "study.db")

    heal = lambda: clear(search.out / "study.db")  # noqa: E731
    codes = (0,) if damage == "unreadable" else (WRONG,)  # a link to nowhere holds nothing
    tried(obligation(FILES), f"study.db, {damage}", search, whole, codes, heal)


@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
def test_model(damage: str, search: Search, whole: Uninterrupted, obligation: Callable[[str], Obligation]) -> None:
    path = search.data / "net.mlir"
    good = path.read_bytes()
    DAMAGES.get(damage, Path.unlink)(path)
    if damage == "flipped":  # in the middle of a weight it would be another network
        path.write_bytes(good.replace(b"linalg.fill", b"linalg.fkll"))

    def heal() -> None:
        clear(path)
        path.write_bytes(good)

    tried(obligation(FILES), f"model, {damage}", search, whole, (WRONG, FAILED), heal)


DATA = {
    "raises": ("return _draw(500, 2)", "raise OSError('no such share')"),
    "is empty": ("return _draw(500, 2)", "return []"),
    "has another shape": ("return _draw(500, 2)", "return [(x[:, 1:], y) for x, y in _draw(500, 2)]"),
    "is not finite": ("return _draw(500, 2)", "return [(x * np.inf, y) for x, y in _draw(500, 2)]"),
    "has labels out of range": ("return _draw(500, 2)", "return [(x, 9) for x, _ in _draw(500, 2)]"),
    "has labels that are no classes": ("return _draw(500, 2)", "return [(x, 0.5) for x, _ in _draw(500, 2)]"),
    "is no Python": ("def evaluation", "def def evaluation"),
    "is another thing": ("return _draw(500, 2)", "return 7"),
}


@pytest.mark.parametrize("fault", DATA)
def test_data(fault: str, search: Search, whole: Uninterrupted, obligation: Callable[[str], Obligation]) -> None:
    path = search.data / "tiny_data.py"
    good = path.read_text(encoding="utf-8")
    path.write_text(good.replace(*DATA[fault]), encoding="utf-8")
    heal = lambda: path.write_text(good, encoding="utf-8")  # noqa: E731
    tried(obligation(FILES), f"a data set that {fault}", search, whole, (WRONG, FAILED), heal)


@pytest.mark.parametrize("place", ["cache", "out"])
def test_a_file_in_the_place_of_a_folder(
    place: str, search: Search, whole: Uninterrupted, obligation: Callable[[str], Obligation]
) -> None:
    path = search.folder / place
    if path.is_dir():
        shutil.rmtree(path)
    path.write_text("in the way")
    tried(obligation(FILES), f"{place} is a file", search, whole, (0, WRONG, LACKING), path.unlink)
