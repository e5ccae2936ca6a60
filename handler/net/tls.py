"""Whom TLS connections trust: the system's authorities and those of a file, verified as libpq does.

Python 3.13 asks for more by default (VERIFY_X509_STRICT): it refuses a certificate without an authority key identifier,
which private authorities issue, and libpq and browsers accept. The chain, the dates and the name are verified as ever.
Loading the authorities takes 30 ms of CPU, so a process does it once for each file.
"""

import functools
import ssl
import threading

from urllib3.util.ssl_ import create_urllib3_context

_loading = threading.Lock()


def https_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Return the process's one context for HTTPS that also trusts the authorities in `ca_file`."""
    with _loading:  # of the threads that ask at the same time, one loads it
        return _https_context(ca_file)


def postgres_context(sslmode: str, ca_file: str | None) -> ssl.SSLContext:
    """Return the process's one context for `require`, `verify-ca` or `verify-full`. Raises OSError: no such file."""
    with _loading:
        return _postgres_context(sslmode, ca_file)


def forget() -> None:
    """Load the authorities anew the next time."""
    _https_context.cache_clear()
    _postgres_context.cache_clear()


@functools.cache
def _https_context(ca_file: str | None) -> ssl.SSLContext:
    context = create_urllib3_context()
    context.load_default_certs()
    return _trusting(context, ca_file)


@functools.cache
def _postgres_context(sslmode: str, ca_file: str | None) -> ssl.SSLContext:
    # Not urllib3's, which asks for HTTP: a server that knows of protocol negotiation would hang up.
    context = _trusting(ssl.create_default_context(), ca_file)
    context.check_hostname = sslmode == "verify-full"
    if sslmode == "require":
        context.verify_mode = ssl.CERT_NONE
    return context


def _trusting(context: ssl.SSLContext, ca_file: str | None) -> ssl.SSLContext:
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
