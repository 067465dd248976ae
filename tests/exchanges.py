"""Whole visits by the ledger: its deliveries and what is committed after them, in one call."""

from snake_jax.nodes import ledger, places


def visit_client_server(network, sizes, visit, node, trained, *, cached, returns=True, held=None):
    """A visit of the node of a number, through the server."""
    node = places.node(node)
    network, down = ledger.deliveries_from_server(
        network, sizes, visit, node, trained, cached=cached, held=held
    )
    if not returns:
        return network, down
    network, up = ledger.commit_to_server(network, sizes, visit, node, trained)
    return network, down + up


def visit_peer_to_peer(network, sizes, visit, node, trained, *, cached, returns=True, held=None):
    """A visit of the node of a number, which gets the model from the previous holder."""
    node = places.node(node)
    network, sent = ledger.deliveries_from_holder(
        network, sizes, visit, node, cached=cached, held=held
    )
    if returns:
        network = ledger.commit_at_holder(network, node, trained)
    return network, sent


def visit_chain(network, sizes, visit, segments, *, cached):
    """A visit in which several nodes hold and train a segment each."""
    network, sent = ledger.deliveries_along_chain(network, sizes, visit, segments, cached=cached)
    return ledger.commit_along_chain(network, segments), sent
