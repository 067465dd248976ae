"""One step of training: gradients of the trained layers only, update rules, frozen storage,
meshes.
"""
