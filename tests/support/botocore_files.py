"""botocore's descriptions of services, read and listed once a process.

botocore reads them anew for every session. The tests make a session for every set of settings that they invent, and one
session costs more than most tests. What botocore makes of the files stays the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
from botocore.loaders import JSONFileLoader, Loader


@contextmanager
def read_once() -> Iterator[None]:
    """Share the contents of the files, and the lists of the directories, between all sessions."""
    read = cache(partial(JSONFileLoader.load_file, JSONFileLoader()))
    lists: dict[tuple[str, ...], Any] = {}
    list_services = Loader.list_available_services

    def listed(loader: Loader, type_name: str) -> Any:
        key = (type_name, *loader.search_paths)
        if key not in lists:
            lists[key] = list_services(loader, type_name)
        return lists[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", lambda _, path: read(path))
        patch.setattr(Loader, "list_available_services", listed)
        yield
