"""Programs that never end, or end in a way that looks like success. Each says what it does by its name."""

WRONG = "def f(x):\n    return x\n"
RIGHT = "def f(x):\n    return x + 1\n"

ENDLESS = {
    "loops at the top": "while True:\n    pass\n",
    "loops in the call": "def f(x):\n    while True:\n        pass\n",
    "loops and swallows every exception": """
def f(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
""",
    "ignores and blocks all signals": """
import signal
for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
while True:
    pass
""",
    "computes a power of powers": "def f(x):\n    return 9 ** 9 ** 9\n",
    "backtracks in a regular expression": "import re\nre.match(r'(a+)+$', 'a' * 64 + 'b')\n",
    "loops in C": "import collections, itertools\ncollections.deque(itertools.count(), maxlen=0)\n",
    "sums for ever in C": "def f(x):\n    return sum(range(10 ** 18))\n",
    "sleeps at the top": "import time\ntime.sleep(10 ** 6)\n",
    "sleeps in the call": "import time\ndef f(x):\n    time.sleep(10 ** 6)\n    return x + 1\n",
    "waits for a signal": "import signal\nsignal.pause()\n",
    "waits for a lock it holds": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()\n",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n"
    "os.kill(0, signal.SIGSTOP)\nwhile True: pass\n",
    "never answers": "import sys\ndef f(x):\n    import os\n    os.read(os.pipe()[0], 1)\n",
    "takes no end at exit": "import atexit, time\natexit.register(time.sleep, 10 ** 6)\nraise SystemExit(0)\n",
    "converts a huge integer": """
import sys
sys.set_int_max_str_digits(0)
def f(x):
    return len(str(7 ** (10 ** 8)))
""",
    "has a __del__ that loops": """
class Loop:
    def __del__(self):
        while True:
            pass
def f(x):
    Loop()
    return x + 1
""",
    "returns an object whose str loops": """
class Loop:
    def __bool__(self):
        while True:
            pass
    __len__ = __iter__ = __repr__ = __str__ = __eq__ = lambda *_: Loop().__bool__()
def f(x):
    raise ValueError(Loop())
""",
}

EXITS = {
    "calls sys.exit(0) at the top": "import sys\nsys.exit(0)\n",
    "calls sys.exit(0) in the call": "import sys\ndef f(x):\n    sys.exit(0)\n",
    "calls exit()": "exit()\n",
    "calls os._exit(0) at the top": "import os\nos._exit(0)\n",
    "calls os._exit(0) in the call": "import os\ndef f(x):\n    os._exit(0)\n",
    "raises SystemExit in the call": "def f(x):\n    raise SystemExit\n",
    "raises KeyboardInterrupt in the call": "def f(x):\n    raise KeyboardInterrupt\n",
    "raises GeneratorExit in the call": "def f(x):\n    raise GeneratorExit\n",
    "raises StopIteration in the call": "def f(x):\n    raise StopIteration\n",
    "raises AssertionError in the call": "def f(x):\n    raise AssertionError\n",
    "raises a BaseException of its own": "class Passed(BaseException):\n    pass\ndef f(x):\n    raise Passed\n",
    "raises what cannot be shown": """
class Hidden(Exception):
    def __str__(self):
        raise SystemExit(0)
    __repr__ = __str__
    __class__ = property(lambda self: 1 / 0)
def f(x):
    raise Hidden
""",
    "raises a class that pretends to be built in": """
class AssertionError(BaseException):
    __module__ = "builtins"
AssertionError.__qualname__ = AssertionError.__name__ = "StopIteration"
def f(x):
    raise AssertionError
""",
    "exits in a thread": """
import os, threading
def f(x):
    threading.Thread(target=os._exit, args=(0,)).start()
    while True:
        pass
""",
    "exits in __del__": "import os\nclass Ending:\n    def __del__(self):\n"
    "        os._exit(0)\ndef f(x):\n    Ending()\n",
    "aborts": "import os\ndef f(x):\n    os.abort()\n",
    "kills itself": "import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
    "kills its group": "import os, signal\ndef f(x):\n"
    "    os.killpg(0, signal.SIGTERM)\n    os.kill(0, signal.SIGKILL)\n",
    "reads address 0": "import ctypes\ndef f(x):\n    return ctypes.string_at(0)\n",
    "becomes /bin/true": "import os\nos.execv('/bin/true', ['true'])\n",
    "becomes /bin/true in the call": "import os\ndef f(x):\n    os.execv('/bin/true', ['true'])\n",
    "exits with success at exit": "import atexit, os\natexit.register(os._exit, 0)\n",
    "recurses without a limit": """
import sys
sys.setrecursionlimit(10 ** 9)
def f(x):
    return f(x + 1)
""",
    "recurses in C": """
import sys
sys.setrecursionlimit(10 ** 9)
value = []
for _ in range(10 ** 6):
    value = [value]
def f(x):
    return repr(value)
""",
    "overflows the stack": """
import sys, threading
sys.setrecursionlimit(10 ** 9)
class Deep:
    def __getattr__(self, name):
        return getattr(self, name + "a")
def f(x):
    return Deep().a
""",
    "closes all descriptors": "import os\nos.closerange(0, 4096)\n" + RIGHT,
    "closes all descriptors in the call": "import os\ndef f(x):\n    os.closerange(0, 4096)\n    return x + 1\n",
    "interrupts the main thread": "import _thread, time\ndef f(x):\n    _thread.interrupt_main()\n    time.sleep(1)\n",
}

