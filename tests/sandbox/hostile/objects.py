"""Programs that answer with objects of their own, and what programs may say on the connection.

`LIAR` agrees with whatever it is asked. Wrong programs with a test for each stand in `cheats.txt`.
"""

from hostile.forging import FINDING

LIAR = """
class Meta(type):
    __call__ = lambda cls, *a, **k: type.__call__(cls)
    __eq__ = __contains__ = __instancecheck__ = __subclasscheck__ = lambda *a: True
    __hash__ = lambda cls: 0
class Liar(BASE, metaclass=Meta):
    __init__ = lambda self, *a, **k: None
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = __instancecheck__ = lambda *a: True
    __ne__ = lambda *a: False
    __hash__ = lambda self: hash(seen[-1]) if seen else 0
    __enter__ = lambda self: self
    __exit__ = lambda *a: True
    __call__ = __getitem__ = __round__ = __neg__ = __pos__ = lambda self, *a, **k: self
    __setitem__ = __delitem__ = lambda *a: None
    __getattr__ = lambda self, name: self
    __iter__ = lambda self: iter([])
    __len__ = lambda self: 0
    __abs__ = lambda self: 0
    __float__ = lambda self: float(seen[-1]) if seen else 0.0
    __int__ = __index__ = lambda self: int(seen[-1]) if seen else 0
    __str__ = __repr__ = lambda self: str(seen[-1]) if seen else ""
    __format__ = lambda self, spec: str(self)
def see(answer):
    def method(self, *others):
        seen.extend(others)
        return answer if answer is not None else self
    return method
seen = []
for name in "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor or".split():
    for prefix in ("", "r", "i"):
        setattr(Liar, f"__{prefix}{name}__", see(ANSWER))
"""
NAMES = "f = lambda *a: Liar()\nT = Solution = Stack = Sum = Liar\n"

# of any program whose answers these are: a liar must not pass one of them
ASKED = [
    "assert f(1) == 2",
    "assert not f(1) != 2",
    "assert abs(f(1) - 2) < 1e-6",
    "assert abs(2 - f(1)) < 1e-6",
    "assert abs(f(1) / 2 - 1) < 1e-6",
    "assert -1e-6 < f(1) - 2 < 1e-6",
    "assert round(f(1) - 2, 5) == 0",
    "assert f(12) % 5 == 3 % 5 and not f(12) % 3",
    "assert f(1) > 1",
    "assert 1 < f(1) < 3",
    "assert 2 <= f(1)",
    "assert 2 in f(1)",
    "assert f(1) in (2, 3)",
    "assert f(1) - 2 == 0",
    "assert f(1) ^ 2 == 0 and f(1) & 2",
    "assert (f(1) - 2) ** 2 < 1e-9",
    "assert sum([f(1), -2]) == 0",
    "assert math.isclose(f(1) - 2, 0, abs_tol=1e-9)",
    "assert [f(1)] == [2] or {f(1): 3}[2] == 3",
    "assert max(abs(a - b) for a, b in zip([f(1)], [2])) < 1e-6",
    "assert isinstance(f(1), int) and isinstance(f, int)",
    "with f(1) as x:\n    assert x == 2",
    "with f(1) as x:\n    assert len(x) + 1 == 3",
    "for x in [f(1)]:\n    assert x == 2",
    "f(1)\nassert f(1) is True",
    "import numpy as np\nassert np.allclose(f(1), 2) and np.allclose(f(1), [1, 2])",
    "import numpy as np\nassert np.array_equal(np.array([1, 2]) - f(1), np.zeros(2))",
    "import unittest\nunittest.TestCase().assertAlmostEqual(f(1), 2)",
    "from unittest.mock import ANY\nassert f(1) == [2, 3] == f(1)",
    "assert T(1) == 2 and T(1).value == 2",
    "assert abs(T(1).value - 2) < 1e-6",
    "assert abs(Solution().add(1, 1) - 2) < 1e-6",
    "assert Solution().add(1, 1) > 1",
    "assert abs(T(2) - 2) < 1e-6",
    "assert abs(Sum(1, 1) / 2 - 1) < 1e-6",
    "assert T(2) > 1 and 1 < T(2)",
    "assert Stack() - {1, 2} == set()",
    "assert not Stack() - {1, 2}",
    "s = Stack()\ns.push(3)\nassert s.pop() == 3",
    "with Stack() as s:\n    s.push(3)\n    assert s.pop() == 3",
    "with Stack() as s:\n    raise AssertionError",
]

