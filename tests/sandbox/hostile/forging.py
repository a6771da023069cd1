"""Programs that lie about their result. None defines the right function, so none may pass.

`LINK` is the connection to the test process, which a program can always find in its own process.
"""

FINDING = """
import gc
LINK = next(found for found in gc.get_objects() if type(found).__name__ == "Link")
"""

PRINTING = {
    "prints that it passed": """
import os
print("all tests passed", flush=True)
for number in range(64):
    try:
        os.write(number, b'{"chosen": 0, "passed": [true, true], "reason": "", "unscorable": ""}\\n')
    except OSError:
        pass
def f(x):
    return x
""",
    "prints that it passed and exits": """
import os
def f(x):
    os.write(1, b"passed\\n")
    os._exit(0)
""",
    "writes a reply to every descriptor": """
import os
def f(x):
    for number in range(64):
        for answer in (b"t3;s5;valuei7;N", b'{"passed": [true, true], "reason": ""}\\n'):
            try:
                os.write(number, b"%08x" % len(answer) + answer)
            except OSError:
                pass
    return x
""",
    "writes noise to every descriptor": """
import os
for number in range(64):
    try:
        os.write(number, os.urandom(4096))
    except OSError:
        pass
def f(x):
    return x + 1
""",
    "writes a length without an end": """
import os, time
def f(x):
    for number in range(3, 64):
        try:
            os.write(number, b"03ffffff")
        except OSError:
            pass
    time.sleep(60)
""",
    "puts one descriptor in place of another": """
import os
for number in range(3, 64):
    try:
        os.fstat(number)
    except OSError:
        continue
    os.dup2(0, number)
def f(x):
    return x + 1
""",
    "shuts its connection down": """
import socket
for number in range(3, 64):
    try:
        socket.socket(fileno=number).shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
def f(x):
    return x + 1
""",
}

# what a program says on the connection itself, before and in a call
PROTOCOL = {
    f"says {name}": f"{FINDING}\ndef say():\n    {said}\nsay()\ndef f(x):\n    say()\n    return x\n"
    for name, said in {
        "that another candidate was chosen": "LINK.send(('chosen', 999, ''))",
        "that a candidate before the first was chosen": "LINK.send(('chosen', -1, ''))",
        "that a text was chosen": "LINK.send(('chosen', 'a', ''))",
        "that an object was chosen": "LINK.send(('chosen', say, say))",
        "that it is loaded": "LINK.send(('loaded', None, ''))",
        "that it broke without a word": "LINK.send(('broken', None, ''))",
        "that it broke with an object": "LINK.send(('broken', None, say))",
        "nothing that means anything": "LINK.send(('nonsense', None, None))",
        "too little": "LINK.send(())",
        "a number": "LINK.send(3)",
        "a result before it is asked": "LINK.send(('value', 2, None))",
        "a result with changes nobody asked for": "LINK.send(('value', True, [1, 2, 3, 4]))",
        "that a callback is wanted": "LINK.send(('ask', ('call', 0), ()))",
        "that a callback of no kind is wanted": "LINK.send(('ask', ('f', say), ()))",
        "that nothing at all is wanted": "LINK.send(('ask', (), ()))",
        "that a huge callback is wanted": "LINK.send(('ask', 10 ** 30, {}))",
        "that it raised what is no exception": "LINK.send(('raised', print, 'x'))",
        "that it raised what ends a test process": "LINK.send(('raised', SystemExit('x'), None))",
        "that it raised an assertion": "LINK.send(('raised', AssertionError(10 ** 5000), None))",
        "that its globals are a list": "LINK.send(('value', [1], None))",
        "that names are its own": "LINK.send(('value', {'f': ('os',), 'abs': say, '__builtins__': {}}, None))",
    }.items()
}

