"""Work that is done while its caller goes on, one piece after the other."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Behind:
    """A thread that does what it is given, in order, while the caller goes on.

    At most one piece is under way: who brings the next waits for the one before. What a piece
    raises is raised where the caller next comes, and that piece is done with.
    """

    def __init__(self) -> None:
        """Starts no thread before there is something to do."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="behind")
        self._under_way: Future[None] | None = None

    def do(self, piece: Callable[[], None]) -> None:
        """Has a piece of work done, once the one before is."""
        self.settle()
        self._under_way = self._thread.submit(piece)

    def settle(self) -> None:
        """Waits until all is done."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """Ends the thread once all is done; what is raised in it is not said."""
        self._thread.shutdown()
