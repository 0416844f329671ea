"""Metrics: what an administrator watches, in the words of Prometheus.

Everything is read when it is asked for; nothing is kept here. The offload counters of a LUN begin anew when it is exported anew, which is what
a counter may do. docs/rest.md lists the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from playhead.appliance import Appliance
from playhead.errors import PlayheadError
from playhead.point import parse_time_ns
from playhead.resources import Copy, Group

CONTENT_TYPE = CONTENT_TYPE_LATEST


def expose(appliance: Appliance) -> bytes:
    """The page."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ApplianceCollector(appliance))
    return generate_latest(registry)


class ApplianceCollector(Collector):
    """One look at the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def describe(self) -> list[Metric]:
        """Nothing ahead: registering must not take a look."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._service()
        yield from self._groups()
        yield from self._splitters()
        yield from self._copies()
        yield from self._front_ends()
        yield from self._traffic()
        yield from self._offloads()

    def _service(self) -> Iterator[Metric]:
        service = self._appliance.service()
        info = GaugeMetricFamily("playhead_info", "The running service; always 1", labels=["version"])
        info.add_metric([service.version], 1)
        yield info
        yield GaugeMetricFamily("playhead_store_free_bytes", "Free on the store's disk", service.store_free_bytes)
        yield GaugeMetricFamily("playhead_store_size_bytes", "Size of the store's disk", service.store_size_bytes)

    def _groups(self) -> Iterator[Metric]:
        groups = [group.resource() for group in self._appliance.groups()]
        serving = [group for group in groups if group.state == "serving" and group.window]
        gauges = (
            ("up", "1: in service, 0: failed", groups, lambda g: g.state == "serving"),
            (
                "alert",
                "1: there is something an administrator should know",
                groups,
                lambda g: bool(g.alert or g.reason),
            ),
            ("head_lsn", "Position of the newest record: bytes ever journaled", serving, lambda g: g.window.head.lsn),
            ("edge_lsn", "Position of the oldest point that can be restored", serving, lambda g: g.window.edge.lsn),
            ("window_seconds", "How far back the window reaches", serving, _window_seconds),
            ("window_bytes", "Journal in the window", serving, lambda g: g.window.head.lsn - g.window.edge.lsn),
            ("journal_bytes", "Journal on disk", serving, lambda g: g.journal_bytes),
            ("index_bytes", "Memory of the index", serving, lambda g: g.index_bytes),
            ("lag_bytes", "Journal that a power loss could take: not yet flushed", serving, lambda g: g.lag_bytes),
            ("free_bytes", "Free on the journal's disk", serving, lambda g: g.free_bytes),
            ("volumes", "Volumes", serving, lambda g: len(g.volumes)),
            ("images", "Open images", serving, lambda g: len(g.images)),
        )
        for name, text, of, value in gauges:
            gauge = GaugeMetricFamily(f"playhead_group_{name}", text, labels=["group"])
            for group in of:
                gauge.add_metric([group.name], value(group))
            yield gauge
        written = CounterMetricFamily("playhead_journal_written_bytes", "Written to the journal", labels=["group"])
        flushes = CounterMetricFamily("playhead_journal_flushes", "Flushes that hosts asked for", labels=["group"])
        syncs = CounterMetricFamily("playhead_journal_syncs", "Syncs of the medium", labels=["group"])
        for served in self._appliance.groups():
            try:
                journal = served.journal()
            except PlayheadError:
                continue
            written.add_metric([journal.group], journal.bytes_written)
            flushes.add_metric([journal.group], journal.flushes)
            syncs.add_metric([journal.group], journal.syncs)
        yield from (written, flushes, syncs)

    def _splitters(self) -> Iterator[Metric]:
        labels = ["volume", "kind"]
        state = GaugeMetricFamily("playhead_splitter_state", "1 for the state it is in", labels=[*labels, "state"])
        lag_bytes = GaugeMetricFamily(
            "playhead_splitter_lag_bytes", "Production that may differ from the volume", labels=labels
        )
        lag_seconds = GaugeMetricFamily(
            "playhead_splitter_lag_seconds", "How long production may have differed; 0: it does not", labels=labels
        )
        for volume in self._appliance.volumes():
            splitter = volume.splitter
            if splitter is None:
                continue
            values = [volume.path, splitter.kind]
            state.add_metric([*values, splitter.state], 1)
            # What a production that is lost holds, nobody knows.
            if splitter.state != "production-lost":
                lag_bytes.add_metric(values, splitter.lag_bytes)
                lag_seconds.add_metric(values, splitter.lag_s or 0)
        yield from (state, lag_bytes, lag_seconds)

    def _copies(self) -> Iterator[Metric]:
        copies = self._appliance.copies()
        gauges: tuple[tuple[str, str, Callable[[Copy], float | None]], ...] = (
            ("lag_bytes", "Journal that the copy does not have durably", lambda c: c.lag_bytes),
            ("lag_seconds", "Age of the oldest record that the copy does not have durably", lambda c: c.lag_s),
            ("left_bytes", "Of a synchronisation: blocks that may still differ", lambda c: c.left_bytes),
            ("consistent", "1: it holds the group as of one point", lambda c: c.consistent),
            ("journal_bytes", "Journal on the copy's disk", lambda c: c.journal_bytes),
            ("free_bytes", "Free on the copy's disk", lambda c: c.free_bytes),
            ("alert", "1: there is something an administrator should know", lambda c: bool(c.alert)),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"playhead_copy_{name}", text, labels=["group", "copy"])
            for copy in copies:
                number = value(copy)
                if number is not None:
                    gauge.add_metric([copy.group, copy.name], number)
            yield gauge
        state = GaugeMetricFamily("playhead_copy_state", "1 for the state it is in", labels=["group", "copy", "state"])
        for copy in copies:
            state.add_metric([copy.group, copy.name, copy.state], 1)
        yield state
        scratch = GaugeMetricFamily(
            "playhead_image_scratch_bytes",
            "Taken on a copy's disk by what was written to an image of it",
            labels=["group", "image"],
        )
        for image in self._appliance.images():
            if image.scratch_bytes is not None:
                scratch.add_metric([image.group, image.name], image.scratch_bytes)
        yield scratch

    def _front_ends(self) -> Iterator[Metric]:
        sessions = GaugeMetricFamily(
            "playhead_sessions",
            "iSCSI sessions, NBD connections and block devices of this host",
            labels=["protocol", "on"],
        )
        found = Counter((session.protocol, session.name) for session in self._appliance.sessions())
        for (protocol, name), count in sorted(found.items()):
            sessions.add_metric([protocol, name], count)
        yield sessions
        jobs = GaugeMetricFamily("playhead_jobs_running", "Long work under way", labels=["kind"])
        for kind, count in Counter(j.kind for j in self._appliance.jobs.list() if j.state == "running").items():
            jobs.add_metric([kind], count)
        yield jobs

    def _traffic(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "playhead_iscsi_authentication_failures",
            "Logins that failed for lack of proof",
            self._appliance.exports.authentication_failures(),
        )
        read = CounterMetricFamily("playhead_lun_read_bytes", "Read over iSCSI", labels=["lun"])
        written = CounterMetricFamily("playhead_lun_written_bytes", "Written over iSCSI", labels=["lun"])
        errors = CounterMetricFamily("playhead_lun_errors", "Medium errors hosts were told", labels=["lun", "of"])
        for path, numbers in self._appliance.exports.traffic():
            read.add_metric([path], numbers["read_bytes"])
            written.add_metric([path], numbers["written_bytes"])
            errors.add_metric([path, "read"], numbers["read_errors"])
            errors.add_metric([path, "write"], numbers["write_errors"])
        yield from (read, written, errors)

    def _offloads(self) -> Iterator[Metric]:
        labels = ["lun", "initiator", "offload"]
        served = CounterMetricFamily("playhead_offload_served", "Offloads carried out and recorded", labels=labels)
        rejected = CounterMetricFamily("playhead_offload_rejected", "Offloads refused by policy", labels=labels)
        saved = CounterMetricFamily(
            "playhead_offload_saved_bytes", "Data that did not have to cross the wire", labels=labels
        )
        for count in self._appliance.exports.offload_counts():
            values = [count.lun, count.initiator, count.offload]
            served.add_metric(values, count.served)
            rejected.add_metric(values, count.rejected)
            saved.add_metric(values, count.saved_bytes)
        yield from (served, rejected, saved)


def _window_seconds(group: Group) -> float:
    assert group.window
    edge, head = parse_time_ns(group.window.edge.time), parse_time_ns(group.window.head.time)
    return max(0, (head or 0) - (edge or 0)) / 1e9
