"""Jobs that attack the sandbox from inside. Each returns what it got, so that a test can see it got nothing.

Imported by the warm process, never by the tests: `Zygote(paths=[this folder])`.
"""

import ctypes
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
KEPT = []


def _attempt(action, *arguments):
    """`refused: NAME` for an OSError, else `done: RESULT`."""
    try:
        return f"done: {action(*arguments)!r}"[:200]
    except OSError as error:
        return f"refused: {type(error).__name__}"


def _syscall(number, *words):
    result = _libc.syscall(ctypes.c_long(number), *[ctypes.c_long(word) for word in words])
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _each(actions):
    return {name: _attempt(*action) for name, action in actions.items()}, {}


def honest(payload, blobs, workdir):
    (workdir / "own.txt").write_text("mine")
    return {"payload": payload, "read": (workdir / "own.txt").read_text()}, {
        name: blob[::-1] for name, blob in blobs.items()
    }


def write_outside(payload, blobs, workdir):
    own = [str(Path(sys.prefix, "w")), os.__file__] if payload["own"] else []
    return _each({path: (lambda path=path: open(path, "ab").close(),) for path in [*payload["paths"], *own]})


def read(payload, blobs, workdir):
    return _each({path: (lambda path=path: Path(path).read_bytes(),) for path in payload})


def list_folders(payload, blobs, workdir):
    return _each({path: (os.listdir, path) for path in payload})


def change_file(payload, blobs, workdir):
    def reached(*_):
        return {"mode": os.stat(payload).st_mode & 0o777, "mtime": os.stat(payload).st_mtime}

    actions = {
        "chmod": (os.chmod, payload, 0o777),
        "utime": (os.utime, payload, (1, 1)),
        "chown": (os.chown, payload, os.getuid(), os.getgid()),
        "xattr": (os.setxattr, payload, "user.x", b"x"),
        "truncate": (os.truncate, payload, 0),
        "unlink": (os.unlink, payload),
        "rename": (os.rename, payload, str(workdir / "taken")),
        "link": (os.link, payload, str(workdir / "linked")),
        "stat": (reached,),
    }
    return _each(actions)


def connect(payload, blobs, workdir):
    def tcp():
        with socket.create_connection(("127.0.0.1", payload["port"]), 2) as connection:
            connection.sendall(b"leak")

    def unix(name):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(name)
            connection.sendall(b"leak")

    def udp():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"leak", ("127.0.0.1", payload["port"]))

    return _each(
        {
            "tcp": (tcp,),
            "udp": (udp,),
            "abstract": (unix, "\0" + payload["abstract"]),
            "path": (unix, payload["path"]),
            "netlink": (socket.socket, socket.AF_NETLINK, socket.SOCK_RAW),
            "packet": (socket.socket, socket.AF_PACKET, socket.SOCK_RAW),
        }
    )


def execute(payload, blobs, workdir):
    own = workdir / "program"
    own.write_bytes(blobs["program"])
    os.chmod(own, 0o755)

    def call(*command):
        return subprocess.run(command, capture_output=True, timeout=20).returncode

    def from_memory():
        descriptor = os.memfd_create("program")
        os.write(descriptor, blobs["program"])
        if os.fork() == 0:
            os.execve(descriptor, ["program"], {})
        return os.wait()[1]

    return _each(
        {
            "true": (call, "/bin/true"),
            "shell": (call, "/bin/sh", "-c", "true"),
            "python": (call, sys.executable, "-c", "0"),
            "own": (call, str(own)),
            "memory": (from_memory,),
        }
    )


def signals(payload, blobs, workdir):
    targets = {"first": payload["client"], "second": payload["canary"], "server": payload["server"]}
    targets |= {"parent": os.getppid()} if payload["parent"] else {}
    return _each({name: (os.kill, pid, signal.SIGKILL) for name, pid in targets.items() if pid > 1})


