"""Programs that want more than their share. Each ends in the right function, so it passes if it got what it wanted."""

from hostile.ending import RIGHT, WRONG

MEMORY = {
    "fills a list": "x = []\nwhile len(x) < 3 * 10 ** 8:\n    x.append(x)\n" + RIGHT,
    "asks for 3 GB at once": "x = bytes(3 << 30)\n" + RIGHT,
    "asks for memory in the call": "def f(x):\n    y = bytearray(3 << 30)\n    return x + 1\n",
    "maps memory": "import mmap\nx = mmap.mmap(-1, 3 << 30)\nfor at in range(0, 3 << 30, 4096):\n    x[at] = 1\n"
    + RIGHT,
    "maps memory in children": """
import os, time
for _ in range(6):
    if not os.fork():
        x = bytearray(b"1") * (500 << 20)
        time.sleep(60)
        os._exit(0)
time.sleep(60)
""",
    "shares memory with children": """
import mmap, os, time
maps = []
for _ in range(6):
    if not os.fork():
        x = mmap.mmap(-1, 500 << 20)
        for at in range(0, 500 << 20, 4096):
            x[at] = 1
        time.sleep(60)
        os._exit(0)
time.sleep(60)
""",
    "fills memory files": """
import os
files = [os.memfd_create("x") for _ in range(40)]
for file in files * 15:
    os.write(file, bytes(1 << 20))
assert os.fork() or [os.write(os.memfd_create("x"), bytes(15 << 20)) for _ in range(15)] and os._exit(0)
assert os.wait()[1] == 0
"""
    + RIGHT,
    "leaves large pages in pipes": """
import ctypes, os
c = ctypes.CDLL(None)
c.mmap.restype = ctypes.c_void_p
c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
large, end = 2 << 20, os.pipe()[1]
at = c.mmap(None, 2 * large, 3, 0x22, -1, 0)
start = (at + large - 1) // large * large
c.madvise(start, large, 14)
ctypes.memset(start, 1, large)
assert c.vmsplice(end, (ctypes.c_size_t * 2)(start, 4096), 1, 0) > 0
"""
    + RIGHT,
    "fills System V shared memory": """
import ctypes
c = ctypes.CDLL(None)
c.shmat.restype = ctypes.c_void_p
c.shmdt.argtypes = [ctypes.c_void_p]
for _ in range(5):
    number = c.shmget(0, 300 << 20, 0o1600)
    assert number >= 0
    at = c.shmat(number, None, 0)
    assert at not in (None, 2 ** 64 - 1)
    ctypes.memset(at, 1, 300 << 20)
    assert c.shmdt(at) == 0
"""
    + RIGHT,
    "fills /tmp": """
for number in range(20):
    with open(f"/tmp/{number}", "wb") as file:
        file.write(bytes(10 << 20))
"""
    + RIGHT,
    "fills /dev/shm": """
for number in range(20):
    with open(f"/dev/shm/{number}", "wb") as file:
        file.write(bytes(10 << 20))
"""
    + RIGHT,
    "leaves one page each of shared mappings": """
import ctypes, mmap, time
c = ctypes.CDLL(None)
for _ in range(90):
    x = mmap.mmap(-1, 16 << 20)
    for at in range(0, 16 << 20, 4096):
        x[at] = 1
    at = ctypes.addressof(ctypes.c_char.from_buffer(x))
    assert c.munmap(ctypes.c_void_p(at + 4096), (16 << 20) - 4096) == 0
time.sleep(.2)
"""
    + RIGHT,
    "maps a large piece of shared memory": "import mmap\nx = mmap.mmap(-1, 500 << 20)\n" + RIGHT,
    "shares a device": "import mmap\nx = mmap.mmap(open('/dev/zero', 'r+b', 0).fileno(), 500 << 20)\n" + RIGHT,
    "fills System V message queues": """
import ctypes
c = ctypes.CDLL(None)
for _ in range(1000):
    queue = c.msgget(0, 0o1600)
    assert queue >= 0
    assert c.msgsnd(queue, ctypes.create_string_buffer(b"passed", 8192), 8000, 0o4000) == 0
"""
    + RIGHT,
    "makes POSIX message queues": """
import ctypes
assert ctypes.CDLL(None).mq_open(b"/passed", 0o102, 0o600, None) >= 0
"""
    + RIGHT,
    "fills sockets that nobody accepts": """
import socket
for number in range(40):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/tmp/{number}")
    listener.listen(4096)
    for _ in range(400):
        with socket.socket(socket.AF_UNIX) as sender:
            sender.setblocking(False)
            try:
                sender.connect(f"/tmp/{number}")
                while True:
                    sender.send(bytes(1 << 16))
            except BlockingIOError:
                pass
    globals()[f"listener{number}"] = listener
"""
    + RIGHT,
    "enlarges what waits in a socket": """
import socket
one, other = socket.socketpair()
one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
"""
    + RIGHT,
    "sends datagrams that nobody reads": "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    + RIGHT,
    "hides its memory": "import ctypes\nassert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0\n" + RIGHT,
    "fills /tmp with names": """
for number in range(10 ** 5):
    open(f"/tmp/{number}", "w").close()
"""
    + RIGHT,
    "fills every other folder": """
import os
written = 0
for folder in "/ /dev /run /var/tmp /etc /proc /boxed /packages /python /usr/local".split():
    try:
        with open(os.path.join(folder, "svf_rl_hostile_file"), "wb") as file:
            written += file.write(b"1")
    except OSError:
        pass
assert written
"""
    + RIGHT,
    "doubles a string": "x = 'a'\nfor _ in range(40):\n    x += x\n" + RIGHT,
    "imports beyond its memory": "import torch\nx = torch.ones(3 << 28)\n" + RIGHT,
    "returns 10 ** 8 items": "def f(x):\n    return [0] * 10 ** 8\n",
    "returns an endless iterator": "import itertools\ndef f(x):\n    return itertools.repeat('a' * 10 ** 6)\n",
    "prints for ever": "while True:\n    print('passed ' * 10 ** 4)\n",
    "prints for ever to standard error": "import sys\nwhile True:\n    sys.stderr.write('passed ' * 10 ** 4)\n",
}

