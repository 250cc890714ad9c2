"""Requests that carry a token."""

from urllib.parse import urlsplit

import httpx

from deconvoy.token_file import given, literal_host, token_for


class ShowingToken(httpx.BaseTransport):
    """Shows the token of a service with each request, as it is then: whoever waits for a service
    that is away shows the local one to nobody who listens there meanwhile.

    Args:
        token: default: ``DECONVOY_TOKEN``, else for a service of this machine the local one.

    Raises:
        RequestError: what is given can be no token.
    """

    def __init__(self, token: str | None, inner: httpx.BaseTransport) -> None:
        self._token, self._inner = given(token), inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self._token is None:
            # A name of several addresses; the token is for one of them.
            request.url = request.url.copy_with(host=literal_host(urlsplit(str(request.url))))
        token = self._token or token_for(str(request.url))
        if token is None:
            request.headers.pop("Authorization", None)  # of an earlier try
        else:
            request.headers["Authorization"] = f"Bearer {token}"
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()