def kill_everything(payload, blobs, workdir):
    return _attempt(os.kill, -1, signal.SIGKILL), {}


def inspect_processes(payload, blobs, workdir):
    def vm_read(pid):
        """Read eight bytes at an address of the other process into a buffer of this one."""
        buffer = ctypes.create_string_buffer(8)
        local = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(buffer), 8))
        remote = ctypes.create_string_buffer(struct.pack("QQ", payload["address"], 8))
        return _syscall(310, pid, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0)

    def first_byte(path):
        with open(path, "rb") as file:
            return file.read(1)

    actions = {}
    for pid in {*payload["pids"], os.getppid() if payload["parent"] else 0} - {0}:
        for name in ("environ", "maps", "cmdline", "status"):
            actions[f"{name} {pid}"] = (first_byte, f"/proc/{pid}/{name}")
        for name in ("fd", "root", "cwd"):
            actions[f"{name} {pid}"] = (os.listdir, f"/proc/{pid}/{name}")
        actions[f"mem {pid}"] = (lambda path: open(path, "rb").close(), f"/proc/{pid}/mem")
        actions[f"process_vm_readv {pid}"] = (vm_read, pid)
        actions[f"ptrace {pid}"] = (_syscall, 101, 16, pid, 0, 0)
    return _each(actions)


def kernel_surface(payload, blobs, workdir):
    return _each({name: (_syscall, number, *words) for name, (number, *words) in payload.items()})


def old_entry(payload, blobs, workdir):
    """getpid through the 32-bit entry, `int 0x80`."""
    code = bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3])
    area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area.write(code)
    function = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(area)))
    return function(), {}


def environment(payload, blobs, workdir):
    started_with = _attempt(Path("/proc/self/environ").read_bytes)
    _libc.getenv.restype = ctypes.c_char_p
    native = str(_libc.getenv(b"OPENAI_API_KEY"))
    return [dict(os.environ), tempfile.gettempdir(), started_with, native], {}


def state(payload, blobs, workdir):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "uid": os.getuid(),
        "pid": os.getpid(),
        "capabilities": [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")],
        "no_new_privs": int(status["NoNewPrivs"]),
        "seccomp": int(status["Seccomp"]),
        "dumpable": _libc.prctl(3, 0, 0, 0, 0),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "session": os.getsid(0) == os.getpid(),
        "stdin": os.readlink("/proc/self/fd/0"),
        "folder": sorted(os.listdir(workdir)),
        "cwd": os.getcwd() == str(workdir),
        "descriptors": [number for number in range(1024) if _attempt(os.fstat, number).startswith("done")],
        "interfaces": os.listdir("/sys/class/net") if os.path.isdir("/sys/class/net") else [],
    }, {}


def fork_bomb(payload, blobs, workdir):
    started = 0
    try:
        while started < 5000:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            started += 1
    except OSError:
        return started, {}
    return started, {}


