"""What botocore and pg8000 work out anew each time, worked out once a process.

Lambda makes one session and keeps it. The tests make one for every set of settings that they invent, and that costs
more than most tests. Each of these results depends on its argument alone, so nothing comes out differently.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from types import FunctionType
from typing import Any

import botocore.hooks
import pg8000.native
import pytest
from botocore.hooks import EVENT_ALIASES, EventAliaser
from botocore.loaders import JSONFileLoader, Loader


@contextmanager
def worked_out_once() -> Iterator[None]:
    """Share these results between all sessions."""
    with pytest.MonkeyPatch.context() as patch:
        _read_files(patch)
        _list_services(patch)
        _inspect_handlers(patch)
        _translate_event_names(patch)
        patch.setattr(pg8000.native, "to_statement", lru_cache(1000)(pg8000.native.to_statement))
        yield


def _read_files(patch: pytest.MonkeyPatch) -> None:
    read = cache(partial(JSONFileLoader.load_file, JSONFileLoader()))
    patch.setattr(JSONFileLoader, "load_file", lambda _, path: read(path))


def _list_services(patch: pytest.MonkeyPatch) -> None:
    lists: dict[tuple[str, ...], Any] = {}
    list_services = Loader.list_available_services

    def listed(loader: Loader, type_name: str) -> Any:
        key = (type_name, *loader.search_paths)
        if key not in lists:
            lists[key] = list_services(loader, type_name)
        return lists[key]

    patch.setattr(Loader, "list_available_services", listed)


def _inspect_handlers(patch: pytest.MonkeyPatch) -> None:
    accepts_kwargs = botocore.hooks.accepts_kwargs
    inspected = cache(accepts_kwargs)

    def accepts(handler: Callable[..., Any]) -> Any:
        # A bound method would keep its session alive.
        return (inspected if isinstance(handler, FunctionType) else accepts_kwargs)(handler)

    patch.setattr(botocore.hooks, "accepts_kwargs", accepts)


def _translate_event_names(patch: pytest.MonkeyPatch) -> None:
    translated: dict[str, str] = {}
    make = EventAliaser.__init__

    def made(aliaser: Any, *arguments: Any, **options: Any) -> None:
        make(aliaser, *arguments, **options)
        if aliaser._event_aliases == EVENT_ALIASES:  # noqa: SLF001 - botocore keeps such a cache for each session
            aliaser._alias_name_cache = translated  # noqa: SLF001

    patch.setattr(EventAliaser, "__init__", made)
