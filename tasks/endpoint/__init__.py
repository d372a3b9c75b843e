"""The one HTTP client of a llama-server, for flows, contracts and probes, and to import.

    with Client(Endpoint(base_url="https://...", api_key=os.environ["LLAMA_RELEASE_API_KEY"])) as client:
        print(content(client.ask("What is the capital of France?", max_tokens=256)))

Strict methods (`request`, `get`, `post`, `chat`, `stream`) send once and return whatever the server said: contracts and
probes use them, as nothing may help the server there. `ask` is for everyone who wants an answer: it waits out a cold
start, checks the answer and asks again within bounds. `AsyncClient` is the same for `async` code.

    answer.py   what came back, and how to read it
    guards.py   the patterns for tool calls
    chain.py    what to do after each attempt
    client.py   the wire
"""

from tasks.endpoint.answer import Answer, Stream, chat_body, content, message
from tasks.endpoint.chain import Patience, Rejected
from tasks.endpoint.client import AsyncClient, Client, base_url

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Patience",
    "Rejected",
    "Stream",
    "base_url",
    "chat_body",
    "content",
    "message",
]