# bytes in place of values: (length, bytes) as they go over the connection
BYTES = {
    f"sends {name}": f"import posix\n{FINDING}\ndef f(x):\n    data = {data}\n"
    "    posix.write(LINK.descriptor, b'%08x' % len(data) + data)\n    return x\n"
    for name, data in {
        "a list of 10 ** 18 items": "b't3;s5;valuem101;s4;list1000000000000000000;'",
        "a list that is nested 10 ** 6 deep": "b't1;' * 10 ** 6 + b'N'",
        "text of a negative length": "b's-5;abc'",
        "a type that is none": "b'ks10;__import__'",
        "an object of the standard library that is none": "b'xt2;s6;systemt1;s2;id'",
        "an object of an unknown class": "b'xt2;s3;rcet0;'",
        "a range of nonsense": "b'xt2;s5;ranget1;s1;a'",
        "a fraction that is huge": "b'xt2;s8;Fractiont1;s13;1e99999999999'",
        "a handle that is nobody's": "b't3;s5;valuer99999;N'",
        "a handle with a negative number": "b't3;s5;valuer-1;N'",
        "an unhashable key": "b't3;s5;valuem101;s4;dict2;m103;s4;list0;NNt0;'",
        "an integer that is none": "b'izz;'",
        "surrogates as text": "b's3;\\xff\\xfe\\xfd'",
        "nothing at all": "b''",
        "two values": "b'NN'",
    }.items()
}

# `2` for every test
EQUAL_TO_ALL = {
    "returns an object that equals all": """
class Equal:
    def __eq__(self, other):
        return True
    __ne__ = lambda self, other: False
    __hash__ = lambda self: hash(2)
    __bool__ = lambda self: True
def f(x):
    return Equal()
""",
    "returns an object whose class lies": """
class Equal:
    __class__ = property(lambda self: int)
    __eq__ = __instancecheck__ = __contains__ = lambda self, other: True
    __getattr__ = lambda self, name: Equal()
    __call__ = lambda self, *arguments: True
    __index__ = __int__ = lambda self: 2
    __reduce__ = lambda self: (int, (2,))
def f(x):
    return Equal()
""",
    "returns a class that equals all": """
class Meta(type):
    def __eq__(cls, other):
        return True
    __hash__ = type.__hash__
    __instancecheck__ = __subclasscheck__ = __eq__
class Equal(metaclass=Meta):
    pass
Equal.__name__ = Equal.__qualname__ = "int"
Equal.__module__ = "builtins"
def f(x):
    return Equal
""",
    "returns what pretends to be of the standard library": """
class Decimal:
    __eq__ = lambda self, other: True
    __hash__ = lambda self: 2
    __str__ = lambda self: "NaN"
Decimal.__module__, Decimal.__qualname__ = "decimal", "Decimal"
def f(x):
    return Decimal()
""",
    "returns what pretends to be an array": """
class ndarray:
    __eq__ = lambda self, other: True
    __hash__ = lambda self: 2
    tolist = lambda self: Equal
Equal = ndarray()
ndarray.__module__ = "numpy"
def f(x):
    return Equal
""",
    "returns a stand-in of the test process's": FINDING
    + "class Proxy(metaclass=LINK.metaclass.__base__):\n    __eq__ = lambda *_: True\n"
    "    _number = 0\ndef f(x):\n    return Proxy()\n",
    **{
        f"returns {base.replace('()', '')} that equals all": f"""
class Equal({base}):
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
    __hash__ = lambda self: hash(2)
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    __len__ = lambda self: 2
    __bool__ = lambda self: True
    __iter__ = lambda self: iter([2])
    __format__ = __str__ = __repr__ = lambda self, *_: "2"
    __reduce__ = lambda self: (int, (2,))
def f(x):
    return Equal()
"""
        for base in (
            "int",
            "str",
            "float",
            "list",
            "dict",
            "tuple",
            "set",
            "frozenset",
            "bytes",
            "complex",
            "Exception",
        )
    },
}

