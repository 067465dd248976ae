"""Seconds of a visit in which node, link and server work at the same time: Accelerated FL's point.

Where both sides of a cut have a loss of their own no gradient comes back, so the node goes on with
its next batch while the last one's activations are under way and the server trains on those before
(Han et al., "Accelerating Federated Learning with Split Learning on Locally Generated Losses",
2021).
The batches of a visit are alike, so this is a line of three stages. A batch takes c seconds at the
node, u on the link and s at the server, and a message is under way for l more. Of n batches

    the node has sent the last after    c + u + (n - 1) max(c, u)
    the server is done with it after    c + u + l + s + (n - 1) max(c, u, s)

from the start of the first: each stage is busy with one batch at a time, and the slowest sets the
pace. Before that the node gets its layers, in d seconds; once it has sent its last batch it hands
them in, in h. The visit is over when both are done:

    d + max(c + u + (n - 1) max(c, u) + h,  c + u + l + s + (n - 1) max(c, u, s))
"""

from typing import NamedTuple


class StageSeconds(NamedTuple):
    """Seconds of all batches of a visit together, stage by stage, and around them.

    Attributes:
      batches: how many; at least one.
      node_s: of computing at the node.
      link_s: of sending activations and labels, without latencies.
      latency_s: that one message is under way beside that.
      server_s: of computing at the server.
      before_s: until the node has its layers.
      after_s: of handing them in.
    """

    batches: int
    node_s: float
    link_s: float
    latency_s: float
    server_s: float
    before_s: float
    after_s: float


def seconds(stages: StageSeconds) -> tuple[float, float]:
    """How long the visit takes, and how long its node is busy in it: what is left it waits."""
    rest = stages.batches - 1
    node_s = stages.node_s / stages.batches
    link_s = stages.link_s / stages.batches
    server_s = stages.server_s / stages.batches
    first_s = node_s + link_s

    # The node computes or sends without a pause until its last batch is away.
    sent_s = first_s + rest * max(node_s, link_s)
    node_done_s = sent_s + stages.after_s
    pace_s = max(node_s, link_s, server_s)
    server_done_s = first_s + stages.latency_s + server_s + rest * pace_s
    busy_s = stages.before_s + node_done_s
    return stages.before_s + max(node_done_s, server_done_s), busy_s
