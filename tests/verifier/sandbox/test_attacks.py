"""One attack from inside a job for each property that `confine.py` claims."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from verifier.sandbox import wire
from verifier.sandbox.limits import Limits
from verifier.sandbox.zygote import JobResult, Zygote

QUICK = Limits(wall_seconds=10, cpu_seconds=10, memory_bytes=1 << 30)


def value_of(result: JobResult) -> Any:
    assert result.outcome == "ok", f"{result.outcome}: {result.error}\n{result.output}"
    return result.value


def all_refused(report: dict[str, str]) -> None:
    assert report
    assert {name: said for name, said in report.items() if not said.startswith("refused")} == {}


@pytest.fixture
def canary() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_an_honest_job_gets_its_payload_and_work_folder(zygote: Zygote) -> None:
    result = zygote.run("attacks:honest", {"a": [1, None, "é"]}, {"x": b"abc", "": b""})
    assert value_of(result) == {"payload": {"a": [1, None, "é"]}, "read": "mine"}
    assert result.blobs == {"x": b"cba", "": b""}


def test_nothing_can_be_written_outside_the_work_folder(zygote: Zygote, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o777)
    open_to_all.chmod(0o777)
    paths = [str(open_to_all / "w"), "/var/tmp/w", "/tmp/w", "/dev/shm/w", "/etc/w"]
    all_refused(value_of(zygote.run("attacks:write_outside", {"paths": paths, "own": True})))
    assert list(open_to_all.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_files_outside_the_granted_folders_cannot_be_read(zygote: Zygote, tmp_path: Path, mode: int) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(mode)
    targets = [
        str(secret),
        "/etc/passwd",
        "/etc/hostname",
        "/bin/true",
        "/proc/kcore",
        "/proc/1/root/etc/passwd",
    ]
    all_refused(value_of(zygote.run("attacks:read", targets)))


def test_folders_outside_cannot_be_listed(zygote: Zygote, tmp_path: Path) -> None:
    all_refused(value_of(zygote.run("attacks:list_folders", ["/", "/etc", "/home", "/tmp", str(tmp_path)])))


def test_modes_times_owners_and_names_outside_cannot_be_changed(zygote: Zygote, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("text")
    target.chmod(0o600)
    before = target.stat()
    value_of(zygote.run("attacks:change_file", str(target)))
    after = target.stat()
    assert (after.st_mode, after.st_mtime, after.st_uid, after.st_size, after.st_nlink) == (
        before.st_mode,
        before.st_mtime,
        before.st_uid,
        before.st_size,
        before.st_nlink,
    )


def test_no_network_and_no_unix_sockets(zygote: Zygote, tmp_path: Path) -> None:
    name = f"warpsmith-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as path,
    ):
        abstract.bind("\0" + name)
        path.bind(str(tmp_path / "s"))
        (tmp_path / "s").chmod(0o777)
        listeners = (tcp, abstract, path)
        for listener in listeners:
            listener.listen()
            listener.setblocking(False)
        targets = {"port": tcp.getsockname()[1], "abstract": name, "path": str(tmp_path / "s")}
        all_refused(value_of(zygote.run("attacks:connect", targets)))
        for listener in listeners:
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_no_program_but_tritons_tools_can_be_executed(zygote: Zygote) -> None:
    program = {"program": Path("/bin/true").read_bytes()}
    all_refused(value_of(zygote.run("attacks:execute", None, program)))


def test_other_processes_cannot_be_signalled(zygote: Zygote, canary: subprocess.Popen[bytes]) -> None:
    server = zygote.server_pid
    targets = {"client": os.getpid(), "canary": canary.pid, "server": server, "parent": True}
    all_refused(value_of(zygote.run("attacks:signals", targets)))
    zygote.run("attacks:kill_everything", None, limits=QUICK)
    assert canary.poll() is None
    assert zygote.server_pid == server


def test_other_processes_cannot_be_inspected(zygote: Zygote, canary: subprocess.Popen[bytes]) -> None:
    pids = [os.getpid(), canary.pid, zygote.server_pid]
    payload = {"pids": pids, "address": id(pids), "parent": True}
    all_refused(value_of(zygote.run("attacks:inspect_processes", payload)))


def test_the_kernel_surface_is_closed(zygote: Zygote) -> None:
    calls = {
        "unshare user": (272, 0x10000000),
        "clone user": (56, 0x10000000 | 17),
        "clone3": (435, 0, 88),
        "mount": (165, 0, 0, 0, 0, 0),
        "bpf": (321, 0, 0, 0),
        "perf": (298, 0, 0, -1, -1, 0),
        "userfaultfd": (323, 0),
        "io_uring": (425, 1, 0),
        "keyctl": (250, 0, -3, 0),
        "memfd": (319, 0, 0),
        "handle": (304, -100, 0, 0),
        "shmget": (29, 0, 4096, 0o1600),
        "setuid": (105, 0),
        "personality": (135, 0xFFFFFFFF),
        "set dumpable": (157, 4, 1, 0, 0, 0),
        "x32 getpid": (0x40000000 + 39,),
        "a call of the future": (900,),
        "chroot": (161, 0),
    }
    all_refused(value_of(zygote.run("attacks:kernel_surface", calls)))


def test_the_32_bit_entry_ends_the_job(zygote: Zygote) -> None:
    result = zygote.run("attacks:old_entry", None)
    assert (result.outcome, result.error) == ("crash", "killed by signal 31 (SIGSYS)")


def test_no_key_of_the_caller_is_in_the_environment(zygote: Zygote, secret: str) -> None:
    assert os.environ["OPENAI_API_KEY"] == secret
    seen = value_of(zygote.run("attacks:environment", None))
    assert secret not in str(seen)
    variables, temporary, *_ = seen
    folders = (
        "HOME",
        "TMPDIR",
        "TRITON_HOME",
        "TRITON_CACHE_DIR",
        "XDG_CACHE_HOME",
        "TORCHINDUCTOR_CACHE_DIR",
    )
    home = variables["HOME"]
    assert all(variables[name].startswith(home) for name in folders)
    assert temporary == home


def test_a_job_holds_no_rights_and_no_descriptors(zygote: Zygote) -> None:
    seen = value_of(zygote.run("attacks:state", None))
    assert seen["uid"] != 0
    assert seen["capabilities"] == [0, 0, 0, 0]
    assert (seen["no_new_privs"], seen["seccomp"], seen["dumpable"]) == (1, 2, 0)
    assert seen["core"] == [0, 0]
    assert seen["session"]
    assert seen["cwd"]
    assert seen["stdin"] == "/dev/null"
    assert seen["folder"] == seen["interfaces"] == []
    assert len(seen["descriptors"]) == 4, "standard streams and the answer"


def test_a_fork_bomb_is_capped_and_cleared_away(zygote: Zygote, descendants: Any) -> None:
    result = zygote.run("attacks:fork_bomb", None, limits=Limits(processes=20, wall_seconds=10))
    assert value_of(result) < 20
    assert descendants.new() == set()


def test_cpu_time_counts_over_all_processes_of_a_job(zygote: Zygote, descendants: Any) -> None:
    result = zygote.run("attacks:endless_children", 4, limits=Limits(cpu_seconds=1, wall_seconds=20))
    assert (result.outcome, result.error) == ("timeout", "used more than 1 s of CPU time")
    assert descendants.new() == set()


def test_threads_count_as_processes(zygote: Zygote) -> None:
    assert value_of(zygote.run("attacks:thread_bomb", None, limits=Limits(processes=20, wall_seconds=10))) < 20


@pytest.mark.parametrize("job", ["memory_bomb", "shared_memory_bomb"])
def test_a_memory_bomb_meets_its_cap(zygote: Zygote, job: str) -> None:
    result = zygote.run(f"attacks:{job}", None, limits=Limits(memory_bytes=256 << 20, wall_seconds=10))
    caught = "OSError: [Errno 12]" in result.error  # mmap reports a lack of memory so
    assert result.outcome == "memory" or caught, result
    assert result.peak_bytes < 512 << 20


def test_memory_counts_over_all_processes_of_a_job(zygote: Zygote, descendants: Any) -> None:
    limits = Limits(memory_bytes=256 << 20, wall_seconds=10)
    result = zygote.run("attacks:memory_of_many", 100 << 20, limits=limits)
    assert result.outcome == "memory", result
    assert descendants.new() == set()


def test_a_file_bomb_meets_its_caps(zygote: Zygote) -> None:
    limits = Limits(file_bytes=8 << 20, folder_bytes=32 << 20)
    seen = value_of(zygote.run("attacks:file_bomb", None, limits=limits))
    said, size = seen["big"]
    assert said == "refused: OSError"
    assert size <= 8 << 20
    assert seen["files"] < 32


@pytest.mark.parametrize(
    ("job", "limits", "error"),
    [
        ("endless", Limits(wall_seconds=0.5), "ran longer than 0.5 s"),
        ("asleep", Limits(wall_seconds=0.5), "ran longer than 0.5 s"),
        ("endless", Limits(cpu_seconds=1), "used more than 1 s of CPU time"),
    ],
)
def test_endless_jobs_are_ended(zygote: Zygote, job: str, limits: Limits, error: str) -> None:
    begin = time.monotonic()
    result = zygote.run(f"attacks:{job}", None, limits=limits)
    assert (result.outcome, result.error) == ("timeout", error)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("status", [0, 7])
def test_leaving_early_is_a_crash(zygote: Zygote, status: int) -> None:
    result = zygote.run("attacks:leave", status)
    assert (result.outcome, result.error) == ("crash", f"exited with status {status} without an answer")


def test_ending_itself_by_a_signal_is_a_crash(zygote: Zygote) -> None:
    fault = zygote.run("attacks:end_by", "fault")
    assert (fault.outcome, fault.error) == ("crash", "killed by signal 11 (SIGSEGV)")
    assert "Segmentation fault" in fault.output
    abort = zygote.run("attacks:end_by", "abort")
    assert abort.outcome == "crash"
    assert "Aborted" in abort.output
    killed = zygote.run("attacks:end_by", "kill")  # process 1 of a PID namespace cannot end itself so
    assert killed.value == "survived" or killed.error == "killed by signal 9 (SIGKILL)"


HONEST = b"".join(wire.pack({"outcome": "ok", "value": 1, "error": ""}, {}))
FORGED = {
    "garbage": b"\xff" * 1000,
    "cut": HONEST[:-1],
    "too long a header": wire.MAGIC + b"\xff\xff\xff\xff",
    "no object": wire.MAGIC + b"\x02\0\0\0[]",
    "deep": wire.MAGIC + (100_000).to_bytes(4, "little") + b"[" * 100_000,
    "long number": wire.MAGIC + (100_000).to_bytes(4, "little") + b"9" * 100_000,
    "other fields": b"".join(wire.pack({"outcome": "ok", "value": 1}, {})),
    "other outcome": b"".join(wire.pack({"outcome": "timeout", "value": 1, "error": ""}, {})),
    "unhashable outcome": b"".join(wire.pack({"outcome": [], "value": 1, "error": ""}, {})),
    "blob cut off": b"".join(wire.pack({"outcome": "ok", "value": 1, "error": ""}, {"a": b"abc"}))[:-1],
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED.keys())
@pytest.mark.parametrize("leave", [True, False])
def test_malformed_answers_on_every_descriptor_are_a_crash(zygote: Zygote, data: bytes, leave: bool) -> None:
    result = zygote.run("attacks:write_everywhere", {"copies": 1, "leave": leave}, {"data": data})
    assert result.outcome == "crash"
    assert result.error.startswith("sent a malformed answer")


def test_a_forged_answer_before_the_honest_one_is_a_crash(zygote: Zygote) -> None:
    result = zygote.run("attacks:write_everywhere", {"copies": 1, "leave": False}, {"data": HONEST})
    assert result.outcome == "crash"
    assert "follow the message" in result.error


def test_an_oversized_answer_is_cut_off(zygote: Zygote) -> None:
    limits = Limits(result_bytes=1 << 20, wall_seconds=20)
    payload = {"copies": 100, "leave": True}
    flood = zygote.run("attacks:write_everywhere", payload, {"data": bytes(1 << 20)}, limits=limits)
    assert (flood.outcome, flood.error) == ("crash", "sent an answer of more than 1048576 bytes")
    honest = zygote.run("attacks:large", 2 << 20, limits=limits)
    assert honest.outcome == "error"
    assert "1048576 allowed" in honest.error


def test_large_answers_and_requests_pass(zygote: Zygote) -> None:
    assert len(zygote.run("attacks:large", 100 << 20).blobs["data"]) == 100 << 20
    data = os.urandom(20 << 20)
    assert zygote.run("attacks:honest", None, {"data": data}).blobs["data"] == data[::-1]


def test_closing_every_descriptor_is_a_crash(zygote: Zygote) -> None:
    result = zygote.run("attacks:close_everything", None)
    assert (result.outcome, result.error) == ("crash", "exited with status 70 without an answer")


def test_output_is_kept_as_a_tail_and_a_flood_ends_the_job(zygote: Zygote) -> None:
    both = zygote.run("attacks:print_both", None)
    assert {"to stdout", "to stderr"} <= set(both.output.splitlines())
    flood = zygote.run("attacks:flood_output", None)
    assert flood.outcome == "crash"
    assert flood.error.endswith("bytes of output")
    assert len(flood.output) <= 8 << 10


def test_nothing_outlives_a_job(zygote: Zygote, descendants: Any) -> None:
    begin = time.monotonic()
    assert value_of(zygote.run("attacks:background", None)) == "left"
    assert time.monotonic() - begin < 20
    assert descendants.new() == set()


def test_jobs_cannot_reach_each_others_cache(zygote: Zygote, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    others = [str(tmp_path), "/job", "/proc/2/cwd", "/proc/1/cwd"]
    payload = {"seconds": 0.5, "others": others[:1]}
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: zygote.run("attacks:poison_cache", payload), range(4)))
    for seen in map(value_of, results):
        assert seen["found"] == []
        assert seen["own"] == "poison"
        all_refused(seen["others"])


def test_many_jobs_at_once_do_not_mix(zygote: Zygote) -> None:
    before = threading.active_count()
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda number: zygote.run("attacks:honest", number), range(64)))
    assert [value_of(result)["payload"] for result in results] == list(range(64))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("value", "ValueError: a clear message"),
        ("exit", "SystemExit: 3"),
        ("long", "ValueError: xxxx"),
        ("deep", "RecursionError"),
        ("not json", "TypeError"),
        ("no pair", "TypeError"),
        ("not bytes", "TypeError: a blob maps"),
        ("unprintable", "an exception that cannot be printed"),
        ("syntax", 'File "candidate.py", line 1'),
    ],
)
def test_exceptions_are_data_with_a_short_traceback(zygote: Zygote, kind: str, error: str) -> None:
    result = zygote.run("attacks:fail", kind)
    assert result.outcome == "error"
    assert result.error.startswith(error)
    assert len(result.error) < 8 << 10
    if kind == "value":
        assert "attacks.py" in result.error
        assert "job.py" not in result.error