# Its end is not to look like one by the machine, which would leave it without a verdict.
CPU_TIME = {
    "setrlimit": "resource.setrlimit(resource.RLIMIT_CPU, (1, 1))",
    "prlimit": "resource.prlimit(0, resource.RLIMIT_CPU, (1, 1))",
    "prlimit of its number": "resource.prlimit(os.getpid(), resource.RLIMIT_CPU, (1, 1))",
    "the old call": """
limits = (ctypes.c_uint64 * 2)(1, 1)
if ctypes.CDLL(None).syscall({"x86_64": 160}.get(os.uname().machine, 164), resource.RLIMIT_CPU, limits):
    raise OSError
""",
    "limits far up in memory": """
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
at = libc.mmap(ctypes.c_void_p(1 << 32), ctypes.c_size_t(4096), 3, 0x32, -1, ctypes.c_size_t(0))
(ctypes.c_uint64 * 2).from_address(at)[:] = (1, 1)
if libc.prlimit(0, resource.RLIMIT_CPU, ctypes.c_void_p(at), None):
    raise OSError
""",
}

MALFORMED = {
    "has too many parentheses": "(" * 100_000 + ")" * 100_000 + "\n" + RIGHT,
    "has too many signs": "x = " + "-" * 1_000_000 + "1\n" + RIGHT,
    "has too many nots": "x = " + "not " * 300_000 + "1\n" + RIGHT,
    "is nested too deeply": "".join(" " * i + "if 1:\n" for i in range(200)) + " " * 200 + "pass\n" + RIGHT,
    "chains attributes without end": "x = a" + ".a" * 300_000 + "\n" + RIGHT,
    "holds null bytes": "x = '\0'\n" + RIGHT,
    "holds lone surrogates": "x = '\ud800'\n" + RIGHT,
    "claims an unknown encoding": "# coding: nonsense\n" + WRONG,
    "claims UTF-7": "# coding: utf-7\n+AGEAYg-\n" + WRONG,
    "is 1 MB of code": "x = 1\n" * 170_000 + WRONG,
    "is one line of 30 MB": "x = '" + "a" * 30_000_000 + "'\n" + WRONG,
    "is larger than what can be sent": "x = '" + "a" * 70_000_000 + "'\n" + WRONG,
    "is a fence that never opens": "`" * 200_000,
    "is a fence with an endless language": "```" + "a" * 200_000,
    "is thousands of fences": "```\n" * 50_000,
    "is thousands of blocks": "```python\nx = 1\n```\n" * 20_000,
    "is white space": " \t\n" * 100_000,
    "multiplies constants": "x = 'a' * 10 ** 10\n" + RIGHT,
    "shifts constants": "x = 1 << (1 << 40)\n" + RIGHT,
    "is a byte order mark alone": "\ufeff",
    "is no Python": "I am sorry, I cannot help with that.",
    "defines nothing": "pass",
    "defines it as None": "f = None",
    "has a form feed and tabs": "\x0cdef f(x):\n\tif x:\n        return x + 1\n",
}