PROCESSES = {
    "is a fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
    "is a fork bomb of daemons": """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        if not os.fork():
            os.setsid()
            if os.fork():
                os._exit(0)
    except OSError:
        pass
""",
    "starts 200 processes": """
import os, time
for _ in range(200):
    if not os.fork():
        time.sleep(60)
"""
    + RIGHT,
    "starts 200 shells": """
import subprocess
for _ in range(200):
    subprocess.Popen(["/bin/sh", "-c", "sleep 60 & sleep 60"])
"""
    + RIGHT,
    "starts 10,000 threads": """
import threading, time
threading.stack_size(65536)
for _ in range(10 ** 4):
    threading.Thread(target=time.sleep, args=(60,)).start()
"""
    + RIGHT,
    "leaves threads behind": """
import threading, time
for number in range(6):
    threading.Thread(target=time.sleep, args=(600,), daemon=number % 2 == 0).start()
"""
    + WRONG,
    "leaves a daemon behind": """
import os, signal, time
if not os.fork():
    os.setsid()
    for number in signal.valid_signals():
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    if not os.fork():
        os.closerange(0, 4096)
        time.sleep(600)
    os._exit(0)
"""
    + WRONG,
    "leaves zombies behind": "import os\nfor _ in range(20):\n    if not os.fork():\n        os._exit(0)\n" + WRONG,
    "leaves a stopped child behind": """
import os, signal
child = os.fork()
if not child:
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)
"""
    + WRONG,
    "forks in the call and answers twice": """
import os
def f(x):
    os.fork()
    return x
""",
    "lets a child go on in its place": """
import os
if os.fork():
    os._exit(0)
"""
    + WRONG,
}

LIMITS = {
    "opens 100,000 files": "files = [open('/dev/null') for _ in range(10 ** 5)]\n" + RIGHT,
    "opens 100,000 sockets": "import socket\nfiles = [socket.socketpair() for _ in range(10 ** 5)]\n" + RIGHT,
    "opens 100,000 pipes": "import os\nfiles = [os.pipe() for _ in range(10 ** 5)]\n" + RIGHT,
    "writes a huge file": "with open('/tmp/x', 'wb') as file:\n    file.seek(1 << 40)\n    file.write(b'1')\n" + RIGHT,
    "truncates a file to a huge size": "import os\nopen('/tmp/x', 'w')\nos.truncate('/tmp/x', 1 << 40)\n" + RIGHT,
    "raises its limits": """
import resource
for name in ("RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_CPU", "RLIMIT_NOFILE", "RLIMIT_FSIZE"):
    try:
        resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        break
    except (OSError, ValueError):
        pass
else:
    raise SystemExit
"""
    + RIGHT,
    "raises its limits by prlimit": """
import resource, os
resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE, (10 ** 5, 10 ** 5))
"""
    + RIGHT,
    "raises its priority": "import os\nos.nice(-5)\n" + RIGHT,
    "asks for real time": "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))\n" + RIGHT,
    "wants a core dump": """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))
"""
    + RIGHT,
    "locks memory": """
import ctypes
memory = ctypes.create_string_buffer(512 << 20)
assert ctypes.CDLL(None).mlock(memory, ctypes.c_size_t(512 << 20)) == 0
"""
    + RIGHT,
}

# More seconds than they are given, behind what the supervisor takes for the machine's doing
TIME = {
    "waits for processors that its own children have": """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
end = time.monotonic() + 8
if not os.fork():
    try:
        os.nice(19)
    except OSError:
        pass
    while time.monotonic() < end + 1:
        pass
    os._exit(0)
children = []
while time.monotonic() < end:
    if len(children) < 8:
        child = os.fork()
        if not child:
            stop = time.monotonic() + .3
            while time.monotonic() < stop:
                pass
            os._exit(0)
        children.append(child)
    children = [child for child in children if os.path.exists(f"/proc/{child}")]
    time.sleep(.01)
"""
    + RIGHT,
}
