"""What tells rules and functions of a user's apart: all that they compute with."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fastnc
from fastnc.dynamics.description import described
from fastnc.dynamics.digest import digest_of

MODEL = fastnc.ULPM(3, 4, 5)
RULE = """
class Base:
    def init(self, *factors):
        return {}

    def clipped(self, x):
        return x.clip(-LIMIT, LIMIT)

LIMIT = 1.0
STEPS = [1.0, 0.5]
TABLE = {"W": [1.0, 2.0]}

def halved(x):
    return x * 0.5

def factory(c, rate):
    class Own(Base):
        lr = rate
        power = 1

        @property
        def factor(self):
            return c

        @staticmethod
        def sign():
            return -1.0

        @classmethod
        def name(cls):
            return cls.power

        def update(self, factors, gradients, state, rates, step):
            scale = self.sign() * self.factor * STEPS[0] * self.name()
            return tuple(scale * r * halved(self.clipped(g)) for r, g in zip(rates, gradients))
    return Own
own = factory(2.0, 0.5)()
"""
# What each pair of texts replaces in the rule: code and data of every place that it can come from.
EDITS = {
    "a closure of a method's class": ("factory(2.0, 0.5)", "factory(3.0, 0.5)"),
    "an attribute of the class": ("power = 1", "power = 2"),
    "its step size, which the class has": ("factory(2.0, 0.5)", "factory(2.0, 0.6)"),
    "the code of a method": ("scale * r", "scale / r"),
    "of a property": ("return c\n", "return c + 1\n"),
    "of a static method": ("return -1.0", "return -2.0"),
    "of a class method": ("return cls.power", "return -cls.power"),
    "of a base class": ("x.clip(-LIMIT, LIMIT)", "x.clip(-LIMIT, 2)"),
    "a global number": ("LIMIT = 1.0", "LIMIT = 2.0"),
    "a global list": ("STEPS = [1.0, 0.5]", "STEPS = [2.0, 0.5]"),
    "a helper function": ("return x * 0.5", "return x * 0.25"),
    "a global array": ("[1.0, 0.5]", "__import__('numpy').array([1.5, 0.5])"),
}
OTHER = {
    "what a function reads in a list": (
        "rates = [[1.0], [2.0]]\nown = lambda epoch: rates[0][0]",
        "rates = [[1.0], [3.0]]\nown = lambda epoch: rates[0][0]",
    ),
    "arrays within a closure's list": (
        "import numpy as np\nown = (lambda a: lambda epoch: a[0][0])([np.ones(2)])",
        "import numpy as np\nown = (lambda a: lambda epoch: a[0][0])([np.zeros(2)])",
    ),
    "the middle of a long array": (
        "import numpy as np\na = np.zeros(9999)\nown = lambda epoch: a[5000]",
        "import numpy as np\na = np.zeros(9999)\na[5000] = 1\nown = lambda epoch: a[5000]",
    ),
    "a helper of a helper": (
        "def f(): return 1.0\ndef g(): return f()\ndef own(epoch): return g()",
        "def f(): return 2.0\ndef g(): return f()\ndef own(epoch): return g()",
    ),
    "slots": (
        "class A:\n    __slots__ = ('a',)\n    def __call__(self, epoch): return self.a\n"
        "own = A()\nown.a = 1.0",
        "class A:\n    __slots__ = ('a',)\n    def __call__(self, epoch): return self.a\n"
        "own = A()\nown.a = 2.0",
    ),
    "a text of its own that tells nothing": (
        "class A:\n    a = 1.0\n    def __repr__(self): return 'A()'\nown = A()",
        "class A:\n    a = 2.0\n    def __repr__(self): return 'A()'\nown = A()",
    ),
    "a dataclass's code": (
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    a: int = 1\n"
        "    def __call__(self, epoch): return 1.0\nown = A()",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    a: int = 1\n"
        "    def __call__(self, epoch): return 2.0\nown = A()",
    ),
    "behind a cache": (
        "from functools import cache\n@cache\ndef own(epoch): return 1.0",
        "from functools import cache\n@cache\ndef own(epoch): return 2.0",
    ),
    "behind a decorator": (
        "from contextlib import contextmanager\n@contextmanager\ndef own(epoch): return 1.0",
        "from contextlib import contextmanager\n@contextmanager\ndef own(epoch): return 2.0",
    ),
    "an attribute of a function": (
        "def own(epoch): return own.rate\nown.rate = 1.0",
        "def own(epoch): return own.rate\nown.rate = 2.0",
    ),
    "a generator's seed": (
        "import numpy as np\nrng = np.random.default_rng(1)\nown = lambda epoch: rng.random()",
        "import numpy as np\nrng = np.random.default_rng(2)\nown = lambda epoch: rng.random()",
    ),
    "a set of names": (
        "def made(names): return lambda epoch: len(names)\nown = made({'a', 'b', 'cd', 'efg'})",
        "def made(names): return lambda epoch: len(names)\nown = made({'a', 'b', 'cd', 'e'})",
    ),
    "names within an attribute": (
        "class A:\n    pass\nown = A()\nown.names = {'of': [{'a', 'b', 'cd', 'efg'}]}",
        "class A:\n    pass\nown = A()\nown.names = {'of': [{'a', 'b', 'cd', 'e'}]}",
    ),
    "functions in a set": (
        "rates = {lambda: 1.0, lambda: 2.0}\nown = lambda epoch: sum(r() for r in rates)",
        "rates = {lambda: 1.0, lambda: 3.0}\nown = lambda epoch: sum(r() for r in rates)",
    ),
    "objects in a set": (
        "class A:\n    def __init__(self, a): self.a = a\nown = A({A(1.0), A(2.0)})",
        "class A:\n    def __init__(self, a): self.a = a\nown = A({A(1.0), A(3.0)})",
    ),
    "a frozen dict": (
        "from types import MappingProxyType as M\nd = M({'a': 1})\nown = lambda epoch: d['a']",
        "from types import MappingProxyType as M\nd = M({'a': 2})\nown = lambda epoch: d['a']",
    ),
    "a function of arrays": (
        "import numpy as np\nown = np.frompyfunc(lambda x: x, 1, 1)",
        "import numpy as np\nown = np.frompyfunc(lambda x: 3 * x, 1, 1)",
    ),
    "a memory view": ("own = [memoryview(b'a')]", "own = [memoryview(b'b')]"),
    "a generator's code": (
        "def g():\n    yield 1.0\nvalues = g()\nown = lambda epoch: next(values)",
        "def g():\n    yield 2.0\nvalues = g()\nown = lambda epoch: next(values)",
    ),
    "options of Numba": (
        "import numba\nown = numba.njit(lambda epoch: 1.0)",
        "import numba\nown = numba.njit(fastmath=True)(lambda epoch: 1.0)",
    ),
    "what is not pickled": (
        "class A:\n    def __init__(self, a): self.a = a\n"
        "    def __getstate__(self): return {}\nown = A(1.0)",
        "class A:\n    def __init__(self, a): self.a = a\n"
        "    def __getstate__(self): return {}\nown = A(2.0)",
    ),
    "a generator that a rule holds": (
        "import numpy as np\nclass A:\n    pass\nown = A()\nown.rng = np.random.default_rng(1)",
        "import numpy as np\nclass A:\n    pass\nown = A()\nown.rng = np.random.default_rng(2)",
    ),
    "a metaclass": (
        "class M(type):\n    a = 1\nclass A(metaclass=M):\n    pass\nown = A()",
        "class M(type):\n    a = 2\nclass A(metaclass=M):\n    pass\nown = A()",
    ),
    "a pattern": (
        "import re\np = re.compile('a')\nown = lambda epoch: bool(p.match('a'))",
        "import re\np = re.compile('b')\nown = lambda epoch: bool(p.match('a'))",
    ),
    "a library's function of one name": (
        "from math import exp\nown = lambda epoch: exp(epoch)",
        "from cmath import exp\nown = lambda epoch: exp(epoch)",
    ),
    "which of two parameters": (
        "own = lambda epoch, a=1.0, b=1.0: a - b", "own = lambda epoch, b=1.0, a=1.0: a - b"
    ),
    "a base class's default": (
        "import fastnc\nclass A(fastnc.rules.Schedule):\n    a = 1.0\n"
        "    def __call__(self, epoch): return self.a\nown = A()",
        "import fastnc\nclass A(fastnc.rules.Schedule):\n    a = 2.0\n"
        "    def __call__(self, epoch): return self.a\nown = A()",
    ),
}  # fmt: skip
WRAPPED = """
import functools
class Wrapped:
    def __init__(self, f, k):
        functools.update_wrapper(self, f)
        self.k = k
    def __repr__(self): return "Wrapped"
    def __call__(self, epoch): return self.k * self.__wrapped__(epoch)