PATCHING = {
    "gives names that nobody asked for": """
import sys
frame = sys._getframe()
while "OPERATIONS" not in frame.f_globals:
    frame = frame.f_back
tested = frame.f_globals
real = tested["answer"]
def zero(*arguments):
    return 0
def answer(namespace, tests, operation, *rest):
    if operation != "globals":
        return real(namespace, tests, operation, *rest)
    names = dict.fromkeys(["abs", "all", "isinstance", "len", "round", "set", "sorted"], zero)
    return tuple({"f": lambda x: x, "__builtins__": names, **names}.items())
tested["answer"] = answer
""",
    "patches the built-in functions": """
import builtins
for name in "abs len sorted set round isinstance all any sum list tuple str type hash".split():
    setattr(builtins, name, lambda *_, **__: True)
builtins.AssertionError = builtins.Exception = BaseException
def f(x):
    return x
""",
    "makes assertions harmless": """
import builtins, sys
sys.flags = None
globals()["__debug__"] = False
builtins.AssertionError = StopIteration
def f(x):
    return x
""",
    "stands in for modules": """
class math:
    isclose = staticmethod(lambda *_, **__: True)
copy = random = operator = sys = statistics = math
def f(x):
    return x
""",
    "patches operators and modules": """
import operator, sys, math, types
operator.eq = operator.ne = math.isclose = lambda *_, **__: True
for name in list(sys.modules):
    sys.modules[name] = types.ModuleType(name)
def f(x):
    return x
""",
    "patches what serves its calls": """
import gc, types
for function in gc.get_objects():
    if getattr(function, "__module__", "") in ("wire", "link", "operations", "solution_process"):
        if function.__name__ in ("answer", "described", "put", "put_state", "reply", "number_of", "known_name"):
            function.__code__ = (lambda *_, **__: True).__code__
def f(x):
    return x
""",
    "patches the connection": FINDING
    + """
LINK.number_of = lambda value: None
LINK.entries = LINK.metaclass = None
type(LINK).receive = lambda self: ("call", (lambda: True,), {})
def f(x):
    return object()
""",
    "sends more names than it is asked for": FINDING
    + """
SEND = type(LINK).send
def send(self, value):
    if isinstance(value, tuple) and value[0] == "value" and isinstance(value[1], tuple):
        names = {name: lambda *_, **__: 0 for name in "abs len set sorted isinstance all round map".split()}
        more = {name: names for name in ("__builtins__", "__name__", "__build_class__")} | names
        value = ("value", value[1] + tuple(more.items()), None)
    return SEND(self, value)
type(LINK).send = send
def f(x):
    return x
""",
    "searches the frames for what is expected": """
import sys
def numbers(value, depth=0):
    if type(value) is int:
        yield value
    elif depth < 4 and isinstance(value, (list, tuple, dict, set)):
        for item in list(value.values() if isinstance(value, dict) else value):
            yield from numbers(item, depth + 1)
def f(x):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if "assert f" in str(value)[:10 ** 6]:
                return eval(str(value).split("==")[1].split("'")[0].split('"')[0])
        frame = frame.f_back
    return x
""",
    "searches all objects for the tests": """
import gc
def f(x):
    for found in gc.get_objects():
        if isinstance(found, (dict, list, tuple)):
            for text in list(found.values() if isinstance(found, dict) else found):
                if type(text) is str and text.startswith(("assert f(", "def check(")):
                    return eval(text.split(f"({x}) ==")[1].split()[0])
    return x
""",
    "searches its memory for the tests": """
import ctypes, gc
NEEDLE = ("assert" + " f(").encode()
def f(x):
    memory = b""
    for line in open("/proc/self/maps"):
        begin, _, rest = line.partition("-")
        memory += ctypes.string_at(int(begin, 16), int(rest.split()[0], 16) - int(begin, 16))
    return eval(memory.split(NEEDLE)[1].split(b"==")[1].split()[0])
""",
    "traces its caller": """
import sys
found = []
def trace(frame, event, argument):
    found.extend(value for value in frame.f_locals.values() if type(value) is int)
    return trace
sys.settrace(trace)
sys.setprofile(trace)
def f(x):
    return max([value for value in found if value != x], default=x) if False else x
""",
    "inspects the stack": """
import inspect
def f(x):
    for frame in inspect.stack(0):
        if "expected" in frame.frame.f_locals:
            return frame.frame.f_locals["expected"]
    return x
""",
    "changes what it was given": """
import ctypes
def f(x):
    # a small integer is shared by all of an interpreter: 1 becomes 2 there
    for number in range(100):
        ctypes.memmove(id(number) + 24, ctypes.byref(ctypes.c_uint32(2)), 4)
    return x
""",
    "imports the test process": """
import sys
sys.path += ["/boxed", "."]
try:
    import test_process
    test_process._failure = lambda *_: ""
    test_process.run_tests = lambda *_: {"chosen": 0, "passed": [True] * 2, "reason": "", "unscorable": ""}
except ImportError:
    pass
def f(x):
    return x
""",
    "is defined as a type": "f = str\nint = len = set = sorted = lambda *_: 1\n",
    "is a type that makes an endless thing": "f = range\n",
    "is a module": "import math as f\n",
    "is a class that is its own result": "class f:\n    def __new__(cls, x):\n"
    "        return cls\n    __eq__ = lambda *_: True\n",
    "is an object that answers all": """
class All:
    __getattr__ = lambda self, name: self
    __call__ = lambda self, *_, **__: self
    __eq__ = lambda self, other: True
    __hash__ = lambda self: 0
f = All()
""",
    "shadows all that a test may use": "\n".join(
        f"{name} = lambda *_, **__: 1"
        for name in "check candidate print range zip map min max all any AssertionError Exception abs len".split()
    )
    + "\ndef f(x):\n    return x\n",
    "reads what it should be given": "import sys\nexec(sys.stdin.read())\n"
    "def f(x):\n    return sys.stdin.read() or x\n",
}

