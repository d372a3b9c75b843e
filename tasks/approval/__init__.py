"""Ask a person, in the Prefect page or in a terminal: a question bound to one dossier and to what is in production.

question.py   what is asked, and the answer
page.py       what is read before deciding
attend.py     when a question no longer stands, and what happens while a person thinks
held.py       the flow run that waits, on its Prefect server
terminal.py   the answer from a terminal

A question is a `Request` in the store, an answer an `Approval`. The Prefect server only carries them: what it forgets
or tells twice changes nothing.
"""

from tasks.approval.attend import attend, waiting
from tasks.approval.question import Decision, ask, asked, recorded, refuse

__all__ = ["Decision", "ask", "asked", "attend", "recorded", "refuse", "waiting"]