def base(epoch): return 0.1
own = Wrapped(base, 1.0)
"""
OTHER |= {
    "an attribute of what wraps": (WRAPPED, WRAPPED.replace("base, 1.0", "base, 2.0")),
    "the code of what wraps": (WRAPPED, WRAPPED.replace("self.k * ", "self.k / ")),
    "what is wrapped": (WRAPPED, WRAPPED.replace("return 0.1", "return 0.2")),
}
PAIRS = {name: (RULE, RULE.replace(*edit)) for name, edit in EDITS.items()} | OTHER


def made(source):
    names = {"__name__": "own_module"}
    exec(source, names)
    return names["own"]


@pytest.mark.parametrize("name", PAIRS)
def test_code_and_data_tell_apart(name):
    first, second = PAIRS[name]
    assert first != second
    assert described(made(first)) == described(made(first))
    assert described(made(first)) != described(made(second))


def test_what_is_not_of_a_function_does_not_change_it():
    """An unrelated global, a line or a comment more: the same rule."""
    for change in ("\n\nunrelated = 2\n", "# A comment.\n", "power = 3\n"):
        assert described(made(change + RULE)) == described(made(RULE))


def test_digests_are_the_same_in_every_process(tmp_path):
    sources = tmp_path / "sources.json"
    sources.write_text(json.dumps([first for first, _ in PAIRS.values()]))
    code = (
        "import json, sys; from fastnc.dynamics.description import described\n"
        "for source in json.load(open(sys.argv[1])):\n"
        "    names = {'__name__': 'own_module'}\n"
        "    exec(source, names)\n"
        "    print(described(names['own']))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code, str(sources)], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(told) == 1
    assert " at 0x" not in (lines := told.pop())
    assert lines == "".join(f"{described(made(first))}\n" for first, _ in PAIRS.values())


def test_other_libraries_leave_the_digest_as_it_is():
    """Torch, once it is imported, has marked the code of every Enum."""
    code = (
        "import enum, sys; from fastnc.dynamics.description import described\n"
        "class E(enum.Enum):\n    A = 1.0\n"
        "class R:\n    rate = E.A\n"
        "before = described(R()); assert 'torch' not in sys.modules; import torch\n"
        "assert described(R()) == before\n"
        "one = torch.compile(lambda x: x + 1.0); print(described(one))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(told) == 1


def test_what_holds_itself_ends():
    held = [1.0]
    held.append(held)
    assert digest_of(held) != digest_of([1.0, [1.0]])
    ring = {type("A", (), {})() for _ in range(20)}
    for one in ring:
        one.ring = ring
    assert digest_of(ring) == digest_of(ring)
    chain = []
    for _ in range(100_000):
        chain = [chain]
    assert digest_of(chain) == digest_of(chain)
    assert digest_of(open) and digest_of(sys.stdout) and digest_of(np)


def test_a_generator_that_drew_is_the_same():
    own = made(OTHER["a generator's seed"][0])
    before = described(own)
    own(1)
    assert described(own) == before


def test_a_factory_of_rules_resumes_with_its_own_alone(tmp_path):
    """A run of the factor 2 went on with that of 3; a sweep's medians were of both."""
    path = tmp_path / "checkpoint.npz"
    options = {"checkpoint": path, "resume": True}
    second = RULE.replace("factory(2.0", "factory(3.0")
    fastnc.descend(MODEL, rule=made(RULE), epochs=5, **options)
    fastnc.descend(MODEL, rule=made(RULE), epochs=6, **options)
    with pytest.raises(ValueError, match=r"`rule` is .*: the code, or what it reads, is an"):
        fastnc.descend(MODEL, rule=made(second), epochs=7, **options)
    runs = fastnc.sweep(MODEL, rules=[made(RULE), made(second)], epochs=5, seeds=range(2))
    assert [len(group) for group in runs.settings().values()] == [2, 2]
    assert all("Own(#" in name for name in runs.settings())


def test_tensors_by_their_numbers():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16):
        one, two = torch.zeros(9, dtype=dtype), torch.zeros(9, dtype=dtype)
        two[3] = 1.0
        assert digest_of([one]) == digest_of([one.clone()])
        assert digest_of([one]) != digest_of([two])
