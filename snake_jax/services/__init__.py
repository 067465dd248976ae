"""The Service Provider (SP): registers training services, runs them side by side, and ends them.

"Key Enabling Components" of the Snake Learning article, as one process with an HTTP API.
"""