def thread_bomb(payload, blobs, workdir):
    stop, threads = threading.Event(), []
    try:
        while len(threads) < 5000:
            thread = threading.Thread(target=stop.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        pass
    stop.set()
    return len(threads), {}


def memory_bomb(payload, blobs, workdir):
    while True:
        KEPT.append(bytearray(16 << 20))


def shared_memory_bomb(payload, blobs, workdir):
    while True:
        area = mmap.mmap(-1, 16 << 20)
        area.write(b"x" * len(area))
        KEPT.append(area)


def memory_of_many(payload, blobs, workdir):
    for _ in range(8):
        if os.fork() == 0:
            KEPT.append(b"x" * payload)
            time.sleep(60)
            os._exit(0)
    time.sleep(60)
    return None, {}


def file_bomb(payload, blobs, workdir):
    def big():
        with open(workdir / "big", "wb", buffering=0) as file:
            while file.write(b"x" * (1 << 20)) == 1 << 20:
                pass
        raise OSError(27, "no room")

    written = _attempt(big), os.path.getsize(workdir / "big")
    files = 0
    try:
        for files in range(1000):
            (workdir / f"f{files}").write_bytes(b"x" * (1 << 20))
    except OSError:
        pass
    return {"big": written, "files": files}, {}


def endless(payload, blobs, workdir):
    while True:
        pass


def endless_children(payload, blobs, workdir):
    for _ in range(payload):
        if os.fork() == 0:
            endless(payload, blobs, workdir)
    time.sleep(60)
    return None, {}


def asleep(payload, blobs, workdir):
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


def leave(payload, blobs, workdir):
    os._exit(payload)


def end_by(payload, blobs, workdir):
    if payload == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        return "survived", {}
    if payload == "abort":
        os.abort()
    return ctypes.string_at(0), {}


def write_everywhere(payload, blobs, workdir):
    """Write `payload["bytes"]` copies of the blob to each descriptor, then return or leave."""
    for number in range(3, 1024):
        try:
            for _ in range(payload["copies"]):
                os.write(number, blobs["data"])
        except OSError:
            continue
    if payload["leave"]:
        os._exit(0)
    return "honest", {}


def close_everything(payload, blobs, workdir):
    os.closerange(0, 1024)
    return "answered", {}


def flood_output(payload, blobs, workdir):
    while True:
        os.write(1, b"flood " * 10000)


def print_both(payload, blobs, workdir):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    return None, {}


def background(payload, blobs, workdir):
    """Leave a process behind that has left the group (where that is possible) and holds every descriptor."""
    if os.fork() == 0:
        _attempt(os.setsid)
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    time.sleep(0.2)
    return "left", {}


def poison_cache(payload, blobs, workdir):
    """Write a poisoned file into the Triton cache, then wait; report what other jobs have left or show."""
    mine = Path(os.environ["TRITON_CACHE_DIR"])
    mine.mkdir(exist_ok=True)
    found = sorted(os.listdir(mine))
    (mine / "kernel.cubin").write_bytes(b"poison")
    time.sleep(payload["seconds"])
    others = {path: _attempt(open, f"{path}/poison", "wb") for path in payload["others"]}
    return {"found": found, "others": others, "own": (mine / "kernel.cubin").read_bytes().decode()}, {}


def fail(payload, blobs, workdir):
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError("no")

    if payload == "value":
        raise ValueError("a clear message")
    if payload == "unprintable":
        raise Unprintable
    if payload == "exit":
        sys.exit(3)
    if payload == "long":
        raise ValueError("x" * 10_000_000)
    if payload == "deep":
        return fail(payload, blobs, workdir)
    if payload == "not json":
        return object(), {}
    if payload == "no pair":
        return 7
    if payload == "not bytes":
        return None, {"a": "text"}
    return compile("def f(:\n  pass", "candidate.py", "exec"), {}


def large(payload, blobs, workdir):
    return None, {"data": bytes(payload)}


def compile_kernel(payload, blobs, workdir):
    """Compile a Triton kernel for sm_90 from the source in the payload; needs triton preloaded."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    path = workdir / "kernel_file.py"
    path.write_text(payload)
    sys.path.insert(0, str(workdir))
    from kernel_file import add

    signature = {"x": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    source = ASTSource(fn=add, signature=signature, constexprs={(2,): 128})
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    (workdir / "k.cubin").write_bytes(kernel.asm["cubin"])
    usage = subprocess.run([tool, "-res-usage", "k.cubin"], capture_output=True, text=True, check=True)
    return usage.stdout, {"cubin": kernel.asm["cubin"]}


def under_a_strange_name(payload, blobs, workdir):
    """PR_SET_NAME with bytes that are no text, for longer than the warm process waits between two looks."""
    _libc.prctl(15, b"\xff) S 1 \xfe", 0, 0, 0)
    time.sleep(0.3)
    return Path("/proc/self/comm").read_bytes().hex(), {}