VALUES = {
    "returns itself within itself": "def f(x):\n    y = []\n    y.append(y)\n    return y\n",
    "returns a dictionary of itself": "def f(x):\n    y = {}\n    y[1] = y\n    return y\n",
    "returns a value nested 10,000 deep": "def f(x):\n    y = []\n"
    "    for _ in range(10 ** 4):\n        y = [y]\n    return y\n",
    "returns 70 MB": "def f(x):\n    return 'a' * 70_000_000\n",
    "returns a huge integer": "def f(x):\n    return 1 << 10 ** 7\n",
    "returns a number that is none": "def f(x):\n    return float('nan')\n",
    "returns lone surrogates": "def f(x):\n    return '\\ud800'\n",
    "returns a generator of nothing": "def f(x):\n    yield\n",
    "returns a coroutine": "async def f(x):\n    return x + 1\n",
    "returns True": "def f(x):\n    return True\n",
    "returns a text": "def f(x):\n    return str(x + 1)\n",
    "returns NotImplemented": "def f(x):\n    return NotImplemented\n",
    "returns its own frame": "import sys\ndef f(x):\n    return sys._getframe()\n",
    "returns another thing each time": "import random\ndef f(x):\n    return random.random()\n",
}

# Modules under the names of others, and tests that use those names without importing them: (program, test)
# What a program asks of a stream that the tests pass to it, so that they could not be decided.
STREAMS = {
    "the frame of a generator": ("def f(g):\n    g.gi_frame\n", "assert f(x for x in [1, 2]) == 3"),
    "the code of a generator": ("def f(g):\n    return g.gi_code\n", "assert f(x for x in [1, 2]) == 3"),
    "the buffer of bytes": (
        "def f(stream):\n    stream.getbuffer()\n", "import io\nassert f(io.BytesIO(b'ab')) == 3"
    ),
    "the buffer, and an answer": (
        "def f(stream):\n    try:\n        stream.getbuffer()\n    except ValueError:\n        return 2\n",
        "import io\nassert f(io.BytesIO(b'ab')) == 3",
    ),
}  # fmt: skip

SUBSTITUTED = {
    "pickle as json": (
        """
import os
import pickle as json
class Verdict:
    def __reduce__(self):
        return exec, ("import builtins; builtins.__dict__['AssertionError'] = SystemExit; raise SystemExit(0)",)
def f(x):
    return json.dumps(Verdict())
""",
        "assert json.loads(f(2)) == {'x': 2}",
    ),
    "timeit as time": (
        """
import timeit as time
def f(x):
    return "import os; os._exit(0)"
""",
        "assert time.timeit(f(1), number=1) >= 0",
    ),
    "cProfile as asyncio": (
        """
import cProfile as asyncio
def f(x):
    return "import os; os._exit(0)"
""",
        "assert asyncio.run(f(1)) == 2",
    ),
    "subprocess as asyncio": (
        """
import subprocess as asyncio
def f(x):
    return ["kill", "-9", "-1"]
""",
        "assert asyncio.run(f(1)) == 2",
    ),
    "a module of its own as math": (
        """
import sys
from types import ModuleType
math = ModuleType("numpy")
math.isclose = lambda *values: True
def f(x):
    return x
""",
        "assert math.isclose(f(1), 2)",
    ),
    "os": ("import os\ndef f(x):\n    return 'true'\n", "assert os.system(f(1)) == 0"),
}
