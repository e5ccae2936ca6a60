"""TLS contexts as Python 3.13, which is deployed, makes them; whatever Python this is."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from urllib3.util.ssl_ import create_urllib3_context

from handler.net import tls

_Make = Callable[..., ssl.SSLContext]


@contextmanager
def strict_contexts() -> Iterator[None]:
    """Have every context verify strictly unless the code says otherwise. None is kept from before, or for later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls, "create_urllib3_context", _strict(create_urllib3_context))
        patch.setattr(ssl, "create_default_context", _strict(ssl.create_default_context))
        tls.forget()
        yield
    tls.forget()


def _strict(make: _Make) -> _Make:
    def made(*arguments: object, **options: object) -> ssl.SSLContext:
        context = make(*arguments, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    return made