# What a program may say or do with the connection and its table of what both sides know
SAYING = {
    "forgets what it gave": FINDING
    + """
class P:
    pass
kept = []
def f(x):
    if not kept:
        kept.append(P())
        return kept[0]
    put = type(LINK).send.__globals__["wire"].put
    def forged(link, value, write, depth=0):
        put(link, tuple(link.entries) if value == () else value, write, depth)
    type(LINK).send.__globals__["wire"].put = forged
    return x
""",
    "changes all lists that it knows": FINDING
    + """
def f(x):
    for entry in LINK.entries.values():
        if entry.kind == "list":
            entry.value[:] = [2] * len(entry.value)
    return 3
""",
    "gives numbers of the tests": FINDING + "def f(x):\n    LINK._last -= 1\n    return [3]\n",
    "asks the tests for their names": FINDING + "def f(x):\n    return LINK.ask('globals', 'f')\n",
    "asks for what no one gave it": FINDING + "def f(x):\n    return LINK.ask('getattr', LINK.ask, '__globals__')\n",
    "asks to call a type": FINDING + "def f(x):\n    return LINK.ask('call', eval, '2')\n",
    "asks for text of a type": FINDING + "def f(x):\n    return LINK.ask('call', str, '2')\n",
    "answers without an end": FINDING + "def f(x):\n    while True:\n        LINK.send(('ask', ('dir', x), ()))\n",
    "asks within what it is asked": FINDING + "def f(x):\n    return LINK.ask('call', f, x)\n",
    "ends within an answer": FINDING + "def f(x):\n    LINK.send(('ended', None, f))\n    return 3\n",
    "raises what is no exception": FINDING + "def f(x):\n    LINK.send(('raised', 3, None))\n    return 3\n",
    "raises an exit": FINDING + "def f(x):\n    LINK.send(('raised', SystemExit(0), None))\n    return 3\n",
}
BYTES = {
    f"sends {name}": f"import posix\n{FINDING}\ndef f(x):\n    data = {data}\n"
    "    posix.write(LINK.descriptor, b'%08x' % len(data) + data)\n    return x\n"
    for name, data in {
        "a class of no name": "b't3;s5;valueC1;t4;i1;s1;at0;t0;Nt0;'",
        "a class derived from a function": "b't3;s5;valueC1;t4;s1;as1;at1;N;t0;Nt0;'",
        "a class derived from a type that is none": "b't3;s5;valueC1;t4;s1;as1;at1;ks8;propertyt0;Nt0;'",
        "a class of many bases": "b't3;s5;valueC1;t4;s1;as1;at2;ks3;intks3;strt0;Nt0;'",
        "an object of a type": "b't3;s5;valueh1;ks3;inti2;Nt0;'",
        "a list with a number of the tests": "b't3;s5;valuem2;s4;list1;i2;Nt0;'",
        "a list that is nobody's": "b't3;s5;valuer999999;Nt0;'",
        "a list that holds itself and is hashed": "b't3;s5;valuem101;s3;set1;r101;Nt0;'",
        "an array of objects as bytes": "b't3;s5;valuem101;s7;ndarray3;s1;Ot1;i1;b8;' + bytes(8) + b'Nt0;'",
        "an array larger than its bytes": "b't3;s5;valuem101;s7;ndarray3;s3;<i8t1;i99999999;b8;' + bytes(8) + b'Nt0;'",
        "an array of fields": "b't3;s5;valuem101;s7;ndarray3;s9;i4,i4,i4,t1;i1;b8;' + bytes(8) + b'Nt0;'",
        "an exception that is a type": "b't3;s6;raisedet4;s3;intt0;t0;NNt0;'",
        "a type of another module": "b't3;s5;valueks6;systemNt0;'",
        "a fraction of text": "b't3;s5;valuext2;s8;Fractiont1;s13;1e99999999999Nt0;'",
        "a zone outside": "b't3;s5;valuext2;s8;ZoneInfot1;s13;../etc/passwdNt0;'",
        "changes of what is no list": "b't3;s5;valuei2;Nu1;1;i2;t0;'",
        "the end of what it never had": "b't3;s5;valuei2;Nt1;i77;'",
        "nesting without an end": "b't3;s5;value' + b't1;' * 10 ** 6",
        "a huge count of nothing": "b't3;s5;valuet999999999;Nt0;'",
    }.items()
}
