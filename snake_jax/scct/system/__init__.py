"""SCCT's system: small models over devices and edge, in series with a large one in the cloud."""
