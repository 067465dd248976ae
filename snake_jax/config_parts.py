"""Parts of a run's configuration that belong together: privacy, distillation, node management.

`snake_jax.config.RunConfig` is made of these and of its own fields; flags, files and `--help` know
no difference.
"""

import dataclasses

from snake_jax.field_rules import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Differential privacy of the nodes' examples (`snake_jax.training.privacy`)."""

    dp_clip: float = option(
        0.0, "differential privacy: greatest norm of an example's gradient; 0: off", low=0
    )
    dp_noise: float = option(
        0.0, "differential privacy: noise multiplier, the noise's deviation over dp_clip", low=0
    )
    dp_delta: float = option(
        1e-5, "differential privacy: the delta that epsilon is told for", above=0, high=0.5
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings of single methods, and of how all are compared."""

    evaluate_nodes: float = option(
        0.0,
        "share of each node's own examples that it holds out, and the model is scored on beside "
        "the test data; 0: none",
        low=0,
        high=0.5,
    )

    nodes_per_round: int = option(0, "averaging methods: nodes sampled in a round; 0: all", low=0)
    server_momentum: float = option(0.0, "fedavg: momentum of the server's update", low=0, high=1)
    server_optimizer: str = option(
        "sgd",
        "fedavg: what the server does with the nodes' mean change; sgd at rate 1 takes their mean",
        choices=("sgd", "adagrad", "adam", "yogi"),
    )
    server_learning_rate: float = option(
        1.0, "fedavg: of the server's step; 0.001 to 0.1 suits the adaptive ones", above=0
    )
    server_tau: float = option(
        1e-3, "fedavg: adaptive server optimizers add it to the root of v", above=0
    )
    proximal: float = option(
        0.0, "FedProx: weight of mu/2 |w - received w|^2 in the nodes' loss; 0: off", low=0
    )

    full_rounds: int = option(
        1, "fedpart: rounds of a cycle, its first, in which everything trains", low=0
    )
    rounds_per_layer: int = option(
        2,
        "fedpart: rounds of a cycle in which a layer trains alone; progressive: rounds of a stage",
        low=1,
    )
    snakes: int = option(
        1, "snake: so many train disjoint parts of the layers at the same time", low=1
    )
    periods: int = option(
        1,
        "badam, lisa: visits that share the passes over the data, so that layers change within one",
        low=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """Who is whose neighbour, and how links fade (`snake_jax.nodes.topology`, `links`)."""

    topology: str = option(
        "complete",
        "from node to node: who sends to whom: complete, ring, grid, random (see neighbours) or "
        "file:PATH, JSON with edges",
    )
    neighbours: int = option(3, "topology=random: neighbours of a node, in the mean", low=2)
    fading: str = option(
        "none",
        "clock: rates of links to and from nodes change from turn to turn (rayleigh) or do not",
        choices=("none", "rayleigh"),
    )
    fading_snr_db: float = option(
        10.0, "fading: signal-to-noise ratio at the mean gain, in decibels", low=-20, high=60
    )
    fading_memory: float = option(
        0.9, "fading: how much of a turn's amplitude is left in the next", low=0, high=1
    )
    walk: str = option(
        "permutation",
        "random_walking_snakes: heads are all nodes in drawn order, or a random walk over the "
        "topology, to any neighbour alike (uniform) or so that all nodes are as often head "
        "(metropolis)",
        choices=("permutation", "uniform", "metropolis"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StopConfig:
    """Thresholds at which a visit or a run is good enough (`snake_jax.runs.stops`)."""

    visit_loss: float = option(
        0.0, "a visit ends with the epoch whose mean training loss is at most this; 0: off", low=0
    )
    stop_loss: float = option(0.0, "the run ends once the test loss is at most this; 0: off", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What keeps a node from forgetting what the others taught (`snake_jax.runs.distilling`)."""

    distill: str = option(
        "auto",
        "distillation from the model as received; auto: on where the nodes' labels diverge beyond "
        "chance",
        choices=("off", "on", "auto"),
    )
    distill_measure: str = option(
        "js",
        "divergence of label distributions: Jensen-Shannon distance or Kullback-Leibler",
        choices=("js", "kl"),
    )
    distill_level: float = option(
        0.01,
        "auto: chance that distillation is turned on for nodes whose data is dealt out at random",
        low=0.001,
        high=0.5,
    )
    distill_threshold: float = option(
        0.0,
        "auto also asks that the divergence is so far above that of a random deal, in js a "
        "distance up to 1, in kl nats; 0: beyond chance is enough",
        low=0,
    )
    distill_temperature: float = option(2.0, "softmax temperature of teacher and student", above=0)
    distill_weight: float = option(0.5, "weight of the distillation loss beside the task's", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What becomes of data that is not sound (`snake_jax.data.node_quality`)."""

    outliers: float = option(
        0.0,
        "share of the training examples to drop as outliers, by an isolation forest or, with "
        "clusters, by the distance from them",
        low=0,
        high=0.5,
    )
    clusters: int = option(
        0,
        "groups of alike examples that each node finds in its own data; 0: none are sought",
        low=0,
        high=1000,
    )
    max_dropped: float = option(
        0.0,
        "admit nodes of whose data no more than this share was dropped as unsound; 0: all",
        low=0,
        high=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """Node management: whose updates are taken, who may serve, who comes and who goes."""

    max_update_norm: float = option(
        0.0,
        "refuse an update whose trained layers moved farther than this, as an L2 norm; the visit "
        "is lost; 0: no bound",
        low=0,
    )

    # Who takes a visit, beside `assign`.
    rates: str = option(
        "declared",
        "assign is made from what nodes are stated to compute, or anew before each cycle from what "
        "they were measured to",
        choices=("declared", "measured"),
    )
    stand_in: str = option(
        "soonest",
        "who takes over, of idle nodes that are there and can hold the visit: the one that is "
        "soonest done by the clock's figures (compute and link), or the next in turn",
        choices=("soonest", "next"),
    )

    follow_clock: bool = option(
        False,
        "the clock decides who trains: nodes whose window is closed or that dropped are skipped, a "
        "visit that its node leaves goes on elsewhere, and assign weighs windows",
    )

    # What the clock has go wrong.
    straggler_rate: float = option(
        0.0, "clock: chance that a visit finds its node slowed down", low=0, high=1
    )
    straggler_slowdown: float = option(
        4.0, "clock: how many times slower a straggler computes", low=1
    )
    drop_rate_per_hour: float = option(
        0.0, "clock: drops of a node in an hour, in the mean", low=0, high=3600
    )
    rejoin_s: float = option(
        300.0, "clock: mean seconds until a dropped node is back", low=0, high=1e7
    )

    # Who is admitted.
    min_examples: int = option(0, "admit nodes that hold so many examples", low=0)
    min_flops_per_s: float = option(
        0.0, "admit nodes that compute so fast, as node_file says", low=0
    )
    min_memory_bytes: float = option(
        0.0, "admit nodes with so much memory, as node_file says", low=0
    )
    share_labels: bool = option(
        False, "nodes consent to tell how many examples of each label they hold"
    )
    max_label_divergence: float = option(
        0.0,
        "admit nodes whose labels are no farther from all nodes', by distill_measure; 0: all",
        low=0,
    )

    # Who comes and goes. What depends on how training went is decided after a visit is merged.
    leave: str = option(
        "", "nodes that leave, as NODE@VISIT, comma-separated: 2@5 is node 2 from visit 5 on"
    )
    join: str = option(
        "", "nodes that join, as NODE@VISIT; one that never left before is not there until then"
    )
    leave_epochs: int = option(
        0, "a node leaves once it trained so many epochs, visit by visit; 0: stays", low=0
    )
    leave_loss: float = option(
        0.0, "a node leaves once the mean training loss of its visit is this low; 0: stays", low=0
    )
    leave_gain: float = option(
        0.0,
        "a node leaves once a visit lowers its loss, from its visit before, by less than this "
        "share; 0: stays",
        low=0,
        high=1,
    )
    leave_lost: int = option(
        0, "a node leaves once so many of its visits were lost or refused; 0: stays", low=0
    )
