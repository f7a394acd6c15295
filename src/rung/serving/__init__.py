"""An OpenAI-compatible server for artifacts and their base models: it serves exactly what was measured.

middleware.py   every request passes it first: host, origin, key, rate, size; it also notices clients that leave
context.py      the state of the server, and the context of one request
completions.py  chat and text completions; endpoints.py has the other endpoints
artifacts.py    converts requests, so that an artifact's answer is that of `Artifact.predict`
scheduler.py    one thread per base model runs its engine; requests of all clients share its steps
served.py       base models and artifacts, loaded and unloaded while the server runs
shadows.py      challengers that answer again after the responses
web/            the pages
"""
