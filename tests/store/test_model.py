"""Any order of calls: the store answers like a plain dict of lists would."""

import tempfile

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from foreword.errors import UnknownPrefix
from foreword.store import PrefixStore
from support.stores import make_prefix

NAMES = ["a/x", "a/y", "b/x"]
PREFIXES = [make_prefix(seed) for seed in range(4)]
names = st.sampled_from(NAMES)
numbers = st.integers(1, 4)
labels = st.sampled_from(["red", "blue"])


class StoreLikeADict(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = PrefixStore(self.folder.name, memory_bytes=3000)
        self.versions: dict[str, dict[int, int]] = {}
        self.counters: dict[str, int] = {}
        self.labels: dict[tuple[str, str], int] = {}

    def teardown(self):
        self.store.close()
        self.folder.cleanup()

    @rule(name=names, which=st.integers(0, 3))
    def put(self, name, which):
        there = self.versions.get(name, {})
        if there and there[max(there)] == which:
            expected = max(there)
        else:
            expected = self.counters[name] = self.counters.get(name, 0) + 1
            self.versions.setdefault(name, {})[expected] = which
        assert self.store.put(name, PREFIXES[which]).number == expected

    @rule(name=names, number=numbers, label=labels)
    def label(self, name, number, label):
        if number in self.versions.get(name, {}):
            self.store.label(f"{name}@{number}", label)
            self.labels[name, label] = number
        else:
            with pytest.raises(UnknownPrefix):
                self.store.label(f"{name}@{number}", label)

    @rule(name=names, number=numbers)
    def delete(self, name, number):
        if number in self.versions.get(name, {}):
            assert self.store.delete(f"{name}@{number}") == (f"{name}@{number}",)
            self._gone(name, number)
        else:
            with pytest.raises(UnknownPrefix):
                self.store.delete(f"{name}@{number}")

    @rule(source=names, destination=names)
    def copy(self, source, destination):
        if self.versions.get(source):
            which = self.versions[source][max(self.versions[source])]
            there = self.versions.get(destination, {})
            if not (there and there[max(there)] == which):
                self.counters[destination] = self.counters.get(destination, 0) + 1
                self.versions.setdefault(destination, {})[self.counters[destination]] = which
            self.store.copy(source, destination)

    @rule()
    def collect_garbage(self):
        self.store.collect_garbage(grace=0)

    @rule(owner=st.sampled_from(["a", "b"]))
    def forget(self, owner):
        self.store.forget(owner)
        for name in [name for name in NAMES if name.startswith(f"{owner}/")]:
            for number in list(self.versions.pop(name, {})):
                self._gone(name, number)
            self.counters.pop(name, None)

    def _gone(self, name, number):
        self.versions.get(name, {}).pop(number, None)
        self.labels = {key: n for key, n in self.labels.items() if (key[0], n) != (name, number)}

    @invariant()
    def answers_are_the_same(self):
        expected = [f"{name}@{max(there)}" for name, there in sorted(self.versions.items()) if there]
        assert [version.reference for version in self.store.list()] == expected
        for name in NAMES:
            there = self.versions.get(name, {})
            for number, which in there.items():
                assert self.store.get(f"{name}@{number}") == PREFIXES[which]
            if not there:
                with pytest.raises(UnknownPrefix):
                    self.store.get(name)
            for label in ("red", "blue"):
                if number := self.labels.get((name, label)):
                    assert self.store.get(f"{name}@{label}") == PREFIXES[there[number]]
                else:
                    with pytest.raises(UnknownPrefix):
                        self.store.get(f"{name}@{label}")

    @invariant()
    def every_file_is_needed_after_collection(self):
        kept = {which for there in self.versions.values() for which in there.values()}
        assert self.store.verify().problems == ()
        assert len(list(self.store._blobs.each())) >= len(kept)


TestStoreLikeADict = StoreLikeADict.TestCase
TestStoreLikeADict.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
