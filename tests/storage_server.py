"""The emulator of Google's storage, with what it leaves out: `python -m tests.storage_server PORT`.

Google names an object's generation with its content. The emulator does not, and tensorstore then
cannot say which generation it means to replace when it writes an object that it has read.
"""

import sys

from gcp_storage_emulator.handlers import objects

_download = objects.download


def download(request, response, storage, *args, **kwargs):
    """As the emulator does, with the generation."""
    _download(request, response, storage, *args, **kwargs)
    if entry := storage.objects.get(request.params["bucket_name"], {}).get(
        request.params["object_id"]
    ):
        response["x-goog-generation"] = entry["generation"]


objects.download = download  # before the server makes its table of addresses

from gcp_storage_emulator.server import create_server  # noqa: E402

if __name__ == "__main__":
    create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="runs").run()
