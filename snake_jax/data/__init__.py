"""Node data: images and text, how they lie on the nodes, and how unlike the nodes are."""
